"""One DICOM series: headers checked with pydicom, slices decoded by SimpleITK (GDCM).

A series of one slice a file is read here, several frames in one file by `dicom_frames`; where the slices lie,
and whether they form a stack at all, is the matter of `dicom_stack`, masks that of `dicom_seg`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk

from cease_core.errors import CeaseError
from cease_core.io import dicom_frames, files
from cease_core.io.dicom_seg import is_segmentation
from cease_core.io.dicom_stack import Plane, Stack, place, plane, readable, upright
from cease_core.io.stored import StoredImage, decode
from cease_core.scan import FloatArray, Window

SUFFIXES = (".dcm", ".dicom", ".ima")

_PREAMBLE = 128

_TAGS = (
    "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "SOPClassUID",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "PixelSpacing", "ImagerPixelSpacing", "SliceThickness",
    "ImagePositionPatient", "ImageOrientationPatient", "SharedFunctionalGroupsSequence",
)  # fmt: skip


class Slice(NamedTuple):
    """One file of a series, and its header without the pixels."""

    path: Path
    header: Any

    @property
    def is_plain(self) -> bool:
        """Whether it is one grey slice that says of itself where it lies."""
        grouped = "SharedFunctionalGroupsSequence" in self.header or dicom_frames.count(self.header) > 1
        return not (grouped or dicom_frames.is_colour(self.header))


def is_dicom(path: Path) -> bool:
    """Whether a file carries the DICOM mark, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def files_in(folder: Path) -> list[Path]:
    """The DICOM files that a folder holds itself, by name.

    Raises
    ------
    CeaseError
        If it may not be read.
    """
    with files.reading(folder, "a folder of DICOM files"):
        return [entry for entry in sorted(folder.iterdir()) if entry.is_file() and is_dicom(entry)]


def holds_dicom(folder: Path) -> bool:
    """Whether a folder holds a DICOM file itself; other files in it do not matter."""
    try:
        return any(entry.is_file() and is_dicom(entry) for entry in folder.iterdir())
    except OSError:
        return False


def load(path: Path, series_uid: str | None = None, *, frame: int | None = None, resample: bool = False) -> StoredImage:
    """Read the series of a folder, or the one that a file belongs to.

    Parameters
    ----------
    path
        A folder with the slices of one series, one of its slices, or a file of several frames.
    series_uid
        Which series of the folder to take, where there are several.
    frame
        Which volume to take of a file that holds several (stacks, time points, echoes), or which picture
        of a film, from 0.
    resample
        Interpolate a tilted or unevenly spaced series onto an upright, even grid instead of refusing it.

    Raises
    ------
    CeaseError
        If there is no series or a choice of several, or if its slices do not form one upright and
        evenly spaced stack of one size.
    """
    slices = _open(path, series_uid)
    first = slices[0].header
    folder = path if path.is_dir() else path.parent
    name = readable(first.get("SeriesDescription")) or folder.name
    planes, choices = _choose_planes(slices, name, frame)
    stack = place(planes, name, resample=resample)
    files.check_size(name, (*planes[0].size, len(planes)))
    colour = dicom_frames.is_colour(first)
    affine = stack.affine
    array = dicom_frames.colours(planes[0].path, planes[0].frame or 1) if colour else _grey(stack, name)
    inverted = first.get("PhotometricInterpretation") == "MONOCHROME1"
    if inverted:
        # Stored as on film, air white. GDCM has turned slices round already, into numbers that end at -1.
        if planes[0].frame is not None:
            np.negative(array, out=array)
        array -= array.min()
    metadata: dict[str, Any] = {
        "format": "DICOM",
        "series_uid": str(first.SeriesInstanceUID),
        "modality": readable(first.get("Modality")),
        "inverted": inverted,
        "files": list(dict.fromkeys(p.path.name for p in stack.planes)),
        "frame_numbers": [p.frame for p in stack.planes if p.frame is not None],
        "placed": planes[0].position is not None,
    }
    if choices > 1:
        name, metadata = files.frame_name(name, frame or 0), metadata | {"frame": frame or 0, "frames": choices}
    if stack.detour:
        resampled, affine = upright(array[0], stack)
        array = resampled[np.newaxis]
        metadata["resampled"] = f"{stack.detour}; interpolated linearly onto an upright, even grid"
    return StoredImage(
        array=array,
        affine=affine,
        name=name,
        path=path,
        unit="8-bit" if colour else "HU" if first.get("Modality") == "CT" else "a.u.",
        length_unit=stack.length_unit,
        window=Window(0.0, 255.0) if colour else None,
        rgb=colour,
        metadata=metadata | {"shape": list(array.shape[1:]), "affine": affine.tolist()},
    )


