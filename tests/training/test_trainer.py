"""Training learns, keeps its promises about the inner attack, and goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from cease_core.attacks import LOSSES
from cease_core.attacks.problem import Problem
from cease_core.data import Case, find_cases, split_cases
from cease_core.errors import CeaseError
from cease_core.models import ModelCard, SegmentationModel, load_model, save_model
from cease_core.training import EpochDone, Finished, TrainingConfig, load_config, train
from cease_core.training.config import AdversarialTraining
from cease_core.training.trainer import STATE, craft

MakeConfig = Callable[..., TrainingConfig]


def draw_discs(folder: Path, count: int) -> None:
    """Bright discs on noise: grey pictures of 32 × 32 and their masks."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(count):
        row, column = generator.uniform(9, 23, 2)
        mask = (y - row) ** 2 + (x - column) ** 2 < generator.uniform(4, 8) ** 2
        image = 90 + 60 * mask + generator.normal(0, 20, mask.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"disc_{i:02d}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / "labels" / f"disc_{i:02d}.png")


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Case], list[Case]]:
    """Training and validation cases."""
    folder = tmp_path_factory.mktemp("discs")
    draw_discs(folder, 20)
    return split_cases(find_cases(folder), 0.2)


@pytest.fixture(scope="module")
def make_config() -> MakeConfig:
    def make(**changes: Any) -> TrainingConfig:
        fields: dict[str, Any] = {
            "name": "discs",
            "title": "Discs",
            "data": {"name": "discs", "source": "drawn", "licence": "CC0", "folder": "discs"},
            "architecture_args": {"channels": [8, 16]},
            "ndim": 2,
            "channels": 1,
            "classes": [{"id": 1, "name": "disc", "color": "#E69F00"}],
            "mode": "binary",
            "window": {"kind": "fixed", "low": 0, "high": 255},
            "patch": (32, 32),
            "mirror": (0, 1),
            "epochs": 3,
            "batch_size": 8,
            "validate_every": 2,
            "learning_rate": 5e-3,
            "ema": 0.8,
        }
        return TrainingConfig.model_validate(fields | changes)

    return make


@pytest.fixture
def three_epochs(make_config: MakeConfig, sides, tmp_path: Path) -> tuple[list[Any], Path]:
    return list(train(make_config(), *sides, tmp_path)), tmp_path


def test_it_learns(make_config: MakeConfig, sides, tmp_path: Path) -> None:
    config = make_config(epochs=7, validate_every=7, batch_size=2, learning_rate=1e-2)
    *epochs, finished = train(config, *sides, tmp_path)
    assert epochs[-1].loss < 0.8 * epochs[0].loss
    assert epochs[-1].clean_dice > 0.8
    model = load_model(finished.folder)
    assert model.card.metrics["validation_clean_dice"] > 0.8


def test_events(three_epochs, sides, make_config: MakeConfig) -> None:
    (*epochs, finished), out = three_epochs
    assert all(isinstance(e, EpochDone) for e in epochs)
    assert [(e.epoch, e.epochs) for e in epochs] == [(1, 3), (2, 3), (3, 3)]
    assert [math.isnan(e.clean_dice) for e in epochs] == [True, False, False]
    assert all(math.isnan(e.robust_dice) for e in epochs)
    assert [e.gradients for e in epochs] == [16, 32, 48]  # two batches of eight an epoch
    assert 0 < epochs[0].seconds < epochs[1].seconds < epochs[2].seconds
    assert isinstance(finished, Finished)
    assert isinstance(finished.card, ModelCard)
    assert finished.folder == out


def test_the_card_says_how_the_model_came_to_be(three_epochs, sides) -> None:
    (*_, finished), out = three_epochs
    card = load_model(out).card
    assert card == finished.card
    assert card.defence == "none"
    assert card.data is not None
    assert card.data.train == tuple(c.name for c in sides[0])
    assert card.data.validation == tuple(c.name for c in sides[1])
    assert not set(card.data.train) & set(card.data.validation)
    assert card.training["best_epoch"] in (2, 3)
    assert card.training["seed"] == 0


