"""Reconstruct the image from the coarsest features; home of what tasks with an L1 loss on a picture share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import DenseHead


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Task):
    """Give back the clean image: the features must keep what it looks like (Le, Patterson & White 2018).

    Target and prediction have the image's shape (N, C, *spatial), in window fractions.

    Examples
    --------
    >>> Reconstruction().presents
    False
    """

    title: ClassVar[str] = "Reconstruction"
    source: ClassVar[str] = "Le, Patterson & White 2018, Supervised autoencoders, NeurIPS 31"

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        return images.detach()

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return DenseHead(widths, setting.ndim, setting.channels)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return absolute_error(prediction, target)

    def constant(self, targets: Tensor) -> Tensor:
        return channel_medians(targets)


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of each case (N,)."""
    return (prediction - target).abs().flatten(1).mean(dim=1)


def channel_medians(targets: Tensor) -> Tensor:
    """Each channel's median over cases and positions, the constant of least L1, as a picture (1, C, *spatial)."""
    # The median along a dimension also returns indices, which CUDA cannot do deterministically.
    medians = torch.stack([channel.median() for channel in targets.unbind(dim=1)])
    return everywhere(medians, tuple(targets.shape[2:]))


def everywhere(values: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """One value a channel (C,) as a picture (1, C, *spatial)."""
    return values.view(1, -1, *(1,) * len(spatial)).expand(1, -1, *spatial)
