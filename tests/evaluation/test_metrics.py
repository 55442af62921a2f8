"""Figures agree with the libraries that people compare them with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cease_core.evaluation import dice_per_class, distortion, mean_dice
from cease_core.io import read_scan

SAMPLES = Path(__file__).parents[2] / "sample_data"
CLASSES = (1, 2, 3)


def blocks(seed: int, shape: tuple[int, ...], present: tuple[int, ...] = (0, 1, 2, 3)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.choice(np.array(present, np.int32), shape)


def halves(*ids: int) -> np.ndarray:
    return np.repeat(np.array(ids, np.int32), 8).reshape(len(ids), 8)


PAIRS = {
    "random image": (blocks(0, (9, 7)), blocks(1, (9, 7))),
    "random volume": (blocks(2, (5, 6, 7)), blocks(3, (5, 6, 7))),
    "identical": (blocks(4, (9, 7)), blocks(4, (9, 7))),
    "disjoint": (halves(1, 2, 3), halves(2, 3, 1)),
    "novolumeg found": (halves(0, 0), halves(1, 2)),
    "novolumeg there": (halves(1, 2), halves(0, 0)),
    "one voxel": (np.array([[1]], np.int32), np.array([[1]], np.int32)),
    "class in neither": (blocks(5, (9, 7), (0, 1)), blocks(6, (9, 7), (0, 1))),
    "both empty": (halves(0, 0), halves(0, 0)),
}


@pytest.mark.parametrize(("mask", "reference"), PAIRS.values(), ids=PAIRS)
def test_dice_is_monais(mask: np.ndarray, reference: np.ndarray) -> None:
    one_hot = [torch.from_numpy(np.stack([m == c for c in CLASSES]))[None].float() for m in (mask, reference)]
    theirs = compute_dice(*one_hot, ignore_empty=False)[0].tolist()
    ours = dice_per_class(mask, reference, CLASSES)
    assert list(ours) == list(CLASSES)
    assert list(ours.values()) == pytest.approx(theirs, abs=1e-6)
    assert mean_dice(mask, reference, CLASSES) == pytest.approx(np.mean(theirs), abs=1e-6)


def test_a_class_that_both_lack_counts_as_found() -> None:
    assert dice_per_class(halves(0, 1), halves(0, 1), (1, 2)) == {1: 1.0, 2: 1.0}


def test_ids_that_were_not_asked_for_do_not_count() -> None:
    assert mean_dice(halves(1, 3), halves(1, 2), (1,)) == 1


def sample(name: str) -> torch.Tensor:
    scan = read_scan(SAMPLES / name)
    low, width = scan.window.low, scan.window.width
    crop = (slice(None), *(slice(0, 48) for _ in scan.shape))
    return torch.from_numpy((scan.image[crop] - low) / width)[None]


IMAGES = {
    "grey": "heart_mr_hvsmr2/images/10003_82.png",
    "colours": "nuclei_histology/images/0bf33d3db4282d91.png",
    "volume": "hippocampus_mri/images/hippocampus_001.nii.gz",
}


@pytest.fixture(scope="module", params=IMAGES.values(), ids=IMAGES)
def clean(request: pytest.FixtureRequest) -> torch.Tensor:
    return sample(request.param)


@pytest.mark.parametrize("epsilon", [1 / 255, 8 / 255, 0.2])
def test_psnr_and_ssim_are_scikit_images(clean: torch.Tensor, epsilon: float) -> None:
    signs = torch.randint(0, 2, clean.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    adversarial = clean + epsilon * signs
    found = distortion(clean, adversarial)
    a, b = clean[0].double().numpy(), adversarial[0].double().numpy()
    assert found.linf == pytest.approx(epsilon, rel=1e-3)
    assert found.rms == pytest.approx(epsilon, rel=1e-3)
    assert found.psnr == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), rel=1e-5)
    # The window of Wang et al. 2004: Gaussian, σ = 1.5, 11 voxels wide.
    slices = zip(a.swapaxes(0, 1), b.swapaxes(0, 1), strict=True) if a.ndim == 4 else [(a, b)]
    theirs = [
        structural_similarity(
            x, y, channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for x, y in slices
    ]
    assert found.ssim == pytest.approx(np.mean(theirs), abs=1e-4)


def test_identical_images(clean: torch.Tensor) -> None:
    same = distortion(clean, clean.clone())
    assert (same.linf, same.rms, same.psnr) == (0, 0, math.inf)
    assert same.ssim == pytest.approx(1, abs=1e-6)


def test_volumes_are_compared_slice_by_slice(clean: torch.Tensor) -> None:
    if clean.ndim == 4:
        clean = torch.stack([clean, clean.flip(-1)], dim=2)
    volume = clean[:, :, :4]
    other = volume + 0.05 * torch.randn(volume.shape, generator=torch.Generator().manual_seed(0))
    slices = [distortion(volume[:, :, z], other[:, :, z]).ssim for z in range(volume.shape[2])]
    assert distortion(volume, other).ssim == pytest.approx(np.mean(slices), abs=1e-6)


@pytest.mark.parametrize("shape", [(8, 10), (1, 6), (3, 3), (2, 4, 5)])
def test_images_smaller_than_the_window(shape: tuple[int, ...]) -> None:
    clean = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    near, far = (distortion(clean, clean + e * torch.sign(clean - 0.5)).ssim for e in (0.02, 0.2))
    assert 0 < far < near < 1
    assert distortion(clean, clean.clone()).ssim == pytest.approx(1, abs=1e-6)
