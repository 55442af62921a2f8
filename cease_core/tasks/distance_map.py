"""Predict how far every pixel lies from the edge of each structure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cease_core.attacks.losses.distance import signed_distance
from cease_core.errors import CeaseError
from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import DenseHead
from cease_core.tasks.masks import structures
from cease_core.tasks.reconstruction import absolute_error, channel_medians


@dataclass(frozen=True, kw_only=True)
class DistanceMap(Task):
    """Signed distance to the edge of each structure, clipped (Navarro et al. 2019, arXiv 1908.05099).

    Target and prediction (N, classes, *spatial) lie in [−1, 1]: below 0 inside, above 0 outside, ±1 from ``reach``
    pixels on. A pixel's distance is that to the nearest pixel of the other side, so at least one. Where a mask has
    no edge all is as far away as can be: 1 if it is empty, −1 if it is full.

    Parameters
    ----------
    reach
        Distance at which the map is clipped, in pixels, at least 1.

    Raises
    ------
    CeaseError
        If ``reach`` is out of range.

    Examples
    --------
    >>> line = torch.tensor([[[0, 0, 0, 1, 1]]])
    >>> setting = Setting(ndim=2, channels=1, classes=1, mode="binary")
    >>> DistanceMap(reach=4).target(torch.zeros(1, 1, 1, 5), line, torch.zeros(1, 0), setting)
    tensor([[[[ 0.7500,  0.5000,  0.2500, -0.2500, -0.5000]]]])
    """

    title: ClassVar[str] = "Distance map"
    source: ClassVar[str] = "Navarro et al. 2019, arXiv 1908.05099"
    derived_from: ClassVar[Literal["image", "mask"]] = "mask"

    reach: float = 16.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.reach) and self.reach >= 1):
            raise CeaseError(f"reach is {self.reach}; give a number of pixels, at least 1.")

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        masks = structures(labels.to(images.device), setting)
        distances = (signed_distance(masks) / self.reach).clamp(-1, 1)
        axes = tuple(range(2, masks.ndim))
        mixed = masks.amax(dim=axes, keepdim=True) > masks.amin(dim=axes, keepdim=True)
        return torch.where(mixed, distances, 1 - 2 * masks)

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return DenseHead(widths, setting.ndim, setting.classes, skips=True)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return absolute_error(prediction, target)

    def constant(self, targets: Tensor) -> Tensor:
        return channel_medians(targets)
