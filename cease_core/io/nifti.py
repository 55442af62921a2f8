"""NIfTI-1 and -2, single file, plain or gzipped (nibabel)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.io import files, stored
from cease_core.io.stored import StoredImage, decode, guess_unit
from cease_core.scan import Affine, Scan

SUFFIXES = (".nii", ".nii.gz")

# Everything a header says about place and size. Copied as stored: a trip through quaternions or
# through sform alone would come back changed in the last digits, or with one of the two lost.
_GEOMETRY = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip

_MILLIMETRES = {"meter": 1e3, "micron": 1e-3}


def frame_count(path: Path) -> int:
    """Volumes of a NIfTI file, from its header.

    Raises
    ------
    CeaseError
        If the header is damaged.
    """
    shape = tuple(int(n) for n in _open(path).shape)
    return math.prod(shape[len(_spatial(shape)) :])


def load(path: Path, *, frame: int | None = None, volumes_as_channels: bool = False) -> StoredImage:
    """Read a NIfTI file.

    Parameters
    ----------
    path
        The ``.nii`` or ``.nii.gz`` file.
    frame
        Which volume of a time series to take, from 0.
    volumes_as_channels
        Take the fourth axis for contrasts of one examination instead of refusing it as a time series, unless a
        ``frame`` is chosen.

    Raises
    ------
    CeaseError
        If it is damaged, too large, a time series of which no frame is chosen, a vector field, coloured or complex.
    """
    file = _open(path)
    header = file.header
    stored_type = header.get_data_dtype()
    shape = tuple(int(n) for n in file.shape)
    spatial = _check_shape(path.name, shape, header)
    if stored_type.kind not in "iufb":
        kind = "complex numbers" if stored_type.kind == "c" else "colours"
        raise CeaseError(
            f"{path.name} holds {kind}, which are no scan intensities; "
            "save its magnitude (or a colour picture as PNG) and open that."
        )
    frames = math.prod(shape[len(spatial) :])
    chosen = range(frames)
    if frame is not None or not volumes_as_channels:
        chosen = range(*files.check_frame(path.name, frame, frames))
    files.check_size(path.name, (*spatial, len(chosen)))
    files.check_holds(path, math.prod(shape) * stored_type.itemsize, compressed=_is_gzip(path))
    scale = _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    with np.errstate(invalid="ignore", over="ignore"):  # `decode` refuses what is no place
        affine = np.diag([scale, scale, scale, 1.0]) @ np.asarray(file.affine, float)
    integer = stored_type.kind in "iu"
    mapped = _mapped(path, file, spatial)
    if mapped is None:
        with files.reading(path, "NIfTI"):
            array = decode(_slabs(file, spatial, chosen), len(chosen), spatial, affine, path.name)
    else:
        array = mapped[chosen.start : chosen.stop]
    name = files.stem(path, SUFFIXES)
    geometry: dict[str, Any] = {key: np.asarray(header[key]).tolist() for key in _GEOMETRY}
    metadata = {"format": "NIfTI", "shape": list(shape), "affine": affine.tolist(), "header": geometry}
    if frame is not None and frames > 1:
        name, metadata = files.frame_name(name, frame), metadata | {"frame": frame, "frames": frames}
    return StoredImage(
        array=array,
        affine=affine,
        name=name,
        path=path,
        unit=guess_unit(array, integer=integer),
        mapped=mapped is not None,
        metadata=metadata,
    )


def save(array: NDArray[Any], scan: Scan, path: Path, suffix: str) -> None:
    """Write ``(C, *spatial)`` in display order onto the grid of the file that ``scan`` came from.

    From a NIfTI scan the file keeps shape, affine and both form codes; from any other the same
    voxels get their RAS affine, and a single slice a third axis of length one.
    """
    turned = np.moveaxis(scan.layout.with_channels.to_file(array), 0, -1)

    def write(part: Path) -> None:
        header, shape = _original(scan) or _fresh(scan)
        if len(array) > 1:
            shape = (*(*shape, 1, 1)[:3], len(array))
        header.set_data_dtype(turned.dtype)
        header.set_data_shape(shape)
        nib.save(nib.Nifti1Image(turned.reshape(shape), header.get_best_affine(), header), part)

    files.write_atomically(path, suffix, write)


def _is_gzip(path: Path) -> bool:
    return files.match_suffix(path, SUFFIXES) == ".nii.gz"


def _open(path: Path) -> Any:
    """The file with its header read and checked, its voxels not yet."""
    with files.reading(path, "NIfTI"):
        # Kept open: a compressed file that is read in pieces would else be decoded from its start for each of them.
        file = nib.load(path, mmap=False, keep_file_open=True)
        if not isinstance(file, nib.Nifti1Pair):
            raise TypeError(type(file))
        file.header.get_data_dtype()
        file.header.get_xyzt_units()
    if min(file.shape, default=0) <= 0:
        files.check_size(path.name, file.shape)
    return file


def _mapped(path: Path, file: Any, spatial: tuple[int, ...]) -> NDArray[np.float32] | None:
    """All volumes ``(volumes, *spatial)`` as a view of the file, if it is large and holds plain float32."""
    plain = file.dataobj.slope == 1 and file.dataobj.inter == 0 and file.header.get_data_dtype() == np.float32
    if _is_gzip(path) or not plain:
        return None
    shape = tuple(int(n) for n in file.shape)
    if 4 * math.prod(shape) < stored.MAP_ABOVE:
        return None
    with files.reading(path, "NIfTI"):
        voxels = np.memmap(path, np.float32, mode="r", offset=file.dataobj.offset, shape=shape, order="F")
    return np.moveaxis(np.asarray(voxels).reshape(*spatial, -1, order="F"), -1, 0)


def _slabs(file: Any, spatial: tuple[int, ...], volumes: range) -> Iterator[tuple[tuple[Any, ...], NDArray[Any]]]:
    """The scaled voxels of some volumes, in the file's order."""
    trailing = tuple(int(n) for n in file.shape[len(spatial) :])
    whole = (slice(None),) * (len(spatial) - 1)
    for channel, volume in enumerate(volumes):
        index = tuple(int(i) for i in np.unravel_index(volume, trailing, order="F")) if trailing else ()
        for part in stored.slabs_of(spatial, 8):
            yield (channel, *whole, part), file.dataobj[(*whole, part, *index)]


def _spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The two or three spatial sizes, once axes of length one at the end and those of a series are set aside."""
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return tuple(kept[: 2 if len(kept) > 3 and kept[2] == 1 else 3])


def _check_shape(name: str, shape: tuple[int, ...], header: Any) -> tuple[int, ...]:
    """The spatial sizes of one intensity a voxel."""
    spatial = _spatial(shape)
    intent = header.get_intent()[0]
    if math.prod(shape[len(spatial) :]) > 1 and intent not in ("none", ""):
        raise CeaseError(
            f"{name} holds {intent} values (shape {shape}), not one intensity a voxel; "
            "open the scan that it was computed from."
        )
    if len(spatial) < 2:
        raise CeaseError(f"{name}: a scan has two or three axes, got shape {shape}; open another file.")
    return spatial


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