def frame_count(path: Path) -> int:
    """How many volumes or pictures the file of a series offers to `load`'s ``frame``; 1 for a series of slices.

    Raises
    ------
    CeaseError
        If the header is damaged.
    """
    if path.is_dir() or Slice(path, _header(path)).is_plain:
        return 1
    return len(dicom_frames.parts(path, dicom_frames.read_header(path)))


def _open(path: Path, series_uid: str | None) -> list[Slice]:
    """The files that belong together; a file of several frames stands for itself."""
    if path.is_dir():
        return _choose(path, _series(path), series_uid)
    own = Slice(path, _header(path))
    if is_segmentation(own.header):
        raise CeaseError(
            f"{path.name} is a DICOM segmentation, a mask without intensities; "
            "open the scan that it was drawn on, and this file as its mask."
        )
    series_uid = series_uid or str(own.header.get("SeriesInstanceUID", ""))
    if not series_uid:
        raise CeaseError(f"{path.name} names no DICOM series; export it again from the archive.")
    if "Rows" in own.header and "Columns" in own.header and not own.is_plain:
        return [own]
    return _choose(path.parent, _series(path.parent), series_uid)


def _choose_planes(slices: list[Slice], name: str, frame: int | None) -> tuple[list[Plane], int]:
    """The slices of one volume, and among how many volumes it was chosen."""
    grouped = [s for s in slices if not s.is_plain]
    if not grouped:
        files.check_frame(name, frame, 1)
        _check_alike(slices, name)
        return [_plane(s) for s in slices], 1
    if len(slices) > 1:
        raise CeaseError(
            f"{name}: {len(grouped)} of its {len(slices)} files hold several frames or colours each "
            f"(such as {grouped[0].path.name}); open one of them by itself."
        )
    path = grouped[0].path
    return dicom_frames.choose(path, dicom_frames.read_header(path), frame)


def _plane(one: Slice) -> Plane:
    found = {key: one.header.get(key) for key in ("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness")}
    found["PixelSpacing"] = one.header.get("PixelSpacing") or one.header.get("ImagerPixelSpacing")
    return plane(one.path, None, (int(one.header.Columns), int(one.header.Rows)), found)


def _grey(stack: Stack, name: str) -> FloatArray:
    """Intensities (1, columns, rows, slices) of a stack, (1, columns, rows) of a single slice."""
    planes = stack.planes
    shape = (*planes[0].size, len(planes)) if len(planes) > 1 else planes[0].size
    pictures: Iterator[FloatArray]
    if planes[0].frame is None:
        pictures = (_pixels(p) for p in planes)
    else:
        pictures = dicom_frames.pixels(planes[0].path, [p.frame or 1 for p in planes])

    def slabs() -> Iterator[tuple[tuple[slice | int, ...], FloatArray]]:
        whole = (0, slice(None), slice(None))
        for k, picture in enumerate(pictures):
            yield (*whole, k)[: len(shape) + 1], picture

    return decode(slabs(), 1, shape, stack.affine, name)


def _header(path: Path) -> Any:
    with files.reading(path, "DICOM"):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        dicom_frames.check_numbers(header)
        return header


def _series(folder: Path) -> dict[str, list[Slice]]:
    """The image series in a folder; licences, directories of the medium, reports and masks are left out."""
    found: dict[str, list[Slice]] = defaultdict(list)
    for entry in files_in(folder):
        header = _header(entry)
        image = all(header.get(key) is not None for key in ("SeriesInstanceUID", "Rows", "Columns"))
        if image and not is_segmentation(header):
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
        f"number {readable(s[0].header.get('SeriesNumber'), '?')} “{readable(s[0].header.get('SeriesDescription'))}” "
        f"({len(s)} slices, such as {s[0].path.name})"
        for s in found.values()
    )
    if series_uid is None:
        raise CeaseError(
            f"{folder.name} holds {len(found)} DICOM series: {listing}; open one file of the series you want."
        )
    raise CeaseError(
        f"{folder.name} has no images of series {readable(series_uid)}, only: {listing}; choose one of these."
    )


def _check_alike(slices: list[Slice], name: str) -> None:
    for path, header in slices:
        dicom_frames.check_pixels(path, header)
    sizes = sorted({(int(s.header.Columns), int(s.header.Rows)) for s in slices})
    if len(sizes) > 1:
        listing = " and ".join(f"{width}×{height}" for width, height in sizes)
        raise CeaseError(
            f"{name}: the slices of this series have different sizes ({listing} pixels); "
            "move the odd ones (often a scout) to another folder."
        )


def _pixels(one: Plane) -> FloatArray:
    """One slice, (column, row), with its own rescale slope and intercept applied by GDCM."""
    with files.reading(one.path, "DICOM"):
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(one.path), sitk.sitkFloat32))
        return np.asarray(found, np.float32).reshape(one.size[::-1]).T
