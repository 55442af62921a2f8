"""A network that was made elsewhere as a model of ours: window intensities in, logits on the scan's grid out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.io.files import MAX_BYTES
from cease_core.models.card import Mode, ModelCard
from cease_core.models.foreign.grid import Grid, resample
from cease_core.models.foreign.intensities import Stage, depends, fit
from cease_core.models.foreign.spec import Foreign
from cease_core.models.segmenter import Segmenter, check_scan
from cease_core.models.windowed import Windowed
from cease_core.scan import Scan

DEFAULT_WINDOW = 96
"""Edge of the windows of a volume, where a network's card names none."""

LEAST = 1e-30
"""Smallest probability that is turned back to a logit: below it, what a gradient is divided by leaves float32."""

MOST = 1 - 2**-24
"""Largest one: float32 has none between it and 1."""


class Asked(nn.Module):
    """A network whose answer is always logits (N, K, *spatial) of its input's size.

    Parameters
    ----------
    network
        Called with a batch in its own intensities and axes.
    card
        With its part about foreign networks.
    """

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        assert card.foreign is not None
        self.network = network
        self.mode: Mode = card.mode
        self.expected = card.outputs
        self.foreign: Foreign = card.foreign

    def forward(self, patches: Tensor) -> Tensor:
        """Logits (N, K, *spatial) for patches (N, C, *spatial).

        Raises
        ------
        CeaseError
            If what the network returns is not what the card says.
        """
        answer = chosen(self.network(patches), self.foreign.output)
        if answer.ndim != patches.ndim or len(answer) != len(patches):
            raise CeaseError(
                f"the network answers with shape {tuple(answer.shape)} to images of shape {tuple(patches.shape)}, "
                "which is no logit a class and pixel; name the right output, or import another network."
            )
        if self.foreign.outputs and max(self.foreign.outputs) < answer.shape[1]:
            answer = answer[:, list(self.foreign.outputs)]
        if answer.shape[1] != self.expected or max(self.foreign.outputs, default=0) >= self.expected > answer.shape[1]:
            raise CeaseError(
                f"the network answers with {answer.shape[1]} channels, but the card's classes and mode make "
                f"{self.expected}; correct the classes, or say whether it has a sigmoid or a softmax head."
            )
        return resample(_logits(answer.float(), self.foreign.activation), tuple(patches.shape[2:]))


def chosen(answer: Any, way: Sequence[int | str]) -> Tensor:
    """The tensor at the end of ``way`` through dicts, lists and tuples.

    Raises
    ------
    CeaseError
        If there is none; the sentence lists what is there instead.
    """
    for key in way:
        try:
            answer = answer[key]
        except (KeyError, IndexError, TypeError) as error:
            raise CeaseError(
                f"the network's answer has no entry {key!r}, only {_listing(answer)}; name one of these as output."
            ) from error
    if not isinstance(answer, Tensor):
        raise CeaseError(
            f"the network answers with {_listing(answer)}; name the entry that holds the logits as output."
        )
    return answer


def _listing(answer: Any) -> str:
    if isinstance(answer, Tensor):
        return "one tensor"
    if isinstance(answer, Mapping):
        return f"the entries {', '.join(repr(k) for k in answer)}"
    if isinstance(answer, list | tuple):
        return f"the entries 0 to {len(answer) - 1}" if answer else "an empty list"
    return f"a {type(answer).__name__}"


def _logits(answer: Tensor, activation: str) -> Tensor:
    """Undo an activation, in float32.

    A softmax keeps every gradient but that of probabilities below `LEAST`, a sigmoid also loses that of what it rounds
    to 1, which are logits above 17; nothing can bring that back.
    """
    if activation == "sigmoid":
        return answer.clamp_min(LEAST).log() - torch.log1p(-answer.clamp_max(MOST))
    if activation == "softmax":
        return answer.clamp_min(LEAST).log()
    return answer


