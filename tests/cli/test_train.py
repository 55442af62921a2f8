"""`cease train`: a model from a config and a folder, resumed after a stop."""

from __future__ import annotations

import _thread
import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cease_core.models import load_model

from .conftest import SAMPLES, Cease

CASES = ("023", "091", "109")


def _config(folder: Path, **changes: Any) -> Path:
    config = {
        "name": "tiny-hippocampus",
        "title": "Tiny hippocampus",
        "data": {
            "name": "MSD Task04 hippocampus",
            "source": "Antonelli et al.",
            "licence": "CC BY-SA 4.0",
            "folder": "hippocampus_mri",
            "validation": 0.34,
        },
        "architecture": "unet",
        "architecture_args": {"channels": [4, 8]},
        "ndim": 3,
        "channels": 1,
        "classes": [
            {"id": 1, "name": "anterior", "color": "#E69F00"},
            {"id": 2, "name": "posterior", "color": "#56B4E9"},
        ],
        "mode": "multiclass",
        "window": {"kind": "percentile", "low": 0.5, "high": 99.5},
        "patch": [16, 16, 16],
        "batch_size": 2,
        "epochs": 8,
        "validate_every": 4,
    } | changes
    path = folder / "recipe.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder that holds three cases in ``hippocampus_mri``."""
    for kind in ("images", "labels"):
        folder = tmp_path / "data" / "hippocampus_mri" / kind
        folder.mkdir(parents=True)
        for case in CASES:
            shutil.copy(SAMPLES / "hippocampus_mri" / kind / f"hippocampus_{case}.nii.gz", folder)
    return tmp_path / "data"


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


def test_stop_says_how_to_resume_and_resume_goes_on(cease: Cease, data: Path, tmp_path: Path) -> None:
    # So many epochs that the last is far off when the signal comes.
    config, out = _config(tmp_path, epochs=80), tmp_path / "run"
    with _ctrl_c_once_there_is(out / "training.pt"):
        said = cease("train", config, "--data", data, "--out", out)
    assert said.code == 130
    command = said.err.strip().splitlines()[-1].split("Continue with: cease ")[1]
    assert command.endswith("--resume")

    again = cease("train", config, "--data", data, "--out", out)
    assert again.code == 2
    assert "continue it with --resume" in again.err

    changed = cease("train", _config(tmp_path, epochs=80, seed=5), "--data", data, "--out", out, "--resume")
    assert changed.code == 2
    assert "seed" in changed.err

    _config(tmp_path, epochs=80)
    resumed = cease(*command.split())
    assert resumed.code == 0, resumed.err
    assert "epoch 1/80" not in resumed.err
    assert "epoch 80/80: loss" in resumed.err
    assert "clean Dice" in resumed.err
    assert str(out) in resumed.out
    card = load_model(out).card
    assert card.name == "tiny-hippocampus"
    assert card.data is not None
    assert (len(card.data.train), len(card.data.validation)) == (2, 1)


def test_defended_model_from_the_data_folder_itself(cease: Cease, data: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, epochs=1, adversarial={"epsilon": 0.02, "steps": 1})
    said = cease("train", config, "--data", data / "hippocampus_mri", "--out", tmp_path / "run")
    assert said.code == 0, said.err
    assert "robust Dice" in said.err
    assert load_model(tmp_path / "run").card.defence == "adversarial training"


def test_too_few_cases_to_validate(cease: Cease, data: Path, tmp_path: Path) -> None:
    source = {"name": "x", "source": "x", "licence": "x", "folder": "hippocampus_mri", "validation": 0.1}
    said = cease("train", _config(tmp_path, data=source), "--data", data, "--out", tmp_path / "run")
    assert said.code == 2
    assert "3 to train and 0 to validate" in said.err
    assert not (tmp_path / "run").exists()


def test_folder_without_cases(cease: Cease, tmp_path: Path) -> None:
    said = cease("train", _config(tmp_path), "--data", tmp_path, "--out", tmp_path / "run")
    assert said.code == 2
    assert "images/ and labels/" in said.err


def test_nothing_to_resume(cease: Cease, data: Path, tmp_path: Path) -> None:
    said = cease("train", _config(tmp_path), "--data", data, "--out", tmp_path / "run", "--resume")
    assert said.code == 2
    assert "leave out --resume" in said.err
