"""What must be known of a network that was made elsewhere, besides its weights, to ask it about a scan.

A pipeline is: turn the scan to the network's axes, resample it to its voxel size, bring intensities to what it was
trained with, pad, ask the network window by window, choose the right tensor of its answer, and go back. All of it is
differentiable and belongs to the model, so that an attack changes the scan's own voxels. What a step must know of
the whole scan, such as its mean, is found once, on the clean scan.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["monai", "nnunet", "torchscript", "exported", "registered"]
"""Where a network's definition comes from: a class of MONAI or of nnU-Net with its arguments, a program, or Python."""

PROGRAMS: dict[str, str] = {"torchscript": "model.ts", "exported": "model.pt2"}
"""Kinds that come as a program, of which nothing can be exchanged, and the file that holds it."""

Activation = Literal["none", "sigmoid", "softmax"]

MAX_EDGE = 4096
"""Longest edge of what a network is asked about at once."""

MAX_VOXELS = 2**27
"""Most pixels or voxels of it: a cube of 512."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Clip(_Frozen):
    """Limit intensities; no gradient passes where it bites."""

    kind: Literal["clip"] = "clip"
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Clip:
        if self.low is None and self.high is None:
            raise ValueError("clip: give low, high or both")
        if self.low is not None and self.high is not None and not self.high > self.low:
            raise ValueError("clip: high must be above low")
        return self


class Scale(_Frozen):
    """``value * factor + offset``, one number for all channels or one for each."""

    kind: Literal["scale"] = "scale"
    factor: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)


class Standardise(_Frozen):
    """Subtract the scan's mean and divide by its standard deviation.

    Parameters
    ----------
    over
        Which voxels they are taken of: ``"all"``, those that are not zero, or the smallest ``"box"`` around these.
    only_there
        Whether voxels that are zero stay so.
    channelwise
        Whether each channel has figures of its own.
    """

    kind: Literal["standardise"] = "standardise"
    over: Literal["all", "nonzero", "box"] = "all"
    only_there: bool = False
    channelwise: bool = True


class Percentiles(_Frozen):
    """Map two percentiles of the scan to ``low`` and ``high``; 0 and 100 are its smallest and largest value."""

    kind: Literal["percentiles"] = "percentiles"
    lower: float = Field(default=0.0, ge=0, le=100)
    upper: float = Field(default=100.0, ge=0, le=100)
    low: float = 0.0
    high: float = 1.0
    clip: bool = False
    channelwise: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Percentiles:
        if not self.upper > self.lower:
            raise ValueError("percentiles: upper must be above lower")
        return self


Step = Annotated[Clip | Scale | Standardise | Percentiles, Field(discriminator="kind")]


class Foreign(_Frozen):
    """A network that was made elsewhere, and how it wants to be asked.

    Parameters
    ----------
    kind, target, args
        What the network is made of: the full name of a class of MONAI or nnU-Net and its arguments, where weights
        alone are stored; empty for a program.
    sha256
        Of a program's file: it runs only once the user has agreed to this very file.
    steps
        From intensities in the scan's unit to the network's input, in order.
    orientation
        Array axes of the network: ``"display"`` (slices, rows, columns), ``"xyz"`` (the file's own, fastest first:
        MONAI's readers without `Orientation`), ``"zyx"`` (the same, fastest last: nnU-Net), or three letters such as
        ``"RAS"``. A 2-D network sees display slices, whose two axes these words order.
    transpose
        Further permutation of these axes; empty for none.
    spacing
        Voxel size in mm along the network's axes that scans are resampled to; 0 keeps an axis, empty keeps all.
    align
        What of the image stays in place when it is resampled: its ``"edges"`` (nnU-Net), or the ``"centres"`` of its
        first voxels (MONAI's `Spacing`).
    size
        Shape along the network's axes that a whole scan is resampled to, in place of a voxel size; empty for none.
    resampled
        Whether that comes ``"first"``, so that what the steps must know of the scan is found on the network's grid
        (MONAI), or ``"last"``, after the steps (nnU-Net).
    window
        What the network is asked about at once, along its axes; empty for the whole image, and for a volume
        windows of `DEFAULT_WINDOW`.
    overlap
        Share of a window that the next one covers again.
    blend
        How windows are averaged where they overlap, see `Windowed`; MONAI's ``gaussian`` is ``"floored"``.
    padding
        What lies around an image that is smaller than the window: ``"zeros"``, or the ``"edge"``'s own values.
    divisor
        Where there are no windows, edges are padded to multiples of it.
    fixed
        Whether the network takes nothing but ``window``.
    output
        Way to the logits in what the network returns: keys of dicts, indices of lists and tuples.
    activation
        What the network has already done to its logits; it is undone.
    outputs
        Which output channels are the card's, in its order (the background first if it is multiclass); empty for all.
    """

    kind: Kind
    target: str = ""
    args: dict[str, Any] = Field(default_factory=dict)
    sha256: str = ""
    steps: tuple[Step, ...] = ()
    orientation: str = Field(default="display", pattern=r"^(display|xyz|zyx|[RLAPSI]{3})$")
    transpose: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    align: Literal["edges", "centres"] = "edges"
    size: tuple[int, ...] = ()
    resampled: Literal["first", "last"] = "first"
    window: tuple[int, ...] = ()
    overlap: float = Field(default=0.5, ge=0, lt=1)
    blend: Literal["gaussian", "floored", "constant"] = "gaussian"
    padding: Literal["zeros", "edge"] = "zeros"
    divisor: int = Field(default=1, ge=1, le=1024)
    fixed: bool = False
    output: tuple[int | str, ...] = ()
    activation: Activation = "none"
    outputs: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Foreign:
        if self.fixed and not self.window:
            raise ValueError("window: a network of fixed size needs one")
        for name, shape in (("window", self.window), ("size", self.size)):
            if shape and min(shape) < 1:
                raise ValueError(f"{name}: edges are at least 1")
            if max(shape, default=1) > MAX_EDGE or math.prod(shape) > MAX_VOXELS:
                raise ValueError(f"{name}: at most {MAX_EDGE} along an axis, and {MAX_VOXELS} voxels in all")
        if any(not 0 <= s < math.inf for s in self.spacing):
            raise ValueError("spacing: voxel sizes are above 0, or 0 to keep an axis")
        if self.size and self.spacing:
            raise ValueError("size: there is no voxel size beside it")
        if self.transpose and sorted(self.transpose) != list(range(len(self.transpose))):
            raise ValueError("transpose: name each axis once, from 0 up")
        letters = self.orientation if self.orientation.isupper() else ""
        if letters and len({_AXIS[c] for c in letters}) != 3:
            raise ValueError("orientation: name each of the three directions of the patient once")
        if any(o < 0 for o in self.outputs) or len(set(self.outputs)) != len(self.outputs):
            raise ValueError("outputs: name each channel once, from 0 up")
        return self


_AXIS = {letter: axis for axis, pair in enumerate(("RL", "AP", "SI")) for letter in pair}
