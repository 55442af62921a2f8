"""The ε ladder: every radius from one descent, as strong as an attack of its own and three times cheaper."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attack_subjects import target
from torch import Tensor

from cease_core.attacks import (
    ASMA,
    FGSM,
    PGD,
    SEA,
    Attack,
    Bisection,
    CosPGD,
    FeatureAttack,
    MixedAttack,
    Norm,
    RandomNoise,
    Rung,
    Step,
    ladder,
)
from cease_core.attacks.losses import dice_ce, one_hot
from cease_core.attacks.norms import rms
from cease_core.attacks.problem import Problem
from cease_core.errors import CeaseError
from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule, prepare

EPSILONS = [i / 255 for i in range(1, 17)]


def discs(count: int, seed: int, edge: int = 32) -> tuple[Tensor, Tensor]:
    """Bright discs on an uneven, noisy ground: images (N, 1, H, W) and masks (N, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(edge), torch.arange(edge), indexing="ij")
    row, column, radius = torch.rand(3, count, 1, 1, generator=generator)
    masks = (y - 8 - row * (edge - 16)).square() + (x - 8 - column * (edge - 16)).square() < (4 + radius * 5).square()
    ground = F.interpolate(torch.rand(count, 1, 6, 6, generator=generator), (edge, edge), mode="bilinear")
    noise = torch.randn(count, 1, edge, edge, generator=generator)
    return 0.25 + 0.25 * ground + 0.2 * masks.unsqueeze(1) + 0.06 * noise, masks.long()


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Four unseen discs and a net that was trained on others until it found them."""
    card = ModelCard(
        name="discs",
        title="Discs",
        architecture="residual_unet",
        architecture_args={"channels": (8, 16, 16)},
        ndim=2,
        channels=1,
        classes=(ClassInfo(id=1, name="disc", color="#E69F00"),),
        mode="binary",
        window=WindowRule(kind="fixed", low=0, high=1),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SegmentationModel(card)
        optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
        images, masks = discs(64, seed=0)
        for _ in range(70):
            chosen = torch.randint(0, len(images), (16,))
            loss = dice_ce(model(images[chosen]), one_hot(masks[chosen], "binary", 1), "binary").mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    unseen, truth = discs(4, seed=100)
    return Problem.pose(prepare(model), unseen, truth, "soft_dice")


@pytest.fixture(scope="module")
def rungs(problem: Problem) -> list[Rung]:
    return list(ladder(PGD(steps=20), problem, EPSILONS))


def final_dice(rungs: list[Rung]) -> Tensor:
    """Dice (ε, N) of the last rung at every radius."""
    last = {r.epsilon: r.result.dice for r in rungs}
    return torch.stack([last[e] for e in EPSILONS])


def test_the_net_is_worth_attacking(problem: Problem) -> None:
    assert problem.look(torch.zeros_like(problem.images))[2].mean() > 0.75


def test_every_radius_once_from_large_to_small_then_corrections(rungs: list[Rung]) -> None:
    first, corrections = rungs[: len(EPSILONS)], rungs[len(EPSILONS) :]
    assert [r.epsilon for r in first] == sorted(EPSILONS, reverse=True)
    known = {r.epsilon: r.result.dice for r in first}
    for rung in corrections:
        assert (rung.result.dice <= known[rung.epsilon]).all()
        assert (rung.result.dice < known[rung.epsilon]).any()
    raised = [r.epsilon for r in corrections]
    assert raised == sorted(set(raised))


def test_without_the_running_minimum_each_rung_is_what_its_own_radius_gave(problem: Problem, rungs: list[Rung]) -> None:
    raw = list(ladder(PGD(steps=20), problem, EPSILONS, monotone=False))
    assert [r.epsilon for r in raw] == sorted(EPSILONS, reverse=True)
    for rung, first in zip(raw, rungs, strict=False):
        assert torch.equal(rung.result.perturbation, first.result.perturbation)


def test_dice_never_rises_with_epsilon(rungs: list[Rung]) -> None:
    dice = final_dice(rungs)
    assert (dice.diff(dim=0) <= 0).all()
    assert dice[-1].mean() < 0.2 < dice[0].mean()


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=6)], ids=["fgsm", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_rung_lies_in_its_ball_and_is_what_it_says(attack: FGSM | PGD, norm: Norm) -> None:
    t = target("multiclass", 3)
    region = torch.ones_like(t.images[:, :1])
    region[..., :3] = 0
    problem = Problem.pose(t.net, t.images, t.labels, attack.loss, region=region)
    for rung in ladder(type(attack)(norm=norm), problem, EPSILONS[::5]):
        result = rung.result
        size = result.perturbation.abs().amax() if norm == "linf" else rms(result.perturbation, problem.region).amax()
        assert size <= rung.epsilon * (1 + 1e-6)
        assert not result.perturbation[..., :3].any()
        assert result.epsilon == rung.epsilon
        assert torch.equal(result.adversarial, t.images + result.perturbation)
        assert result.adversarial.min() >= 0
        assert result.adversarial.max() <= 1
        torch.testing.assert_close(problem.look(result.perturbation)[2], result.dice)


def test_a_third_of_the_gradients_of_sixteen_attacks() -> None:
    t = target("binary", 2)
    small = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    paid: list[Step] = []
    rungs = list(ladder(PGD(steps=20), small, EPSILONS, callback=paid.append))
    assert len(paid) <= 16 * 20 / 3
    assert [r.done for r in rungs[:16]] == sorted(r.done for r in rungs[:16])
    assert all(r.total == len(paid) for r in rungs)
    assert rungs[15].done == len(paid)


def test_as_strong_as_an_attack_at_every_radius(problem: Problem, rungs: list[Rung]) -> None:
    alone = torch.stack([PGD(epsilon=e, steps=20).run(problem).dice.mean() for e in EPSILONS[1::2]])
    descended = final_dice(rungs).mean(dim=1)[1::2]
    assert descended.mean() <= alone.mean() + 0.005
    # One rung may be weaker than an attack of its own: .053 at most over three nets and two losses.
    assert (descended - alone).max() <= 0.06


def test_far_stronger_than_one_step(problem: Problem, rungs: list[Rung]) -> None:
    one = final_dice(list(ladder(FGSM(), problem, EPSILONS)))
    assert final_dice(rungs).mean() < one.mean() - 0.05


def test_one_step_at_every_radius_costs_one_gradient(problem: Problem) -> None:
    paid: list[Step] = []
    rungs = list(ladder(FGSM(), problem, EPSILONS, callback=paid.append))
    assert len(paid) == 1
    assert {(r.done, r.total, *r.result.gradients.tolist()) for r in rungs} == {(1, 1, 1, 1, 1, 1)}
    for rung in rungs[:16:5]:
        alone = FGSM(epsilon=rung.epsilon).run(problem)
        assert torch.equal(rung.result.perturbation, alone.perturbation)


@pytest.mark.parametrize("stop_at", [1, 8, 11])  # within a rung, after its last step, after the next one's
def test_told_to_stop_once_it_stops(stop_at: int) -> None:
    t = target("binary", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    heard: list[Step] = []

    def listen(step: Step) -> bool:
        heard.append(step)
        return len(heard) != stop_at

    rungs = list(ladder(PGD(steps=8), problem, [8 / 255, 6 / 255, 4 / 255], callback=listen))
    assert len(heard) == stop_at
    assert len(rungs) < 3
    assert all(r.done < stop_at for r in rungs)


def test_one_step_stops_too() -> None:
    t = target("binary", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    assert list(ladder(FGSM(), problem, EPSILONS, callback=lambda _: False)) == []


def test_restarts_are_paid_for_at_the_top_alone() -> None:
    t = target("binary", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    one, three = (list(ladder(PGD(steps=5, restarts=restarts), problem, [8 / 255, 6 / 255])) for restarts in (1, 3))
    assert [r.done for r in one[:2]] == [5, 8]
    assert [r.result.gradients.tolist() for r in three[:2]] == [[15, 15], [18, 18]]
    assert (three[0].result.dice <= one[0].result.dice).all()


@pytest.mark.parametrize("attack", [Bisection(inner=PGD(steps=4)), RandomNoise(draws=2), SEA(steps=4)], ids=type)
def test_any_attack_climbs_down(attack: Attack) -> None:
    t = target("multiclass", 2)
    problem = Problem.pose(t.net, t.images, t.labels, attack.loss)
    radii, steps = [0.02, 0.04, 0.06], []
    last = {r.epsilon: r for r in ladder(attack, problem, radii, callback=steps.append)}
    assert sorted(last) == radii
    for epsilon, rung in last.items():
        assert rung.result.perturbation.abs().amax() <= epsilon * (1 + 1e-6)
        torch.testing.assert_close(problem.look(rung.result.perturbation).score, rung.result.score)
    scores = torch.stack([last[e].result.score for e in radii])
    assert (scores.diff(dim=0) <= 0).all()
    assert steps[-1].done == steps[-1].total


def test_what_is_wanted_comes_first_where_every_radius_is_a_run_of_its_own() -> None:
    t = target("binary", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    wishes = iter([0.02, 0.02, None, 0.5])
    rungs = list(ladder(RandomNoise(draws=1), problem, [0.01, 0.02, 0.03, 0.04], wanted=lambda: next(wishes)))
    assert [r.epsilon for r in rungs[:4]] == [0.02, 0.04, 0.03, 0.01]


def test_a_minimal_attack_is_found_once() -> None:
    t = target("multiclass", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    attack = Bisection(inner=PGD(steps=4), epsilon=0.06)
    alone, paid = attack.run(problem), []
    rungs = list(ladder(attack, problem, [0.06, 0.03], callback=paid.append))
    assert torch.equal(rungs[0].result.perturbation, alone.perturbation)
    assert rungs[1].result.gradients.tolist() == alone.gradients.tolist()


def test_radii_are_sorted_and_told_apart(problem: Problem) -> None:
    rungs = list(ladder(FGSM(), problem, [0.0, 0.01, 0.02, 0.01]))
    assert [r.epsilon for r in rungs[:2]] == [0.02, 0.01]
    with pytest.raises(CeaseError, match="at least one ε above 0"):
        next(ladder(PGD(), problem, [0.0]))


@pytest.mark.parametrize("attack", [FeatureAttack(steps=4), MixedAttack(steps=4), CosPGD(steps=4, loss="js")])
def test_an_attack_with_an_objective_of_its_own_keeps_it(attack: FeatureAttack | CosPGD) -> None:
    t = target("binary", 2)
    posed = Problem.pose(t.net, t.images, t.labels, attack.loss)
    (rung,) = ladder(attack, posed, [0.05])
    alone = replace(attack, epsilon=0.05, step_size=0.05 / 4).run(posed)
    wider = replace(attack, epsilon=0.05, step_size=attack.size(0.05)).run(posed)
    assert any(torch.equal(rung.result.loss[0], other.loss[0]) for other in (alone, wider))
    inside = Bisection(inner=attack, loss=attack.loss, epsilon=0.05).run(posed)
    assert torch.equal(inside.loss[0], rung.result.loss[0])


def test_an_attack_that_needs_a_target_is_refused_without_one(problem: Problem) -> None:
    with pytest.raises(CeaseError, match="give it a target mask"):
        next(ladder(ASMA(), problem, [0.1]))
