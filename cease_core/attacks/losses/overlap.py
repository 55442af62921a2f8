"""Losses that see each class's mask as a whole: how much of it overlaps, and how far away the rest lies.

All are means over foreground classes, those included that the target lacks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.attacks.losses.channels import foreground, probabilities
from cease_core.attacks.losses.distance import signed_distance
from cease_core.attacks.losses.pixelwise import cross_entropy, masked_ce, towards_masked_ce
from cease_core.models.card import Mode

_SMOOTH = 1.0


def soft_dice(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """One minus the soft Dice coefficient, mean over foreground classes (Milletari et al. 2016)."""
    p = foreground(probabilities(logits, mode), mode).flatten(2)
    t = foreground(target, mode).flatten(2)
    dice = (2 * (p * t).sum(-1) + _SMOOTH) / (p.sum(-1) + t.sum(-1) + _SMOOTH)
    return 1 - dice.mean(dim=1)


def dice_ce(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Soft Dice loss plus cross-entropy, the loss that most segmentation models are trained with."""
    return soft_dice(logits, target, mode) + cross_entropy(logits, target, mode)


def dice_masked(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Soft Dice loss plus `masked_ce`: the score's own shape, and a push on every pixel that is still right."""
    return soft_dice(logits, target, mode) + masked_ce(logits, target, mode)


def towards_dice_masked(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Minus the soft Dice loss, plus `towards_masked_ce`."""
    return towards_masked_ce(logits, target, mode) - soft_dice(logits, target, mode)


def lovasz(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Lovász extension of one minus IoU (Berman et al. 2018, arXiv 1705.08790).

    Sigmoid models: of the hinge errors 1 − (±logit), through ELU + 1 instead of the rectifier, which would
    leave pixels that are right for sure without a gradient. Softmax models: of |target − probability|.
    A background pixel has weight 0 where every foreground pixel's error is larger: IoU is 0 there already.
    """
    t = foreground(target, mode).flatten(2)
    if mode == "multiclass":
        errors = t + (1 - 2 * t) * foreground(probabilities(logits, mode), mode).flatten(2)
    else:
        errors = F.elu(1 - logits.flatten(2) * (2 * t - 1)) + 1
    # Stable, so that ties fall alike whatever batch a case is in.
    ordered, order = errors.sort(dim=2, descending=True, stable=True)
    return (ordered * _growth(t.gather(2, order))).sum(dim=2).mean(dim=1)


def _growth(truth: Tensor) -> Tensor:
    """By how much one minus IoU grows with each further wrong pixel; ``truth`` in the order of their errors."""
    found = truth.sum(dim=2, keepdim=True) - truth.cumsum(dim=2)
    before = truth.sum(dim=2, keepdim=True) + (1 - truth).cumsum(dim=2) - (1 - truth)
    union = before + (1 - truth)
    # Not as a difference of neighbours: in a volume these are alike to the last digit. A mask without foreground
    # is lost at the first false pixel.
    false = torch.where(before > 0, found / before.clamp_min(1), 1.0)
    return torch.where(truth > 0.5, 1.0, false) / union


def boundary(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Mean of probability times signed distance from the target's edge, in pixels (arXiv 1812.07032).

    Ascended, it takes away what lies deepest inside first and adds what lies farthest outside.
    """
    p = foreground(probabilities(logits, mode), mode)
    return (p * signed_distance(foreground(target, mode))).flatten(1).mean(dim=1)
