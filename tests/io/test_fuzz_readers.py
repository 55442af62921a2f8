"""Damage that nobody thought of: whatever becomes of a file, it is read soundly or refused in one sentence.

The same examples in every run; ``benchmarks/fuzz.py`` draws many more, in processes that may die.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import tiny_dicom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cease_core.data import inspect
from cease_core.errors import CeaseError
from cease_core.io import frame_count, read_labels, read_scan
from cease_core.scan import Scan

# What the libraries find unusual in a header is no matter here.
pytestmark = pytest.mark.filterwarnings("ignore")

BRAIN = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16)
COLOURS = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
AFFINE = np.diag([0.8, 0.9, 1.1, 1.0])

LENGTHS = st.sampled_from(
    [0, 1, 2, 7, 127, 255, 4096, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
)
WORDS = st.sampled_from(
    ["", "0", "-1", "nan", "1e300", "9" * 900, "99999999999", "a\x00b", "%s%n", "../x", "1 2 3", "é"]
)

some = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def faults(draw: st.DrawFn, content: bytes) -> bytes:
    """The content cut, with flipped bits, a length in place of what was there, or a piece of itself elsewhere."""
    at = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["cut", "flip", "flip", "number", "number", "splice"]))
    if kind == "cut":
        return content[:at] or b"\x00"
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    if kind == "number":
        size = draw(st.sampled_from([1, 2, 4, 8]))
        number = (draw(LENGTHS) % 256**size).to_bytes(size, draw(st.sampled_from(["little", "big"])))
        return content[:at] + number + content[at + size :]
    other = draw(st.integers(0, len(content) - 1))
    return content[:at] + content[other : other + 16] + content[at:]


def nifti(path: Path) -> None:
    nib.save(nib.Nifti1Image(BRAIN, AFFINE), path)


def second_nifti(path: Path) -> None:
    nib.save(nib.Nifti2Image(BRAIN.astype(np.float32), AFFINE), path)


def itk(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(BRAIN), str(path), useCompression=path.name.startswith("packed"))


def picture(path: Path) -> None:
    Image.fromarray(COLOURS).save(path)


def stack(path: Path) -> None:
    tifffile.imwrite(path, BRAIN.astype(np.uint16), photometric="minisblack", compression="zlib")


def several(path: Path) -> None:
    def name(header: Any) -> None:
        header.StudyInstanceUID = header.SeriesInstanceUID = header.FrameOfReferenceUID = "1.2.3"
        header.SOPInstanceUID = "1.2.3.4"

    tiny_dicom.frames(path, tiny_dicom.noise((3, 6, 5)), tiny_dicom.positions(3), change=name)


SEEDS: dict[str, Callable[[Path], None]] = {
    "scan.nii": nifti,
    "second.nii": second_nifti,
    "scan.nrrd": itk,
    "scan.mha": itk,
    "packed.mha": itk,
    "scan.png": picture,
    "scan.jpg": picture,
    "scan.tif": stack,
    "scan.dcm": several,
}


def sound(read: Callable[[], Scan]) -> None:
    """What is read has numbers and a place, or is refused in one line."""
    try:
        scan = read()
    except CeaseError as error:
        said = str(error)
    else:
        assert np.isfinite(scan.image).all()
        assert abs(np.linalg.det(scan.affine)) > 0
        return
    assert len(said) < 1000
    assert said.isprintable()


def first(path: Path) -> Scan:
    """The scan, or the first one of a series."""
    return read_scan(path, frame=0 if frame_count(path) > 1 else None)


@pytest.mark.parametrize("name", SEEDS)
def test_damaged_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    SEEDS[name](path)
    whole = path.read_bytes()
    assert first(path).image.size in (BRAIN.size, COLOURS.size, 90)

    @some
    @given(faults(whole))
    def damage(content: bytes) -> None:
        path.write_bytes(content)
        sound(lambda: first(path))

    damage()


@some
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 40, 42, 44, 46, 48, 50, 70, 72, 108, 112, 123, 252, 254, 280, 344]), LENGTHS),
        min_size=1,
        max_size=3,
    )
)
def test_fields_of_a_gzipped_nifti(tmp_path: Path, fields: list[tuple[int, int]]) -> None:
    """The checksum is right, so the damage reaches the header."""
    path = tmp_path / "scan.nii.gz"
    nifti(path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    for at, number in fields:
        content[at : at + 2] = struct.pack("<H", number % 2**16)
    path.write_bytes(gzip.compress(content))
    sound(lambda: first(path))


@pytest.mark.parametrize("name", ["scan.mha", "packed.mha", "scan.nrrd"])
def test_fields_of_a_text_header(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    itk(path)
    lines = path.read_bytes().split(b"\n")
    mark = b": " if name.endswith("nrrd") else b" = "
    named = [i for i, line in enumerate(lines[:14]) if mark in line]

    @some
    @given(st.sampled_from(named), WORDS)
    def damage(at: int, word: str) -> None:
        changed = [*lines]
        changed[at] = changed[at].partition(mark)[0] + mark + word.encode()
        path.write_bytes(b"\n".join(changed))
        sound(lambda: first(path))

    damage()


@pytest.mark.parametrize(
    "header",
    [
        "NDims = 4096",
        "NDims = -1",
        "NDims = 1e300",
        "ElementDataFile = %s%n",
        "CompressedData = True\nCompressedDataSize = 1099511627776",
        "DimSize = 70000 70000 2",
        "DimSize = 6 5 0",
    ],
)
def test_meta_images_on_which_itk_itself_crashes_or_swells(header: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.mha"
    itk(path)
    head, last, voxels = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    keys = [line.split(" = ")[0].encode() for line in header.split("\n")]
    kept = [line for line in head.split(b"\n") if line.split(b" = ")[0] not in keys]
    ending = b"" if b"ElementDataFile" in keys else last
    path.write_bytes(b"\n".join([*kept[:-1], header.encode(), ending]) + voxels)
    with pytest.raises(CeaseError, match=r"scan\.mha"):
        first(path)


@pytest.mark.parametrize("field", ["sizes", "kinds", "endian", "unheard of"])
def test_fields_of_an_nrrd_that_are_longer_than_any(field: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.nrrd"
    itk(path)
    head, blank, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head + b"\n" + field.encode() + b": " + b"9" * 5000 + blank + voxels)
    with pytest.raises(CeaseError, match="could not be read as NRRD"):
        first(path)


def test_long_notes_of_an_nrrd_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "scan.nrrd"
    itk(path)
    head, blank, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head + b"\n# " + b"a" * 5000 + b"\nsegments:=" + b"b" * 5000 + blank + voxels)
    np.testing.assert_array_equal(np.sort(first(path).image.ravel()), np.sort(BRAIN.ravel()))


def test_a_png_that_claims_more_than_it_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    picture(path)
    content = path.read_bytes()
    chunk = b"IHDR" + struct.pack(">II", 12_000, 12_000) + content[24:29]
    path.write_bytes(content[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:])
    with pytest.raises(CeaseError, match="is cut short"):
        read_scan(path)


@some
@given(faults(gzip.compress(bytes(400))), st.sampled_from(["mask.nii.gz", "mask.png", "mask.dcm", "mask.nrrd"]))
def test_masks_of_nothing_in_particular(tmp_path: Path, content: bytes, name: str) -> None:
    like = Scan(np.zeros((1, 4, 6, 5), np.float32), AFFINE)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CeaseError) as caught:
        read_labels(tmp_path / name, like)
    assert str(caught.value).isprintable()


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.sampled_from(["labels", "modality", "channel_names", "file_ending", "training", "name"])


@some
@given(st.dictionaries(ENTRIES, TREES, min_size=1))
def test_descriptions_of_data_sets(tmp_path: Path, changes: dict[str, object]) -> None:
    known = {
        "labels": {"background": 0, "liver": 1},
        "modality": {"0": "CT"},
        "training": [{"image": "a.nii.gz", "label": "b.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(known | changes))
    findings_or_sentence(tmp_path)


@some
@given(faults(b'image,labels,map,split\na.nii.gz,b.nii.gz,"1=1,2=1",test\n'), st.sampled_from(["csv", "tsv", "jsonl"]))
def test_lists_of_cases(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"list.{suffix}"
    path.write_bytes(content)
    findings_or_sentence(path)


@pytest.mark.parametrize("depth", [500, 100_000])
def test_nesting_without_end(depth: int, tmp_path: Path) -> None:
    for name, opened in (("dataset.json", tmp_path), ("list.jsonl", tmp_path / "list.jsonl")):
        (tmp_path / name).write_text('{"labels": ' + "[" * depth + "]" * depth + "}")
        findings_or_sentence(opened)


def findings_or_sentence(path: Path) -> None:
    try:
        _, findings = inspect(path)
    except CeaseError as error:
        said = [str(error)]
    else:
        said = [finding.message for finding in findings]
    assert all("\n" not in one for one in said)
