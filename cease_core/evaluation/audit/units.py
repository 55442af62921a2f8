"""Which cases an audit looks at, and what is known of each before anything is attacked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cease_core.attacks.on_scan import check_classes
from cease_core.data import Case, load_case
from cease_core.data.splits import by_hash
from cease_core.errors import CeaseError
from cease_core.evaluation.audit.plan import Settings
from cease_core.evaluation.audit.victims import Victim, file_hash
from cease_core.evaluation.audit.work import Unit
from cease_core.evaluation.lesions import lesions
from cease_core.models.segmenter import check_scan
from cease_core.scan import LabelArray, Scan


@dataclass(frozen=True)
class Selection:
    """Cases that an audit takes.

    Parameters
    ----------
    cases
        In the order of a hash of their patients' names.
    seen
        Names of those that were left out because a model was trained, or its checkpoint chosen, on them.
    kept
        Names of those that were taken although.
    """

    cases: tuple[Case, ...]
    seen: tuple[str, ...]
    kept: tuple[str, ...] = ()


def choose(cases: Iterable[Case], victims: Sequence[Victim], settings: Settings, *, keep_seen: bool) -> Selection:
    """Choose the cases; the choice depends on names alone.

    Parameters
    ----------
    keep_seen
        Whether cases that a model's card names as its training or validation data stay.

    Raises
    ------
    CeaseError
        If none is left.
    """
    known = {name for v in victims if v.card.data for name in (*v.card.data.train, *v.card.data.validation)}
    ordered = sorted(cases, key=lambda c: (by_hash(c.patient), c.name))
    if not ordered:
        raise CeaseError("there is no case to audit on; choose a folder with images/ and labels/.")
    fresh = ordered if keep_seen else [c for c in ordered if c.name not in known]
    if not fresh:
        raise CeaseError(
            "every case was used to train a model or to choose its checkpoint, as its card says; "
            "choose other data, or keep them with --keep-seen and say so."
        )
    chosen = tuple(fresh[: settings.cases])
    if keep_seen:
        return Selection(chosen, (), tuple(c.name for c in chosen if c.name in known))
    return Selection(chosen, tuple(c.name for c in ordered if c.name in known))


def units_of(case: Case, victim: Victim, settings: Settings) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """What is attacked at once of a case, each with its row of the cases' table.

    Raises
    ------
    CeaseError
        If scan or labels cannot be read or do not fit the model.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in case.name + case.patient):
        raise CeaseError(f"the name {case.name!r} is no Unicode and cannot be written down; rename it.")
    scan, labels = load_case(case)
    model = victim.card
    check_scan(scan, model)
    check_classes(labels, model, scan)
    digest = case_hash(case)
    for index in _slices(scan, labels, model.ndim, settings.slices):
        name = case.name if index is None else f"{case.name}[{index}]"
        yield Unit(name, case, digest, index), _facts(name, case, digest, scan, labels, index, victim)


def case_hash(case: Case) -> str:
    """SHA-256 of a case's files, and of what the ids in its mask mean."""
    parts = [file_hash(path) for path in (case.image, *case.further, case.labels)]
    if case.classes is not None:
        parts.append(str(case.classes))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _slices(scan: Scan, labels: LabelArray, ndim: int, count: int) -> list[int | None]:
    if scan.ndim == ndim or count == 0:
        return [None]
    there = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    if len(there) == 0:
        there = np.arange(scan.shape[0])
    # The middle of equal parts, so that one slice is the one in the middle.
    places = ((np.arange(count) + 0.5) * len(there) / count).astype(int)
    return [int(there[i]) for i in dict.fromkeys(places.tolist())]


def _facts(
    name: str, case: Case, digest: str, scan: Scan, labels: LabelArray, index: int | None, victim: Victim
) -> dict[str, Any]:
    cut = labels if index is None else labels[index]
    spacing = scan.spacing[-cut.ndim :]
    ids = [c.id for c in victim.card.classes]
    return {
        "case": name,
        "patient": case.patient,
        "slice": -1 if index is None else index,
        "ndim": cut.ndim,
        "shape": json.dumps(cut.shape),
        "spacing": json.dumps([round(s, 6) for s in spacing]),
        "unit": scan.length_unit,
        "foreground": int((cut > 0).sum()),
        "lesions": json.dumps([round(float(s), 4) for s in lesions(cut, ids, spacing).sizes]),
        "sha256": digest,
    }
