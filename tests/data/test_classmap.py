"""Masks in the wild count their classes in many ways; a class map says what is meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cease_core.data import Cached, Case, ClassMap, describe, load_case, read_mask, with_classes
from cease_core.errors import CeaseError
from cease_core.io import read_scan


def case(folder: Path, *ids: int, suffix: str = ".nii.gz") -> Case:
    """A scan whose mask holds 0 and these ids, one for each of its first pixels."""
    mask = np.zeros((6, 7), np.int32)
    mask.flat[: len(ids)] = ids
    image = np.arange(42).reshape(6, 7)
    paths = [folder / f"{kind}{suffix}" for kind in ("image", "mask")]
    for path, values in zip(paths, (image, mask), strict=True):
        if suffix == ".nii.gz":
            nib.save(nib.Nifti1Image(values.astype(np.int32), np.eye(4)), path)
        else:
            Image.fromarray(values.astype(np.uint8)).save(path)
    return Case("a", *paths)


def held(case: Case, cache: Cached | None = None) -> list[int]:
    return np.unique(load_case(case, cache)[1]).tolist()


@pytest.mark.parametrize(
    ("ids", "written", "classes"),
    [
        ((255,), "255=1", [0, 1]),
        ((1, 2, 4), "1=1,2=2,4=3", [0, 1, 2, 3]),  # BraTS, its three parts
        ((1, 2, 4), "1=1,2=1,4=1", [0, 1]),  # BraTS, the whole tumour
        ((85, 170, 255), "85=1,170=2,255=3", [0, 1, 2, 3]),  # grey levels, as ACDC and others are exported
        ((5, 10, 117), "5=1,*=0", [0, 1]),  # one organ of TotalSegmentator
        ((3, 100_000_000), "3=2,100000000=1", [0, 1, 2]),
        ((1,), "1=0,0=1", [0, 1]),  # an inverted mask
    ],
)
def test_ids_become_classes(tmp_path: Path, ids: tuple[int, ...], written: str, classes: list[int]) -> None:
    plain = case(tmp_path, *ids)
    mapped = ClassMap.read(written)
    (with_map,) = with_classes([plain], mapped)
    assert held(plain) == sorted({0, *ids})
    assert held(with_map) == classes
    labels = load_case(with_map)[1]
    assert labels.dtype == np.int32
    targets = {0: 0} | dict(mapped.pairs)
    fallback = mapped.others or 0
    assert labels.tolist() == [[targets.get(i, fallback) for i in row] for row in load_case(plain)[1].tolist()]


def test_an_id_that_nobody_mentioned_is_an_error_until_it_is_dropped(tmp_path: Path) -> None:
    plain = case(tmp_path, 1, 2, 4)
    with pytest.raises(CeaseError, match=r"mask.nii.gz holds the ids 2, 4, which the class map 1=1 .*; add 2=0,4=0 to"):
        load_case(replace(plain, classes=ClassMap.read("1=1")))
    assert held(replace(plain, classes=ClassMap.read("1=1,2=0,4=0"))) == [0, 1]
    assert held(replace(plain, classes=ClassMap.read("1=1,*=0"))) == [0, 1]


def test_a_picture_of_black_and_white_is_mapped_by_the_values_in_its_file(tmp_path: Path) -> None:
    plain = case(tmp_path, 255, suffix=".png")
    assert held(plain) == [0, 1]
    assert held(replace(plain, classes=ClassMap.read("85=1,255=3"))) == [0, 3]


def test_a_single_mask_is_mapped_as_those_of_a_data_set(tmp_path: Path) -> None:
    plain = case(tmp_path, 1, 4)
    scan = read_scan(plain.image)
    assert np.array_equal(read_mask(plain.labels, scan), load_case(plain)[1])
    classes = ClassMap.read("1=1,4=2")
    assert np.array_equal(read_mask(plain.labels, scan, classes), load_case(replace(plain, classes=classes))[1])


def test_the_cache_tells_maps_apart(tmp_path: Path) -> None:
    plain, cache = case(tmp_path, 1, 4), Cached(tmp_path / "cache")
    one, two = (replace(plain, classes=ClassMap.read(written)) for written in ("1=1,4=1", "1=1,4=2"))
    for _ in range(2):
        assert [held(c, cache) for c in (plain, one, two)] == [[0, 1, 4], [0, 1], [0, 1, 2]]
    assert len(list(cache.folder.iterdir())) == 3


def test_a_folder_is_read_with_a_map_and_keeps_its_names(tmp_path: Path) -> None:
    for kind, value in (("images", 7), ("labels", 0)):
        (tmp_path / kind).mkdir()
        pixels = np.full((4, 5), value, np.uint8)
        pixels[0, :3] = (1, 2, 4)
        Image.fromarray(pixels).save(tmp_path / kind / "a.png")
    (tmp_path / "classes.json").write_text('{"1": "core", "2": "oedema", "4": "enhancing"}')
    assert describe(tmp_path).classes == {1: "core", 2: "oedema", 4: "enhancing"}
    found = describe(tmp_path, ClassMap.read("1=1,4=1,2=2"))
    assert found.classes == {1: "core + enhancing", 2: "oedema"}
    assert held(found.cases[0]) == [0, 1, 2]
    (tmp_path / "classes.json").write_text('{"1": "lesion"}')  # names of the classes, not of the ids
    assert describe(tmp_path, ClassMap.read("2=1,4=1,1=0")).classes == {}
    assert describe(tmp_path, ClassMap.read("2=1,4=1,*=0")).classes == {1: "lesion"}


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("4=2, 1=1,2=1", "1=1,2=1,4=2"),
        ("255 = 1 ; *=0", "255=1,*=0"),
        ({1: 1, 2: 1}, "1=1,2=1"),
        ({"1": "1", "*": 0}, "1=1,*=0"),
        ("007=1,7=1", "7=1"),
    ],
)
def test_it_is_written_in_one_way(written: Any, text: str) -> None:
    classes = ClassMap.read(written)
    assert str(classes) == text
    assert ClassMap.read(text) == classes == ClassMap.read(classes)
    assert hash(classes) == hash(ClassMap.read(text))


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("1:1", "--classes: '1:1' is not understood; write id=class, as in 1=1,2=1,4=2"),
        ("1=-1", "'1=-1' is not understood"),
        ("1=1.5", "'1=1.5' is not understood"),
        ("1=*", "is not understood"),
        ("9999999999=1", "'9999999999=1' is not understood"),
        ("1=1,2=1,1=2", "1 becomes both 1 and 2; give each id one class"),
        ("", "maps nothing"),
        ([1, 2], r"\[1, 2\] maps nothing"),
        ({True: 1}, "'True=1' is not understood"),
    ],
)
def test_what_is_no_map_is_said(written: Any, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        ClassMap.read(written)
