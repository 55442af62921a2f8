"""How alike the decided mask and a reference are: one value in [0, 1] per case.

All take logits (N, K, *spatial) and a one-hot reference of the same shape. An attack keeps the perturbation
that brings its criterion lowest, or, towards a target, highest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cease_core.attacks.losses import Loss, foreground
from cease_core.models.card import Mode
from cease_core.models.segmenter import likeliest


def decide(logits: Tensor, mode: Mode) -> Tensor:
    """One-hot mask (N, K, *spatial), bool, that the logits stand for."""
    if mode == "multiclass" and logits.shape[1] == 2:
        second = logits[:, 1:] > logits[:, :1]
        return torch.cat((~second, second), dim=1)
    if mode == "multiclass":
        ids = torch.arange(logits.shape[1], device=logits.device).view(1, -1, *(1,) * (logits.ndim - 2))
        return likeliest(logits) == ids
    return logits > 0


def dice(logits: Tensor, reference: Tensor, mode: Mode) -> Tensor:
    """Dice, mean over foreground classes; a class absent from both counts 1."""
    return _dice(logits, reference, mode).mean(dim=1)


def whole_dice(logits: Tensor, reference: Tensor, mode: Mode) -> Tensor:
    """Dice, mean over all classes and the background.

    Towards a target that lacks a class, `dice` is blind until the last pixel is gone; this is not.
    """
    p, t = _with_background(decide(logits, mode), mode), _with_background(reference > 0.5, mode)
    return _overlap(p.float(), t.float()).mean(dim=1)


def worst_class(logits: Tensor, reference: Tensor, mode: Mode) -> Tensor:
    """Dice of the class that has the lowest, among those in the reference (all, if it is empty)."""
    each = _dice(logits, reference, mode)
    there = foreground(reference, mode).flatten(2).any(dim=2)
    there |= ~there.any(dim=1, keepdim=True)
    return each.masked_fill(~there, 1.0).amin(dim=1)


def mean_iou(logits: Tensor, reference: Tensor, mode: Mode) -> Tensor:
    """Intersection over union, mean over all classes and the background; absent from both counts 1."""
    p, t = (_with_background(m, mode).flatten(2) for m in (decide(logits, mode), reference > 0.5))
    both, either = (p & t).sum(-1).float(), (p | t).sum(-1).float()
    return torch.where(either > 0, both / either.clamp_min(1), 1.0).mean(dim=1)


def accuracy(logits: Tensor, reference: Tensor, mode: Mode) -> Tensor:
    """Share of pixels decided as in the reference."""
    return (decide(logits, mode) == (reference > 0.5)).all(dim=1).flatten(1).float().mean(dim=1)


CRITERIA: dict[str, Loss] = {
    "dice": dice,
    "whole_dice": whole_dice,
    "worst_class": worst_class,
    "mean_iou": mean_iou,
    "accuracy": accuracy,
}


def _dice(logits: Tensor, reference: Tensor, mode: Mode) -> Tensor:
    return _overlap(foreground(decide(logits, mode), mode).float(), foreground(reference, mode))


def _overlap(p: Tensor, t: Tensor) -> Tensor:
    p, t = p.flatten(2), t.flatten(2)
    both = p.sum(-1) + t.sum(-1)
    return torch.where(both > 0, 2 * torch.linalg.vecdot(p, t) / both.clamp_min(1), 1.0)


def _with_background(mask: Tensor, mode: Mode) -> Tensor:
    return mask if mode == "multiclass" else torch.cat((~mask.any(dim=1, keepdim=True), mask), dim=1)
