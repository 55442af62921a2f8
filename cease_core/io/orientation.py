"""Which array axis is shown as slices, rows and columns.

Only permutations and flips: a voxel is never resampled, so everything can be written back exactly.
The display follows the radiological convention: the patient's left is on the right of the screen.
"""

from __future__ import annotations

import numpy as np
from nibabel.orientations import io_orientation

from cease_core.errors import CeaseError
from cease_core.scan import Affine, Layout

_TOWARDS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}

# By the axis that the slices run along. All three turn the same way round (slices go away from the
# viewer), so that anatomy is never mirrored between them in a 3-D view.
_DISPLAY = {0: "RIP", 1: "PIL", 2: "SPL"}

_CLEARLY_LARGER = 1.5
"""A spacing this many times the others' is taken for the slice spacing of the acquisition."""


def complete_affine(affine: Affine, ndim: int, name: str) -> Affine:
    """Check an affine, and give a single slice without thickness a third axis along its normal.

    Raises
    ------
    CeaseError
        If the affine is not finite, or maps the voxels onto a plane or a line.
    """
    matrix = np.array(affine, float)
    with np.errstate(all="ignore"):  # sizes beyond what a number can hold are refused below
        if ndim == 2 and np.isfinite(matrix).all() and not matrix[:3, 2].any():
            normal = np.cross(matrix[:3, 0], matrix[:3, 1])
            matrix[:3, 2] = normal / (np.linalg.norm(normal) or 1)
        sizes = np.linalg.norm(matrix[:3, :3], axis=0)
        apart = abs(np.linalg.det(matrix[:3, :3] / sizes))
    if not np.isfinite(matrix).all() or not (sizes > 0).all() or not apart >= 1e-3:
        raise CeaseError(
            f"{name}: its header gives the voxels no usable size and direction (singular affine); "
            "repair the header or convert the original again."
        )
    return matrix


def choose_layout(affine: Affine, shape: tuple[int, ...]) -> Layout:
    """Choose the display order of a stored array.

    Parameters
    ----------
    affine
        4×4 map from the stored index to RAS millimetres.
    shape
        Spatial shape as stored, two or three axes.

    Returns
    -------
    Layout
        Slices along the axis of a single slice or of the clearly largest spacing, else along the one
        closest to superior. Axial: slices to Superior, rows to Posterior, columns to Left. Coronal:
        Posterior, Inferior, Left. Sagittal: Right, Inferior, Posterior.
    """
    ndim = len(shape)
    # Row a: the patient axis (0 x, 1 y, 2 z) that array axis a runs along, and in which sense.
    found = io_orientation(np.asarray(affine, float)[:, [*range(ndim), 3]])
    along = [int(world) for world in found[:, 0]]
    sense = [int(sign) for sign in found[:, 1]]
    if ndim == 2:
        (missing,) = {0, 1, 2} - set(along)
        targets = _DISPLAY[missing][1:]
    else:
        targets = _DISPLAY[along[_slice_axis(affine, shape, along)]]
    axes = []
    flips = []
    for letter in targets:
        world, sign = _TOWARDS[letter]
        axis = along.index(world)
        axes.append(axis)
        flips.append(sense[axis] != sign)
    return Layout(tuple(axes), tuple(flips))


def _slice_axis(affine: Affine, shape: tuple[int, ...], along: list[int]) -> int:
    thin = [a for a, n in enumerate(shape) if n == 1]
    if len(thin) == 1:
        return thin[0]
    spacing = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    largest = int(np.argmax(spacing))
    if spacing[largest] > _CLEARLY_LARGER * np.median(np.delete(spacing, largest)):
        return largest
    return along.index(2)
