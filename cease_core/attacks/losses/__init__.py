"""What an attack ascends: one value per case, on logits, in every mode.

All take logits (N, K, *spatial) and a one-hot ``target`` of the same shape (see `one_hot`) and return (N,).
"""

from __future__ import annotations

from cease_core.attacks.losses.channels import Loss, foreground, one_hot, probabilities
from cease_core.attacks.losses.overlap import boundary, dice_ce, dice_masked, lovasz, soft_dice, towards_dice_masked
from cease_core.attacks.losses.pixelwise import (
    balanced_ce,
    bce,
    cross_entropy,
    focal,
    js,
    margin,
    masked_ce,
    miss,
    pixel_cross_entropy,
    towards_js,
    towards_margin,
    towards_masked_ce,
)
from cease_core.errors import CeaseError

LOSSES: dict[str, Loss] = {
    "soft_dice": soft_dice,
    "dice_ce": dice_ce,
    "masked_ce": masked_ce,
    "cross_entropy": cross_entropy,
    "dice_masked": dice_masked,
    "balanced_ce": balanced_ce,
    "bce": bce,
    "js": js,
    "margin": margin,
    "miss": miss,
    "focal": focal,
    "lovasz": lovasz,
    "boundary": boundary,
}

TOWARDS: dict[str, Loss] = {
    "masked_ce": towards_masked_ce,
    "dice_masked": towards_dice_masked,
    "js": towards_js,
    "margin": towards_margin,
}
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


__all__ = [
    "LOSSES",
    "TOWARDS",
    "Loss",
    "ascent",
    "balanced_ce",
    "bce",
    "boundary",
    "cross_entropy",
    "dice_ce",
    "dice_masked",
    "focal",
    "foreground",
    "js",
    "lovasz",
    "margin",
    "masked_ce",
    "miss",
    "one_hot",
    "pixel_cross_entropy",
    "probabilities",
    "soft_dice",
]
