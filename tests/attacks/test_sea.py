"""SEA: each case's worst over several losses, found in shrinking balls."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from attack_subjects import target

from cease_core.attacks import LOSSES, PGD, Norm, Step, ladder
from cease_core.attacks.norms import magnitude
from cease_core.attacks.problem import Problem
from cease_core.attacks.sea import SEA
from cease_core.errors import CeaseError
from cease_core.models import Mode

ROUNDING = 1 + 1e-6
MODES: tuple[Mode, ...] = ("binary", "multiclass", "multilabel")
SMALL = SEA(epsilon=0.03, steps=10, losses=("soft_dice", "js"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_member_is_stronger_on_any_case(mode: Mode, norm: Norm) -> None:
    t = target(mode, 2, cases=4)
    attack = replace(SMALL, norm=norm)
    whole = attack(t.net, t.images, t.labels)
    alone = [member(t.net, t.images, t.labels) for member in attack.members()]
    assert torch.equal(whole.score, torch.stack([r.score for r in alone]).amin(dim=0))
    assert torch.equal(whole.gradients, torch.stack([r.gradients for r in alone]).sum(dim=0))


@pytest.mark.parametrize("level", [2, 8])
def test_never_weaker_than_pgd_on_any_of_its_losses(level: int) -> None:
    t = target("binary", 2, cases=4)
    attack = replace(SMALL, epsilon=level / 255, steps=20)
    worst = attack(t.net, t.images, t.labels).dice
    for loss in attack.losses:
        assert (worst <= PGD(epsilon=level / 255, steps=20, loss=loss)(t.net, t.images, t.labels).dice).all()


def test_members_take_over_what_was_asked_for() -> None:
    attack = SEA(epsilon=0.1, norm="l2", criterion="mean_iou", stop_below=0.2, seed=3, restarts=2, steps=30)
    members = attack.members()
    assert {m.loss for m in members} == set(attack.losses)
    for name in ("epsilon", "norm", "criterion", "stop_below", "seed", "restarts", "steps"):
        assert {getattr(m, name) for m in members} == {getattr(attack, name)}


@pytest.mark.parametrize("loss", list(LOSSES))
def test_any_loss_can_be_a_member(loss: str) -> None:
    t = target("multiclass", 2)
    result = SEA(epsilon=0.03, steps=3, losses=(loss,))(t.net, t.images, t.labels)
    assert (result.dice < 1).all()


def test_a_target_comes_closer() -> None:
    t = target("multiclass", 2)
    goal = t.labels.roll(2, dims=-1)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice", target=goal)
    result = SMALL(t.net, t.images, t.labels, target=goal)
    assert result.target_dice is not None
    assert (result.score < problem.clean().score).all()


@pytest.mark.parametrize("stop_at", [1, 4, 12, 32, 35])  # steps 1 to 6 and 31 to 36 are in the wide balls
def test_stopped_outside_the_ball_the_result_lies_inside(stop_at: int) -> None:
    t = target("multiclass", 2)
    heard: list[Step] = []

    def listen(step: Step) -> bool:
        heard.append(step)
        return len(heard) < stop_at

    result = SMALL(t.net, t.images, t.labels, callback=listen)
    assert result.cancelled
    assert len(heard) == stop_at
    assert result.gradients.tolist() == [stop_at] * 2
    assert (magnitude(result.perturbation, "linf") <= 0.03 * ROUNDING).all()
    assert (result.score < 1).all()


def test_steps_count_up_to_the_total() -> None:
    t = target("multiclass", 2)
    heard: list[Step] = []
    SMALL(t.net, t.images, t.labels, callback=heard.append)
    total = 10 * len(SMALL.members())
    assert [(s.done, s.total) for s in heard] == [(i + 1, total) for i in range(total)]


def test_restarts_are_paid_for() -> None:
    t = target("multiclass", 2)
    one, two = (replace(SMALL, restarts=n)(t.net, t.images, t.labels) for n in (1, 2))
    assert two.gradients.tolist() == (2 * one.gradients).tolist()
    assert (two.score <= one.score).all()


def test_epsilon_zero_costs_no_gradient() -> None:
    t = target("multiclass", 2)
    result = SEA(epsilon=0.0)(t.net, t.images, t.labels)
    assert not result.perturbation.any()
    assert not result.gradients.any()


def test_the_ladder_climbs_with_every_member() -> None:
    t = target("multiclass", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    epsilons = [0.06, 0.04, 0.02]
    rungs = list(ladder(SMALL, problem, epsilons))
    worst = {r.epsilon: r.result for r in rungs}
    for epsilon, result in worst.items():
        assert (magnitude(result.perturbation, "linf") <= epsilon * ROUNDING).all()
    for member in SMALL.members():
        alone = {
            r.epsilon: r.result for r in ladder(member, Problem.pose(t.net, t.images, t.labels, member.loss), epsilons)
        }
        assert all((worst[e].score <= alone[e].score).all() for e in epsilons)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"losses": ()}, "give at least one"),
        ({"losses": ("js", "hinge")}, "unknown loss 'hinge'"),
        ({"losses": ("js", "js")}, "give each once"),
        ({"steps": 0}, "give at least 1"),
        ({"restarts": 0}, "give at least 1"),
    ],
)
def test_parameters_out_of_range_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        SEA(**changes)  # type: ignore[arg-type]


def test_a_broken_case_costs_the_other_members_nothing_and_changes_no_other() -> None:
    t = target("binary", 2, cases=4)
    whole = SMALL(t.net, t.images, t.labels)
    # The first member breaks some of the cases, and the others the rest at most.
    first = SMALL.members()[0](t.net, t.images, t.labels)
    bar = float(first.score.sort().values[1])
    attack = replace(SMALL, stop_below=bar)
    heard: list[Step] = []
    result = attack(t.net, t.images, t.labels, callback=heard.append)
    assert ((result.score <= bar) == (whole.score <= bar)).all()
    assert (result.gradients[first.score <= bar] <= SMALL.steps).all()
    assert (result.gradients[first.score > bar] > SMALL.steps).all()
    for case in range(4):
        alone = attack(t.net, t.images[case : case + 1], t.labels[case : case + 1])
        torch.testing.assert_close(result.perturbation[case], alone.perturbation[0], atol=1e-5, rtol=0)
        assert (result.gradients[case], result.queries[case]) == (alone.gradients[0], alone.queries[0])
    assert all(before.done < after.done for before, after in pairwise(heard))
    assert result.loss.shape[1] == 4


def test_losses_of_different_members_cannot_be_compared() -> None:
    t = target("binary", 2)
    with pytest.raises(CeaseError, match="cannot be judged by its loss"):
        replace(SMALL, criterion="loss")(t.net, t.images, t.labels)
