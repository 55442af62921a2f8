"""A training of seconds on real heart slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cease_core.data import find_cases, read_split
from cease_core.training import load_config, train

HEARTS = Path(__file__).parents[2] / "sample_data" / "cardiac_mr_sunnybrook"
SECONDS = 120
"""To wait for a process at most; on an idle machine it begins within six."""


def tiny(session: Any, **changes: Any) -> None:
    """Choose a small network on small patches, attacked in few steps, saved after every batch."""
    choices = {
        "preset": "at",
        "architecture": "unet",
        "channels": (4, 8, 8),
        "ndim": 2,
        "patch": (32, 32),
        "batch_size": 2,
        "steps": 2,
        "epochs": 2,
        "test": 0.0,
        "validate_every": 1,
        "save_every": 0.0,
    } | changes
    for name, value in choices.items():
        setattr(session, name, value)


def uninterrupted(run: Path, folder: Path, out: Path) -> bytes:
    """The weights that a run comes to if nothing happens to it, trained here."""
    sides = read_split(run / "split.json", find_cases(folder))
    config = load_config(run / "config.yaml")
    assert torch.get_num_threads() == 1
    for _ in train(config, sides.training, sides.validation, out, device="cpu"):
        pass
    return (out / "model.safetensors").read_bytes()
