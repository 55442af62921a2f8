"""A batch, the views of it, and what the model makes of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.array import (
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandShiftIntensity,
)
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor, nn

from cease_core.defences.config import View
from cease_core.models.architectures import Features
from cease_core.models.segmenter import SegmentationModel
from cease_core.tasks.base import Setting


@dataclass(frozen=True, eq=False)
class Batch:
    """Cases to train on.

    Parameters
    ----------
    images
        Clean images in window fractions, shape (N, C, *spatial).
    labels
        Class ids (N, *spatial).
    seeds
        One number a case, from which everything random about it is drawn: a case meets the same start of the
        inner attack and the same augmentation in whatever batch, and on whatever process, it is.
    names
        Case names, for messages.
    """

    images: Tensor
    labels: Tensor
    seeds: tuple[int, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Look:
    """A view in the model's eyes: its images, the encoder's features, logits, and decoder features if asked for."""

    images: Tensor
    features: Features
    logits: Tensor
    dense: Tensor | None

    def part(self, which: slice) -> Look:
        """That of some cases."""
        return self._each(lambda values: values[which])

    def detach(self) -> Look:
        """The same values, through which no gradient flows."""
        return self._each(Tensor.detach)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Look:
        dense = None if self.dense is None else change(self.dense)
        return Look(change(self.images), [change(f) for f in self.features], change(self.logits), dense)


@dataclass(frozen=True, eq=False)
class Context:
    """What a term may read.

    Parameters
    ----------
    batch
        The clean batch.
    target
        One-hot mask of the logits' shape.
    looks
        One a view.
    model
        Whose encoder terms may ask again.
    setting
        Of the model.
    progress
        Share of the training that is done, in [0, 1].
    gather
        Joins a tensor's rows over all processes; gradients flow to the own rows.
    """

    batch: Batch
    target: Tensor
    looks: Mapping[View, Look]
    model: SegmentationModel
    setting: Setting
    progress: float
    gather: Callable[[Tensor], Tensor] = lambda rows: rows


@contextmanager
def unmoved(model: nn.Module) -> Iterator[None]:
    """Batch norms keep their running statistics: of images that the finished model is not meant to see."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def generators(seeds: Sequence[int], salt: int = 0) -> list[torch.Generator]:
    """A generator a case, on the CPU, so that a seed means the same on every device."""
    return [torch.Generator().manual_seed((seed * 1_000_003 + salt) % 2**62) for seed in seeds]


@lru_cache(maxsize=1)
def _photometric() -> Compose:
    return Compose(
        [
            RandScaleIntensity(factors=0.4, prob=0.8),
            RandShiftIntensity(offsets=0.15, prob=0.8),
            RandAdjustContrast(gamma=(0.6, 1.7), prob=0.5),
            RandGaussianSmooth(sigma_x=(0.3, 1.2), sigma_y=(0.3, 1.2), sigma_z=(0.3, 1.2), prob=0.3),
            RandGaussianNoise(std=0.08, prob=0.5),
        ]
    )


def augmented(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Images (N, C, *spatial) under another light: contrast, brightness, gamma, blur and noise, no geometry."""
    transform = _photometric()
    changed = []
    for image, seed in zip(images, seeds, strict=True):
        # MONAI's own seeding of every step takes longer than the steps themselves.
        state = np.random.RandomState(np.random.PCG64(seed))
        for step in transform.transforms:
            step.set_random_state(state=state)
        changed.append(convert_to_tensor(transform(image)))
    return torch.stack(changed).to(images)
