"""What a training run tells while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cease_core.models.card import ModelCard


@dataclass(frozen=True)
class StepDone:
    """After each batch.

    Parameters
    ----------
    epoch, batch
        Counted from 1.
    epochs, batches
        How many epochs there will be, and batches an epoch.
    loss
        What was minimised.
    parts
        Its terms by name, before their weights.
    gradients
        Gradient computations so far, an image and pass each.
    seconds
        Training time so far, that of an interrupted run included.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    parts: dict[str, float]
    gradients: int
    seconds: float


@dataclass(frozen=True)
class TasksChosen:
    """After the selection of auxiliary tasks; ``report`` holds every score as Markdown."""

    tasks: tuple[str, ...]
    report: str


@dataclass(frozen=True)
class EpochDone:
    """After each epoch; Dice values only after a validation (NaN otherwise), robust ones under PGD-10."""

    epoch: int
    epochs: int
    loss: float
    clean_dice: float
    robust_dice: float
    gradients: int
    seconds: float
    parts: dict[str, float]


@dataclass(frozen=True)
class CheckpointSaved:
    """The run's state is on disk: it can be stopped and resumed from here."""

    path: Path
    epoch: int
    batch: int


@dataclass(frozen=True)
class Finished:
    """The chosen model is in ``folder``; ``stopped_early`` when patience ran out."""

    folder: Path
    card: ModelCard
    stopped_early: bool = False


Event = StepDone | TasksChosen | EpochDone | CheckpointSaved | Finished
