"""The attack inside the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cease_core.attacks.norms import project, steepest
from cease_core.defences.config import InnerAttack
from cease_core.defences.views import generators
from cease_core.errors import CeaseError

Ascended = Callable[[Tensor, int], Tensor]
"""From adversarial images and the number of the step to the value (N,) that is ascended."""


def limits(images: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest intensity of each case, the window included."""
    shape = (-1, *(1,) * (images.ndim - 1))
    flat = images.flatten(1)
    return flat.amin(dim=1).clamp_max(0).view(shape), flat.amax(dim=1).clamp_min(1).view(shape)


def start(images: Tensor, epsilon: float, seeds: Sequence[int]) -> Tensor:
    """Uniform noise in the ball, drawn case by case."""
    noise = [torch.rand(images.shape[1:], generator=g) * 2 - 1 for g in generators(seeds, salt=1)]
    return epsilon * torch.stack(noise).to(images)


def craft(images: Tensor, ascended: Ascended, inner: InnerAttack, epsilon: float, seeds: Sequence[int]) -> Tensor:
    """Adversarial images (N, C, *spatial) by ``inner.steps`` signed gradient steps from a random start.

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

    Raises
    ------
    CeaseError
        If a gradient is not finite.
    """
    low, high = limits(images)
    lowest, highest = (low - images).clamp_max(0), (high - images).clamp_min(0)
    delta = start(images, epsilon, seeds).clamp(lowest, highest)
    for step in range(inner.steps):
        adversarial = (images + delta).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(ascended(adversarial, step).sum(), adversarial)
        if not torch.isfinite(gradient).all():
            raise CeaseError("the inner attack's gradient is not finite; lower the learning rate.")
        delta = delta + inner.size(epsilon) * steepest(gradient, "linf")
        delta = project(delta, epsilon, "linf").clamp(lowest, highest)
    return images + delta
