"""`cease relevance`: measured once, chosen from as often as one likes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cease_core.cli import main
from cease_core.tasks import TASKS
from cease_core.tasks.relevance import Relevance

from .conftest import Cease


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve bright squares on noise: grey pictures of 16 × 16 and their masks."""
    folder = tmp_path_factory.mktemp("data") / "squares"
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(12):
        mask = np.zeros((16, 16), np.uint8)
        row, column = generator.integers(2, 8, 2)
        mask[row : row + 6, column : column + 6] = 1
        image = 90 + 60 * mask + generator.normal(0, 20, mask.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"square_{i:02d}.png")
        Image.fromarray(mask).save(folder / "labels" / f"square_{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def scores(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the scores of all tasks on the squares."""
    out = tmp_path_factory.mktemp("relevance") / "scores"
    small = ("--model", "unet", "--set", "architecture_args.channels=[4, 8]", "--epochs", "5")
    with pytest.raises(SystemExit) as stop:
        main(["relevance", "--data", str(squares), *small, "--out", str(out), "--rule", "all", "--warm-up", "0.5"])
    assert not stop.value.code
    return out


def test_scores_table_and_figure_are_written(scores: Path) -> None:
    relevance = Relevance.model_validate_json((scores / "relevance.json").read_text(encoding="utf-8"))
    assert set(relevance.scores) == set(TASKS)
    # Held-out training cases: of ten, a fourth at the most.
    assert relevance.cases == 2
    assert (scores / "relevance.svg").read_text(encoding="utf-8").startswith("<")
    assert "Took" in (scores / "relevance.md").read_text(encoding="utf-8")


def test_another_rule_needs_no_training(cease: Cease, scores: Path, squares: Path) -> None:
    before = (scores / "relevance.json").read_bytes()
    said = cease("relevance", "--out", scores, "--rule", "all")
    assert said.code == 0, said.err
    assert (scores / "relevance.json").read_bytes() == before
    assert all(name in said.out for name in TASKS)

    # The printed option is one that `cease train` takes.
    (line,) = (line for line in said.out.splitlines() if line.startswith("Train with them: "))
    option = shlex.split(line.removeprefix("Train with them: "))
    planned = cease("train", "--data", squares, "--preset", "multitask", *option, "--dry-run")
    assert planned.code == 0, planned.err
    chosen = yaml.safe_load(planned.out)["defence"]["auxiliary.tasks"]
    assert sorted(chosen) == sorted(TASKS)

    few = cease("relevance", "--out", scores, "--rule", "strongest", "--count", 1)
    assert few.code == 0
    assert "by the rule strongest" in few.out or "meets the rule strongest" in few.out
    assert "strongest" in (scores / "relevance.md").read_text(encoding="utf-8")


def test_scores_are_not_overwritten(cease: Cease, scores: Path, squares: Path) -> None:
    said = cease("relevance", "--data", squares, "--out", scores)
    assert said.code == 2
    assert f"cease relevance --out {scores} --rule weak" in said.err


def test_what_cannot_be_is_refused(cease: Cease, scores: Path, squares: Path, tmp_path: Path) -> None:
    for options, words in (
        (("--out", tmp_path), "add --data to measure them"),
        (("--out", scores, "--rule", "best"), "choose one of weak, strongest, random, all"),
        (("--out", scores, "--epochs", 3), "with --rule, --count and --seed alone"),
        (("--out", tmp_path, "--data", squares, "--warm-up", 0), "above 0 and up to 1"),
    ):
        said = cease("relevance", *options)
        assert said.code == 2
        assert words in said.err
    (tmp_path / "relevance.json").write_text(json.dumps({"scores": {}}), encoding="utf-8")
    said = cease("relevance", "--out", tmp_path)
    assert said.code == 2
    assert "measure them anew" in said.err
