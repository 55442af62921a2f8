"""Each loss against values worked out by hand, in each mode."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor

from cease_core.attacks.criteria import dice as hard_dice
from cease_core.attacks.losses import LOSSES, masked_ce, one_hot, probabilities
from cease_core.errors import CeaseError
from cease_core.models import Mode


def softplus(x: float) -> float:
    return log(1 + exp(x))


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
    },
    "multiclass": {
        "cross_entropy": (log(2) + log(4)) / 2,
        # Class 1: p = (1/4, 1/4), present at the second; class 2: p = (1/4, 1/2), absent.
        "soft_dice": 1 - ((2 * 0.25 + 1) / (0.5 + 1 + 1) + 1 / (0.75 + 1)) / 2,
        "masked_ce": log(2),
    },
    "multilabel": {
        "cross_entropy": (2 * log(2) + 2 * softplus(-2)) / 4,
        "soft_dice": 1 - ((2 * S + 1) / (0.5 + S + 1 + 1) + (2 * 0.5 + 1) / (0.5 + (1 - S) + 1 + 1)) / 2,
        # Both pixels are foreground, the second alone is right in every channel.
        "masked_ce": softplus(-2) / 2,
    },
}
for _values in BY_HAND.values():
    _values["dice_ce"] = _values["cross_entropy"] + _values["soft_dice"]

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
    target = one_hot(torch.tensor([[[1, 0, 0]]]), "binary", 1)
    logits = (logit * (2 * target - 1)).requires_grad_()
    (grad,) = torch.autograd.grad(LOSSES[name](logits, target, "binary").sum(), logits)
    assert torch.equal(grad.sign(), 1 - 2 * target)


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
