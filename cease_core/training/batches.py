"""Cases as tensors in memory, and augmented batches of them that depend on nothing but seed, epoch and place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import RandCropByPosNegLabeld, RandSpatialCropd, SpatialPadd
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import RandAffined, RandFlipd, RandRotate90d
from monai.transforms.transform import Randomizable
from torch import Tensor

from cease_core.data.cache import Cached
from cease_core.data.cases import Case, load_case
from cease_core.defences import Batch
from cease_core.errors import CeaseError
from cease_core.training.config import TrainingConfig


@dataclass(frozen=True)
class Sample:
    """A training image (C, *spatial) in window fractions with its mask (1, *spatial), its case and its patient."""

    case: str
    image: Tensor
    labels: Tensor
    patient: str = ""


def load_samples(cases: Sequence[Case], config: TrainingConfig) -> list[Sample]:
    """Read all cases; a 2-D model sees a volume as its slices, in the volume's own window.

    Raises
    ------
    CeaseError
        If a case does not fit the config.
    """
    samples = []
    cache = None if config.cache is None else Cached(Path(config.cache))
    for case in cases:
        scan, labels = load_case(case, cache)
        if scan.channels != config.channels or scan.ndim < config.ndim:
            raise CeaseError(
                f"{case.name} is {scan.ndim}-D with channels = {scan.channels}, but the config says "
                f"ndim = {config.ndim} and channels = {config.channels}; correct the config or leave the case out."
            )
        window = config.window.resolve(scan)
        image = torch.from_numpy((scan.image - window.low) / window.width)
        mask = torch.from_numpy(np.ascontiguousarray(labels)).unsqueeze(0)
        if int(mask.max()) > len(config.classes):
            raise CeaseError(
                f"{case.name} has label {int(mask.max())}, but the config names {len(config.classes)} classes; "
                "name every class or correct the mask."
            )
        if scan.ndim > config.ndim:
            pairs = [(image[:, z], mask[:, z]) for z in range(image.shape[1])]
        else:
            pairs = [(image, mask)]
        samples += [Sample(case.name, *_shrink(i, m, config.downsample), case.patient) for i, m in pairs]
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


class Augmentation:
    """Random geometry, then a crop or pad to the patch, then mild random intensity."""

    def __init__(self, config: TrainingConfig) -> None:
        keys, modes = ["image", "labels"], ("bilinear", "nearest")
        geometry: list[Any] = [
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
            geometry.append(RandRotate90d(keys, prob=0.5))
        geometry.append(SpatialPadd(keys, config.patch, mode="edge"))
        self._geometry = Compose(geometry)
        self._anywhere = RandSpatialCropd(keys, config.patch, random_size=False)
        self._by_structure: RandCropByPosNegLabeld | None = None
        if config.foreground > 0:
            self._by_structure = RandCropByPosNegLabeld(
                keys, "labels", config.patch, pos=config.foreground, neg=1 - config.foreground, num_samples=1
            )
        self._intensity = Compose(
            [
                RandScaleIntensityd("image", factors=0.2, prob=0.5, channel_wise=config.channels == 3),
                RandShiftIntensityd("image", offsets=0.1, prob=0.5),
                RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
                RandGaussianNoised("image", prob=0.2, std=0.03),
            ]
        )
        # One state for all of them: seeding each by itself took as long as their work on a small image.
        self._state = np.random.RandomState(0)
        for step in (*self._geometry.transforms, self._anywhere, self._by_structure, *self._intensity.transforms):
            if isinstance(step, Randomizable):
                step.set_random_state(state=self._state)

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """A variant of a sample, all of it drawn from ``seed``.

        A run that resumes in the middle of an epoch needs no other random state.

        Parameters
        ----------
        seed
            In [0, 2³²).
        """
        self._state.seed(seed)
        with _plain_tensors():
            item: Any = self._geometry({"image": sample.image, "labels": sample.labels})
            item = self._crop(item)
            item = self._intensity(item)
        return Sample(sample.case, torch.as_tensor(item["image"]), torch.as_tensor(item["labels"]), sample.patient)

    def _crop(self, item: Any) -> Any:
        # Where there is no structure, or nothing else, there is no choice between the two.
        structure = item["labels"] > 0
        if self._by_structure is None or not structure.any() or structure.all():
            return self._anywhere(item)
        return self._by_structure(item)[0]


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Without MONAI's record of each step: it doubles the time, and its tensors would slow the network down too."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


@dataclass(frozen=True)
class Plan:
    """Which sample goes into which batch, of which process.

    Parameters
    ----------
    samples
        How many there are.
    batch_size
        Over all processes.
    seed
        Of the run.
    rank, world
        This process and how many there are; each takes an equal share of every batch.
    """

    samples: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def size(self) -> int:
        """Cases in a batch, over all processes."""
        return min(self.batch_size, self.samples) // self.world * self.world

    @property
    def batches(self) -> int:
        """Batches an epoch; what does not fill one is left for another epoch's order."""
        return self.samples // self.size

    def whole(self, epoch: int, batch: int) -> list[int]:
        """Samples of one batch, over all processes."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.samples)
        return [int(i) for i in order[batch * self.size : (batch + 1) * self.size]]

    def indices(self, epoch: int, batch: int) -> list[int]:
        """Samples of one batch that are this process's."""
        share = self.size // self.world
        return self.whole(epoch, batch)[self.rank * share : (self.rank + 1) * share]

    def seeds(self, epoch: int, indices: Sequence[int]) -> tuple[int, ...]:
        """A number for each sample in an epoch, from which all its randomness follows."""
        return tuple(int(np.random.SeedSequence((self.seed, epoch, i)).generate_state(1)[0]) for i in indices)


def batches(
    samples: Sequence[Sample], plan: Plan, augmentation: Augmentation, epoch: int, first: int = 0
) -> Iterator[Batch]:
    """Augmented batches of an epoch, from batch ``first`` on."""
    for number in range(first, plan.batches):
        indices = plan.indices(epoch, number)
        seeds = plan.seeds(epoch, indices)
        yield stack([augmentation(samples[i], seed) for i, seed in zip(indices, seeds, strict=True)], seeds)


def alike(samples: Sequence[Sample], most: int) -> Iterator[list[int]]:
    """Indices of samples of one shape, at most ``most`` at a time."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        shapes.setdefault(tuple(sample.image.shape), []).append(i)
    for members in shapes.values():
        yield from (members[i : i + most] for i in range(0, len(members), most))


def stack(samples: Sequence[Sample], seeds: Sequence[int]) -> Batch:
    """Samples of one shape as a batch."""
    return Batch(
        torch.stack([s.image for s in samples]).float(),
        torch.stack([s.labels[0] for s in samples]).long(),
        tuple(seeds),
        tuple(s.case for s in samples),
    )
