"""Predict in which directions the image changes, cell by cell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.models.architectures import Features
from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import DenseHead
from cease_core.tasks.reconstruction import everywhere


@dataclass(frozen=True, kw_only=True)
class HOG(Task):
    """Histograms of oriented gradients (Dalal & Triggs 2005; as a target: Wei et al. 2022, arXiv 2112.09133).

    Target (N, bins, *cells): how much of a cell's gradient points each way, without its sign. Bin b is centred on
    b · 180°/bins from the last axis; a gradient votes with its length for its two nearest bins. Of several channels
    the steepest one counts, pixel by pixel. In volumes cells lie within slices, so ``cells`` is
    (depth, height // cell, width // cell). Pixels beyond the last whole cell are dropped.

    Parameters
    ----------
    bins
        Directions in 180°, at least 2.
    cell
        Edge of a cell in pixels, at least 2.
    floor
        Added in quadrature to a cell's ℓ2 norm, by which it is divided: mean change in window fractions a pixel
        below which a cell counts as flat, above 0. Without it a flat cell would be noise of unit length.

    Raises
    ------
    CeaseError
        If a parameter is out of range, or a slice is smaller than a cell.

    Examples
    --------
    >>> HOG().bins, HOG().cell
    (9, 8)
    """

    title: ClassVar[str] = "Histogram of oriented gradients"
    source: ClassVar[str] = "Wei et al. 2022, arXiv 2112.09133"

    bins: int = 9
    cell: int = 8
    floor: float = 0.01

    def __post_init__(self) -> None:
        for name in ("bins", "cell"):
            if getattr(self, name) < 2:
                raise CeaseError(f"{name} is {getattr(self, name)}; give at least 2.")
        if not (math.isfinite(self.floor) and self.floor > 0):
            raise CeaseError(f"floor is {self.floor}; give a number of window fractions above 0.")

    @torch.no_grad()
    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        down, right = _steepest_channel(*torch.gradient(images, dim=(-2, -1)))
        place = torch.atan2(down, right) * (self.bins / torch.pi) % self.bins
        length = torch.hypot(down, right)
        # Bin by bin: pictures of all bins at once would not stay in the cache, which takes three times as long.
        sums = torch.cat([cell_means(length * self._share(place, b), self.cell) for b in range(self.bins)], dim=1)
        return sums / (sums.square().sum(dim=1, keepdim=True) + self.floor**2).sqrt()

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return _CellHead(DenseHead(widths, setting.ndim, self.bins, skips=True), self.cell)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().flatten(1).mean(dim=1)

    def constant(self, targets: Tensor) -> Tensor:
        return everywhere(targets.transpose(0, 1).flatten(1).mean(dim=1), tuple(targets.shape[2:]))

    def _share(self, place: Tensor, centre: int) -> Tensor:
        """What a bin gets of a gradient at ``place``, in bins: 1 at its centre, 0 at the neighbours' and beyond."""
        apart = (place - centre).abs()
        # Bins lie on a circle, as opposite directions coincide.
        return (1 - torch.minimum(apart, self.bins - apart)).clamp_min(0)


class _CellHead(Head):
    """A picture at the image's resolution, averaged over cells as the target is."""

    def __init__(self, picture: DenseHead, cell: int) -> None:
        super().__init__()
        self.picture, self.cell = picture, cell

    def forward(self, features: Features, shape: tuple[int, ...]) -> Tensor:
        return cell_means(self.picture(features, shape), self.cell)


def cell_means(pictures: Tensor, cell: int) -> Tensor:
    """Mean over each whole cell of ``cell`` × ``cell`` pixels of the last two axes.

    Raises
    ------
    CeaseError
        If not even one cell fits.
    """
    if min(pictures.shape[-2:]) < cell:
        raise CeaseError(
            f"images of shape {tuple(pictures.shape[2:])} are smaller than a cell of {cell} × {cell} pixels; "
            "use larger images or leave out the task hog."
        )
    means = F.avg_pool2d(pictures.flatten(0, -4), cell)
    return means.view(*pictures.shape[:-2], *means.shape[-2:])


def _steepest_channel(down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Of gradients (N, C, *spatial) the longest along C, as (N, 1, *spatial) each."""
    # Not argmax, which takes ten times as long along an inner dimension.
    which = (down.square() + right.square()).max(dim=1, keepdim=True).indices
    return down.gather(1, which), right.gather(1, which)
