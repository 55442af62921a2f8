"""ALMA prox: its proximal operators, its constraints, and the known optimum of linear models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_subjects import target
from linear_models import IMAGES, WIDE, PixelByPixel, WholeImage
from scipy.optimize import minimize
from torch import Tensor

from cease_core.attacks import ALMAProx, MinimalResult
from cease_core.attacks.alma import easiest, margin, penalty, penalty_slope
from cease_core.attacks.problem import Problem
from cease_core.attacks.proximal import prox_l2, prox_linf
from cease_core.errors import CeaseError
from cease_core.models import Mode

MODES: tuple[Mode, ...] = ("binary", "multiclass", "multilabel")
# Margins do not tell which of these pixels are easy: their weights differ.
ALMA = ALMAProx(epsilon=1.0, steps=100, narrowing=1.0)


def vectors(seed: int, count: int = 4, size: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Points, metric, weight and box of small problems; the box cuts off some entries and not others."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(count, size, generator=g, dtype=torch.double)
    metric, low, high = (torch.rand(count, size, generator=g, dtype=torch.double) for _ in range(3))
    weight = torch.rand(count, generator=g, dtype=torch.double) * 3
    return z, metric * 2 + 0.1, weight, -2 * low, 2 * high


def objective(p: Tensor, z: Tensor, metric: Tensor, weight: Tensor, norm: str) -> Tensor:
    size = p.abs().amax(dim=1) if norm == "linf" else p.norm(dim=1)
    return weight * size + 0.5 * (metric * (p - z).square()).sum(dim=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("norm", "prox"), [("linf", prox_linf), ("l2", prox_l2)])
def test_no_solver_finds_a_lower_point(seed: int, norm: str, prox) -> None:
    z, metric, weight, low, high = vectors(seed)
    found = prox(z, metric, weight, low, high)
    assert (found >= low).all()
    assert (found <= high).all()
    n = z.shape[1]
    for i in range(len(z)):
        a, m, w = z[i].numpy(), metric[i].numpy(), float(weight[i])
        # As a smooth problem: the size is a variable r of its own, bounded from below by the norm.
        if norm == "linf":
            bounds = [lambda x: x[n] - x[:n], lambda x: x[n] + x[:n]]
        else:
            bounds = [lambda x: x[n] ** 2 - (x[:n] ** 2).sum()]
        reference = minimize(
            lambda x, a=a, m=m, w=w: w * x[n] + 0.5 * (m * (x[:n] - a) ** 2).sum(),
            np.append(np.clip(a, low[i], high[i]) / 2, np.linalg.norm(a)),
            bounds=[*zip(low[i].tolist(), high[i].tolist(), strict=True), (0, None)],
            constraints=[{"type": "ineq", "fun": f} for f in bounds],
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )
        mine = objective(found[i : i + 1], z[i : i + 1], metric[i : i + 1], weight[i : i + 1], norm).item()
        assert mine <= reference.fun * (1 + 1e-7)  # its own constraints hold to about that


def test_linf_prox_beats_every_radius_of_a_grid() -> None:
    z, metric, weight, low, high = vectors(9, count=30)
    found = objective(prox_linf(z, metric, weight, low, high), z, metric, weight, "linf")
    for radius in torch.linspace(0, 3, 1001, dtype=torch.double):
        other = z.clamp(low, high).clamp(-radius, radius)
        assert (found <= objective(other, z, metric, weight, "linf") + 1e-12).all()


def test_linf_prox_slope_vanishes_and_is_the_finite_difference() -> None:
    z, metric, weight, *_ = vectors(5, count=20)
    weight[:5] *= 50  # more than can be worth any radius
    wide = torch.full_like(z, 50.0)
    found = prox_linf(z, metric, weight, -wide, wide)
    radius = found.abs().amax(dim=1)
    moved = radius > 0
    assert moved.sum() >= 5
    assert (~moved).any()

    def slope(r: Tensor) -> Tensor:
        return weight - (metric * (z.abs() - r[:, None]).clamp_min(0)).sum(dim=1)

    def along(r: Tensor) -> Tensor:
        return objective(z.clamp(-r[:, None], r[:, None]), z, metric, weight, "linf")

    assert slope(radius)[moved].abs().max() < 1e-12
    assert (slope(radius)[~moved] >= 0).all()
    # Beside the optimum, where the slope is not zero, so that a relative error has a meaning.
    at, step = radius[moved] * 0.7, 1e-6
    full = radius.clone()
    difference = []
    for sign in (1, -1):
        full[moved] = at + sign * step
        difference.append(along(full)[moved])
    full[moved] = at
    numeric = (difference[0] - difference[1]) / (2 * step)
    torch.testing.assert_close(slope(full)[moved], numeric, rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_linf_prox_gradient_is_the_finite_difference(seed: int) -> None:
    z, metric, weight, low, high = vectors(20 + seed)
    z.requires_grad_()
    weight.requires_grad_()
    torch.autograd.gradcheck(
        lambda z, w: prox_linf(z, metric, w, low, high), (z, weight), eps=1e-7, atol=1e-7, rtol=1e-5
    )
    (grad,) = torch.autograd.grad(prox_linf(z, metric, weight, low, high).square().sum(), z)
    assert grad.any()


@pytest.mark.parametrize("prox", [prox_linf, prox_l2])
def test_without_weight_it_projects_and_with_much_it_is_zero(prox) -> None:
    z, metric, weight, low, high = vectors(1)
    torch.testing.assert_close(prox(z, metric, torch.zeros_like(weight), low, high), z.clamp(low, high))
    assert not prox(z, metric, weight + 100, low, high).any()


def test_linf_prox_does_not_depend_on_the_size_of_its_numbers() -> None:
    z, metric, weight, low, high = (t.float() for t in vectors(2))
    found = prox_linf(z, metric, weight, low, high)
    small = prox_linf(z * 1e-4, metric * 1e-6, weight * 1e-10, low * 1e-4, high * 1e-4)
    torch.testing.assert_close(small, found * 1e-4)


def test_penalty_slope_is_the_finite_difference() -> None:
    value = torch.linspace(-2, 2, 40, dtype=torch.double)
    value.requires_grad_()
    for multiplier, steepness in ((1.0, 0.01), (0.3, 5.0)):
        m, s = torch.full_like(value, multiplier).detach(), torch.full_like(value, steepness).detach()
        torch.autograd.gradcheck(lambda v, m=m, s=s: penalty(v, m, s), value, rtol=1e-5)
        (grad,) = torch.autograd.grad(penalty(value, m, s).sum(), value)
        torch.testing.assert_close(penalty_slope(value.detach(), m, s), grad, rtol=1e-10, atol=0)
        assert (penalty_slope(value.detach(), m, s) > 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_margins_say_which_decisions_are_right(mode: Mode) -> None:
    t = target(mode, 3)
    problem = Problem.pose(t.net, t.images, t.labels.roll(1, dims=-1), "soft_dice")
    logits = problem.clean().logits
    right = margin(logits, problem.reference, mode) > 0
    if mode == "multiclass":
        assert torch.equal(right[:, 0], logits.argmax(dim=1) == problem.reference.argmax(dim=1))
    else:
        assert torch.equal(right, (logits > 0) == (problem.reference > 0.5))
    assert right.any()
    assert not right.all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_easiest_constraints_are_enough_and_one_less_is_not(mode: Mode, targeted: bool) -> None:
    model = PixelByPixel(mode)
    goal = model.labels().roll(1, dims=-1) if targeted else None
    problem = Problem.pose(model, IMAGES, model.labels(), "soft_dice", target=goal)
    logits = problem.clean().logits
    values = margin(logits, problem.reference, mode) * (-1 if targeted else 1)
    chosen = easiest(values, logits, problem, torch.full((3,), 0.3))
    falls = (problem.reference > 0.5) == (chosen if targeted else ~chosen)
    if mode == "multiclass":
        falls = (problem.reference[:, 1:] > 0.5) == (chosen if targeted else ~chosen)
        falls = torch.cat((~falls, falls), dim=1)
    decided = falls.float() - 0.5
    assert (problem.score(decided, torch.zeros(3)) <= 0.3).all()
    assert not chosen.flatten(1).all(dim=1).any()
    assert chosen.flatten(1).any(dim=1).all()


def test_pixel_success_of_99_percent_is_a_share_of_the_accuracy() -> None:
    images = torch.rand(1, 2, 6, 5, generator=torch.Generator().manual_seed(4)).repeat(1, 1, 10, 10)

    class Tiled(PixelByPixel):
        def __call__(self, images: Tensor) -> Tensor:
            return images[:, :1] - images[:, 1:]

    model = Tiled("binary")
    problem = Problem.pose(model, images, model.labels(images), "soft_dice", criterion="accuracy")
    logits = problem.clean().logits
    chosen = easiest(margin(logits, problem.reference, "binary"), logits, problem, 0.01 * problem.clean().score)
    assert 0.99 <= chosen.float().mean() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_close_to_the_smallest_radius_of_a_linear_model(mode: Mode) -> None:
    model = PixelByPixel(mode)
    known = model.smallest()
    found = ALMA(model, IMAGES, model.labels(), bounds=WIDE)
    assert isinstance(found, MinimalResult)
    assert found.success.all()
    assert (found.minimal >= known * (1 - 1e-5)).all()
    assert (found.minimal <= known * 1.05).all()


def test_close_to_the_smallest_radius_that_turns_every_pixel() -> None:
    model = PixelByPixel("binary")
    known = model.radii().flatten(1).amax(dim=1)
    found = replace(ALMA, epsilon=4.0, criterion="accuracy", share=0.01)(model, IMAGES, model.labels(), bounds=WIDE)
    assert found.success.all()
    assert (found.minimal >= known * (1 - 1e-5)).all()
    assert (found.minimal <= known * 1.05).all()


def test_close_to_the_smallest_l2_of_a_linear_model() -> None:
    model = WholeImage(2.0)
    labels = torch.ones(1, 6, 5, dtype=torch.long)
    found = replace(ALMA, norm="l2")(model, IMAGES[:1], labels, bounds=WIDE)
    assert model.smallest() * (1 - 1e-5) <= found.minimal.item() <= model.smallest() * 1.05


@pytest.mark.parametrize("mode", MODES)
def test_a_target_is_reached(mode: Mode) -> None:
    model = PixelByPixel(mode)
    goal = model.labels().roll(1, dims=-1)
    found = replace(ALMA, epsilon=4.0)(model, IMAGES, model.labels(), target=goal, bounds=WIDE)
    assert found.success.all()
    assert (found.target_dice >= 0.9 - 1e-6).all()


def test_what_the_cap_does_not_allow_is_not_kept() -> None:
    model = PixelByPixel("binary")
    known = model.smallest()
    cap = float(known.min()) * 0.7
    found = replace(ALMA, epsilon=cap)(model, IMAGES, model.labels(), bounds=WIDE)
    assert not found.success.any()
    assert found.minimal.isinf().all()
    assert found.perturbation.abs().max() <= cap * (1 + 1e-6)
    assert (found.dice < 1).any()


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(CeaseError, match="give at least 1"):
        ALMAProx(steps=0)
    with pytest.raises(CeaseError, match="share of the steps"):
        ALMAProx(narrowing=1.5)
    with pytest.raises(CeaseError, match="share of the size"):
        ALMAProx(rate=0.0)
