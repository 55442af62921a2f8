"""MedIS on models whose steps can be counted on paper, by the published protocol and by the corrected one.

The images have two channels. The attack may change the first, which starts at ½; the second holds each pixel's
logit. One step of 1/255 on an input moves the logits that hang on it by its slope, so a pixel whose logit
is k − ½ has been turned by the k-th step and not before.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import inf, isnan

import pytest
import torch
from torch import Tensor

from cease_core.attacks.medis import ALL, MedIS, MedISResult, attack_success_rate, distortion, stretched
from cease_core.attacks.run import Step
from cease_core.errors import CeaseError
from cease_core.models import Mode

STEP = 1 / 255
CERTAIN = 200.0  # a logit whose probability is 0 or 1 in float32: no loss moves it


@dataclass
class Linear:
    """Logits are those of the image, plus slopes (pixels, inputs) times the input's distance from ½ in steps."""

    slopes: Tensor
    mode: Mode = "binary"

    def __call__(self, images: Tensor) -> Tensor:
        moved = (images[:, :1] - 0.5) * 255 @ self.slopes.T
        return images[:, 1:] + moved


def attack(
    medis: MedIS, slopes: Tensor, logits: list[list[float]], labels: list[list[int]], **options: object
) -> MedISResult:
    z = torch.tensor(logits).view(len(logits), 1, 1, -1)
    images = torch.cat((torch.full_like(z, 0.5), z), dim=1)
    region = torch.tensor([1, 0]).view(1, 2, 1, 1)
    result = medis(Linear(slopes), images, torch.tensor(labels).unsqueeze(1), region=region, **options)  # type: ignore[arg-type]
    assert isinstance(result, MedISResult)
    return result


def steps_taken(result: MedISResult) -> Tensor:
    """The perturbation of the first channel in steps, (N, pixels)."""
    return (result.perturbation[:, 0, 0] / STEP).round(decimals=3)


# Each pixel has an input of its own. Four foreground pixels turn at steps 1, 2, 3 and never; the background is
# certain. Mean IoU after each step: 1, (3/4 + 4/5)/2 = .775, (1/2 + 2/3)/2 = .583, (1/4 + 4/7)/2 = .411.
ALONE = torch.eye(8)
LADDER = [0.5, 1.5, 2.5, CERTAIN, *[-CERTAIN] * 4]
LADDER_LABELS = [1, 1, 1, 1, 0, 0, 0, 0]
DICE = MedIS(surrogates=("log_cosh_dice",))
PUBLISHED = MedIS(surrogates=("log_cosh_dice",), legacy=True)

# All logits hang on one input. To raise it turns four foreground pixels (½) at the first step; to lower it turns
# forty background pixels (−2½) at the third. The Lovász hinge sees only the former, whose errors are larger and
# leave nothing of the IoU; Dice prefers the latter, which are many.
SHARED = torch.zeros(44, 44)
SHARED[:, 0] = -1
FEW_OR_MANY = [*[0.5] * 4, *[-2.5] * 40]
FEW_OR_MANY_LABELS = [*[1] * 4, *[0] * 40]
BOTH = MedIS(surrogates=("log_cosh_dice", "lovasz_hinge"))


def test_corrected_step_s_is_read_after_s_updates() -> None:
    result = attack(DICE, ALONE, [LADDER], [LADDER_LABELS])
    assert result.steps_needed.tolist() == [3]
    assert result.success.tolist() == [True]
    assert steps_taken(result).tolist() == [[-3, -3, -3, 0, 0, 0, 0, 0]]
    assert result.mean_iou.item() == pytest.approx((1 / 4 + 4 / 7) / 2)
    assert result.dice.item() == pytest.approx(2 / 5)


def test_published_step_s_is_read_before_its_update() -> None:
    result = attack(PUBLISHED, ALONE, [LADDER], [LADDER_LABELS])
    assert result.steps_needed.tolist() == [4]
    assert steps_taken(result).abs().max() == 3
    assert result.mean_iou.item() == pytest.approx((1 / 4 + 4 / 7) / 2)


