"""Several processes train as one does, also when one of them is killed on the way."""

from __future__ import annotations

import json
import signal
import socket
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from discs import disc_config, train_in_process

from cease_core.models import load_model
from cease_core.training import EpochDone, Finished, train


def launch(
    fresh: ForkServerContext, told: Path, second_dies: tuple[int, int] | None, **arguments: Any
) -> list[BaseProcess]:
    """Two processes, as ``accelerate launch`` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair: list[BaseProcess] = []
    for rank in range(2):
        env = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "OMP_NUM_THREADS": "1"}
        kwargs = arguments | {"killed_at": second_dies if rank else None, "env": env, "told": told / f"{rank}.json"}
        pair.append(fresh.Process(target=train_in_process, kwargs=kwargs))
        pair[-1].start()
    return pair


@pytest.mark.parametrize("inner", [{"inner.steps": 1}, {"inner.steps": 2, "inner.reuse": True}], ids=["usual", "reuse"])
def test_two_processes_are_as_good_as_one(inner, fresh, disc_folder, sides, tmp_path: Path) -> None:
    config = disc_config(
        defence={
            "preset": "contrastive_at",
            **inner,
            # The dense part draws its pixels from the images of its own process.
            "contrastive.dense": 0,
            "contrastive.weight": 2,
            "contrastive.ramp": 0,
        },
        architecture_args={"channels": [4, 8, 8], "norm": "instance"},
    )
    alone = list(train(config, *sides, tmp_path / "one", device="cpu"))
    run = {"config": config, "folder": disc_folder, "out": tmp_path / "two"}
    left, killed = launch(fresh, tmp_path, (2, 1), **run)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    # What a launcher does to the others.
    left.kill()
    left.join()
    pair = launch(fresh, tmp_path, None, **run)
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    *epochs, name = first
    assert name == next(e for e in alone if isinstance(e, Finished)).card.name
    # The first epoch was before the kill.
    expected = [e for e in alone if isinstance(e, EpochDone)][1:]
    for (number, gradients, *figures), event in zip(epochs, expected, strict=True):
        assert (number, gradients) == (event.epoch, event.gradients)
        assert figures == pytest.approx([event.loss, event.clean_dice, event.robust_dice], abs=1e-4)
    one, two = (load_model(tmp_path / folder) for folder in ("one", "two"))
    # Not the weights: Adam makes whole steps of the rounding in gradients that are zero.
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(one(images), two(images), atol=1e-3)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(p.name for p in (tmp_path / "two").iterdir())
