"""What does not fit into memory is done in smaller parts: all of it, once, in order."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from cease_core.models.memory import BatchSize, in_batches, is_out_of_memory

# What torch raises on CUDA, on the CPU and on MPS.
OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)."),
}


class Work:
    """Squares numbers, as many at a time as fit."""

    def __init__(self, fits: int, error: RuntimeError = OUT_OF_MEMORY["cuda"]) -> None:
        self.fits = fits
        self.error = error
        self.tried: list[int] = []

    def __call__(self, part: slice) -> list[int]:
        self.tried.append(part.stop - part.start)
        if self.tried[-1] > self.fits:
            raise self.error
        return [i * i for i in range(part.start, part.stop)]


def flat(parts: list[list[int]]) -> list[int]:
    return [i for part in parts for i in part]


@pytest.mark.parametrize(
    ("count", "size", "fits"),
    [(0, 4, 4), (1, 1, 1), (7, 20, 20), (7, 3, 3), (7, 3, 1), (8, 8, 5), (13, 20, 2), (13, 6, 4)],
)
def test_everything_is_done_once_and_in_order(count: int, size: int, fits: int) -> None:
    work, batch = Work(fits), BatchSize(size)
    parts = in_batches(work, count, batch)
    assert flat(parts) == [i * i for i in range(count)]
    assert all(0 < len(part) <= fits for part in parts)
    assert batch.size <= size


def test_what_fits_is_left_as_large_as_it_was_asked_for() -> None:
    work, batch = Work(fits=8), BatchSize(4)
    in_batches(work, 10, batch)
    assert work.tried == [4, 4, 2]
    assert batch.size == 4


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_every_device_is_understood(kind: str) -> None:
    work = Work(1, OUT_OF_MEMORY[kind])
    assert flat(in_batches(work, 2, BatchSize(2))) == [0, 1]
    assert work.tried == [2, 1, 1]


def test_the_size_that_fits_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    work, batch = Work(fits=2), BatchSize(8)
    in_batches(work, 5, batch)
    assert work.tried == [5, 2, 2, 1]
    assert "batches of 2" in caplog.text
    work.tried.clear()
    in_batches(work, 5, batch)
    assert work.tried == [2, 2, 1]


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_one_item_that_does_not_fit_is_out_of_memory(kind: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        in_batches(Work(0, OUT_OF_MEMORY[kind]), 3, BatchSize(2))
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("sizes of tensors must match"), ValueError("no"), KeyboardInterrupt()])
def test_other_errors_pass_at_the_first_try(error: BaseException) -> None:
    tried = []

    def fail(part: slice) -> None:
        tried.append(part)
        raise error

    batch = BatchSize(4)
    with pytest.raises(type(error)):
        in_batches(fail, 8, batch)
    assert len(tried) == 1
    assert batch.size == 4


def test_what_the_failed_try_held_is_free_before_the_next() -> None:
    class Activations:
        pass

    alive: list[weakref.ref[Activations]] = []
    held: list[int] = []

    def run(part: slice) -> None:
        gc.disable()
        held.append(sum(ref() is not None for ref in alive))
        mine = Activations()
        alive.append(weakref.ref(mine))
        if part.stop - part.start > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    try:
        in_batches(run, 4, BatchSize(4))
    finally:
        gc.enable()
    assert held == [0] * 6
