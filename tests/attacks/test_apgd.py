"""APGD: when its step size halves, where it goes on from, and the balls that it shrinks through."""

from __future__ import annotations

import pytest
import torch
from attack_subjects import target
from test_closed_form import EPSILON, IMAGES, WEIGHTS, PixelByPixel, WholeImage
from torch import Tensor

from cease_core.attacks import PGD, Norm, ladder
from cease_core.attacks.apgd import APGD, Progress, checkpoints
from cease_core.attacks.norms import magnitude
from cease_core.attacks.problem import Problem
from cease_core.models import Mode

ROUNDING = 1 + 1e-6


class Identity:
    """The image is its own logits; what was asked is kept."""

    mode: Mode = "binary"

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.asked.append(images.detach())
        return images


def one_value(loss: object, attack: APGD | PGD) -> Tensor:
    """The perturbation (N,) of one-pixel images at 0, judged by ``loss`` of that pixel alone."""
    images = torch.zeros(2, 1, 1, 1)
    labels = torch.zeros(2, 1, 1, dtype=torch.long)
    found = attack(Identity(), images, labels, bounds=(-9.0, 9.0))  # type: ignore[arg-type]
    return found.perturbation.flatten()


@pytest.mark.parametrize(
    ("steps", "at"),
    [
        (20, (5, 9, 12, 14, 16, 18, 19, 20)),
        (100, (22, 41, 57, 70, 80, 87, 93, 99)),
        (3, (1, 2, 3)),
        (1, (1,)),
    ],
)
def test_checkpoints_come_ever_closer(steps: int, at: tuple[int, ...]) -> None:
    assert checkpoints(steps) == at


def progress_after(*losses: list[float], tied: bool = False) -> tuple[Progress, Tensor, Tensor]:
    """Two cases' progress, judged after the first loss and after each list; iterate and gradient count up."""
    count = 0
    progress = Progress(torch.zeros(2, 1), 1.0)
    for interval in ([0.0], *losses):
        for value in interval:
            here = torch.full((2, 1), float(count))
            height = torch.tensor([value, float(count)])
            progress.note(here, -here, *((torch.zeros(2), height) if tied else (height, torch.zeros(2))))
            count += 1
        here, grad = progress.judge(here, -here)
    return progress, here, grad


def test_three_quarters_of_rising_steps_keep_the_step_size() -> None:
    progress, here, grad = progress_after([1, 2, 3, 2.5])
    assert progress.size.tolist() == [1.0, 1.0]
    assert here.tolist() == [[4.0], [4.0]]
    assert grad.tolist() == [[-4.0], [-4.0]]


@pytest.mark.parametrize("tied", [False, True])
def test_fewer_rising_steps_halve_it_and_lead_back_to_the_highest_point(tied: bool) -> None:
    progress, here, grad = progress_after([1, 3, 2, 1], tied=tied)
    assert progress.size.tolist() == [0.5, 1.0]  # the second case rose at every step
    assert here.tolist() == [[2.0], [4.0]]
    assert grad.tolist() == [[-2.0], [-4.0]]


def test_rising_without_a_new_highest_loss_halves_it_once() -> None:
    first, below = [1.0, 2.0, 3.0, 2.9], [0.0, 1.0, 2.0, 2.5]
    assert progress_after(first, below)[0].size.tolist() == [0.5, 1.0]
    assert progress_after(first, below, below)[0].size.tolist() == [0.5, 1.0]
    assert progress_after(first, below, below, below)[0].size.tolist() == [0.25, 1.0]


def test_a_slope_is_climbed_at_full_step() -> None:
    # Momentum and gradient agree, every step rises: 20 steps of ε / 40 end half way.
    attack = APGD(epsilon=1.0, steps=20, step_size=1 / 40, random=False, criterion="loss", loss=_slope)
    torch.testing.assert_close(one_value(_slope, attack), torch.tensor([0.5, 0.5]))


def test_a_peak_that_a_fixed_step_jumps_over_is_found() -> None:
    settings = {"epsilon": 1.0, "random": False, "criterion": "loss", "loss": _peak, "step_size": 1.0, "steps": 100}
    found, jumped = (one_value(_peak, make(**settings)) for make in (APGD, PGD))  # type: ignore[arg-type]
    assert (found - 0.3).abs().max() < 2e-3
    assert (jumped - 0.3).abs().min() > 0.1