class ForeignModel(nn.Module):
    """A foreign network with its card.

    Parameters
    ----------
    card
        With its part about foreign networks.
    network
        In evaluation mode.

    Notes
    -----
    `on` gives the model for one scan. Called by itself, the model takes images to be on the network's grid, and
    finds what it must know of the whole scan in the first of them.
    """

    def __init__(self, card: ModelCard, network: nn.Module) -> None:
        super().__init__()
        assert card.foreign is not None
        self.card = card
        self.mode: Mode = card.mode
        self.asked = Asked(network, card)
        self._fitted: WeakKeyDictionary[Scan, tuple[Grid, tuple[Stage, ...]]] = WeakKeyDictionary()

    @property
    def foreign(self) -> Foreign:
        """How the network wants to be asked."""
        return self.asked.foreign

    @property
    def minimum(self) -> int:
        """Smallest edge of an image that is surely understood."""
        return 2

    def check(self, scan: Scan) -> None:
        """Raise a `CeaseError` that says why ``scan`` does not fit this model, if it does not."""
        check_scan(scan, self.card, self.minimum)
        if scan.length_unit != "mm" and any(self.foreign.spacing):
            sizes = " × ".join(f"{s:g}" if s else "any" for s in self.foreign.spacing)
            raise CeaseError(
                f"{self.card.title} wants voxels of {sizes} mm, but {scan.name} does not say how large its own are; "
                "open the original file, or import the model without spacing."
            )

    def on(self, scan: Scan) -> Bound:
        """The model for images that are parts of ``scan``.

        Raises
        ------
        CeaseError
            If the scan is constant, or too large on the network's grid.
        """
        # Percentiles of a large volume take seconds, and an explorer asks again for every slice.
        if scan not in self._fitted:
            self._fitted[scan] = self._fit(scan)
        return Bound(self, *self._fitted[scan])

    def _fit(self, scan: Scan) -> tuple[Grid, tuple[Stage, ...]]:
        window = self.card.window.resolve(scan)
        grid = Grid.of(self.foreign, scan, self.card.ndim)
        changed = self.foreign.resampled == "first" and any(z != 1 for z in grid.zoom)
        image = scan.image
        if changed and depends(self.foreign.steps):
            slices = scan.shape[: scan.ndim - self.card.ndim]
            self.check_memory((scan.channels, *slices, *grid.sizes(scan.shape[len(slices) :])))
            image = grid.whole(scan.image)
        return grid, fit(self.foreign.steps, image, low=window.low, width=window.width)

    @property
    def window(self) -> tuple[int, ...]:
        """What the network sees at once, along its axes; empty for the whole image."""
        if self.foreign.window or self.card.ndim == 2:
            return self.foreign.window
        return (-(-DEFAULT_WINDOW // self.foreign.divisor) * self.foreign.divisor,) * 3

    def check_memory(self, shape: tuple[int, ...]) -> None:
        """Raise a `CeaseError` if an image on the network's grid is larger than scans may be."""
        if 4 * math.prod(shape) > MAX_BYTES:
            raise CeaseError(
                f"{self.card.title} would see this scan as an array of shape {shape}, more than the "
                f"{MAX_BYTES / 2**30:.0f} GiB allowed; crop the scan, or import the model with a larger voxel size."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, *spatial) for images (N, C, *spatial) in window fractions."""
        rule = self.card.window
        low, width = (rule.low, rule.high - rule.low) if rule.kind == "fixed" else (0.0, 1.0)
        image = images[0].detach().cpu().numpy() * np.float32(width) + np.float32(low)
        return Bound(self, Grid.identity(self.card.ndim), fit(self.foreign.steps, image, low=low, width=width))(images)


class Bound:
    """A foreign model for one scan: a `Segmenter` of images of any size on that scan's grid.

    Parameters
    ----------
    model
        The model.
    grid
        Of the network on the scan.
    stages
        From window fractions to the network's input.
    """

    def __init__(self, model: ForeignModel, grid: Grid, stages: tuple[Stage, ...]) -> None:
        self.model = model
        self.card = model.card
        self.mode: Mode = model.mode
        self.grid = grid
        self.stages = stages

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, K, *part) for images (N, C, *part) in window fractions.

        Raises
        ------
        CeaseError
            If they are too large on the network's grid.
        """
        sizes = [whole for whole, _ in self._room(self.grid.sizes(images.shape[2:]))]
        self.model.check_memory((*images.shape[:2], *sizes))
        last = self.model.foreign.resampled == "last"
        values = images if last else self.grid.enter(images)
        for stage in self.stages:
            values = stage(values)
        values = self.grid.enter(values) if last else values
        padded, inside = self._pad(values)
        logits = self._seen(tuple(padded.shape[2:]))(padded)[inside]
        return self.grid.leave(logits, tuple(images.shape[2:]))

    def check(self, scan: Scan) -> None:
        """Raise a `CeaseError` if ``scan`` does not fit the card."""
        self.model.check(scan)

    def _seen(self, shape: tuple[int, ...]) -> Segmenter:
        foreign, window = self.model.foreign, self.model.window
        if not window or all(n <= w for n, w in zip(shape, window, strict=True)):
            return self.model.asked
        return Windowed(self.model.asked, window, overlap=foreign.overlap, batch=1, blend=foreign.blend)

    def _pad(self, values: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Zeros or the image's edges around, as many on either side, and where the image lies among them."""
        sizes = tuple(values.shape[2:])
        room = self._room(sizes)
        pads = [n for size, (whole, before) in zip(sizes, room, strict=True) for n in (whole - size - before, before)]
        pads.reverse()
        inside = [slice(before, before + size) for size, (_, before) in zip(sizes, room, strict=True)]
        mode = "replicate" if self.model.foreign.padding == "edge" else "constant"
        return (F.pad(values, pads, mode) if any(pads) else values), (..., *inside)

    def _room(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        """Along each axis, how long the padded image is, and where the image begins in it."""
        foreign, window = self.model.foreign, self.model.window
        room = []
        for axis, size in enumerate(sizes):
            # A window is a size that the network takes; one larger than the image is only a bound, if not its own.
            whole = max(size, foreign.window[axis] if foreign.window else 1)
            if not window or whole <= window[axis]:
                whole += (-whole) % foreign.divisor
            room.append((whole, (whole - size) // 2))
        return room
