"""A list of cases in a file of the user's own: CSV, or one JSON object a line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cease_core.data.cases import Case, Dataset, Side, case_name, with_classes
from cease_core.data.classmap import ClassMap
from cease_core.data.findings import Finding
from cease_core.data.folders import CLASSES, read_names
from cease_core.errors import CeaseError

LAYOUT = "list"
SUFFIXES = (".csv", ".tsv", ".jsonl")
COLUMNS = ("image", "labels", "name", "patient", "split", "map")
"""Besides ``image_2``, ``image_3``, … for further channels."""
MAX_BYTES = 64 * 2**20
"""A list of paths is never larger."""

_SIDES: dict[str, Side] = {
    "training": "training",
    "train": "training",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_CHANNEL = re.compile(r"image_([2-9]|[1-9][0-9]{1,2})")


@dataclass(frozen=True)
class _Row:
    """The cells of a line by column; those that a JSON object leaves out are not there."""

    line: int
    cells: dict[str, str]


def matches(path: Path) -> bool:
    """Whether a path is that of a list."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def read(path: Path, classes: ClassMap | None = None) -> tuple[Dataset, list[Finding]]:
    """The cases of a list; paths count from its folder, or are absolute, as it is the user's own file.

    Parameters
    ----------
    path
        The list, see `COLUMNS`. A ``classes.json`` beside it may name the classes.
    classes
        What the ids in the masks mean, in place of the column ``map``.

    Returns
    -------
    Dataset
        The cases that can be used, by name.
    list of Finding
        What is wrong, with the line.

    Raises
    ------
    CeaseError
        If the file cannot be read, is no list of that form, or lists nothing.
    """
    text = _text(path)
    rows, findings = _jsonl(text) if path.suffix.lower() == ".jsonl" else _table(text)
    if not rows and not findings:
        raise CeaseError(f"{path} lists no cases; write one a line, with the columns image and labels.")
    cases: dict[str, tuple[int, Case]] = {}
    folded: dict[str, tuple[int, str]] = {}
    columns = {column for row in rows for column in row.cells}
    for row in rows:
        faults: list[str] = []
        case = _case(path.parent, row, columns, faults)
        if case is not None:
            first, _ = cases.setdefault(case.name, (row.line, case))
            alike, other = folded.setdefault(case.name.casefold(), (row.line, case.name))
            if first != row.line:
                faults.append(f"the name {case.name} is that of line {first}, too; give each case its own in name")
            elif other != case.name:
                faults.append(
                    f"the name {case.name} is {other} of line {alike} but for small and capital letters, which many "
                    "disks do not tell apart; give another one in name"
                )
        findings += [Finding("error", _place(row.line), f"{fault}.") for fault in faults]
    findings += _split_findings(path.parent, rows)
    names, classes = read_names(path.parent / CLASSES, classes)
    kept = with_classes((cases[name][1] for name in sorted(cases)), classes)
    return Dataset(path.stem, LAYOUT, kept, names), sorted(findings, key=lambda f: _line(f.case))


# --- from a file to rows -------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CeaseError(f"{path} is larger than {MAX_BYTES // 2**20} MiB; a list holds paths only, no voxels.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CeaseError(f"cannot read {path}: {error.strerror}; give the path of a readable file.") from error
    except ValueError as error:
        raise CeaseError(f"{path} is not UTF-8 text; save it as CSV in UTF-8.") from error


def _table(text: str) -> tuple[list[_Row], list[Finding]]:
    """The rows of a table with a header; commas, semicolons or tabs are between its cells."""
    header = text.lstrip().partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    rows: list[_Row] = []
    findings: list[Finding] = []
    columns: list[str] = []
    begin = 1
    try:
        for cells in reader:
            cells, line, begin = [cell.strip() for cell in cells], begin, reader.line_num + 1
            if not any(cells):
                continue
            if not columns:
                columns = [cell.lower() for cell in cells]
                findings = [Finding("error", _place(line), f"{fault}.") for fault in _column_faults(columns)]
                if findings:
                    return [], findings
            elif len(cells) == len(columns):
                rows.append(_Row(line, dict(zip(columns, cells, strict=True))))
            else:
                told = f"it has {len(cells)} cells, but the header has {len(columns)}; correct the line."
                findings.append(Finding("error", _place(line), told))
    except csv.Error as error:
        findings.append(Finding("error", _place(begin), f"it is no valid CSV ({error}); correct the quotes."))
    return rows, findings


def _column_faults(columns: Sequence[str]) -> Iterator[str]:
    for column in ("image", "labels"):
        if column not in columns:
            yield f"the column {column} is missing; the first line names the columns, image and labels among them"
    for column in dict.fromkeys(columns):
        if columns.count(column) > 1:
            yield f"the column {column} is there {columns.count(column)} times; keep one"
        elif not _known(column):
            yield f"there is no column {column!r}; rename or remove it (known: {', '.join(COLUMNS)}, image_2, …)"
    channels = sorted(int(match[1]) for column in columns if (match := _CHANNEL.fullmatch(column)))
    if channels != list(range(2, len(channels) + 2)):
        yield "the columns of further channels leave one out; number them image_2, image_3, …"


