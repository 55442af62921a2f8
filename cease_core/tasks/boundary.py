"""Find the edge of each structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.attacks.losses import probabilities
from cease_core.errors import CeaseError
from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import DenseHead
from cease_core.tasks.masks import structures
from cease_core.tasks.reconstruction import everywhere


@dataclass(frozen=True, kw_only=True)
class Boundary(Task):
    """A band along the edge of each structure, dilated minus eroded mask (Chen et al. 2016, arXiv 1604.02677).

    Target (N, classes, *spatial): 1 in the band, else 0. The prediction is its logit; the loss is binary
    cross-entropy plus soft Dice, mean over classes. Where a structure leaves the image there is no band.

    Parameters
    ----------
    width
        How far the band reaches to either side of the edge, in pixels, at least 1; diagonal steps count one.

    Raises
    ------
    CeaseError
        If ``width`` is out of range.

    Examples
    --------
    >>> Boundary().derived_from
    'mask'
    """

    title: ClassVar[str] = "Boundary"
    source: ClassVar[str] = "Chen et al. 2016, arXiv 1604.02677"
    derived_from: ClassVar[Literal["image", "mask"]] = "mask"

    width: int = 1

    def __post_init__(self) -> None:
        if self.width < 1:
            raise CeaseError(f"width is {self.width}; give at least 1 pixel.")

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        masks = structures(labels.to(images.device), setting)
        return self._dilate(masks) + self._dilate(-masks)

    def _dilate(self, masks: Tensor) -> Tensor:
        pool = F.max_pool2d if masks.ndim == 4 else F.max_pool3d
        return pool(masks, 2 * self.width + 1, stride=1, padding=self.width)

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return DenseHead(widths, setting.ndim, setting.classes, skips=True)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        cross_entropy = F.binary_cross_entropy_with_logits(prediction, target, reduction="none").flatten(2).mean(dim=2)
        found, band = probabilities(prediction, "multilabel").flatten(2), target.flatten(2)
        overlap = _dice((found * band).sum(dim=2), found.sum(dim=2), band.sum(dim=2))
        return (cross_entropy + 1 - overlap).mean(dim=1)

    def constant(self, targets: Tensor) -> Tensor:
        # Dice pulls away from the logit of the band's share; of a constant both parts follow from the band's size
        # alone, so that the best of many logits costs nothing.
        band, pixels = targets.flatten(2).sum(dim=2), targets[0, 0].numel()
        logits = torch.linspace(-16, 16, 641, device=targets.device)
        logit = logits.view(-1, 1, 1)
        found = logit.sigmoid()
        cross_entropy = F.softplus(logit) - logit * band / pixels
        losses = cross_entropy + 1 - _dice(found * band, found * pixels, band)
        return everywhere(logits[losses.mean(dim=1).argmin(dim=0)], tuple(targets.shape[2:]))


def _dice(both: Tensor, found: Tensor, true: Tensor) -> Tensor:
    """Soft Dice from areas in pixels; the 1 makes two empty masks agree."""
    return (2 * both + 1) / (found + true + 1)
