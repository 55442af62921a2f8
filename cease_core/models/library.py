"""Where models are found: those shipped with the package, the user's own, and those registered in this process."""

from __future__ import annotations

from pathlib import Path

from cease_core.errors import CeaseError
from cease_core.models.card import ModelCard
from cease_core.models.checkpoint import CARD, load_card
from cease_core.models.foreign.registered import registered
from cease_core.models.places import SHIPPED, user_library

__all__ = ["SHIPPED", "available_models", "find_model", "user_library"]


def available_models() -> dict[Path, ModelCard]:
    """All models with a readable card: shipped ones first and registered ones last, the others in order of name.

    A folder whose card cannot be read is left out: `load_card` on it says why.
    """
    found: dict[Path, ModelCard] = {}
    for root in (SHIPPED, user_library()):
        for card in sorted(root.glob(f"*/{CARD}")):
            try:
                found[card.parent] = load_card(card.parent)
            except CeaseError:
                continue
    return found | dict(registered())


def find_model(name: str | Path) -> Path:
    """Folder of a model given by name or by path; a folder that holds no model does not stand in a name's way.

    Raises
    ------
    CeaseError
        If there is none; the sentence lists the names that exist.
    """
    given = Path(name)
    if (given / CARD).is_file():
        return given
    models = available_models()
    for folder, card in models.items():
        if card.name == str(name):
            return folder
    if given.is_dir():
        return given
    known = ", ".join(card.name for card in models.values()) or "none yet"
    raise CeaseError(f"no model called {str(name)!r}; give a model folder or one of: {known}.")
