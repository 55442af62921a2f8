"""Cards for networks that brought none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from cease_core.errors import CeaseError, first_fault
from cease_core.models.card import PALETTE, ClassInfo, ModelCard, WindowRule

SCAN_WINDOW = WindowRule(kind="percentile", low=0.5, high=99.5)
"""For a network that brings its own normalisation: the window is then no more than the unit of ε."""


def class_infos(names: Sequence[str]) -> tuple[ClassInfo, ...]:
    """Foreground classes in the order of their ids, with the project's colours."""
    return tuple(ClassInfo(id=i + 1, name=name, color=PALETTE[i % len(PALETTE)]) for i, name in enumerate(names))


def card_name(text: str) -> str:
    """A name that cards may have, made of any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64].rstrip("-._") or "model"


def make_card(**fields: Any) -> ModelCard:
    """A `ModelCard`, or the sentence that says what of it does not fit.

    Raises
    ------
    CeaseError
        As said.
    """
    try:
        return ModelCard.model_validate(fields)
    except ValidationError as error:
        raise CeaseError(f"the model cannot be described so ({first_fault(error, 'card')}); correct that.") from error
