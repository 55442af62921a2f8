"""Predict how large each structure is, where it lies and of how many parts it consists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import GlobalHead
from cease_core.tasks.masks import structures

_HALVINGS = 40


@dataclass(frozen=True, kw_only=True)
class Shape(Task):
    """Area, centroid and component count of each structure (after Kervadec et al. 2021, arXiv 2105.00859).

    Target and prediction (N, classes × (ndim + 2)), class after class, each number of the target in [0, 1]: the share
    of the image that the structure fills; its centroid along each axis from edge to edge, the image's centre if
    there is no structure; log(1 + components) / log(1 + ``most``). Components hang together by faces.

    Parameters
    ----------
    most
        Count of components from which on all look alike, at least 1.
    beta
        Error below which the smooth L1 loss is quadratic, above 0.

    Raises
    ------
    CeaseError
        If a parameter is out of range.

    Examples
    --------
    >>> mask = torch.tensor([[[0, 0, 1, 1]]])
    >>> setting = Setting(ndim=2, channels=1, classes=1, mode="binary")
    >>> Shape(most=1).target(torch.zeros(1, 1, 1, 4), mask, torch.zeros(1, 0), setting)
    tensor([[0.5000, 0.5000, 0.7500, 1.0000]])
    """

    title: ClassVar[str] = "Shape"
    source: ClassVar[str] = "Kervadec et al. 2021, arXiv 2105.00859"
    derived_from: ClassVar[Literal["image", "mask"]] = "mask"

    most: int = 63
    beta: float = 0.1

    def __post_init__(self) -> None:
        if self.most < 1:
            raise CeaseError(f"most is {self.most}; give at least 1 component.")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise CeaseError(f"beta is {self.beta}; give a number above 0.")

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        masks = structures(labels.to(images.device), setting)
        counts = components(masks).clamp_max(self.most).log1p() / math.log1p(self.most)
        numbers = [masks.flatten(2).mean(dim=2, keepdim=True), centroids(masks), counts.unsqueeze(2)]
        return torch.cat(numbers, dim=2).flatten(1)

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return GlobalHead(widths, setting.classes * (setting.ndim + 2))

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=self.beta).mean(dim=1)

    def constant(self, targets: Tensor) -> Tensor:
        # The mean loss is convex in each number: halve the interval that holds the root of its slope.
        low, high = targets.amin(dim=0), targets.amax(dim=0)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            rising = ((middle - targets) / self.beta).clamp(-1, 1).mean(dim=0) > 0
            low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
        return ((low + high) / 2).unsqueeze(0)


def centroids(masks: Tensor) -> Tensor:
    """Centre of gravity (N, K, ndim) of masks (N, K, *spatial), 0 and 1 being the image's edges; ½ if empty."""
    area = masks.flatten(2).sum(dim=2)
    found = []
    for axis, size in enumerate(masks.shape[2:], start=2):
        others = [a for a in range(2, masks.ndim) if a != axis]
        centres = (torch.arange(size, device=masks.device) + 0.5) / size
        moment = (masks.sum(dim=others) * centres).sum(dim=2)
        found.append(torch.where(area > 0, moment / area.clamp_min(1), 0.5))
    return torch.stack(found, dim=2)


def components(masks: Tensor) -> Tensor:
    """How many parts (N, K), connected by faces, each mask (N, K, *spatial) consists of."""
    inside = (masks > 0.5).cpu().numpy()
    counts = np.array([[label(mask)[1] for mask in case] for case in inside], dtype=np.float32)
    return torch.from_numpy(counts).to(masks)
