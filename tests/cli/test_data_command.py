"""`cease data`: what it shows, what it writes, and how it ends."""

from __future__ import annotations

import _thread
import json
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from PIL import Image

import cease_core.cli.data as command
from cease_core.data import Case, find_cases, read_split
from cease_core.data.survey import Facts, Unreadable

from .conftest import SAMPLES, Cease

POLYPS = SAMPLES / "polyp_hyperkvasir"
HEARTS = SAMPLES / "heart_mr_hvsmr2"


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    folder = shutil.copytree(POLYPS, tmp_path / "polyps")
    case = find_cases(folder)[0]
    case.image.write_bytes(b"no picture")
    return folder


def test_a_data_set_is_described(cease: Cease) -> None:
    said = cease("data", HEARTS)
    assert (said.code, said.err) == (0, "")
    count = len(find_cases(HEARTS))
    assert "heart_mr_hvsmr2 (images/ and labels/)" in said.out
    lines = [line.split() for line in said.out.splitlines()]
    assert ["cases", str(count)] in lines
    assert ["images", "2-D"] in lines
    assert any(line[:2] == ["5", "AO"] for line in lines)


def test_json_holds_the_same_for_programs(cease: Cease) -> None:
    said = cease("data", HEARTS, "--json", "--patients", r"^(\d+)_", "--check")
    content = json.loads(said.out)
    cases = find_cases(HEARTS)
    assert said.code == 0
    assert content["cases"] == len(cases)
    assert content["patients"] == len({c.name.partition("_")[0] for c in cases})
    assert content["classes"][1]["name"] == "LV"
    assert content["split"] is None
    assert all(f["severity"] == "warning" for f in content["findings"])


def test_the_split_is_shown_and_written(cease: Cease, tmp_path: Path) -> None:
    out = tmp_path / "split.json"
    options = ("--validation", 0.2, "--test", 0.2, "--out", out, "--check")
    said = cease("data", POLYPS, *options)
    assert said.code == 0
    assert "Nothing is wrong with these cases." in said.out
    assert f"The split is in {out}." in said.err
    cases = find_cases(POLYPS)
    sides = read_split(out, cases).sides
    assert sum(len(side) for side in sides.values()) == len(cases)
    lines = [line.split() for line in said.out.splitlines()]
    for side, kept in sides.items():
        assert any(line[:3] == [side, str(len(kept)), str(len(kept))] for line in lines)


def test_a_fold_is_written(cease: Cease, tmp_path: Path) -> None:
    cases = find_cases(POLYPS)
    validated = []
    for i in range(2):
        out = tmp_path / f"{i}.json"
        assert cease("data", POLYPS, "--folds", 2, "--fold", i, "--out", out).code == 0
        validated += [c.name for c in read_split(out, cases).validation]
    assert sorted(validated) == [c.name for c in cases]


def test_errors_end_with_code_1_and_without_a_split(cease: Cease, damaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.json"
    said = cease("data", damaged, "--check", "--validation", 0.5, "--out", out)
    assert said.code == 1
    assert f"error: {find_cases(damaged)[0].name}: " in said.out
    assert f"{out} was not written because of these errors." in said.err
    assert not out.exists()


def test_without_a_check_what_cannot_be_read_is_counted(cease: Cease, damaged: Path) -> None:
    said = cease("data", damaged)
    assert said.code == 0
    assert f"1 of {len(find_cases(damaged))} cases could not be read and are left out of these figures;" in said.out


def test_findings_that_agree_are_told_in_one_line(cease: Cease, tmp_path: Path) -> None:
    folder = shutil.copytree(POLYPS, tmp_path / "polyps")
    first, second, *_ = find_cases(folder)
    for case in (first, second):
        with Image.open(case.image) as image:
            Image.new("L", image.size).save(case.labels)
    said = cease("data", folder, "--check")
    assert said.code == 0
    assert f"warning: 2 cases ({first.name}, {second.name}): the mask is empty" in said.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--folds", 3), "--folds 3 needs --fold, from 0 to 2"),
        (("--fold", 1), "--fold needs --folds"),
        (("--folds", 3, "--fold", 0, "--validation", 0.2), "exclude each other"),
        (("--out", "split.json"), "--out needs a split to write"),
        (("--validation", 0.01), "patients with validation = 0.01 and test = 0.0 leave none for validation"),
        (("--validation", 2), "validation = 2.0 is no share"),
        (("--patients", "("), "is no regular expression"),
    ],
)
def test_what_cannot_be_split_is_said(cease: Cease, options: tuple[object, ...], sentence: str) -> None:
    said = cease("data", POLYPS, *options)
    assert said.code == 2
    assert sentence in said.err
    assert said.out == ""


def test_a_folder_of_another_kind_is_refused(cease: Cease, tmp_path: Path) -> None:
    said = cease("data", tmp_path)
    assert said.code == 2
    assert "needs the folders images/ and labels/" in said.err
    assert "or a dataset.json" in said.err


def test_ctrl_c_stops_between_cases(cease: Cease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey, out = command.survey, tmp_path / "split.json"

    def interrupted(cases: Iterable[Case]) -> Iterator[Facts | Unreadable]:
        for found in survey(cases):
            _thread.interrupt_main(signal.SIGINT)
            yield found

    monkeypatch.setattr(command, "survey", interrupted)
    said = cease("data", POLYPS, "--validation", 0.5, "--out", out)
    assert said.code == 130
    assert said.err == f"Stopped after 0 of {len(find_cases(POLYPS))} cases; nothing was written.\n"
    assert not out.exists()
