"""Reading scans and masks from files, and writing them back onto the same grid."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.io import dicom, dicom_seg, files, itk, nifti, picture
from cease_core.io.dicom import holds_dicom, is_dicom
from cease_core.io.stored import CT_WINDOW, StoredImage, to_labels, to_scan
from cease_core.io.windows import WINDOWS, WindowPreset, presets_for
from cease_core.scan import LabelArray, Scan, check_labels

__all__ = [
    "CT_WINDOW",
    "READABLE",
    "WINDOWS",
    "WRITABLE",
    "WRITABLE_LABELS",
    "WindowPreset",
    "frame_count",
    "holds_dicom",
    "is_dicom",
    "is_segmentation",
    "label_names",
    "presets_for",
    "read_labels",
    "read_own_labels",
    "read_scan",
    "write_labels",
    "write_scan",
]

READABLE = (*nifti.SUFFIXES, *itk.SUFFIXES, *picture.SUFFIXES, *dicom.SUFFIXES)
"""Suffixes that can be read; a folder of DICOM slices and DICOM files of any name can be, too."""

WRITABLE = (*nifti.SUFFIXES, *itk.WRITABLE, *picture.WRITABLE)
"""Suffixes that can be written."""

WRITABLE_LABELS = (*WRITABLE, dicom_seg.SUFFIX)
"""Suffixes that masks can be written with: ``.dcm`` for scans that came from DICOM."""

_SERIES = (*nifti.SUFFIXES, *itk.SUFFIXES)

_WRITERS: dict[ModuleType, tuple[str, ...]] = {
    nifti: nifti.SUFFIXES,
    itk: itk.SUFFIXES,
    picture: picture.SUFFIXES,
}


def read_scan(
    path: str | os.PathLike[str],
    *,
    series_uid: str | None = None,
    frame: int | None = None,
    volumes_as_channels: bool = False,
    resample: bool = False,
) -> Scan:
    """Read a scan from a file, or a DICOM series from its folder or one of its slices.

    Parameters
    ----------
    path
        The file or folder; the suffix says the format, see `READABLE`.
    series_uid
        Which DICOM series to take where a folder holds several.
    frame
        Which time point of a NIfTI, NRRD or MetaImage series to take, or which volume or picture of a DICOM file of
        several, from 0; see `frame_count`. Without one a series is refused. Masks and scans that are written for a
        frame are single volumes on the series' grid.
    volumes_as_channels
        Take the fourth axis of a NIfTI file for channels (contrasts of one examination, as in the
        brain tumours of the Medical Segmentation Decathlon), unless a ``frame`` is chosen.
    resample
        Interpolate a DICOM series with a tilted gantry or uneven gaps linearly onto an upright, even grid, from the
        position of every slice; ``metadata["resampled"]`` then says why. Otherwise it is refused. Nothing happens to
        other scans, and missing slices are refused in any case.

    Returns
    -------
    Scan
        Intensities float32 ``(C, *spatial)`` in display order, in HU, 8-bit grey levels or arbitrary
        units, and how to write back onto the file's own grid. Large uncompressed files of float32 are mapped
        into memory (read-only); all others are decoded piece by piece into one array.

    Raises
    ------
    CeaseError
        If it is missing, damaged, too large, of an unknown format, holds NaN, or is not one scan.
    """
    source = _existing(path)
    suffix = files.match_suffix(source, READABLE)
    if _is_dicom_source(source):
        return to_scan(dicom.load(source, series_uid, frame=frame, resample=resample))
    if frame is not None and suffix not in _SERIES:
        raise CeaseError(
            f"{source.name}: frames are chosen of NIfTI, NRRD, MetaImage and DICOM series alone; leave the frame out."
        )
    if suffix in nifti.SUFFIXES:
        return to_scan(nifti.load(source, frame=frame, volumes_as_channels=volumes_as_channels))
    if suffix in itk.SUFFIXES:
        return to_scan(itk.load(source, frame=frame))
    if suffix in picture.SUFFIXES:
        return to_scan(picture.load(source))
    raise _unknown(source, READABLE, "read")


def frame_count(path: str | os.PathLike[str]) -> int:
    """How many volumes a file holds, from its header: time points, or contrasts of one examination.

    Returns
    -------
    int
        1 for formats of which no frame can be chosen.

    Raises
    ------
    CeaseError
        If it is missing, empty or its header damaged.
    """
    source = _existing(path)
    suffix = files.match_suffix(source, READABLE)
    if _is_dicom_source(source):
        return dicom.frame_count(source)
    if suffix not in _SERIES:
        return 1
    return nifti.frame_count(source) if suffix in nifti.SUFFIXES else itk.frame_count(source)


def read_labels(path: str | os.PathLike[str], like: Scan, *, as_stored: bool = False) -> LabelArray:
    """Read a mask and bring it onto a scan's display grid.

    Parameters
    ----------
    path
        The mask's file, or a folder that holds one DICOM segmentation.
    like
        The scan it belongs to.
    as_stored
        Keep the white of a picture of black and white as it is, 255 mostly, for whoever maps ids.

    Returns
    -------
    LabelArray
        Class ids, int32, shape ``like.shape``. A picture of black and white becomes 0 and 1, unless ``as_stored``.

    Raises
    ------
    CeaseError
        If it cannot be read, has another shape, lies more than a hundredth of a voxel elsewhere (a tenth for
        DICOM segmentations, whose slices need not be all there), holds anything but whole numbers from 0, or
        segments that overlap.
    """
    source = _existing(path)
    suffix = files.match_suffix(source, READABLE)
    stored: StoredImage
    if _is_dicom_source(source):
        return dicom_seg.load(_segmentation(source), like)
    if suffix in nifti.SUFFIXES:
        stored = nifti.load(source)
    elif suffix in itk.SUFFIXES:
        stored = itk.load(source)
    elif suffix in picture.SUFFIXES:
        stored = picture.load(source, labels=True, as_stored=as_stored)
    else:
        raise _unknown(source, READABLE, "read")
    return to_labels(stored, like)


def read_own_labels(path: str | os.PathLike[str]) -> tuple[LabelArray, Scan]:
    """Read a DICOM segmentation without the scan that it was drawn on.

    Returns
    -------
    LabelArray, Scan
        Class ids, int32, and an empty scan on the grid that the segmentation describes.

    Raises
    ------
    CeaseError
        If it cannot be read, or its slices lie in no even stack.
    """
    source = _segmentation(_existing(path))
    like = dicom_seg.own_grid(source)
    return dicom_seg.load(source, like), like


def label_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """Names of the classes that a mask's own file gives: those of a DICOM segmentation, none in other formats.

    Raises
    ------
    CeaseError
        If the segmentation cannot be read.
    """
    source = _existing(path)
    return dicom_seg.names(_segmentation(source)) if _is_dicom_source(source) else {}


def write_labels(
    labels: NDArray[Any],
    scan: Scan,
    path: str | os.PathLike[str],
    *,
    classes: Mapping[int, str] | None = None,
    colours: Mapping[int, str] | None = None,
) -> None:
    """Write a mask onto the grid of the file that a scan came from.

    Parameters
    ----------
    labels
        Class ids, shape ``scan.shape``; stored in the smallest unsigned integer type that holds them.
    scan
        The scan they belong to.
    path
        New file, see `WRITABLE_LABELS`; an existing one is replaced once the new one is complete. With ``.dcm`` a
        scan that came from DICOM gets a segmentation (SEG) that refers to its images.
    classes, colours
        Name and colour (``"#RRGGBB"``) of class ids, which DICOM segmentations keep and other formats cannot.

    Raises
    ------
    CeaseError
        If the labels do not fit the scan or the format, or the file cannot be written there.
    """
    ids = check_labels(labels, scan)
    if files.match_suffix(Path(path), (dicom_seg.SUFFIX,)):
        dicom_seg.save(ids, scan, Path(path), classes, colours)
        return
    dtype = np.min_scalar_type(int(ids.max(initial=0)))
    _write(ids[np.newaxis].astype(dtype), scan, Path(path))


def write_scan(image: NDArray[Any], scan: Scan, path: str | os.PathLike[str]) -> None:
    """Write intensities (an adversarial scan, a perturbation) onto the grid that a scan came from.

    Parameters
    ----------
    image
        Intensities in the scan's unit, shape ``(C, *scan.shape)``; stored as float32, except in PNG,
        which rounds them to 8-bit grey levels and refuses what it would clip.
    scan
        Where they lie.
    path
        New file, see `WRITABLE`; an existing one is replaced once the new one is complete.

    Raises
    ------
    CeaseError
        If the shape does not fit the scan, or the file cannot be written there.
    """
    array = np.asarray(image, np.float32)
    if array.ndim != scan.ndim + 1 or array.shape[1:] != scan.shape or not len(array):
        raise CeaseError(
            f"{scan.name}: an image of shape {array.shape} cannot be written for a scan of shape {scan.shape}; "
            "put one channel axis in front of the scan's own axes."
        )
    _write(array, scan, Path(path))


def _write(array: NDArray[Any], scan: Scan, path: Path) -> None:
    for module, suffixes in _WRITERS.items():
        suffix = files.match_suffix(path, suffixes)
        if suffix:
            module.save(array, scan, path, suffix)
            return
    raise _unknown(path, WRITABLE, "written")


def is_segmentation(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a DICOM segmentation, or all DICOM files of a folder are; False for damaged ones."""
    source = Path(path)
    try:
        candidates = dicom.files_in(source) if source.is_dir() else [source] if is_dicom(source) else []
        return bool(candidates) and all(dicom_seg.is_mask(one) for one in candidates)
    except CeaseError:
        return False


