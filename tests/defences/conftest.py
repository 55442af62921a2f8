"""Tiny models and batches to defend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cease_core.attacks.losses import one_hot
from cease_core.defences import Batch
from cease_core.defences.config import View
from cease_core.defences.views import Context, Look
from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule
from cease_core.tasks.base import Setting

MakeModel = Callable[..., SegmentationModel]
MakeBatch = Callable[..., Batch]
MakeContext = Callable[..., Context]


@pytest.fixture
def make_model() -> MakeModel:
    """A model with random weights, in training mode; ``classes`` above 1 make it a softmax model."""

    def make(
        architecture: str = "unet", ndim: int = 2, classes: int = 1, seed: int = 0, **args: Any
    ) -> SegmentationModel:
        card = ModelCard(
            name="tiny",
            title="Tiny",
            architecture=architecture,
            architecture_args=args or {"channels": (4, 8, 16)},
            ndim=ndim,
            channels=1,
            classes=tuple(ClassInfo(id=i + 1, name=f"class {i}", color="#E69F00") for i in range(classes)),
            mode="binary" if classes == 1 else "multiclass",
            window=WindowRule(kind="fixed", low=0, high=1),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SegmentationModel(card).train()

    return make


@pytest.fixture
def make_batch() -> MakeBatch:
    """Bright blocks on noise, a class each, in images that reach beyond the window."""

    def make(cases: int = 3, ndim: int = 2, classes: int = 1, size: int = 16) -> Batch:
        generator = torch.Generator().manual_seed(3)
        images = torch.rand(cases, 1, *(size,) * ndim, generator=generator) * 1.2 - 0.1
        labels = torch.zeros(cases, *(size,) * ndim, dtype=torch.long)
        for c in range(1, classes + 1):
            labels[:, 4 * c : 4 * c + 4, 4:12] = c
        images = images + 0.3 * (labels > 0).unsqueeze(1)
        return Batch(images, labels, tuple(range(10, 10 + cases)), tuple(f"case {i}" for i in range(cases)))

    return make


@pytest.fixture
def make_context(make_model: MakeModel) -> MakeContext:
    """What a term reads when the model answers with given logits (N, K, *spatial) on each view."""

    def make(labels: Tensor, answers: dict[View, Tensor], **parts: Any) -> Context:
        outputs = next(iter(answers.values())).shape[1]
        images = torch.zeros(len(labels), 1, *labels.shape[1:])
        setting = Setting(labels.ndim - 1, 1, max(1, outputs - 1), "binary" if outputs == 1 else "multiclass")
        looks = {view: Look(images, [], logits, None) for view, logits in answers.items()}
        fields: dict[str, Any] = {
            "batch": Batch(images, labels, tuple(range(len(labels)))),
            "target": one_hot(labels, setting.mode, outputs),
            "looks": looks,
            "model": make_model(),
            "setting": setting,
            "progress": 1.0,
        }
        return Context(**(fields | parts))

    return make
