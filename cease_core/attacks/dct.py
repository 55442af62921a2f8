"""Orthonormal discrete cosine transforms of images and volumes, whole or block by block.

A transform along one axis is a product with a matrix, so two and three dimensions share all of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def dct_matrix(size: int) -> Tensor:
    """The DCT-II of ``size`` values as an orthonormal matrix, float32; row k is the k-th cosine.

    Examples
    --------
    >>> dct_matrix(1)
    tensor([[1.]])
    """
    row = torch.arange(size, dtype=torch.float64).unsqueeze(1)
    place = torch.arange(size, dtype=torch.float64) + 0.5
    matrix = (math.pi / size * row * place).cos() * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


class Cosines:
    """Transforms blocks of given edges, and back.

    Coefficients lie where the values of their block lay: both have the shape (N, C, *spatial).

    Parameters
    ----------
    edges
        Of a block, one for each spatial axis; each divides the images' size along it.
    like
        Its device is taken.
    """

    def __init__(self, edges: Sequence[int], like: Tensor) -> None:
        self.matrices = [dct_matrix(edge).to(like.device) for edge in edges]

    def forward(self, images: Tensor) -> Tensor:
        """Coefficients of images (N, C, *spatial)."""
        return self._apply(images, [m.T for m in self.matrices])

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Images of coefficients (N, C, *spatial)."""
        return self._apply(coefficients, self.matrices)

    @staticmethod
    def _apply(values: Tensor, matrices: list[Tensor]) -> Tensor:
        for axis, matrix in enumerate(matrices, start=2):
            rows = values.movedim(axis, -1).unflatten(-1, (-1, len(matrix)))
            values = (rows @ matrix).flatten(-2).movedim(-1, axis)
        return values


def padded(images: Tensor, edge: int, mode: str = "replicate") -> Tensor:
    """Images (N, C, *spatial) with values added at their ends until ``edge`` divides every size."""
    missing = [number for size in reversed(images.shape[2:]) for number in (0, -size % edge)]
    return F.pad(images, missing, mode=mode)


def cropped(images: Tensor, shape: Sequence[int]) -> Tensor:
    """The first ``shape`` (*spatial) of images (N, C, *spatial)."""
    return images[(slice(None), slice(None), *(slice(size) for size in shape))]
