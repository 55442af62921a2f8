"""Reading scans and masks from files, and writing them back onto the same grid."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.io import dicom, files, itk, nifti, picture
from cease_core.io.dicom import holds_dicom, is_dicom
from cease_core.io.stored import CT_WINDOW, StoredImage, to_labels, to_scan
from cease_core.scan import LabelArray, Scan, check_labels

__all__ = [
    "CT_WINDOW",
    "READABLE",
    "WRITABLE",
    "holds_dicom",
    "is_dicom",
    "read_labels",
    "read_scan",
    "write_labels",
    "write_scan",
]

READABLE = (*nifti.SUFFIXES, *itk.SUFFIXES, *picture.SUFFIXES, *dicom.SUFFIXES)
"""Suffixes that can be read; a folder of DICOM slices and DICOM files of any name can be, too."""

WRITABLE = (*nifti.SUFFIXES, *itk.WRITABLE, *picture.WRITABLE)
"""Suffixes that can be written."""

_WRITERS: dict[ModuleType, tuple[str, ...]] = {
    nifti: nifti.SUFFIXES,
    itk: itk.SUFFIXES,
    picture: picture.SUFFIXES,
}


def read_scan(
    path: str | os.PathLike[str], *, series_uid: str | None = None, volumes_as_channels: bool = False
) -> Scan:
    """Read a scan from a file, or a DICOM series from its folder or one of its slices.

    Parameters
    ----------
    path
        The file or folder; the suffix says the format, see `READABLE`.
    series_uid
        Which DICOM series to take where a folder holds several.
    volumes_as_channels
        Take the fourth axis of a NIfTI file for channels (contrasts of one examination, as in the
        brain tumours of the Medical Segmentation Decathlon); otherwise it is refused as a time series.

    Returns
    -------
    Scan
        Intensities float32 ``(C, *spatial)`` in display order, in HU, 8-bit grey levels or arbitrary
        units, and how to write back onto the file's own grid.

    Raises
    ------
    CeaseError
        If it is missing, damaged, too large, of an unknown format, holds NaN, or is not one scan.
    """
    source = _existing(path)
    suffix = files.match_suffix(source, READABLE)
    if source.is_dir() or suffix in dicom.SUFFIXES:
        return to_scan(dicom.load(source, series_uid))
    if suffix in nifti.SUFFIXES:
        return to_scan(nifti.load(source, volumes_as_channels=volumes_as_channels))
    if suffix in itk.SUFFIXES:
        return to_scan(itk.load(source))
    if suffix in picture.SUFFIXES:
        return to_scan(picture.load(source))
    if is_dicom(source):  # archives store slices without a suffix
        return to_scan(dicom.load(source, series_uid))
    raise _unknown(source, READABLE, "read")


def read_labels(path: str | os.PathLike[str], like: Scan) -> LabelArray:
    """Read a mask and bring it onto a scan's display grid.

    Parameters
    ----------
    path
        The mask's file, of any format but DICOM.
    like
        The scan it belongs to.

    Returns
    -------
    LabelArray
        Class ids, int32, shape ``like.shape``. A picture of black and white becomes 0 and 1.

    Raises
    ------
    CeaseError
        If it cannot be read, has another shape, lies more than a hundredth of a voxel elsewhere, or
        holds anything but whole numbers from 0.
    """
    source = _existing(path)
    suffix = files.match_suffix(source, READABLE)
    stored: StoredImage
    if source.is_dir() or suffix in dicom.SUFFIXES or (suffix is None and is_dicom(source)):
        raise CeaseError(
            f"{source.name}: masks in DICOM (SEG, RTSTRUCT) are not supported; convert them to NIfTI or NRRD."
        )
    if suffix in nifti.SUFFIXES:
        stored = nifti.load(source)
    elif suffix in itk.SUFFIXES:
        stored = itk.load(source)
    elif suffix in picture.SUFFIXES:
        stored = picture.load(source, labels=True)
    else:
        raise _unknown(source, READABLE, "read")
    return to_labels(stored, like)


def write_labels(labels: NDArray[Any], scan: Scan, path: str | os.PathLike[str]) -> None:
    """Write a mask onto the grid of the file that a scan came from.

    Parameters
    ----------
    labels
        Class ids, shape ``scan.shape``; stored in the smallest unsigned integer type that holds them.
    scan
        The scan they belong to.
    path
        New file, see `WRITABLE`; an existing one is replaced once the new one is complete.

    Raises
    ------
    CeaseError
        If the labels do not fit the scan or the format, or the file cannot be written there.
    """
    ids = check_labels(labels, scan)
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