@pytest.mark.parametrize(("legacy", "steps", "needed"), [(False, 3, 3), (False, 2, inf), (True, 4, 4), (True, 3, inf)])
def test_the_last_step_counts_only_where_it_is_read(legacy: bool, steps: int, needed: float) -> None:
    medis = MedIS(surrogates=("log_cosh_dice",), legacy=legacy, steps=steps)
    assert attack(medis, ALONE, [LADDER], [LADDER_LABELS]).steps_needed.tolist() == [needed]


def test_a_clean_image_already_broken_is_not_eligible() -> None:
    missed = [-3.0, -3.0, -3.0, CERTAIN, *[-CERTAIN] * 4]
    result = attack(DICE, ALONE, [missed, LADDER], [LADDER_LABELS] * 2)
    assert result.steps_needed.tolist() == [0, 3]
    assert result.success.tolist() == [False, True]
    assert attack_success_rate(result.steps_needed) == 1
    assert distortion(result.steps_needed) == 3
    assert not result.perturbation[0].any()
    assert result.gradients.tolist()[0] == 0


def test_published_it_is_a_success_at_step_one() -> None:
    missed = [-3.0, -3.0, -3.0, CERTAIN, *[-CERTAIN] * 4]
    result = attack(PUBLISHED, ALONE, [missed, LADDER], [LADDER_LABELS] * 2)
    assert result.steps_needed.tolist() == [1, 4]
    assert result.success.tolist() == [True, True]
    assert distortion(result.steps_needed) == 2.5
    assert not result.perturbation[0].any()


def test_published_masks_are_never_empty() -> None:
    # All four foreground pixels turn at the first step, but stay the most probable ones.
    sure_of_nothing = [*[0.5] * 4, *[-CERTAIN] * 4]
    corrected, published = (attack(m, ALONE, [sure_of_nothing], [LADDER_LABELS]) for m in (DICE, PUBLISHED))
    assert corrected.steps_needed.tolist() == [1]
    assert corrected.mean_iou.item() == pytest.approx((0 + 4 / 8) / 2)
    assert published.steps_needed.tolist() == [inf]
    assert published.mean_iou.item() == 1


def test_stretching_decides_between_the_lowest_and_the_highest() -> None:
    probabilities = torch.tensor([[0.1, 0.19, 0.21, 0.3], [0.6, 0.74, 0.76, 0.9]]).view(2, 1, 1, 4)
    decided = stretched(probabilities.logit(), "binary") > 0
    assert decided.flatten(1).tolist() == [[False, False, True, True]] * 2
    scores = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stretched(scores, "multiclass"), scores)


def test_published_losses_made_for_logits_are_given_probabilities() -> None:
    # One input again. To raise it turns four foreground pixels at the first step; to lower it makes twelve wrong
    # background pixels (6) more so, which breaks nothing. Cross-entropy of logits prefers the latter, but a
    # probability as high as theirs hardly moves.
    slopes = torch.zeros(56, 56)
    slopes[:, 0] = -1
    logits = [*[0.5] * 4, *[6.0] * 12, *[-CERTAIN] * 40]
    both = [MedIS(surrogates=("bce_dice",), legacy=legacy) for legacy in (False, True)]
    corrected, published = (attack(m, slopes, [logits], [[*[1] * 4, *[0] * 52]]) for m in both)
    assert corrected.steps_needed.tolist() == [inf]
    assert published.steps_needed.tolist() == [2]
    assert steps_taken(published)[0, 0] == 1


def test_the_loss_with_the_fewest_steps_is_kept_even_if_another_breaks_more() -> None:
    alone = [
        attack(MedIS(surrogates=(s,)), SHARED, [FEW_OR_MANY], [FEW_OR_MANY_LABELS])
        for s in ("log_cosh_dice", "lovasz_hinge")
    ]
    assert [r.steps_needed.item() for r in alone] == [3, 1]
    assert [r.mean_iou.item() for r in alone] == pytest.approx([4 / 44 / 2, 40 / 44 / 2])
    both = attack(BOTH, SHARED, [FEW_OR_MANY], [FEW_OR_MANY_LABELS])
    assert both.surrogate == ("lovasz_hinge",)
    assert both.steps_needed.item() == 1
    assert torch.equal(both.perturbation, alone[1].perturbation)


