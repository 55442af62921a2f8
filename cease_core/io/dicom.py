"""One DICOM series: headers checked with pydicom, pixels decoded by SimpleITK (GDCM).

A viewer may show a stack whose slices are missing or tilted; a mask written for it would lie in the
wrong place. So whatever is not one evenly spaced, upright stack is refused, with the figures.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.io import files
from cease_core.io.stored import LPS_TO_RAS, StoredImage
from cease_core.scan import Affine

SUFFIXES = (".dcm", ".dicom", ".ima")

_PREAMBLE = 128

_TAGS = (
    "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "SOPClassUID",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "PixelSpacing", "ImagerPixelSpacing", "SliceThickness",
    "ImagePositionPatient", "ImageOrientationPatient",
)  # fmt: skip

_EVEN = 0.02
"""Gaps may differ by this fraction: scanners write positions rounded to a hundredth of a millimetre."""

_UPRIGHT_DEGREES = 0.5
"""Half a degree over 300 slices of 1 mm shears the anatomy by 2.6 mm; rounding stays far below it."""


class Slice(NamedTuple):
    """One file of a series, and its header without the pixels."""

    path: Path
    header: Any


def is_dicom(path: Path) -> bool:
    """Whether a file carries the DICOM mark, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def holds_dicom(folder: Path) -> bool:
    """Whether a folder holds a DICOM file itself; other files in it do not matter."""
    try:
        return any(entry.is_file() and is_dicom(entry) for entry in folder.iterdir())
    except OSError:
        return False


def load(path: Path, series_uid: str | None = None) -> StoredImage:
    """Read the series of a folder, or the one that a file belongs to.

    Parameters
    ----------
    path
        A folder with the slices of one series, or one of its slices.
    series_uid
        Which series of the folder to take, where there are several.

    Raises
    ------
    CeaseError
        If there is no series or a choice of several, or if its slices do not form one upright and
        evenly spaced stack of one size.
    """
    folder = path if path.is_dir() else path.parent
    if not path.is_dir():
        series_uid = series_uid or str(_header(path).get("SeriesInstanceUID", ""))
        if not series_uid:
            raise CeaseError(f"{path.name} names no DICOM series; export it again from the archive.")
    slices = _choose(folder, _series(folder), series_uid)
    first = slices[0].header
    name = str(first.get("SeriesDescription") or "").strip() or folder.name
    _check_alike(slices, name)
    slices, affine, length_unit = _place(slices, name)
    shape = (int(first.Columns), int(first.Rows), len(slices))
    files.check_size(name, shape)
    array = np.stack([_pixels(s) for s in slices], axis=-1)
    inverted = first.get("PhotometricInterpretation") == "MONOCHROME1"
    if inverted:
        # Stored as on film, air white. GDCM has turned it round, into numbers that end at -1.
        array -= array.min()
    if len(slices) == 1:
        array = array[..., 0]
    return StoredImage(
        array=array[np.newaxis],
        affine=affine,
        name=name,
        path=path,
        unit="HU" if first.get("Modality") == "CT" else "a.u.",
        length_unit=length_unit,
        metadata={
            "format": "DICOM",
            "series_uid": str(first.SeriesInstanceUID),
            "modality": str(first.get("Modality", "")),
            "inverted": inverted,
            "files": [s.path.name for s in slices],
        },
    )


def _header(path: Path) -> Any:
    with files.reading(path, "DICOM"):
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))


def _series(folder: Path) -> dict[str, list[Slice]]:
    """The image series in a folder; licences, directories of the medium and reports are left out."""
    found: dict[str, list[Slice]] = defaultdict(list)
    for entry in sorted(folder.iterdir()):
        if entry.is_file() and is_dicom(entry):
            header = _header(entry)
            if "SeriesInstanceUID" in header and "Rows" in header and "Columns" in header:
                found[str(header.SeriesInstanceUID)].append(Slice(entry, header))
    return found


def _choose(folder: Path, found: dict[str, list[Slice]], series_uid: str | None) -> list[Slice]:
    if not found:
        raise CeaseError(
            f"{folder.name} holds no DICOM images itself; open the folder in which the slices of one series lie."
        )
    if series_uid is None and len(found) == 1:
        return next(iter(found.values()))
    if series_uid in found:
        return found[series_uid]
    listing = "; ".join(
        f"number {s[0].header.get('SeriesNumber', '?')} “{s[0].header.get('SeriesDescription', '')}” "
        f"({len(s)} slices, such as {s[0].path.name})"
        for s in found.values()
    )
    if series_uid is None:
        raise CeaseError(
            f"{folder.name} holds {len(found)} DICOM series: {listing}; open one file of the series you want."
        )
    raise CeaseError(f"{folder.name} has no images of series {series_uid}, only: {listing}; choose one of these.")