def _is_dicom_source(source: Path) -> bool:
    suffix = files.match_suffix(source, READABLE)
    # Archives store slices without a suffix.
    return source.is_dir() or suffix in dicom.SUFFIXES or (suffix is None and is_dicom(source))


def _segmentation(source: Path) -> Path:
    """The file of a segmentation, which may lie in a folder by itself or with other DICOM files."""
    return dicom_seg.find(source, dicom.files_in(source)) if source.is_dir() else source


def _existing(path: str | os.PathLike[str]) -> Path:
    source = Path(path).expanduser()
    try:
        exists = source.exists()
        empty = exists and source.is_file() and source.stat().st_size == 0
    except (OSError, ValueError) as error:
        raise CeaseError(f"{source.name} cannot be reached; check its path and permissions.") from error
    if not exists:
        raise CeaseError(f"{source} does not exist; check the path.")
    if empty:
        raise CeaseError(f"{source.name} is an empty file; copy or export it again.")
    return source


def _unknown(path: Path, suffixes: tuple[str, ...], verb: str) -> CeaseError:
    return CeaseError(
        f"{path.name} cannot be {verb}: its format is not known; use one of {', '.join(suffixes)}"
        f"{' or a folder of DICOM slices' if suffixes is READABLE else ''}."
    )