@pytest.mark.parametrize("order", [("log_cosh_dice", "lovasz_hinge"), ("lovasz_hinge", "log_cosh_dice")])
def test_of_equally_many_steps_the_lowest_mean_iou_is_kept(order: tuple[str, ...]) -> None:
    steep = SHARED.clone()
    steep[4:, 0] = -4  # now both turn theirs at the first step
    result = attack(MedIS(surrogates=order), steep, [FEW_OR_MANY], [FEW_OR_MANY_LABELS])
    assert result.steps_needed.item() == 1
    assert result.surrogate == ("log_cosh_dice",)
    assert result.mean_iou.item() == pytest.approx(4 / 44 / 2)


def test_where_none_succeeds_the_strongest_iterate_is_kept() -> None:
    medis = replace(BOTH, steps=2, threshold=0.4)
    result = attack(medis, SHARED, [FEW_OR_MANY], [FEW_OR_MANY_LABELS])
    assert result.steps_needed.tolist() == [inf]
    assert result.success.tolist() == [False]
    assert result.surrogate == ("lovasz_hinge",)
    assert result.mean_iou.item() == pytest.approx(40 / 44 / 2)
    assert isnan(distortion(result.steps_needed))


def test_the_success_rate_is_that_of_the_union() -> None:
    # Two problems like the one above side by side, each certain background to the other. In the second it is the
    # many that turn first, at the second step, and the hinge goes for the few, which need five.
    slopes = torch.zeros(88, 88)
    slopes[:44, 0] = -1
    slopes[44:48, 44], slopes[48:, 44] = -0.1, -2
    nothing = [-CERTAIN] * 44
    cases = [FEW_OR_MANY + nothing, nothing + FEW_OR_MANY]
    labels = [FEW_OR_MANY_LABELS + [0] * 44, [0] * 44 + FEW_OR_MANY_LABELS]
    needed = {
        s: attack(MedIS(steps=2, surrogates=s), slopes, cases, labels).steps_needed
        for s in (("log_cosh_dice",), ("lovasz_hinge",), ("log_cosh_dice", "lovasz_hinge"))
    }
    assert [n.tolist() for n in needed.values()] == [[inf, 2], [1, inf], [1, 2]]
    assert [attack_success_rate(n) for n in needed.values()] == [0.5, 0.5, 1]


def test_the_threshold_is_inclusive() -> None:
    # Two of four foreground pixels lost beside two of background: (2/4 + 2/4) / 2 is ½ exactly.
    logits = [0.5, 0.5, CERTAIN, CERTAIN, -CERTAIN, -CERTAIN]
    result = attack(DICE, torch.eye(6), [logits], [[1, 1, 1, 1, 0, 0]])
    assert result.mean_iou.tolist() == [0.5]
    assert result.steps_needed.tolist() == [1]


def test_towards_a_target_success_begins_at_45_percent() -> None:
    # With an empty target and n of ten pixels left, mean IoU is (10 − n) / 20: .40, then .45.
    logits = [0.5, 1.5, *[-CERTAIN] * 8]
    labels, nothing = [[1, 1, *[0] * 8]], torch.zeros(1, 1, 10, dtype=torch.long)
    result = attack(DICE, torch.eye(10), [logits], labels, target=nothing)
    assert result.steps_needed.tolist() == [1]
    assert result.mean_iou.item() == pytest.approx(0.45)
    stricter = MedIS(surrogates=("log_cosh_dice",), target_threshold=0.5)
    assert attack(stricter, torch.eye(10), [logits], labels, target=nothing).steps_needed.tolist() == [2]
    # Both pixels are below ½ after two updates, but the published mask keeps the more probable one.
    published = attack(PUBLISHED, torch.eye(10), [logits], labels, target=nothing)
    assert published.steps_needed.tolist() == [3]
    assert published.mean_iou.item() == pytest.approx(0.45)
    assert published.target_dice.item() == 1


def test_a_target_that_the_clean_image_reaches_is_not_eligible() -> None:
    labels = torch.tensor([[LADDER_LABELS]])
    result = attack(DICE, ALONE, [LADDER], [LADDER_LABELS], target=labels)
    assert result.steps_needed.tolist() == [0]
    assert isnan(attack_success_rate(result.steps_needed))


