"""Defensive distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from cease_core.defences.config import DistillationTerm
from cease_core.defences.terms.base import TermModule
from cease_core.defences.terms.consistency import divergence
from cease_core.defences.views import Context
from cease_core.errors import CeaseError
from cease_core.models.checkpoint import load_model
from cease_core.models.library import find_model
from cease_core.tasks.base import Setting


class Distillation(TermModule):
    """T² KL between the teacher's and the student's answers at temperature T, mean over pixels.

    Papernot et al. (1511.04508) train the teacher at T as well; ours is an ordinary model. T² keeps the gradients'
    size (Hinton et al. 2015, 1503.02531).

    Raises
    ------
    CeaseError
        If there is no teacher, or it answers another question than the model.
    """

    def __init__(self, term: DistillationTerm, setting: Setting) -> None:
        super().__init__()
        if not term.teacher:
            raise CeaseError("distillation needs a teacher; set distillation.teacher to the folder of a model.")
        self.term = term
        teacher = load_model(find_model(term.teacher)).requires_grad_(False)
        card = teacher.card
        if Setting.of(card) != setting:
            raise CeaseError(
                f"the teacher {term.teacher} has other dimensions, channels or classes than the model; choose a "
                "teacher of the same scene."
            )
        # The training sees images at the working resolution already.
        teacher.card = teacher.card.model_copy(update={"downsample": 1})
        # In a list, so that it is neither trained nor saved with the run.
        self._teacher = [teacher]

    def forward(self, context: Context) -> dict[str, Tensor]:
        t, mode = self.term.temperature, context.setting.mode
        student = context.looks[self.term.view].logits
        teacher = self._teacher[0].to(student.device)
        with torch.no_grad():
            answers = teacher(context.batch.images)
        return {"distillation": t**2 * divergence(answers / t, student / t, mode).mean()}
