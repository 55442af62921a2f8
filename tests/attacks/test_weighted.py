"""SegPGD and CosPGD: the weights by hand, and what becomes of them in an attack."""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from attack_subjects import target
from torch import Tensor

from cease_core.attacks import CosPGD, SegPGD
from cease_core.attacks.losses import one_hot
from cease_core.attacks.problem import Problem
from cease_core.attacks.weighted import Weighted
from cease_core.models import Mode

# Softmax of (ln 2, 0, 0) is (1/2, 1/4, 1/4), of length √6/4.
LN2 = log(2)
MULTICLASS = torch.tensor([[[[LN2, 0.0]], [[0.0, 0.0]], [[0.0, LN2]]]])
MULTICLASS_LABELS = torch.tensor([[[0, 1]]])  # right, wrong

# Sigmoid of ln 3 is 3/4: as (3/4, 1/4), of length √10/4.
LN3 = log(3)
BINARY = torch.tensor([[[[LN3, LN3, -LN3]]]])
BINARY_LABELS = torch.tensor([[[1, 0, 1]]])  # right, wrong, wrong
MULTILABEL = torch.tensor([[[[LN3, -LN3]], [[-LN3, -LN3]]]])
MULTILABEL_LABELS = torch.tensor([[[1, 2]]])  # right in both channels; right in the first alone

CASES: dict[Mode, tuple[Tensor, Tensor]] = {
    "binary": (BINARY, BINARY_LABELS),
    "multiclass": (MULTICLASS, MULTICLASS_LABELS),
    "multilabel": (MULTILABEL, MULTILABEL_LABELS),
}
RIGHT: dict[Mode, list[bool]] = {
    "binary": [True, False, False],
    "multiclass": [True, False],
    "multilabel": [True, True, True, False],
}
COSINE: dict[Mode, list[float]] = {
    "binary": [3 / sqrt(10), 1 / sqrt(10), 1 / sqrt(10)],
    "multiclass": [2 / sqrt(6), 1 / sqrt(6)],
    "multilabel": [3 / sqrt(10), 3 / sqrt(10), 3 / sqrt(10), 1 / sqrt(10)],
}


def weights(attack: Weighted, mode: Mode, progress: float, *, targeted: bool) -> list[float]:
    logits, labels = CASES[mode]
    mask = one_hot(labels, mode, logits.shape[1])
    return attack.weight(logits, mask, mode, progress, targeted=targeted).flatten().tolist()


@pytest.mark.parametrize("mode", CASES)
@pytest.mark.parametrize(("step", "still", "done"), [(0, 1.0, 0.0), (5, 0.75, 0.25), (9, 0.55, 0.45)])
def test_segpgd_turns_from_what_is_left_to_do_to_all_alike(mode: Mode, step: int, still: float, done: float) -> None:
    away = weights(SegPGD(), mode, step / 10, targeted=False)
    assert away == pytest.approx([still if right else done for right in RIGHT[mode]])
    towards = weights(SegPGD(), mode, step / 10, targeted=True)
    assert towards == pytest.approx([done if right else still for right in RIGHT[mode]])


@pytest.mark.parametrize("mode", CASES)
def test_cospgd_weighs_by_the_cosine_with_the_reference(mode: Mode) -> None:
    assert weights(CosPGD(), mode, 0.3, targeted=False) == pytest.approx(COSINE[mode])
    assert weights(CosPGD(), mode, 0.3, targeted=True) == pytest.approx([1 - c for c in COSINE[mode]])


@pytest.mark.parametrize("mode", CASES)
def test_cospgd_of_a_model_that_is_sure(mode: Mode) -> None:
    logits, labels = CASES[mode]
    mask = one_hot(labels, mode, logits.shape[1])
    for size, cosine in ((100.0, 1.0), (-100.0, 0.0)):
        sure = size * (2 * mask - 1)
        found = CosPGD().weight(sure, mask, mode, 0.0, targeted=False)
        torch.testing.assert_close(found, torch.full_like(found, cosine))


class Identity:
    """Logits are the images."""

    mode: Mode = "binary"

    def __call__(self, images: Tensor) -> Tensor:
        return images * 1.0


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("attack", [SegPGD(), CosPGD()], ids=["segpgd", "cospgd"])
def test_the_gradient_is_the_weighted_one_and_the_value_is_not(attack: Weighted, targeted: bool) -> None:
    goal = BINARY_LABELS if targeted else None
    labels = torch.zeros_like(BINARY_LABELS) if targeted else BINARY_LABELS
    problem = Problem.pose(Identity(), BINARY, labels, "cross_entropy", target=goal)
    grad, answer = problem.gradient(torch.zeros_like(BINARY), attack.objective(5, 10))
    # d CE / d logit is p - t; no gradient goes through the weights.
    slope = torch.tensor([3 / 4 - 1, 3 / 4, 1 / 4 - 1]) / 3
    weight = torch.tensor(weights(attack, "binary", 0.5, targeted=targeted))
    sign = -1 if targeted else 1
    torch.testing.assert_close(grad.flatten(), sign * weight * slope)
    torch.testing.assert_close(answer.loss, problem.clean().loss)


@pytest.mark.parametrize("attack", [SegPGD(steps=5), CosPGD(steps=5)], ids=["segpgd", "cospgd"])
@pytest.mark.parametrize("goal", [None, 2])
def test_the_loss_field_changes_nothing(attack: Weighted, goal: int | None) -> None:
    t = target("multiclass", 2)
    mask = None if goal is None else t.labels.roll(goal, dims=-1)
    one, other = (a(t.net, t.images, t.labels, target=mask) for a in (attack, replace(attack, loss="soft_dice")))
    assert torch.equal(one.perturbation, other.perturbation)
    assert torch.equal(one.loss, other.loss)


@pytest.mark.parametrize("attack", [SegPGD(epsilon=0.04), CosPGD(epsilon=0.04)], ids=["segpgd", "cospgd"])
def test_many_steps_beat_one_of_its_own(attack: Weighted) -> None:
    # A case may lose a pixel more to one step, but not the three modes together.
    one = replace(attack, steps=1, step_size=0.04, random=False)
    many, once = (
        torch.cat([a(t.net, t.images, t.labels).dice for t in (target(mode, 2) for mode in CASES)]).mean()
        for a in (attack, one)
    )
    assert many < once


def test_segpgd_starts_as_an_attack_on_right_pixels_alone() -> None:
    # One pixel right, two wrong: in the first step only the right one moves.
    problem = Problem.pose(Identity(), BINARY, BINARY_LABELS, "cross_entropy")
    grad, _ = problem.gradient(torch.zeros_like(BINARY), SegPGD().objective(0, 10))
    assert (grad != 0).flatten().tolist() == [True, False, False]
