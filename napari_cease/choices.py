"""Which attacks can be chosen, and how each of their parameters is asked for. No Qt here.

All of it comes from `cease_core.attacks.ATTACKS`: an attack that is added there appears in the window.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal, get_args, get_origin

from cease_core.attacks import ATTACKS, CRITERIA, LOSSES, Attack
from cease_core.attacks.base import Group
from cease_core.attacks.build import build_attack, parameters
from cease_core.attacks.targets import TARGETS
from cease_core.errors import CeaseError
from cease_core.models import ModelCard

GROUPS: dict[Group, str] = {
    "quick": "Quick",
    "strong": "Strong",
    "targeted": "Made to reach a mask",
    "frequency": "In frequency",
    "black box": "Black box",
    "minimal": "Smallest perturbation",
    "adaptive": "Against features",
    "control": "Control",
}
DEFAULT = "pgd"
"""Attack that serves every goal and every model."""

LOSS_TITLES = {
    "soft_dice": "soft Dice",
    "dice_ce": "Dice + cross-entropy",
    "masked_ce": "masked, balanced cross-entropy",
    "dice_masked": "Dice + masked cross-entropy",
    "cross_entropy": "cross-entropy",
    "balanced_ce": "balanced cross-entropy",
    "bce": "binary cross-entropy",
    "js": "Jensen–Shannon divergence",
    "lovasz": "Lovász",
    "boundary": "boundary distance",
    "miss": "missed structures",
}
NORM_TITLES = {"linf": "ℓ∞ (largest change)", "l2": "ℓ2 (root mean square)"}
NAMES = {"norm": "Norm", "loss": "Ascends"}
TIPS = {
    "norm": "What ε bounds: the largest change of any value, or the root mean square over all",
    "loss": "What the attack drives up; soft Dice terms break masks that cross-entropy leaves whole",
}


def loss_title(key: str) -> str:
    """What a loss is called in the window."""
    return LOSS_TITLES.get(key, key.replace("_", " ").replace(" ce", " cross-entropy"))


def target_title(key: str) -> str:
    """What a ready-made target is called in the window."""
    return TARGETS[key].title


# --- which attacks ------------------------------------------------------------------------------------------


def needs_source(key: str) -> bool:
    """Whether an attack is made on a second model."""
    return "source" in ATTACKS[key].__dataclass_fields__


def suits(key: str, *, targeted: bool, twins: bool) -> bool:
    """Whether an attack can pursue the goal with the models at hand."""
    goal = "targeted" if targeted else "untargeted"
    return goal in ATTACKS[key].about.goals and (twins or not needs_source(key))


def offered(*, targeted: bool, twins: bool) -> dict[str, list[str]]:
    """Keys of the attacks to choose from, under the headings of their groups.

    Parameters
    ----------
    targeted
        Whether a mask is to be reached. Without one, attacks that need a target are offered too: choosing one
        of them chooses a target.
    twins
        Whether there are two models of the same classes (see `alike`).
    """
    groups: dict[str, list[str]] = {}
    for key, kind in ATTACKS.items():
        if (twins or not needs_source(key)) and (not targeted or "targeted" in kind.about.goals):
            groups.setdefault(GROUPS[kind.about.group], []).append(key)
    return {heading: groups[heading] for heading in GROUPS.values() if heading in groups}


def alike(cards: Collection[ModelCard]) -> bool:
    """Whether there are two models, and a perturbation made on one can be shown to the other as it is."""
    if len(cards) != 2:
        return False
    one, other = ((c.mode, c.channels, c.ndim, c.window, [(k.id, k.name) for k in c.classes]) for c in cards)
    return one == other


def explained(key: str) -> str:
    """What an attack does, when to use it, and where it comes from."""
    about = ATTACKS[key].about
    return f"<p>{about.definition}</p><p>{about.when}</p><p><i>{about.source}</i></p>"


@lru_cache(maxsize=64)
def _made(key: str, given: tuple[tuple[str, Any], ...]) -> Attack:
    fitting = {name: value for name, value in given if _takes(key, name) and _accepts(key, name, value)}
    try:
        return build_attack(key, epsilon=0.0, **fitting)
    except CeaseError:
        # Each value is allowed, but not all of them together.
        return build_attack(key, epsilon=0.0)


def _takes(key: str, name: str) -> bool:
    # What one attack shows and this one hides must not change it unseen; what none shows was set by a program.
    hidden = name not in ATTACKS[key].about.shown and any(name in kind.about.shown for kind in ATTACKS.values())
    return name in parameters(ATTACKS[key]) and not hidden


def _accepts(key: str, name: str, value: Any) -> bool:
    try:
        build_attack(key, **{name: value})
    except CeaseError:
        return False
    return True


def make(key: str, given: Mapping[str, Any]) -> Attack:
    """The attack at ε = 0 with those of the given values that it shows and accepts; all others at their defaults."""
    return _made(key, tuple(sorted(given.items())))


# --- their parameters ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Editor:
    """How a parameter is asked for.

    Parameters
    ----------
    kind
        One of several choices, a whole number, a number, yes or no, two numbers, or text.
    choices
        Titles and values.
    least
        Smallest value of a number.
    """

    name: str
    title: str
    tip: str
    kind: Literal["choice", "whole", "number", "flag", "pair", "text"]
    choices: tuple[tuple[str, Any], ...] = ()
    least: float = 0.0


@cache
def editors(key: str) -> tuple[Editor, ...]:
    """Editors for the parameters of an attack that are shown in a window."""
    kind = ATTACKS[key]
    known = parameters(kind)
    return tuple(_editor(kind, name, known[name]) for name in kind.about.shown if name in known)


def _editor(kind: type[Attack], name: str, hint: Any) -> Editor:
    title = NAMES.get(name, name.replace("_", " ").capitalize())
    tip = TIPS.get(name) or description(kind, name)
    if name == "norm":
        return Editor(name, title, tip, "choice", tuple((NORM_TITLES.get(n, n), n) for n in kind.about.norms))
    if name == "loss":
        return Editor(name, title, tip, "choice", tuple((loss_title(k), k) for k in LOSSES))
    if name == "criterion":
        return Editor(name, title, tip, "choice", tuple((k.replace("_", " "), k) for k in (*CRITERIA, "loss")))
    if get_origin(hint) is Literal:
        return Editor(name, title, tip, "choice", tuple((str(v).replace("_", " "), v) for v in get_args(hint)))
    if hint is bool:
        return Editor(name, title, tip, "flag")
    if hint is int:
        return Editor(name, title, tip, "whole", least=1 if kind.__dataclass_fields__[name].default else 0)
    if hint is float:
        return Editor(name, title, tip, "number")
    if hint == tuple[float, float]:
        return Editor(name, title, tip, "pair")
    return Editor(name, title, tip, "text")


def description(kind: type[Attack], name: str) -> str:
    """What the docstrings of an attack and its parents say of a parameter; empty if nothing."""
    for parent in kind.__mro__:
        text = inspect.cleandoc(parent.__doc__ or "")
        _, _, listed = text.partition("Parameters\n----------\n")
        found = re.search(rf"^(?:\w+, )*{name}(?:, \w+)*\n((?: +.*\n?)+)", listed, re.MULTILINE)
        if found:
            return " ".join(found.group(1).split())
    return ""
