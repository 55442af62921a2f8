"""No patient is on two sides, and the sides depend on the patients' names alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cease_core.data import (
    Case,
    Split,
    folds,
    patient_of,
    read_split,
    split,
    split_cases,
    with_patients,
    write_split,
)
from cease_core.errors import CeaseError

SLICES = r"^(p\d+)_"


def cases(*names: str) -> list[Case]:
    return [Case(n, Path(n), Path(n)) for n in names]


MANY = cases(*(f"case_{i:03d}" for i in range(40)))
STACKS = cases(*(f"p{patient:02d}_{z}" for patient in range(20) for z in range(1 + patient % 3)))


def names(kept: tuple[Case, ...]) -> list[str]:
    return [c.name for c in kept]


def patients(kept: tuple[Case, ...]) -> set[str]:
    return {c.patient for c in kept}


def assert_is_a_split(sides: Split, of: list[Case]) -> None:
    kept = [c for side in sides.sides.values() for c in side]
    assert sorted(c.name for c in kept) == sorted(c.name for c in of)
    assert sum(len(patients(side)) for side in sides.sides.values()) == len({c.patient for c in kept})
    assert all(names(side) == sorted(names(side)) for side in sides.sides.values())


def test_a_patient_is_named_by_the_group_of_a_pattern() -> None:
    assert patient_of("scd_01_slice_3") == "scd_01_slice_3"
    assert patient_of("scd_01_slice_3", r"^(scd_\d+)") == "scd_01"
    assert Case("a", Path("a"), Path("a")).patient == "a"


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(", "is no regular expression"),
        ("a{99999999999999999999}(b)", "is no regular expression"),
        ("scd", "has 0 groups"),
        ("(s)(c)", "has 2 groups"),
        ("^(x)", "finds no patient in the case scd_01"),
        ("(x?)", "finds no patient in the case scd_01"),
    ],
)
def test_a_pattern_that_finds_no_patient_is_refused(pattern: str, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        patient_of("scd_01", pattern)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5])
def test_without_a_test_the_split_is_that_of_split_cases(share: float) -> None:
    sides = split(MANY, validation=share)
    assert split_cases(MANY, share) == (list(sides.training), list(sides.validation))
    assert sides.test == ()


def test_test_and_validation_are_shares_of_all_patients() -> None:
    sides = split(MANY, validation=0.1, test=0.2)
    assert [len(side) for side in sides.sides.values()] == [28, 4, 8]
    assert_is_a_split(sides, MANY)


def test_what_is_tested_does_not_depend_on_the_validation() -> None:
    assert split(MANY, validation=0.1, test=0.2).test == split(MANY, validation=0.3, test=0.2).test


def test_a_patient_stays_on_one_side() -> None:
    sides = split(STACKS, validation=0.2, test=0.3, pattern=SLICES)
    assert [len(patients(side)) for side in sides.sides.values()] == [10, 4, 6]
    assert_is_a_split(sides, STACKS)
    known = with_patients(STACKS, SLICES)
    assert split(known, validation=0.2, test=0.3) == sides
    training, validation = split_cases(known, 0.2)
    assert not {c.patient for c in training} & {c.patient for c in validation}


def test_order_does_not_matter() -> None:
    shuffled = STACKS.copy()
    random.Random(0).shuffle(shuffled)
    assert split(shuffled, validation=0.2, test=0.2) == split(STACKS, validation=0.2, test=0.2)
    assert folds(shuffled, 5, 2, pattern=SLICES) == folds(STACKS, 5, 2, pattern=SLICES)


def test_an_added_patient_moves_at_most_one_other_across_each_border() -> None:
    for n in range(3, len(MANY)):
        before, after = (split(MANY[:m], validation=0.2, test=0.3) for m in (n, n + 1))
        stayed = {c.name for c in MANY[:n]}
        for side in ("training", "validation", "test"):
            gone = set(names(before.sides[side])) ^ set(names(after.sides[side])) & stayed
            assert len(gone) <= 2


@pytest.mark.parametrize("test", [0.0, 0.2])
def test_folds_cover_all_that_is_not_tested_once(test: float) -> None:
    every = [folds(STACKS, 5, i, test=test, pattern=SLICES) for i in range(5)]
    for fold in every:
        assert_is_a_split(fold, STACKS)
        assert fold.test == every[0].test == split(STACKS, validation=0, test=test, pattern=SLICES).test
    validated = sorted(name for fold in every for name in names(fold.validation))
    assert validated == sorted({c.name for c in STACKS} - set(names(every[0].test)))
    assert {len(patients(fold.validation)) for fold in every} <= {3, 4}


def test_the_first_of_five_folds_is_a_fifth() -> None:
    assert folds(MANY, 5, 0) == split(MANY, validation=0.2)


@pytest.mark.parametrize(
    ("validation", "test", "sentence"),
    [
        (-0.1, 0, "validation = -0.1 is no share"),
        (1.0, 0, "validation = 1.0 is no share"),
        (float("nan"), 0, "validation = nan is no share"),
        (0.1, 1.5, "test = 1.5 is no share"),
        (0.5, 0.5, "leave nothing to train on"),
    ],
)
def test_shares_that_are_none_are_refused(validation: float, test: float, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        split(MANY, validation=validation, test=test)


@pytest.mark.parametrize(
    ("count", "fold", "sentence"),
    [(1, 0, "1 folds do not fit 40 patients"), (41, 0, "41 folds do not fit"), (5, 5, "no fold 5 of 5"), (5, -1, "-1")],
)
def test_folds_that_do_not_exist_are_refused(count: int, fold: int, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        folds(MANY, count, fold)


def test_a_written_split_is_read_back(tmp_path: Path) -> None:
    sides = split(STACKS, validation=0.2, test=0.2, pattern=SLICES)
    path = tmp_path / "split.json"
    write_split(path, sides, dataset="stacks", pattern=SLICES)
    assert read_split(path, STACKS) == sides
    assert read_split(path, [*STACKS, *cases("p99_0")]) == sides
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["test"] == names(sides.test)
    assert (content["dataset"], content["patients"]) == ("stacks", SLICES)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"training": ["a"], "validation": ["x", "y"]},
            r"names cases that the data set does not have \(2, for example x\)",
        ),
        ({"training": ["a_1"], "validation": ["a_1"]}, "has a_1 on two sides, training and validation"),
        ({"training": ["a_1"], "validation": [], "test": ["a_2"], "patients": "^(.)"}, "has a on two sides"),
        ({"training": ["a"]}, "validation: Field required; correct that entry"),
        ({"training": "a", "validation": []}, "training: Input should be a valid tuple"),
        (["a"], "the whole file: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_split_file_is_said(tmp_path: Path, content: object, sentence: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CeaseError, match=sentence):
        read_split(path, cases("a", "a_1", "a_2"))


def test_a_missing_or_damaged_split_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match=r"cannot read .*split.json: No such file"):
        read_split(tmp_path / "split.json", MANY)
    (tmp_path / "split.json").write_text('{"training": [', encoding="utf-8")
    with pytest.raises(CeaseError, match=r"split.json is not valid JSON"):
        read_split(tmp_path / "split.json", MANY)
