"""Named defences: what the literature does, and the parts of CEASE one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cease_core.defences.config import (
    AuxiliaryTerm,
    ConsistencyTerm,
    ContrastiveTerm,
    Defence,
    DistillationTerm,
    DivideTerm,
    FrequencyTerm,
    InnerAttack,
    MartTerm,
    SegmentationTerm,
    Term,
    View,
)
from cease_core.errors import CeaseError

_GAMMA = 0.25


def _seg(clean: float = 0.0, adversarial: float = 0.0, augmented: float = 0.0) -> tuple[Term, ...]:
    shares: dict[View, float] = {"clean": clean, "adversarial": adversarial, "augmented": augmented}
    return tuple(SegmentationTerm(view=view, weight=weight) for view, weight in shares.items() if weight > 0)


_HALF = _seg(0.5, 0.5)
_CEASE = (*_seg(0.5, 0.5, _GAMMA), ContrastiveTerm(), AuxiliaryTerm())
_ON_CLEAN = AuxiliaryTerm(clean=1, adversarial=0)

PRESETS: dict[str, Defence] = {
    d.name: d
    for d in (
        Defence(name="none", terms=_seg(1)),
        Defence(name="augment", terms=_seg(1, 0, _GAMMA)),
        Defence(name="at", terms=_HALF),
        Defence(
            name="trades",
            terms=(*_seg(1), ConsistencyTerm(weight=6)),
            inner=InnerAttack(ascent="consistency"),
        ),
        Defence(name="mart", terms=(MartTerm(),)),
        Defence(name="fast_at", terms=_seg(0, 1), inner=InnerAttack(steps=1, step_size=10 / 255)),
        Defence(name="free_at", terms=_seg(0, 1), inner=InnerAttack(steps=1, ascent="free"), replays=4),
        Defence(name="segpgd_at", terms=_HALF, inner=InnerAttack(ascent="segpgd")),
        Defence(name="ddc_at", terms=(DivideTerm(),)),
        Defence(name="vaft", terms=(*_seg(1, 1), FrequencyTerm()), inner=InnerAttack(ascent="frequency")),
        Defence(name="distillation", terms=(DistillationTerm(),)),
        Defence(name="contrastive", terms=(*_seg(1, 0, _GAMMA), ContrastiveTerm(over=("clean", "augmented")))),
        Defence(name="contrastive_at", terms=(*_seg(0.5, 0.5, _GAMMA), ContrastiveTerm())),
        Defence(name="multitask", terms=(*_seg(1), _ON_CLEAN)),
        Defence(name="multitask_at", terms=(*_HALF, AuxiliaryTerm())),
        Defence(name="cease", terms=_CEASE),
    )
}
"""Defences by name. Ablations of ``cease``: none, augment, at, contrastive, multitask, contrastive_at, multitask_at."""


def preset(name: str, changes: Mapping[str, Any] | None = None) -> Defence:
    """A preset, some of its values changed.

    Parameters
    ----------
    name
        Key of `PRESETS`.
    changes
        New values by dotted name: ``"inner.steps"``, ``"balance"``, or a term's by its kind (and its view, for
        segmentation): ``"contrastive.weight"``, ``"auxiliary.tasks"``, ``"segmentation.clean.weight"``.

    Raises
    ------
    CeaseError
        If there is no such preset, term or value.

    Examples
    --------
    >>> preset("at", {"inner.steps": 3}).inner.steps
    3
    """
    if name not in PRESETS:
        raise CeaseError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    raw = PRESETS[name].model_dump()
    for key, value in (changes or {}).items():
        place, _, last = key.rpartition(".")
        holder = _holder(raw, place, name)
        if last not in holder:
            raise CeaseError(f"{name} has no {key!r}; choose from {', '.join(holder)}.")
        holder[last] = value
    try:
        return Defence.model_validate(raw)
    except ValueError as error:
        raise CeaseError(f"the preset {name} cannot be changed so: {reason(error)}.") from error


def reason(error: ValueError) -> str:
    """The first thing that a validation found wrong, with its place."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    first = errors()[0]
    return f"{'.'.join(str(p) for p in first['loc']) or 'defence'}: {first['msg']}"


def _holder(raw: dict[str, Any], place: str, name: str) -> dict[str, Any]:
    if place in ("", "inner"):
        return raw if not place else raw["inner"]
    kind, _, view = place.partition(".")
    found: list[dict[str, Any]] = [t for t in raw["terms"] if t["kind"] == kind and (not view or t.get("view") == view)]
    if len(found) == 1:
        return found[0]
    if found:
        views = " or ".join(f"{kind}.{t['view']}" for t in found)
        raise CeaseError(f"the preset {name} has more than one term {place!r}; say {views}.")
    terms = ", ".join(".".join(filter(None, (t["kind"], t.get("view")))) for t in raw["terms"])
    raise CeaseError(f"the preset {name} has no term {place!r}; it has inner, {terms}.")
