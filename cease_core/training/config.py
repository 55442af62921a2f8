"""A training run as data: everything that decides its outcome is in here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cease_core.attacks.losses import LOSSES
from cease_core.errors import CeaseError
from cease_core.models.card import ClassInfo, Mode, WindowRule


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AdversarialTraining(_Strict):
    """The inner attack of adversarial training: PGD from a random start (Madry et al. 2018).

    ``clean_weight`` is the share of the clean loss; the rest is the loss on the attacked batch. The radius
    rises from 0 over the first fifth of the epochs.
    """

    epsilon: float = Field(default=8 / 255, gt=0)
    steps: int = Field(default=3, ge=1)
    clean_weight: float = Field(default=0.5, ge=0, le=1)
    loss: str = "dice_ce"

    @field_validator("loss")
    @classmethod
    def _known(cls, loss: str) -> str:
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}; choose one of {', '.join(LOSSES)}")
        return loss


class DataSource(_Strict):
    """Where the cases come from, and the terms they come under."""

    name: str
    source: str
    licence: str
    folder: str
    validation: float = Field(default=0.1, ge=0, lt=1)


class TrainingConfig(_Strict):
    """One training run.

    Parameters
    ----------
    name, title, scene
        Of the model that comes out.
    patch
        Spatial shape that training images are cropped or padded to, at the working resolution.
    start
        Name or folder of a model whose weights are the starting point.
    half_weights
        Round the weights to 16 bits before they are judged and stored: a file of half the size.
    mirror
        Array axes along which flipping gives a plausible image.
    """

    name: str
    title: str
    scene: str | None = None
    data: DataSource
    architecture: str = "residual_unet"
    architecture_args: dict[str, Any] = Field(default_factory=dict)
    ndim: Literal[2, 3]
    channels: int
    classes: tuple[ClassInfo, ...]
    mode: Mode
    window: WindowRule
    downsample: int = 1
    patch: tuple[int, ...]
    mirror: tuple[int, ...] = ()
    quarter_turns: bool = False
    epochs: int = Field(ge=1)
    batch_size: int = Field(default=16, ge=2)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    ema: float = Field(default=0.99, ge=0, lt=1)
    validate_every: int = Field(default=5, ge=1)
    adversarial: AdversarialTraining | None = None
    start: str | None = None
    half_weights: bool = False
    seed: int = 0
    licence: str = "unknown"


def load_config(path: str | Path) -> TrainingConfig:
    """Read a config from JSON.

    Raises
    ------
    CeaseError
        If the file cannot be read or an entry is wrong; the sentence names the entry.
    """
    try:
        return TrainingConfig.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise CeaseError(f"cannot read {path}: {error.strerror}; give the path of a training config.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise CeaseError(f"{path}: {where}: {first['msg']}; correct that entry.") from error
    except ValueError as error:
        raise CeaseError(f"{path} is not valid JSON: {error}.") from error
