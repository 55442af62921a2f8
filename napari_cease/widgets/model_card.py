"""A model's card in words, as rich text that takes its colours from the theme."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from cease_core.models import ModelCard
from cease_core.models.shelf import ShelvedModel, entry
from cease_core.tasks import TASKS

UNKNOWN = "–"
_NOT_SAID = ("", "unknown")

ORIGINS = {
    "monai": "Network of MONAI",
    "nnunet": "Trained by nnU-Net",
    "torchscript": "TorchScript program",
    "exported": "Program of torch.export",
    "registered": "Registered in this Python process",
}


def in_255(epsilon: float) -> str:
    """ε, a fraction of the window, as the slider counts it."""
    return f"{epsilon * 255:.3g}/255"


def dice(value: float | None) -> str:
    """A Dice to three decimals, or a dash."""
    return UNKNOWN if value is None else f"{value:.3f}"


def takes_text(card: ModelCard) -> str:
    """What a model takes, in words."""
    kind = "volumes" if card.ndim == 3 else "images, and volumes slice by slice"
    channels = {1: "one channel", 3: "three channels (colour)"}.get(card.channels, f"{card.channels} channels")
    return f"{card.ndim}-D {kind}; {channels}"


def measured_text(model: ShelvedModel) -> str:
    """Where the Dice under attack comes from, in a sentence."""
    found = model.headline
    if found.worst_dice is None or found.epsilon is None:
        return "Not measured under attack; an audit does that."
    at = f"every attack of the audit up to ε = {in_255(found.epsilon)} of the window"
    if found.audited:
        return f"Mean Dice over the audited cases, in the worst case of {at}."
    return (
        f"Mean Dice of the validation cases under the training's own attack at ε = {in_255(found.epsilon)} of the "
        "window; an audit attacks harder."
    )


def card_html(model: ShelvedModel) -> str:
    """Everything on a model's card that a reader can use."""
    card = model.card
    sections = (
        ("Robustness", _robustness(model)),
        ("Segments", _classes(card)),
        ("Takes", _input(card)),
        ("Made elsewhere", _foreign(card)),
        ("Data", _data(card)),
        ("Training", _training(card)),
        ("Auxiliary tasks", _tasks(card)),
        ("Notes", iter([escape(card.notes)] if card.notes else [])),
    )
    parts = [f"<p><b>{escape(card.title)}</b><br>{escape(card.name)}{_licence(' · ', card.licence)}</p>"]
    for title, lines in sections:
        body = "<br>".join(lines)
        if body:
            parts.append(f"<p><b>{title}</b><br>{body}</p>")
    return "".join(parts)


def _robustness(model: ShelvedModel) -> Iterator[str]:
    found = model.headline
    clean = f"Dice, clean {dice(found.clean_dice)}"
    if found.worst_dice is None or found.epsilon is None:
        yield clean
    else:
        yield clean
        yield f"Dice, attacked {dice(found.worst_dice)} at ε = {in_255(found.epsilon)}"
    if found.asr_drop is not None:
        yield f"Broken by an attack: {found.asr_drop:.0%} of the cases"
    if found.verdict:
        yield f"Verdict of the audit: {escape(found.verdict)}"
    yield f"<small>{measured_text(model)}</small>"


def _classes(card: ModelCard) -> Iterator[str]:
    for c in card.classes:
        yield f'<span style="color:{c.color}">■</span> {escape(c.name)}'


def _input(card: ModelCard) -> Iterator[str]:
    yield takes_text(card)
    low, high = f"{card.window.low:g}", f"{card.window.high:g}"
    if card.window.kind == "fixed":
        yield f"Window {low} to {high}, in the scan's unit"
    else:
        yield f"Window from percentile {low} to {high} of the scan"
    if card.downsample > 1:
        block = " × ".join([str(card.downsample)] * card.ndim)
        yield f"Works on averages over {block} {'pixels' if card.ndim == 2 else 'voxels'}"
    if card.spacing is not None:
        yield f"Trained at voxels of {' × '.join(f'{s:g}' for s in card.spacing)} mm"


def _foreign(card: ModelCard) -> Iterator[str]:
    asked = card.foreign
    if asked is None:
        return
    yield escape(f"{ORIGINS[asked.kind]}: {card.architecture}")
    if any(asked.spacing):
        sizes = " × ".join(f"{s:g}" if s else "own" for s in asked.spacing)
        yield f"Scans are resampled to {sizes} mm, and masks come back onto the scan"
    if asked.window:
        yield f"Sees windows of {' × '.join(str(w) for w in asked.window)} at once"
    if asked.steps:
        yield f"Intensities: {', '.join(step.kind for step in asked.steps)}"


def _data(card: ModelCard) -> Iterator[str]:
    if card.data is None:
        return
    yield f"{escape(card.data.name)}{_licence(', ', card.data.licence)}"
    if card.data.source not in _NOT_SAID:
        yield escape(card.data.source)
    if card.data.train:
        yield f"{len(card.data.train)} cases to learn from, {len(card.data.validation)} held out"


def _licence(before: str, licence: str) -> str:
    """Behind what it is of; nothing where nobody has said."""
    return "" if licence in _NOT_SAID else f"{before}licence {escape(licence)}"


def _training(card: ModelCard) -> Iterator[str]:
    facts = card.training
    preset = entry(facts, "defence", "name")
    yield f"Defence {escape(str(preset or card.defence))} · {escape(card.architecture.replace('_', ' '))}"
    if start := facts.get("start"):
        yield f"Started from {escape(Path(str(start)).name)}"
    cost = []
    if isinstance(epoch := facts.get("best_epoch"), int):
        cost.append(f"best epoch {epoch}")
    if isinstance(gradients := facts.get("gradients"), int):
        cost.append(f"{gradients:,} gradients")
    if isinstance(seconds := facts.get("seconds"), (int, float)):
        cost.append(f"{seconds / 60:.0f} min")
    if cost:
        yield ", ".join(cost).capitalize()
    if facts.get("keeps_clean_dice") is False and isinstance(drop := facts.get("clean_drop"), (int, float)):
        yield f"Lost more than {drop:g} of the clean Dice of the model that it started from"


def _tasks(card: ModelCard) -> Iterator[str]:
    selection = card.training.get("selection")
    chosen, reasons = entry(selection, "chosen"), entry(selection, "reasons")
    if not isinstance(chosen, list) or not isinstance(reasons, Mapping):
        return
    for name in chosen:
        yield f"✓ {_task(name)}: {escape(str(reasons.get(name, 'chosen')))}"
    passed = [f"{_task(name)} ({escape(str(why))})" for name, why in reasons.items() if name not in chosen]
    if passed:
        yield f"<small>Not taken: {'; '.join(passed)}</small>"


def _task(name: Any) -> str:
    task = TASKS.get(name) if isinstance(name, str) else None
    return escape(str(name) if task is None else task.title)
