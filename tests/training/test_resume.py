"""A run that was stopped, at whatever point and however rudely, ends as if it had never been."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from discs import differences, disc_config, draw_discs, outcome, train_in_process

from cease_core.data import find_cases, split_cases
from cease_core.errors import CeaseError
from cease_core.training import (
    CheckpointSaved,
    EpochDone,
    Event,
    Finished,
    StepDone,
    TasksChosen,
    TrainingConfig,
    train,
)
from cease_core.training.choice import FOLDER
from cease_core.training.state import STATE, load_state, save_state

Moment = Callable[[Event], bool]

FEW = {"inner.steps": 1}
TWO_TASKS = {"auxiliary.tasks": ("sobel", "rotation"), "contrastive.anchors": 16}


def saved_at(epoch: int, batch: int) -> Moment:
    return lambda event: isinstance(event, CheckpointSaved) and (event.epoch, event.batch) == (epoch, batch)


def closed(epoch: int) -> Moment:
    """The epoch's model is on disk, the state that knows of it is not."""
    return lambda event: isinstance(event, EpochDone) and event.epoch == epoch


def go(config: TrainingConfig, sides: Any, out: Path, **options: Any) -> list[Event]:
    return list(train(config, *sides, out, device="cpu", **options))


def photographs(config: TrainingConfig, sides: Any, out: Path, moments: list[Moment]) -> list[Path]:
    """The folder of a run as it was at some moments: what a machine that loses power leaves."""
    taken = []
    for event in train(config, *sides, out, device="cpu", save_every=0):
        for moment in moments:
            if moment(event):
                taken.append(shutil.copytree(out, out.with_name(f"{out.name}_{len(taken)}")))
    assert len(taken) == len(moments)
    return taken


@pytest.mark.parametrize(
    ("changes", "moments"),
    [
        pytest.param(
            {"epochs": 3},
            [saved_at(0, 1), saved_at(1, 0), closed(2), saved_at(2, 0), saved_at(2, 1), closed(3), saved_at(3, 0)],
            id="none, at every kind of point",
        ),
        pytest.param({"defence": {"preset": "at"} | FEW}, [saved_at(0, 1), closed(1), saved_at(1, 1)], id="at"),
        pytest.param(
            {"defence": {"preset": "contrastive_at", "inner.reuse": True} | FEW},
            [saved_at(0, 1), saved_at(1, 1)],
            id="the first step reused",
        ),
        pytest.param({"defence": {"preset": "free_at", "replays": 2}}, [saved_at(0, 1), saved_at(1, 1)], id="free_at"),
        pytest.param(
            {"defence": {"preset": "cease", "balance": "uncertainty"} | FEW | TWO_TASKS},
            [saved_at(0, 1), saved_at(1, 1)],
            id="cease, weights learnt",
        ),
        pytest.param(
            {"defence": {"preset": "multitask", "balance": "pcgrad", "auxiliary.tasks": ("sobel",)}},
            [saved_at(0, 1)],
            id="multitask, pcgrad",
        ),
        pytest.param(
            {"architecture": "vnet", "architecture_args": {"filters": 4}, "patch": (32, 32)},
            [saved_at(0, 1)],
            id="dropout and batch norm",
        ),
        pytest.param(
            {
                "architecture_args": {"channels": [4, 8, 8], "norm": "instance"},
                "precision": "bf16",
                "half_weights": True,
            },
            [saved_at(1, 1)],
            id="instance norm, bf16, half the weights",
        ),
        pytest.param(
            {
                "epochs": 8,
                "patience": 1,
                "learning_rate": 1e-12,
                "schedule": "constant",
                "architecture_args": {"channels": [4, 8, 8], "norm": "instance"},
            },
            [saved_at(1, 1), closed(2)],
            id="patience",
        ),
    ],
)
def test_bit_for_bit(sides, tmp_path: Path, changes: dict[str, Any], moments: list[Moment]) -> None:
    config = disc_config(**changes)
    taken = photographs(config, sides, tmp_path / "run", moments)
    whole = outcome(tmp_path / "run")
    assert FOLDER not in whole["files"]
    for folder in taken:
        *_, finished = go(config, sides, folder, resume=True)
        assert isinstance(finished, Finished)
        assert finished.stopped_early == (config.patience is not None)
        assert differences(outcome(folder), whole) == []


def test_how_often_it_is_saved_changes_nothing(sides, tmp_path: Path) -> None:
    often = go(disc_config(), sides, tmp_path / "often", save_every=0)
    seldom = go(disc_config(), sides, tmp_path / "seldom")
    assert differences(outcome(tmp_path / "often"), outcome(tmp_path / "seldom")) == []
    assert [(e.epoch, e.batch) for e in often if isinstance(e, CheckpointSaved)] == [(0, 1), (1, 0), (1, 1), (2, 0)]
    assert [(e.epoch, e.batch) for e in seldom if isinstance(e, CheckpointSaved)] == [(1, 0), (2, 0)]


def test_tasks_once_chosen_stay(sides, tmp_path: Path) -> None:
    config = disc_config(defence={"preset": "multitask", "auxiliary.rule": "all"})
    (folder, later) = photographs(config, sides, tmp_path / "run", [saved_at(0, 0), saved_at(1, 1)])
    whole = outcome(tmp_path / "run")
    for taken in (folder, later):
        events = go(config, sides, taken, resume=True)
        assert not any(isinstance(e, TasksChosen) for e in events)
        assert differences(outcome(taken), whole) == []


