"""Auxiliary tasks on the shared encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cease_core.defences.config import AuxiliaryTerm, View
from cease_core.defences.terms.base import TermModule
from cease_core.defences.views import Context, generators, unmoved
from cease_core.tasks import TASKS
from cease_core.tasks.base import Head, Setting

TASK = "task "
"""What the names of auxiliary parts begin with."""

_MEMORY = 0.95


class Auxiliary(TermModule):
    """Heads, and the loss of each task over its own running mean, so that all tasks weigh alike."""

    means: Tensor

    def __init__(self, term: AuxiliaryTerm, widths: tuple[int, ...], setting: Setting) -> None:
        super().__init__()
        self.term = term
        self.tasks = {name: TASKS[name] for name in term.tasks}
        self.heads = nn.ModuleDict({name: task.head(widths, setting) for name, task in self.tasks.items()})
        self.register_buffer("means", torch.zeros(len(term.tasks)))

    def passes(self, views: int) -> int:
        return sum(task.presents for task in self.tasks.values()) * views

    def forward(self, context: Context) -> dict[str, Tensor]:
        shares = self._shares(context)
        values = {}
        for index, name in enumerate(self.tasks):
            value = sum((share * self._loss(name, context, view) for view, share in shares.items()), torch.zeros(()))
            values[TASK + name] = value / self._mean(index, context.gather(value.detach().view(1)).mean())
        return values

    def _shares(self, context: Context) -> dict[View, float]:
        if "adversarial" not in context.looks:
            return {"clean": 1.0}
        shares: dict[View, float] = {"clean": self.term.clean, "adversarial": self.term.adversarial}
        total = sum(shares.values())
        return {view: share / total for view, share in shares.items() if share > 0}

    def _loss(self, name: str, context: Context, view: View) -> Tensor:
        task, batch, look = self.tasks[name], context.batch, context.looks[view]
        shape = tuple(batch.images.shape[1:])
        drawn = [task.draw(shape, g) for g in generators(batch.seeds, salt=5 + list(TASKS).index(name))]
        draws = torch.stack(drawn).to(batch.images.device)
        features = look.features
        if task.presents:
            with unmoved(context.model):
                features = context.model.encode(task.present(look.images, draws))
        head: Head = self.heads[name]  # type: ignore[assignment]
        prediction = head(features, shape[1:])
        with torch.no_grad():
            target = task.target(batch.images, batch.labels, draws, context.setting)
        return task.loss(prediction, target).mean()

    def _mean(self, index: int, value: Tensor) -> Tensor:
        """Running mean of a task's loss, the present one included."""
        if self.training:
            before = self.means[index]
            # A constant loss of 0 would otherwise be divided by 0.
            after = torch.where(before > 0, _MEMORY * before + (1 - _MEMORY) * value, value).clamp_min(1e-6)
            self.means[index] = after
            return after
        # A model that is looked at before it has learnt has no mean yet.
        return torch.where(self.means[index] > 0, self.means[index], value).clamp_min(1e-6)
