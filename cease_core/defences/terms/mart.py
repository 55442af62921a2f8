"""Misclassification-aware adversarial training, a pixel at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from cease_core.attacks.losses.pixelwise import surprise
from cease_core.defences.terms.base import TermModule
from cease_core.defences.terms.consistency import divergence
from cease_core.defences.views import Context
from cease_core.models.card import Mode


def boosted_cross_entropy(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    """−log q − log(1 − r) of every decision: q is the right answer's probability, r the best wrong one's.

    Shape (N, D, *spatial), as `divergence`.
    """
    cost = surprise(logits, target, mode)
    if mode == "multiclass":
        best = logits.masked_fill(target > 0.5, -torch.inf).argmax(dim=1, keepdim=True)
        # From logits: 1 − r is 0 in float32 where the model is wrong for sure, which is where it has most to learn.
        rest = logits.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True)
        return cost + logits.logsumexp(dim=1, keepdim=True) - rest
    # With two answers 1 − r is q.
    return 2 * cost


class Mart(TermModule):
    """BCE(x_adv) + λ KL(p(x) ‖ p(x_adv)) (1 − q(x)), mean over pixels (Wang et al. 2020, ICLR).

    BCE is `boosted_cross_entropy`. To take every pixel for a sample of its own is ours.
    """

    def __init__(self, trade_off: float) -> None:
        super().__init__()
        self.trade_off = trade_off

    def forward(self, context: Context) -> dict[str, Tensor]:
        mode = context.setting.mode
        clean, adversarial = context.looks["clean"].logits, context.looks["adversarial"].logits
        doubt = -torch.expm1(-surprise(clean, context.target, mode))
        weighed = divergence(clean, adversarial, mode) * doubt
        boosted = boosted_cross_entropy(adversarial, context.target, mode)
        return {"mart": (boosted + self.trade_off * weighed).mean()}
