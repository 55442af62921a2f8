"""The attack inside the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cease_core.attacks.norms import project, steepest
from cease_core.attacks.problem import limits, within
from cease_core.defences.config import InnerAttack
from cease_core.defences.views import generators
from cease_core.errors import CeaseError

Ascended = Callable[[Tensor, int], Tensor]
"""From adversarial images and the number of the step to the value (N,) that is ascended."""


def start(images: Tensor, epsilon: float, seeds: Sequence[int]) -> Tensor:
    """Uniform noise in the ball, drawn case by case."""
    noise = [torch.rand(images.shape[1:], generator=g) * 2 - 1 for g in generators(seeds, salt=1)]
    return epsilon * torch.stack(noise).to(images)


def craft(
    images: Tensor,
    ascended: Ascended,
    inner: InnerAttack,
    epsilon: float,
    seeds: Sequence[int],
    first: Tensor | None = None,
) -> Tensor:
    """Adversarial images (N, C, *spatial) by ``inner.steps`` signed gradient steps, by default from a random start.

    Parameters
    ----------
    images
        Clean images in window fractions.
    ascended
        What is ascended.
    inner
        Number and size of the steps.
    epsilon
        Radius now, in window fractions.
    seeds
        One a case.
    first
        The gradient at the clean images, from where the attack then begins.

    Raises
    ------
    CeaseError
        If a gradient is not finite.
    """
    low, high = limits(images)
    delta = torch.zeros_like(images) if first is not None else within(start(images, epsilon, seeds), images, low, high)
    for step in range(inner.steps):
        if step == 0 and first is not None:
            gradient = first
        else:
            adversarial = (images + delta).requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(ascended(adversarial, step).sum(), adversarial)
        if not torch.isfinite(gradient).all():
            raise CeaseError("the inner attack's gradient is not finite; lower the learning rate.")
        delta = delta + inner.size(epsilon) * steepest(gradient, "linf")
        delta = within(project(delta, epsilon, "linf"), images, low, high)
    return images + delta
