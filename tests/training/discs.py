"""A data set that is drawn, configs for it, and what of a run must not depend on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cease_core.data import find_cases, split_cases
from cease_core.training import EpochDone, Finished, StepDone, TrainingConfig, train
from cease_core.training.state import STATE


def draw_discs(folder: Path, count: int, size: int = 32) -> Path:
    """Bright discs on noise: grey pictures and their masks."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        row, column = generator.uniform(0.3 * size, 0.7 * size, 2)
        mask = (y - row) ** 2 + (x - column) ** 2 < generator.uniform(size / 8, size / 4) ** 2
        image = 90 + 60 * mask + generator.normal(0, 20, mask.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"disc_{i:02d}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / "labels" / f"disc_{i:02d}.png")
    return folder


def disc_config(**changes: Any) -> TrainingConfig:
    """A small model for the discs."""
    fields: dict[str, Any] = {
        "name": "discs",
        "title": "Discs",
        "data": {"name": "discs", "source": "drawn", "licence": "CC0"},
        "architecture_args": {"channels": [4, 8, 8]},
        "ndim": 2,
        "channels": 1,
        "classes": [{"id": 1, "name": "disc", "color": "#E69F00"}],
        "mode": "binary",
        "window": {"kind": "fixed", "low": 0, "high": 255},
        "patch": (16, 16),
        "mirror": (0, 1),
        "batch_size": 4,
        "validate_every": 1,
        "validation_images": 2,
        "learning_rate": 5e-3,
        "ema": 0.8,
    }
    if not {"epochs", "budget"} & changes.keys():
        fields["epochs"] = 2
    return TrainingConfig.model_validate(fields | changes)


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves behind, but for the time it took."""
    state = torch.load(out / STATE, weights_only=True)
    del state["seconds"]
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    table = (out / "history.csv").read_text().splitlines()
    column = table[0].split(",").index("seconds")
    card = json.loads((out / "card.json").read_text())
    del card["training"]["seconds"]
    for row in (*lines, *state["history"]):
        del row["seconds"]
    return {
        "state": state,
        "lines": lines,
        "table": [[v for i, v in enumerate(row.split(",")) if i != column] for row in table],
        "card": card,
        "weights": {p.name: p.read_bytes() for p in out.glob("*.safetensors")},
        "files": sorted(p.name for p in out.iterdir()),
    }


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two outcomes are not the same to the last bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{place}/{k}" for k in a.keys() ^ b.keys()]
        return found + [d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f"{place}/{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{place}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [place]
    return [] if a == b or (a != a and b != b) else [place]


def train_in_process(
    config: TrainingConfig, folder: Path, out: Path, killed_at: tuple[int, int] | None, env: dict[str, str], told: Path
) -> None:
    """Train in a process of its own, killed after a batch if wanted; what its epochs told goes into a file."""
    os.environ.update(env)
    torch.set_num_threads(1)
    sides = split_cases(find_cases(folder), 0.2)
    heard: list[Any] = []
    for event in train(config, *sides, out, device="cpu", resume=True, save_every=0):
        if isinstance(event, StepDone) and (event.epoch, event.batch) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(event, EpochDone):
            heard.append([event.epoch, event.gradients, event.loss, event.clean_dice, event.robust_dice])
        if isinstance(event, Finished):
            heard.append(event.card.name)
    told.write_text(json.dumps(heard))
