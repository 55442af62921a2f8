"""Cases as tensors in memory, and augmented batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import RandSpatialCropd, SpatialPadd
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import RandAffined, RandFlipd, RandRotate90d
from torch import Tensor

from cease_core.data.cases import Case, load_case
from cease_core.errors import CeaseError
from cease_core.training.config import TrainingConfig


@dataclass(frozen=True)
class Sample:
    """A training image (C, *spatial) in window fractions with its mask (1, *spatial), and its case."""

    case: str
    image: Tensor
    labels: Tensor


def load_samples(cases: Sequence[Case], config: TrainingConfig) -> list[Sample]:
    """Read all cases; a 2-D model sees a volume as its slices, in the volume's own window.

    Raises
    ------
    CeaseError
        If a case does not fit the config.
    """
    samples = []
    for case in cases:
        scan, labels = load_case(case)
        if scan.channels != config.channels or scan.ndim < config.ndim:
            raise CeaseError(
                f"{case.name} is {scan.ndim}-D with channels = {scan.channels}, but the config says "
                f"ndim = {config.ndim} and channels = {config.channels}; correct the config or leave the case out."
            )
        window = config.window.resolve(scan)
        image = torch.from_numpy((scan.image - window.low) / window.width)
        mask = torch.from_numpy(np.ascontiguousarray(labels)).unsqueeze(0)
        if scan.ndim > config.ndim:
            pairs = [(image[:, z], mask[:, z]) for z in range(image.shape[1])]
        else:
            pairs = [(image, mask)]
        samples += [Sample(case.name, *_shrink(i, m, config.downsample)) for i, m in pairs]
    return samples


def _shrink(image: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    if factor == 1:
        return image, mask
    ndim = image.ndim - 1
    pool = F.avg_pool2d if ndim == 2 else F.avg_pool3d
    # The model averages blocks itself; doing it once here is the same input for a quarter of the work.
    middle = tuple(slice(factor // 2, None, factor) for _ in range(ndim))
    small = pool(image.unsqueeze(0), factor)[0]
    return small, mask[(slice(None), *middle)][(slice(None), *(slice(0, s) for s in small.shape[1:]))]


def augmentation(config: TrainingConfig) -> Compose:
    """Random geometry and intensity, then a crop or pad to the patch."""
    keys, modes = ["image", "labels"], ("bilinear", "nearest")
    steps: list[Any] = [
        RandAffined(
            keys,
            prob=0.6,
            rotate_range=0.3,
            scale_range=0.15,
            translate_range=[0.06 * p for p in config.patch],
            mode=modes,
            padding_mode="border",
        ),
        *(RandFlipd(keys, prob=0.5, spatial_axis=a) for a in config.mirror),
    ]
    if config.quarter_turns:
        steps.append(RandRotate90d(keys, prob=0.5))
    steps += [
        SpatialPadd(keys, config.patch, mode="edge"),
        RandSpatialCropd(keys, config.patch, random_size=False),
        RandScaleIntensityd("image", factors=0.2, prob=0.5, channel_wise=config.channels == 3),
        RandShiftIntensityd("image", offsets=0.1, prob=0.5),
        RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
        RandGaussianNoised("image", prob=0.2, std=0.03),
    ]
    return Compose(steps)


def batches(
    samples: Sequence[Sample], config: TrainingConfig, transform: Compose, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented batches: images (N, C, *patch) and masks (N, *patch)."""
    order = rng.permutation(len(samples))
    size = min(config.batch_size, len(samples))
    for i in range(0, len(order) - size + 1, size):
        items = [transform({"image": samples[j].image, "labels": samples[j].labels}) for j in order[i : i + size]]
        images = torch.stack([torch.as_tensor(item["image"]) for item in items])
        masks = torch.stack([torch.as_tensor(item["labels"])[0] for item in items])
        yield images.float(), masks.long()
