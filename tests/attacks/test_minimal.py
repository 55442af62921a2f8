"""Bisection: the smallest radius that breaks each case, to a tolerance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attack_subjects import target
from linear_models import IMAGES, WIDE, PixelByPixel, WholeImage

from cease_core.attacks import BIM, PGD, Bisection, MinimalResult, Norm, Step
from cease_core.attacks.norms import magnitude, project
from cease_core.attacks.problem import Problem
from cease_core.errors import CeaseError
from cease_core.models import Mode

TOLERANCE = 0.002
QUICK = Bisection(epsilon=1.0, inner=PGD(steps=10), refine=6, tolerance=TOLERANCE, loss="cross_entropy")


def bisected(model: PixelByPixel | WholeImage, attack: Bisection = QUICK, count: int = 3) -> MinimalResult:
    images = IMAGES[:count]
    labels = model.labels(images) if isinstance(model, PixelByPixel) else torch.ones(1, 6, 5, dtype=torch.long)
    result = attack(model, images, labels, bounds=WIDE)
    assert isinstance(result, MinimalResult)
    return result


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_each_case_ends_within_the_tolerance_of_its_own_smallest_radius(mode: Mode) -> None:
    model = PixelByPixel(mode)
    known = model.smallest()
    found = bisected(model)
    assert found.success.all()
    assert (found.dice <= 0.5).all()
    assert (found.minimal >= known * (1 - 1e-5)).all()
    assert (found.minimal <= known + TOLERANCE).all()
    assert known.max() - known.min() > 2 * TOLERANCE


def test_l2_is_measured_as_a_root_mean_square() -> None:
    model = WholeImage(2.0)
    found = bisected(model, replace(QUICK, norm="l2"), count=1)
    assert model.smallest() * (1 - 1e-5) <= found.minimal.item() <= model.smallest() + TOLERANCE


def test_a_finer_tolerance_costs_more_and_finds_less() -> None:
    model = PixelByPixel("binary")
    coarse, fine = (bisected(model, replace(QUICK, tolerance=t)) for t in (0.2, 0.001))
    assert (fine.minimal <= coarse.minimal).all()
    assert (fine.minimal < coarse.minimal).any()
    assert (fine.gradients > coarse.gradients).all()


def test_a_case_that_holds_inside_the_cap_says_so_and_keeps_the_strongest() -> None:
    model = PixelByPixel("binary")
    known = model.smallest()
    cap = float(known.sort().values[1]) - 2 * TOLERANCE
    found = bisected(model, replace(QUICK, epsilon=cap))
    assert torch.equal(found.success, known <= cap)
    assert torch.equal(found.minimal.isinf(), known > cap)
    assert (magnitude(found.perturbation, "linf") <= cap * (1 + 1e-6)).all()
    assert (found.dice < 1).all()
    assert (found.dice[~found.success] > 0.5).all()


def test_cases_bisect_at_their_own_radius_whatever_the_batch() -> None:
    t = target("multiclass", 2, cases=3)
    attack = Bisection(epsilon=0.2, inner=BIM(steps=4), refine=3, tolerance=0.01)
    together = attack(t.net, t.images, t.labels)
    for i in range(3):
        alone = attack(t.net, t.images[i : i + 1], t.labels[i : i + 1])
        torch.testing.assert_close(alone.minimal[0], together.minimal[i], rtol=0, atol=1e-6)
        assert alone.gradients.item() == together.gradients[i].item()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_takes_one_radius_a_case(norm: Norm) -> None:
    delta = torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    radii = [0.1, 0.5, 9.0]
    each = torch.cat([project(delta[i : i + 1], r, norm) for i, r in enumerate(radii)])
    torch.testing.assert_close(project(delta, torch.tensor(radii), norm), each)


def test_a_case_that_is_broken_already_costs_nothing_and_has_size_zero() -> None:
    model = PixelByPixel("binary")
    labels = model.labels()
    labels[0] = 1 - labels[0]
    found = QUICK(model, IMAGES, labels, bounds=WIDE)
    assert found.minimal[0] == 0
    assert found.gradients[0] == 0
    assert (found.minimal[1:] > 0).all()
    assert not QUICK(model, IMAGES[:1], labels[:1], bounds=WIDE).perturbation.any()


@pytest.mark.parametrize(("reach", "share_wrong"), [(0.8, 0.2), (1.0, 0.0)])
def test_towards_a_target_the_reach_counts(reach: float, share_wrong: float) -> None:
    model = PixelByPixel("binary")
    goal = model.labels().roll(1, dims=-1)
    found = replace(QUICK, reach=reach)(model, IMAGES, model.labels(), target=goal, bounds=WIDE)
    assert found.success.all()
    assert (1 - found.target_dice <= share_wrong + 1e-6).all()
    if reach == 1:
        wrong = (model.labels() != goal).unsqueeze(1)
        known = torch.where(wrong, model.radii(), 0).flatten(1).amax(dim=1)
        assert (found.minimal <= known + TOLERANCE).all()
        assert (found.minimal >= known * (1 - 1e-5)).all()


def test_told_to_stop_the_smallest_so_far_is_kept() -> None:
    model = PixelByPixel("binary")
    heard: list[Step] = []

    def listen(step: Step) -> bool:
        heard.append(step)
        return step.done < QUICK.inner.steps + QUICK.refine + 1

    labels = model.labels()
    stopped = QUICK(model, IMAGES, labels, bounds=WIDE, callback=listen)
    assert stopped.cancelled
    assert heard[-1].done < heard[-1].total
    assert stopped.success.all()
    assert (stopped.minimal <= 1).all()
    assert (stopped.minimal > bisected(model).minimal).any()


def test_the_bar_may_be_a_score() -> None:
    model = PixelByPixel("binary")
    half, quarter = (bisected(model, replace(QUICK, stop_below=bar)) for bar in (0.5, 0.25))
    assert torch.equal(half.bar, torch.full((3,), 0.5))
    assert (quarter.minimal > half.minimal).all()
    torch.testing.assert_close(quarter.minimal, model.smallest(0.25), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"share": 1.0}, "share is 1.0"),
        ({"reach": 0.0}, "reach is 0.0"),
        ({"tolerance": 0.0}, "width above 0"),
        ({"refine": 0}, "at least 1 step"),
    ],
)
def test_parameters_out_of_range_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        Bisection(**changes)


def test_a_loss_has_no_share() -> None:
    model = PixelByPixel("binary")
    problem = Problem.pose(model, IMAGES, model.labels(), "soft_dice", criterion="loss")
    with pytest.raises(CeaseError, match="choose the criterion dice"):
        QUICK.run(problem)
