"""What is wrong with a data set, as findings of one sentence each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from cease_core.data.cases import Case, Dataset
from cease_core.data.classmap import ClassMap
from cease_core.data.findings import Finding
from cease_core.data.splits import Split
from cease_core.data.survey import Facts, Unreadable, survey

_UNEVEN = 2.0
"""How many times larger one case's voxels may be than another's before that is worth a word."""


def check(
    data: Dataset | Sequence[Case],
    surveyed: Sequence[Facts | Unreadable] | None = None,
    split: Split | None = None,
) -> list[Finding]:
    """Look for cases that cannot be read or do not fit the others, wrong class ids, and images that occur twice.

    What is missing altogether is found before, by `cease_core.data.inspect`.

    Parameters
    ----------
    data
        A data set, or cases without class names.
    surveyed
        What `cease_core.data.survey.survey` found; by default all cases are read.
    split
        Equal images on two of its sides are an error: what is measured on one was seen on the other.

    Returns
    -------
    list of Finding
        Errors first; empty if all is well.
    """
    cases, classes = (data.cases, data.classes) if isinstance(data, Dataset) else (data, {})
    seen = list(survey(cases)) if surveyed is None else surveyed
    facts = [f for f in seen if isinstance(f, Facts)]
    findings = [
        *(Finding("error", f.case.name, f.reason) for f in seen if isinstance(f, Unreadable)),
        *_images(facts),
        *_spacing(facts),
        *_ids(facts, classes),
        *_copies(facts, split),
        *_patients(cases),
    ]
    return sorted(findings, key=lambda f: f.severity)


def _images(facts: Sequence[Facts]) -> Iterator[Finding]:
    kinds = Counter((f.ndim, f.channels) for f in facts)
    usual = max(kinds, key=lambda kind: kinds[kind], default=None)
    for f in facts:
        if f.constant:
            yield Finding(
                "error", f.case.name, "every voxel of the image has the same value; replace it or leave it out."
            )
        if (f.ndim, f.channels) != usual and usual is not None:
            yield Finding(
                "error",
                f.case.name,
                f"the image is {_kind(f.ndim, f.channels)}, but {kinds[usual]} of the {len(facts)} cases are "
                f"{_kind(*usual)}; convert it or leave it out.",
            )
        if not f.voxels.keys() - {0}:
            yield Finding("warning", f.case.name, "the mask is empty: make sure that there is nothing to be found.")


def _spacing(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Nothing is resampled from case to case, so a structure must not look twice as large in one as in another."""
    for ndim in sorted({f.ndim for f in facts}):
        measured = [f for f in facts if f.ndim == ndim and f.length_unit == "mm"]
        for axis in range(ndim if measured else 0):
            fine, coarse = (choose(measured, key=lambda f: f.spacing[axis]) for choose in (min, max))
            if coarse.spacing[axis] > _UNEVEN * fine.spacing[axis]:
                yield Finding(
                    "warning",
                    "",
                    f"along axis {axis + 1} the voxels of {ndim}-D cases measure from {fine.spacing[axis]:.4g} mm "
                    f"({fine.case.name}) to {coarse.spacing[axis]:.4g} mm ({coarse.case.name}), and nothing is "
                    "resampled; bring the cases to one spacing if the same structure is to look alike.",
                )


def _ids(facts: Sequence[Facts], classes: dict[int, str]) -> Iterator[Finding]:
    found = {i for f in facts for i in f.voxels} - {0}
    known = set(classes) or found
    gaps = sorted(set(range(1, len(known) + 1)) - known)
    if gaps:
        yield Finding(
            "error",
            "",
            f"class ids are {_listed(sorted(known))}, but not {_listed(gaps)}; number the classes 1, 2, … in "
            f"order, or say which ids make them up, as in --classes {ClassMap.in_order(known)}.",
        )
    if not classes:
        return
    for f in facts:
        unknown = sorted(f.voxels.keys() - {0} - classes.keys())
        if unknown:
            yield Finding(
                "error",
                f.case.name,
                f"the mask holds class ids without a name: {_listed(unknown)}; name them, or say with --classes which "
                "class each id becomes (0 drops it).",
            )
    for i in sorted(classes.keys() - found):
        yield Finding("warning", "", f"no case holds class {i} ({classes[i]}); a model cannot learn it here.")


def _copies(facts: Sequence[Facts], split: Split | None) -> Iterator[Finding]:
    sides = {case.name: side for side, cases in split.sides.items() for case in cases} if split else {}
    alike: dict[str, list[Case]] = {}
    for f in facts:
        if not f.constant:
            alike.setdefault(f.digest, []).append(f.case)
    for cases in alike.values():
        first, *others = sorted(cases, key=lambda c: c.name)
        if not others:
            continue
        on = {sides[c.name] for c in cases if c.name in sides}
        names = _listed([c.name for c in others])
        if len(on) > 1:
            message = (
                f"the image is the same as that of {names}, and they are on several sides of the split "
                f"({', '.join(sorted(on))}), so results would be too good; keep one, or give them one patient."
            )
            yield Finding("error", first.name, message)
        else:
            yield Finding(
                "warning", first.name, f"the image is the same as that of {names}; keep one, or give them one patient."
            )


def _patients(cases: Sequence[Case]) -> Iterator[Finding]:
    """Names such as ``10000_121`` and ``10000_130`` look like slices of one patient, as long as nobody said so."""
    if any(c.patient != c.name for c in cases):
        return
    starts = Counter(re.split(r"[_-][^_-]*$", c.name)[0] for c in cases)
    # One start for all names is the data set's own, and as many as cases tell nothing.
    if 1 < len(starts) < len(cases):
        start, count = starts.most_common(1)[0]
        yield Finding(
            "warning",
            "",
            f"the names of {count} cases start with {start}, and others share theirs, too; if such cases are of one "
            "patient, give a pattern that finds the patient, such as ^(.+)[_-].",
        )


def _kind(ndim: int, channels: int) -> str:
    return f"{ndim}-D with {channels} channel{'' if channels == 1 else 's'}"


def _listed(items: Sequence[object], most: int = 8) -> str:
    """``1, 2, 3``, cut after ``most``."""
    return ", ".join(str(i) for i in items[:most]) + (", …" if len(items) > most else "")
