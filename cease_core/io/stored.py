"""An image as a file holds it, and the way from there to a scan or onto a scan's grid.

Every format is read into index order (x, y, z: fastest in the file first), the order that NIfTI, ITK and
DICOM share, so that a mask can be written from any of them into any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.io.orientation import choose_layout, complete_affine
from cease_core.io.windows import WINDOWS
from cease_core.scan import Affine, LabelArray, Layout, Scan, Window, check_labels

CT_WINDOW = WINDOWS["soft tissue"].window
"""Soft-tissue window in HU, the usual first look at an abdomen."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM and ITK count x to the Left and y to the Posterior."""

MAP_ABOVE = 256 * 2**20
"""Bytes of voxels from which on a file is mapped into memory instead of read.

Smaller ones are read: a mapped file must not be changed by others while it is open.
"""

SLAB_BYTES = 32 * 2**20
"""Voxels that are decoded at once."""

_HU_AT_MOST = -500
"""Whole numbers this far below zero are air in a CT: no MR scanner stores them."""

_GRID_TOLERANCE = 1e-2
"""How far, in voxels, a mask's corners may lie from the scan's."""


@dataclass(frozen=True, eq=False)
class StoredImage:
    """Voxels of one file: ``array`` is ``(C, *spatial)`` in index order, ``affine`` maps that index to RAS.

    ``placed`` is false for pictures, whose place is a convention rather than a measurement. A ``mapped`` array is a
    view of the file itself, which is not copied.
    """

    array: NDArray[np.float32]
    affine: Affine
    name: str
    path: Path
    unit: str = "a.u."
    length_unit: str = "mm"
    window: Window | None = None
    rgb: bool = False
    placed: bool = True
    mapped: bool = False
    layout: Layout | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[1:])


def guess_unit(array: NDArray[Any], *, integer: bool) -> str:
    """``"HU"`` if a format without units holds what can only be a CT, else ``"a.u."``."""
    return "HU" if integer and array.size and array.min() <= _HU_AT_MOST else "a.u."


def decode(
    slabs: Iterable[tuple[tuple[Any, ...], NDArray[Any]]],
    channels: int,
    shape: tuple[int, ...],
    affine: Affine,
    name: str,
) -> NDArray[np.float32]:
    """Gather voxels into one float32 array that already lies in memory as it will be displayed.

    What is read at once and the result are all that is held, whatever the file's type and order.

    Parameters
    ----------
    slabs
        Where each piece belongs in ``(channels, *shape)``, and its values.
    shape
        Spatial shape as stored.
    affine
        From the stored index to RAS millimetres; decides on the order.

    Returns
    -------
    array
        ``(channels, *shape)`` in the file's order: a view whose memory is in display order.

    Raises
    ------
    CeaseError
        If the affine is unusable.
    """
    layout = choose_layout(complete_affine(affine, len(shape), name), shape)
    array = layout.with_channels.to_file(np.empty((channels, *(shape[a] for a in layout.axes)), np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        for place, values in slabs:
            array[place] = values
    return array


def slabs_of(shape: tuple[int, ...], itemsize: int) -> Iterator[slice]:
    """Ranges along the last axis of an array, each of at most `SLAB_BYTES` where one index is no larger."""
    at_once = max(1, SLAB_BYTES // max(1, itemsize * math.prod(shape[:-1])))
    for start in range(0, shape[-1], at_once):
        yield slice(start, min(start + at_once, shape[-1]))


def to_scan(stored: StoredImage) -> Scan:
    """Turn a stored image into a scan in display order."""
    affine = complete_affine(stored.affine, len(stored.shape), stored.name)
    layout = stored.layout or choose_layout(affine, stored.shape)
    window = stored.window or (CT_WINDOW if stored.unit == "HU" else None)
    image = layout.with_channels.to_display(stored.array)
    return Scan(
        image=image if stored.mapped else np.ascontiguousarray(image),
        affine=layout.affine_to_display(affine, stored.shape),
        name=stored.name,
        unit=stored.unit,
        length_unit=stored.length_unit,
        window=window,  # type: ignore[arg-type]  # the scan fills it in
        rgb=stored.rgb,
        layout=layout,
        path=stored.path,
        metadata=stored.metadata,
    )


def to_labels(stored: StoredImage, like: Scan) -> LabelArray:
    """Bring a stored mask onto a scan's display grid, by permutation and flips only.

    A mask that was saved in another orientation of the same voxels fits too.

    Raises
    ------
    CeaseError
        If it has several channels, another shape, lies elsewhere, or holds anything but class ids.
    """
    name = stored.path.name
    if len(stored.array) != 1:
        raise CeaseError(
            f"{name}: a mask has one channel of class ids, this has {len(stored.array)}; "
            "merge its layers into one label map."
        )
    mask = stored.array[0]
    layout = like.layout
    if stored.placed and mask.ndim == like.ndim:
        affine = complete_affine(stored.affine, mask.ndim, name)
        # From the scan's display index straight to the mask's stored index.
        index = np.linalg.inv(affine) @ like.affine
        layout = _nearest_layout(index, mask.ndim) or layout
    if mask.ndim != like.ndim or layout.to_display(mask).shape != like.shape:
        raise CeaseError(
            f"{name}: the mask has shape {mask.shape}, but {like.name} has {like.file_shape}; "
            "choose the labels that belong to this scan."
        )
    if stored.placed:
        _check_place(index - layout.index_matrix(mask.shape), like, name)
    return check_labels(layout.to_display(mask), like, name)


def _nearest_layout(index: Affine, ndim: int) -> Layout | None:
    """The permutation and flips closest to an index map, if there is one."""
    columns = index[:ndim, :ndim]
    axes = tuple(int(a) for a in np.abs(columns).argmax(axis=0))
    if len(set(axes)) != ndim:
        return None
    return Layout(axes, tuple(bool(columns[source, a] < 0) for a, source in enumerate(axes)))


def _check_place(difference: Affine, like: Scan, name: str) -> None:
    ends = [(0, n - 1) for n in like.shape] + [(0,)] * (3 - like.ndim) + [(1,)]
    away = max(float(np.abs(difference @ corner)[:3].max()) for corner in product(*ends))
    if away > _GRID_TOLERANCE:
        raise CeaseError(
            f"{name}: the mask lies up to {away:.3g} voxels away from {like.name} although their shapes agree; "
            "choose the labels of this scan, or resample them onto it."
        )
