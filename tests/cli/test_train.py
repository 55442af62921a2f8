"""`cease train`: a model from a config, or from the data alone; resumed after a stop."""

from __future__ import annotations

import _thread
import json
import re
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cease_core.cli.train import STATE
from cease_core.data import find_cases, read_split
from cease_core.defences import PRESETS
from cease_core.models import find_model, load_model
from cease_core.models.checkpoint import load_card
from cease_core.tasks import TASKS
from cease_core.training import load_config

from .conftest import SAMPLES, Cease

RECIPES = sorted((Path(__file__).parents[2] / "benchmarks" / "recipes").glob("*.json"))
SMALL = ("--model", "unet", "--set", "architecture_args.channels=[4, 8, 8]", "--set", "batch_size=8")
"""Options that make a model small and an epoch short."""


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty bright discs on noise: grey pictures of 32 × 32 and their masks."""
    folder = tmp_path_factory.mktemp("data") / "discs"
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(20):
        row, column = generator.uniform(9, 23, 2)
        mask = (y - row) ** 2 + (x - column) ** 2 < generator.uniform(4, 8) ** 2
        image = 90 + 60 * mask + generator.normal(0, 20, mask.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"disc_{i:02d}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / "labels" / f"disc_{i:02d}.png")
    return folder


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        config = {
            "name": "tiny-discs",
            "title": "Tiny discs",
            "data": {"name": "Discs", "licence": "CC0", "folder": "discs", "validation": 0.2},
            "architecture": "unet",
            "architecture_args": {"channels": [4, 8, 8]},
            "ndim": 2,
            "channels": 1,
            "classes": [{"id": 1, "name": "disc", "color": "#E69F00"}],
            "mode": "binary",
            "window": {"kind": "fixed", "low": 0, "high": 255},
            "patch": [32, 32],
            "batch_size": 8,
            "epochs": 1,
        } | changes
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    return write


@contextmanager
def _ctrl_c_once_there_is(state: Path) -> Iterator[None]:
    def press() -> None:
        deadline = time.monotonic() + 60
        while not state.is_file() and time.monotonic() < deadline:
            time.sleep(0.005)
        _thread.interrupt_main()

    # A test run started in the background inherits that Ctrl-C is ignored; a user's shell does not do that.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    presser = threading.Thread(target=press)
    presser.start()
    yield
    presser.join()
    signal.signal(signal.SIGINT, inherited)


def test_stop_says_how_to_go_on_and_the_command_does(
    cease: Cease, discs: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # So many epochs that the last is far off when the signal comes.
    command = ("train", write_config(epochs=24, validate_every=12), "--data", discs.parent, "--out", out)
    with _ctrl_c_once_there_is(out / STATE):
        said = cease(*command)
    assert said.code == 130
    assert f"Stopped; {out / STATE} holds everything up to the end of epoch" in said.err
    resume = said.err.strip().splitlines()[-1].removeprefix("Continue with: ")
    assert shlex.split(resume) == ["cease", "train", "--out", str(out), "--resume"]

    again = cease(*command)
    assert again.code == 2
    assert "continue it with --resume" in again.err
    changed = cease(*command, "--resume", "--seed", 5)
    assert changed.code == 2
    assert "(seed differ)" in changed.err

    resumed = cease(*shlex.split(resume)[1:])
    assert resumed.code == 0, resumed.err
    assert "epoch 1/24" not in resumed.err
    assert "epoch 24/24: loss" in resumed.err
    assert f"The model is in {out}: Dice 0." in resumed.out
    card = load_model(out).card
    assert card.name == "tiny-discs"
    assert card.data is not None
    assert (len(card.data.train), len(card.data.validation)) == (16, 4)


def test_a_preset_and_the_data_are_enough(cease: Cease, discs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--data", discs, "--preset", "at", *SMALL, "--set", "defence.inner.steps=2", "--epochs", 2)
    planned = cease("train", *options, "--dry-run")
    assert planned.code == 0, planned.err
    (tmp_path / "planned.yaml").write_text(planned.out, encoding="utf-8")

    said = cease("train", *options, "--out", out)
    assert said.code == 0, said.err
    config = load_config(out / "config.yaml")
    assert config == load_config(tmp_path / "planned.yaml")
    assert (config.name, config.ndim, config.channels, config.mode) == ("discs-at", 2, 1, "binary")
    assert (config.window.low, config.window.high, config.patch) == (0, 255, (32, 32))
    assert config.defence.inner.steps == 2
    assert "epoch 2/2: loss" in said.err
    assert "robust Dice" in said.err

    # What was planned is what was spent, and the printed next command works.
    card = load_card(out)
    assert card.defence == "at"
    assert f"{card.training['gradients']:,} in 2 epochs" in planned.err
    attack = said.out.strip().splitlines()[-1].removeprefix("Attack it: cease ")
    assert cease(*shlex.split(attack), "--steps", 1).code == 0
    assert (out / "attack" / "result.json").is_file()


def test_a_dry_run_leaves_nothing_and_tells_the_cost(cease: Cease, discs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = cease("train", "--data", discs, *SMALL, "--epochs", 3, "--test", 0.1, "--out", out, "--dry-run")
    assert (said.code, out.exists()) == (0, False)
    told = dict(re.split(r"  +", line, maxsplit=1) for line in said.err.strip().splitlines())
    assert told["cases"] == "14 training, 4 validation, 2 test"
    # Seven steps and three views, on one batch of eight images.
    assert told["gradient computations"] == "10 an image and step, 80 an epoch, 240 in 3 epochs"
    assert "are dropped after the training" in told["parameters"]
    assert "rotation" in told["auxiliary tasks"]
    assert yaml.safe_load(said.out)["defence"] == "cease"


def test_a_budget_takes_the_place_of_epochs(cease: Cease, discs: Path, write_config: Callable[..., Path]) -> None:
    said = cease("train", write_config(epochs=90), "--data", discs, "--preset", "at", "--budget", 1000, "--dry-run")
    # Nine computations on each of sixteen images.
    assert "864 in 6 epochs" in said.err
    assert yaml.safe_load(said.out)["epochs"] is None


def test_options_and_set_change_a_config(cease: Cease, discs: Path, write_config: Callable[..., Path]) -> None:
    config = write_config(defence={"preset": "cease", "inner.steps": 3})
    sets = ["learning_rate=1e-3", "defence.inner.epsilon=4/255", "window.high=200", "data.licence=CC BY 4.0"]
    options = [word for text in sets for word in ("--set", text)]
    said = cease("train", config, "--data", discs, *options, "--seed", 7, "--precision", "bf16", "--dry-run")
    content = yaml.safe_load(said.out)
    assert content["defence"] == {"preset": "cease", "inner.steps": 3, "inner.epsilon": 4 / 255}
    assert (content["learning_rate"], content["seed"], content["precision"]) == (1e-3, 7, "bf16")
    assert content["window"] == {"kind": "fixed", "low": 0, "high": 200}
    assert content["data"]["licence"] == "CC BY 4.0"

    other = cease("train", config, "--data", discs, "--preset", "trades", "--model", "segresnet", "--dry-run")
    content = yaml.safe_load(other.out)
    assert (content["defence"], content["architecture"], content["architecture_args"]) == ("trades", "segresnet", {})


def test_the_starting_model_brings_its_layers(cease: Cease, library: Path) -> None:
    said = cease("train", "--data", SAMPLES / "heart_mr_hvsmr2", "--start", "tiny-slice", "--dry-run")
    content, card = yaml.safe_load(said.out), load_card(library / "tiny-slice")
    assert content["architecture_args"] == {"channels": [4, 8], "norm": "instance"}
    assert [c["name"] for c in content["classes"]] == [c.name for c in card.classes]
    refused = cease(
        "train", "--data", SAMPLES / "heart_mr_hvsmr2", "--start", "tiny-slice", "--model", "vnet", "--dry-run"
    )
    assert refused.code == 2
    assert "leave out --model" in refused.err


def test_the_split_of_cease_data_is_kept(cease: Cease, discs: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "split.json", tmp_path / "run"
    cease("data", discs, "--folds", 4, "--fold", 1, "--test", 0.2, "--out", file)
    said = cease("train", "--data", discs, "--preset", "none", *SMALL, "--epochs", 1, "--split", file, "--out", out)
    assert said.code == 0, said.err
    cases = find_cases(discs)
    assert read_split(out / "split.json", cases) == read_split(file, cases)
    data = load_card(out).data
    assert data is not None
    assert data.validation == tuple(c.name for c in read_split(file, cases).validation)
    # The test side is what the next command is tried on.
    assert str(read_split(file, cases).test[0].image) in said.out

    moved = shutil.copytree(discs, tmp_path / "moved")
    (out / "data.json").write_text(json.dumps({"folder": str(tmp_path / "gone")}), encoding="utf-8")
    lost = cease("train", "--out", out, "--resume")
    assert lost.code == 2
    assert "say with --data where they are" in lost.err
    assert cease("train", "--out", out, "--resume", "--data", moved).code == 0


def test_folds_are_those_of_the_data_command(cease: Cease, discs: Path) -> None:
    said = cease("train", "--data", discs, "--preset", "none", "--folds", 4, "--fold", 1, "--dry-run")
    assert "15 training, 5 validation, 0 test" in said.err
    content = yaml.safe_load(said.out)["data"]
    assert (content["folds"], content["fold"]) == (4, 1)


def test_a_terminal_shows_batches_a_log_only_epochs(
    cease: Cease, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--data", discs, "--preset", "augment", *SMALL, "--epochs", 2)
    log = cease("train", *options, "--out", tmp_path / "log").err
    assert "batch 1/2" not in log
    (last,) = (line for line in log.splitlines() if line.startswith("epoch 2/2: "))
    assert re.search(r"segmentation clean \d.*segmentation augmented \d.*clean Dice 0.*64 gradient computations", last)

    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", cease("train", *options, "--out", tmp_path / "screen").err)
    assert "epoch 2/2, batch 2/2" in screen
    assert re.search(r"Dice clean 0\.\d+ \(after epoch 2\)", screen)


def test_only_the_first_of_several_processes_speaks(
    cease: Cease, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    said = cease("train", "--data", discs, "--preset", "none", *SMALL, "--epochs", 1, "--out", tmp_path / "run")
    assert (said.code, said.out, said.err) == (0, "", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--epochs", 3, "--budget", 9), "--epochs and --budget exclude each other"),
        (("--folds", 3, "--fold", 0, "--validation", 0.2), "--validation and --folds exclude each other"),
        (("--folds", 3), "--folds 3 needs --fold"),
        (("--fold", 1), "--fold needs --folds"),
        (("--split", "x.json", "--test", 0.2), "--split decides on every case"),
        (("--preset", "magic"), "--preset magic is unknown; choose one of none, augment"),
        (("--model", "magic"), "--model magic is unknown; choose one of unet"),
        (("--set", "learning_rate"), "is no KEY=VALUE"),
        (("--set", "patch=[64"), "not valid YAML"),
        (("--set", "speed=3"), "speed"),
        (("--set", "epochs.last=3"), "epochs has no parts"),
        (("--set", "defence.magic.weight=3"), "has no term 'magic'"),
        (("--set", "data.shuffle=true"), "data.shuffle"),
        (("--set", "ndim=3"), "ndim = 3 needs volumes"),
        (("--validation", 0.01), "20 cases with validation = 0.01 leave 20 to train and 0 to validate"),
        (("--start", "magic"), "no model called 'magic'"),
        (("--device", "magic"), "'magic' is not available here"),
        (("--preset", "distillation"), "set distillation.teacher"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    cease: Cease, discs: Path, tmp_path: Path, options: tuple[object, ...], words: str
) -> None:
    said = cease("train", "--data", discs, "--out", tmp_path / "run", *options)
    assert said.code == 2
    told = said.err.strip().splitlines()[-1]
    assert words in told
    assert told.endswith(".")


def test_a_config_whose_defence_is_spelt_out(cease: Cease, discs: Path, write_config: Callable[..., Path]) -> None:
    config = write_config(defence=PRESETS["at"].model_dump(mode="json"))
    said = cease("train", config, "--data", discs, "--set", "defence.inner.steps=3", "--dry-run")
    assert yaml.safe_load(said.out)["defence"]["inner"]["steps"] == 3
    refused = cease("train", config, "--data", discs, "--set", "defence.segmentation.clean.weight=1", "--dry-run")
    assert refused.code == 2
    assert "spells its defence out" in refused.err


def test_what_is_missing_is_named(cease: Cease, discs: Path, tmp_path: Path) -> None:
    for options, words in (
        (("--data", discs), "--out is missing"),
        (("--out", tmp_path / "run"), "--data is missing"),
        (("--resume", "--data", discs), "--out is missing"),
        (("--resume", "--out", tmp_path / "run"), "leave out --resume"),
        (("--data", tmp_path, "--out", tmp_path / "run"), "images/ and labels/"),
    ):
        said = cease("train", *options)
        assert said.code == 2
        assert words in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_configs(recipe: Path) -> None:
    config = load_config(recipe)
    assert config.name == recipe.stem
    assert config.defence.name == ("cease" if recipe.stem.endswith("-defended") else "none")
    assert config.defence.name == load_card(find_model(recipe.stem)).defence


def test_presets_are_listed(cease: Cease) -> None:
    rows = {row["name"]: row for row in json.loads(cease("presets", "--json").out)}
    assert list(rows) == list(PRESETS)
    # One pass for each view; seven for the attack.
    assert [rows[n]["gradients"] for n in ("none", "augment", "at", "cease", "fast_at")] == [1, 2, 9, 10, 2]
    assert (rows["free_at"]["gradients"], rows["free_at"]["replays"]) == (1, 4)
    assert rows["trades"]["terms"][1] == {"term": "consistency", "weight": 6.0}
    assert "1901.08573" in rows["trades"]["source"]
    said = cease("presets").out
    assert all(name in said for name in PRESETS)


def test_tasks_are_listed(cease: Cease) -> None:
    rows = {row["name"]: row for row in json.loads(cease("tasks", "--json").out)}
    assert list(rows) == list(TASKS)
    assert rows["boundary"]["derived_from"] == "mask"
    assert (rows["jigsaw"]["own_pass"], rows["hog"]["own_pass"]) == (True, False)
    assert all(row["source"] for row in rows.values())
    assert all(task.title in cease("tasks").out for task in TASKS.values())
