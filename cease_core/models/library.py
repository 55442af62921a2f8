"""Where models are found: those shipped with the package, then the user's own."""

from __future__ import annotations

import os
from pathlib import Path

from cease_core.errors import CeaseError
from cease_core.models.card import ModelCard
from cease_core.models.checkpoint import CARD, load_card

SHIPPED = Path(__file__).parent / "shipped"


def user_library() -> Path:
    """Folder of the user's own models: ``$CEASE_MODELS``, or ``~/.napari-cease/models``."""
    return Path(os.environ.get("CEASE_MODELS") or Path.home() / ".napari-cease" / "models")


def available_models() -> dict[Path, ModelCard]:
    """All models with a readable card, shipped ones first, each group in order of name.

    A folder whose card cannot be read is left out: `load_card` on it says why.
    """
    found: dict[Path, ModelCard] = {}
    for root in (SHIPPED, user_library()):
        for card in sorted(root.glob(f"*/{CARD}")):
            try:
                found[card.parent] = load_card(card.parent)
            except CeaseError:
                continue
    return found


def find_model(name: str | Path) -> Path:
    """Folder of a model given by name or by path.

    Raises
    ------
    CeaseError
        If there is none; the sentence lists the names that exist.
    """
    if Path(name).is_dir():
        return Path(name)
    models = available_models()
    for folder, card in models.items():
        if card.name == str(name):
            return folder
    known = ", ".join(card.name for card in models.values()) or "none yet"
    raise CeaseError(f"no model called {str(name)!r}; give a model folder or one of: {known}.")
