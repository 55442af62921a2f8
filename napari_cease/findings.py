"""What an explorer knows at its present settings, as values that can be drawn, written down and compared."""

from __future__ import annotations

from typing import Any

from napari.utils.colormaps.standardize_color import transform_color

from cease_core.attacks import ATTACKS
from cease_core.errors import CeaseError
from napari_cease.explorer import Explorer
from napari_cease.export import Curve
from napari_cease.jobs.exploration import Side
from napari_cease.layers import COLOURS, TITLES
from napari_cease.units import LEVELS, epsilon_text, unit_name


def several_classes(explorer: Explorer) -> bool:
    """Whether a chosen model knows more than one class."""
    try:
        return any(len(card.classes) > 1 for card in explorer.cards().values())
    except CeaseError:
        return False  # said where the model was chosen


def mean_curves(explorer: Explorer) -> list[Curve]:
    """Dice(ε) of each model, the mean over its classes."""
    curves = []
    for side, card in explorer.cards().items():
        levels, dice = explorer.results.curve(side)
        curves.append(Curve(side, card.title, "", tuple(levels), tuple(dice), COLOURS[side]))
    return curves


def class_curves(explorer: Explorer) -> list[Curve]:
    """Dice(ε) of each model and class, in the classes' colours on the canvas; none where there is one class."""
    curves = []
    for side, card in explorer.cards().items():
        levels, dice = explorer.results.class_curves(side)
        if len(card.classes) < 2:
            continue
        for (name, colour), values in zip(class_colours(explorer, side).values(), dice, strict=False):
            curves.append(Curve(side, card.title, name, tuple(levels), tuple(values), colour))
    return curves


def class_colours(explorer: Explorer, side: Side) -> dict[int, tuple[str, str]]:
    """Name of each class of a model, and its colour on the canvas, by id."""
    mask = explorer.panes.find("mask", side)
    return {
        kind.id: (kind.name, kind.color if mask is None else _hexadecimal(mask.get_color(kind.id)))
        for kind in explorer.cards()[side].classes
    }


def widths(explorer: Explorer) -> dict[Side, float]:
    """Each model's window in the scan's unit."""
    return {side: opened.window.width for side, opened in explorer.results.opened.items()}


def facts(explorer: Explorer) -> dict[str, str]:
    """What the findings hold for, by name."""
    s = explorer.session
    if s.scan is None:
        return {}
    settings = {name: getattr(s.rule, name) for name in ATTACKS[s.attack].about.shown}
    found = {
        "scan": s.scan.name,
        "unit": unit_name(s.scan.unit),
        "part": _place(explorer) or "all",
        "reference": s.reference.name if s.reference is not None else "each model's own clean mask",
        "attack": ATTACKS[s.attack].about.title,
        "settings": ", ".join(f"{name} = {value}" for name, value in settings.items()),
        "target": s.target_name or "none",
        "region": s.region.name if s.region is not None else "everywhere",
    }
    return found | {TITLES[side].lower(): card.title for side, card in explorer.cards().items()}


def caption(explorer: Explorer) -> tuple[str, dict[Side, str]]:
    """The present ε in words, and each model's Dice there."""
    s, width = explorer.session, next(iter(widths(explorer).values()), None)
    dice = {side: explorer.view(side) for side in explorer.cards_chosen()}
    text = epsilon_text(s.level, width, s.scan.unit if s.scan is not None else "")
    return text, {side: f"Dice {view.dice:.3f}" for side, view in dice.items() if view is not None}


def title(explorer: Explorer) -> str:
    """Scan, slice, attack, and target if there is one: what tells one run from another at a glance."""
    s = explorer.session
    name = s.scan.name if s.scan is not None else ""
    return " · ".join(filter(None, (ATTACKS[s.attack].about.title, s.target_name, name, _place(explorer))))


def summary(explorer: Explorer) -> str:
    """The title of a figure: what was run, and the largest ε."""
    s = explorer.session
    return f"{title(explorer)} · ε up to {s.top}/{LEVELS}"


def _place(explorer: Explorer) -> str:
    scan, part = explorer.session.scan, next(iter(explorer.results.opened.values()), None)
    if scan is None or scan.ndim == 2 or part is None:
        return ""
    first = part.place[0]
    if isinstance(first, int):
        return f"slice {first}"
    start, stop, _ = first.indices(scan.shape[0])
    return "" if stop - start == scan.shape[0] else f"slices {start} to {stop - 1}"


def _hexadecimal(colour: Any) -> str:
    red, green, blue = (round(255 * float(part)) for part in transform_color(colour)[0][:3])
    return f"#{red:02x}{green:02x}{blue:02x}"
