"""Named defences: what the literature does, and the parts of CEASE one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

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
from cease_core.errors import CeaseError, first_fault

_GAMMA = 0.25


def _seg(clean: float = 0.0, adversarial: float = 0.0, augmented: float = 0.0) -> tuple[Term, ...]:
    shares: dict[View, float] = {"clean": clean, "adversarial": adversarial, "augmented": augmented}
    return tuple(SegmentationTerm(view=view, weight=weight) for view, weight in shares.items() if weight > 0)


_HALF = _seg(0.5, 0.5)
# The consistency is an option: at 6 it is the second term of TRADES.
_CEASE = (*_seg(0.5, 0.5, _GAMMA), ContrastiveTerm(), AuxiliaryTerm(), ConsistencyTerm(weight=0))
_ON_CLEAN = AuxiliaryTerm(clean=1, adversarial=0)
# Weights and steps were tuned on validation cases; see docs/study.md.
_REUSED = InnerAttack(steps=2, reuse=True)
_MOSTLY_ATTACKED = _seg(0.3, 0.7)

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
        Defence(name="reuse_at", terms=_MOSTLY_ATTACKED, inner=_REUSED),
        Defence(
            name="cease_reuse",
            terms=(
                *_MOSTLY_ATTACKED,
                ContrastiveTerm(still=("augmented",)),
                AuxiliaryTerm(weight=0.1, clean=0, adversarial=1, own_pass=False),
                ConsistencyTerm(weight=0),
            ),
            inner=_REUSED,
        ),
    )
}
"""Defences by name. Ablations of ``cease``: none, augment, at, contrastive, multitask, contrastive_at, multitask_at."""


class Note(NamedTuple):
    """What a preset does, in a sentence, and the paper that it comes from."""

    does: str
    source: str = ""


NOTES: dict[str, Note] = {
    "none": Note("Undefended."),
    "augment": Note("Photometric augmentation alone."),
    "at": Note("Adversarial training on clean and attacked images.", "Madry et al. 2018, arXiv 1706.06083"),
    "trades": Note("Clean loss, and alike predictions for the attacked image.", "Zhang et al. 2019, arXiv 1901.08573"),
    "mart": Note("Weighs pixels that are wrong without an attack.", "Wang et al. 2020, ICLR"),
    "fast_at": Note("One step from a random start.", "Wong et al. 2020, arXiv 2001.03994"),
    "free_at": Note("The attack reuses the training's own gradients.", "Shafahi et al. 2019, arXiv 1904.12843"),
    "segpgd_at": Note("Adversarial training by SegPGD.", "Gu et al. 2022, arXiv 2207.12391"),
    "ddc_at": Note("A branch of its own for pixels that the attack turns.", "Xu et al. 2021, arXiv 2003.06555"),
    "vaft": Note("Attacked in the frequency domain, alike spectra.", "Hanif et al. 2023, arXiv 2307.07269"),
    "distillation": Note(
        "A teacher's soft answers; set distillation.teacher.",
        "Papernot et al. 2016, arXiv 1511.04508",
    ),
    "contrastive": Note("Alike features for clean and augmented views.", "after Khosla et al. 2020, arXiv 2004.11362"),
    "contrastive_at": Note("The same, with the attacked view.", "after Kim et al. 2020, arXiv 2006.07589"),
    "multitask": Note("Weakly relevant auxiliary tasks, no attack.", "after Mao et al. 2020, arXiv 2007.07236"),
    "multitask_at": Note("The same, with adversarial training.", "after Mao et al. 2020, arXiv 2007.07236"),
    "cease": Note(
        "Contrastive, multitask and adversarial training together.",
        "Shukla & Gupta 2026, doi 10.1016/j.neunet.2025.108182",
    ),
    "reuse_at": Note("The attack's first step also trains on the clean image.", "ours, after arXiv 1904.12843"),
    "cease_reuse": Note("CEASE on that attack, with lighter tasks: more images for the same cost.", "ours"),
}
"""One for each of `PRESETS`."""


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
    # A config file may hold anything.
    if not isinstance(name, str) or name not in PRESETS:
        raise CeaseError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    raw = PRESETS[name].model_dump()
    for key, value in (changes or {}).items():
        place, _, last = key.rpartition(".")
        holder = _holder(raw, place, name)
        if last not in holder:
            raise CeaseError(f"{name} has no {key!r}; choose from {', '.join(holder)}.")
        if key == "inner":
            # As a whole it would bring back the defaults of all that is not named, the preset's own ascent among them.
            raise CeaseError(f"{name} does not take inner as a whole; change its entries, such as inner.steps.")
        holder[last] = value
    try:
        return Defence.model_validate(raw)
    except ValidationError as error:
        raise CeaseError(f"the preset {name} cannot be changed so: {first_fault(error, 'defence')}.") from error


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
