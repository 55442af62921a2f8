"""Proximal operators: how a minimal-norm attack pulls its perturbation towards zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def prox_linf(z: Tensor, metric: Tensor, weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Proximal operator of the ℓ∞ norm within a box, in a diagonal metric; exact and differentiable.

    It minimises ``weight · max|p| + ½ Σ metric · (p − z)²`` over ``low ≤ p ≤ high``, case by case.

    Parameters
    ----------
    z
        Points, shape (N, …).
    metric
        Diagonal of the metric, above 0, shape of ``z``.
    weight
        Of the norm, at least 0, shape (N,).
    low, high
        The box, shape of ``z``, with ``low ≤ 0 ≤ high``.

    Notes
    -----
    With b the projection of z onto the box, the minimiser is b clamped to [−r, r] for one radius r, as every
    entry's part of the objective grows away from z. The objective as a function of r is convex, with the slope

        h(r) = weight − Σ_{i: |b_i| > r} metric_i · (|z_i| − r),

    so r is where h changes sign: the solution of h(r) = 0, or a |b_i| at which h jumps across 0, or r = 0 where
    h(0) ≥ 0. Between two neighbouring |b_i| the slope is linear, and sorting them finds the segment in
    O(n log n) without a tolerance. Almost everywhere r depends on z through h alone, so that autograd through
    the found segment gives the operator's derivative (Rony, Pesquet & Ben Ayed 2023, arXiv 2206.07179, search
    for r by golden section instead).
    """
    boxed = z.clamp(low, high)
    size, order = boxed.flatten(1).abs().sort(dim=1, descending=True)
    # Sums over up to millions of entries, of which differences are taken.
    mass = metric.flatten(1).gather(1, order).double()
    reach = mass * z.flatten(1).abs().gather(1, order)
    count, total = mass.cumsum(dim=1), reach.cumsum(dim=1)
    size = size.double()
    below = torch.cat((size[:, 1:], torch.zeros_like(size[:, :1])), dim=1)
    pull = weight.double().unsqueeze(1)
    # Slope at the lower end of every segment, from the largest radius down; it only falls.
    segment = (pull - total + count * below > 0).sum(dim=1, keepdim=True)
    vanishes = segment == size.shape[1]
    at = segment.clamp_max(size.shape[1] - 1)
    root = (total.gather(1, at) - pull) / count.gather(1, at)
    radius = torch.minimum(root, size.gather(1, at)).masked_fill(vanishes, 0.0)
    edge = radius.to(z.dtype).view(-1, *(1,) * (z.ndim - 1))
    return boxed.clamp(-edge, edge)


@torch.no_grad()
def prox_l2(z: Tensor, metric: Tensor, weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Proximal operator of the ℓ2 norm within a box, in a diagonal metric.

    It minimises ``weight · ‖p‖₂ + ½ Σ metric · (p − z)²`` over ``low ≤ p ≤ high``, case by case; parameters as
    for `prox_linf`.

    Notes
    -----
    For a solution of norm r > 0 every entry is ``clamp(metric · z / (metric + weight / r), low, high)``, so r is
    the root of ‖p(r)‖ / r − 1, which only falls; it is bisected to float precision. p = 0 where that is negative
    from the start, which without a box is ‖metric · z‖₂ ≤ weight: the soft threshold of a block.
    """
    flat, mass, lower, upper = (t.flatten(1).double() for t in (z, metric, low.expand_as(z), high.expand_as(z)))
    pull = weight.double().unsqueeze(1)

    def at(radius: Tensor) -> Tensor:
        return (mass * flat * radius / (mass * radius + pull).clamp_min(torch.finfo(torch.double).tiny)).clamp(
            lower, upper
        )

    top = flat.clamp(lower, upper).square().sum(dim=1, keepdim=True).sqrt()
    left, right = torch.zeros_like(top), top
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        outwards = at(middle).square().sum(dim=1, keepdim=True).sqrt() > middle
        left, right = torch.where(outwards, middle, left), torch.where(outwards, right, middle)
    # A radius that shrank at every halving is zero.
    radius = torch.where(left > 0, right, 0.0)
    return at(radius).to(z.dtype).view_as(z)


# Below the precision of float32, with room for solutions that are small beside z.
_HALVINGS = math.ceil(-math.log2(torch.finfo(torch.float32).eps)) + 12
