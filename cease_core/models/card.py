"""The card of a model: what it expects, what it returns, and how it came to be."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cease_core.errors import CeaseError
from cease_core.models.foreign.spec import MAX_VOXELS, Foreign, Scale
from cease_core.scan import Scan, Window, percentile_window

Mode = Literal["binary", "multiclass", "multilabel"]

# Okabe & Ito's palette: told apart by readers with any common colour vision deficiency.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassInfo(_Frozen):
    """A foreground class: its id in masks, its name and its colour in every layer."""

    id: int = Field(ge=1)
    name: str
    color: str = Field(pattern=r"^#[0-9A-Fa-f]{6}$")


class WindowRule(_Frozen):
    """How to find the intensity window that maps to [0, 1].

    ``fixed``: ``low`` and ``high`` are intensities in the scan's unit. ``percentile``: they are
    percentiles of the whole scan, for images without a physical unit such as MR.
    """

    kind: Literal["fixed", "percentile"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> WindowRule:
        if not self.high > self.low:
            raise ValueError("window: high must be above low")
        if self.kind == "percentile" and not (self.low >= 0 and self.high <= 100):
            raise ValueError("window: percentiles lie from 0 to 100")
        return self

    def resolve(self, scan: Scan) -> Window:
        """The window of one scan, in its unit.

        Raises
        ------
        CeaseError
            If the scan is constant, so that no window exists.
        """
        lowest, highest = scan.extremes
        if lowest == highest:
            raise CeaseError(f"{scan.name}: every voxel has the same value; open an image that shows something.")
        if self.kind == "fixed":
            return Window(self.low, self.high)
        return percentile_window(scan.image, self.low, self.high)


class DataInfo(_Frozen):
    """The data a model was trained on, by case, so that a reader can check the split."""

    name: str
    source: str
    licence: str
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()


class ModelCard(_Frozen):
    """Everything a user or the engine must know about a model besides its weights.

    Parameters
    ----------
    name
        Unique within a library; also the folder's name.
    architecture, architecture_args
        Key of `cease_core.models.ARCHITECTURES` and the arguments it is built with.
    ndim, channels, classes, mode
        Spatial dimensions and channels of the input; foreground classes; what the logits mean:
        ``binary`` (one sigmoid), ``multiclass`` (softmax, class 0 is background) or ``multilabel``
        (independent sigmoids).
    window
        Rule that maps intensities to [0, 1].
    downsample
        The network works on images averaged over blocks of this edge; logits are interpolated back.
    spacing
        Voxel size the model was trained at, along the array axes, if that matters.
    foreign
        How a network that was made elsewhere wants to be asked; None for one of ``ARCHITECTURES``.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str
    architecture: str
    architecture_args: dict[str, Any] = Field(default_factory=dict)
    ndim: Literal[2, 3]
    channels: int = Field(ge=1)
    classes: tuple[ClassInfo, ...] = Field(min_length=1)
    mode: Mode
    window: WindowRule
    downsample: int = Field(default=1, ge=1)
    spacing: tuple[float, ...] | None = None
    defence: str = "none"
    scene: str | None = None
    data: DataInfo | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    licence: str = "unknown"
    notes: str = ""
    foreign: Foreign | None = None

    @property
    def outputs(self) -> int:
        """Number of logit channels."""
        return len(self.classes) + (1 if self.mode == "multiclass" else 0)

    @model_validator(mode="after")
    def _consistent(self) -> ModelCard:
        ids = [c.id for c in self.classes]
        if ids != list(range(1, len(ids) + 1)):
            raise ValueError("classes: ids must be 1, 2, … in order (0 is the background)")
        if self.mode == "binary" and len(ids) != 1:
            raise ValueError("classes: a binary model has exactly one")
        if self.foreign is not None:
            _check_foreign(self.foreign, self.ndim, self.channels)
        return self


def _check_foreign(foreign: Foreign, ndim: int, channels: int) -> None:
    for name in ("spacing", "size", "window"):
        given = len(getattr(foreign, name))
        if given not in (0, ndim):
            raise ValueError(f"foreign: {name}: {given} values for {ndim} axes")
    if foreign.divisor**ndim > MAX_VOXELS:
        raise ValueError(f"foreign: divisor: images of {foreign.divisor} voxels along each axis are too large")
    for step in foreign.steps:
        if isinstance(step, Scale) and not {len(step.factor), len(step.offset)} <= {1, channels}:
            raise ValueError(f"foreign: steps: scale: give one factor and offset, or {channels}, one a channel")


def same_classes(one: ModelCard, other: ModelCard) -> bool:
    """Whether two models segment the same classes; one that is only numbered ("class 1") fits any name."""

    def fits(a: ClassInfo, b: ClassInfo) -> bool:
        return a.id == b.id and (a.name == b.name or f"class {a.id}" in (a.name, b.name))

    return len(one.classes) == len(other.classes) and all(map(fits, one.classes, other.classes))
