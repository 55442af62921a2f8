"""An audit under way: plans it, does what is missing, and keeps every result as it comes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import torch

from cease_core.attacks.on_scan import in_windows
from cease_core.data import Case
from cease_core.errors import CeaseError
from cease_core.evaluation.audit.executors import Executor, Serial, versions
from cease_core.evaluation.audit.plan import Settings, Trial, trials
from cease_core.evaluation.audit.store import (
    CASES,
    FACTS,
    JOURNAL,
    Journal,
    Key,
    keys_of,
    picture_path,
    read_facts,
    write_facts,
    write_tables,
)
from cease_core.evaluation.audit.units import Selection, choose, units_of
from cease_core.evaluation.audit.victims import Victim, alike, check_names, victims_of
from cease_core.evaluation.audit.work import Job, Outcome, Picture, Unit
from cease_core.io.files import write_atomically, write_reason
from cease_core.models.segmenter import SegmentationModel


@dataclass(frozen=True)
class Planned:
    """Before the first job: how many there are, how many of them are done already, and what was left out.

    Parameters
    ----------
    jobs, finished
        Of all and of those that an earlier run has done.
    cases
        Names of the cases.
    seen
        Cases left out because a model has seen them in training.
    unusable
        Cases left out because they cannot be read or do not fit, with the reason.
    damaged
        Lines of the journal that were damaged; their jobs are done again.
    """

    jobs: int
    finished: int
    cases: tuple[str, ...]
    seen: tuple[str, ...]
    unusable: dict[str, str]
    damaged: int


@dataclass(frozen=True)
class JobDone:
    """After each job, when its rows are on disk.

    Parameters
    ----------
    key
        Model, trial and case.
    rows
        Its rows of the table.
    finished, jobs
        Done so far, those of earlier runs included, and in all.
    seconds
        What it took.
    left
        Seconds that the rest will take, about.
    """

    key: Key
    rows: tuple[dict[str, Any], ...]
    finished: int
    jobs: int
    seconds: float
    left: float


@dataclass(frozen=True)
class AuditFinished:
    """The tables are written; ``complete`` unless it was stopped."""

    folder: Path
    complete: bool


AuditEvent = Planned | JobDone | AuditFinished


def audit(
    models: Sequence[str | Path | Victim],
    cases: Iterable[Case],
    out: str | Path,
    settings: Settings | None = None,
    *,
    sources: Sequence[str | Path | Victim] = (),
    keep_seen: bool = False,
    device: str = "cpu",
    executor: Executor | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[AuditEvent, None, None]:
    """Attack every case with every trial on every model, and keep a row for each ε.

    A folder that holds a part of the same audit is gone on with: what is done is not done again. However it ends,
    the tables are written of what is there.

    Parameters
    ----------
    models
        Names, folders, or victims in memory; with the same classes.
    cases
        Scans with labels (see `cease_core.data.find_cases`).
    out
        Folder for the results; made if it is missing.
    settings
        See `cease_core.evaluation.audit.tier`; a quick audit by default.
    sources
        Further models that transfers are made on; each model under audit is one for the others.
    keep_seen
        Whether to use cases that a model was trained on or its checkpoint chosen by, as its card says.
    device
        Such as ``"cpu"`` or ``"cuda"``.
    executor
        Who does the jobs; this process by default.
    stopped
        Asked between the steps of an attack; true ends the audit early.

    Yields
    ------
    AuditEvent
        `Planned`, a `JobDone` for each job, `AuditFinished`; nothing if it is stopped while cases are still read.

    Raises
    ------
    CeaseError
        If models or cases cannot be used, the folder holds another audit or cannot be written, or another process
        is writing to it.

    Examples
    --------
    >>> from cease_core.data import find_cases
    >>> events = audit(["cardiac-defended"], find_cases("data"), "audits/cardiac")  # doctest: +SKIP
    """
    settings = settings or Settings()
    folder = _folder(out)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise CeaseError(f"another audit is writing to {folder}; wait for it, or choose another folder.") from error
    except OSError as error:
        raise CeaseError(f"cannot write to {folder}: {write_reason(error)}.") from error
    try:
        yield from _run(models, cases, folder, settings, sources, keep_seen, device, executor or Serial(), stopped)
    finally:
        lock.release()


def _folder(out: str | Path) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise CeaseError(f"{folder} is a file; choose another folder for the results.") from error
    except OSError as error:
        raise CeaseError(f"cannot make the folder {folder}: {write_reason(error)}.") from error
    return folder


def _run(
    models: Sequence[str | Path | Victim],
    cases: Iterable[Case],
    folder: Path,
    settings: Settings,
    sources: Sequence[str | Path | Victim],
    keep_seen: bool,
    device: str,
    executor: Executor,
    stopped: Callable[[], bool],
) -> Generator[AuditEvent, None, None]:
    victims = victims_of(models)
    others = tuple(Victim.of(s) for s in sources)
    check_names(victims, others)
    chosen = choose(cases, victims, settings, keep_seen=keep_seen)
    units, table, unusable = _units(chosen.cases, victims[0], settings, stopped)
    if stopped():
        return
    plans = {v.name: _trials(v, (*victims, *others), table, settings, device) for v in victims}
    facts = _facts(settings, victims, others, plans, table, chosen, unusable, device)
    journal = Journal(folder / JOURNAL)
    keys = keys_of(facts)
    finished = sum(key in journal for key in keys)
    _keep_plan(folder, facts, table, over=finished == len(keys))
    yield Planned(len(keys), finished, tuple(facts["cases"]), chosen.seen, unusable, journal.damaged)
    jobs = _jobs(units, victims, others, plans, settings, device, journal)
    album = _Album(folder, {v: [t.name for t in plan] for v, plan in plans.items()})
    began, before = time.monotonic(), finished
    try:
        for outcome in executor.run(jobs, stopped):
            album.keep(outcome)
            journal.append(outcome.entry)
            finished += 1
            pace = (time.monotonic() - began) / (finished - before)
            entry = outcome.entry
            yield JobDone(entry.key, entry.rows, finished, len(keys), entry.seconds, pace * (len(keys) - finished))
    except BaseException:
        # What stopped it is what the user has to know, not that the tables could not be written either.
        with suppress(CeaseError):
            write_tables(folder, journal, facts)
        raise
    finally:
        journal.close()
    write_tables(folder, journal, facts)
    yield AuditFinished(folder, finished == len(keys))


# --- the plan ------------------------------------------------------------------------------------------------


def _units(
    cases: Sequence[Case], victim: Victim, settings: Settings, stopped: Callable[[], bool]
) -> tuple[list[Unit], list[dict[str, Any]], dict[str, str]]:
    units: list[Unit] = []
    table: list[dict[str, Any]] = []
    unusable: dict[str, str] = {}
    for case in cases:
        if stopped():
            return [], [], {}
        try:
            for unit, facts in units_of(case, victim, settings):
                units.append(unit)
                table.append(facts)
        except CeaseError as error:
            unusable[_legible(case.name)] = _legible(str(error))
    for name, count in Counter(unit.name for unit in units).items():
        if count > 1:
            raise CeaseError(f"two cases are called {name}; rename one.")
    if not units:
        first, reason = next(iter(unusable.items()))
        raise CeaseError(f"no case can be used; of {first}, for one: {reason}")
    return units, table, unusable


def _legible(text: str) -> str:
    """Text that any file can hold: names of files need not be Unicode."""
    return text.encode("utf-8", "replace").decode()


def _trials(
    victim: Victim, others: Sequence[Victim], table: Sequence[dict[str, Any]], settings: Settings, device: str
) -> tuple[Trial, ...]:
    names = tuple(dict.fromkeys(o.name for o in others if o.name != victim.name and alike(o, victim)))
    model = victim.load(device)
    shapes = {tuple(json.loads(row["shape"])) for row in table}
    # What is seen window by window has no features of the whole.
    encoder = isinstance(model, SegmentationModel) and all(in_windows(model, shape) is model for shape in shapes)
    return trials(settings, encoder=encoder, sources=names)


def _jobs(
    units: Sequence[Unit],
    victims: Sequence[Victim],
    others: Sequence[Victim],
    plans: dict[str, tuple[Trial, ...]],
    settings: Settings,
    device: str,
    journal: Journal,
) -> Iterator[Job]:
    by_name = {v.name: v for v in (*others, *victims)}
    for unit in units:
        for victim in victims:
            for trial in (None, *plans[victim.name]):
                job = Job(
                    victim,
                    unit,
                    trial,
                    settings.report_epsilon,
                    settings.tolerance,
                    device,
                    settings.threads,
                    by_name[trial.source] if trial and trial.source else None,
                )
                if job.key not in journal:
                    yield job


def _facts(
    settings: Settings,
    victims: Sequence[Victim],
    others: Sequence[Victim],
    plans: dict[str, tuple[Trial, ...]],
    table: Sequence[dict[str, Any]],
    chosen: Selection,
    unusable: dict[str, str],
    device: str,
) -> dict[str, Any]:
    card = victims[0].card
    return {
        "settings": settings.model_dump(mode="json"),
        "victims": [v.describe() | {"trials": [t.describe() for t in plans[v.name]]} for v in victims],
        "sources": [{"name": o.name, "weights": o.weights, "reading": o.reading} for o in others],
        "classes": [c.id for c in card.classes],
        "class_names": [c.model_dump(mode="json") for c in card.classes],
        "cases": [row["case"] for row in table],
        "data": hashlib.sha256("".join(f"{row['case']}\0{row['sha256']}\n" for row in table).encode()).hexdigest(),
        "device": device.partition(":")[0],
        "seen": list(chosen.seen),
        "kept": [name for name in chosen.kept if _legible(name) not in unusable],
        "unusable": unusable,
        "made": {
            "date": time.strftime("%Y-%m-%d"),
            "device": device,
            "processor": _processor(),
            "cores": os.cpu_count(),
            "accelerator": torch.cuda.get_device_name() if device.startswith("cuda") else None,
            "system": platform.platform(),
            "versions": {"python": platform.python_version(), **versions()},
        },
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


_SAME = {
    "settings": "settings",
    "victims": "models",
    "sources": "sources of transfers",
    "cases": "cases",
    "data": "files of the cases",
    "device": "devices",
}


def _keep_plan(folder: Path, facts: dict[str, Any], table: Sequence[dict[str, Any]], *, over: bool) -> None:
    """Write the plan, or see that the folder holds the same one; whoever does a part of it is written down."""
    if (folder / FACTS).exists():
        old = read_facts(folder)
        for entry, name in _SAME.items():
            # As text: a card may hold a NaN, which equals nothing.
            if json.dumps(facts[entry], sort_keys=True) != json.dumps(old.get(entry), sort_keys=True):
                raise CeaseError(
                    f"{folder} holds an audit with other {name}; choose another folder, or give the same ones."
                )
        facts["resumed"] = list(old.get("resumed", []))
        if not over and not any(_same_maker(facts["made"], made) for made in (old["made"], *facts["resumed"])):
            facts["resumed"].append(facts["made"])
        facts["made"] = old["made"]
    elif (folder / JOURNAL).exists():
        raise CeaseError(f"{folder} holds results without their {FACTS}; choose another folder.")
    frame = pd.DataFrame(table)
    write_atomically(folder / f"{CASES}.csv", ".csv", lambda part: frame.to_csv(part, index=False))
    write_facts(folder, facts)


def _same_maker(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[entry] == other.get(entry) for entry in one if entry != "date")


# --- pictures ------------------------------------------------------------------------------------------------


class _Album:
    """Keeps, of each model and case, the picture of its strongest perturbation."""

    def __init__(self, folder: Path, order: dict[str, list[str]]) -> None:
        self.folder = folder
        self.order = order
        self.best: dict[tuple[str, str], tuple[float, int]] = {}

    def keep(self, outcome: Outcome) -> None:
        if outcome.picture is None:
            return
        model, trial, case = outcome.entry.key
        # Ties go to the earlier trial, whichever was done first.
        rank = outcome.picture.dice, self.order[model].index(trial)
        path = picture_path(self.folder, model, case)
        if (model, case) not in self.best and path.exists():
            self.best[model, case] = self._rank(path, model)
        if rank >= self.best.get((model, case), (float("inf"), 0)):
            return
        _write(path, outcome.picture)
        self.best[model, case] = rank

    def _rank(self, path: Path, model: str) -> tuple[float, int]:
        try:
            with np.load(path, allow_pickle=False) as kept:
                return float(kept["dice"]), self.order[model].index(str(kept["attack"]))
        except (OSError, ValueError, KeyError, EOFError):
            return float("inf"), 0


def _write(path: Path, picture: Picture) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CeaseError(f"cannot make the folder {path.parent}: {write_reason(error)}.") from error
    write_atomically(path, ".npz", lambda part: np.savez_compressed(part, **vars(picture)))
