"""A training run as data: everything that decides its outcome is in here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from cease_core.data import splits
from cease_core.data.cases import Case
from cease_core.data.classmap import ClassMap
from cease_core.data.splits import Split
from cease_core.defences import Defence, preset
from cease_core.errors import CeaseError, first_fault
from cease_core.models.card import ClassInfo, Mode, WindowRule


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSource(_Strict):
    """Where the cases come from, what their masks mean, how they are divided, and the terms they come under.

    Parameters
    ----------
    name, source, licence
        For the model's card.
    folder
        Name of the data set's folder, or of the file of a list.
    map
        Class of each id in the masks' files, as ``{1: 1, 2: 1, 4: 2}`` or ``"1=1,2=1,4=2"``; by default the ids are the
        classes.
    validation, test
        Shares of the patients that are put aside; the test side is read by no training. A list with a column
        ``split`` decides by itself.
    patients
        Regular expression whose group is the patient's name in a case's; by default each case is a patient.
    folds, fold
        Number of folds for cross-validation, and which of them validates; instead of ``validation``.
    """

    name: str
    source: str = "unknown"
    licence: str = "unknown"
    folder: str = ""
    map: ClassMap | None = None
    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    patients: str | None = None
    folds: int | None = Field(default=None, ge=2)
    fold: int = Field(default=0, ge=0)

    @field_validator("map", mode="before")
    @classmethod
    def _class_map(cls, value: Any) -> Any:
        try:
            return None if value is None else ClassMap.read(value, "the class map")
        except CeaseError as error:
            raise ValueError(str(error).rstrip(".")) from error

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = write(self)
        content.pop("map", None)
        # Left out where there is none: runs from before there were maps keep their digest, and can be resumed.
        return content if self.map is None else content | {"map": str(self.map)}

    def split(self, cases: Iterable[Case]) -> Split:
        """The cases divided by patient.

        Raises
        ------
        CeaseError
            If the pattern does not find a patient in each case, or shares or folds do not fit.
        """
        if self.folds is None:
            return splits.split(cases, validation=self.validation, test=self.test, pattern=self.patients)
        return splits.folds(cases, self.folds, self.fold, test=self.test, pattern=self.patients)


# Defaults of entries that came later: a run from before keeps its digest, and can be resumed.
_ADDED = ('"reuse":false,', '"still":[],', '"own_pass":true,')


class TrainingConfig(_Strict):
    """One training run.

    Parameters
    ----------
    name, title, scene
        Of the model that comes out.
    defence
        What it is trained for: a preset's name, ``{"preset": name, …}`` with changes by dotted name (see
        `cease_core.defences.preset`), or a whole `Defence`.
    patch
        Spatial shape that training images are cropped or padded to, at the working resolution.
    foreground
        Share of the patches that are centred on a structure; 0 crops anywhere.
    epochs, budget
        Length of the training: in passes over the data, or in gradient computations, counted an image and pass as
        in the events, so that defences that cost more get fewer epochs. The selection of tasks counts; what is left
        is rounded down to whole epochs, one at least. Exactly one of the two.
    precision
        ``fp32``, or ``bf16`` / ``fp16`` for the passes of the training step; the inner attack's own run in bf16 or
        fp32.
        ``fp16`` needs a GPU.
    clip
        Largest norm of the gradient.
    ema
        Decay of the averaged weights, which are what is validated and stored.
    patience
        Stop after so many validations without a better model; None for never.
    clean_drop
        A defended model is chosen by Dice under attack among those whose clean Dice is at most this much below the
        starting model's (or, without one, below the best of the run).
    validation_images
        Upper bound on the images that each validation looks at.
    start
        Name or folder of a model whose weights are the starting point.
    half_weights
        Round the weights to 16 bits before they are judged and stored: a file of half the size.
    mirror
        Array axes along which flipping gives a plausible image.
    cache
        Folder for decoded images, to be read from there next time.
    """

    name: str
    title: str
    scene: str | None = None
    data: DataSource
    defence: Defence = Field(default_factory=lambda: preset("none"), validate_default=True)
    architecture: str = "residual_unet"
    architecture_args: dict[str, Any] = Field(default_factory=dict)
    ndim: Literal[2, 3]
    channels: int
    classes: tuple[ClassInfo, ...]
    mode: Mode
    window: WindowRule
    downsample: int = Field(default=1, ge=1)
    patch: tuple[int, ...]
    foreground: float = Field(default=0.0, ge=0, le=1)
    mirror: tuple[int, ...] = ()
    quarter_turns: bool = False
    epochs: int | None = Field(default=None, ge=1)
    budget: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=2)
    learning_rate: float = Field(default=2e-3, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(default=1e-4, ge=0)
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float = Field(default=0.99, ge=0, lt=1)
    validate_every: int = Field(default=5, ge=1)
    validation_images: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    clean_drop: float = Field(default=0.02, ge=0)
    start: str | None = None
    half_weights: bool = False
    cache: str | None = None
    tensorboard: bool = False
    seed: int = Field(default=0, ge=0)
    licence: str = "unknown"

    @field_validator("defence", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        try:
            if isinstance(value, str):
                return preset(value)
            if isinstance(value, dict) and "preset" in value:
                return preset(value["preset"], {k: v for k, v in value.items() if k != "preset"})
        except CeaseError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if (self.epochs is None) == (self.budget is None):
            raise ValueError("give either epochs or a budget of gradient computations")
        if len(self.patch) != self.ndim:
            raise ValueError(f"patch has {len(self.patch)} sizes, but ndim is {self.ndim}")
        return self

    @property
    def digest(self) -> str:
        """Twelve characters that change with any entry."""
        text = self.model_dump_json()
        for added in _ADDED:
            text = text.replace(added, "")
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_config(path: str | Path) -> TrainingConfig:
    """Read a config from YAML or JSON.

    Raises
    ------
    CeaseError
        If the file cannot be read or an entry is wrong; the sentence names the entry.
    """
    return parse_config(read_raw(path), str(path))


def read_raw(path: str | Path) -> dict[str, Any]:
    """The entries of a config file, as they stand there.

    Raises
    ------
    CeaseError
        If it cannot be read.
    """
    path = Path(path)
    kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text) if kind == "JSON" else yaml.safe_load(text)
    except OSError as error:
        raise CeaseError(f"cannot read {path}: {error.strerror}; give the path of a training config.") from error
    except (ValueError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise CeaseError(f"{path} is not valid {kind}: {told}.") from error
    if not isinstance(raw, dict):
        raise CeaseError(f"{path} holds no entries; a training config is a mapping such as 'name: my-model'.")
    return raw


def parse_config(raw: dict[str, Any], origin: str) -> TrainingConfig:
    """Check entries.

    Parameters
    ----------
    origin
        Where they come from, for the message.

    Raises
    ------
    CeaseError
        If an entry is wrong; the sentence names it.
    """
    try:
        return TrainingConfig.model_validate(raw)
    except ValidationError as error:
        raise CeaseError(f"{origin}: {first_fault(error, 'config')}; correct that entry.") from error
