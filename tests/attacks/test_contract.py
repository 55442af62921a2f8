"""What every attack promises, whatever the mode, the dimension, the norm and the bounds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import cycle, product
from typing import NamedTuple

import pytest
import torch
from attack_subjects import Target, target

from cease_core.attacks import (
    APGD,
    ASMA,
    ATTACKS,
    BIM,
    CRITERIA,
    DAG,
    FGSM,
    MIFGSM,
    PGD,
    SEA,
    VAFA,
    ALMAProx,
    Attack,
    AttackResult,
    Bisection,
    CosPGD,
    FeatureAttack,
    FrequencyPGD,
    MedIS,
    MixedAttack,
    Norm,
    RandomNoise,
    SegPGD,
    Square,
    Step,
    Transfer,
)
from cease_core.attacks.gradient import Iterative
from cease_core.attacks.norms import project, rms
from cease_core.attacks.problem import Problem
from cease_core.errors import CeaseError
from cease_core.models import Mode

EPSILON = 0.04  # of the range that the images fill
ROUNDING = 4 * torch.finfo(torch.float32).eps


class Entry(NamedTuple):
    """An attack of the table, small enough to be quick, and what else it promises."""

    attack: Attack
    fills: bool = True  # it goes to the edge of the ball
    seeks: bool = True  # it looks for a strong perturbation: it must beat noise
    climbs: bool = True  # it takes many steps: it must beat one


# One line an attack; what is not in ``ATTACKS`` of the engine, or missing here, fails.
ENTRIES: dict[str, Entry] = {
    "fgsm": Entry(FGSM(), climbs=False),
    "bim": Entry(BIM(steps=6)),
    "pgd": Entry(PGD(steps=6)),
    "mifgsm": Entry(MIFGSM(steps=6)),
    # They stop at half the clean Dice, which noise at the edge of the ball may undercut.
    "bisection": Entry(Bisection(inner=PGD(steps=6), refine=3, tolerance=0.005), fills=False, seeks=False),
    "alma": Entry(ALMAProx(steps=20), fills=False, seeks=False),
    "apgd": Entry(APGD(steps=6)),
    "sea": Entry(SEA(steps=10, losses=("soft_dice",))),
    "segpgd": Entry(SegPGD(steps=6)),
    "cospgd": Entry(CosPGD(steps=6)),
    "transfer": Entry(Transfer(inner=MIFGSM(steps=6))),
    # Features far from the clean ones need not decide otherwise.
    "feature": Entry(FeatureAttack(steps=6), seeks=False),
    "mixed": Entry(MixedAttack(steps=6)),
    "noise": Entry(RandomNoise(draws=3), seeks=False),
    # Smooth images have little detail to drop.
    "vafa": Entry(VAFA(steps=6), fills=False, seeks=False, climbs=False),
    "frequency": Entry(FrequencyPGD(steps=6, band=(0.0, 0.75), loss="soft_dice"), fills=False),
    # So few queries do not always beat noise; test_square.py grants it more.
    "square": Entry(Square(queries=30), seeks=False, climbs=False),
    # At its own threshold it stops at the first success; at 0 it goes on to the strongest mask it can find.
    "medis": Entry(MedIS(threshold=0.0, target_threshold=1.0, step_size=0.02), fills=False),
    # Pixels that are won leave its sum and may come back: more steps need not do more than one.
    "dag": Entry(DAG(steps=6), climbs=False),
    "asma": Entry(ASMA(steps=6)),
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

    @property
    def entry(self) -> Entry:
        return ENTRIES[self.attack]

    def make(self, **changes: object) -> Attack:
        attack = self.entry.attack
        if isinstance(attack, Transfer):
            # From itself: what the other attacks promise then holds for this one, too.
            attack = replace(attack, source=self.target.net)
        return replace(attack, **({"norm": self.norm, "epsilon": self.epsilon} | changes))

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

    def goal(self) -> torch.Tensor:
        """The mask moved by two pixels: of other shape than the labels wherever there is an edge."""
        return self.target.labels.roll(2, dims=-1)

    def run(self, **options: object) -> AttackResult:
        """The attack, towards `goal` if it needs a target."""
        t = self.target
        options = {"bounds": BOUNDS[self.bounds][0]} | options
        changes: dict[str, object] = options.pop("changes", {})  # type: ignore[assignment]
        if "untargeted" not in self.entry.attack.about.goals:
            options = {"target": self.goal()} | options
        return self.make(**changes)(t.net, t.images, t.labels, **options)  # type: ignore[arg-type]

    def problem(self, *, targeted: bool | None = None) -> Problem:
        t, attack = self.target, self.make()
        if targeted is None:
            targeted = "untargeted" not in attack.about.goals
        goal = self.goal() if targeted else None
        return Problem.pose(t.net, t.images, t.labels, attack.loss, target=goal, bounds=BOUNDS[self.bounds][0])


MODES: tuple[Mode, ...] = ("binary", "multiclass", "multilabel")


def _table() -> list[Row]:
    """Every attack in every mode, dimension and norm; the bounds take turns."""
    rows = []
    for name, entry in ENTRIES.items():
        settings = product(MODES, (2, 3), entry.attack.about.norms)
        for setting, bounds in zip(settings, cycle(("own", "window", "wide", "own", "wide")), strict=False):
            rows.append(Row(name, *setting, bounds))
    return rows


TABLE = _table()


def _rows(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=["-".join(map(str, r)) for r in rows])


every_row = _rows(TABLE)
every_attack = _rows([r for r in TABLE if r.ndim == 2 and r.mode == "multiclass"])


@cache
def attacked(row: Row) -> AttackResult:
    return row.run()


def size(perturbation: torch.Tensor, norm: Norm, region: torch.Tensor | None = None) -> torch.Tensor:
    if norm == "linf":
        return perturbation.flatten(1).abs().amax(dim=1)
    return rms(perturbation, None if region is None else region.expand_as(perturbation))


def test_the_table_holds_every_attack() -> None:
    assert set(ENTRIES) == set(ATTACKS)
    assert all(type(entry.attack) is ATTACKS[name] for name, entry in ENTRIES.items())


@every_row
def test_perturbation_never_leaves_the_ball(row: Row) -> None:
    sizes = size(attacked(row).perturbation, row.norm)
    assert (sizes <= row.epsilon * (1 + ROUNDING)).all()
    assert (sizes > (row.epsilon / 2 if row.entry.fills else 0)).all()


@every_row
def test_adversarial_images_stay_in_bounds(row: Row) -> None:
    low, high = row.limits
    adversarial = attacked(row).adversarial
    assert adversarial.min() >= low - ROUNDING * abs(low)
    assert adversarial.max() <= high + ROUNDING * abs(high)


@every_row
def test_result_hangs_together(row: Row) -> None:
    t, result, problem = row.target, attacked(row), row.problem()
    assert torch.equal(result.adversarial, t.images + result.perturbation)
    torch.testing.assert_close(result.adversarial - result.perturbation, t.images, rtol=0, atol=3 * ROUNDING)
    logits, _, score = problem.look(result.perturbation)
    torch.testing.assert_close(result.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.score, score)
    if not problem.targeted:
        torch.testing.assert_close(result.dice, score)
        assert result.target_dice is None
    else:
        reached = CRITERIA["dice"](logits, problem.reference, row.mode)
        torch.testing.assert_close(result.target_dice, reached)


@_rows([r for r in TABLE if r.entry.seeks])
def test_stronger_than_noise_of_the_same_size(row: Row) -> None:
    problem = row.problem()
    signs = torch.randint(0, 2, problem.images.shape, generator=torch.Generator().manual_seed(2)) * 2.0 - 1
    noise = problem.look(problem.clip(project(signs * row.epsilon, row.epsilon, row.norm)))
    assert (attacked(row).score < noise.score).all()


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e.climbs and e.seeks])
def test_stronger_than_one_step(name: str) -> None:
    # Of its own kind, where it can take one; a case may lose a pixel more to it, but not the table as a whole.
    rows = [r for r in TABLE if r.attack == name]
    if isinstance(ENTRIES[name].attack, Iterative):
        one = [r.run(changes={"steps": 1, "step_size": r.epsilon, "random": False}) for r in rows]
    else:
        one = [FGSM(epsilon=r.epsilon, norm=r.norm, loss=r.make().loss).run(r.problem()) for r in rows]
    many, once = (torch.cat([r.score for r in results]).mean() for results in (map(attacked, rows), one))
    assert many <= once


@_rows([r for r in TABLE if "targeted" in r.entry.attack.about.goals and r.entry.seeks])
def test_a_target_comes_closer(row: Row) -> None:
    result, problem = row.run(target=row.goal()), row.problem(targeted=True)
    assert (result.score < problem.clean().score).all()
    before = CRITERIA["dice"](problem.clean().logits, problem.reference, row.mode)
    assert result.target_dice is not None
    assert (result.target_dice > before).all()


@_rows([r for r in TABLE if len(r.entry.attack.about.goals) == 1 and r.ndim == 2])
def test_a_goal_that_the_attack_does_not_know_is_refused(row: Row) -> None:
    t, attack = row.target, row.make()
    needs_one = attack.about.goals == ("targeted",)
    with pytest.raises(CeaseError, match="give it a target mask" if needs_one else "leave out the target"):
        attack(t.net, t.images, t.labels, target=None if needs_one else row.goal())


@every_row
def test_outside_the_region_nothing_changes(row: Row) -> None:
    t = row.target
    region = torch.zeros_like(t.images[:, :1])
    region[..., 2:6, 1:5] = 1
    result = row.run(region=region, bounds=None)
    outside = (region == 0).expand_as(t.images)
    assert torch.equal(result.adversarial[outside], t.images[outside])
    inside = size(result.perturbation, row.norm, region)
    assert (inside <= row.epsilon * (1 + ROUNDING)).all()
    if row.entry.seeks:
        assert (inside > 0).all()
    # Elsewhere most of the region lies at the bounds, and may move only inwards.
    if row.entry.fills and row.bounds == "own":
        assert (inside > row.epsilon / 2).all()


@every_row
def test_epsilon_zero_returns_the_scan(row: Row) -> None:
    t = row.target
    result = row.run(changes={"epsilon": 0.0}, bounds=None)
    assert torch.equal(result.adversarial, t.images)
    assert not result.perturbation.any()
    assert torch.equal(result.dice, torch.ones(len(t.images)))


@every_attack
def test_a_case_does_not_feel_its_batch(row: Row) -> None:
    t, together = row.target, attacked(row)
    for i in range(len(t.images)):
        part = slice(i, i + 1)
        goal = None if together.target_dice is None else row.goal()[part]
        alone = row.make()(t.net, t.images[part], t.labels[part], target=goal, bounds=BOUNDS[row.bounds][0])
        torch.testing.assert_close(alone.perturbation[0], together.perturbation[i], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.dice[0], together.dice[i])


@every_row
def test_same_seed_same_bits(row: Row) -> None:
    first, again = attacked(row), row.run()
    assert torch.equal(again.perturbation, first.perturbation)
    assert torch.equal(again.loss, first.loss)


@every_attack
def test_model_and_images_are_left_alone(row: Row) -> None:
    t = row.target
    images, labels = t.images.clone(), t.labels.clone()
    weights = {k: v.clone() for k, v in t.net.state_dict().items()}
    row.run()
    assert torch.equal(t.images, images)
    assert torch.equal(t.labels, labels)
    assert not t.images.requires_grad
    for name, parameter in t.net.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
        assert torch.equal(parameter, weights[name])


@every_attack
def test_each_step_is_reported_and_paid_for(row: Row) -> None:
    heard: list[Step] = []
    result = row.run(callback=heard.append)
    done = [s.done for s in heard]
    assert done == sorted(set(done))
    assert done[-1] == heard[-1].total
    assert not result.cancelled
    assert (result.gradients + result.queries >= len(heard)).all()


@_rows([r for r in TABLE if r.ndim == 2 and r.mode == "multiclass" and r.attack != "fgsm"])
def test_stopping_keeps_the_best_so_far(row: Row) -> None:
    heard: list[Step] = []

    def once(step: Step) -> bool:
        heard.append(step)
        return len(heard) < 2

    result = row.run(callback=once)
    assert len(heard) == 2
    assert result.cancelled
    assert (result.score <= row.problem().clean().score).all()
    assert (size(result.perturbation, row.norm) <= row.epsilon * (1 + ROUNDING)).all()


@pytest.mark.parametrize("mode", MODES)
def test_stopping_after_three_steps_is_an_attack_of_three_steps(mode: Mode) -> None:
    t = target(mode, 2)
    stopped = PGD(steps=20, step_size=0.01)(t.net, t.images, t.labels, callback=lambda step: step.done < 3)
    short = PGD(steps=3, step_size=0.01)(t.net, t.images, t.labels)
    assert stopped.cancelled
    assert stopped.gradients.tolist() == [3, 3]
    assert torch.equal(stopped.perturbation, short.perturbation)


@pytest.mark.parametrize("mode", MODES)
def test_restarts_only_help_and_are_paid_for(mode: Mode) -> None:
    t = target(mode, 2)
    one, three = (PGD(steps=4, restarts=n)(t.net, t.images, t.labels) for n in (1, 3))
    assert (three.score <= one.score).all()
    assert three.gradients.tolist() == [12, 12]
    assert three.perturbation.shape == t.images.shape


def test_a_broken_case_costs_nothing_more_when_asked_for() -> None:
    t = target("multiclass", 2, cases=3)
    full = PGD(steps=12, epsilon=EPSILON)(t.net, t.images, t.labels)
    enough = full.dice.sort().values[1].item()
    stopped = PGD(steps=12, epsilon=EPSILON, stop_below=enough)(t.net, t.images, t.labels)
    assert stopped.gradients[full.dice > enough].tolist() == [12]
    assert (stopped.gradients[full.dice <= enough] < 12).all()
    assert torch.equal(stopped.perturbation[full.dice > enough], full.perturbation[full.dice > enough])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_never_give_a_weaker_attack(mode: Mode, norm: Norm) -> None:
    t = target(mode, 2)
    results = [PGD(norm=norm, steps=n, step_size=0.008)(t.net, t.images, t.labels) for n in (5, 20)]
    few, many = (r.dice for r in results)
    assert (many <= few).all()
    assert (results[1].loss.amax(dim=0) >= results[0].loss.amax(dim=0)).all()


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=6)], ids=["fgsm", "pgd"])
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
        (lambda: FGSM(loss="hinge"), "choose one of soft_dice, dice_ce"),
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
        # Something has a gradient, but not the image.
        (lambda x: x[:, :1].detach() * torch.ones(1, requires_grad=True), {}, "no gradient reaches the image"),
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
        (lambda labels: labels.unsqueeze(1), r"give class ids \(N, \*spatial\)"),
        (lambda labels: labels.unsqueeze(1).float(), r"give class ids \(N, \*spatial\)"),
        (lambda labels: labels + 4, "the model knows 0 to 1"),
        (lambda labels: labels - 1, "labels hold class -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(change, sentence: str) -> None:
    t = target("binary", 2)
    with pytest.raises(CeaseError, match=sentence):
        FGSM()(t.net, t.images, change(t.labels))
