"""What a batch holds follows from seed, epoch and place alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import disc_config
from monai.data.meta_obj import get_track_meta

from cease_core.errors import CeaseError
from cease_core.training import train
from cease_core.training.batches import Augmentation, Plan, Sample, batches, load_samples

VOLUME: dict[str, Any] = {"ndim": 3, "patch": (8, 8, 8), "mirror": (0,)}


def volume(*shape: int, filled: tuple[slice, ...] | None = None) -> Sample:
    labels = torch.zeros(1, *shape, dtype=torch.uint8)
    if filled is not None:
        labels[(0, *filled)] = 1
    return Sample("v", torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)), labels)


def test_an_epoch_sees_each_sample_once_in_a_new_order() -> None:
    plan = Plan(samples=11, batch_size=4, seed=0)
    epochs = [[i for b in range(plan.batches) for i in plan.indices(epoch, b)] for epoch in range(2)]
    assert [len(set(e)) for e in epochs] == [8, 8]
    assert epochs[0] != epochs[1]


def test_processes_share_a_batch() -> None:
    whole = Plan(samples=9, batch_size=4, seed=3)
    parts = [Plan(samples=9, batch_size=4, seed=3, rank=r, world=2) for r in range(2)]
    assert parts[0].indices(1, 1) + parts[1].indices(1, 1) == whole.indices(1, 1) == parts[1].whole(1, 1)


def test_orders_and_seeds_are_the_same_on_every_machine() -> None:
    plan = Plan(samples=6, batch_size=3, seed=7)
    assert plan.indices(2, 0) == [2, 3, 0]
    assert plan.seeds(2, [0, 5]) == (1009178997, 3212762053)


def test_a_batch_does_not_depend_on_those_before_it(sides) -> None:
    config = disc_config()
    samples, plan = load_samples(sides[0], config), Plan(9, 4, 0)
    *_, last = batches(samples, plan, Augmentation(config), epoch=1)
    used = Augmentation(config)
    list(batches(samples, plan, used, epoch=0))
    (alone,) = batches(samples, plan, used, epoch=1, first=1)
    assert torch.equal(alone.images, last.images)
    assert torch.equal(alone.labels, last.labels)
    assert (alone.seeds, alone.names) == (last.seeds, last.names)


def test_batches_are_plain_tensors_and_monai_is_left_as_it_was(sides) -> None:
    config = disc_config()
    batch = next(batches(load_samples(sides[0], config), Plan(9, 4, 0), Augmentation(config), 0))
    assert type(batch.images) is type(batch.labels) is torch.Tensor
    assert (batch.images.shape, batch.images.dtype) == ((4, 1, 16, 16), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((4, 16, 16), torch.int64)
    assert get_track_meta()


def test_image_and_mask_move_together(sides) -> None:
    config = disc_config(quarter_turns=True, patch=(32, 32))
    augmentation = Augmentation(config)
    for sample in load_samples(sides[0], config)[:3]:
        as_image = Sample(sample.case, sample.labels.float(), sample.labels)
        for seed in range(5):
            turned = augmentation(as_image, seed)
            image = (turned.image[0] - turned.image.min()) / (turned.image.max() - turned.image.min()).clamp_min(1e-6)
            assert ((image > 0.5) != (turned.labels[0] > 0)).float().mean() < 0.12


@pytest.mark.parametrize("foreground", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(volume(20, 20, 20, filled=(slice(2, 5),) * 3), id="with a structure"),
        pytest.param(volume(20, 20, 20), id="without one"),
        pytest.param(volume(20, 20, 20, filled=(slice(None),) * 3), id="all structure"),
        pytest.param(volume(5, 20, 3, filled=(slice(1, 3),) * 3), id="smaller than the patch"),
    ],
)
def test_patches_of_volumes(sample: Sample, foreground: float) -> None:
    augmentation = Augmentation(disc_config(**VOLUME, foreground=foreground))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            patch = augmentation(sample, seed)
            assert patch.image.shape == patch.labels.shape == (1, 8, 8, 8)
            assert patch.image.isfinite().all()


def test_patches_are_centred_on_structures_as_often_as_wanted() -> None:
    sample = volume(40, 40, 40, filled=(slice(14, 18),) * 3)
    share = {}
    for foreground in (0.0, 1.0):
        augmentation = Augmentation(disc_config(**VOLUME, foreground=foreground))
        share[foreground] = np.mean([bool(augmentation(sample, seed).labels.any()) for seed in range(40)])
    assert share[1.0] == 1
    assert share[0.0] < 0.5


def test_a_cache_changes_nothing(sides, tmp_path: Path) -> None:
    config = disc_config(cache=str(tmp_path / "cache"))
    plain = load_samples(sides[0], disc_config())
    for _ in range(2):  # written, then read
        for a, b in zip(plain, load_samples(sides[0], config), strict=True):
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.labels, b.labels)
    assert len(list((tmp_path / "cache").iterdir())) == len(sides[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"channels": 3}, r"disc_\d\d is 2-D with channels = 1, but the config says ndim = 2 and channels = 3"),
        (VOLUME, r"disc_\d\d is 2-D .* ndim = 3 .*; correct the config or leave the case out"),
    ],
)
def test_data_that_do_not_fit_the_config(sides, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        next(train(disc_config(**changes), *sides, tmp_path, device="cpu"))
