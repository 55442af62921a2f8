"""The plugin's preferences: declared in its manifest, shown and kept by napari (File › Preferences › napari-cease).

They are read when they are needed, so that a change holds from then on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from napari.settings import get_plugin_settings

from cease_core.models import best_device

PLUGIN = "napari-cease"
UNITS = ("1/255", "intensity")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Preferences:
    """What the user prefers; the values here are what holds until he says otherwise.

    Parameters
    ----------
    epsilon_unit
        How ε is read first: in 1/255 of the window, or in the scan's own unit.
    epsilon_up_to
        Right end of the slider in 1/255 when the explorer opens.
    steps
        Steps of an attack when the explorer opens; 0 for the attack's own number.
    device
        On which models are computed: the best there is, the processor, or the graphics card.
    models
        Folder of the user's models; empty for ``~/.napari-cease/models``.
    keep_session
        Whether what a window shows is kept in case of a crash.
    """

    epsilon_unit: str = "1/255"
    epsilon_up_to: int = 16
    steps: int = 0
    device: str = "auto"
    models: str = ""
    keep_session: bool = True


SECTIONS = {
    "explorer": ("epsilon_unit", "epsilon_up_to", "steps", "keep_session"),
    "computing": ("device", "models"),
}
"""Under which heading each is shown."""


def _sections() -> dict[str, Any]:
    """The settings of this plugin that napari keeps; empty where napari does not know it."""
    try:
        settings = get_plugin_settings(PLUGIN)
    except KeyError:
        return {}
    return {name: getattr(settings, name) for name in SECTIONS}


def preferences() -> Preferences:
    """What holds now."""
    values = {name: getattr(section, name) for key, section in _sections().items() for name in SECTIONS[key]}
    return Preferences(**values)


def on_change(slot: Callable[..., None], *, follow: bool = True) -> None:
    """Call something after any preference has changed, or no longer (``follow`` false)."""
    for section in _sections().values():
        (section.events.connect if follow else section.events.disconnect)(slot)


def device() -> torch.device:
    """Where models are computed: what is preferred if it is there, else the best there is."""
    wanted = preferences().device
    if wanted == "auto" or (wanted == "cuda" and not torch.cuda.is_available()):
        return best_device()
    return torch.device(wanted)


_placed = ""


def place_library() -> None:
    """Let the user's models be in the folder that is preferred; one that the environment names comes first.

    Processes that are started from here, for trainings and audits, find it the same way.
    """
    global _placed
    given = os.environ.get("CEASE_MODELS", "")
    if given and given != _placed:
        return
    folder = preferences().models.strip()
    _placed = str(Path(folder).expanduser().absolute()) if folder else ""
    if _placed:
        os.environ["CEASE_MODELS"] = _placed
    else:
        os.environ.pop("CEASE_MODELS", None)
