"""Where DICOM slices lie: one upright and even stack, or a refusal with the figures.

A viewer may show a stack whose slices are missing, tilted or unevenly spaced; a mask written for it would
lie in the wrong place. A tilted or uneven stack is interpolated onto an upright, even grid if that is asked
for, from the measured position of every slice; slices that are missing cannot be invented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cease_core.errors import CeaseError
from cease_core.io import files
from cease_core.io.stored import LPS_TO_RAS
from cease_core.scan import Affine, FloatArray

_EVEN = 0.02
"""Gaps may differ by this fraction: scanners write positions rounded to a hundredth of a millimetre."""

_UPRIGHT_DEGREES = 0.5
"""Half a degree over 300 slices of 1 mm shears the anatomy by 2.6 mm; rounding stays far below it."""

_STRAIGHT = 0.25
"""How far, in voxels, a slice may lie from where an even stack puts it: the next voxel is twice as far."""

_LARGER = 4
"""How many times as large a resampled series may become; a gantry at 30° makes two of one."""

_REMEDY = "resample it onto an upright, even grid while opening it (resample=True, --resample on the command line)"

_MOST_CHARACTERS = 64
"""Of a text, value representation LO."""

Vector = NDArray[np.float64]


class Plane(NamedTuple):
    """One slice as its header describes it; lengths in millimetres, directions in LPS.

    ``frame`` counts from 1 as DICOM does, and is None in a file of one slice. ``position`` and
    ``directions`` (along a row, then along a column) are None where the header does not give them;
    ``spacing`` is the step from row to row, then from column to column.
    """

    path: Path
    frame: int | None
    size: tuple[int, int]
    position: tuple[float, ...] | None
    directions: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float

    @property
    def title(self) -> str:
        return self.path.name if self.frame is None else f"frame {self.frame} of {self.path.name}"


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order along their normal, and the affine from (column, row, slice) to RAS.

    ``detour`` says why this stack has to be interpolated, and is empty if it is upright and even.
    """

    planes: list[Plane]
    affine: Affine
    length_unit: str = "mm"
    detour: str = ""


def readable(value: Any, default: str = "") -> str:
    """What a header says in words, in one short line whatever a damaged header holds."""
    words = "".join(c if c.isprintable() else " " for c in str(default if value is None else value)).split()
    return " ".join(words)[:_MOST_CHARACTERS].strip() or default


def plane(path: Path, frame: int | None, size: tuple[int, int], found: dict[str, Any]) -> Plane:
    """Check what a header says about one slice.

    Parameters
    ----------
    size
        Columns and rows.
    found
        Values by DICOM keyword: ``ImagePositionPatient``, ``ImageOrientationPatient``,
        ``PixelSpacing``, ``SliceThickness``; None or absent where the header is silent.

    Raises
    ------
    CeaseError
        If a value is no number, or two directions are not at right angles.
    """
    with files.reading(path, "DICOM"):
        spacing = _floats(found.get("PixelSpacing"), 2)
        position = _floats(found.get("ImagePositionPatient"), 3)
        directions = _floats(found.get("ImageOrientationPatient"), 6)
        thickness = abs(float(found.get("SliceThickness") or 1)) or 1.0
        if spacing and min(spacing) <= 0:
            raise ValueError(spacing)
    if directions:
        frame_axes = np.reshape(directions, (2, 3))
        if not np.allclose(frame_axes @ frame_axes.T, np.eye(2), atol=1e-2):
            raise CeaseError(
                f"{path.name}: its rows and columns are not at right angles (ImageOrientationPatient "
                f"{', '.join(f'{v:g}' for v in directions)}); repair the header or export the series again."
            )
    steps = None if spacing is None else (spacing[0], spacing[1])
    return Plane(path, frame, size, position, directions, steps, thickness)


def place(planes: Sequence[Plane], name: str, *, resample: bool = False) -> Stack:
    """Sort slices by position and find the affine from (column, row, slice) to RAS.

    Parameters
    ----------
    planes
        Slices of one size.
    name
        Of the series, for messages.
    resample
        Whether a tilted or uneven stack may pass, to be interpolated with `upright`.

    Raises
    ------
    CeaseError
        If the slices do not form one stack, or not an upright and even one.
    """
    first = planes[0]
    row_step, column_step = first.spacing or (1.0, 1.0)
    if any(p.position is None or p.directions is None for p in planes):
        if len(planes) > 1:
            raise CeaseError(
                f"{name}: its {len(planes)} slices do not say where they lie (no ImagePositionPatient); "
                "open a single image from a folder of its own, or convert the series to NIfTI."
            )
        # A radiograph: shown as stored, in the place ITK gives it.
        affine = LPS_TO_RAS @ np.diag([column_step, row_step, first.thickness, 1.0])
        return Stack([first], affine, "mm" if first.spacing else "pixel")
    _check_parallel(planes, name)
    positions = np.array([p.position for p in planes])
    along_row, along_column, normal = axes(first)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    step = normal * first.thickness
    detour = ""
    if len(planes) > 1:
        detour = _fault(positions, np.stack([along_row, along_column, normal]), (column_step, row_step), name)
        if detour and not resample:
            raise CeaseError(f"{name}: {detour}; {_REMEDY}.")
        step = (positions[-1] - positions[0]) / (len(planes) - 1)
    affine = np.eye(4)
    affine[:3, 0] = along_row * column_step
    affine[:3, 1] = along_column * row_step
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return Stack([planes[i] for i in order], LPS_TO_RAS @ affine, detour=detour)