def test_a_state_from_before_heads_were_kept_goes_on(sides, tmp_path: Path) -> None:
    config = disc_config(defence={"preset": "multitask", "auxiliary.tasks": ("sobel",)})
    (folder,) = photographs(config, sides, tmp_path / "run", [saved_at(1, 1)])
    state = torch.load(folder / STATE, weights_only=True)
    del state["average_heads"]
    torch.save(state, folder / STATE)
    go(config, sides, folder, resume=True)
    places = {place.split("/")[2] for place in differences(outcome(folder), outcome(tmp_path / "run"))}
    assert places == {"average_heads", "heads.safetensors"}


def test_a_killed_process(fresh, disc_folder, sides, tmp_path: Path) -> None:
    config = disc_config(epochs=3)
    arguments = (config, disc_folder, tmp_path / "killed", (2, 2), {}, tmp_path / "told")
    child = fresh.Process(target=train_in_process, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    events = go(config, sides, tmp_path / "killed", resume=True)
    first = next(e for e in events if isinstance(e, StepDone))
    assert (first.epoch, first.batch) == (2, 2)
    go(config, sides, tmp_path / "whole")
    assert differences(outcome(tmp_path / "killed"), outcome(tmp_path / "whole")) == []


def test_a_finished_run_only_says_so(sides, tmp_path: Path) -> None:
    *_, finished = go(disc_config(), sides, tmp_path)
    before = outcome(tmp_path)
    assert go(disc_config(), sides, tmp_path, resume=True) == [finished]
    assert differences(outcome(tmp_path), before) == []


def test_time_goes_on_where_it_stopped(sides, tmp_path: Path) -> None:
    run = train(disc_config(), *sides, tmp_path, device="cpu")
    before = next(e for e in run if isinstance(e, EpochDone))
    next(run)
    run.close()
    first = next(e for e in go(disc_config(), sides, tmp_path, resume=True) if isinstance(e, StepDone))
    assert first.seconds > before.seconds


def test_resume_without_a_state_starts_anew(sides, tmp_path: Path) -> None:
    first = go(disc_config(epochs=1), sides, tmp_path, resume=True)[0]
    assert isinstance(first, StepDone)
    assert (first.epoch, first.batch) == (1, 1)


def test_a_new_run_forgets_the_old_one(sides, tmp_path: Path) -> None:
    go(disc_config(seed=1, epochs=3), sides, tmp_path / "folder")
    (tmp_path / "folder" / FOLDER / "epoch_00009").mkdir(parents=True)
    for folder in ("folder", "fresh"):
        go(disc_config(), sides, tmp_path / folder)
    assert differences(outcome(tmp_path / "folder"), outcome(tmp_path / "fresh")) == []


@pytest.mark.parametrize("damage", [b"", b"PK", b"no state at all"])
def test_a_damaged_state_is_refused(sides, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / STATE).write_bytes(damage)
    with pytest.raises(CeaseError, match=rf"{STATE} is damaged; start a new run"):
        go(disc_config(), sides, tmp_path, resume=True)


def test_a_state_of_something_else_is_refused(sides, tmp_path: Path) -> None:
    training, validation = sides
    go(disc_config(), sides, tmp_path)
    with pytest.raises(CeaseError, match="was written with another config; resume with what started it"):
        go(disc_config(seed=1), sides, tmp_path, resume=True)
    with pytest.raises(CeaseError, match="was written with another set of cases"):
        go(disc_config(), ([*training[1:], training[0]], validation), tmp_path, resume=True)


def test_the_state_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    path, origin = tmp_path / STATE, {"config": "a"}
    save_state(path, {"origin": origin, "weights": torch.zeros(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            CeaseError, match=r"^cannot write .*; make room and resume, the last complete state is kept"
        ):
            save_state(path, {"origin": origin, "weights": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(load_state(path, origin)["weights"], torch.zeros(10))
    assert [p.name for p in tmp_path.iterdir()] == [STATE]


def test_a_run_on_a_full_disk_goes_on_once_there_is_room(sides, tmp_path: Path) -> None:
    config = disc_config()
    run = train(config, *sides, tmp_path / "full", device="cpu")
    next(e for e in run if isinstance(e, CheckpointSaved))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CeaseError, match=r"^cannot write [^\n]*; [^\n]*\.$"):
            list(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    go(config, sides, tmp_path / "full", resume=True)
    go(config, sides, tmp_path / "roomy")
    assert differences(outcome(tmp_path / "full"), outcome(tmp_path / "roomy")) == []


def test_nothing_is_lost_to_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    folder = draw_discs(tmp_path / "data", 11)
    sides = split_cases(find_cases(folder), 0.2)
    run = train(disc_config(learning_rate=1e30, epochs=9), *sides, tmp_path / "run", device="cpu", save_every=0)
    kept: list[dict[str, Any]] = []
    with pytest.raises(CeaseError, match=r"^epoch \d, batch \d \(disc_\d\d(, disc_\d\d){3}\): the .* is (nan|inf)"):
        kept.extend(torch.load(e.path, weights_only=True) for e in run if isinstance(e, CheckpointSaved))
    assert kept
    now = torch.load(tmp_path / "run" / STATE, weights_only=True)
    assert differences(now, kept[-1]) == []
    assert all(v.isfinite().all() for v in now["objective"].values())
