"""ASMA: what is ascended, how far a step goes, and what is kept when the target stays out of reach."""

from __future__ import annotations

import pytest
import torch
from attack_subjects import target
from torch import Tensor

from cease_core.attacks import ladder
from cease_core.attacks.asma import ASMA, missing
from cease_core.attacks.problem import Problem
from cease_core.attacks.targets import shift
from cease_core.errors import CeaseError
from cease_core.models import Mode


class Raw:
    """Each pixel's logits are its channels: what an image says is what the model decides."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode

    def __call__(self, images: Tensor) -> Tensor:
        return images * 1


def posed(mode: Mode, logits: list[list[float]], goal: list[int]) -> Problem:
    """A row of pixels with nothing labelled; ``logits`` has one list a channel."""
    images = torch.tensor(logits).view(1, len(logits), 1, -1)
    wanted = torch.tensor(goal).view(1, 1, -1)
    return Problem.pose(Raw(mode), images, torch.zeros_like(wanted), "soft_dice", target=wanted, bounds=(-9.0, 9.0))


@pytest.mark.parametrize(
    ("mode", "logits", "goal", "value", "gradient"),
    [
        # Shown, wanted but absent, there but not wanted.
        ("binary", [[2.0, -3.0, 4.0]], [1, 1, 0], -7.0, [[0.0, 1.0, -1.0]]),
        # Class 2 alone for the first pixel, none for the second.
        ("multilabel", [[1.0, -1.0], [-2.0, 5.0]], [2, 0], -8.0, [[-1.0, 0.0], [1.0, -1.0]]),
        # The first shows class 2 instead of 1, by a margin of 3: only the logit of 1 is ascended.
        ("multiclass", [[0.0, 9.0], [1.0, 0.0], [4.0, 0.0]], [1, 0], -3.0, [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
    ],
)
def test_only_what_is_missing_is_ascended(
    mode: Mode, logits: list[list[float]], goal: list[int], value: float, gradient: list[list[float]]
) -> None:
    problem = posed(mode, logits, goal)
    images = problem.images.clone().requires_grad_()
    loss = missing(images, problem)
    assert loss.item() == value
    (grad,) = torch.autograd.grad(loss.sum(), images)
    assert grad[0, :, 0].tolist() == gradient


def test_steps_grow_with_the_overlap() -> None:
    # Far off, a pixel comes nearer by α each step; the second falls after the first step.
    problem = posed("binary", [[-0.9, -0.05, -1.0, -1.0]], [1, 1, 0, 0])
    result = ASMA(epsilon=2.0, steps=3, step_size=0.1, beta=1.2, tau=0.4).run(problem)
    # At first background alone is shown: IoU (2/4 + 0) / 2, then (2/3 + 1/2) / 2 with one pixel of two.
    first = 0.1 * (1.2 * 0.25 + 0.4)
    later = 0.1 * (1.2 * 7 / 12 + 0.4)
    way = torch.tensor([0.95, 0.9 - first, 0.9 - first - later, 0.9 - first - 2 * later])
    torch.testing.assert_close(-result.loss[:, 0], way)
    torch.testing.assert_close(result.perturbation.flatten(), torch.tensor([first + 2 * later, first, 0.0, 0.0]))


def test_each_case_has_its_own_pace() -> None:
    images = torch.tensor([[-1.0, -1.0], [1.0, -1.0]]).view(2, 1, 1, 2)
    goal = torch.ones(2, 1, 2, dtype=torch.long)
    found = ASMA(epsilon=1.0, steps=1, step_size=0.1, beta=1.0, tau=0.5)(
        Raw("binary"), images, torch.zeros_like(goal), target=goal, bounds=(-9.0, 9.0)
    ).perturbation
    # IoU (0 + 0) / 2 and (0 + 1/2) / 2; of the second case one pixel is missing.
    torch.testing.assert_close(found.view(2, 2), torch.tensor([[0.05, 0.05], [0.0, 0.075]]))


def test_a_target_that_stays_out_of_reach_is_kept_as_far_as_it_came() -> None:
    result = ASMA(epsilon=0.5, steps=20).run(posed("binary", [[-3.0, -0.3, -1.0]], [1, 1, 0]))
    assert result.target_dice.item() == pytest.approx(2 / 3)
    assert (result.logits.flatten() > 0).tolist() == [False, True, False]


def test_towards_an_empty_mask_the_nearest_is_kept() -> None:
    # Its Dice stays 0 until the last pixel is gone: what is missing decides.
    result = ASMA(epsilon=0.5, steps=20).run(posed("binary", [[3.0, 0.3]], [0, 0]))
    assert result.target_dice.item() == 0
    assert (result.logits.flatten() > 0).tolist() == [True, False]
    assert result.loss[-1].item() == pytest.approx(-2.5)


def test_on_a_linear_model_the_missing_pixels_go_to_the_edge() -> None:
    problem = posed("binary", [[2.0, -2.0, 2.0, -2.0]], [0, 1, 1, 0])
    found = ASMA(epsilon=0.1).run(problem).perturbation.flatten()
    torch.testing.assert_close(found, torch.tensor([-0.1, 0.1, 0.0, 0.0]))


def test_paces_follow_their_cases_through_restarts_and_closed_cases() -> None:
    t = target("multiclass", 2, cases=3)
    attack = ASMA(epsilon=0.05, steps=6, random=True, restarts=2, stop_below=0.5)
    goal = shift(t.labels, offset=(0, 2))
    together = attack(t.net, t.images, t.labels, target=goal)
    for i in range(3):
        one = slice(i, i + 1)
        alone = attack(t.net, t.images[one], t.labels[one], target=goal[one])
        torch.testing.assert_close(alone.perturbation[0], together.perturbation[i], rtol=0, atol=1e-6)


def test_every_rung_of_a_ladder_comes_closer_with_its_radius() -> None:
    t = target("binary", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice", target=shift(t.labels, offset=(0, 2)))
    rungs = {r.epsilon: r.result.score.mean() for r in ladder(ASMA(steps=8), problem, [0.01, 0.03, 0.05])}
    assert rungs[0.05] < rungs[0.03] < rungs[0.01] < problem.clean().score.mean()


@pytest.mark.parametrize(("beta", "tau"), [(-1.0, 0.5), (1.0, -0.1), (0.0, 0.0), (float("nan"), 1.0)])
def test_paces_that_lead_nowhere_are_refused(beta: float, tau: float) -> None:
    with pytest.raises(CeaseError, match="one of them above 0"):
        ASMA(beta=beta, tau=tau)