@pytest.mark.parametrize(
    ("epsilon", "taken", "needed"), [(0.0, 0, inf), (0.9, 0, inf), (2.9, 2, inf), (3.0, 3, 3.0), (100.0, 3, 3.0)]
)
def test_no_step_leaves_the_ball(epsilon: float, taken: int, needed: float) -> None:
    result = attack(MedIS(surrogates=("log_cosh_dice",), epsilon=epsilon * STEP), ALONE, [LADDER], [LADDER_LABELS])
    assert result.steps_needed.tolist() == [needed]
    assert steps_taken(result).abs().max() == taken


def test_a_broken_case_costs_nothing_more() -> None:
    easy = [*[0.5] * 3, CERTAIN, *[-CERTAIN] * 4]
    heard: list[Step] = []
    result = attack(DICE, ALONE, [LADDER, easy], [LADDER_LABELS] * 2, callback=heard.append)
    # The gradient at which a success is read is paid for.
    assert result.gradients.tolist() == [4, 2]
    assert steps_taken(result)[1].tolist() == [-1, -1, -1, 0, 0, 0, 0, 0]
    assert [s.done for s in heard] == [1, 2, 3, 4, 10]
    assert not result.cancelled


def test_stopping_keeps_what_was_found() -> None:
    result = attack(BOTH, ALONE, [LADDER], [LADDER_LABELS], callback=lambda step: step.done < 2)
    assert result.cancelled
    assert result.gradients.tolist() == [2]
    assert steps_taken(result).abs().max() == 2
    assert result.steps_needed.tolist() == [inf]


def test_reduced_precision_is_passed_over() -> None:
    class Reduced(Linear):
        exact = Linear(ALONE)

        def __call__(self, images: Tensor) -> Tensor:
            return super().__call__(images).round()

    z = torch.tensor(LADDER).view(1, 1, 1, -1)
    images = torch.cat((torch.full_like(z, 0.5), z), dim=1)
    region = torch.tensor([1, 0]).view(1, 2, 1, 1)
    result = DICE(Reduced(ALONE), images, torch.tensor([[LADDER_LABELS]]), region=region)
    assert torch.equal(result.perturbation, attack(DICE, ALONE, [LADDER], [LADDER_LABELS]).perturbation)


def test_a_model_that_says_it_is_exact_itself_is_attacked() -> None:
    class Whole(Linear):
        exact = None  # as windows and graphs of a model in full precision have it

    z = torch.tensor(LADDER).view(1, 1, 1, -1)
    images = torch.cat((torch.full_like(z, 0.5), z), dim=1)
    region = torch.tensor([1, 0]).view(1, 2, 1, 1)
    result = DICE(Whole(ALONE), images, torch.tensor([[LADDER_LABELS]]), region=region)
    assert torch.equal(result.perturbation, attack(DICE, ALONE, [LADDER], [LADDER_LABELS]).perturbation)


def test_rates_of_no_cases_are_undefined() -> None:
    failed, broken = torch.tensor([inf, inf]), torch.tensor([0.0])
    assert attack_success_rate(failed) == 0
    assert isnan(distortion(failed))
    assert isnan(attack_success_rate(broken))
    assert attack_success_rate(torch.tensor([1.0, 3.0, inf, 0.0])) == pytest.approx(2 / 3)
    assert distortion(torch.tensor([1.0, 3.0, inf, 0.0])) == 2


def test_the_protocol_is_the_default() -> None:
    default = {f.name: getattr(MedIS(), f.name) for f in fields(MedIS)}
    assert default["surrogates"] == tuple(ALL)
    assert (default["steps"], default["step_size"], default["legacy"]) == (10, 1 / 255, False)
    assert (default["threshold"], default["target_threshold"]) == (0.5, 0.45)
    assert MedIS().updates == 10
    assert MedIS(legacy=True).updates == 9


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"surrogates": ("dice", "hinge")}, "unknown surrogate 'dice'; choose from log_cosh_dice"),
        ({"surrogates": ()}, "no surrogate; choose from"),
        ({"steps": 0}, "give at least 1"),
        ({"step_size": 0.0}, "give a number above 0"),
        ({"threshold": 1.5}, "threshold is 1.5; give a mean IoU"),
        ({"target_threshold": -0.1}, "target_threshold is -0.1; give a mean IoU"),
    ],
)
def test_parameters_out_of_range_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        MedIS(**changes)
