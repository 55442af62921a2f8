"""``cease audit`` and ``cease report``, as commands on real models and scans."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cease_core.data import find_cases, split, write_split
from cease_core.evaluation.audit import load_audit
from tests.cli.conftest import SAMPLES, Cease

CARDIAC = SAMPLES / "cardiac_mr_sunnybrook"
FEW = (
    "--cases", 2, "--epsilons", "2/255,8/255",
    "--set", "steps=3", "--set", "longer=4", "--set", "restarts=1", "--set", "queries=4",
)  # fmt: skip


def test_one_command_leaves_table_report_and_verdict(cease: Cease, tmp_path: Path) -> None:
    said = cease("audit", "cardiac-undefended", "cardiac-defended", "--data", CARDIAC, "--out", tmp_path, *FEW)
    assert said.code == 0, said.err
    for name in ("table.csv", "table.parquet", "report.html", "report.json", "robustness.md"):
        assert (tmp_path / name).stat().st_size > 0
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    for model in written["models"]:
        assert model["title"] in said.out
        assert model["verdict"]["label"] in said.out
        assert f"{model['headline']['worst_dice']['mean']:.3f}" in said.out

    rows = load_audit(tmp_path).rows
    again = cease("report", tmp_path)
    assert again.code == 0
    assert again.out == said.out
    assert load_audit(tmp_path).rows.equals(rows)


def test_the_test_side_of_a_split_is_audited(cease: Cease, tmp_path: Path) -> None:
    cases = find_cases(CARDIAC)
    sides = split(cases, validation=0.3, test=0.3)
    write_split(tmp_path / "split.json", sides)
    chosen = ("--data", CARDIAC, "--split", tmp_path / "split.json")
    said = cease("audit", "cardiac-defended", "--out", tmp_path / "out", *chosen, *FEW)
    assert said.code == 0, said.err
    audited = {name.split("[")[0] for name in load_audit(tmp_path / "out").facts["cases"]}
    assert audited <= {case.name for case in sides.test}


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(cease: Cease, tmp_path: Path) -> None:
    command = ["audit", "cardiac-defended", "--data", CARDIAC, "--out", tmp_path, *FEW]
    process = subprocess.Popen(
        [sys.executable, "-m", "cease_core.cli", *map(str, command)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    journal = tmp_path / "log.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    assert "Not finished" in out
    assert (tmp_path / "report.html").exists()
    before = load_audit(tmp_path).finished
    assert 3 <= before < load_audit(tmp_path).jobs

    said = cease(*command)
    assert said.code == 0
    assert f"{before} done before" in said.err
    assert load_audit(tmp_path).complete


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (("--tier", "endless"), "unknown tier 'endless'"),
        (("--set", "steps"), "write it as name=value"),
        (("--set", "steps=many"), "steps"),
        (("--set", "stepz=3"), "stepz"),
        (("--epsilons", "20HU"), "part of the window"),
        (("--set", "report_epsilon=3/255"), "report_epsilon: it must be one of the epsilons"),
        (("--set", "report_epsilon=20HU"), "part of the window"),
        (("--set", "epsilons=8/255,2/255"), "--epsilons"),
        (("--set", "tolerance=inf"), "tolerance"),
        (("--source", "no-such-model"), "no model called"),
        (("--device", "quantum"), "not available"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    cease: Cease, tmp_path: Path, changed: tuple[str, ...], sentence: str
) -> None:
    said = cease("audit", "cardiac-defended", "--data", CARDIAC, "--out", tmp_path / "out", *FEW, *changed)
    assert said.code == 2
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_data_that_no_model_was_made_for_are_refused_before_anything_is_written(cease: Cease, tmp_path: Path) -> None:
    said = cease("audit", "cardiac-defended", "--data", SAMPLES / "ct_body_totalseg", "--out", tmp_path / "out", *FEW)
    assert said.code == 2
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "audit.json").exists()


def test_a_folder_without_an_audit_is_said(cease: Cease, tmp_path: Path) -> None:
    said = cease("report", tmp_path)
    assert said.code == 2
    assert "holds no audit" in said.err
