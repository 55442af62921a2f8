"""On a linear model the worst perturbation is known: the attacks find it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cease_core.attacks import FGSM, LOSSES, PGD, Attack
from cease_core.attacks.norms import rms
from cease_core.attacks.problem import Problem
from cease_core.models import Mode

EPSILON = 0.05

# Losses that need not bring every pixel to the worst value: any perturbation is as good as another on a pixel that
# stays wrong for masked_ce, and for lovasz on a background pixel once all foreground is lost. The mask is the worst.
INDIFFERENT = ("masked_ce", "lovasz")
# What looks at the whole mask; miss leaves the background alone, and has a test of its own.
WHOLE = tuple(name for name in LOSSES if name != "miss")

GENERATOR = torch.Generator().manual_seed(3)
WEIGHTS = torch.randn(2, 6, 5, generator=GENERATOR)
IMAGES = torch.rand(2, 2, 6, 5, generator=GENERATOR) * 0.8 + 0.1


class PixelByPixel:
    """Each pixel's logit is a weighted sum of that pixel's channels."""

    mode: Mode = "binary"

    def __call__(self, images: Tensor) -> Tensor:
        return (WEIGHTS * images).sum(dim=1, keepdim=True)


class WholeImage:
    """One weighted sum of all values, the answer for every pixel: ``logit`` on the clean image."""

    mode: Mode = "binary"

    def __init__(self, logit: float) -> None:
        self.logit = logit

    def __call__(self, images: Tensor) -> Tensor:
        return (self.logit + (WEIGHTS * (images - IMAGES[:1])).sum(dim=(1, 2, 3), keepdim=True)).expand(-1, 1, 6, 5)


def attacks(norm: str) -> list[Attack]:
    return [
        make(epsilon=EPSILON, norm=norm, loss=loss, **steps)  # type: ignore[operator]
        for loss in WHOLE
        for make, steps in ((FGSM, {}), (PGD, {"steps": 40, "step_size": EPSILON / 4}))
    ]


def _name(attack: Attack) -> str:
    return f"{type(attack).__name__}-{attack.loss}"


@pytest.mark.parametrize("attack", attacks("linf"), ids=_name)
@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (0.12, 0.88)])
def test_linf_moves_every_value_against_its_label(attack: Attack, bounds: tuple[float, float]) -> None:
    labels = (PixelByPixel()(IMAGES) > 0)[:, 0].long()
    assert labels.any()
    assert not labels.all()
    towards_error = torch.where(labels == 1, -1.0, 1.0).unsqueeze(1) * WEIGHTS.sign()
    worst = (EPSILON * towards_error).clamp(
        min=(bounds[0] - IMAGES).clamp_max(0), max=(bounds[1] - IMAGES).clamp_min(0)
    )
    found = attack(PixelByPixel(), IMAGES, labels, bounds=bounds)
    if attack.loss in INDIFFERENT:
        problem = Problem.pose(PixelByPixel(), IMAGES, labels, "cross_entropy", bounds=bounds)
        torch.testing.assert_close(found.dice, problem.look(worst)[2])
    else:
        torch.testing.assert_close(found.perturbation, worst, rtol=0, atol=1e-7)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("attack", attacks("l2"), ids=_name)
def test_l2_goes_straight_against_the_weights(attack: Attack, label: int) -> None:
    away = 1 - 2 * label
    worst = EPSILON * away * WEIGHTS / WEIGHTS.square().mean().sqrt()
    labels = torch.full((1, 6, 5), label)
    found = attack(WholeImage(-5.0 * away), IMAGES[:1], labels, bounds=(-9.0, 9.0)).perturbation
    torch.testing.assert_close(rms(found), torch.tensor([EPSILON]))
    assert torch.cosine_similarity(found.flatten(), worst.flatten(), dim=0) > 0.9999


# The worst perturbation is not the one of highest loss for dice_masked: its masked part drops a pixel once it is wrong.
@pytest.mark.parametrize("loss", [name for name in WHOLE if name not in (*INDIFFERENT, "dice_masked")])
def test_the_reported_loss_is_the_optimum(loss: str) -> None:
    labels = (PixelByPixel()(IMAGES) > 0)[:, 0].long()
    problem = Problem.pose(PixelByPixel(), IMAGES, labels, loss, bounds=(-1.0, 2.0))
    worst = EPSILON * torch.where(labels == 1, -1.0, 1.0).unsqueeze(1) * WEIGHTS.sign()
    result = PGD(epsilon=EPSILON, steps=40, loss=loss).run(problem)
    torch.testing.assert_close(result.loss.amax(dim=0), problem.look(worst)[1])


def test_miss_moves_every_value_of_the_structure_and_no_other() -> None:
    labels = (PixelByPixel()(IMAGES) > 0)[:, 0].long()
    found = PGD(epsilon=EPSILON, steps=40, loss="miss", random=False)(
        PixelByPixel(), IMAGES, labels, bounds=(-1.0, 2.0)
    )
    inside = (labels == 1).unsqueeze(1)
    torch.testing.assert_close(found.perturbation, -EPSILON * WEIGHTS.sign() * inside, rtol=0, atol=1e-7)
