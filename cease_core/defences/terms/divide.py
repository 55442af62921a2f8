"""Divide and conquer: a branch of its own for pixels that an attack carries across the decision boundary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.attacks.losses import dice_ce
from cease_core.defences.terms.base import TermModule
from cease_core.defences.views import Context, Look
from cease_core.models.segmenter import predict_labels
from cease_core.tasks.base import Setting
from cease_core.tasks.heads import DenseHead


class Divide(TermModule):
    """Three branches on one encoder, after Xu et al. 2021, arXiv 2003.06555.

    A clean pixel has the boundary property if the attack turns its prediction; a divider learns to tell these pixels,
    and that an attacked image has none. Where it sees the property, a second branch answers instead of the model,
    and learns; so the model itself learns the attacked pixels and those clean ones that agree with them. Both
    further branches are dropped after the training.

    As in the authors' code, pixels go where the divider sends them. The shape of the branches is ours, soft Dice
    beside the cross-entropy too; and clean and attacked images are halves of the loss, not of the batch.
    """

    def __init__(self, widths: tuple[int, ...], setting: Setting) -> None:
        super().__init__()
        outputs = setting.classes + (setting.mode == "multiclass")
        self.second = DenseHead(widths, setting.ndim, outputs, skips=True)
        self.divider = DenseHead(widths, setting.ndim, 1, skips=True)

    def forward(self, context: Context) -> dict[str, Tensor]:
        mode, target = context.setting.mode, context.target
        (clean, kinds), (attacked, attacked_kinds) = (
            self._answers(context.looks[view]) for view in ("clean", "adversarial")
        )
        turned = (predict_labels(clean, mode) != predict_labels(attacked, mode)).unsqueeze(1).to(kinds)
        told = torch.cat([kinds, attacked_kinds]), torch.cat([turned, torch.zeros_like(turned)])
        found = dice_ce(clean, target, mode).mean() + dice_ce(attacked, target, mode).mean()
        return {"divide": found / 2 + F.binary_cross_entropy_with_logits(*told)}

    def _answers(self, look: Look) -> tuple[Tensor, Tensor]:
        """Logits (N, K, *spatial), each pixel's from its branch, and the divider's (N, 1, *spatial)."""
        shape = tuple(look.images.shape[2:])
        kinds = self.divider(look.features, shape)
        return torch.where(kinds > 0, self.second(look.features, shape), look.logits), kinds