def test_same_seed_same_model(three_epochs, make_config: MakeConfig, sides, tmp_path: Path) -> None:
    (*epochs, _), out = three_epochs
    *again, _ = train(make_config(), *sides, tmp_path / "again")
    assert [e.loss for e in again] == [e.loss for e in epochs]
    first, second = (load_model(f).state_dict() for f in (out, tmp_path / "again"))
    assert all(torch.equal(first[k], second[k]) for k in first)
    *other, _ = train(make_config(seed=1), *sides, tmp_path / "other")
    assert [e.loss for e in other] != [e.loss for e in epochs]


def test_resume_goes_on_after_the_last_epoch(make_config: MakeConfig, sides, tmp_path: Path) -> None:
    run = train(make_config(), *sides, tmp_path)
    stopped = [next(run), next(run)]
    run.close()
    before = torch.load(tmp_path / STATE, weights_only=True)
    assert before["epoch"] == 2
    *epochs, finished = train(make_config(), *sides, tmp_path, resume=True)
    assert [e.epoch for e in epochs] == [3]
    assert epochs[0].gradients == stopped[1].gradients + 16
    assert epochs[0].seconds > stopped[1].seconds
    assert isinstance(finished, Finished)
    after = torch.load(tmp_path / STATE, weights_only=True)
    assert after["schedule"]["last_epoch"] == before["schedule"]["last_epoch"] + 2
    assert after["best"] >= before["best"]
    # Nothing is left to do: the model that was chosen is still there.
    (again,) = train(make_config(), *sides, tmp_path, resume=True)
    assert again.card == finished.card


def test_resume_without_a_state_starts_anew(make_config: MakeConfig, sides, tmp_path: Path) -> None:
    event = next(train(make_config(), *sides, tmp_path, resume=True))
    assert isinstance(event, EpochDone)
    assert event.epoch == 1


def test_a_defended_model_is_chosen_under_attack(make_config: MakeConfig, sides, tmp_path: Path) -> None:
    config = make_config(adversarial={"epsilon": 4 / 255, "steps": 2}, epochs=2, validate_every=1)
    *epochs, finished = train(config, *sides, tmp_path)
    for epoch in epochs:
        assert 0 <= epoch.robust_dice <= epoch.clean_dice
    # Two steps of the attack, one on its result, one on the clean batch.
    assert [e.gradients for e in epochs] == [64, 128]
    assert finished.card.defence == "adversarial training"
    best = max(e.robust_dice for e in epochs)
    assert finished.card.metrics["validation_robust_dice"] == pytest.approx(best, abs=1e-4)


def test_training_can_start_from_another_model(make_config: MakeConfig, sides, three_epochs, tmp_path: Path) -> None:
    (*cold, _), folder = three_epochs
    warm = next(train(make_config(start=str(folder)), *sides, tmp_path / "warm"))
    assert isinstance(warm, EpochDone)
    assert warm.loss < cold[0].loss