def _known(column: str) -> bool:
    return column in COLUMNS or _CHANNEL.fullmatch(column) is not None


def _jsonl(text: str) -> tuple[list[_Row], list[Finding]]:
    """The rows of a file with one JSON object a line."""
    rows: list[_Row] = []
    findings: list[Finding] = []
    for line, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        faults: list[str] = []
        try:
            content = json.loads(written)
        except (ValueError, RecursionError):
            faults.append(
                'it is no valid JSON; write an object such as {"image": "a.nii.gz", "labels": "a_mask.nii.gz"}'
            )
        else:
            cells = _cells(content, faults)
            if not faults:
                rows.append(_Row(line, cells))
        findings += [Finding("error", _place(line), f"{fault}.") for fault in faults]
    return rows, findings


def _cells(content: Any, faults: list[str]) -> dict[str, str]:
    """The entries of a JSON object as a table would have them."""
    if not isinstance(content, dict):
        faults.append("it is no JSON object; write one with the keys image and labels")
        return {}
    cells: dict[str, str] = {}
    for key, value in content.items():
        if key == "image" and isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            cells |= {"image" if i == 1 else f"image_{i}": v.strip() for i, v in enumerate(value, start=1)}
        elif key == "map" and isinstance(value, dict):
            cells[key] = ",".join(f"{source}={target}" for source, target in value.items())
        elif isinstance(value, str) or (key in ("name", "patient") and type(value) is int):
            cells[key] = str(value).strip()
        else:
            faults.append(f"{key!r} is of another kind; write text{' or a list of texts' if key == 'image' else ''}")
    if not faults:
        faults += _column_faults(list(cells))
    return cells


# --- from rows to cases --------------------------------------------------------------------------------------


def _case(folder: Path, row: _Row, columns: set[str], faults: list[str]) -> Case | None:
    """The case of a row, or None with its faults."""
    cells = row.cells
    channels = ["image", *sorted((c for c in columns if _CHANNEL.fullmatch(c)), key=lambda c: int(c[6:]))]
    for column in (*channels, "labels", "patient"):
        if column in columns and not cells.get(column):
            faults.append(f"{column} is empty; fill it in")
    paths = {column: folder / cells[column] for column in (*channels, "labels") if cells.get(column)}
    for column, file in paths.items():
        if not os.path.exists(file):
            faults.append(
                f"{column} {cells[column]!r} does not exist; correct the path, which counts from the list's folder"
            )
    side = cells.get("split", "")
    if side and side.lower() not in _SIDES:
        faults.append(f"split is {side!r}; write training, validation or test")
    classes: ClassMap | None = None
    if cells.get("map"):
        try:
            classes = ClassMap.read(cells["map"], "map")
        except CeaseError as error:
            faults.append(str(error).rstrip("."))
    name = cells.get("name") or case_name(Path(cells["image"]))
    for column, said in (("name", name), ("patient", cells.get("patient", ""))):
        if not said.isprintable() or re.search(r"[/\\]", said) or said in (".", ".."):
            faults.append(f"the {column} {said!r} cannot be part of a file's name; give another one in {column}")
    if faults:
        return None
    return Case(
        name,
        paths["image"],
        paths["labels"],
        patient=cells.get("patient", ""),
        further=tuple(paths[column] for column in channels[1:]),
        side=_SIDES.get(side.lower()),
        classes=classes,
    )


def _split_findings(folder: Path, rows: Sequence[_Row]) -> Iterator[Finding]:
    """One for a split that is there for some rows only, and one for each patient and each image on two sides."""
    sides = [(row, _SIDES.get(row.cells.get("split", "").lower())) for row in rows]
    without = [row.line for row, side in sides if side is None and not row.cells.get("split")]
    if 0 < len(without) < len(rows):
        told = f"{len(without)} of the {len(rows)} cases have no split; give all of them one, or none."
        yield Finding("error", _place(without[0]), told)
        return
    before: dict[tuple[str, str], tuple[int, Side]] = {}
    for row, side in sides:
        for kind, keep in (("patient", "a patient"), ("image", "an image")):
            said = row.cells.get(kind, "")
            if not said or side is None:
                continue
            same = said if kind == "patient" else _real_path(folder / said)
            line, other = before.setdefault((kind, same), (row.line, side))
            if other != side:
                told = f"{kind} {said} is on the side {side}, but in line {line} on {other}; keep {keep} on one side."
                yield Finding("error", _place(row.line), told)


def _real_path(path: Path) -> str:
    """The same for all ways to write where a file lies."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # no file's name, which is told of elsewhere
        return str(path)


def _place(line: int) -> str:
    return f"line {line}"


def _line(place: str) -> int:
    return int(place.removeprefix("line "))
