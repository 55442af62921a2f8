"""The segmentation loss on one view."""

from __future__ import annotations

from torch import Tensor

from cease_core.attacks.losses import LOSSES
from cease_core.defences.config import SegmentationTerm
from cease_core.defences.terms.base import TermModule
from cease_core.defences.views import Context


class Segmentation(TermModule):
    """Mean over cases of the loss between a view's logits and the mask."""

    def __init__(self, term: SegmentationTerm) -> None:
        super().__init__()
        self.term = term

    def forward(self, context: Context) -> dict[str, Tensor]:
        logits = context.looks[self.term.view].logits
        value = LOSSES[self.term.loss](logits, context.target, context.setting.mode).mean()
        return {f"segmentation {self.term.view}": value}
