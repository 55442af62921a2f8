"""Reconstruct the blurred image: coarse structure without texture, where perturbations live."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from monai.networks.layers.convutils import gaussian_1d
from monai.networks.layers.simplelayers import separable_filtering
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.tasks.base import Setting
from cease_core.tasks.reconstruction import Reconstruction


@dataclass(frozen=True, kw_only=True)
class LowPass(Reconstruction):
    """Give back the clean image after a Gaussian blur (low-frequency targets: Liu et al. 2023, arXiv 2303.02416).

    Parameters
    ----------
    sigma
        Standard deviation of the blur in pixels, above 0.

    Raises
    ------
    CeaseError
        If ``sigma`` is out of range.

    Examples
    --------
    >>> LowPass(sigma=2.0).sigma
    2.0
    """

    title: ClassVar[str] = "Low-pass image"
    source: ClassVar[str] = "Liu et al. 2023, arXiv 2303.02416"

    sigma: float = 3.0

    def __post_init__(self) -> None:
        check_sigma(self.sigma)

    @torch.no_grad()
    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        return blur(images, self.sigma)


def check_sigma(sigma: float) -> None:
    """Raise a `CeaseError` unless ``sigma`` is a positive number of pixels."""
    if not (math.isfinite(sigma) and sigma > 0):
        raise CeaseError(f"sigma is {sigma}; give a number of pixels above 0.")


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of images (N, C, *spatial) along every axis; ``sigma`` in pixels, borders replicated."""
    # Zeros beyond the border would darken it and so tell the task where the image ends.
    return separable_filtering(images, [kernel(sigma)] * (images.ndim - 2), mode="replicate")


def kernel(sigma: float) -> Tensor:
    """Weights of a sampled Gaussian, odd in number, which sum to 1; the same as SciPy's and scikit-image's."""
    return gaussian_1d(torch.tensor(sigma), approx="sampled", normalize=True)
