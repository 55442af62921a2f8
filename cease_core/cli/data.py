"""``cease data``: what is in a data set, what is wrong with it, and how it is split."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cease_core.cli.listings import PIPED_WIDTH
from cease_core.cli.progress import INTERRUPTED, interruptible, make_progress
from cease_core.data import (
    Case,
    ClassMap,
    Finding,
    Split,
    check,
    folds,
    given_split,
    inspect,
    split,
    with_patients,
    write_split,
)
from cease_core.data.findings import refuse
from cease_core.data.survey import PERCENTILES, Facts, Summary, Unreadable, summarise, survey
from cease_core.errors import CeaseError

LAYOUTS = {
    "folders": "images/ and labels/",
    "decathlon": "Medical Segmentation Decathlon",
    "nnunet": "nnU-Net raw data",
    "list": "list of cases",
}
SHOWN = 6
"""Names listed on the screen, here and below; JSON and the split file list all."""


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """What was asked for; see ``cease data --help``."""

    folder: Path
    validation: float | None = None
    test: float = 0.0
    patients: str | None = None
    folds: int | None = None
    fold: int | None = None
    check: bool = False
    as_json: bool = False
    out: Path | None = None
    classes: str | None = None


def run_data(request: DataRequest) -> int:
    """Describe a data set; check and split it if asked.

    Returns
    -------
    int
        Exit code: 0; 1 if the check found errors (no split is written then); 130 if Ctrl-C stopped it.

    Raises
    ------
    CeaseError
        If the folder is no data set, or the split cannot be made or written; without a check also if a case is
        incomplete.
    """
    classes = None if request.classes is None else ClassMap.read(request.classes)
    dataset, incomplete = inspect(request.folder, classes)
    if not request.check:
        refuse(request.folder, incomplete)
    dataset = replace(dataset, cases=with_patients(dataset.cases, request.patients))
    sides = _split(dataset.cases, request)
    surveyed = _read(dataset.cases)
    if len(surveyed) < len(dataset.cases):
        print(f"Stopped after {len(surveyed)} of {len(dataset.cases)} cases; nothing was written.", file=sys.stderr)
        return INTERRUPTED
    summary = summarise(dataset, surveyed)
    findings = [*incomplete, *check(dataset, surveyed, sides)] if request.check else None
    failed = any(f.severity == "error" for f in findings or ())
    if request.as_json:
        print(json.dumps(_as_json(summary, findings, sides), indent=1, ensure_ascii=False))
    else:
        _print_summary(summary)
        _print_findings(findings, summary)
        _print_split(sides)
    if request.out and sides:
        if failed:
            print(f"{request.out} was not written because of these errors.", file=sys.stderr)
        else:
            write_split(request.out, sides, dataset=dataset.name, pattern=request.patients)
            print(f"The split is in {request.out}.", file=sys.stderr)
    return 1 if failed else 0


def _split(cases: Sequence[Case], request: DataRequest) -> Split | None:
    """The split that came with the cases or was asked for, if any; an empty side that was asked for is refused."""
    given = given_split(cases)
    if given is not None:
        for option, value in (
            ("validation", request.validation),
            ("test", request.test or None),
            ("folds", request.folds),
        ):
            if value is not None:
                raise CeaseError(
                    f"the list says which side each case is on; leave out --{option}, or its column split."
                )
        return given
    if request.folds is not None:
        if request.fold is None:
            raise CeaseError(f"--folds {request.folds} needs --fold, from 0 to {request.folds - 1}.")
        if request.validation is not None:
            raise CeaseError("--validation and --folds exclude each other; leave out one of them.")
        return folds(cases, request.folds, request.fold, test=request.test)
    if request.fold is not None:
        raise CeaseError("--fold needs --folds, the number of folds.")
    shares = {"training": 1.0, "validation": request.validation or 0.0, "test": request.test}
    if not shares["validation"] and not shares["test"]:
        if request.out:
            raise CeaseError("--out needs a split to write; add --validation 0.2, or --folds 5 --fold 0.")
        return None
    sides = split(cases, validation=shares["validation"], test=shares["test"])
    for name, kept in sides.sides.items():
        if shares[name] and not kept:
            raise CeaseError(
                f"{len({c.patient for c in cases})} patients with validation = {shares['validation']} and test = "
                f"{shares['test']} leave none for {name}; add cases or change the shares."
            )
    return sides


def _read(cases: Sequence[Case]) -> list[Facts | Unreadable]:
    """What each case holds; fewer than there are cases if Ctrl-C was pressed."""
    surveyed: list[Facts | Unreadable] = []
    with interruptible() as stopped, make_progress() as progress:
        task = progress.add_task("reading", total=len(cases), note="")
        for found in survey(cases):
            if stopped():
                break
            surveyed.append(found)
            progress.update(task, completed=len(surveyed), note=found.case.name)
    return surveyed


def _as_json(summary: Summary, findings: Sequence[Finding] | None, sides: Split | None) -> dict[str, Any]:
    return {
        **asdict(summary),
        "findings": None if findings is None else [asdict(f) for f in findings],
        "split": None if sides is None else {side: [c.name for c in kept] for side, kept in sides.sides.items()},
    }


def _print_summary(summary: Summary) -> None:
    table = _table("", "")
    table.show_header = False
    for name, value in _rows(summary):
        table.add_row(name, escape(value))
    print(f"{summary.name} ({LAYOUTS[summary.layout]})")
    _print(table)
    table = _table("id", "class", "share of voxels", "cases")
    for kind in summary.classes:
        table.add_row(str(kind.id), escape(kind.name or "unnamed"), f"{kind.share:.2%}", str(kind.cases))
    _print(table)


def _rows(summary: Summary) -> list[tuple[str, str]]:
    """Names and values of the description, as text.

    Examples
    --------
    >>> _span((3, 3)), _span((0.5, 2.0))
    ('3', '0.5–2')
    """
    rows = [
        ("cases", str(summary.cases)),
        ("patients", str(summary.patients)),
        ("images", " and ".join(f"{n}-D" for n in summary.ndim)),
        ("channels", " or ".join(str(n) for n in summary.channels)),
        ("shape", " × ".join(_span(s) for s in summary.shape) or "2-D and 3-D are mixed"),
    ]
    if summary.length_unit == "mm":
        rows.append(("spacing", " × ".join(_span(s) for s in summary.spacing) + " mm"))
    marks = ", ".join(f"{p:g} %" for p in PERCENTILES)
    for i, values in enumerate(summary.percentiles):
        channel = f" {i + 1}" if len(summary.percentiles) > 1 else ""
        text = ", ".join(f"{v:.4g}" for v in values)
        rows.append((f"intensity{channel}", f"{text} {' or '.join(summary.units)} (percentiles {marks})"))
    rows += [("class map", written) for written in summary.maps]
    return rows if summary.cases > summary.unreadable else rows[:2]


def _span(ends: tuple[float, float]) -> str:
    low, high = (f"{v:.4g}" for v in ends)
    return low if low == high else f"{low}–{high}"


def _print_findings(findings: Sequence[Finding] | None, summary: Summary) -> None:
    if findings is None:
        if summary.unreadable:
            print(
                f"{summary.unreadable} of {summary.cases} cases could not be read and are left out of these figures; "
                "--check says why."
            )
        return
    if findings:
        errors = sum(finding.severity == "error" for finding in findings)
        print(
            " and ".join(_counted(n, word) for n, word in ((errors, "error"), (len(findings) - errors, "warning")) if n)
        )
    alike: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        alike.setdefault((finding.severity, finding.message), []).append(finding.case)
    for (severity, message), cases in alike.items():
        where = f"{len(cases)} cases ({_listed(cases)})" if len(cases) > 1 else cases[0]
        print(f"{severity}: {where}: {message}" if where else f"{severity}: {message}")
    if not findings:
        print("Nothing is wrong with these cases.")


def _counted(count: int, word: str) -> str:
    """How many of something there are.

    Examples
    --------
    >>> _counted(1, "error"), _counted(3, "warning")
    ('1 error', '3 warnings')
    """
    return f"{count} {word}{'' if count == 1 else 's'}"


def _print_split(sides: Split | None) -> None:
    if sides is None:
        return
    table = _table("side", "cases", "patients", "names")
    for side, cases in sides.sides.items():
        patients = len({c.patient for c in cases})
        table.add_row(side, str(len(cases)), str(patients), escape(_listed([c.name for c in cases])))
    _print(table)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def _print(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=PIPED_WIDTH)).print(table)
