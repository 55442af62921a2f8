"""Folders become cases, and the split stays where it was."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from cease_core.data import Case, find_cases, load_case, split_cases
from cease_core.errors import CeaseError

SAMPLES = Path(__file__).parents[2] / "sample_data"


def folder_with(root: Path, images: list[str], labels: list[str], masks: str = "labels") -> Path:
    for kind, names in (("images", images), (masks, labels)):
        (root / kind).mkdir(parents=True)
        for name in names:
            (root / kind / name).touch()
    return root


@pytest.mark.parametrize("masks", ["labels", "masks"])
def test_scans_and_masks_are_matched_by_name(tmp_path: Path, masks: str) -> None:
    root = folder_with(tmp_path, ["b.nii.gz", "a.jpg"], ["a.png", "b.nii.gz", ".DS_Store"], masks)
    cases = find_cases(root)
    assert [c.name for c in cases] == ["a", "b"]
    assert cases[0] == Case("a", root / "images" / "a.jpg", root / masks / "a.png")


def test_names_with_dots_are_told_apart(tmp_path: Path) -> None:
    names = ["1.2.840.17.nii.gz", "1.2.840.18.nii.gz"]
    assert [c.name for c in find_cases(folder_with(tmp_path, names, names))] == ["1.2.840.17", "1.2.840.18"]


@pytest.mark.parametrize(
    "folder", ["nuclei_histology", "hippocampus_mri", "polyp_hyperkvasir", "cardiac_mr_sunnybrook"]
)
def test_the_samples_are_cases(folder: str) -> None:
    cases = find_cases(SAMPLES / folder)
    assert len(cases) == len([p for p in (SAMPLES / folder / "images").iterdir() if not p.name.startswith(".")])
    scan, labels = load_case(cases[0])
    assert labels.shape == scan.shape
    assert labels.dtype == np.int32
    assert labels.any()


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (["a.png", "b.png"], ["a.png"], "b: images/b.png has no partner in labels/; name each mask like its scan"),
        (
            ["a.png"],
            ["b.png"],
            r"2 problems:\n  a: images/a.png has no .*\n  b: labels/b.png has no partner in images/",
        ),
        ([], [], "are empty; put one mask there for each scan"),
        (["a.png", "a.jpg"], ["a.png"], "holds both a.jpg and a.png; keep one file for each case"),
    ],
)
def test_what_does_not_match_is_said(tmp_path: Path, images: list[str], labels: list[str], sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        find_cases(folder_with(tmp_path, images, labels))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    for made in (None, "images"):
        if made:
            (tmp_path / made).mkdir()
        with pytest.raises(CeaseError, match="needs the folders images/ and labels/"):
            find_cases(tmp_path)
    with pytest.raises(CeaseError, match="needs the folders images/ and labels/"):
        find_cases(tmp_path / "nowhere")


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    for kind, source in (
        ("images", "hippocampus_mri/images/hippocampus_001.nii.gz"),
        ("masks", "hippocampus_mri/labels/hippocampus_020.nii.gz"),
    ):
        (tmp_path / kind).mkdir()
        shutil.copy(SAMPLES / source, tmp_path / kind / "case.nii.gz")
    (case,) = find_cases(tmp_path)
    with pytest.raises(CeaseError, match="shape"):
        load_case(case)


def cases(*names: str) -> list[Case]:
    return [Case(n, Path(n), Path(n)) for n in names]


MANY = cases(*(f"case_{i:03d}" for i in range(40)))


def test_the_split_is_a_split() -> None:
    training, validation = split_cases(MANY, 0.2)
    assert len(validation) == 8
    assert sorted(training + validation, key=lambda c: c.name) == MANY
    assert [c.name for c in training] == sorted(c.name for c in training)


def test_the_split_depends_on_the_names_alone() -> None:
    shuffled = MANY.copy()
    random.Random(0).shuffle(shuffled)
    assert split_cases(shuffled, 0.2) == split_cases(MANY, 0.2)
    elsewhere = [Case(c.name, Path("other") / c.name, Path("place")) for c in MANY]
    assert [c.name for c in split_cases(elsewhere, 0.2)[1]] == [c.name for c in split_cases(MANY, 0.2)[1]]


def test_the_split_is_the_same_on_every_machine() -> None:
    # Checkpoints list their cases: another hash would put cases seen in training among the held-out ones.
    assert [c.name for c in split_cases(MANY[:10], 0.3)[1]] == ["case_001", "case_004", "case_009"]


def test_an_added_case_moves_at_most_one_other() -> None:
    for n in range(2, len(MANY)):
        before, after = ({c.name for c in split_cases(MANY[:m], 0.2)[1]} for m in (n, n + 1))
        assert len((before ^ after) - {MANY[n].name}) <= 1


def test_nothing_is_put_aside_unless_asked() -> None:
    assert split_cases(MANY, 0.0) == (MANY, [])
