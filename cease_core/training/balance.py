"""How the gradients of several terms become one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def pcgrad(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter], seed: int) -> None:
    """Set each parameter's gradient to the sum of the losses' gradients, conflicts projected away.

    A gradient that points against another's (negative inner product) loses its part along that one; the others
    are met in a random order (Yu et al. 2020, arXiv 2001.06782, algorithm 1).

    Parameters
    ----------
    losses
        Weighted, scalars.
    parameters
        Of the model and of what is trained with it.
    seed
        Of the order.
    """
    flat = []
    for i, loss in enumerate(losses):
        grads = torch.autograd.grad(loss, parameters, retain_graph=i < len(losses) - 1, allow_unused=True)
        pairs = zip(grads, parameters, strict=True)
        flat.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(flat[0])
    for i, own in enumerate(flat):
        projected = own.clone()
        for j in torch.randperm(len(flat), generator=generator).tolist():
            against = projected @ flat[j]
            if j != i and against < 0:
                projected -= against / (flat[j] @ flat[j]).clamp_min(1e-20) * flat[j]
        total += projected
    place = 0
    for parameter in parameters:
        count = parameter.numel()
        parameter.grad = total[place : place + count].view_as(parameter).clone()
        place += count
