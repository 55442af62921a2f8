"""What an attack ascends: one value per case, on logits, in every mode.

All take logits (N, K, *spatial) and a one-hot ``target`` of the same shape (see `one_hot`) and return (N,).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.models.card import Mode

Loss = Callable[[Tensor, Tensor, Mode], Tensor]

_SMOOTH = 1.0


def one_hot(labels: Tensor, mode: Mode, outputs: int, name: str = "labels") -> Tensor:
    """Target (N, K, *spatial), float32, from a mask.

    Parameters
    ----------
    labels
        Class ids (N, *spatial); or, for multilabel, already one channel a class (N, K, *spatial).
    mode, outputs
        Meaning and number of the logit channels.
    name
        What the mask is called in an error.

    Raises
    ------
    CeaseError
        If the mask holds an id that the model does not know.
    """
    if mode == "multilabel" and labels.ndim > 2 and labels.shape[1] == outputs and labels.is_floating_point():
        return labels.float()
    highest = outputs - 1 if mode == "multiclass" else outputs
    found = int(labels.max()) if labels.numel() else 0
    if found > highest or (labels.numel() and int(labels.min()) < 0):
        raise CeaseError(
            f"the {name} hold class {found if found > highest else int(labels.min())}, but the model knows "
            f"0 to {highest}; choose {name} with the model's classes."
        )
    first = 0 if mode == "multiclass" else 1
    ids = torch.arange(first, first + outputs, device=labels.device)
    return (labels.unsqueeze(1) == ids.view(1, -1, *(1,) * (labels.ndim - 1))).float()


def probabilities(logits: Tensor, mode: Mode) -> Tensor:
    """Softmax or sigmoid, as the mode says."""
    return logits.softmax(dim=1) if mode == "multiclass" else logits.sigmoid()


def foreground(channels: Tensor, mode: Mode) -> Tensor:
    """The channels that are structures: all but a multiclass model's background."""
    return channels[:, 1:] if mode == "multiclass" else channels


def pixel_cross_entropy(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Cross-entropy of every pixel (N, *spatial); for sigmoid models the mean over their channels."""
    if mode == "multiclass":
        return -(target * logits.log_softmax(dim=1)).sum(dim=1)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)


def cross_entropy(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Mean cross-entropy."""
    return pixel_cross_entropy(logits, target, mode).flatten(1).mean(dim=1)


def soft_dice(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """One minus the soft Dice coefficient, mean over foreground classes (Milletari et al. 2016)."""
    p = foreground(probabilities(logits, mode), mode).flatten(2)
    t = foreground(target, mode).flatten(2)
    dice = (2 * (p * t).sum(-1) + _SMOOTH) / (p.sum(-1) + t.sum(-1) + _SMOOTH)
    return 1 - dice.mean(dim=1)


def dice_ce(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Soft Dice loss plus cross-entropy, the loss that most segmentation models are trained with."""
    return soft_dice(logits, target, mode) + cross_entropy(logits, target, mode)


def masked_ce(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """Cross-entropy over the pixels that are still right, foreground and background weighted equally.

    Pixels already wrong are left alone (Croce et al. 2024, arXiv 2306.12941); the weighting keeps a small
    structure from being outvoted by its background.
    """
    with torch.no_grad():
        if mode == "multiclass":
            right = logits.argmax(dim=1) == target.argmax(dim=1)
        else:
            right = ((logits > 0) == (target > 0.5)).all(dim=1)
        inside = foreground(target, mode).amax(dim=1) > 0.5
        weight = torch.zeros_like(logits[:, 0])
        for part in (inside, ~inside):
            weight += part / part.flatten(1).sum(dim=1).clamp_min(1).view(-1, *(1,) * (part.ndim - 1))
        weight *= right
    return (weight * pixel_cross_entropy(logits, target, mode)).flatten(1).sum(dim=1)


LOSSES: dict[str, Loss] = {
    "soft_dice": soft_dice,
    "dice_ce": dice_ce,
    "masked_ce": masked_ce,
    "cross_entropy": cross_entropy,
}

TOWARDS: dict[str, Loss] = {}
"""What is ascended towards a target, where that is not the loss with its sign turned."""


def ascent(loss: str | Loss, *, targeted: bool) -> Loss:
    """What an attack ascends so as to leave a mask or, ``targeted``, to reach it.

    Raises
    ------
    CeaseError
        If there is no loss of that name.
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise CeaseError(f"unknown loss {loss!r}; choose one of {', '.join(LOSSES)}.")
    if isinstance(loss, str) and targeted and loss in TOWARDS:
        return TOWARDS[loss]
    chosen = LOSSES[loss] if isinstance(loss, str) else loss
    if not targeted:
        return chosen
    return lambda logits, target, mode: -chosen(logits, target, mode)
