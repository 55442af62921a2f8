"""Several frames in one DICOM file: Enhanced CT and MR, their legacy conversions, scintigrams, films.

Where the frames lie is read from the functional groups (PS3.3 C.7.6.16), shared and per frame; pixels are
decoded by highdicom with the rescaling of each frame.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import highdicom as hd
import numpy as np
import pydicom
from pydicom.filereader import read_partial
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.tag import Tag

from cease_core.errors import CeaseError
from cease_core.io import files
from cease_core.io.dicom_stack import Plane, plane, readable
from cease_core.scan import FloatArray

# Where each value lies in a functional group.
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "StackID": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameType": "MRImageFrameTypeSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
}

# What tells volumes of one file apart, and how it is called in the list of them.
_DIFFERENCES = {
    "StackID": "stack",
    "ImageOrientationPatient": "direction",
    "TemporalPositionIndex": "time point",
    "FrameType": "type",
    "EffectiveEchoTime": "echo time",
    "DiffusionBValue": "b-value",
}

_UNDEFINED = 0xFFFFFFFF
"""Length of an element that says itself where it ends."""

_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)

_NUMBERS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated")

_MOST_FRAMES = 2**18
"""Ten times what a perfusion of a whole organ or the masks of a hundred organs hold."""

_LISTED = 8
"""Volumes that a message lists by name; a perfusion holds hundreds."""


class Volume(NamedTuple):
    """Frames of one file that lie behind each other, and what tells them from the others."""

    title: str
    planes: list[Plane]


def count(header: Any) -> int:
    """How many frames a header announces, one where it says nothing."""
    return int(header.get("NumberOfFrames") or 1)


def is_colour(header: Any) -> bool:
    return int(header.get("SamplesPerPixel") or 1) > 1 or header.get("PhotometricInterpretation") == "PALETTE COLOR"


def check_numbers(header: Any) -> None:
    """Convert every value of a header, and let whatever is wrong with one be raised here."""
    for element in header:
        if element.keyword in _NUMBERS and element.value is not None:
            int(element.value)


def check_pixels(path: Path, header: Any) -> None:
    """Refuse what a header announces, before anything is allocated.

    Raises
    ------
    CeaseError
        If it announces no pixel, more frames than are opened, or more pixels than the file holds.
    """
    with files.reading(path, "DICOM"):
        shape = (int(header.Columns), int(header.Rows))
        number = count(header)
        bits = int(header.BitsAllocated) * int(header.get("SamplesPerPixel") or 1)
        syntax = header.file_meta.TransferSyntaxUID
        compressed, deflated = bool(syntax.is_compressed), bool(syntax.is_deflated)
    files.check_size(path.name, shape)
    if not 0 < number <= _MOST_FRAMES:
        raise CeaseError(
            f"{path.name} announces {number} frames, where 1 to {_MOST_FRAMES} are read; export it again in parts."
        )
    if not compressed:
        files.check_holds(path, number * shape[0] * shape[1] * bits // 8, compressed=deflated)
    if not deflated:
        _check_lengths(path)


def _check_lengths(path: Path) -> None:
    """Refuse an element that is longer than its file: GDCM sets that much memory aside before it looks."""
    size = path.stat().st_size

    def stop(tag: Any, _: str | None, length: int) -> bool:
        if length == _UNDEFINED:
            return int(tag) in _PIXELS
        if length > size:
            raise ValueError(length)
        return False

    with files.reading(path, "DICOM"), path.open("rb") as file:
        read_partial(file, stop_when=stop, specific_tags=[Tag("SOPClassUID")])


def read_header(path: Path) -> Any:
    """The whole header of a file of several frames, checked against the file's size.

    Raises
    ------
    CeaseError
        If it is damaged, or announces more than the file holds.
    """
    with files.reading(path, "DICOM"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        check_numbers(header)
    check_pixels(path, header)
    return header


def planes(path: Path, header: Any) -> list[Plane]:
    """Every frame of a file, in its order.

    Raises
    ------
    CeaseError
        If the functional groups are damaged.
    """
    values = functional_groups(path, header, _GROUPS)
    with files.reading(path, "DICOM"):
        size = (int(header.Columns), int(header.Rows))
    return [plane(path, number, size, one) for number, one in enumerate(values, start=1)]


def volumes(path: Path, header: Any) -> list[Volume]:
    """Sort the frames of a file into volumes: stacks, time points, echoes, b-values, types of image.

    Raises
    ------
    CeaseError
        If the functional groups are damaged, or the volumes cannot be told apart.
    """
    values = functional_groups(path, header, _GROUPS)
    with files.reading(path, "DICOM"):
        keys = _keys(values)
    told = [index for index in range(len(_DIFFERENCES)) if len({key[index] for key in keys}) > 1]
    groups: dict[tuple[Hashable, ...], list[Plane]] = defaultdict(list)
    for key, one in zip(keys, planes(path, header), strict=True):
        groups[tuple(key[index] for index in told)].append(one)
    names = [list(_DIFFERENCES.values())[index] for index in told]
    found = []
    for key, members in groups.items():
        title = ", ".join(f"{name} {_readable(value)}" for name, value in zip(names, key, strict=True))
        found += _repeats(title, members, path)
    return found


def parts(path: Path, header: Any) -> list[Volume]:
    """What a file offers to choose from: its volumes, or every frame of a film or of colours by itself.

    Raises
    ------
    CeaseError
        If the functional groups are damaged, or the volumes cannot be told apart.
    """
    every = planes(path, header)
    if is_colour(header) or any(p.position is None or p.directions is None for p in every):
        return [Volume("", [one]) for one in every]
    return volumes(path, header)


def choose(path: Path, header: Any, frame: int | None) -> tuple[list[Plane], int]:
    """The frames of the only volume in a file, or of the one that ``frame`` counts to, from 0.

    Frames without a place (a film) and those in colours are pictures: ``frame`` picks one of them.

    Returns
    -------
    planes, count
        Of the choice, and among how many it was.

    Raises
    ------
    CeaseError
        If there is a choice and none was made, or there is no such volume or frame.
    """
    found = parts(path, header)
    if frame is None and len(found) > 1:
        what = "volumes" if found[0].title else "pictures (a film, or frames without a place)"
        listing = "; ".join(f"{k}: {v.title}, {len(v.planes)} slices" for k, v in enumerate(found[:_LISTED]) if v.title)
        rest = "; …" if listing and len(found) > _LISTED else ""
        raise CeaseError(
            f"{path.name} holds {len(found)} {what}{f' ({listing}{rest})' if listing else ''}; "
            f"choose one with frame=0 to frame={len(found) - 1} (--frame on the command line)."
        )
    first, _ = files.check_frame(path.name, frame, len(found))
    return found[first].planes, len(found)


def pixels(path: Path, numbers: Sequence[int]) -> Iterator[FloatArray]:
    """Frames of grey one by one, each (columns, rows) and rescaled by its own slope and intercept.

    Parameters
    ----------
    numbers
        Of the frames, from 1, in the order wanted.
    """
    with _decoding(path):
        image = hd.imread(path)
    for number in numbers:
        with _decoding(path):
            frame = image.get_frame(
                number, dtype=np.float32, apply_real_world_transform=False, apply_presentation_lut=False
            )
        yield frame.T


def colours(path: Path, number: int) -> FloatArray:
    """One frame (3, columns, rows) in 8-bit red, green and blue."""
    with _decoding(path):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        frame = pixel_array(path, index=number - 1)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            frame = apply_color_lut(frame, header)
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(frame.shape)
        return (frame / (257.0 if frame.dtype.itemsize > 1 else 1.0)).transpose(2, 1, 0).astype(np.float32)


def functional_groups(path: Path, header: Any, wanted: Mapping[str, str]) -> list[dict[str, Any]]:
    """Values of every frame, its own where it has them and the shared ones elsewhere.

    Parameters
    ----------
    wanted
        The sequence in which each keyword lies.

    Returns
    -------
    list of dict
        One a frame: keyword to value, None where there is none. Without functional groups what the
        header says of all frames stands for each, moved on by the spacing between slices.

    Raises
    ------
    CeaseError
        If there are more or fewer groups than frames.
    """
    with files.reading(path, "DICOM"):
        own = header.get("PerFrameFunctionalGroupsSequence")
        if not own:
            return _without_groups(header)
        shared = (header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
        if len(own) != count(header):
            raise ValueError(len(own))
        return [{key: _found(key, group, one, shared) for key, group in wanted.items()} for one in own]


def _found(keyword: str, group: str, *places: Any) -> Any:
    for place in places:
        items = place.get(group)
        if items and keyword in items[0]:
            return items[0].get(keyword)
    return None


def _without_groups(header: Any) -> list[dict[str, Any]]:
    number = count(header)
    detector = (header.get("DetectorInformationSequence") or [pydicom.Dataset()])[0]
    common = {
        key: header.get(key) if header.get(key) is not None else detector.get(key)
        for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
    }
    gap = header.get("SpacingBetweenSlices")
    if number == 1 or gap is None or None in (common["ImagePositionPatient"], common["ImageOrientationPatient"]):
        return [common] * number
    first = np.array([float(v) for v in common["ImagePositionPatient"]])
    row, column = np.reshape([float(v) for v in common["ImageOrientationPatient"]], (2, 3))
    # Gated scintigrams say of each frame which slice it is.
    at = [int(k) - 1 for k in np.atleast_1d(header.get("SliceVector") or np.arange(1, number + 1))]
    if len(at) != number:
        raise ValueError(at)
    normal = np.cross(row, column) * float(gap)
    return [common | {"ImagePositionPatient": list(first + k * normal)} for k in at]


def _keys(values: Sequence[Mapping[str, Any]]) -> list[tuple[Hashable, ...]]:
    """What may tell each frame's volume from others; directions that differ by rounding alone are one."""
    directions: list[Any] = []
    keys = []
    for one in values:
        key: dict[str, Hashable] = {name: _comparable(one.get(name)) for name in _DIFFERENCES}
        own = one.get("ImageOrientationPatient")
        if own is not None:
            numbers = np.array([float(v) for v in own])
            alike = [
                k for k, d in enumerate(directions) if d.shape == numbers.shape and np.allclose(d, numbers, atol=1e-3)
            ]
            if not alike:
                directions.append(numbers)
            key["ImageOrientationPatient"] = alike[0] if alike else len(directions) - 1
        keys.append(tuple(key.values()))
    return keys


