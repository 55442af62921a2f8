"""The surrogate losses of MedIS (Shukla & Gupta 2023, doi 10.1007/s11042-023-15575-8).

Like every loss of the engine they take logits (N, K, *spatial), a one-hot target of the same shape and the mode,
and return one value a case, (N,). The published protocol gives some of them probabilities instead: see `LOGIT`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.attacks.losses import Loss, dice_ce, foreground, lovasz, probabilities, soft_dice
from cease_core.models.card import Mode

_SMOOTH = 1.0
_EXPONENT, _DICE_SHARE = 0.3, 0.8
_EDGE = 31


def log_cosh_dice(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Logarithm of the hyperbolic cosine of the soft Dice loss (Jadon 2020, arXiv 2006.14822)."""
    return soft_dice(logits, target, mode).cosh().log()


def exponential_log(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Logarithms of soft Dice and of the right class's probability, each to the power 0.3 (Wong et al. 2018).

    The two are weighted .8 and .2; Dice is the mean over foreground classes. In the second term a pixel weighs
    as much as the square root of (all pixels / pixels of its class); each channel of a sigmoid model is a
    problem of two classes (arXiv 1809.00076, equations 1 to 4).
    """
    p, t = (foreground(c, mode).flatten(2) for c in (probabilities(logits, mode), target))
    dice = (2 * (p * t).sum(-1) + _SMOOTH) / (p.sum(-1) + t.sum(-1) + _SMOOTH)
    if mode == "multiclass":
        share = target.flatten(2).mean(dim=2)
        rarity = (target.flatten(2) / share.clamp_min(1e-12).sqrt().unsqueeze(2)).sum(dim=1)
        surprise = -(target * logits.log_softmax(dim=1)).sum(dim=1).flatten(1)
        cross = (rarity * _power(surprise)).mean(dim=1)
    else:
        share = t.mean(dim=2, keepdim=True)
        rarity = torch.where(t > 0.5, share, 1 - share).clamp_min(1e-12).rsqrt()
        surprise = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(2)
        cross = (rarity * _power(surprise)).mean(dim=2).mean(dim=1)
    return _DICE_SHARE * _power(-dice.log()).mean(dim=1) + (1 - _DICE_SHARE) * cross


def weighted_bce_iou(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Cross-entropy plus one minus soft IoU, both with more weight near edges (F³Net, arXiv 1911.11445; PraNet).

    A pixel weighs 1 + 5 |share of its class in a box of edge 31 around it − whether it is of the class itself|,
    where the outside of the image counts as empty. For softmax models the largest weight over the foreground
    classes holds for all; with one foreground class that is the same.
    """
    t = foreground(target, mode)
    weight = 1 + 5 * (_box_mean(t) - t).abs()
    if mode == "multiclass":
        weight = weight.amax(dim=1, keepdim=True)
        pixels = -(target * logits.log_softmax(dim=1)).sum(dim=1, keepdim=True)
    else:
        pixels = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    cross = (weight * pixels).flatten(2).sum(-1) / weight.flatten(2).sum(-1)
    p = foreground(probabilities(logits, mode), mode)
    both, sum_ = ((weight * part).flatten(2).sum(-1) for part in (p * t, p + t))
    iou = (both + _SMOOTH) / (sum_ - both + _SMOOTH)
    return cross.mean(dim=1) + (1 - iou).mean(dim=1)


SURROGATES: dict[str, Loss] = {
    "log_cosh_dice": log_cosh_dice,
    "bce_dice": dice_ce,
    "exponential_log": exponential_log,
    "weighted_bce_iou": weighted_bce_iou,
    "lovasz_hinge": lovasz,
}
"""By name. ``"lovasz_hinge"`` is smooth beyond its margin, which no probability reaches: as published it ascends
just like the hinge itself."""

WEIGHTS: dict[str, float] = dict(zip(SURROGATES, (0.18, 0.20, 0.15, 0.21, 0.26), strict=True))
"""What each counts in `weighted_sum`."""

LOGIT = frozenset({"bce_dice", "weighted_bce_iou", "lovasz_hinge"})
"""Those defined on logits, to which the published protocol gives probabilities; the others start from these."""


def weighted_sum(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """The five surrogates together, weighted .18, .20, .15, .21 and .26."""
    return _sum(SURROGATES)(logits, target, mode)


def as_published(name: str) -> Loss:
    """A surrogate (or ``"weighted_sum"``) of logits, as published: those of `LOGIT` are given probabilities."""
    if name == "weighted_sum":
        return _sum({part: as_published(part) for part in SURROGATES})
    loss = SURROGATES[name]
    if name not in LOGIT:
        return loss
    return lambda logits, target, mode: loss(probabilities(logits, mode), target, mode)


def _sum(losses: dict[str, Loss]) -> Loss:
    def total(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
        return torch.stack([WEIGHTS[n] * loss(logits, target, mode) for n, loss in losses.items()]).sum(dim=0)

    return total


def _power(x: Tensor) -> Tensor:
    # At 0 the power's slope is infinite, and infinity times a slope of 0 is not a number.
    return x.clamp_min(torch.finfo(x.dtype).tiny).pow(_EXPONENT)


def _box_mean(channels: Tensor) -> Tensor:
    """Mean over a box around each pixel, one axis after the other: in a volume, 93 sums instead of 29,791."""
    ndim = channels.ndim - 2
    pool = F.avg_pool2d if ndim == 2 else F.avg_pool3d
    for axis in range(ndim):
        edges = [_EDGE if a == axis else 1 for a in range(ndim)]
        # Padded beforehand: in 3-D the pooling refuses edges shorter than its own.
        around = [e // 2 for e in reversed(edges) for _ in range(2)]
        channels = pool(F.pad(channels, around), edges, stride=1)
    return channels
