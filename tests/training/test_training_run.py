"""A run learns, tells what it does, counts what it costs, and stops with one sentence when it cannot go on."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from discs import disc_config

from cease_core.defences import PRESETS, Objective
from cease_core.errors import CeaseError
from cease_core.models import load_model
from cease_core.models.checkpoint import load_card, read_heads
from cease_core.training import CheckpointSaved, EpochDone, Event, Finished, StepDone, TrainingConfig, train
from cease_core.training.build import build_model, epochs_of
from cease_core.training.process import this_process
from cease_core.training.state import STATE


def go(config: TrainingConfig, sides: Any, out: Path, **options: Any) -> list[Event]:
    return list(train(config, *sides, out, device="cpu", **options))


def epochs_in(events: list[Event]) -> list[EpochDone]:
    return [e for e in events if isinstance(e, EpochDone)]


@pytest.fixture(scope="module")
def plain(sides, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], Path]:
    """Three epochs of two batches, undefended, validated after the second and third."""
    out = tmp_path_factory.mktemp("plain")
    return go(disc_config(epochs=3, validate_every=2), sides, out), out


@pytest.fixture(scope="module")
def defended(sides, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], Path]:
    out = tmp_path_factory.mktemp("defended")
    return go(disc_config(defence={"preset": "at", "inner.steps": 2}), sides, out), out


def test_it_learns(sides, tmp_path: Path) -> None:
    config = disc_config(epochs=12, validate_every=12, batch_size=2, learning_rate=2e-2, patch=(32, 32))
    epochs = epochs_in(go(config, sides, tmp_path))
    assert epochs[-1].loss < 0.8 * epochs[0].loss
    assert epochs[-1].clean_dice > 0.8
    assert load_model(tmp_path).card.metrics["validation_clean_dice"] == pytest.approx(epochs[-1].clean_dice, abs=1e-4)


def test_events(plain) -> None:
    events, out = plain
    assert [type(e) for e in events] == [StepDone, StepDone, EpochDone, CheckpointSaved] * 3 + [Finished]
    steps = [e for e in events if isinstance(e, StepDone)]
    assert [(s.epoch, s.epochs, s.batch, s.batches) for s in steps] == [(e, 3, b, 2) for e in (1, 2, 3) for b in (1, 2)]
    epochs = epochs_in(events)
    assert [math.isnan(e.clean_dice) for e in epochs] == [True, False, False]
    assert all(math.isnan(e.robust_dice) for e in epochs)
    for epoch in epochs:
        own = [s for s in steps if s.epoch == epoch.epoch]
        assert epoch.loss == pytest.approx(sum(s.loss for s in own) / 2)
        assert epoch.parts == pytest.approx({k: sum(s.parts[k] for s in own) / 2 for k in own[0].parts})
    seconds = [e.seconds for e in events if isinstance(e, StepDone | EpochDone)]
    assert seconds == sorted(seconds)
    assert isinstance(events[-1], Finished)
    assert (events[-1].folder, events[-1].stopped_early) == (out, False)


def test_every_epoch_is_in_the_history_once(plain) -> None:
    events, out = plain
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    with (out / "history.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(lines) == len(table) == 3
    for event, line, row in zip(epochs_in(events), lines, table, strict=True):
        assert line["epoch"] == event.epoch == int(row["epoch"])
        assert line["loss"] == event.loss == float(row["loss"])
        assert line["gradients"] == event.gradients == int(row["gradients"])
        assert (line["clean_dice"] is None) == math.isnan(event.clean_dice) == (row["clean_dice"] == "")
        assert event.parts.items() <= line.items()


def test_the_card_says_how_the_model_came_to_be(plain, sides) -> None:
    events, out = plain
    card = load_model(out).card
    assert isinstance(events[-1], Finished)
    assert card == events[-1].card
    assert card.defence == "none"
    assert card.data is not None
    assert card.data.train == tuple(c.name for c in sides[0])
    assert card.data.validation == tuple(c.name for c in sides[1])
    assert card.training["best_epoch"] in (2, 3)
    assert card.training["seed"] == 0
    # The whole run's cost, not what it was when the best epoch ended.
    assert card.training["gradients"] == epochs_in(events)[-1].gradients == 24


def test_same_seed_same_model(plain, sides, tmp_path: Path) -> None:
    events, out = plain
    again = go(disc_config(epochs=3, validate_every=2), sides, tmp_path / "again")
    assert [e.loss for e in epochs_in(again)] == [e.loss for e in epochs_in(events)]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    other = go(disc_config(epochs=3, validate_every=2, seed=1), sides, tmp_path / "other")
    assert [e.loss for e in epochs_in(other)] != [e.loss for e in epochs_in(events)]


def test_a_defended_model_is_judged_under_attack(defended) -> None:
    events, out = defended
    for epoch in epochs_in(events):
        assert 0 <= epoch.robust_dice <= epoch.clean_dice <= 1
    card = load_model(out).card
    best = next(e for e in epochs_in(events) if e.epoch == card.training["best_epoch"])
    assert card.metrics["validation_robust_dice"] == pytest.approx(best.robust_dice, abs=1e-4)
    assert card.defence == "at"


def test_a_defended_model_is_not_judged_before_its_attack_has_grown(sides, tmp_path: Path) -> None:
    config = disc_config(defence={"preset": "at", "inner.steps": 1, "inner.ramp": 0.5}, epochs=4)
    judged = [e.epoch for e in epochs_in(go(config, sides, tmp_path)) if not math.isnan(e.robust_dice)]
    assert judged == [2, 3, 4]


def test_a_run_can_start_from_another_model(plain, sides, tmp_path: Path) -> None:
    events, out = plain
    run = train(disc_config(start=str(out)), *sides, tmp_path / "warm", device="cpu")
    warm = next(run)
    assert isinstance(warm, StepDone)
    assert isinstance(events[0], StepDone)
    assert warm.loss < events[0].loss


def test_a_defended_model_is_to_keep_the_clean_dice_of_its_start(plain, sides, tmp_path: Path) -> None:
    _, out = plain
    config = disc_config(defence={"preset": "at", "inner.steps": 1}, start=str(out), epochs=1)
    go(config, sides, tmp_path)
    kept = torch.load(tmp_path / STATE, weights_only=True)["candidates"]["reference"]
    assert kept == pytest.approx(load_model(out).card.metrics["validation_clean_dice"], abs=1e-4)


def test_patience(sides, tmp_path: Path) -> None:
    # Nothing moves, batch statistics included: the first model is never surpassed.
    still = {
        "learning_rate": 1e-12,
        "schedule": "constant",
        "architecture_args": {"channels": [4, 8], "norm": "instance"},
    }
    config = disc_config(epochs=9, patience=2, **still)
    *_, finished = events = go(config, sides, tmp_path)
    assert [e.epoch for e in epochs_in(events)] == [1, 2, 3]
    assert isinstance(finished, Finished)
    assert finished.stopped_early


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "distillation"])
def test_a_budget_buys_the_same_gradients_whatever_the_defence(name: str) -> None:
    defence = PRESETS[name]
    if defence.auxiliary is not None:
        defence = defence.with_tasks(("sobel", "rotation"))
    config = disc_config(defence=defence.model_dump(), budget=10_000)
    each = Objective(defence, build_model(config), config.patch).gradients
    images = 8
    epochs = epochs_of(config, each, images)
    cost = each * images * defence.replays
    assert 10_000 - cost < epochs * cost <= 10_000
    assert (epochs_of(config, each, images, spent=5000)) * cost <= 5000


@pytest.mark.parametrize(
    ("defence", "each"),
    [
        ("none", 1),
        ({"preset": "at", "inner.steps": 2}, 2 + 2),
        ({"preset": "free_at", "replays": 3}, 3 * 1),
        ({"preset": "contrastive_at", "inner.steps": 1, "contrastive.anchors": 8}, 1 + 3),
    ],
)
def test_gradients_are_counted(sides, tmp_path: Path, defence: Any, each: int) -> None:
    steps = [e for e in go(disc_config(defence=defence, epochs=1), sides, tmp_path) if isinstance(e, StepDone)]
    assert [s.gradients for s in steps] == [each * 4, each * 8]


@pytest.mark.parametrize("preset", ["at", "cease"])
def test_bf16(sides, tmp_path: Path, preset: str) -> None:
    changes: dict[str, Any] = {"preset": preset, "inner.steps": 1}
    if preset == "cease":
        changes |= {"auxiliary.tasks": ("sobel", "rotation"), "contrastive.anchors": 16}
    events = go(disc_config(defence=changes, precision="bf16"), sides, tmp_path)
    full = go(disc_config(defence=changes), sides, tmp_path / "fp32")
    for half, whole in zip(epochs_in(events), epochs_in(full), strict=True):
        assert half.loss == pytest.approx(whole.loss, rel=0.05)
    assert all(v.dtype == torch.float32 for v in load_model(tmp_path).parameters())


def test_learnt_weights_of_the_terms_move_and_are_kept(sides, tmp_path: Path) -> None:
    defence = {"preset": "multitask", "balance": "uncertainty", "auxiliary.tasks": ("sobel",)}
    go(disc_config(defence=defence), sides, tmp_path)
    doubts = torch.load(tmp_path / STATE, weights_only=True)["objective"]["doubts"]
    assert doubts.shape == (2,)
    assert (doubts != 0).all()


def test_heads_are_those_of_the_moment_whose_weights_became_the_model(sides, tmp_path: Path) -> None:
    defence = {"preset": "cease", "inner.steps": 1, "auxiliary.tasks": ("sobel", "jigsaw"), "contrastive.anchors": 16}
    run = train(disc_config(defence=defence, epochs=4, half_weights=True), *sides, tmp_path, device="cpu")
    states = [torch.load(e.path, weights_only=True) for e in run if isinstance(e, CheckpointSaved)]
    best = states[load_card(tmp_path).training["best_epoch"] - 1]["average_heads"]
    heads = read_heads(tmp_path)
    assert heads is not None
    assert {k.split(".")[0] for k in heads} == {"auxiliary", "projector"}
    for name, tensor in heads.items():
        assert torch.equal(tensor, best[f"module.{name}"])


def test_a_run_without_other_heads_writes_none(plain) -> None:
    assert sorted(p.name for p in plain[1].glob("*.safetensors")) == ["model.safetensors"]


@pytest.mark.parametrize("steps", [1, 2, 10, 11])
def test_runs_of_any_length_have_a_schedule(sides, tmp_path: Path, steps: int) -> None:
    config = disc_config(epochs=steps, batch_size=8, validate_every=99)
    losses = [e.loss for e in epochs_in(go(config, sides, tmp_path))]
    assert len(losses) == steps


def test_a_folder_that_is_not_there_yet_is_made(sides, tmp_path: Path) -> None:
    go(disc_config(epochs=2, validate_every=2), sides, tmp_path / "new" / "run")
    assert (tmp_path / "new" / "run" / "model.safetensors").is_file()


def test_an_undefended_run_whose_loss_is_not_finite(sides, tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match=r"^epoch 1, batch 2 \(disc_.*\): the .* is (nan|inf); lower the learning"):
        go(disc_config(learning_rate=1e30), sides, tmp_path)
    assert not (tmp_path / "card.json").exists()


def test_a_defended_run_whose_attack_is_not_finite(sides, tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match=r"^epoch 1, batch 2 \(disc_.*not finite"):
        go(disc_config(learning_rate=1e30, defence={"preset": "at", "inner.steps": 1}), sides, tmp_path)


def test_fp16_is_for_gpus(sides, tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match=r"^precision fp16 needs a CUDA GPU; set precision to bf16 or fp32\.$"):
        go(disc_config(precision="fp16"), sides, tmp_path)


def test_both_sides_need_cases(sides, tmp_path: Path) -> None:
    for pair in ((sides[0], []), ([], sides[1])):
        with pytest.raises(CeaseError, match="one with foreground to validate on"):
            go(disc_config(), pair, tmp_path)


def test_a_start_of_another_shape_is_refused(plain, sides, tmp_path: Path) -> None:
    config = disc_config(start=str(plain[1]), architecture_args={"channels": [4, 8]})
    with pytest.raises(CeaseError, match=r"^start: .* has other layers than the config's residual_unet"):
        go(config, sides, tmp_path)


def test_alone_unless_started_by_a_launcher() -> None:
    process = this_process("cpu")
    assert (process.rank, process.world, process.main, process.device.type) == (0, 1, True, "cpu")


def test_tensorboard_is_an_extra(sides, tmp_path: Path) -> None:
    config = disc_config(tensorboard=True, epochs=1)
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(CeaseError, match=r"^TensorBoard is not installed; run: pip install"):
            go(config, sides, tmp_path)
    else:
        go(config, sides, tmp_path)
        assert any((tmp_path / "tensorboard").iterdir())
