"""Each loss against values worked out by hand, in each mode."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor

from cease_core.attacks.criteria import dice as hard_dice
from cease_core.attacks.losses import (
    LOSSES,
    TOWARDS,
    ascent,
    boundary,
    lovasz,
    margin,
    masked_ce,
    one_hot,
    probabilities,
)
from cease_core.attacks.losses.distance import signed_distance
from cease_core.errors import CeaseError
from cease_core.models import Mode


def softplus(x: float) -> float:
    return log(1 + exp(x))


def js_divergence(*q: float) -> float:
    """Mean over decisions of which the right answer has probability ``q``, from the definition."""

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    def one(q: float) -> float:
        predicted, truth = [q, 1 - q], [1.0, 0.0]
        between = [(x + y) / 2 for x, y in zip(predicted, truth, strict=True)]
        return (kl(predicted, between) + kl(truth, between)) / 2

    return sum(map(one, q)) / len(q)


# Three pixels in a row, so that every sum can be checked on paper.
BINARY = torch.tensor([[[[2.0, -1.0, 0.5]]]])  # right, wrong, wrong
BINARY_LABELS = torch.tensor([[[1, 1, 0]]])
P, Q, R = (1 / (1 + exp(-z)) for z in (2.0, -1.0, 0.5))

# Scores of three classes for two pixels: softmax of (ln 2, 0, 0) is (1/2, 1/4, 1/4).
MULTICLASS = torch.tensor([[[[log(2), 0.0]], [[0.0, 0.0]], [[0.0, log(2)]]]])
MULTICLASS_LABELS = torch.tensor([[[0, 1]]])  # background (right), class 1 (wrong)

# Two sigmoids for two pixels; at 0 each probability is 1/2.
MULTILABEL = torch.tensor([[[[0.0, 2.0]], [[0.0, -2.0]]]])
MULTILABEL_LABELS = torch.tensor([[[2, 1]]])  # wrong (a logit of 0 is no), right

S = 1 / (1 + exp(-2.0))
BY_HAND: dict[Mode, dict[str, float]] = {
    "binary": {
        "cross_entropy": (softplus(-2) + softplus(1) + softplus(0.5)) / 3,
        "soft_dice": 1 - (2 * (P + Q) + 1) / (P + Q + R + 2 + 1),
        # Of the two foreground pixels the first is still right; the background pixel is wrong.
        "masked_ce": softplus(-2) / 2,
        "balanced_ce": (softplus(-2) + softplus(1)) / 2 + softplus(0.5),
        "bce": (softplus(-2) + softplus(1) + softplus(0.5)) / 3,
        "js": js_divergence(P, Q, 1 - R),
        "margin": (-2 + 1) / 2 + 0.5,
        "miss": -(softplus(2) + softplus(-1)) / 2,
        "focal": ((1 - P) ** 2 * softplus(-2) + (1 - Q) ** 2 * softplus(1) + R**2 * softplus(0.5)) / 3,
        # Errors 3, 2.5 and 1/e: of the second pixel, the third and the first. With each further one wrong, IoU
        # falls from 1 to 1/2, 1/3 and 0.
        "lovasz": 3 / 2 + 2.5 / 6 + exp(-1) / 3,
        # Two pixels and one pixel inside, one outside.
        "boundary": (-2 * P - Q + R) / 3,
    },
    "multiclass": {
        "cross_entropy": (log(2) + log(4)) / 2,
        # Class 1: p = (1/4, 1/4), present at the second; class 2: p = (1/4, 1/2), absent.
        "soft_dice": 1 - ((2 * 0.25 + 1) / (0.5 + 1 + 1) + 1 / (0.75 + 1)) / 2,
        "masked_ce": log(2),
        "balanced_ce": log(4) + log(2),
        # One against the rest: (ln 2, 0, 0) for the first class, (0, 0, ln 2) for the second.
        "bce": (log(1.5) + 4 * log(2) + log(3)) / 6,
        "js": js_divergence(1 / 2, 1 / 4),
        "margin": -log(2) + log(2),
        "miss": -log(4),
        "focal": (log(2) / 4 + 9 / 16 * log(4)) / 2,
        # Class 1: the second pixel alone counts, it is all of the class. Class 2, absent: the largest error.
        "lovasz": (3 / 4 + 1 / 2) / 2,
        # Class 1: distances 1 and -1 at equal probabilities. Class 2, absent: 1 everywhere.
        "boundary": (0.25 - 0.25 + 0.25 + 0.5) / 4,
    },
    "multilabel": {
        "cross_entropy": (2 * log(2) + 2 * softplus(-2)) / 4,
        "soft_dice": 1 - ((2 * S + 1) / (0.5 + S + 1 + 1) + (2 * 0.5 + 1) / (0.5 + (1 - S) + 1 + 1)) / 2,
        # Both pixels are foreground, the second alone is right in every channel.
        "masked_ce": softplus(-2) / 2,
        "balanced_ce": (2 * log(2) + 2 * softplus(-2)) / 4,
        "bce": (2 * log(2) + 2 * softplus(-2)) / 4,
        "js": js_divergence(1 / 2, 1 / 2, S, S),
        "margin": (0 + 0 - 2 - 2) / 4,
        "miss": -(log(2) + softplus(2)) / 2,
        "focal": (2 * log(2) / 4 + 2 * (1 - S) ** 2 * softplus(-2)) / 4,
        # Class 1: the false pixel (error 2) halves IoU, then the true one (1/e) loses the rest. Class 2: the true
        # pixel (error 2) comes first, and is all of it.
        "lovasz": ((2 + exp(-1)) / 2 + 2) / 2,
        "boundary": (0.5 - S - 0.5 + (1 - S)) / 4,
    },
}
for _values in BY_HAND.values():
    _values["dice_ce"] = _values["cross_entropy"] + _values["soft_dice"]
    _values["dice_masked"] = _values["masked_ce"] + _values["soft_dice"]

CASES: dict[Mode, tuple[Tensor, Tensor]] = {
    "binary": (BINARY, BINARY_LABELS),
    "multiclass": (MULTICLASS, MULTICLASS_LABELS),
    "multilabel": (MULTILABEL, MULTILABEL_LABELS),
}


@pytest.mark.parametrize("mode", CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_value_by_hand(name: str, mode: Mode) -> None:
    logits, labels = CASES[mode]
    target = one_hot(labels, mode, logits.shape[1])
    assert LOSSES[name](logits, target, mode).item() == pytest.approx(BY_HAND[mode][name], rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_one_value_for_each_case(name: str) -> None:
    logits = torch.cat([BINARY, -BINARY])
    target = one_hot(BINARY_LABELS.expand(2, 1, 3), "binary", 1)
    together = LOSSES[name](logits, target, "binary")
    apart = torch.cat([LOSSES[name](logits[i : i + 1], target[i : i + 1], "binary") for i in range(2)])
    assert together.shape == (2,)
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize(("mode", "dice"), [("binary", 2 / 4), ("multiclass", 0.0), ("multilabel", (1 + 0) / 2)])
def test_hard_dice_by_hand(mode: Mode, dice: float) -> None:
    logits, labels = CASES[mode]
    assert hard_dice(logits, one_hot(labels, mode, logits.shape[1]), mode).item() == pytest.approx(dice)


@pytest.mark.parametrize("mode", CASES)
def test_a_class_that_both_masks_lack_counts_as_found(mode: Mode) -> None:
    logits = -torch.ones(1, 3, 1, 4)
    logits[:, 0] = 5 if mode == "multiclass" else -1
    if mode == "binary":
        logits = logits[:, :1]
    nothing = one_hot(torch.zeros(1, 1, 4, dtype=torch.long), mode, logits.shape[1])
    assert hard_dice(logits, nothing, mode).item() == 1


def test_hard_dice_ignores_the_background_class() -> None:
    logits = torch.zeros(1, 2, 1, 4)
    logits[:, 0] = 1
    labels = torch.tensor([[[0, 0, 0, 1]]])
    assert hard_dice(logits, one_hot(labels, "multiclass", 2), "multiclass").item() == 0


@pytest.mark.parametrize("mode", CASES)
def test_masked_ce_ignores_what_is_already_wrong(mode: Mode) -> None:
    logits, labels = CASES[mode]
    logits = logits.clone().requires_grad_()
    target = one_hot(labels, mode, logits.shape[1])
    (grad,) = torch.autograd.grad(masked_ce(logits, target, mode).sum(), logits)
    wrong = {"binary": [1, 2], "multiclass": [1], "multilabel": [0]}[mode]
    right = {"binary": [0], "multiclass": [0], "multilabel": [1]}[mode]
    assert not grad[..., wrong].any()
    assert grad[..., right].all()


def test_masked_ce_weighs_a_small_structure_like_its_background() -> None:
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[0, 0, :4] = 1
    target = one_hot(labels, "binary", 1)
    logits = (target * 2 - 1).requires_grad_()
    (grad,) = torch.autograd.grad(masked_ce(logits, target, "binary").sum(), logits)
    inside = target > 0
    assert grad[inside].sum().abs().item() == pytest.approx(grad[~inside].sum().abs().item(), rel=1e-5)


@pytest.mark.parametrize("logit", [0.3, 8.0])
@pytest.mark.parametrize("name", LOSSES)
def test_one_channel_sigmoid_models_get_a_gradient(name: str, logit: float) -> None:
    # Cross-entropy over a softmax of one channel is constant: attacks that use it return the image unchanged.
    # The structure comes last: once all of it is lost, Lovász gives no weight to the pixels after it.
    target = one_hot(torch.tensor([[[0, 0, 1]]]), "binary", 1)
    logits = (logit * (2 * target - 1)).requires_grad_()
    (grad,) = torch.autograd.grad(LOSSES[name](logits, target, "binary").sum(), logits)
    # Only miss leaves the background alone.
    assert torch.equal(grad.sign(), -target if name == "miss" else 1 - 2 * target)


@pytest.mark.parametrize("mode", CASES)
@pytest.mark.parametrize("targeted", [False, True], ids=["away", "towards"])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_where_the_model_is_sure(name: str, targeted: bool, mode: Mode) -> None:
    logits, labels = CASES[mode]
    target = one_hot(labels, mode, logits.shape[1])
    for size in (100.0, -100.0, 0.0):
        sure = (size * (2 * target - 1)).requires_grad_()
        value = ascent(name, targeted=targeted)(sure, target, mode)
        (grad,) = torch.autograd.grad(value.sum(), sure)
        assert value.isfinite().all()
        assert grad.isfinite().all()


@pytest.mark.parametrize("mode", CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_pixels_that_are_right_for_sure_can_still_be_turned(name: str, mode: Mode) -> None:
    # In float32 the probability is 1 at a logit of 25: a gradient made from p (1 - p) or p - t is 0.
    logits, labels = CASES[mode]
    target = one_hot(labels, mode, logits.shape[1])
    sure = (25 * (target if mode == "multiclass" else 2 * target - 1)).requires_grad_()
    (grad,) = torch.autograd.grad(LOSSES[name](sure, target, mode).sum(), sure)
    turned = (grad * (1 - 2 * target)).amax(dim=1)
    assert (turned[labels > 0] > 0).all()


# Each pixel right, but less and less so, then wrong, and more and more so.
SCORES = torch.tensor([[[[6.0, 0.5, -0.5, -6.0, 6.0, 0.5, -0.5, -6.0]]]])
SCORES_TARGET = one_hot(torch.tensor([[[1, 1, 1, 1, 0, 0, 0, 0]]]), "binary", 1)


def pull(name: str, *, targeted: bool) -> Tensor:
    """How strongly the ascent moves each pixel (8,), above 0 away from the mask or, ``targeted``, towards it."""
    logits = SCORES.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ascent(name, targeted=targeted)(logits, SCORES_TARGET, "binary").sum(), logits)
    wanted = 2 * SCORES_TARGET - 1 if targeted else 1 - 2 * SCORES_TARGET
    return (grad * wanted)[0, 0, 0]


@pytest.mark.parametrize("name", LOSSES)
def test_towards_a_target_no_pixel_is_pushed_away(name: str) -> None:
    assert (pull(name, targeted=True) >= 0).all()


@pytest.mark.parametrize("name", TOWARDS)
def test_towards_a_target_the_pixels_that_are_far_from_it_are_pulled_most(name: str) -> None:
    there, far = [0, 7], [3, 4]
    pulled = pull(name, targeted=True)
    assert pulled[far].amin() > 20 * pulled[there].amax()


@pytest.mark.parametrize("name", ["masked_ce", "js"])
def test_minus_the_loss_would_leave_them_where_they_are(name: str) -> None:
    away = pull(name, targeted=False)
    assert away[[3, 4]].amax() < 0.05 * away.amax()


@pytest.mark.parametrize("name", ["masked_ce", "js", "dice_masked"])
@pytest.mark.parametrize("mode", CASES)
def test_nothing_is_above_the_target_itself(name: str, mode: Mode) -> None:
    _, labels = CASES[mode]
    target = one_hot(labels, mode, CASES[mode][0].shape[1])
    values = [TOWARDS[name](size * (2 * target - 1), target, mode).item() for size in (-8.0, -1.0, 1.0, 40.0)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0, abs=1e-6)


def test_masked_ce_towards_a_target_leaves_what_is_there_alone() -> None:
    pulled = pull("masked_ce", targeted=True)
    assert (pulled > 0).tolist() == [False, False, True, True, True, True, False, False]


def test_towards_by_hand() -> None:
    target = one_hot(BINARY_LABELS, "binary", 1)
    by_hand = {
        "masked_ce": -softplus(1) / 2 - softplus(0.5),
        "dice_masked": -softplus(1) / 2 - softplus(0.5) - BY_HAND["binary"]["soft_dice"],
        "js": sum(log(1 - js_divergence(q) / log(2)) for q in (P, Q, 1 - R)) / 3,
        "margin": -(softplus(-2) + softplus(1)) / 2 - softplus(0.5),
    }
    assert set(by_hand) == set(TOWARDS)
    for name, value in by_hand.items():
        assert TOWARDS[name](BINARY, target, "binary").item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("label", "value"), [(0, -2.0), (1, 2.0), (2, 5.0)])
def test_margin_is_the_best_wrong_minus_the_right_logit(label: int, value: float) -> None:
    logits = torch.tensor([3.0, 1.0, -2.0]).view(1, 3, 1, 1)
    assert margin(logits, one_hot(torch.full((1, 1, 1), label), "multiclass", 3), "multiclass").item() == value


def test_margin_pulls_alike_however_sure_the_model_is() -> None:
    assert pull("margin", targeted=False).tolist() == [0.25] * 8


def test_lovasz_is_one_minus_iou_where_errors_are_0_or_1() -> None:
    # Softmax probabilities that are 0 or 1: the surrogate is tight there.
    truth = torch.tensor([[[0, 0, 1, 1, 1, 2]]])
    said = torch.tensor([[[0, 1, 1, 1, 2, 2]]])
    logits = 200 * one_hot(said, "multiclass", 3)
    expected = 1 - (2 / 4 + 1 / 2) / 2
    assert lovasz(logits, one_hot(truth, "multiclass", 3), "multiclass").item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(9, 7), (5, 6, 4)])
def test_signed_distance_against_a_search_through_all_pixels(shape: tuple[int, ...]) -> None:
    masks = (torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    places = torch.cartesian_prod(*(torch.arange(s) for s in shape)).double()
    apart = torch.cdist(places, places)
    for mask, found in zip(masks.flatten(0, 1), signed_distance(masks).flatten(0, 1), strict=True):
        inside = mask.flatten() > 0.5
        nearest = apart.masked_fill(inside == inside.unsqueeze(1), torch.inf).amin(dim=1)
        expected = torch.where(inside, -nearest, nearest).float().view(shape)
        torch.testing.assert_close(found, expected)


def test_a_mask_without_an_edge_is_alike_everywhere() -> None:
    masks = torch.stack([torch.zeros(4, 5), torch.ones(4, 5)]).unsqueeze(0)
    assert torch.equal(signed_distance(masks), 1 - 2 * masks)


def test_the_distances_are_found_once_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    from scipy import ndimage

    exact = ndimage.distance_transform_edt
    monkeypatch.setattr(ndimage, "distance_transform_edt", lambda m: calls.append(1) or exact(m))
    labels = torch.zeros(2, 11, 13, dtype=torch.long)
    labels[0, 3:5, 2:9] = 1
    labels[1, 1:8, 6:7] = 1
    target = one_hot(labels, "binary", 1)
    for case in (slice(0, 2), slice(0, 2), slice(0, 1), slice(1, 2)):  # as batches are cut anew
        boundary(torch.zeros(2, 1, 11, 13)[case], target[case].clone(), "binary")
    assert len(calls) == 4  # of both sides of both masks


def test_probabilities() -> None:
    assert probabilities(BINARY, "binary").flatten().tolist() == pytest.approx([P, Q, R])
    assert probabilities(MULTICLASS, "multiclass")[0, :, 0, 0].tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_one_hot() -> None:
    labels = torch.tensor([[[0, 1, 2]]])
    assert one_hot(labels, "multiclass", 3)[0, :, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert one_hot(labels, "multilabel", 2)[0, :, 0].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert one_hot(labels.clamp_max(1), "binary", 1)[0, :, 0].tolist() == [[0, 1, 1]]
    overlapping = torch.ones(1, 2, 1, 3)
    assert torch.equal(one_hot(overlapping, "multilabel", 2), overlapping)


@pytest.mark.parametrize(("mode", "outputs", "known"), [("binary", 1, 1), ("multiclass", 3, 2), ("multilabel", 2, 2)])
def test_unknown_classes_are_named(mode: Mode, outputs: int, known: int) -> None:
    for found in (known + 1, -1):
        with pytest.raises(CeaseError, match=rf"hold class {found}, but the model knows 0 to {known}"):
            one_hot(torch.full((1, 2, 2), found), mode, outputs)
