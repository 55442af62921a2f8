"""The whole published MedIS protocol: six losses on paper, and against a plain loop over images, losses and steps.

The rules one by one are the subject of the attack's own tests.
"""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.attacks.medis import MedIS, attack_success_rate, distortion
from cease_core.attacks.surrogates import SURROGATES
from cease_core.evaluation import asr_medis, iou_per_class
from cease_core.models import Mode

STEP = 1 / 255
WEIGHTS = {
    "log_cosh_dice": 0.18,
    "bce_dice": 0.20,
    "exponential_log": 0.15,
    "weighted_bce_iou": 0.21,
    "lovasz_hinge": 0.26,
}
GIVEN_PROBABILITIES = ("bce_dice", "weighted_bce_iou", "lovasz_hinge")


class Pixels:
    """The second channel holds each pixel's logit, which one step of 1/255 on the first moves by one."""

    mode: Mode = "binary"

    def __call__(self, images: Tensor) -> Tensor:
        return images[:, 1:] + (images[:, :1] - 0.5) * 255


def test_step_counts_on_paper() -> None:
    sure = 200.0  # a probability of 0 or 1 in single precision, which no loss moves
    nothing = [-sure] * 4
    logits = [
        # Foreground pixels turn in updates 1, 2 and 3. Mean IoU after them: .775, .583 and .411.
        [0.5, 1.5, 2.5, sure, *nothing],
        # The clean mask has lost three of four pixels: (1/4 + 4/7) / 2.
        [-3.0, -3.0, -3.0, sure, *nothing],
        # All four pixels fall below ½ at once, but they stay the most probable ones, so the stretched mask keeps them.
        [0.5, 0.5, 0.5, 0.5, *nothing],
        # Two turn in the first update, and (2/4 + 4/6) / 2 is still above ½; the third turns in the ninth.
        [0.5, 0.5, 8.5, sure, *nothing],
        # The third turns in the tenth update, after which nobody looks.
        [0.5, 0.5, 9.5, sure, *nothing],
    ]
    z = torch.tensor(logits)[:, None, None]
    images = torch.cat((torch.full_like(z, 0.5), z), dim=1)
    labels = torch.tensor([[[1, 1, 1, 1, 0, 0, 0, 0]]]).expand(5, -1, -1)
    result = MedIS(legacy=True)(Pixels(), images, labels, region=torch.tensor([1, 0]).view(1, 2, 1, 1))
    # Success is read at the step after the update that brought it.
    assert result.steps_needed.tolist() == [4, 1, inf, 10, inf]
    # All six losses need as many steps and leave the same mask: the first named is kept.
    assert set(result.surrogate) == {"log_cosh_dice"}
    broken = (1 / 4 + 4 / 7) / 2
    assert result.mean_iou.tolist() == pytest.approx([broken, broken, 1, broken, (2 / 4 + 4 / 6) / 2])
    assert attack_success_rate(result.steps_needed) == pytest.approx(3 / 5)
    assert asr_medis(result.mean_iou) == pytest.approx(3 / 5)
    assert distortion(result.steps_needed) == pytest.approx((4 + 1 + 10) / 3)


class Network:
    """Two fixed convolutions, in double precision: alone and in a batch an image gets the same logits."""

    mode: Mode = "binary"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        first, second = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((6, 1, 5, 5), (1, 6, 3, 3)))
        self.first, self.second = first - first.mean((2, 3), keepdim=True) / 2, second

    def __call__(self, images: Tensor) -> Tensor:
        x = 1.5 * (images.double() - 0.5)
        return F.conv2d(torch.tanh(F.conv2d(x, self.first, padding=2)), self.second, padding=1).float()


def published_loss(name: str, logits: Tensor, target: Tensor) -> Tensor:
    if name == "weighted_sum":
        return sum((w * published_loss(n, logits, target) for n, w in WEIGHTS.items()), torch.zeros(()))
    given = logits.sigmoid() if name in GIVEN_PROBABILITIES else logits
    return SURROGATES[name](given, target, "binary").sum()


def mean_iou(logits: Tensor, label: Tensor) -> float:
    p = logits.sigmoid()
    mask = ((p - p.min()) / (p.max() - p.min())).round().int()
    both = iou_per_class(mask[0, 0].numpy(), label.numpy(), (0, 1))
    return (both[0] + both[1]) / 2


def by_plain_loop(model: Network, image: Tensor, label: Tensor) -> tuple[float, float, str]:
    """Steps, mean IoU and loss that are kept for one image (1, 1, H, W)."""
    kept = (inf, nan, "")
    for name in (*WEIGHTS, "weighted_sum"):
        x = image.clone()
        for step in range(1, 11):
            x.requires_grad_()
            logits = model(x)
            reached = mean_iou(logits.detach(), label)
            if reached <= 0.5:
                if (step, reached) < kept[:2]:
                    kept = (step, reached, name)
                break
            (grad,) = torch.autograd.grad(published_loss(name, logits, label[None, None].float()), x)
            x = (x.detach() + STEP * grad.sign()).clamp(0, 1)
    return kept


def test_step_counts_of_a_plain_loop() -> None:
    model, generator = Network(), torch.Generator().manual_seed(0)
    smooth = F.avg_pool2d(torch.rand(12, 1, 28, 28, generator=generator), 9, stride=1)
    # The higher an image's contrast, the more steps it takes.
    images = 0.5 + (smooth - smooth.mean((2, 3), keepdim=True)) * torch.linspace(0.3, 7, 12).view(-1, 1, 1, 1)
    logits = F.avg_pool2d(model(images), 3, stride=1, padding=1)[:, 0]
    labels = (logits > logits.flatten(1).quantile(0.6, dim=1).view(-1, 1, 1)).long()
    labels[0] = 1 - labels[0]
    expected = [by_plain_loop(model, x[None], y) for x, y in zip(images, labels, strict=True)]
    steps = [e[0] for e in expected]
    # Some clean image counts as broken, some resists, and the rest take few steps or many.
    assert {1, inf} <= set(steps)
    assert len(set(steps)) >= 6
    result = MedIS(legacy=True)(model, images, labels)
    assert result.steps_needed.tolist() == steps
    broken = [i for i, s in enumerate(steps) if s < inf]
    assert [result.surrogate[i] for i in broken] == [expected[i][2] for i in broken]
    assert [result.mean_iou[i].item() for i in broken] == pytest.approx([expected[i][1] for i in broken], abs=1e-6)
    assert attack_success_rate(result.steps_needed) == pytest.approx(len(broken) / 12)
    assert distortion(result.steps_needed) == pytest.approx(sum(steps[i] for i in broken) / len(broken))
