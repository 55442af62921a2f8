"""NRRD and MetaImage (SimpleITK)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.io import files, stored
from cease_core.io.stored import LPS_TO_RAS, StoredImage, decode, guess_unit
from cease_core.scan import Affine, Scan

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
WRITABLE = (".nrrd", ".mha")
"""Formats of one file: a header with a separate data file cannot be replaced in one step."""


_TYPES = {
    "8-bit signed integer": "i1", "8-bit unsigned integer": "u1", "16-bit signed integer": "i2",
    "16-bit unsigned integer": "u2", "32-bit signed integer": "i4", "32-bit unsigned integer": "u4",
    "64-bit signed integer": "i8", "64-bit unsigned integer": "u8", "32-bit float": "f4", "64-bit float": "f8",
}  # fmt: skip

_HEADER_BYTES = 2**16
"""Longest header that is searched for its end."""

_AS_TEXT = ("ascii", "text", "txt")

_AXES = rb"\s*0*([1-9]|10)\s*"
"""How many a MetaImage may announce: where it is more, ITK 5.4 writes past the end of its lists."""

_NAMED = rb"[^%]*(%0?\d?d)?[^%]*"
"""The name of a MetaImage's data, or a pattern with one number in it, which ITK 5.4 gives to printf as it is."""

_LONGEST_FIELD = 500
"""Letters of a field in an NRRD header, of which ITK 5.4 writes those it does not understand into a short message."""


def frame_count(path: Path) -> int:
    """Volumes of an NRRD or MetaImage file, from its header.

    Raises
    ------
    CeaseError
        If the header is damaged.
    """
    return math.prod(_kept(_header(path).GetSize())[3:])


def load(path: Path, *, frame: int | None = None) -> StoredImage:
    """Read an NRRD or MetaImage file.

    Parameters
    ----------
    frame
        Which volume of a time series, a fourth axis, to take, from 0.

    Raises
    ------
    CeaseError
        If it is damaged, too large, complex or a series of volumes of which no frame is chosen.
    """
    reader = _header(path)
    size = tuple(int(n) for n in reader.GetSize())
    channels = int(reader.GetNumberOfComponents())
    kept = _kept(size)
    spatial = _kept(kept[:3])
    complex_valued = "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if len(kept) not in (2, 3, 4) or complex_valued:
        what = "complex numbers" if complex_valued else f"several series of volumes (shape {size})"
        raise CeaseError(f"{path.name} holds {what}; save the one volume you want by itself and open that.")
    frames = math.prod(kept[3:])
    files.check_size(path.name, (*spatial, channels))
    first, _ = files.check_frame(path.name, frame, frames)
    voxels = _mapped(path, reader, size, channels)
    if voxels is None:
        image = _read(path, reader, size, first if frames > 1 else None)  # as long as it lives, so does the view
        voxels = sitk.GetArrayViewFromImage(image)
    elif frames > 1:
        voxels = voxels[..., first, :, :, :, :]
    # ITK arrays run z, y, x and end in the components.
    array = voxels.reshape(-1, *spatial[::-1], channels)[0].T
    integer = voxels.dtype.kind in "iu"
    affine = _affine(reader)
    kept_in_file = isinstance(voxels, np.memmap) and voxels.dtype == np.float32
    if kept_in_file:
        array = np.asarray(array)
    else:
        parts = (((..., part), array[..., part]) for part in stored.slabs_of(array.shape, array.itemsize))
        with files.reading(path, "NRRD or MetaImage"):
            array = decode(parts, channels, spatial, affine, path.name)
    name = files.stem(path, SUFFIXES)
    metadata: dict[str, Any] = {"format": "ITK", "shape": list(size[:3] if frames > 1 else size)}
    if frame is not None and frames > 1:
        name, metadata = files.frame_name(name, frame), metadata | {"frame": frame, "frames": frames}
    return StoredImage(
        array=array,
        affine=affine,
        name=name,
        path=path,
        unit=guess_unit(array, integer=integer),
        mapped=kept_in_file,
        metadata=metadata,
    )


def _header(path: Path) -> Any:
    """ITK's reader with the header read, and the voxels not yet."""
    with files.reading(path, "NRRD or MetaImage"):
        _check_head(path)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    size = tuple(int(n) for n in reader.GetSize())
    if min(size) <= 0:
        files.check_size(path.name, size)
    _check_holds(path, size, reader)
    return reader


def _check_head(path: Path) -> None:
    """Refuse headers that ITK does not survive: it checks neither numbers of axes, lengths of fields nor patterns."""
    head = _head(path)
    if head.startswith(b"NRRD"):
        for line in head.partition(b"\n\n")[0].splitlines():
            if len(line) > _LONGEST_FIELD and not line.startswith((b"#", b"content:")) and b":=" not in line:
                raise ValueError(line[:40])
        return
    for written in re.findall(rb"NDims\s*=([^\n]*)", head):
        if not re.fullmatch(_AXES, written):
            raise ValueError(written)
    for written in re.findall(rb"ElementDataFile([^\n]*)", head):
        if not re.fullmatch(_NAMED, written):
            raise ValueError(written)


