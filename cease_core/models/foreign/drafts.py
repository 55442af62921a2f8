"""A model on its way into the library: what a reader found, before it has shown that it works."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from torch import nn

from cease_core.errors import CeaseError
from cease_core.models.card import Mode, ModelCard, WindowRule
from cease_core.models.foreign.cards import SCAN_WINDOW
from cease_core.models.foreign.spec import Activation, Percentiles, Scale, Standardise, Step

Normalise = Literal["none", "unit", "zscore", "minmax"]


class Choices(BaseModel):
    """What a user says about a model; None is left to what the files tell.

    Parameters
    ----------
    name, title, licence
        For the card.
    classes
        Names of the foreground classes, in the order of their ids.
    mode, ndim, channels, window, spacing
        As in `ModelCard`.
    architecture, args
        Key of `ARCHITECTURES`, or the full name of a class of MONAI, and its arguments, for weights without a network.
    orientation, roi, divisor, output, outputs, activation, steps
        As in `Foreign`, where ``roi`` is its ``window``.
    normalise
        What intensities the network was trained with, in a word, where ``steps`` do not say it: those of the file
        (``"none"``), 0 to 1 over the window (``"unit"``), mean 0 and deviation 1 (``"zscore"``), or 0 to 1 between the
        scan's smallest and largest value (``"minmax"``).
    fold
        Of an nnU-Net folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    title: str | None = None
    licence: str | None = None
    classes: tuple[str, ...] | None = None
    mode: Mode | None = None
    ndim: int | None = None
    channels: int | None = None
    window: WindowRule | None = None
    spacing: tuple[float, ...] | None = None
    architecture: str | None = None
    args: dict[str, Any] | None = None
    orientation: str | None = None
    roi: tuple[int, ...] | None = None
    divisor: int | None = None
    output: tuple[int | str, ...] | None = None
    outputs: tuple[int, ...] | None = None
    activation: Activation | None = None
    steps: tuple[Step, ...] | None = None
    normalise: Normalise | None = None
    fold: str | None = None

    def intensities(self, name: str) -> tuple[Step, ...]:
        """From the file's intensities to the network's, for a network whose files do not tell; a window means "unit".

        Parameters
        ----------
        name
            Of the model, for the sentence.

        Raises
        ------
        CeaseError
            If nothing was said: no intensities are guessed.
        """
        if self.steps is not None:
            return self.steps
        chosen = self.normalise or ("unit" if self.window is not None else None)
        if chosen is None:
            raise CeaseError(
                f"{name} does not say which intensities it was trained with; give a window, or say normalise: none, "
                "unit, zscore or minmax."
            )
        if chosen == "zscore":
            return (Standardise(),)
        if chosen == "minmax":
            return (Percentiles(lower=0, upper=100),)
        if chosen == "none":
            return ()
        rule = self.window or SCAN_WINDOW
        if rule.kind == "percentile":
            return (Percentiles(lower=rule.low, upper=rule.high),)
        width = rule.high - rule.low
        return (Scale(factor=(1 / width,), offset=(-rule.low / width,)),)


def refuse_idle(choices: Choices, source: str, what: str, idle: Collection[str]) -> None:
    """Refuse what was said to no effect.

    Parameters
    ----------
    choices
        What the user said.
    source, what
        Name and kind of what is imported, for the sentence.
    idle
        Fields that mean nothing for this kind.

    Raises
    ------
    CeaseError
        The sentence names the fields that were given nevertheless.
    """
    said = [name for name in Choices.model_fields if name in idle and getattr(choices, name) is not None]
    if said:
        verb = "means" if len(said) == 1 else "mean"
        raise CeaseError(f"{source}: {', '.join(said)} {verb} nothing for {what}; leave that out.")


@dataclass(frozen=True, eq=False)
class Draft:
    """A model that was read but not yet tried.

    Parameters
    ----------
    card
        Complete; with its part about foreign networks unless the architecture is one of ours.
    network
        In evaluation mode; its state dict is stored, unless there is a program. Of one of our architectures, the
        backbone.
    program
        The file that is the network, for TorchScript and ``torch.export``.
    remarks
        What the user should know, a sentence each: what of the original pipeline is left out, and what was guessed.
    """

    card: ModelCard
    network: nn.Module
    program: Path | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """What the user is asked before a file may run code.

    Parameters
    ----------
    path
        The file.
    sha256
        Of its bytes; the answer holds for these alone.
    why
        One sentence that says what opening it may do.
    """

    path: Path
    sha256: str
    why: str


Consent = Callable[[Question], bool]
"""Asks the user; true if they agree."""


def refuse(question: Question) -> bool:
    """The consent of nobody: raises the `CeaseError` that says how to agree."""
    raise CeaseError(f"{question.path.name} was not opened: {question.why} Agree to it if you trust where it is from.")
