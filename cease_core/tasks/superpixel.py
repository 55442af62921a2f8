"""Predict the image as a mosaic of superpixels: regions and their borders without what is inside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import slic
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.tasks.base import Setting
from cease_core.tasks.reconstruction import Reconstruction


@dataclass(frozen=True, kw_only=True)
class Superpixel(Reconstruction):
    """Give back the clean image with every SLIC superpixel at its mean (Achanta et al. 2012).

    Target and prediction have the image's shape (N, C, *spatial), in window fractions. Volumes are cut into
    supervoxels. Nothing is random.

    Parameters
    ----------
    edge
        Edge of a superpixel in pixels, at least 1: as many are sought as squares, or cubes, of it fit.
    compactness
        How much nearness counts beside likeness of intensities, which are stretched to [0, 1] for it; above 0.
    iterations
        Of SLIC's k-means, at least 1.

    Raises
    ------
    CeaseError
        If a parameter is out of range.

    Examples
    --------
    >>> Superpixel(edge=8).segments((64, 64))
    64
    """

    title: ClassVar[str] = "Superpixel means"
    source: ClassVar[str] = "Achanta et al. 2012, doi 10.1109/TPAMI.2012.120"

    edge: int = 8
    compactness: float = 0.1
    iterations: int = 5

    def __post_init__(self) -> None:
        for name in ("edge", "iterations"):
            if getattr(self, name) < 1:
                raise CeaseError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not (math.isfinite(self.compactness) and self.compactness > 0):
            raise CeaseError(f"compactness is {self.compactness}; give a number above 0.")

    def segments(self, shape: tuple[int, ...]) -> int:
        """How many superpixels are sought in an image of spatial ``shape``."""
        return math.prod(max(1, round(size / self.edge)) for size in shape)

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        pictures = images.detach().float().movedim(1, -1).cpu().numpy()
        mosaics = np.stack([self._mosaic(picture) for picture in pictures])
        return torch.from_numpy(mosaics).movedim(-1, 1).to(images)

    def _mosaic(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        segments = slic(
            picture,
            n_segments=self.segments(picture.shape[:-1]),
            compactness=self.compactness,
            max_num_iter=self.iterations,
            convert2lab=False,  # three channels need not be red, green and blue
            start_label=0,
            channel_axis=-1,
        )
        return region_means(picture, segments)


def region_means(picture: NDArray[np.float32], regions: NDArray[np.int64]) -> NDArray[np.float32]:
    """A picture (*spatial, C) with every region, by its number in ``regions`` (*spatial), at its mean."""
    flat = regions.ravel()
    sizes = np.maximum(np.bincount(flat), 1)
    channels = picture.reshape(-1, picture.shape[-1]).T
    means = np.stack([np.bincount(flat, weights=channel) / sizes for channel in channels], axis=-1)
    return means.astype(np.float32)[regions]
