"""Find the edges that Canny's detector finds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from skimage.feature import canny
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import DenseHead
from cease_core.tasks.low_pass import check_sigma
from cease_core.tasks.reconstruction import everywhere
from cease_core.tasks.sobel import steepness_of_step


@dataclass(frozen=True, kw_only=True)
class Edges(Task):
    """Canny edges of the clean image's channel mean, slice by slice in volumes (Canny 1986).

    Target (N, 1, *spatial): 1 on an edge, else 0, also on the outermost pixels. The prediction is its logit; edge
    pixels weigh as much as all others together, up to a cap.

    Parameters
    ----------
    sigma
        Standard deviation of the smoothing in pixels, above 0.
    low, high
        Thresholds of the hysteresis, as the height in window fractions of the straight step that just reaches
        them: an edge holds together down to ``low`` and must reach ``high`` somewhere.
    cap
        The most that an edge pixel may weigh against another, at least 1.

    Raises
    ------
    CeaseError
        If a parameter is out of range.

    Examples
    --------
    >>> Edges().head((4, 8), Setting(ndim=2, channels=3, classes=1, mode="binary")).skips
    True
    """

    title: ClassVar[str] = "Edges (Canny)"
    source: ClassVar[str] = "Canny 1986, doi 10.1109/TPAMI.1986.4767851"

    sigma: float = 1.0
    low: float = 0.05
    high: float = 0.12
    cap: float = 20.0

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        if not (math.isfinite(self.high) and 0 < self.low <= self.high):
            raise CeaseError(
                f"the thresholds are low = {self.low} and high = {self.high}; give window fractions above 0, low first."
            )
        if not (math.isfinite(self.cap) and self.cap >= 1):
            raise CeaseError(f"cap is {self.cap}; give a weight of at least 1.")

    @torch.no_grad()
    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        grey = images.mean(dim=1, keepdim=True)
        # scikit-image's Sobel filter does not divide its weights 1, 2, 1 by their sum.
        unit = 4 * steepness_of_step(self.sigma)
        slices = grey.flatten(0, -3).float().cpu().numpy()
        found = [
            canny(s, sigma=self.sigma, low_threshold=self.low * unit, high_threshold=self.high * unit, mode="nearest")
            for s in slices
        ]
        return torch.from_numpy(np.stack(found)).to(images).view_as(grey)

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return DenseHead(widths, setting.ndim, 1, skips=True)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(prediction.float(), target, reduction="none")
        return (each * self._weights(target)).flatten(1).mean(dim=1)

    def constant(self, targets: Tensor) -> Tensor:
        weights = self._weights(targets)
        # The floor keeps the logit finite where no case, or every pixel, has an edge.
        on, off = ((weights * part).mean().clamp_min(1e-6) for part in (targets, 1 - targets))
        return everywhere((on / off).log().view(1), tuple(targets.shape[2:]))

    def _weights(self, target: Tensor) -> Tensor:
        """Each pixel's weight in its case's mean; they average 1."""
        share = target.flatten(1).mean(dim=1).view(-1, *(1,) * (target.ndim - 1))
        ratio = ((1 - share) / share.clamp_min(1e-6)).clamp(1, self.cap)
        weights = torch.where(target > 0, ratio, 1.0)
        return weights / (share * ratio + 1 - share)
