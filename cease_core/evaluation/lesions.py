"""Lesions: the connected parts of a reference, how much of each a mask finds, and which of them are small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import generate_binary_structure, label

from cease_core.errors import CeaseError
from cease_core.scan import LabelArray

UNITS = {2: "mm²", 3: "mm³"}
"""Of a lesion's size, by the number of axes."""


@dataclass(frozen=True, eq=False)
class Lesions:
    """The connected parts of a reference, class by class, each class from the first voxel in the array on.

    Parameters
    ----------
    numbers
        Which lesion a voxel belongs to, from 1 on in the order of ``sizes``, or 0; shape of the reference.
    classes
        Class id of each lesion.
    sizes
        Of each lesion, in mm² for images and mm³ for volumes.
    """

    numbers: LabelArray
    classes: tuple[int, ...]
    sizes: tuple[float, ...]


def lesions(reference: LabelArray, classes: Sequence[int], spacing: Sequence[float]) -> Lesions:
    """Take a reference apart; voxels of a class that touch, be it by a corner, are one lesion.

    Parameters
    ----------
    reference
        Class ids, two or three axes.
    classes
        Foreground ids that have lesions.
    spacing
        Distance of neighbours along each axis, in millimetres, or 1 for pixels.

    Raises
    ------
    CeaseError
        If the spacing does not fit the reference.
    """
    if len(spacing) != reference.ndim:
        raise CeaseError(
            f"the spacing {tuple(spacing)} does not fit a mask of shape {reference.shape}; give one length for each "
            "axis."
        )
    touching = generate_binary_structure(reference.ndim, reference.ndim)
    numbers = np.zeros(reference.shape, np.int32)
    ids: list[int] = []
    for c in classes:
        inside = reference == c
        parts, count = label(inside, touching)
        numbers[inside] = parts[inside] + len(ids)
        ids += [c] * count
    voxels = np.bincount(numbers.ravel(), minlength=len(ids) + 1)[1:]
    return Lesions(numbers, tuple(ids), tuple((voxels * math.prod(spacing)).tolist()))


def found(mask: LabelArray, lesions: Lesions) -> list[float]:
    """Share of each lesion that a mask gives the lesion's class, in the lesions' order; each in [0, 1].

    Parameters
    ----------
    mask
        Class ids on the reference's grid.
    lesions
        Of the reference.

    Raises
    ------
    CeaseError
        If the mask's shape is not the reference's.
    """
    if mask.shape != lesions.numbers.shape:
        raise CeaseError(
            f"the mask has shape {mask.shape} and its reference {lesions.numbers.shape}; compare masks on the same "
            "grid."
        )
    inside = lesions.numbers > 0
    numbers = lesions.numbers[inside] - 1
    right = mask[inside] == np.array(lesions.classes, dtype=np.int64)[numbers]
    count = len(lesions.classes)
    hits, voxels = (np.bincount(numbers, weights, count) for weights in (right, None))
    return [float(share) for share in hits / voxels]


@dataclass(frozen=True, eq=False)
class Strata:
    """Lesions in three classes of size: small, medium and large.

    Parameters
    ----------
    edges
        From where on a lesion is medium, and from where on large.
    index
        Class of each lesion (lesions,): 0, 1 or 2.
    """

    edges: tuple[float, float]
    index: NDArray[np.int64]

    def titles(self, unit: str) -> tuple[str, str, str]:
        """What the classes are called, with their bounds in ``unit``."""
        low, high = (f"{edge:,.12g}" for edge in self.edges)
        return f"small (below {low} {unit})", f"medium ({low} to {high} {unit})", f"large (from {high} {unit})"


def strata(sizes: ArrayLike, edges: tuple[float, float] | None = None) -> Strata:
    """Group lesions by size, at the terciles of all sizes in a data set.

    The terciles are rounded to two digits, and it is the rounded ones that divide, so that the bounds that a reader
    sees are those that were used. Where many lesions are of one size a class may be empty.

    Parameters
    ----------
    sizes
        Of all lesions (lesions,).
    edges
        Bounds to use instead, in ascending order; those of another data set, say.

    Raises
    ------
    CeaseError
        If the bounds fall.
    """
    data = np.asarray(sizes, dtype=np.float64)
    if edges is None:
        low, high = np.quantile(data, [1 / 3, 2 / 3]) if data.size else (math.nan, math.nan)
        edges = float(f"{low:.1e}"), float(f"{high:.1e}")
    elif edges[0] > edges[1]:
        raise CeaseError(f"the bounds {edges} fall; give the lower one first.")
    return Strata(edges, np.searchsorted(np.array(edges), data, side="right"))
