"""One process among those that train together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.models.prepare import best_device

T = TypeVar("T")

_PATIENCE = timedelta(hours=12)
"""How long processes wait for the main one, which alone validates."""


@dataclass(frozen=True)
class Process:
    """Number ``rank`` of ``world``; the one with rank 0 reads and writes the run's folder, and validates."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def fit(self, model: nn.Module) -> nn.Module:
        """The same model, its batch norms over all processes where they can be (on GPUs; else over each one's)."""
        if self.world == 1 or self.device.type != "cuda":
            return model
        synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return synced

    def join(self, objective: nn.Module) -> nn.Module:
        """The same module, its gradients averaged over all processes."""
        if self.world == 1:
            return objective
        # Not all terms are used in each step: a contrastive one without positives, for one.
        return nn.parallel.DistributedDataParallel(objective, find_unused_parameters=True)

    def once(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the main process, where alone it is called; known to all.

        Raises
        ------
        CeaseError
            In all processes, if ``make`` raises it.
        """
        if self.world == 1:
            return make()
        told: list[T | CeaseError | None] = [None]
        if self.main:
            try:
                told = [make()]
            except CeaseError as error:
                told = [error]
        dist.broadcast_object_list(told, src=0, device=self.device)
        (outcome,) = told
        if isinstance(outcome, CeaseError):
            raise outcome
        return outcome  # type: ignore[return-value]

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean over all processes, value by value."""
        if self.world == 1:
            return list(values)
        told = torch.tensor(values, device=self.device)
        dist.all_reduce(told)
        return [float(v) for v in told / self.world]

    def share(self, rows: Tensor) -> Tensor:
        """Rows of what `gathered` returned that are this process's."""
        return rows.chunk(self.world)[self.rank] if len(rows) else rows


def this_process(device: str | None = None) -> Process:
    """One of several if started by ``accelerate launch`` or ``torchrun``, else alone.

    Parameters
    ----------
    device
        Where to train; by default the best there is.
    """
    best = torch.device(device) if device else best_device()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Process(0, 1, best)
    # Only here: its import takes seconds.
    from accelerate import PartialState

    # Without a GPU it would take each process for the only one, unless told that CPUs are meant.
    on_cpu = best.type != "cuda" or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
    return Process(state.process_index, state.num_processes, state.device)
