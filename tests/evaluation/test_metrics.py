"""Overlaps, and sizes of perturbations, agree with the libraries that people compare them with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cease_core.errors import CeaseError
from cease_core.evaluation import Surface, dice_per_class, distortion, flipped, iou_per_class, scores, surface_per_class
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
    "nothing found": (halves(0, 0), halves(1, 2)),
    "nothing there": (halves(1, 2), halves(0, 0)),
    "one voxel": (np.array([[1]], np.int32), np.array([[1]], np.int32)),
    "class in neither": (blocks(5, (9, 7), (0, 1)), blocks(6, (9, 7), (0, 1))),
    "both empty": (halves(0, 0), halves(0, 0)),
}


@pytest.mark.parametrize(("mask", "reference"), PAIRS.values(), ids=PAIRS)
def test_dice_and_iou_are_monais(mask: np.ndarray, reference: np.ndarray) -> None:
    one_hot = [torch.from_numpy(np.stack([m == c for c in CLASSES]))[None].float() for m in (mask, reference)]
    for ours, theirs in (
        (dice_per_class, compute_dice(*one_hot, ignore_empty=False)),
        (iou_per_class, compute_iou(*one_hot, ignore_empty=False)),
    ):
        found = ours(mask, reference, CLASSES)
        assert list(found) == list(CLASSES)
        assert list(found.values()) == pytest.approx(theirs[0].tolist(), abs=1e-6)


@pytest.mark.parametrize(("mask", "reference"), PAIRS.values(), ids=PAIRS)
def test_scores_are_means_over_the_classes(mask: np.ndarray, reference: np.ndarray) -> None:
    spacing = (3.0, 0.5, 0.7)[: mask.ndim]
    found = scores(mask, reference, CLASSES, spacing, tolerance=1.0)
    iou = iou_per_class(mask, reference, (0, *CLASSES))
    surfaces = surface_per_class(mask, reference, CLASSES, spacing, tolerance=1.0)
    assert found.dice_per_class == dice_per_class(mask, reference, CLASSES)
    assert found.dice == pytest.approx(np.mean(list(found.dice_per_class.values())))
    assert found.iou == pytest.approx(np.mean([iou[c] for c in CLASSES]))
    assert found.mean_iou == pytest.approx(np.mean(list(iou.values())))
    assert found.hd95_mm == pytest.approx(np.mean([s.hd95 for s in surfaces.values()]))
    assert found.nsd == pytest.approx(np.mean([s.nsd for s in surfaces.values()]))


def test_a_class_that_both_lack_is_right() -> None:
    mask = halves(0, 1)
    assert dice_per_class(mask, mask, (1, 2)) == {1: 1.0, 2: 1.0}
    assert iou_per_class(mask, mask, (1, 2)) == {1: 1.0, 2: 1.0}
    assert surface_per_class(mask, mask, (1, 2), (1, 1)) == {1: Surface(0, 1), 2: Surface(0, 1)}


@pytest.mark.parametrize("ids", [((0, 0), (0, 1)), ((0, 1), (0, 0))], ids=["missed", "made up"])
def test_a_class_that_one_lacks_is_as_wrong_as_can_be(ids: tuple[tuple[int, int], tuple[int, int]]) -> None:
    mask, reference = (halves(*i) for i in ids)  # two rows of eight voxels, 3 mm and 4 mm apart
    found = scores(mask, reference, (1,), (3, 4))
    assert (found.dice, found.iou, found.nsd) == (0, 0, 0)
    assert found.hd95_mm == pytest.approx(math.hypot(2 * 3, 8 * 4))
    # Of the background's sixteen voxels half are left.
    assert found.mean_iou == pytest.approx((0 + 1 / 2) / 2)


def test_ids_that_were_not_asked_for_do_not_count() -> None:
    found = scores(halves(1, 3), halves(1, 2), (1,), (1, 1))
    assert (found.dice, found.iou, found.hd95_mm, found.nsd, found.mean_iou) == (1, 1, 0, 1, 1)


def test_distances_by_hand() -> None:
    # Two voxels, two rows and three columns apart, where rows are 2 mm and columns ½ mm apart: 4.27 mm.
    mask, reference = np.zeros((2, 6, 9), np.int32)
    mask[1, 2] = reference[3, 5] = 1
    distance = math.hypot(2 * 2, 3 * 0.5)
    near, far = (surface_per_class(mask, reference, (1,), (2, 0.5), t)[1] for t in (4.3, 4.2))
    assert near.hd95 == pytest.approx(distance)
    assert (near.nsd, far.nsd) == (1, 0)


def test_surface_dice_counts_the_voxels_of_both_surfaces() -> None:
    reference = np.zeros((6, 9), np.int32)
    reference[0] = 1
    mask = reference.copy()
    mask[5, 4] = 1
    assert surface_per_class(mask, reference, (1,), (1, 1))[1].nsd == pytest.approx((9 + 9) / (9 + 10))


def test_the_95th_percentile_is_interpolated_and_the_worse_way_counts() -> None:
    # A line of 21 voxels, and the same with one 10 mm beside it: one way all distances are 0, the other way 1 of 22.
    line = np.zeros((12, 21), np.int32)
    line[0] = 1
    stray = line.copy()
    stray[10, 0] = 1
    # Place .95 · 21 = 19.95 of places 0 to 21, of which only the last is 10.
    assert surface_per_class(line, stray, (1,), (1, 1))[1].hd95 == 0
    stray[11, 0] = 1
    # Two of 23 at 10 and 11: place .95 · 22 = 20.9 lies nine tenths of the way from 0 to 10.
    assert surface_per_class(line, stray, (1,), (1, 1))[1].hd95 == pytest.approx(9)
    assert surface_per_class(stray, line, (1,), (1, 1))[1].hd95 == pytest.approx(9)


def test_the_tolerance_is_inclusive_and_2_mm_by_default() -> None:
    mask, reference = np.zeros((2, 5, 30), np.int32)
    mask[2, 3] = reference[2, 23] = 1
    assert scores(mask, reference, (1,), (1, 0.1)).nsd == 1
    assert scores(mask, reference, (1,), (1, 0.101)).nsd == 0


def test_a_volume_one_slice_deep_is_measured_as_the_image_it_is() -> None:
    mask, reference = blocks(7, (12, 9), (0, 0, 1)), blocks(8, (12, 9), (0, 1, 1))
    image = scores(mask, reference, (1,), (1, 2))
    assert scores(mask[None], reference[None], (1,), (5, 1, 2)) == image
    assert scores(mask[:, None], reference[:, None], (1,), (1, 5, 2)) == image


def test_flipped_pixels_are_those_that_were_right() -> None:
    reference = np.array([[0, 0, 1, 1, 2]])
    clean = np.array([[0, 1, 1, 1, 2]])
    attacked = np.array([[1, 0, 1, 0, 2]])
    assert flipped(clean, attacked, reference) == 2 / 4
    assert flipped(clean, clean, reference) == 0
    assert flipped(reference, reference + 1, reference) == 1
    assert math.isnan(flipped(reference + 1, attacked, reference))


@pytest.mark.parametrize(
    ("shape", "spacing", "sentence"),
    [
        ((5, 6), (1, 1), r"shape \(5, 5\) and its reference \(5, 6\); compare masks on the same grid"),
        ((5, 5), (1, 1, 1), r"spacing \(1, 1, 1\) does not fit a mask of shape \(5, 5\); give one length above 0"),
        ((5, 5), (1, 0), r"spacing \(1, 0\) does not fit"),
        ((5, 5), (1, math.nan), r"spacing \(1, nan\) does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], spacing: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        scores(np.zeros((5, 5), np.int32), np.zeros(shape, np.int32), (1,), spacing)


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
