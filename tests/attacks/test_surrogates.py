"""The surrogate losses of MedIS against values worked out by hand, in each mode."""

from __future__ import annotations

from math import cosh, exp, log, sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.attacks.losses import one_hot
from cease_core.attacks.surrogates import SURROGATES, WEIGHTS, as_published, weighted_bce_iou, weighted_sum
from cease_core.models import Mode


def softplus(x: float) -> float:
    return log(1 + exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


# Three pixels in a row with the logits 2, −1 and ½, of which the first two are foreground.
# Softmax scores of three classes for a background pixel and one of class 1: (½, ¼, ¼) and (¼, ¼, ½).
# Two sigmoids for two pixels: class 1 at the second pixel, class 2 at the first.
CASES: dict[Mode, tuple[Tensor, Tensor]] = {
    "binary": (torch.tensor([[[[2.0, -1.0, 0.5]]]]), torch.tensor([[[1, 1, 0]]])),
    "multiclass": (torch.tensor([[[[log(2), 0.0]], [[0.0, 0.0]], [[0.0, log(2)]]]]), torch.tensor([[[0, 1]]])),
    "multilabel": (torch.tensor([[[[0.0, 2.0]], [[0.0, -2.0]]]]), torch.tensor([[[2, 1]]])),
}
P, Q, R, S = (sigmoid(z) for z in (2.0, -1.0, 0.5, -2.0))
DICE: dict[Mode, list[float]] = {
    "binary": [(2 * (P + Q) + 1) / (P + Q + R + 2 + 1)],
    "multiclass": [(2 * 0.25 + 1) / (0.5 + 1 + 1), 1 / (0.75 + 1)],
    "multilabel": [(2 * P + 1) / (0.5 + P + 1 + 1), (2 * 0.5 + 1) / (0.5 + S + 1 + 1)],
}
CROSS_ENTROPY: dict[Mode, list[float]] = {
    "binary": [softplus(-2), softplus(1), softplus(0.5)],
    "multiclass": [log(2), log(4)],
    "multilabel": [log(2), softplus(-2), log(2), softplus(-2)],
}
# √(all pixels / pixels of the pixel's class).
RARITY: dict[Mode, list[float]] = {
    "binary": [sqrt(3 / 2), sqrt(3 / 2), sqrt(3)],
    "multiclass": [sqrt(2)] * 2,
    "multilabel": [sqrt(2)] * 4,
}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def edge_weight(inside: bool, pixels: int) -> float:
    """The box of 31 × 31 covers the whole image, and the outside counts as empty."""
    return 1 + 5 * abs(pixels / 31**2 - inside)


def weighted_by_hand(mode: Mode) -> float:
    ce = CROSS_ENTROPY[mode]
    if mode == "binary":
        v, w = edge_weight(True, 2), edge_weight(False, 2)
        both, either = v * (P + Q), v * (P + Q + 2) + w * R - v * (P + Q)
        return (v * ce[0] + v * ce[1] + w * ce[2]) / (2 * v + w) + 1 - (both + 1) / (either + 1)
    v, w = edge_weight(True, 1), edge_weight(False, 1)
    if mode == "multiclass":
        # Class 2 is absent, so class 1 weighs every pixel: the first is outside of it, the second inside.
        first = (v * 0.25 + 1) / (v * 1 + w * 0.25 + 1)
        second = (0 + 1) / (w * 0.25 + v * 0.5 + 1)
        return (w * ce[0] + v * ce[1]) / (v + w) + 1 - (first + second) / 2
    cross = mean([(w * ce[0] + v * ce[1]) / (v + w), (v * ce[2] + w * ce[3]) / (v + w)])
    first = (v * P + 1) / (v * 1 + w * 0.5 + 1)
    second = (v * 0.5 + 1) / (v * 1 + w * S + 1)
    return cross + 1 - (first + second) / 2


def by_hand(name: str, mode: Mode) -> float:
    dice, ce = DICE[mode], CROSS_ENTROPY[mode]
    if name == "log_cosh_dice":
        return log(cosh(1 - mean(dice)))
    if name == "bce_dice":
        return mean(ce) + 1 - mean(dice)
    if name == "exponential_log":
        cross = mean([r * c**0.3 for r, c in zip(RARITY[mode], ce, strict=True)])
        return 0.8 * mean([(-log(d)) ** 0.3 for d in dice]) + 0.2 * cross
    if name == "weighted_bce_iou":
        return weighted_by_hand(mode)
    return {
        # Errors 3 (foreground), 2.5 (background) and 1/e (foreground), by which 1 − IoU grows to 1/2, 2/3 and 1.
        "binary": 3 / 2 + 2.5 / 6 + exp(-1) / 3,
        # Class 1: .75 at its pixel, which alone makes 1 − IoU 1. Class 2, absent: so does the larger error, .5.
        "multiclass": (0.75 + 0.5) / 2,
        # Class 1: errors 2 outside of it and 1/e inside. Class 2: error 2 at its only pixel.
        "multilabel": (2 / 2 + exp(-1) / 2 + 2) / 2,
    }[mode]


@pytest.mark.parametrize("mode", CASES)
@pytest.mark.parametrize("name", SURROGATES)
def test_value_by_hand(name: str, mode: Mode) -> None:
    logits, labels = CASES[mode]
    target = one_hot(labels, mode, logits.shape[1])
    assert SURROGATES[name](logits, target, mode).item() == pytest.approx(by_hand(name, mode), rel=1e-5)


@pytest.mark.parametrize("mode", CASES)
def test_weighted_sum_by_hand(mode: Mode) -> None:
    logits, labels = CASES[mode]
    target = one_hot(labels, mode, logits.shape[1])
    order = ("log_cosh_dice", "bce_dice", "exponential_log", "weighted_bce_iou", "lovasz_hinge")
    value = sum(w * by_hand(name, mode) for w, name in zip((0.18, 0.20, 0.15, 0.21, 0.26), order, strict=True))
    assert weighted_sum(logits, target, mode).item() == pytest.approx(value, rel=1e-5)
    assert sum(WEIGHTS.values()) == pytest.approx(1)


def test_published_losses_made_for_logits_get_probabilities() -> None:
    logits, labels = CASES["binary"]
    target = one_hot(labels, "binary", 1)
    published = {n: as_published(n)(logits, target, "binary").item() for n in (*SURROGATES, "weighted_sum")}
    assert published["log_cosh_dice"] == pytest.approx(by_hand("log_cosh_dice", "binary"), rel=1e-5)
    assert published["exponential_log"] == pytest.approx(by_hand("exponential_log", "binary"), rel=1e-5)
    # The sigmoid is taken twice.
    twice = [sigmoid(p) for p in (P, Q, R)]
    dice = (2 * (twice[0] + twice[1]) + 1) / (sum(twice) + 2 + 1)
    ce = mean([softplus(-P), softplus(-Q), softplus(R)])
    assert published["bce_dice"] == pytest.approx(ce + 1 - dice, rel=1e-5)
    # The margin is never reached: errors 2 + R (background), 2 − Q and 2 − P; 1 − IoU grows to 1/3, 2/3 and 1.
    assert published["lovasz_hinge"] == pytest.approx((2 + R + 2 - Q + 2 - P) / 3, rel=1e-5)
    assert published["weighted_sum"] == pytest.approx(sum(WEIGHTS[n] * published[n] for n in SURROGATES), rel=1e-5)


@pytest.mark.parametrize("name", SURROGATES)
def test_one_value_for_each_case(name: str) -> None:
    logits, labels = CASES["multiclass"]
    both = torch.cat([logits, -logits])
    target = one_hot(labels.expand(2, 1, 2), "multiclass", 3)
    together = SURROGATES[name](both, target, "multiclass")
    apart = torch.cat([SURROGATES[name](both[i : i + 1], target[i : i + 1], "multiclass") for i in range(2)])
    assert together.shape == (2,)
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("name", SURROGATES)
def test_softmax_over_two_classes_knows_the_same_edges_as_a_sigmoid(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 1, 6, 5, generator=generator)
    labels = (torch.rand(2, 6, 5, generator=generator) > 0.6).long()
    one = SURROGATES[name](z, one_hot(labels, "binary", 1), "binary")
    two = SURROGATES[name](torch.cat((torch.zeros_like(z), z), dim=1), one_hot(labels, "multiclass", 2), "multiclass")
    if name == "lovasz_hinge":  # of logits the one, of probabilities the other
        assert (one > two).all()
    else:
        torch.testing.assert_close(one, two)


def test_edges_weigh_as_in_a_box_of_31() -> None:
    labels = (torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(0)) > 0.5).long()
    target = one_hot(labels, "binary", 1)
    weight = 1 + 5 * (F.avg_pool2d(target, 31, stride=1, padding=15) - target).abs()
    # At logits of 0 cross-entropy is ln 2 whatever the weights, and IoU shows them.
    both, both_and_all = (weight * target / 2).sum(), (weight * (target + 0.5)).sum()
    value = log(2) + 1 - (both + 1) / (both_and_all - both + 1)
    assert weighted_bce_iou(torch.zeros_like(target), target, "binary").item() == pytest.approx(value.item(), rel=1e-5)


def test_volumes_are_weighed_in_a_cube() -> None:
    labels = torch.zeros(1, 2, 3, 4, dtype=torch.long)
    labels[0, 0, 0, :2] = 1
    v, w = 1 + 5 * (1 - 2 / 31**3), 1 + 5 * (2 / 31**3)
    value = log(2) + 1 - (v + 1) / (2 * v + 22 * w / 2 + 1)
    target = one_hot(labels, "binary", 1)
    assert weighted_bce_iou(torch.zeros_like(target), target, "binary").item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("mode", CASES)
@pytest.mark.parametrize("name", SURROGATES)
def test_gradients_stay_finite_when_all_is_certain(name: str, mode: Mode, empty: bool) -> None:
    logits, labels = CASES[mode]
    target = one_hot(labels * (not empty), mode, logits.shape[1])
    for sign in (1, -1):
        certain = (sign * 200 * (2 * target - 1)).requires_grad_()
        value = SURROGATES[name](certain, target, mode)
        (grad,) = torch.autograd.grad(value.sum(), certain)
        assert value.isfinite().all()
        assert grad.isfinite().all()
