"""A scan: intensities in their own unit, and where they lie in the patient.

Array axes are spatial axes in display order: slices first, then rows downwards, then columns to the
right. World coordinates are RAS+ millimetres (x to the patient's Right, y Anterior, z Superior), as in
NIfTI. `Layout` remembers how the file stored the same voxels, so that whatever is computed on a scan can
be written back onto the file's own grid, voxel for voxel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cease_core.errors import CeaseError

FloatArray = NDArray[np.float32]
LabelArray = NDArray[np.int32]
Affine = NDArray[np.float64]

SAMPLED_ABOVE = 2**24
"""Values up to which percentiles are taken of all; of more, of an even sample of some millions."""


class Window(NamedTuple):
    """The intensity interval, in the scan's unit, that a model sees as [0, 1]."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """Length of the interval: a perturbation of ε window fractions is ``ε * width`` in the scan's unit."""
        return self.high - self.low


@dataclass(frozen=True)
class Layout:
    """How an array on disk becomes an array in display order: a permutation, then flips.

    Parameters
    ----------
    axes
        Array axis *a* in display order is axis ``axes[a]`` of the file.
    flips
        Whether array axis *a* runs against the file's.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    @classmethod
    def identity(cls, ndim: int) -> Layout:
        return cls(tuple(range(ndim)), (False,) * ndim)

    @property
    def with_channels(self) -> Layout:
        """The same for arrays with a channel axis in front."""
        return Layout((0, *(a + 1 for a in self.axes)), (False, *self.flips))

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(a for a, f in enumerate(self.flips) if f)

    def to_display(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn ``(*spatial)`` of the file into display order, without resampling."""
        return np.flip(array.transpose(self.axes), self._flipped)

    def to_file(self, array: NDArray[Any]) -> NDArray[Any]:
        """Undo `to_display`, exactly."""
        flipped = np.flip(array, self._flipped)
        return flipped.transpose(np.argsort(self.axes))

    def index_matrix(self, file_shape: tuple[int, ...]) -> Affine:
        """The 4×4 map from a display-order index to the file's index."""
        matrix = np.eye(4)
        n = len(self.axes)
        matrix[:n, :n] = 0
        for a, (source, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            matrix[source, a] = -1 if flip else 1
            if flip:
                matrix[source, 3] = file_shape[source] - 1
        return matrix

    def affine_to_display(self, affine: Affine, file_shape: tuple[int, ...]) -> Affine:
        """Affine of the display-order array, from the file's affine and the file's spatial shape."""
        return np.asarray(affine, float) @ self.index_matrix(file_shape)

    def affine_to_file(self, affine: Affine, file_shape: tuple[int, ...]) -> Affine:
        """Undo `affine_to_display`."""
        return np.asarray(affine, float) @ np.linalg.inv(self.index_matrix(file_shape))


@dataclass(frozen=True, eq=False)
class Scan:
    """One image or volume, in its own unit.

    Parameters
    ----------
    image
        Intensities, float32, shape ``(C, *spatial)`` with two or three spatial axes in display order. It may be a
        read-only view of a large file that is mapped into memory; copy what is to be changed.
    affine
        4×4 map from ``(*index, 0…, 1)`` to RAS millimetres (to pixels for pictures).
    name
        Short title, shown to the user.
    unit
        Unit of the intensities: ``"HU"``, ``"a.u."`` (arbitrary) or ``"8-bit"``, ….
    length_unit
        ``"mm"`` for scans that know their size, ``"pixel"`` for pictures.
    window
        Intensity interval for display, and for models that bring none of their own.
    rgb
        Whether the three channels are red, green and blue.
    layout
        How the file stored the voxels; identity if they came from memory.
    path
        The file or folder it was read from, if any.
    metadata
        Whatever else the format knew and a writer may want back; plain values only.

    Raises
    ------
    CeaseError
        If the image has another shape, or holds NaN or infinite values.
    """

    image: FloatArray
    affine: Affine
    name: str = "scan"
    unit: str = "a.u."
    length_unit: str = "mm"
    window: Window = None  # type: ignore[assignment]  # filled from the image below
    rgb: bool = False
    layout: Layout = None  # type: ignore[assignment]
    path: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image.ndim not in (3, 4):
            raise CeaseError(
                f"{self.name}: expected a 2-D or 3-D image with a channel axis first, got shape "
                f"{self.image.shape}; pick one time point or one slice stack."
            )
        if 0 in self.image.shape:
            raise CeaseError(f"{self.name}: the image is empty (shape {self.image.shape}); open another file.")
        if not all(map(math.isfinite, self.extremes)):
            bad = sum(int((~np.isfinite(plane)).sum()) for plane in _planes(self.image))
            raise CeaseError(
                f"{self.name}: {bad} voxels are NaN or infinite; replace them (for example by the "
                "background value) and open the scan again."
            )
        if self.window is None:
            object.__setattr__(self, "window", percentile_window(self.image))
        if self.layout is None:
            object.__setattr__(self, "layout", Layout.identity(self.ndim))

    @property
    def ndim(self) -> int:
        """Number of spatial axes: 2 or 3."""
        return self.image.ndim - 1

    @property
    def channels(self) -> int:
        return int(self.image.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape, in display order."""
        return tuple(self.image.shape[1:])

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest intensity, in `unit`."""
        # Plane by plane: a mapped file is read once, and nothing of the image's size is allocated.
        found = np.array([(plane.min(), plane.max()) for plane in _planes(self.image)])
        return float(found[:, 0].min()), float(found[:, 1].max())

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each array axis, in `length_unit`."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, : self.ndim], axis=0))

    @cached_property
    def translate(self) -> tuple[float, ...]:
        """Position of the first voxel along the array axes, in `length_unit`.

        For an oblique scan this is the origin in the scan's own rotated frame: two series of one
        examination that share the orientation still overlay.
        """
        directions = self.affine[:3, : self.ndim] / np.asarray(self.spacing)
        return tuple(float(t) for t in directions.T @ self.affine[:3, 3])

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Spatial shape as the file stores it."""
        shape = [0] * self.ndim
        for a, source in enumerate(self.layout.axes):
            shape[source] = self.shape[a]
        return tuple(shape)

    @property
    def file_affine(self) -> Affine:
        """Affine as the file stores it."""
        return self.layout.affine_to_file(self.affine, self.file_shape)

    def with_image(self, image: FloatArray, name: str | None = None) -> Scan:
        """The same place and unit with other intensities of the same spatial shape."""
        if image.shape[1:] != self.image.shape[1:]:
            raise CeaseError(f"{self.name}: shape {image.shape[1:]} does not fit the scan's {self.shape}.")
        return replace(self, image=np.asarray(image, np.float32), name=name or self.name)


def percentile_window(image: FloatArray, low: float = 0.5, high: float = 99.5) -> Window:
    """Intensity interval between two percentiles, or the full range if those coincide.

    Parameters
    ----------
    image
        Intensities, shape ``(C, *spatial)``. Of more than `SAMPLED_ABOVE` values every n-th is taken, always the same
        ones: enough of them that a percentile is off by some thousandths of a percentage point.
    low, high
        Percentiles, in [0, 100].
    """
    lo, hi = (float(v) for v in np.percentile(_sample(image), (low, high)))
    if not hi > lo:
        lo, hi = float(image.min()), float(image.max())
    if not hi > lo:
        # A constant image still has to be shown; models refuse it with a sentence of their own.
        hi = lo + 1.0
    return Window(lo, hi)


def _planes(image: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The slices of every channel, or the channels of a single slice."""
    for channel in image:
        yield from channel if image.ndim == 4 else (channel,)


def _sample(image: FloatArray) -> FloatArray:
    """All values, or an even share of many; without a copy of the image, whatever its memory layout."""
    if image.size <= SAMPLED_ABOVE:
        return image
    columns = image.shape[-1]
    step = math.ceil(image.size / SAMPLED_ABOVE)
    # A step that shares a factor with the row's length would look at some columns alone.
    step = next(n for n in range(step, 2 * step + columns) if math.gcd(n, columns) == 1)
    parts, start = [], 0
    for plane in _planes(image):
        parts.append(plane.reshape(-1)[-start % step :: step])
        start += plane.size
    return np.concatenate(parts)


def class_ids(labels: NDArray[Any]) -> set[int]:
    """The ids in an integer mask, the background's included.

    For masks of many voxels and few ids, as they are, this is many times faster than sorting them.
    """
    if labels.min() < 0 or labels.max() > _FEW_IDS:
        return set(np.unique(labels).tolist())
    found = np.zeros(int(labels.max()) + 1, bool)
    for plane in labels:
        found[plane] = True
    return set(np.flatnonzero(found).tolist())


_FEW_IDS = 2**16
_LARGEST_ID = np.iinfo(np.int32).max


def check_labels(labels: NDArray[Any], scan: Scan, name: str = "labels") -> LabelArray:
    """Return ``labels`` as an int32 mask on the scan's grid.

    Parameters
    ----------
    labels
        Integer (or integer-valued) mask, shape ``scan.shape``.

    Raises
    ------
    CeaseError
        If shape or values do not fit.
    """
    array = np.asarray(labels)
    if array.shape != scan.shape:
        raise CeaseError(
            f"{name}: the mask has shape {array.shape}, but {scan.name} has {scan.shape}; "
            "choose the labels that belong to this scan."
        )
    ids = np.empty(array.shape, np.int32)
    # Slice by slice: floating-point copies of a large mask would take several times its memory.
    for part, into in zip(array, ids, strict=True):
        whole = part if part.dtype.kind in "iub" else np.rint(part)
        if (part is not whole and not np.array_equal(whole, part)) or whole.min() < 0 or whole.max() > _LARGEST_ID:
            raise CeaseError(f"{name}: class ids must be whole numbers from 0 up; this looks like an image.")
        into[...] = whole
    return ids