def _check_holds(path: Path, size: tuple[int, ...], reader: Any) -> None:
    """Refuse a file that is too short for its header, which ITK finds out after it has made room for the voxels."""
    head = _head(path)
    fields = _nrrd_fields(head) if head.startswith(b"NRRD") else _meta_fields(head)
    named = fields.get("datafile") or fields.get("ElementDataFile") or "LOCAL"
    data = path if named.upper() == "LOCAL" else path.parent / named
    with files.reading(path, "NRRD or MetaImage"):
        if not data.is_file():  # a pattern or a list of files, or one that is missing: ITK says so
            return
        if int(fields.get("CompressedDataSize", "0")) not in range(data.stat().st_size + 1):
            raise ValueError(fields["CompressedDataSize"])
    encoding = fields.get("encoding", "raw").lower()
    compressed = fields.get("CompressedData", "").lower() == "true" or encoding not in ("raw", "hex", *_AS_TEXT)
    kind = _TYPES.get(sitk.GetPixelIDValueAsString(reader.GetPixelID()).removeprefix("vector of "), "f8")
    text = encoding in _AS_TEXT or _as_text(fields)
    whole = (*size, int(reader.GetNumberOfComponents()))
    if compressed:
        files.check_size(path.name, whole)  # all of it is unpacked, whichever frame is wanted
    files.check_holds(data, (1 if text else np.dtype(kind).itemsize) * math.prod(whole), compressed=compressed)


def _head(path: Path) -> bytes:
    with files.reading(path, "NRRD or MetaImage"), path.open("rb") as file:
        return file.read(_HEADER_BYTES)


def _kept(size: Sequence[int]) -> tuple[int, ...]:
    """The sizes without axes of length one at the end."""
    kept = list(size)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def _read(path: Path, reader: Any, size: tuple[int, ...], frame: int | None) -> Any:
    """ITK's image of the file, or of one volume of a series."""
    with files.reading(path, "NRRD or MetaImage"):
        if frame is not None:
            if _as_text(_meta_fields(_head(path))):
                raise CeaseError(f"{path.name} is a series written out as text; convert it to a binary file.")
            rest = len(size) - 4
            reader.SetExtractIndex([0, 0, 0, frame, *[0] * rest])
            reader.SetExtractSize([*size[:3], 0, *[0] * rest])
        return reader.Execute()


def _mapped(path: Path, reader: Any, size: tuple[int, ...], channels: int) -> NDArray[Any] | None:
    """A view of the voxels in the file, in ITK's order, if it is large and they follow its header as they are."""
    kind = _TYPES.get(sitk.GetPixelIDValueAsString(reader.GetPixelID()).removeprefix("vector of "))
    if kind is None or np.dtype(kind).itemsize * math.prod(size) * channels < stored.MAP_ABOVE:
        return None
    with files.reading(path, "NRRD or MetaImage"):
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
        found = _raw_nrrd(head) if head.startswith(b"NRRD") else _raw_meta(head)
        # ITK moves a channel axis of NRRD to where it wants it.
        if found is None or (head.startswith(b"NRRD") and channels > 1):
            return None
        offset, order = found
        dtype = np.dtype(order + kind)
        if offset + dtype.itemsize * math.prod(size) * channels != path.stat().st_size:
            return None
        return np.memmap(path, dtype, mode="r", offset=offset, shape=(*size[::-1], channels))


def _raw_nrrd(head: bytes) -> tuple[int, str] | None:
    """Where the voxels of an NRRD file begin and their order of bytes, unless they are encoded or elsewhere."""
    text, blank, _ = head.partition(b"\n\n")
    fields = _nrrd_fields(head)
    if not blank or fields.get("encoding", "").lower() != "raw" or fields.keys() & {"datafile", "lineskip", "byteskip"}:
        return None
    return len(text) + len(blank), ">" if fields.get("endian", "").lower() == "big" else "<"


def _raw_meta(head: bytes) -> tuple[int, str] | None:
    """The same for a MetaImage file."""
    text, last, rest = head.partition(b"ElementDataFile")
    value, end, _ = rest.partition(b"\n")
    fields = {key: entry.lower() for key, entry in _meta_fields(head).items()}
    if not end or value.strip(b" =\r") != b"LOCAL" or fields.get("CompressedData") == "true" or "HeaderSize" in fields:
        return None
    big = "true" in (fields.get("BinaryDataByteOrderMSB"), fields.get("ElementByteOrderMSB"))
    return len(text) + len(last) + len(value) + len(end), ">" if big else "<"


def _nrrd_fields(head: bytes) -> dict[str, str]:
    """Fields of an NRRD header, their names without blanks and in small letters."""
    text = head.partition(b"\n\n")[0].decode("utf-8", "replace")
    lines = [line.split(":", 1) for line in text.splitlines() if ": " in line]
    return {key.replace(" ", "").lower(): value.strip() for key, value in lines}


def _meta_fields(head: bytes) -> dict[str, str]:
    """Fields of a MetaImage header, up to the one that says where the voxels are."""
    before, last, rest = head.partition(b"ElementDataFile")
    text = (before + last + rest.partition(b"\n")[0]).decode("utf-8", "replace")
    return {
        key.strip(): value.strip() for key, value in (line.split("=", 1) for line in text.splitlines() if "=" in line)
    }


def _as_text(fields: Mapping[str, str]) -> bool:
    """Whether a MetaImage's voxels are numbers written out, of which ITK 5.4 puts all where there is room for some."""
    return fields.get("BinaryData", "T")[:1] not in ("T", "t", "1")


def save(array: NDArray[Any], scan: Scan, path: Path, suffix: str) -> None:
    """Write ``(C, *spatial)`` in display order as one NRRD or MHA file on the scan's stored grid."""
    if suffix not in WRITABLE:
        raise CeaseError(
            f"{path.name} was not written: {suffix} keeps its voxels in a second file; choose .nrrd or .mha."
        )
    turned = scan.layout.with_channels.to_file(array)
    shape = _shape(scan)
    volume = turned.reshape(len(array), *shape).T  # z, y, x, component
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
