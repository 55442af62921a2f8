"""Batches that give way: on out-of-memory the batch is halved, and the work goes on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class BatchSize:
    """How many items are taken at once; lowered by `in_batches`, never raised."""

    size: int


def in_batches(run: Callable[[slice], T], count: int, batch: BatchSize) -> list[T]:
    """Call ``run`` on consecutive slices that cover ``range(count)``.

    Where a slice does not fit into memory, ``batch`` is halved for this and all later calls.

    Raises
    ------
    RuntimeError
        If a single item does not fit, as torch raised it.
    """
    results: list[T] = []
    first = 0
    while first < count:
        part = slice(first, min(first + batch.size, count))
        try:
            results.append(run(part))
        except RuntimeError as error:
            if not is_out_of_memory(error) or part.stop - part.start == 1:
                raise
        else:
            first = part.stop
            continue
        # Only here, after the except clause, is the failed call's memory free to go.
        batch.size = (part.stop - part.start) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory: going on with batches of %d", batch.size)
    return results


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on whichever device."""
    # The CPU allocator and MPS raise plain RuntimeErrors.
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )
