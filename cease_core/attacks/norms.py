"""Balls, steepest steps and random starts, per case.

ε is always in window fractions per value. For ℓ∞ it bounds every value; for ℓ2 it bounds the root mean
square over the attacked values, that is a radius of ε·√n, so that one ε means a comparable strength in a
thumbnail and in a volume.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]


def per_case(values: Tensor, like: Tensor) -> Tensor:
    """View ``values`` of shape (N,) so that it broadcasts over ``like`` of shape (N, …)."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def rms(delta: Tensor, region: Tensor | None = None) -> Tensor:
    """Root mean square (N,) of a perturbation over the attacked values."""
    count = _count(delta, region)
    return (delta.flatten(1).square().sum(dim=1) / count).sqrt()


def magnitude(delta: Tensor, norm: Norm, region: Tensor | None = None) -> Tensor:
    """Size (N,) of a perturbation: the radius of the smallest ball that holds it."""
    return delta.flatten(1).abs().amax(dim=1) if norm == "linf" else rms(delta, region)


def project(delta: Tensor, epsilon: float | Tensor, norm: Norm, region: Tensor | None = None) -> Tensor:
    """Nearest perturbation inside the ball (and zero outside ``region``); ``epsilon`` may be one a case, (N,)."""
    if region is not None:
        delta = delta * region
    if norm == "linf":
        if isinstance(epsilon, Tensor):
            edge = per_case(epsilon, delta)
            return delta.clamp(-edge, edge)
        return delta.clamp(-epsilon, epsilon)
    size = rms(delta, region).clamp_min(1e-20)
    return delta * per_case((epsilon / size).clamp_max(1.0), delta)


def steepest(gradient: Tensor, norm: Norm, region: Tensor | None = None) -> Tensor:
    """Direction of fastest ascent of unit size in ``norm``."""
    if region is not None:
        gradient = gradient * region
    if norm == "linf":
        return gradient.sign()
    # Scaled by the largest entry first: gradients of saturated models underflow when squared.
    peak = per_case(gradient.flatten(1).abs().amax(dim=1), gradient)
    scaled = gradient / peak.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / per_case(rms(scaled, region).clamp_min(1e-20), scaled)


def random_start(
    like: Tensor,
    epsilon: float,
    norm: Norm,
    seed: int,
    region: Tensor | None = None,
    restart: Tensor | None = None,
) -> Tensor:
    """Perturbation drawn inside the ball, the same for a case whatever batch it is in.

    Parameters
    ----------
    like
        Its shape (N, C, *spatial) and device are taken.
    restart
        Number (N,) added to the seed of each case; zeros if left out.
    """
    offsets = [0] * len(like) if restart is None else restart.tolist()
    drawn = {offset: _uniform(like.shape[1:], seed + offset).to(like) for offset in sorted(set(offsets))}
    return project(torch.stack([drawn[offset] for offset in offsets]) * epsilon, epsilon, norm, region)


def _uniform(shape: torch.Size, seed: int) -> Tensor:
    # On the CPU, so that a seed means the same on every device.
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).mul_(2).sub_(1)


def _count(delta: Tensor, region: Tensor | None) -> Tensor:
    if region is None:
        return torch.full((delta.shape[0],), delta[0].numel(), device=delta.device)
    return region.expand_as(delta).flatten(1).sum(dim=1).clamp_min(1)