def axes(one: Plane) -> tuple[Vector, Vector, Vector]:
    """Unit vectors along a row, along a column and along the normal, in LPS."""
    row, column = np.reshape(np.array(one.directions), (2, 3))
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def upright(array: FloatArray, stack: Stack) -> tuple[FloatArray, Affine]:
    """Interpolate a tilted or uneven stack linearly onto an upright, even grid.

    The grid keeps the pixel size and the number of slices, reaches from the first slice to the last,
    and is wide enough for all of them; where no slice lies it holds the lowest value.

    Parameters
    ----------
    array
        Intensities (columns, rows, slices), in the order of the stack.
    stack
        Where these slices lie.

    Returns
    -------
    array, affine
        Intensities (columns', rows', slices), and their place in RAS.
    """
    first = stack.planes[0]
    along_row, along_column, normal = axes(first)
    row_step, column_step = first.spacing or (1.0, 1.0)
    positions = np.array([p.position for p in stack.planes])
    depths = positions @ normal
    # Where each slice begins in its plane, in pixels.
    offsets = np.stack([positions @ along_row / column_step, positions @ along_column / row_step], axis=1)
    corner = offsets.min(axis=0)
    offsets -= corner
    widths = np.array(array.shape[:2]) + np.ceil(offsets.max(axis=0) - 1e-6).astype(int)
    shape = (int(widths[0]), int(widths[1]), len(depths))
    if np.prod(shape) > _LARGER * array.size:
        raise CeaseError(
            f"{first.path.name} and the other slices of its series lie so far apart sideways that an even grid around "
            f"them would be more than {_LARGER} times as large; export the series again, or convert it to NIfTI."
        )
    files.check_size(first.path.parent.name, shape)
    lowest = float(array.min())
    even = np.linspace(depths[0], depths[-1], len(depths))
    result = np.empty(shape, np.float32)
    for k, depth in enumerate(even):
        below = int(np.clip(np.searchsorted(depths, depth, side="right") - 1, 0, len(depths) - 2))
        share = float((depth - depths[below]) / (depths[below + 1] - depths[below]))
        result[..., k] = sum(
            weight * ndimage.affine_transform(array[..., i], np.eye(2), -offsets[i], shape[:2], order=1, cval=lowest)
            for i, weight in ((below, 1 - share), (below + 1, share))
            if weight > 0
        )
    affine = np.eye(4)
    affine[:3, 0] = along_row * column_step
    affine[:3, 1] = along_column * row_step
    affine[:3, 2] = normal * (depths[-1] - depths[0]) / (len(depths) - 1)
    affine[:3, 3] = np.stack([along_row * column_step, along_column * row_step], axis=1) @ corner + normal * depths[0]
    return result, LPS_TO_RAS @ affine


def _floats(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or value == "":
        return None
    numbers = tuple(float(v) for v in value)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(numbers)
    return numbers


def _check_parallel(planes: Sequence[Plane], name: str) -> None:
    first = planes[0]
    for one in planes:
        spacing = one.spacing or first.spacing
        if not np.allclose(spacing or 1, first.spacing or 1, rtol=1e-3) or not np.allclose(
            np.array(one.directions), np.array(first.directions), atol=1e-3
        ):
            raise CeaseError(
                f"{name}: {one.title} has another pixel spacing or direction than {first.title}; "
                "move the odd slices (often a scout) to another folder."
            )


def _fault(positions: Vector, frame: Vector, in_plane: tuple[float, float], name: str) -> str:
    """What keeps slices from being an upright, even stack, or nothing; repeated or missing ones are refused."""
    normal = frame[2]
    depth = positions @ normal
    gaps = np.diff(depth)
    step = float(np.median(gaps))
    tolerance = max(_EVEN * step, 0.01)
    same = int(np.count_nonzero(gaps < tolerance))
    if same:
        raise CeaseError(
            f"{name}: {same} of {len(positions)} slices lie where another one does (several echoes or time "
            "points in one series); move one of them to another folder."
        )
    odd = np.flatnonzero(np.abs(gaps - step) > tolerance)
    if odd.size:
        _check_complete(depth, gaps, odd, step, name)
    faults = []
    direction = positions[-1] - positions[0]
    tilt = float(np.degrees(np.arccos(min(float(direction @ normal / np.linalg.norm(direction)), 1.0))))
    if tilt > _UPRIGHT_DEGREES:
        faults.append(f"the gantry was tilted by {tilt:.1f}° against the stack of slices")
    if odd.size:
        faults.append(f"its slices are unevenly spaced, from {gaps.min():.2f} to {gaps.max():.2f} mm apart")
    line = np.linspace(positions[0], positions[-1], len(positions))
    away = np.abs((positions - line) @ frame.T)
    if not faults and (away / [*in_plane, step]).max() > _STRAIGHT:
        faults.append(f"its slices lie up to {away.max():.2f} mm from a straight and even stack")
    return " and ".join(faults)


def _check_complete(depth: Vector, gaps: Vector, odd: NDArray[np.intp], step: float, name: str) -> None:
    """Refuse a stack whose odd gaps are all whole multiples of the others."""
    tolerance = max(_EVEN * step, 0.01)
    missing = np.rint(gaps[odd] / step) - 1
    whole = np.abs(gaps[odd] - (missing + 1) * step) <= tolerance * (missing + 1)
    if whole.all() and (missing > 0).all():
        where = ", ".join(f"{depth[i]:.2f} and {depth[i + 1]:.2f} mm" for i in odd[:3])
        raise CeaseError(
            f"{name}: {int(missing.sum())} slice(s) missing between {where}"
            f"{' and elsewhere' if len(odd) > 3 else ''} (the others are {step:.2f} mm apart); "
            "copy the complete series and open it again."
        )
