"""Cards and small models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule

MakeCard = Callable[..., ModelCard]
MakeModel = Callable[..., SegmentationModel]


@pytest.fixture
def make_card() -> MakeCard:
    """A tiny two-dimensional U-Net's card, with changes."""

    def make(**changes: Any) -> ModelCard:
        fields: dict[str, Any] = {
            "name": "tiny",
            "title": "Tiny",
            "architecture": "unet",
            "architecture_args": {"channels": (4, 8)},
            "ndim": 2,
            "channels": 1,
            "classes": (ClassInfo(id=1, name="disc", color="#E69F00"),),
            "mode": "binary",
            "window": WindowRule(kind="percentile", low=0.5, high=99.5),
        }
        return ModelCard(**(fields | changes))

    return make


@pytest.fixture
def make_model(make_card: MakeCard) -> MakeModel:
    """That model with random weights and lived-in batch norms, in evaluation mode."""

    def make(seed: int = 0, **changes: Any) -> SegmentationModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SegmentationModel(make_card(**changes))
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(0, 0.3)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 2)
        return model.eval()

    return make
