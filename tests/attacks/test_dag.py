"""DAG: which pixels are active, what is ascended, and what is kept when pixels hold out."""

from __future__ import annotations

import pytest
import torch
from attack_subjects import target
from torch import Tensor

from cease_core.attacks import ladder
from cease_core.attacks.dag import DAG
from cease_core.attacks.problem import Problem
from cease_core.models import Mode


class Raw:
    """Each pixel's logits are its channels: what an image says is what the model decides."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode

    def __call__(self, images: Tensor) -> Tensor:
        return images * 1


def posed(mode: Mode, logits: list[list[float]], labels: list[int], goal: list[int] | None = None) -> Problem:
    """A row of pixels; ``logits`` has one list a channel."""
    images = torch.tensor(logits).view(1, len(logits), 1, -1)
    ids = [None if m is None else torch.tensor(m).view(1, 1, -1) for m in (labels, goal)]
    assert ids[0] is not None
    return Problem.pose(Raw(mode), images, ids[0], "soft_dice", target=ids[1], bounds=(-9.0, 9.0))


def advantage(problem: Problem) -> float:
    return DAG().advantage(problem.images, problem).item()


def test_sigmoid_pixels_are_active_until_they_leave_their_label() -> None:
    # Right by 2, wrong, right by 1; the second has left already.
    assert advantage(posed("binary", [[2.0, -3.0, -1.0]], [1, 1, 0])) == -3.0


def test_towards_a_target_pixels_are_active_until_they_show_it() -> None:
    # Only the second and the third do not show the target yet.
    assert advantage(posed("binary", [[2.0, -3.0, 4.0]], [1, 1, 0], [1, 1, 0])) == -7.0


def test_channels_of_a_multilabel_model_are_active_on_their_own() -> None:
    # Labels 2 and 0: channel 1 should be off and off, channel 2 on and off.
    assert advantage(posed("multilabel", [[-1.0, 5.0], [2.0, -4.0]], [2, 0])) == -(1 + 2 + 4)


def test_a_multiclass_pixel_loses_to_the_class_that_the_seed_sends_it_to() -> None:
    logits = [[3.0, 0.0, 9.0], [1.0, 5.0, 0.0], [0.0, 1.0, 0.5]]
    # Pixels decided 0, 1 and 0, labelled 0, 1 and 2: the last has left.
    problem = posed("multiclass", logits, [0, 1, 2])
    onwards, back = (3 - 1) + (5 - 1), (3 - 0) + (5 - 0)  # 0→1→2→0 and 0→2→1→0
    values = {DAG(seed=s).advantage(problem.images, problem).item() for s in range(8)}
    assert values == {-onwards, -back}


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_every_class_is_sent_to_another(classes: int) -> None:
    for seed in range(5):
        origin = DAG(seed=seed).origin(classes).tolist()
        assert sorted(origin) == list(range(classes))
        assert all(a != b for a, b in enumerate(origin))


def test_a_third_class_in_the_way_of_the_target_is_the_rival() -> None:
    # Labelled 0, wanted 1, decided 2.
    assert advantage(posed("multiclass", [[1.0], [2.0], [4.0]], [0], [1])) == -2.0


def test_a_step_is_the_gradient_over_its_largest_entry() -> None:
    grad = torch.tensor([[[[4.0, -2.0]]], [[[0.0, 0.5]]]])
    problem = posed("binary", [[1.0, 1.0]], [1, 1])
    expected = torch.tensor([[[[3.0, -1.5]]], [[[0.0, 3.0]]]])
    assert torch.equal(DAG(reach=3.0).direction(problem)(grad), expected)
    assert not DAG().direction(problem)(torch.zeros_like(grad)).any()


def test_a_case_without_active_pixels_stands_still() -> None:
    # One step of γ = 0.2 takes the only pixel across the border; then nothing is active.
    problem = posed("binary", [[0.1]], [1])
    result = DAG(epsilon=0.5, steps=6, step_size=0.1, reach=2.0).run(problem)
    torch.testing.assert_close(result.perturbation.flatten(), torch.tensor([-0.2]))
    assert result.loss.flatten()[1:].tolist() == [0.0] * 6
    assert result.dice.item() == 0


def test_pixels_that_hold_out_do_not_cost_the_others() -> None:
    # The first pixel is out of reach; the second falls, and the result keeps it.
    result = DAG(epsilon=0.5, steps=4).run(posed("binary", [[3.0, 0.3]], [1, 1]))
    assert result.dice.item() == pytest.approx(2 / 3)
    assert (result.logits.flatten() > 0).tolist() == [True, False]


def test_towards_an_empty_mask_the_nearest_is_kept() -> None:
    # Its Dice stays 0 until the last pixel is gone: the sum of margins decides.
    result = DAG(epsilon=0.5, steps=4).run(posed("binary", [[3.0, 0.3]], [1, 1], [0, 0]))
    assert result.target_dice.item() == 0
    assert (result.logits.flatten() > 0).tolist() == [True, False]
    assert result.loss[-1] == pytest.approx(-2.5)


@pytest.mark.parametrize("goal", [None, [0, 1, 1, 0]])
def test_on_a_linear_model_every_pixel_goes_its_way(goal: list[int] | None) -> None:
    problem = posed("binary", [[2.0, -2.0, 2.0, -2.0]], [1, 0, 1, 0], goal)
    found = DAG(epsilon=0.1, steps=3).run(problem).perturbation.flatten()
    expected = [-0.1, 0.1, -0.1, 0.1] if goal is None else [-0.1, 0.1, 0.0, 0.0]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_more_steps_ascend_further(mode: Mode) -> None:
    t = target(mode, 2)
    traces = DAG(epsilon=0.05, steps=8)(t.net, t.images, t.labels).loss
    assert (traces[-1] > traces[0]).all()


def test_stopping_keeps_the_best_so_far() -> None:
    t = target("multiclass", 2)
    result = DAG(steps=8)(t.net, t.images, t.labels, callback=lambda step: step.done < 2)
    assert result.cancelled
    assert result.gradients.tolist() == [2, 2]
    assert (result.dice < 1).all()


def test_every_rung_of_a_ladder_is_pressed_on() -> None:
    t = target("binary", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    rungs = {r.epsilon: r.result for r in ladder(DAG(steps=6), problem, [0.01, 0.03, 0.05])}
    alone = {e: DAG(steps=6, epsilon=e).run(problem) for e in rungs}
    assert all((rungs[e].score.mean() <= alone[e].score.mean() + 0.01) for e in rungs)
    assert all((r.loss <= 0).all() for r in rungs.values())
