"""Models under audit: a folder, or a model in memory with its card."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.models import ModelCard, find_model, open_model, prepare
from cease_core.models.card import Mode, same_classes
from cease_core.models.checkpoint import HEADS, load_card, weights_file
from cease_core.models.foreign.registered import registered_model
from cease_core.models.segmenter import ScanModel, Segmenter, check_scan
from cease_core.scan import Scan


@dataclass(frozen=True)
class Victim:
    """A model under audit, or one that transfers are made on.

    Parameters
    ----------
    name
        Unique in the audit.
    card
        What it expects and returns.
    weights
        Hash of what was trained.
    folder
        Where it is loaded from, anew in every process; None for a model in memory.
    model
        The model in memory, in evaluation mode; None if there is a folder.
    reading
        Hash of the card and of the auxiliary heads: how the weights are used, and what is attacked beside them.
    """

    name: str
    card: ModelCard = field(compare=False)
    weights: str
    folder: Path | None = None
    model: Segmenter | None = field(default=None, repr=False)
    reading: str = ""

    @classmethod
    def of(cls, model: str | Path | Victim) -> Victim:
        """A victim from a model's name or folder.

        Raises
        ------
        CeaseError
            If there is no such model.
        """
        if isinstance(model, Victim):
            return model
        place = find_model(model)
        known = registered_model(place)
        if known is not None:
            return cls.in_memory(known.card.name, prepare(known), known.card)
        folder = place.absolute()
        card = load_card(folder)
        heads = file_hash(folder / HEADS) if (folder / HEADS).exists() else ""
        return cls(card.name, card, file_hash(weights_file(folder, card)), folder, reading=_reading(card, heads))

    @classmethod
    def in_memory(cls, name: str, model: Segmenter, card: ModelCard) -> Victim:
        """A model that is in no folder: one of one's own, or one with a defence around it.

        Parameters
        ----------
        name
            Unique in the audit.
        model
            In evaluation mode, on the device of the audit.
        card
            What it expects and returns.
        """
        whole = hashlib.sha256()
        if isinstance(model, nn.Module):
            for key, tensor in model.state_dict().items():
                whole.update(key.encode())
                whole.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return cls(name, card, whole.hexdigest(), model=model, reading=_reading(card))

    def load(self, device: str) -> ScanModel:
        """The model, ready for attacks.

        Raises
        ------
        CeaseError
            If it cannot be loaded.
        """
        if self.folder is not None:
            return _loaded(self.folder, self.weights, self.reading, device)
        assert self.model is not None
        if isinstance(self.model, ScanModel):
            return self.model
        return Carded(self.model, self.card)

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON."""
        card = self.card
        return {
            "name": self.name,
            "title": card.title,
            "folder": self.folder.name if self.folder else None,
            "defence": card.defence,
            "weights": self.weights,
            "reading": self.reading,
            "architecture": card.architecture,
            "training": card.training,
            "notes": card.notes,
            "data": card.data.model_dump(mode="json") if card.data else None,
            "relevance": card.training.get("relevance"),
        }


class Carded(nn.Module):
    """A model of one's own with a card, as audits want it."""

    def __init__(self, model: Segmenter, card: ModelCard) -> None:
        super().__init__()
        self.model = model
        self.card = card
        self.mode: Mode = model.mode

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def check(self, scan: Scan) -> None:
        """Raise a `CeaseError` if ``scan`` does not fit the card."""
        check_scan(scan, self.card)


def _reading(card: ModelCard, heads: str = "") -> str:
    return hashlib.sha256((card.model_dump_json() + heads).encode()).hexdigest()


@lru_cache(maxsize=8)
def _loaded(folder: Path, weights: str, reading: str, device: str) -> ScanModel:
    del weights, reading  # of another hash, it is another model
    return prepare(open_model(folder), torch.device(device))


def victims_of(models: Sequence[str | Path | Victim]) -> tuple[Victim, ...]:
    """Victims with names of their own, made for the same classes.

    Raises
    ------
    CeaseError
        If there is none, two have one name, or their classes differ.
    """
    found = tuple(Victim.of(m) for m in models)
    if not found:
        raise CeaseError("an audit needs a model; name one, or give its folder.")
    names = [v.name for v in found]
    for name in names:
        if names.count(name) > 1:
            raise CeaseError(f"two models are called {name}; give each once, or rename one.")
    first = found[0]
    for other in found[1:]:
        if not same_classes(other.card, first.card):
            raise CeaseError(
                f"{first.card.title} and {other.card.title} segment different classes; audit them one by one."
            )
        if (other.card.ndim, other.card.channels) != (first.card.ndim, first.card.channels):
            raise CeaseError(
                f"{first.card.title} and {other.card.title} see different images (dimensions or channels); "
                "audit them one by one."
            )
    return found


def check_names(victims: Sequence[Victim], sources: Sequence[Victim]) -> None:
    """Raise a `CeaseError` if a source has the name of another model."""
    known: dict[str, Victim] = {}
    for model in (*victims, *sources):
        other = known.setdefault(model.name, model)
        if (other.weights, other.reading) != (model.weights, model.reading):
            raise CeaseError(f"two models are called {model.name}; rename one, so that its transfers can be told.")


def alike(one: Victim, other: Victim) -> bool:
    """Whether a perturbation made on one can be shown to the other."""
    a, b = one.card, other.card
    return (a.mode, a.ndim, a.channels, a.outputs, a.window) == (b.mode, b.ndim, b.channels, b.outputs, b.window)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder in order of name.

    Raises
    ------
    CeaseError
        If it cannot be read.
    """
    whole = hashlib.sha256()
    try:
        for part in sorted(path.iterdir()) if path.is_dir() else [path]:
            with part.open("rb") as file:
                while chunk := file.read(1 << 20):
                    whole.update(chunk)
    except OSError as error:
        raise CeaseError(f"cannot read {path}: {error.strerror}; check that it is there.") from error
    return whole.hexdigest()