def _slope(logits: Tensor, _: Tensor, __: Mode) -> Tensor:
    return logits.flatten(1).sum(dim=1)


def _peak(logits: Tensor, _: Tensor, __: Mode) -> Tensor:
    return -(logits - 0.3).square().flatten(1).sum(dim=1)


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (0.12, 0.88)])
def test_linf_optimum_of_a_linear_model(bounds: tuple[float, float], shrink: bool) -> None:
    labels = (PixelByPixel()(IMAGES) > 0)[:, 0].long()
    away = torch.where(labels == 1, -1.0, 1.0).unsqueeze(1) * WEIGHTS.sign()
    low, high = ((b - IMAGES) for b in bounds)
    worst = (EPSILON * away).clamp(min=low.clamp_max(0), max=high.clamp_min(0))
    found = APGD(epsilon=EPSILON, steps=20, shrink=shrink)(PixelByPixel(), IMAGES, labels, bounds=bounds)
    torch.testing.assert_close(found.perturbation, worst, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("label", [0, 1])
def test_l2_optimum_of_a_linear_model(label: int, shrink: bool) -> None:
    away = 1 - 2 * label
    worst = EPSILON * away * WEIGHTS / WEIGHTS.square().mean().sqrt()
    labels = torch.full((1, 6, 5), label)
    attack = APGD(epsilon=EPSILON, norm="l2", steps=40, shrink=shrink)
    found = attack(WholeImage(-5.0 * away), IMAGES[:1], labels, bounds=(-9.0, 9.0))
    torch.testing.assert_close(found.perturbation[0], worst, rtol=0, atol=1e-4)


def test_balls_shrink_to_the_last() -> None:
    assert APGD(steps=20).radii(0.1) == ((0.1, 20),)
    shrinking = APGD(steps=20, shrink=True)
    assert shrinking.radii(0.1) == ((0.2, 6), (pytest.approx(0.15), 6), (0.1, 8))
    assert shrinking.radii(0.1, 9) == ((0.1, 9),)
    assert sum(steps for _, steps in shrinking.radii(0.1, 37)) == 37


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 7, 10])
def test_stopped_outside_the_ball_the_result_lies_inside(stop_at: int, norm: Norm) -> None:
    t = target("multiclass", 2)
    region = torch.ones_like(t.images[:, :1])
    region[..., :3] = 0
    attack = APGD(epsilon=0.03, norm=norm, steps=10, shrink=True)
    result = attack(t.net, t.images, t.labels, region=region, callback=lambda step: step.done < stop_at)
    assert result.gradients.tolist() == [stop_at] * 2
    assert result.cancelled == (stop_at < 10)
    assert (magnitude(result.perturbation, norm, region.expand_as(t.images)) <= 0.03 * ROUNDING).all()
    assert not result.perturbation[..., :3].any()
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    # From the first step on, what was found in the wide ball is of use in the narrow one.
    assert (result.score < 1).all()


def test_the_wide_ball_is_visited() -> None:
    model = Identity()
    images = torch.full((1, 1, 4, 4), 0.5)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    APGD(epsilon=0.1, steps=10, shrink=True)(model, images, labels)
    sizes = [magnitude(asked - images, "linf").item() for asked in model.asked]
    assert max(sizes) == pytest.approx(0.2, rel=1e-5)
    assert max(sizes[-4:]) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_few_steps_are_as_good_as_pgd(steps: int) -> None:
    rows = [target(mode, 2) for mode in ("binary", "multiclass", "multilabel")]
    mine, plain = (
        torch.cat([make(steps=steps, epsilon=0.04)(t.net, t.images, t.labels).dice for t in rows]).mean()
        for make in (APGD, PGD)
    )
    assert mine <= plain + 0.02


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shrink", [False, True])
def test_the_ladder_stays_within_each_ball(shrink: bool, norm: Norm) -> None:
    t = target("binary", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    rungs = list(ladder(APGD(norm=norm, steps=12, shrink=shrink), problem, [0.06, 0.04, 0.02, 0.005]))
    for rung in rungs:
        assert (magnitude(rung.result.perturbation, norm) <= rung.epsilon * ROUNDING).all()
    last = {r.epsilon: r.result.dice for r in rungs}
    assert (torch.stack([last[e] for e in (0.06, 0.04, 0.02, 0.005)]).diff(dim=0) >= 0).all()
