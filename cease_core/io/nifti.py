"""NIfTI-1 and -2, single file, plain or gzipped (nibabel)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.io import files
from cease_core.io.stored import StoredImage, guess_unit
from cease_core.scan import Affine, Scan

SUFFIXES = (".nii", ".nii.gz")

# Everything a header says about place and size. Copied as stored: a trip through quaternions or
# through sform alone would come back changed in the last digits, or with one of the two lost.
_GEOMETRY = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip

_MILLIMETRES = {"meter": 1e3, "micron": 1e-3}


def load(path: Path, *, volumes_as_channels: bool = False) -> StoredImage:
    """Read a NIfTI file.

    Parameters
    ----------
    path
        The ``.nii`` or ``.nii.gz`` file.
    volumes_as_channels
        Take the fourth axis for contrasts of one examination instead of refusing it as a time series.

    Raises
    ------
    CeaseError
        If it is damaged, too large, a time series, a vector field, coloured or complex.
    """
    with files.reading(path, "NIfTI"):
        file = nib.load(path, mmap=False)
        if not isinstance(file, nib.Nifti1Pair):
            raise TypeError(type(file))
        header = file.header
        stored_type = header.get_data_dtype()
    shape = tuple(int(n) for n in file.shape)
    spatial = _check_shape(path.name, shape, header, volumes_as_channels)
    if stored_type.kind not in "iufb":
        kind = "complex numbers" if stored_type.kind == "c" else "colours"
        raise CeaseError(
            f"{path.name} holds {kind}, which are no scan intensities; "
            "save its magnitude (or a colour picture as PNG) and open that."
        )
    files.check_size(path.name, shape)
    files.check_holds(path, int(np.prod(shape, dtype=np.int64)) * stored_type.itemsize, compressed=_is_gzip(path))
    with files.reading(path, "NIfTI"), np.errstate(over="ignore", invalid="ignore"):
        voxels = np.asarray(file.dataobj, np.float32)
    array = voxels.reshape(*spatial, -1)
    scale = _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    affine = np.diag([scale, scale, scale, 1.0]) @ np.asarray(file.affine, float)
    geometry: dict[str, Any] = {key: np.asarray(header[key]).tolist() for key in _GEOMETRY}
    return StoredImage(
        array=np.moveaxis(array, -1, 0),
        affine=affine,
        name=files.stem(path, SUFFIXES),
        path=path,
        unit=guess_unit(array, integer=stored_type.kind in "iu"),
        metadata={"format": "NIfTI", "shape": list(shape), "affine": affine.tolist(), "header": geometry},
    )


def save(array: NDArray[Any], scan: Scan, path: Path, suffix: str) -> None:
    """Write ``(C, *spatial)`` in display order onto the grid of the file that ``scan`` came from.

    From a NIfTI scan the file keeps shape, affine and both form codes; from any other the same
    voxels get their RAS affine, and a single slice a third axis of length one.
    """
    stored = np.stack([scan.layout.to_file(channel) for channel in array], axis=-1)

    def write(part: Path) -> None:
        header, shape = _original(scan) or _fresh(scan)
        if len(array) > 1:
            shape = (*(*shape, 1, 1)[:3], len(array))
        header.set_data_dtype(stored.dtype)
        header.set_data_shape(shape)
        nib.save(nib.Nifti1Image(stored.reshape(shape), header.get_best_affine(), header), part)

    files.write_atomically(path, suffix, write)


def _is_gzip(path: Path) -> bool:
    return files.match_suffix(path, SUFFIXES) == ".nii.gz"


def _check_shape(name: str, shape: tuple[int, ...], header: Any, volumes_as_channels: bool) -> tuple[int, ...]:
    """The two or three spatial sizes, once axes of length one at the end are set aside."""
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    if len(kept) > 3:
        intent = header.get_intent()[0]
        if intent not in ("none", ""):
            raise CeaseError(
                f"{name} holds {intent} values (shape {shape}), not one intensity a voxel; "
                "open the scan that it was computed from."
            )
        if not (volumes_as_channels and len(kept) == 4):
            raise CeaseError(
                f"{name} is a series of {int(np.prod(kept[3:]))} volumes (shape {shape}); "
                "save the one you want as a file of its own and open that."
            )
        return tuple(kept[: 2 if kept[2] == 1 else 3])
    if len(kept) < 2:
        raise CeaseError(f"{name}: a scan has two or three axes, got shape {shape}; open another file.")
    return tuple(kept)


def _original(scan: Scan) -> tuple[Any, tuple[int, ...]] | None:
    """The header and shape of the NIfTI file behind a scan, unless the scan was moved or cropped since."""
    saved = scan.metadata
    if saved.get("format") != "NIfTI":
        return None
    shape = tuple(saved["shape"])
    if shape[: scan.ndim] != scan.file_shape or not np.allclose(_place(scan), saved["affine"], atol=1e-4):
        return None
    header = nib.Nifti1Header()
    header.set_data_shape(shape)  # the pixel sizes and units below refer to it
    for key, value in saved["header"].items():
        header[key] = value
    spatial = shape if int(np.prod(shape[scan.ndim :])) == 1 else shape[:3]
    return header, spatial


def _place(scan: Scan) -> Affine:
    """The scan's affine in its file's order, without the third axis that a bare slice was given."""
    affine = scan.file_affine
    saved = np.asarray(scan.metadata["affine"])
    if scan.ndim == 2:
        affine[:3, 2] = saved[:3, 2]
    return affine


def _fresh(scan: Scan) -> tuple[Any, tuple[int, ...]]:
    header = nib.Nifti1Header()
    header.set_data_shape((*scan.file_shape, 1)[:3])
    header.set_sform(scan.file_affine, code=1)
    header.set_qform(scan.file_affine, code=1)
    if scan.length_unit == "mm":
        header.set_xyzt_units("mm")
    return header, (*scan.file_shape, 1)[:3]
