"""The attack inside the training loop: within its limits, without a trace in the model, and better than noise."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from cease_core.attacks.losses import LOSSES, one_hot
from cease_core.defences import Batch, Objective, preset
from cease_core.defences.config import Ascent
from cease_core.defences.inner import craft, limits, start
from cease_core.defences.terms.consistency import divergence
from cease_core.errors import CeaseError
from cease_core.models import SegmentationModel

EPSILON = 8 / 255
CRAFTED = tuple(a for a in get_args(Ascent) if a != "free")
both_dims = pytest.mark.parametrize("ndim", [2, 3])


def objective_for(model: SegmentationModel, batch: Batch, ascent: str = "seg", **inner: Any) -> Objective:
    changes = {"inner.ascent": ascent, "auxiliary.tasks": ("sobel",), "inner.steps": 3}
    changes |= {f"inner.{key}": value for key, value in inner.items()}
    return Objective(preset("cease", changes), model, tuple(batch.images.shape[2:])).train()


def some(batch: Batch, index: list[int]) -> Batch:
    return Batch(batch.images[index], batch.labels[index], tuple(batch.seeds[i] for i in index))


@both_dims
@pytest.mark.parametrize("ascent", CRAFTED)
def test_it_stays_within_the_ball_and_the_range_and_leaves_no_trace(
    ascent: str, ndim: int, make_model, make_batch
) -> None:
    model, batch = make_model(ndim=ndim), make_batch(2, ndim)
    objective = objective_for(model, batch, ascent)
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    clean = batch.images.clone()
    adversarial = objective.attacked(batch, 1.0)
    assert torch.equal(batch.images, clean)
    moved = (adversarial - clean).abs().flatten(1).amax(dim=1)
    assert (moved <= EPSILON + 1e-6).all()
    assert (moved > EPSILON / 10).all()
    low, high = limits(clean)
    assert ((adversarial >= low - 1e-6) & (adversarial <= high + 1e-6)).all()
    assert not adversarial.requires_grad
    assert model.training
    assert all(torch.equal(value, before[k]) for k, value in objective.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in objective.parameters())


def climbed(objective: Objective, batch: Batch, ascent: str, images: Tensor) -> Tensor:
    """What an ascent is after, by its definition."""
    model = objective.model
    target = one_hot(batch.labels, model.mode, 1)
    if ascent == "consistency":
        return divergence(model(batch.images), model(images), model.mode).flatten(1).mean(dim=1)
    if ascent in ("seg", "segpgd", "frequency"):
        return LOSSES["cross_entropy"](model(images), target, model.mode)
    project = objective.terms[3].project
    away = 1 - (project(model.encode(batch.images)) * project(model.encode(images))).sum(dim=1)
    return away + (LOSSES["dice_ce"](model(images), target, model.mode) if ascent == "joint" else 0)


@pytest.mark.parametrize("ascent", CRAFTED)
def test_it_beats_noise(ascent: str, make_model, make_batch) -> None:
    batch = make_batch()
    objective = objective_for(make_model(), batch, ascent, steps=5)
    adversarial = objective.attacked(batch, 1.0)
    objective.eval()
    noise = EPSILON * torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0)).sign()
    with torch.no_grad():
        attacked = climbed(objective, batch, ascent, adversarial)
        assert (attacked > climbed(objective, batch, ascent, batch.images + noise)).all()


def test_every_case_starts_elsewhere_and_the_same_case_alike_in_any_batch(make_batch) -> None:
    images = make_batch(1).images.expand(3, -1, -1, -1)
    noise = start(images, EPSILON, (1, 2, 3))
    assert noise.abs().max() <= EPSILON
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(start(images[:2], EPSILON, (3, 1)), noise[[2, 0]])


@pytest.mark.parametrize("ascent", ["seg", "segpgd", "consistency", "contrastive", "joint"])
def test_a_case_is_attacked_alike_in_any_batch(ascent: str, make_model, make_batch) -> None:
    batch = make_batch(3)
    objective = objective_for(make_model(), batch, ascent)
    whole, part = (objective.attacked(some(batch, index), 1.0) for index in ([0, 1, 2], [2, 0]))
    torch.testing.assert_close(part, whole[[2, 0]], atol=1e-6, rtol=0)


def test_the_radius_rises_over_the_ramp(make_model, make_batch) -> None:
    batch = make_batch()
    objective = objective_for(make_model(), batch, ramp=0.2)
    assert [objective.epsilon(p) for p in (0.0, 0.05, 0.1, 0.2, 1.0)] == pytest.approx(
        [0, EPSILON / 4, EPSILON / 2, EPSILON, EPSILON]
    )
    assert objective_for(make_model(), batch, ramp=0).epsilon(0.0) == EPSILON
    for progress in (0.05, 0.1):
        moved = (objective.attacked(batch, progress) - batch.images).abs().max().item()
        assert moved == pytest.approx(objective.epsilon(progress), rel=1e-4)


def test_one_step_is_the_sign_of_the_gradient(make_batch) -> None:
    images = torch.full((1, 1, 2, 2), 0.5)
    slope = torch.tensor([[[[1.0, -3.0], [0.0, 2.0]]]])
    config = preset("at", {"inner.steps": 1, "inner.step_size": 0.02}).inner
    adversarial = craft(images, lambda x, _: (slope * x).flatten(1).sum(dim=1), config, 0.01, (7,))
    noise = start(images, 0.01, (7,))
    expected = (noise + 0.02 * slope.sign()).clamp(-0.01, 0.01)
    torch.testing.assert_close(adversarial - images, expected, atol=1e-6, rtol=0)


def test_a_reused_attack_begins_at_the_clean_image(make_model, make_batch) -> None:
    batch, model = make_batch(), make_model()
    objective = Objective(preset("at", {"inner.steps": 1, "inner.reuse": True}), model, (16, 16)).train()
    opening = objective.opening(batch)
    images = batch.images.clone().requires_grad_()
    LOSSES["dice_ce"](model(images), one_hot(batch.labels, model.mode, 1), model.mode).mean().backward()
    assert images.grad is not None
    low, high = limits(batch.images)
    expected = (batch.images + EPSILON * images.grad.sign()).clamp(low, high)
    torch.testing.assert_close(objective.attacked(batch, 1.0, opening), expected, atol=1e-6, rtol=0)


def test_a_reused_first_step_is_not_computed_again() -> None:
    told: list[int] = []

    def ascended(images: Tensor, step: int) -> Tensor:
        told.append(step)
        return images.flatten(1).sum(dim=1)

    images = torch.full((1, 1, 2, 2), 0.5)
    config = preset("at", {"inner.steps": 3, "inner.step_size": 0.01}).inner
    found = craft(images, ascended, config, 0.05, (7,), first=torch.tensor([[[[1.0, -2.0], [0.0, 3.0]]]]))
    assert told == [1, 2]
    torch.testing.assert_close(found - images, torch.tensor([[[[0.03, 0.01], [0.02, 0.03]]]]), atol=1e-6, rtol=0)


def test_the_steps_are_numbered(make_batch) -> None:
    told: list[int] = []

    def ascended(images: Tensor, step: int) -> Tensor:
        told.append(step)
        return images.flatten(1).sum(dim=1)

    craft(make_batch().images, ascended, preset("at", {"inner.steps": 4}).inner, EPSILON, (1, 2, 3))
    assert told == [0, 1, 2, 3]


def test_it_works_where_gradients_are_off(make_model, make_batch) -> None:
    batch = make_batch()
    objective = objective_for(make_model(), batch)
    with torch.no_grad():
        off = objective.attacked(batch, 1.0)
    assert torch.equal(off, objective.attacked(batch, 1.0))


def test_a_gradient_that_is_not_finite_is_told(make_batch) -> None:
    images = make_batch(1).images
    with pytest.raises(CeaseError, match=r"^the inner attack's gradient is not finite; lower the learning rate\.$"):
        craft(images, lambda x, _: (x * torch.inf).flatten(1).sum(dim=1), preset("at").inner, EPSILON, (0,))


def test_the_free_perturbation_climbs_the_training_gradient(make_model, make_batch) -> None:
    batch = make_batch()
    objective = Objective(preset("free_at", {"inner.ramp": 0}), make_model(), (16, 16)).train()
    first = objective.attacked(batch, 1.0)
    assert torch.equal(first, batch.images)
    objective(batch, first, 1.0).total.backward()
    assert first.grad is not None
    sign = first.grad.sign()
    objective.climb(first, 1.0)
    torch.testing.assert_close(objective.free, EPSILON * sign, atol=1e-7, rtol=0)
    second = objective.attacked(batch, 1.0)
    low, high = limits(batch.images)
    expected = (batch.images + EPSILON * sign).clamp(low, high)
    torch.testing.assert_close(second, expected, atol=1e-6, rtol=0)
    # Twice the same way is no farther: the ball holds it.
    second.grad = sign.clone()
    objective.climb(second, 1.0)
    torch.testing.assert_close(objective.free, EPSILON * sign, atol=1e-7, rtol=0)
    second.grad = -sign
    objective.climb(second, 1.0)
    assert objective.free.abs().max() <= 1e-7


def test_the_free_perturbation_keeps_within_a_smaller_radius(make_model, make_batch) -> None:
    batch = make_batch()
    objective = Objective(preset("free_at"), make_model(), (16, 16)).train()
    objective.free = torch.full_like(batch.images, EPSILON)
    moved = (objective.attacked(batch, 0.05) - batch.images).abs().max().item()
    assert moved <= EPSILON / 4 + 1e-6


def test_the_free_perturbation_outlives_a_gradient_that_overflows(make_model, make_batch) -> None:
    batch = make_batch()
    objective = Objective(preset("free_at", {"inner.ramp": 0}), make_model(), (16, 16)).train()
    view = objective.attacked(batch, 1.0)
    view.grad = torch.ones_like(view)
    view.grad[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    objective.climb(view, 1.0)
    assert objective.free[0, 0, 0, :3].tolist() == [0, 0, 0]
    assert (objective.free.flatten()[3:] == EPSILON).all()
