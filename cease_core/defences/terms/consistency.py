"""Divergence between the clean and the attacked prediction."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cease_core.defences.terms.base import TermModule
from cease_core.defences.views import Context
from cease_core.models.card import Mode


def divergence(clean: Tensor, adversarial: Tensor, mode: Mode) -> Tensor:
    """KL(p(clean) ‖ p(adversarial)) of every decision, shape (N, D, *spatial), from logits (N, K, *spatial).

    Softmax models take one decision a pixel (D = 1), sigmoid models one a channel (D = K).
    """
    if mode == "multiclass":
        p, q = F.log_softmax(clean, dim=1), F.log_softmax(adversarial, dim=1)
        return (p.exp() * (p - q)).sum(dim=1, keepdim=True)
    yes = clean.sigmoid() * (F.logsigmoid(clean) - F.logsigmoid(adversarial))
    return yes + (-clean).sigmoid() * (F.logsigmoid(-clean) - F.logsigmoid(-adversarial))


class Consistency(TermModule):
    """Mean over pixels of `divergence`; gradients go through both sides (Zhang et al. 2019, arXiv 1901.08573).

    To take every pixel for a sample of its own is ours.
    """

    def forward(self, context: Context) -> dict[str, Tensor]:
        looks = context.looks
        value = divergence(looks["clean"].logits, looks["adversarial"].logits, context.setting.mode)
        return {"consistency": value.mean()}
