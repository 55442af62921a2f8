"""Predict how steep the smoothed image is at every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from monai.networks.layers.simplelayers import separable_filtering
from torch import Tensor

from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import DenseHead
from cease_core.tasks.low_pass import blur, check_sigma, kernel
from cease_core.tasks.reconstruction import absolute_error, channel_medians


@dataclass(frozen=True, kw_only=True)
class Sobel(Task):
    """Gradient magnitude of the smoothed clean image, as in Taskonomy's texture edges (Zamir et al. 2018).

    Target (N, 1, *spatial): mean of the channels' magnitudes, in the height of the straight step that would have
    this gradient; 1 is a step from one end of the window to the other.

    Parameters
    ----------
    sigma
        Standard deviation of the smoothing in pixels, above 0.

    Raises
    ------
    CeaseError
        If ``sigma`` is out of range.

    Examples
    --------
    >>> Sobel().sigma
    1.0
    """

    title: ClassVar[str] = "Gradient magnitude (Sobel)"
    source: ClassVar[str] = "Zamir et al. 2018, arXiv 1804.08328"

    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_sigma(self.sigma)

    @torch.no_grad()
    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        steepness = sobel_magnitude(blur(images, self.sigma)) / steepness_of_step(self.sigma)
        return steepness.mean(dim=1, keepdim=True)

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return DenseHead(widths, setting.ndim, 1, skips=True)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return absolute_error(prediction, target)

    def constant(self, targets: Tensor) -> Tensor:
        return channel_medians(targets)


def sobel_magnitude(images: Tensor) -> Tensor:
    """Length of the Sobel gradient of images (N, C, *spatial), as a difference over two pixels.

    In each direction a central difference, averaged across the others with weights 1, 2, 1; borders replicated.
    """
    across, along = torch.tensor([0.25, 0.5, 0.25]), torch.tensor([-1.0, 0.0, 1.0])
    axes = range(images.ndim - 2)
    slopes = [
        separable_filtering(images, [along if a == axis else across for a in axes], mode="replicate") for axis in axes
    ]
    return torch.stack([s.square() for s in slopes]).sum(dim=0).sqrt()


def steepness_of_step(sigma: float) -> float:
    """Largest difference over two pixels of a straight unit step that was blurred with ``sigma``."""
    weights = kernel(sigma)
    middle = len(weights) // 2
    return float(weights[middle : middle + 2].sum())