def _check_alike(slices: list[Slice], name: str) -> None:
    for path, header in slices:
        frames = int(header.get("NumberOfFrames") or 1)
        if frames > 1:
            raise CeaseError(
                f"{path.name} holds {frames} frames in one DICOM file; convert it to NIfTI (dcm2niix) and open that."
            )
        if int(header.get("SamplesPerPixel") or 1) > 1:
            raise CeaseError(f"{path.name} is a colour DICOM image; export it as PNG or TIFF and open that.")
    sizes = sorted({(int(s.header.Columns), int(s.header.Rows)) for s in slices})
    if len(sizes) > 1:
        listing = " and ".join(f"{width}×{height}" for width, height in sizes)
        raise CeaseError(
            f"{name}: the slices of this series have different sizes ({listing} pixels); "
            "move the odd ones (often a scout) to another folder."
        )


def _place(slices: list[Slice], name: str) -> tuple[list[Slice], Affine, str]:
    """Sort the slices by position and find the affine from (column, row, slice) to RAS."""
    header = slices[0].header
    with files.reading(slices[0].path, "DICOM"):
        in_plane = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
        row_step, column_step = (float(v) for v in in_plane or (1, 1))
        thickness = float(header.get("SliceThickness") or 1)
    if "ImagePositionPatient" not in header or "ImageOrientationPatient" not in header:
        if len(slices) > 1:
            raise CeaseError(
                f"{name}: its {len(slices)} slices do not say where they lie (no ImagePositionPatient); "
                "open a single image from a folder of its own, or convert the series to NIfTI."
            )
        # A radiograph: shown as stored, in the place ITK gives it.
        affine = LPS_TO_RAS @ np.diag([column_step, row_step, thickness, 1.0])
        return slices, affine, "mm" if in_plane else "pixel"
    positions, along_row, along_column = _directions(slices, name, (row_step, column_step))
    normal = np.cross(along_row, along_column)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    step = normal * thickness
    if len(slices) > 1:
        _check_stack(positions, normal, name)
        step = (positions[-1] - positions[0]) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, 0] = along_row * column_step
    affine[:3, 1] = along_column * row_step
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return [slices[i] for i in order], LPS_TO_RAS @ affine, "mm"


def _directions(
    slices: list[Slice], name: str, spacing: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Positions (n, 3) of the slices and their two common in-plane directions, in LPS."""
    positions = []
    planes = []
    for path, header in slices:
        with files.reading(path, "DICOM"):
            positions.append([float(v) for v in header.ImagePositionPatient])
            planes.append([float(v) for v in header.ImageOrientationPatient])
            own = tuple(float(v) for v in header.get("PixelSpacing") or spacing)
        if not np.allclose(own, spacing, rtol=1e-3) or not np.allclose(planes[-1], planes[0], atol=1e-3):
            raise CeaseError(
                f"{name}: {path.name} has another pixel spacing or direction than {slices[0].path.name}; "
                "move the odd slices (often a scout) to another folder."
            )
    plane = np.array(planes[0])
    return np.array(positions), plane[:3], plane[3:]


def _check_stack(positions: NDArray[np.float64], normal: NDArray[np.float64], name: str) -> None:
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
    direction = positions[-1] - positions[0]
    cosine = float(direction @ normal) / float(np.linalg.norm(direction) * np.linalg.norm(normal))
    tilt = float(np.degrees(np.arccos(min(cosine, 1.0))))
    if tilt > _UPRIGHT_DEGREES:
        raise CeaseError(
            f"{name}: the gantry was tilted by {tilt:.1f}° against the stack of slices; "
            "resample the series to an upright NIfTI (dcm2niix does) and open that."
        )
    odd = np.flatnonzero(np.abs(gaps - step) > tolerance)
    if not odd.size:
        return
    missing = np.rint(gaps[odd] / step) - 1
    whole = np.abs(gaps[odd] - (missing + 1) * step) <= tolerance * (missing + 1)
    if whole.all() and (missing > 0).all():
        where = ", ".join(f"{depth[i]:.2f} and {depth[i + 1]:.2f} mm" for i in odd[:3])
        raise CeaseError(
            f"{name}: {int(missing.sum())} slice(s) missing between {where}"
            f"{' and elsewhere' if len(odd) > 3 else ''} (the others are {step:.2f} mm apart); "
            "copy the complete series and open it again."
        )
    raise CeaseError(
        f"{name}: its slices are unevenly spaced, from {gaps.min():.2f} to {gaps.max():.2f} mm apart; "
        "resample the series to an even NIfTI and open that."
    )


def _pixels(one: Slice) -> NDArray[np.float32]:
    """One slice, (column, row), with its own rescale slope and intercept applied by GDCM."""
    with files.reading(one.path, "DICOM"):
        plane = sitk.GetArrayFromImage(sitk.ReadImage(str(one.path), sitk.sitkFloat32))
        return np.asarray(plane, np.float32).reshape(int(one.header.Rows), int(one.header.Columns)).T