def _comparable(value: Any) -> Hashable:
    if value is None or isinstance(value, str):
        return value
    return tuple(str(v) for v in value) if isinstance(value, Sequence) else float(value)


def _readable(value: Hashable) -> str:
    if isinstance(value, tuple):
        return readable("/".join(str(v) for v in value))
    return f"{value:g}" if isinstance(value, float) else readable(value, "?")


def _repeats(title: str, members: Sequence[Plane], path: Path) -> list[Volume]:
    """Frames that nothing but their order tells apart: the k-th at each place makes the k-th volume."""
    seen: Counter[Hashable] = Counter()
    found: dict[int, list[Plane]] = defaultdict(list)
    for one in members:
        place = one.position and tuple(round(v, 3) for v in one.position)
        found[seen[place]].append(one)
        seen[place] += 1
    if len(set(seen.values())) > 1:
        raise CeaseError(
            f"{path.name} is incomplete: some places hold {max(seen.values())} frames, others {min(seen.values())}; "
            "export it again, or convert it to NIfTI (dcm2niix) and open that."
        )
    if len(found) == 1:
        return [Volume(title or "all frames", list(members))]
    return [Volume(", ".join(filter(None, [title, f"repeat {k}"])), frames) for k, frames in found.items()]


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """As `files.reading`, and a sentence of its own for a compression without a decoder."""
    with files.reading(path, "DICOM"):
        syntax = pydicom.dcmread(path, specific_tags=[], stop_before_pixels=True).file_meta.TransferSyntaxUID
        if syntax.is_compressed and not get_decoder(syntax).is_available:
            raise CeaseError(
                f"{path.name} is compressed as {syntax.name}, which several frames in one file cannot be decoded "
                "from here; decompress it first (gdcmconv --raw or dcmdjpeg) and open that."
            )
        yield
