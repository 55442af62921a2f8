"""A CSV or JSONL file lists the cases of a data set, wherever they lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cease_core.data import Case, ClassMap, describe, find_cases, folds, inspect, load_case, place_of, split
from cease_core.errors import CeaseError

WORDS = ('"', ",", "\n", ";", "{", "}", "[", ":", '"image"', '"labels"', '"map"', "1=1", "null", "true", "/", ".")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scans ``p1/t1.nii``, ``p1/t2.nii`` and so on, each patient's with a mask of the ids 1 and 4."""
    rng = np.random.default_rng(0)
    for patient in ("p1", "p2", "p3"):
        (tmp_path / patient).mkdir()
        for contrast in ("t1", "t2"):
            voxels = rng.random((4, 5, 6)).astype(np.float32)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / patient / f"{contrast}.nii")
        ids = rng.choice([0, 1, 4], (4, 5, 6)).astype(np.int16)
        nib.save(nib.Nifti1Image(ids, np.eye(4)), tmp_path / patient / f"{patient}_mask.nii")
    return tmp_path


Write = Callable[..., Path]


@pytest.fixture
def write(folder: Path) -> Write:
    def write(*lines: str | dict[str, Any], name: str = "cases.csv") -> Path:
        path = folder / name
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    return write


def problems(path: Path) -> list[str]:
    """What is wrong, a line each."""
    return [str(finding) for finding in inspect(path)[1]]


def test_a_table_lists_cases_beside_it_or_anywhere(folder: Path, write: Write) -> None:
    path = write("image,labels,name", "p2/t1.nii,p2/p2_mask.nii,b", f"{folder}/p1/t1.nii,{folder}/p1/p1_mask.nii,a")
    found = describe(path)
    assert (found.name, found.layout, found.classes) == ("cases", "list", {})
    assert found.cases == (
        Case("a", folder / "p1" / "t1.nii", folder / "p1" / "p1_mask.nii"),
        Case("b", folder / "p2" / "t1.nii", folder / "p2" / "p2_mask.nii"),
    )
    scan, labels = load_case(found.cases[1])
    assert labels.shape == scan.shape


