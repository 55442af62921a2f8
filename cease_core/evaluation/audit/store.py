"""An audit on disk: a journal that survives a kill, and the tables that are made from it.

The journal has one line for each finished job, with a checksum; it is only ever appended to. A line that is damaged
or half written counts as not there, so its job is done again. Tables are written from the journal in the plan's
order, whatever order the jobs finished in.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import Any

import pandas as pd

from cease_core.errors import CeaseError
from cease_core.io.files import write_atomically, write_reason, write_text

FACTS, JOURNAL = "audit.json", "log.jsonl"
TABLE, PROBES, CASES = "table", "probes", "cases"
PICTURES = "pictures"
CLEAN = "clean"

Key = tuple[str, str, str]
"""Model, trial and case."""

COLUMNS: dict[str, str] = {
    "model": "string",
    "attack": "string",
    "role": "string",
    "epsilon": "float64",
    "case": "string",
    "patient": "string",
    **dict.fromkeys(
        ("dice", "iou", "hd95_mm", "nsd", "mean_iou", "flipped", "ece", "nll", "brier", "linf", "rms", "psnr", "ssim"),
        "float64",
    ),
    "gradients": "Int64",
    "queries": "Int64",
}
"""Columns of the table and their types; then come ``dice_1`` … one for each class, ``lesions`` and ``error``."""

_LAST = {"lesions": "string", "error": "string"}


def columns(classes: Sequence[int]) -> dict[str, str]:
    """Columns of the table with their types, for these class ids."""
    return {**COLUMNS, **{f"dice_{c}": "float64" for c in classes}, **_LAST}


# --- the journal ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A finished job.

    Parameters
    ----------
    key
        Which one.
    rows
        Its rows of the table, one for each ε.
    probe
        Figures of the model on the unattacked case; None but for the job ``"clean"``.
    seconds
        What it took.
    """

    key: Key
    rows: tuple[dict[str, Any], ...]
    probe: dict[str, Any] | None = None
    seconds: float = 0.0


