"""What every attack promises, whatever the mode, the dimension, the norm and the bounds."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import pytest
import torch
from attack_subjects import Target, target

from cease_core.attacks import FGSM, PGD, Attack, AttackResult, Norm, Step
from cease_core.attacks.base import Problem
from cease_core.attacks.norms import project, rms
from cease_core.errors import CeaseError
from cease_core.models import Mode

EPSILON = 0.04  # of the range that the images fill
ROUNDING = 4 * torch.finfo(torch.float32).eps

ATTACKS: dict[str, Attack] = {
    "fgsm": FGSM(),
    "pgd": PGD(steps=6),
}

# Name → the bounds asked for, and the range that the images fill.
BOUNDS: dict[str, tuple[tuple[float, float] | None, tuple[float, float]]] = {
    "window": ((0.0, 1.0), (0.0, 1.0)),
    "wide": ((-2.0, 3.0), (-2.0, 3.0)),
    "own": (None, (-0.4, 1.6)),
}


class Row(NamedTuple):
    """One line of the table."""

    attack: str
    mode: Mode
    ndim: int
    norm: Norm
    bounds: str

    def make(self, **changes: object) -> Attack:
        attack = ATTACKS[self.attack]
        return type(attack)(**(vars(attack) | {"norm": self.norm, "epsilon": self.epsilon} | changes))  # type: ignore[arg-type]

    @property
    def epsilon(self) -> float:
        low, high = BOUNDS[self.bounds][1]
        return EPSILON * (high - low)

    @property
    def target(self) -> Target:
        return target(self.mode, self.ndim, *BOUNDS[self.bounds][1])

    @property
    def limits(self) -> tuple[float, float]:
        """What the bounds mean on these images."""
        asked, (low, high) = BOUNDS[self.bounds]
        return asked or (min(low, 0.0), max(high, 1.0))


MODES: tuple[Mode, ...] = ("binary", "multiclass", "multilabel")
TABLE = [Row(*row) for row in product(ATTACKS, MODES, (2, 3), ("linf", "l2"), BOUNDS)]


def _rows(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=["-".join(map(str, r)) for r in rows])


every_row = _rows(TABLE)
every_model = _rows([r for r in TABLE if r.bounds == "own"])


@cache
def attacked(row: Row) -> AttackResult:
    t = row.target
    return row.make()(t.net, t.images, t.labels, bounds=BOUNDS[row.bounds][0])


def size(perturbation: torch.Tensor, norm: Norm, region: torch.Tensor | None = None) -> torch.Tensor:
    if norm == "linf":
        return perturbation.flatten(1).abs().amax(dim=1)
    return rms(perturbation, None if region is None else region.expand_as(perturbation))


@every_row
def test_perturbation_fills_the_ball_and_never_leaves_it(row: Row) -> None:
    sizes = size(attacked(row).perturbation, row.norm)
    assert (sizes <= row.epsilon * (1 + ROUNDING)).all()
    assert (sizes > row.epsilon / 2).all()


@every_row
def test_adversarial_images_stay_in_bounds(row: Row) -> None:
    low, high = row.limits
    adversarial = attacked(row).adversarial
    assert adversarial.min() >= low - ROUNDING * abs(low)
    assert adversarial.max() <= high + ROUNDING * abs(high)


@every_row
def test_result_hangs_together(row: Row) -> None:
    t, result = row.target, attacked(row)
    assert torch.equal(result.adversarial, t.images + result.perturbation)
    torch.testing.assert_close(result.adversarial - result.perturbation, t.images, rtol=0, atol=3 * ROUNDING)
    problem = Problem.pose(t.net, t.images, t.labels, row.make().loss)
    logits, _, dice = problem.look(result.perturbation)
    torch.testing.assert_close(result.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.dice, dice)


@every_row
def test_stronger_than_noise_of_the_same_size(row: Row) -> None:
    t, attack = row.target, row.make()
    problem = Problem.pose(t.net, t.images, t.labels, attack.loss, bounds=BOUNDS[row.bounds][0])
    signs = torch.randint(0, 2, t.images.shape, generator=torch.Generator().manual_seed(2)) * 2.0 - 1
    _, noise_loss, noise_dice = problem.look(problem.clip(project(signs * row.epsilon, row.epsilon, row.norm)))
    _, loss, dice = problem.look(attacked(row).perturbation)
    assert (dice < noise_dice).all()
    assert (loss > noise_loss).all()


@_rows([r for r in TABLE if r.attack == "pgd"])
def test_many_steps_climb_higher_than_one(row: Row) -> None:
    one = attacked(row._replace(attack="fgsm"))
    assert (attacked(row).loss.amax(dim=0) > one.loss.amax(dim=0)).all()


def test_many_steps_break_more_of_the_mask_than_one() -> None:
    # Dice is not what is ascended: a case may lose a pixel more to one step, but not the table as a whole.
    one, many = (torch.stack([attacked(r).dice for r in TABLE if r.attack == a]).mean() for a in ("fgsm", "pgd"))
    assert many < one


@every_model
def test_outside_the_region_nothing_changes(row: Row) -> None:
    t = row.target
    region = torch.zeros_like(t.images[:, :1])
    region[..., 2:6, 1:5] = 1
    result = row.make()(t.net, t.images, t.labels, region=region)
    outside = (region == 0).expand_as(t.images)
    assert torch.equal(result.adversarial[outside], t.images[outside])
    inside = size(result.perturbation, row.norm, region)
    assert (inside <= row.epsilon * (1 + ROUNDING)).all()
    assert (inside > row.epsilon / 2).all()


@every_model
def test_epsilon_zero_returns_the_scan(row: Row) -> None:
    t = row.target
    result = row.make(epsilon=0.0)(t.net, t.images, t.labels)
    assert torch.equal(result.adversarial, t.images)
    assert not result.perturbation.any()
    assert torch.equal(result.dice, torch.ones(len(t.images)))


@every_model
def test_a_case_does_not_feel_its_batch(row: Row) -> None:
    t, together = row.target, attacked(row)
    for i in range(len(t.images)):
        alone = row.make()(t.net, t.images[i : i + 1], t.labels[i : i + 1])
        torch.testing.assert_close(alone.perturbation[0], together.perturbation[i], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.dice[0], together.dice[i])


@every_model
def test_same_seed_same_bits(row: Row) -> None:
    t, first = row.target, attacked(row)
    again = row.make()(t.net, t.images, t.labels)
    assert torch.equal(again.perturbation, first.perturbation)
    assert torch.equal(again.loss, first.loss)


@every_model
def test_model_and_images_are_left_alone(row: Row) -> None:
    t = row.target
    images, labels = t.images.clone(), t.labels.clone()
    weights = {k: v.clone() for k, v in t.net.state_dict().items()}
    row.make()(t.net, t.images, t.labels)
    assert torch.equal(t.images, images)
    assert torch.equal(t.labels, labels)
    assert not t.images.requires_grad
    for name, parameter in t.net.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
        assert torch.equal(parameter, weights[name])


@every_model
def test_each_step_is_reported_and_paid_for(row: Row) -> None:
    t, heard = row.target, []
    result = row.make()(t.net, t.images, t.labels, callback=heard.append)
    steps = 1 if row.attack == "fgsm" else ATTACKS["pgd"].steps
    assert [(s.done, s.total) for s in heard] == [(i, steps) for i in range(1, steps + 1)]
    assert result.gradients == steps
    assert not result.cancelled
    assert result.loss.shape == (steps + 1, len(t.images))
    assert torch.equal(torch.stack([s.loss for s in heard]), result.loss[:steps])


@pytest.mark.parametrize("mode", MODES)
def test_stopping_keeps_the_best_so_far(mode: Mode) -> None:
    t = target(mode, 2)

    def after_three(step: Step) -> bool:
        return step.done < 3

    stopped = PGD(steps=20, step_size=0.01)(t.net, t.images, t.labels, callback=after_three)
    short = PGD(steps=3, step_size=0.01)(t.net, t.images, t.labels)
    assert stopped.cancelled
    assert stopped.gradients == 3
    assert torch.equal(stopped.perturbation, short.perturbation)
    assert (stopped.dice < 1).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_never_give_a_weaker_attack(mode: Mode, norm: Norm) -> None:
    t = target(mode, 2)
    results = [PGD(norm=norm, steps=n, step_size=0.008)(t.net, t.images, t.labels) for n in (5, 20)]
    few, many = (r.dice for r in results)
    assert (many <= few).all()
    assert (results[1].loss.amax(dim=0) >= results[0].loss.amax(dim=0)).all()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_bounds_narrower_than_the_scan_let_outliers_stay_or_come_in(attack: Attack) -> None:
    t = target("binary", 2, -0.4, 1.6)
    adversarial = attack(t.net, t.images, t.labels, bounds=(0.0, 1.0)).adversarial
    assert (adversarial >= t.images.clamp_max(0)).all()
    assert (adversarial <= t.images.clamp_min(1)).all()


def test_another_seed_is_another_start() -> None:
    t = target("binary", 2)
    one, other = (PGD(steps=1, seed=seed)(t.net, t.images, t.labels).perturbation for seed in (0, 1))
    assert not torch.equal(one, other)


def test_reduced_precision_is_attacked_in_float32() -> None:
    t = target("binary", 2)
    result = FGSM()(t.net, t.images.double(), t.labels)
    assert result.adversarial.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FGSM(epsilon=-0.1), "window fractions ≥ 0"),
        (lambda: FGSM(epsilon=float("nan")), "window fractions ≥ 0"),
        (lambda: FGSM(norm="l3"), "choose linf or l2"),
        (lambda: FGSM(loss="hinge"), "choose one of soft_dice, dice_ce, masked_ce, cross_entropy"),
        (lambda: PGD(steps=0), "give at least 1"),
        (lambda: PGD(step_size=0.0), "give a number above 0"),
    ],
)
def test_parameters_out_of_range_are_refused(make, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        make()


def _nan(images: torch.Tensor) -> torch.Tensor:
    return images[:, :1] * float("nan")


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (lambda x: [x[:, :1]], {}, "returns a list"),
        (_nan, {}, "not finite on the clean image"),
        (lambda x: x[:, :1, ::2], {}, "answers on the image's grid"),
        (lambda x: (x[:, :1] > 0.5).float(), {}, "no gradient reaches the image"),
        (lambda x: x[:, :1], {"region": torch.ones(5, 5)}, "draw it on this scan"),
        (lambda x: x[:, :1], {"region": torch.zeros(16, 14)}, "the region is empty"),
        (lambda x: x[:, :1], {"bounds": (1.0, 0.0)}, "reversed"),
    ],
)
def test_what_cannot_be_attacked_is_refused(model, options: dict, sentence: str) -> None:
    t = target("binary", 2)

    class Bare:
        mode: Mode = "binary"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return model(images)

    with pytest.raises(CeaseError, match=sentence):
        FGSM()(Bare(), t.images, t.labels, **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda labels: labels[:, :-1], "choose the labels of this scan"),
        (lambda labels: labels[:-1], "choose the labels of this scan"),
        (lambda labels: labels + 4, "the model knows 0 to 1"),
        (lambda labels: labels - 1, "labels hold class -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(change, sentence: str) -> None:
    t = target("binary", 2)
    with pytest.raises(CeaseError, match=sentence):
        FGSM()(t.net, t.images, change(t.labels))
