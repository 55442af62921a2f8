"""Light heads on a shared encoder: one that answers with a picture, one that answers with numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from cease_core.models.architectures import Features
from cease_core.tasks.base import Head


class DenseHead(Head):
    """A picture of ``outputs`` channels from the coarsest features, doubled in size level by level.

    Parameters
    ----------
    widths
        Channels of the features, fine to coarse.
    ndim, outputs
        Spatial dimensions and channels of the picture.
    skips
        Also read the finer levels. Reconstruction heads must not: they would copy the image past the encoder.
    width
        Channels inside the head.
    """

    def __init__(
        self, widths: tuple[int, ...], ndim: int, outputs: int, *, skips: bool = False, width: int = 16
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, ndim]
        self.ndim, self.skips = ndim, skips
        self.enter = nn.ModuleList(conv(w, width, 1) for w in (widths if skips else widths[-1:]))
        steps = max(1, len(widths) - 1)
        self.refine = nn.ModuleList(conv(width, width, 3, padding=1) for _ in range(steps))
        self.leave = conv(width, outputs, 1)

    def forward(self, features: Features, shape: tuple[int, ...]) -> Tensor:
        """Picture (N, outputs, *shape)."""
        x = self.enter[-1](features[-1])
        for level, refine in zip(range(len(features) - 2, -2, -1), self.refine, strict=False):
            finer = tuple(features[max(level, 0)].shape[2:])
            x = self._resize(F.leaky_relu(x, 0.1), finer)
            if self.skips and level >= 0:
                x = x + self.enter[level](features[level])
            x = refine(x)
        return self._resize(self.leave(F.leaky_relu(x, 0.1)), shape)

    def _resize(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tuple(x.shape[2:]) == shape:
            return x
        return F.interpolate(x, size=shape, mode="bilinear" if self.ndim == 2 else "trilinear", align_corners=False)


class GlobalHead(Head):
    """``outputs`` numbers a case from the mean and the maximum of the coarsest features."""

    def __init__(self, widths: tuple[int, ...], outputs: int, *, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * widths[-1], width), nn.LeakyReLU(0.1), nn.Linear(width, outputs))

    def forward(self, features: Features, shape: tuple[int, ...]) -> Tensor:
        """Numbers (N, outputs)."""
        x = features[-1].flatten(2)
        return self.layers(torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1))