class Journal:
    """Appends finished jobs to a file, and reads them back.

    Parameters
    ----------
    path
        Made on the first entry, which also replaces a half-written last line.

    Raises
    ------
    CeaseError
        If the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        self._places: dict[Key, int] = {}
        self._file: FileIO | None = None
        self._end = 0
        try:
            self._index()
        except OSError as error:
            raise CeaseError(f"cannot read {path}: {error.strerror}; check the folder's permissions.") from error

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def append(self, entry: Entry) -> None:
        """Add a job; it is on disk when this returns.

        Raises
        ------
        CeaseError
            If it cannot be written; what was there before stays readable.
        """
        line = _line(entry)
        try:
            if self._file is None:
                # Unbuffered: what is not written now must not be tried again on closing.
                self._file = self.path.open("ab", buffering=0)
                # Not when the journal is read: another process may just be writing that line.
                self._file.truncate(self._end)
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, self._end)
            raise CeaseError(
                f"cannot keep results in {self.path.parent}: {write_reason(error)}; "
                "then give the same command again, which goes on where this one ended."
            ) from error
        self._places[entry.key] = self._end
        self._end += len(line)

    def read(self, keys: Sequence[Key]) -> Iterator[Entry]:
        """The entries of those ``keys`` that are there, in that order."""
        if not self._places:
            return
        with self.path.open("rb") as file:
            for key in keys:
                if key in self._places:
                    file.seek(self._places[key])
                    entry = parse_entry(file.readline())
                    if entry is not None:
                        yield entry

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _index(self) -> None:
        if not self.path.exists():
            return
        place, line = 0, b""
        with self.path.open("rb") as file:
            for line in file:
                entry = parse_entry(line)
                if entry is None:
                    self.damaged += 1
                else:
                    self._places[entry.key] = place
                place += len(line)
        self._end = place - len(line) if place and not line.endswith(b"\n") else place


def _line(entry: Entry) -> bytes:
    content = json.dumps([entry.key, entry.rows, entry.probe, entry.seconds], ensure_ascii=False).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def parse_entry(line: bytes) -> Entry | None:
    """What a line of a journal says; None if it is damaged or not whole."""
    code, _, content = line.rstrip(b"\n").partition(b" ")
    try:
        if not line.endswith(b"\n") or int(code, 16) != zlib.crc32(content):
            return None
        (model, trial, case), rows, probe, seconds = json.loads(content)
    except ValueError:
        return None
    return Entry((model, trial, case), tuple(rows), probe, seconds)


# --- tables --------------------------------------------------------------------------------------------------


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``audit.json``."""
    write_text(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


_NEEDED = ("settings", "victims", "classes", "class_names", "cases", "data", "made", "seen", "unusable")


def read_facts(folder: Path) -> dict[str, Any]:
    """Read ``audit.json``.

    Raises
    ------
    CeaseError
        If it is missing or damaged.
    """
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("it is no plan of an audit")
        if lost := [entry for entry in _NEEDED if entry not in facts]:
            raise ValueError(f"it lacks {lost[0]!r}")
    except FileNotFoundError as error:
        raise CeaseError(f"{folder} holds no audit; choose a folder that `cease audit --out` has written.") from error
    except (OSError, ValueError) as error:
        raise CeaseError(f"{path} cannot be read ({error}); run the audit again into a new folder.") from error
    return facts


def write_tables(folder: Path, journal: Journal, facts: Mapping[str, Any]) -> list[Path]:
    """Write ``table.csv``, ``table.parquet`` (where pyarrow is installed) and ``probes.csv``; returns the paths.

    Rows go from the journal to the files a few at a time, so that memory does not grow with them.

    Raises
    ------
    CeaseError
        If a file cannot be written.
    """
    kinds = columns(facts["classes"])
    keys = keys_of(facts)
    paths = [folder / f"{TABLE}.csv", folder / f"{PROBES}.csv"]
    probes = [(entry.key[0], entry.key[2], entry.probe) for entry in journal.read(keys) if entry.probe]

    def write_csv(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, kinds, restval="", lineterminator="\n")
            writer.writeheader()
            for entry in journal.read(keys):
                writer.writerows(entry.rows)

    def write_probes(part: Path) -> None:
        frame = pd.DataFrame([{"model": m, "case": c, **probe} for m, c, probe in probes])
        frame.to_csv(part, index=False, lineterminator="\n")

    write_atomically(paths[0], ".csv", write_csv)
    write_atomically(paths[1], ".csv", write_probes)
    if find_spec("pyarrow") is not None:
        paths.append(folder / f"{TABLE}.parquet")
        write_atomically(paths[-1], ".parquet", lambda part: _write_parquet(part, journal, keys, kinds))
    return paths


AT_ONCE = 4096


def _write_parquet(part: Path, journal: Journal, keys: Sequence[Key], kinds: Mapping[str, str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    arrow = {"string": pa.string(), "float64": pa.float64(), "Int64": pa.int64()}
    schema = pa.schema([(name, arrow[kind]) for name, kind in kinds.items()])

    with parquet.ParquetWriter(part, schema) as writer:
        held: list[dict[str, Any]] = []
        for entry in journal.read(keys):
            held.extend(entry.rows)
            if len(held) >= AT_ONCE:
                writer.write_table(pa.Table.from_pylist(held, schema))
                held = []
        if held:
            writer.write_table(pa.Table.from_pylist(held, schema))


def keys_of(facts: Mapping[str, Any]) -> list[Key]:
    """Keys of all jobs of an audit, in its order: case after case, model after model, the clean scan first."""
    return [
        (victim["name"], trial, case)
        for case in facts["cases"]
        for victim in facts["victims"]
        for trial in (CLEAN, *(t["name"] for t in victim["trials"]))
    ]


_LONGEST = 100
"""Letters of a name in a file's: file systems allow 255 bytes."""


def picture_path(folder: Path, model: str, case: str) -> Path:
    """Where the picture of a case is kept; names that are no file names are made ones, each another."""
    return folder / PICTURES / _file_name(model) / f"{_file_name(case)}.npz"


def _file_name(name: str) -> str:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name).lstrip(".")[:_LONGEST]
    if plain == name:
        return name
    return f"{plain}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:12]}"


# --- reading -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found so far.

    Parameters
    ----------
    folder
        Where it is kept.
    facts
        Content of ``audit.json``: settings, models, trials, versions, hardware.
    rows
        The table: one row for each model, attack, ε and case (see `columns`).
    probes
        One row for each model and case: how its gradient behaves (see `cease_core.evaluation.audit.probe`).
    cases
        One row for each case: its size, its lesions, its files' hash.
    jobs, finished
        How many jobs there are, and how many are done.
    """

    folder: Path
    facts: dict[str, Any]
    rows: pd.DataFrame
    probes: pd.DataFrame
    cases: pd.DataFrame
    jobs: int
    finished: int

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order they were given."""
        return [victim["name"] for victim in self.facts["victims"]]

    @property
    def epsilons(self) -> tuple[float, ...]:
        """ε of the curve, rising, in window fractions; without 0."""
        return tuple(self.facts["settings"]["epsilons"])

    @property
    def report_epsilon(self) -> float:
        """ε that single figures are given for, in window fractions."""
        return float(self.facts["settings"]["report_epsilon"])

    @property
    def complete(self) -> bool:
        """Whether every job is done."""
        return self.finished == self.jobs

    @cached_property
    def classes(self) -> dict[int, str]:
        """Names of the foreground classes by id."""
        return {c["id"]: c["name"] for c in self.facts["class_names"]}


def load_audit(folder: str | Path) -> Audit:
    """Read an audit, finished or not.

    Raises
    ------
    CeaseError
        If the folder holds none, or a file of it is damaged.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    journal = Journal(folder / JOURNAL)
    keys = keys_of(facts)
    kinds = columns(facts["classes"])
    rows: list[dict[str, Any]] = []
    probes: list[dict[str, Any]] = []
    finished = 0
    for entry in journal.read(keys):
        finished += 1
        rows.extend(entry.rows)
        if entry.probe:
            probes.append({"model": entry.key[0], "case": entry.key[2], **entry.probe})
    frame = pd.DataFrame(rows, columns=list(kinds)).astype(kinds)
    for name in _LAST:
        frame[name] = frame[name].fillna("")
    try:
        # A case may be called NA.
        words = {"case": str, "patient": str, "sha256": str}
        cases = pd.read_csv(folder / f"{CASES}.csv", dtype=words, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise CeaseError(f"{folder / CASES}.csv cannot be read ({error}); run the audit again.") from error
    return Audit(folder, facts, frame, pd.DataFrame(probes), cases, len(keys), finished)
