"""``cease audit`` and ``cease report``: from models and data to a folder with table, report and verdict."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cease_core.cli.attack import choose_device
from cease_core.cli.epsilon import Epsilon
from cease_core.cli.progress import INTERRUPTED, interruptible, make_progress
from cease_core.data import Case, ClassMap, find_cases, given_split, read_split, with_patients
from cease_core.errors import CeaseError
from cease_core.evaluation.audit import (
    AuditEvent,
    AuditFinished,
    Cluster,
    Executor,
    JobDone,
    Planned,
    Serial,
    tier,
)
from cease_core.evaluation.audit import audit as run
from cease_core.evaluation.report import FIGURES, write_report
from cease_core.evaluation.report.words import share
from cease_core.evaluation.summary import Summary


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What was asked for, as it was written."""

    models: tuple[str, ...]
    data: Path
    out: Path
    tier: str
    split: Path | None
    side: str
    patients: str | None
    cases: int | None
    epsilons: str | None
    sources: tuple[str, ...]
    keep_seen: bool
    changes: tuple[str, ...]
    scheduler: str | None
    workers: int
    device: str
    seed: int | None
    classes: str | None = None


def run_audit(request: AuditRequest) -> int:
    """Audit models and write the report.

    Returns
    -------
    int
        Exit code: 0, or 130 if Ctrl-C stopped it (what is done is kept, and the same command goes on).

    Raises
    ------
    CeaseError
        If any input cannot be used.
    """
    settings = tier(request.tier, **_changes(request))
    with interruptible() as stopped:
        events = run(
            request.models,
            _cases(request),
            request.out,
            settings,
            sources=request.sources,
            keep_seen=request.keep_seen,
            device=str(choose_device(request.device)),
            executor=_executor(request),
            stopped=stopped,
        )
        with closing(events):
            complete = _follow(events)
    if complete is not None:
        finish(request.out)
    if not complete:
        print("Stopped by Ctrl-C: the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    return 0


def finish(folder: Path) -> None:
    """Write the report of an audit, finished or not, and say what came out.

    Raises
    ------
    CeaseError
        If the folder holds no audit, or cannot be written.
    """
    path = write_report(folder)
    # Bootstraps take seconds: what the report was written from is read, not computed again.
    print(summary(Summary.model_validate_json((folder / FIGURES).read_text(encoding="utf-8"))))
    print(f"Written to {folder}: {path.name}, report.json, robustness.md, table.csv")


def summary(found: Summary) -> str:
    """The headline of each model and its verdict, in a few lines for the terminal."""
    at = f"{found.epsilon * 255:g}/255"
    lines = [] if found.complete else [f"Not finished: {found.finished} of {found.jobs} jobs are done."]
    for model in found.models:
        head, counts = model.headline, model.counts
        lines += [
            f"{model.title}: {counts.measured} cases, {counts.eligible} eligible",
            f"  Dice {_number(head.clean_dice.mean)} clean, {_number(head.worst_dice.mean)} at {at} (worst of all "
            f"attacks), success rate {_percent(head.asr_drop.mean)}, D {_levels(head.d_censored.mean)}, "
            f"area under Dice(ε) {_number(head.auc.mean)}",
            f"  {model.verdict.sentence}",
        ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "not known" if value is None else share(value)


def _levels(value: float | None) -> str:
    return "not known" if value is None else f"{value * 255:.1f}/255"


def _cases(request: AuditRequest) -> list[Case]:
    cases = find_cases(request.data, None if request.classes is None else ClassMap.read(request.classes))
    split = given_split(cases) if request.split is None else read_split(request.split, cases)
    if split is not None:
        sides = split.sides
        if request.side not in sides:
            raise CeaseError(f"there is no side {request.side!r}; choose one of {', '.join(sides)}.")
        cases = list(sides[request.side])
    return list(with_patients(cases, request.patients))


def _changes(request: AuditRequest) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for change in request.changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise CeaseError(f"--set {change!r} is not understood; write it as name=value, such as steps=40.")
        changes[name.strip()] = value.strip()
    if "epsilons" in changes:
        raise CeaseError("the ε of the curve are given by --epsilons; write it as --epsilons 2/255,4/255,8/255.")
    if "report_epsilon" in changes:
        changes["report_epsilon"] = _fraction(changes["report_epsilon"])
    if request.cases is not None:
        changes["cases"] = request.cases or None
    if request.seed is not None:
        changes["seed"] = request.seed
    if request.epsilons is not None:
        levels = sorted({_fraction(part) for part in request.epsilons.split(",")})
        changes["epsilons"] = tuple(levels)
        changes.setdefault("report_epsilon", 8 / 255 if 8 / 255 in levels else levels[-1])
    return changes


def _fraction(written: str) -> float:
    epsilon = Epsilon.parse(written.strip())
    if epsilon.unit:
        raise CeaseError(f"an audit's ε is a part of the window, not {written.strip()}; write it as 8/255 or 0.03.")
    return epsilon.value


def _executor(request: AuditRequest) -> Executor:
    if request.scheduler is not None:
        return Cluster(request.scheduler)
    return Cluster(workers=request.workers) if request.workers > 1 else Serial()


def _follow(events: Iterator[AuditEvent]) -> bool | None:
    """Whether it was done to the end; None if it was stopped before anything was attacked."""
    complete: bool | None = None
    with make_progress() as progress:
        task = progress.add_task("audit", total=None, note="reading cases")
        for event in events:
            if isinstance(event, Planned):
                progress.update(task, total=event.jobs, completed=event.finished)
                _tell(event)
            elif isinstance(event, JobDone):
                model, trial, case = event.key
                progress.update(task, completed=event.finished, note=f"{case}, {model}, {trial}")
            elif isinstance(event, AuditFinished):
                complete = event.complete
    return complete


def _tell(plan: Planned) -> None:
    """What a reader of the report would want to have known."""
    notes = [f"{len(plan.cases)} cases, {plan.jobs} jobs" + (f", {plan.finished} done before" if plan.finished else "")]
    if plan.seen:
        notes.append(f"{len(plan.seen)} cases left out: a model was trained, or its checkpoint chosen, on them")
    notes += [f"left out: {reason}" for reason in plan.unusable.values()]
    if plan.damaged:
        notes.append(f"{plan.damaged} damaged entries of an earlier run are computed again")
    print("\n".join(notes), file=sys.stderr)