@pytest.fixture
def batch() -> tuple[SegmentationModel, torch.Tensor, torch.Tensor]:
    """A model in training mode, images that reach beyond the window, and masks."""
    card = ModelCard.model_validate(
        {
            "name": "tiny",
            "title": "Tiny",
            "architecture": "unet",
            "architecture_args": {"channels": (4, 8)},
            "ndim": 2,
            "channels": 1,
            "classes": [{"id": 1, "name": "disc", "color": "#E69F00"}],
            "mode": "binary",
            "window": {"kind": "fixed", "low": 0, "high": 1},
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SegmentationModel(card).train()
        images = torch.rand(4, 1, 16, 16) * 1.4 - 0.2
    return model, images, (images[:, 0] > 0.5).long()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("epsilon", [0.5 / 255, 8 / 255])
def test_crafted_batches_stay_in_the_ball_and_are_stronger(batch, epsilon: float, steps: int) -> None:
    model, images, masks = batch
    before = {k: v.clone() for k, v in model.state_dict().items()}
    clean = images.clone()
    attacked = craft(model, images, masks, AdversarialTraining(steps=steps), epsilon, seed=3)
    assert torch.equal(images, clean)
    assert (attacked - images).abs().max() <= epsilon + 1e-6
    assert attacked.min() >= images.min()
    assert attacked.max() <= images.max()
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} has changed: crafting must not touch batch norms"
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not attacked.requires_grad
    problem = Problem.pose(model.eval(), images, masks, "dice_ce")
    noise = torch.randn_like(images).sign() * epsilon
    loss = {name: problem.look(delta)[1] for name, delta in (("attack", attacked - images), ("noise", noise))}
    assert (loss["attack"] > loss["noise"]).all()


def test_every_case_of_a_batch_starts_elsewhere(batch) -> None:
    model, images, masks = batch
    same = images[:1].expand(4, -1, -1, -1), masks[:1].expand(4, -1, -1)
    attacked = craft(model, *same, AdversarialTraining(steps=1), 8 / 255, seed=3)
    assert not torch.equal(attacked[0], attacked[1])


def test_a_loss_that_is_not_finite_stops_the_run(make_config: MakeConfig, sides, tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match=r"^the loss is nan in epoch 1, batch 2; lower the learning rate\.$"):
        list(train(make_config(learning_rate=1e30), *sides, tmp_path))
    assert not (tmp_path / "card.json").exists()


def test_a_defended_run_that_is_not_finite_stops_too(make_config: MakeConfig, sides, tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match="not finite"):
        list(train(make_config(learning_rate=1e30, adversarial={"steps": 1}), *sides, tmp_path))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"channels": 3}, r"disc_\d\d is 2-D with channels = 1, but the config says ndim = 2 and channels = 3"),
        (
            {"ndim": 3, "patch": (8, 8, 8), "mirror": ()},
            r"disc_\d\d is 2-D .* ndim = 3 .*; correct the config or leave the case out",
        ),
    ],
)
def test_data_that_do_not_fit_the_config(
    make_config: MakeConfig, sides, tmp_path: Path, changes: dict, sentence: str
) -> None:
    with pytest.raises(CeaseError, match=sentence):
        list(train(make_config(**changes), *sides, tmp_path))


def test_both_sides_need_cases(make_config: MakeConfig, sides, tmp_path: Path) -> None:
    for pair in ((sides[0], []), ([], sides[1])):
        with pytest.raises(CeaseError, match="one with foreground to validate on"):
            list(train(make_config(), *pair, tmp_path))


def test_a_start_of_another_shape_is_refused(make_config: MakeConfig, sides, batch, tmp_path: Path) -> None:
    start = save_model(batch[0], tmp_path / "tiny")
    with pytest.raises(CeaseError, match=r"^start: .* has other layers than the config's residual_unet"):
        list(train(make_config(start=str(start)), *sides, tmp_path / "run"))


def test_a_damaged_state_is_refused(make_config: MakeConfig, sides, tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(b"PK")
    with pytest.raises(CeaseError, match=rf"{STATE} is damaged; start a new run"):
        list(train(make_config(), *sides, tmp_path, resume=True))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ('{"name": 3}', r"name: Input should be a valid string; correct that entry"),
        (None, "give the path of a training config"),
    ],
)
def test_configs_that_cannot_be_read(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CeaseError, match=sentence):
        load_config(tmp_path / "config.json")


def test_every_loss_can_be_ascended_and_no_other(make_config: MakeConfig) -> None:
    for loss in LOSSES:
        assert make_config(adversarial={"loss": loss}).adversarial is not None
    with pytest.raises(ValidationError, match=r"adversarial\.loss"):
        make_config(adversarial={"loss": "hinge"})


def test_a_config_comes_back_from_json(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(adversarial={"steps": 2})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert load_config(tmp_path / "config.json") == config
