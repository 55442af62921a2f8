"""Predict how often each intensity occurs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import GlobalHead


@dataclass(frozen=True, kw_only=True)
class Histogram(Task):
    """Intensity histogram of the clean image over all its channels (Swain & Ballard 1991).

    Target (N, bins): the share of values in equal bins of [0, 1]; what lies outside the window counts in the first
    and the last one. The prediction is the logits of a softmax.

    Parameters
    ----------
    bins
        At least 2.

    Raises
    ------
    CeaseError
        If ``bins`` is out of range.

    Examples
    --------
    >>> Histogram().bins
    32
    """

    title: ClassVar[str] = "Intensity histogram"
    source: ClassVar[str] = "Swain & Ballard 1991, doi 10.1007/BF00130487"

    bins: int = 32

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise CeaseError(f"bins is {self.bins}; give at least 2.")

    @torch.no_grad()
    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        values = images.flatten(1)
        place = (values.clamp(0, 1) * self.bins).long().clamp_max(self.bins - 1)
        first = self.bins * torch.arange(len(images), device=images.device).view(-1, 1)
        counts = torch.bincount((place + first).flatten(), minlength=len(images) * self.bins)
        return counts.view(len(images), self.bins).to(images) / values.shape[1]

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return GlobalHead(widths, self.bins)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        divergence = F.kl_div(prediction.float().log_softmax(dim=1), target, reduction="none").sum(dim=1)
        return divergence.clamp_min(0)  # rounding can leave a perfect prediction just below

    def constant(self, targets: Tensor) -> Tensor:
        # The floor keeps bins that are empty in every case finite.
        return targets.mean(dim=0, keepdim=True).clamp_min(1e-7).log()