def test_a_data_set_has_one_place(folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert place_of("cases.csv") == folder.resolve() / "cases.csv"
    assert place_of("p1/dataset.json") == place_of("p1") == folder.resolve() / "p1"


def test_names_are_those_of_the_images_unless_given(write: Write) -> None:
    assert [c.name for c in find_cases(write("image,labels", "p1/t1.nii,p1/p1_mask.nii"))] == ["t1"]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_cells_are_divided_as_spreadsheets_do(write: Write, mark: str) -> None:
    lines = [mark.join(cells) for cells in (("\ufeffImage", "Labels"), ('"p1/t1.nii"', " p1/p1_mask.nii "))]
    assert [c.name for c in find_cases(write(*lines, "", mark))] == ["t1"]


def test_a_case_may_have_channels_a_patient_a_side_and_a_class_map(folder: Path, write: Write) -> None:
    table = write(
        "image,image_2,labels,name,patient,split,map",
        'p1/t1.nii,p1/t2.nii,p1/p1_mask.nii,a,Ann,train,"1=1,4=2"',
        "p2/t1.nii,p2/t2.nii,p2/p2_mask.nii,b,Bob,test,1=1 4=1",
    )
    lines = write(
        {
            "image": ["p1/t1.nii", "p1/t2.nii"],
            "labels": "p1/p1_mask.nii",
            "name": "a",
            "patient": "Ann",
            "split": "training",
            "map": {"1": 1, "4": 2},
        },
        {
            "image": ["p2/t1.nii", "p2/t2.nii"],
            "labels": "p2/p2_mask.nii",
            "name": "b",
            "patient": "Bob",
            "split": "test",
            "map": "1=1,4=1",
        },
        name="cases.jsonl",
    )
    found = describe(table)
    assert found == describe(lines)
    a, b = found.cases
    assert (a.patient, a.side, a.further) == ("Ann", "training", (folder / "p1" / "t2.nii",))
    assert (load_case(a)[0].channels, np.unique(load_case(a)[1]).tolist()) == (2, [0, 1, 2])
    assert np.unique(load_case(b)[1]).tolist() == [0, 1]
    for mapped in describe(table, ClassMap.read("1=0,4=1")).cases:
        assert str(mapped.classes) == "1=0,4=1"


def test_classes_may_be_named_beside_the_list(folder: Path, write: Write) -> None:
    (folder / "classes.json").write_text('{"1": "liver"}', encoding="utf-8")
    assert describe(write("image,labels", "p1/t1.nii,p1/p1_mask.nii")).classes == {1: "liver"}


def rows(*sides: str) -> list[str]:
    return [f"p{i}/t1.nii,p{i}/p{i}_mask.nii,c{i},{side}" for i, side in enumerate(sides, start=1)]


def test_the_split_of_a_list_is_kept(write: Write) -> None:
    cases = find_cases(write("image,labels,name,split", *rows("val", "test", "Train")))
    sides = split(cases, validation=0.9)
    assert {side: [c.name for c in kept] for side, kept in sides.sides.items()} == {
        "training": ["c3"],
        "validation": ["c1"],
        "test": ["c2"],
    }
    with pytest.raises(CeaseError, match="says which side each is on; leave out the folds, or its column split"):
        folds(cases, 2, 0)


def test_a_patient_found_by_a_pattern_stays_on_one_side(write: Write) -> None:
    cases = find_cases(write("image,labels,name,split", *rows("val", "test", "train")))
    with pytest.raises(CeaseError, match="c is on two sides of the split, validation and test; keep all cases"):
        split(cases, validation=0.1, pattern="^(c)")


def test_all_problems_are_told_with_their_lines(folder: Path, write: Write) -> None:
    path = write(
        "image,labels,name,patient,split,map",
        "p1/t1.nii,p1/p1_mask.nii,a,Ann,test,",
        "p2/none.nii,p2/p2_mask.nii,b,Bob,test,",
        "p2/t1.nii,,c,Bob,test,",
        "p3/t1.nii,p3/p3_mask.nii,a,Ann,train,",
        "p3/t1.nii,p3/p3_mask.nii,d,Cleo,other,x",
        "p3/t1.nii,p3/p3_mask.nii",
        '"p3/t2.nii",p3/p3_mask.nii,../d,Cleo,train,',
    )
    assert problems(path) == [
        "line 3: image 'p2/none.nii' does not exist; correct the path, which counts from the list's folder.",
        "line 4: labels is empty; fill it in.",
        "line 5: the name a is that of line 2, too; give each case its own in name.",
        "line 5: patient Ann is on the side training, but in line 2 on test; keep a patient on one side.",
        "line 6: split is 'other'; write training, validation or test.",
        "line 6: map: 'x' is not understood; write id=class, as in 1=1,2=1,4=2 or 255=1,*=0.",
        "line 7: it has 2 cells, but the header has 6; correct the line.",
        "line 8: the name '../d' cannot be part of a file's name; give another one in name.",
    ]
    with pytest.raises(CeaseError, match=r"cases.csv has 8 problems:\n  line 3: image"):
        describe(path)
    assert [c.name for c in inspect(path)[0].cases] == ["a"]


def test_a_split_of_some_cases_is_one_problem(write: Write) -> None:
    (problem,) = problems(write("image,labels,name,split", *rows("train", "", "")))
    assert problem == "line 3: 2 of the 3 cases have no split; give all of them one, or none."


def test_an_image_stays_on_one_side_however_its_path_is_written(folder: Path, write: Write) -> None:
    (folder / "again.nii").symlink_to(folder / "p1" / "t1.nii")
    told = problems(
        write(
            "image,labels,name,split",
            "p1/t1.nii,p1/p1_mask.nii,a,train",
            "p2/../p1/t1.nii,p1/p1_mask.nii,b,test",
            "again.nii,p1/p1_mask.nii,c,val",
            "./p1/t1.nii,p1/p1_mask.nii,d,train",
        )
    )
    assert told == [
        f"line {line}: image {image} is on the side {side}, but in line 2 on training; keep an image on one side."
        for line, image, side in ((3, "p2/../p1/t1.nii", "test"), (4, "again.nii", "validation"))
    ]


def test_names_that_differ_in_capitals_only_are_one_name_on_many_disks(write: Write) -> None:
    (problem,) = problems(write("image,labels,name", "p1/t1.nii,p1/p1_mask.nii,Ann", "p2/t1.nii,p2/p2_mask.nii,ann"))
    assert problem == (
        "line 3: the name ann is Ann of line 2 but for small and capital letters, which many disks do not tell apart; "
        "give another one in name."
    )


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("image,mask", ["the column labels is missing", "there is no column 'mask'; rename or remove it"]),
        ("image,labels,labels", ["the column labels is there 2 times; keep one"]),
        ("image,labels,image_3", ["the columns of further channels leave one out; number them image_2, image_3"]),
        ("image,labels,image_1", ["there is no column 'image_1'"]),
    ],
)
def test_columns_that_are_wrong_are_told_once(write: Write, header: str, expected: list[str]) -> None:
    told = problems(write(header, "a,b", "c,d"))
    assert len(told) == len(expected)
    assert all(line.startswith(f"line 1: {start}") for line, start in zip(told, expected, strict=True))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "it is no valid JSON; write an object such as"),
        ("[" * 100_000, "it is no valid JSON"),
        ("[1]", "it is no JSON object"),
        ('{"image": "a"}', "the column labels is missing"),
        ('{"image": [], "labels": "b"}', "'image' is of another kind; write text or a list of texts"),
        ('{"image": "a", "labels": 1}', "'labels' is of another kind; write text"),
        ('{"image": "a", "labels": "b", "colour": "c"}', "there is no column 'colour'"),
        (r'{"image": "\ud800", "labels": "b"}', r"image '\ud800' does not exist"),
        ('{"image": "a\\u0000", "labels": "b"}', r"image 'a\x00' does not exist"),
    ],
)
def test_a_line_that_is_wrong_is_told(write: Write, line: str, problem: str) -> None:
    told = problems(write(line, name="cases.jsonl"))
    assert told[0].startswith(f"line 1: {problem}")
    "\n".join(told).encode()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "lists no cases; write one a line, with the columns image and labels"),
        (b"image,labels\n", "lists no cases"),
        (b"\xff\xfe\x00", "is not UTF-8 text; save it as CSV in UTF-8"),
        (b'image,labels\n"a', "line 2: it is no valid CSV"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes(content)
    with pytest.raises(CeaseError, match=sentence):
        describe(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "\x00", "\ud800", "9" * 5000]) | st.text(max_size=5), max_size=20))
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_any_text_is_read_or_refused_in_words(tmp_path: Path, suffix: str, parts: list[str]) -> None:
    path = tmp_path / f"cases{suffix}"
    path.write_bytes(("image,labels,map\n" * (suffix == ".csv") + "".join(parts)).encode(errors="surrogatepass"))
    try:
        told = [str(finding) for finding in inspect(path)[1]]
    except CeaseError as error:
        told = [str(error)]
    assert all(line.encode() and line.endswith(".") for line in told)


def test_a_list_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match=r"cannot read .*cases.csv: No such file"):
        describe(tmp_path / "cases.csv")
