"""NRRD and MetaImage (SimpleITK)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.io import files
from cease_core.io.stored import LPS_TO_RAS, StoredImage, guess_unit
from cease_core.scan import Affine, Scan

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
WRITABLE = (".nrrd", ".mha")
"""Formats of one file: a header with a separate data file cannot be replaced in one step."""


def load(path: Path) -> StoredImage:
    """Read an NRRD or MetaImage file.

    Raises
    ------
    CeaseError
        If it is damaged, too large, complex or a series of volumes.
    """
    with files.reading(path, "NRRD or MetaImage"):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        size = tuple(int(n) for n in reader.GetSize())
        channels = int(reader.GetNumberOfComponents())
        complex_valued = "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID())
    files.check_size(path.name, (*size, channels))
    spatial = list(size)
    while len(spatial) > 2 and spatial[-1] == 1:
        spatial.pop()
    if len(spatial) not in (2, 3) or complex_valued:
        what = "complex numbers" if complex_valued else f"a series of volumes (shape {size})"
        raise CeaseError(f"{path.name} holds {what}; save the one volume you want by itself and open that.")
    with files.reading(path, "NRRD or MetaImage"):
        image = reader.Execute()
        # ITK arrays run z, y, x and end in the components.
        voxels = sitk.GetArrayFromImage(image)
    integer = voxels.dtype.kind in "iu"
    array = voxels.reshape(*size[::-1], channels).T.reshape(channels, *spatial)
    return StoredImage(
        array=np.asarray(array, np.float32),
        affine=_affine(image),
        name=files.stem(path, SUFFIXES),
        path=path,
        unit=guess_unit(array, integer=integer),
        metadata={"format": "ITK", "shape": list(size)},
    )


def save(array: NDArray[Any], scan: Scan, path: Path, suffix: str) -> None:
    """Write ``(C, *spatial)`` in display order as one NRRD or MHA file on the scan's stored grid."""
    if suffix not in WRITABLE:
        raise CeaseError(
            f"{path.name} was not written: {suffix} keeps its voxels in a second file; choose .nrrd or .mha."
        )
    stored = np.stack([scan.layout.to_file(channel) for channel in array])
    shape = _shape(scan)
    volume = stored.reshape(len(array), *shape).T  # z, y, x, component
    vector = len(array) > 1
    affine = LPS_TO_RAS @ scan.file_affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    n = len(shape)

    def write(part: Path) -> None:
        image = sitk.GetImageFromArray(np.ascontiguousarray(volume if vector else volume[..., 0]), isVector=vector)
        image.SetSpacing([float(s) for s in spacing[:n]])
        image.SetOrigin([float(t) for t in affine[:n, 3]])
        image.SetDirection([float(d) for d in (affine[:3, :3] / spacing)[:n, :n].ravel()])
        sitk.WriteImage(image, str(part), useCompression=True)

    files.write_atomically(path, suffix, write)


def _shape(scan: Scan) -> tuple[int, ...]:
    """Shape to write: two axes only if the scan was read from such a file, else always three."""
    known = scan.metadata.get("shape") if scan.metadata.get("format") == "ITK" else None
    if known and tuple(known) == scan.file_shape:
        return scan.file_shape
    return (*scan.file_shape, 1)[:3]


def _affine(image: Any) -> Affine:
    n = min(image.GetDimension(), 3)
    full = image.GetDimension()
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (full, full))[:n, :n]
    affine[:n, :n] = direction * image.GetSpacing()[:n]
    affine[:n, 3] = image.GetOrigin()[:n]
    return LPS_TO_RAS @ affine
