"""Scores of masks against SimpleITK, scikit-image, MONAI and a search through all pairs of voxels."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.segmentation import find_boundaries

from cease_core.evaluation import MaskScores, Surface, dice_per_class, iou_per_class, scores, surface_per_class

Mask = NDArray[np.int32]
TOLERANCE = 1.5


@dataclass(frozen=True)
class Example:
    mask: Mask
    reference: Mask
    spacing: tuple[float, ...]


def blobs(seed: int, shape: tuple[int, ...], classes: int = 1) -> Mask:
    """Smooth structures, such as models find, some of them cut off by the border."""
    noise = np.random.default_rng(seed).normal(size=(classes + 1, *shape))
    return np.stack([gaussian_filter(n, 2) for n in noise]).argmax(axis=0).astype(np.int32)


def specks(seed: int, shape: tuple[int, ...]) -> Mask:
    """Scattered voxels, such as attacks leave."""
    return (np.random.default_rng(seed).random(shape) < 0.1).astype(np.int32)


def only(shape: tuple[int, ...], *where: tuple[int | slice, ...]) -> Mask:
    mask = np.zeros(shape, np.int32)
    for index in where:
        mask[index] = 1
    return mask


IMAGE, VOLUME = (17, 23), (7, 11, 9)
EXAMPLES = {
    "image": Example(blobs(0, IMAGE), blobs(1, IMAGE), (1, 1)),
    "image, anisotropic": Example(blobs(2, IMAGE), blobs(3, IMAGE), (2.5, 0.4)),
    "volume": Example(blobs(4, VOLUME), blobs(5, VOLUME), (1, 1, 1)),
    "volume, anisotropic": Example(blobs(6, VOLUME), blobs(7, VOLUME), (5, 0.8, 1.3)),
    "specks": Example(specks(8, IMAGE), specks(9, IMAGE), (0.7, 1.9)),
    "specks in a volume": Example(specks(10, VOLUME), specks(11, VOLUME), (3, 0.5, 0.5)),
    "full": Example(only(IMAGE, (...,)), only(IMAGE, (...,)), (1, 2)),
    "full against blobs": Example(only(VOLUME, (...,)), blobs(12, VOLUME), (2, 1, 1)),
    "one voxel": Example(only(IMAGE, (3, 4)), only(IMAGE, (3, 4)), (1, 1)),
    "one voxel each": Example(only(VOLUME, (0, 0, 0)), only(VOLUME, (6, 10, 8)), (5, 0.5, 1)),
    "one voxel against full": Example(only(IMAGE, (16, 22)), only(IMAGE, (...,)), (0.3, 3)),
    "along the border": Example(only(IMAGE, (0,), (slice(None), -1)), only(IMAGE, (-1,)), (1.1, 0.9)),
    "one inside the other": Example(
        only(VOLUME, (slice(1, 6), slice(1, 10), slice(1, 8))), only(VOLUME, (3, 5, 4)), (2, 1, 3)
    ),
    "a hole": Example(
        only(IMAGE, (slice(2, 15), slice(2, 20))) - only(IMAGE, (slice(6, 9), slice(6, 9))),
        only(IMAGE, (slice(2, 15), slice(2, 20))),
        (1, 1),
    ),
}


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Example:
    return request.param


def test_overlaps_are_those_of_simple_itk(example: Example) -> None:
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(*(sitk.GetImageFromArray(m) for m in (example.reference, example.mask)))
    assert dice_per_class(example.mask, example.reference, (1,))[1] == pytest.approx(measures.GetDiceCoefficient(1))
    assert iou_per_class(example.mask, example.reference, (1,))[1] == pytest.approx(measures.GetJaccardCoefficient(1))


def from_distances(there: NDArray[np.float64], back: NDArray[np.float64]) -> Surface:
    near = np.concatenate([there, back]) <= TOLERANCE + 1e-6
    return Surface(max(np.quantile(there, 0.95), np.quantile(back, 0.95)), near.mean())


def by_all_pairs(example: Example) -> Surface:
    points = []
    for mask in (example.mask, example.reference):
        edge = find_boundaries(np.pad(mask, 1), connectivity=1, mode="inner")
        points.append(np.argwhere(edge) * example.spacing)
    distances = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    return from_distances(distances.min(axis=1), distances.min(axis=0))


def by_simple_itk(example: Example) -> Surface:
    edges, maps = [], []
    for mask in (example.mask, example.reference):
        image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        image.SetSpacing([float(s) for s in reversed(example.spacing)])
        edge = sitk.BinaryContour(image, fullyConnected=False)
        edges.append(sitk.GetArrayFromImage(edge) > 0)
        distance = sitk.SignedMaurerDistanceMap(edge, squaredDistance=False, useImageSpacing=True)
        maps.append(np.abs(sitk.GetArrayFromImage(distance)))
    return from_distances(maps[1][edges[0]], maps[0][edges[1]])


def by_monai(example: Example) -> Surface:
    pair = [torch.from_numpy(m)[None, None] for m in (example.mask, example.reference)]
    spacing = [float(s) for s in example.spacing]
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
    nsd = compute_surface_dice(*pair, [TOLERANCE], include_background=True, spacing=spacing)
    return Surface(hd95.item(), nsd.item())


@pytest.mark.parametrize("other", [by_all_pairs, by_simple_itk, by_monai])
def test_surface_distances_are_those_of(other: object, example: Example) -> None:
    ours = surface_per_class(example.mask, example.reference, (1,), example.spacing, TOLERANCE)[1]
    theirs = other(example)  # type: ignore[operator]
    assert ours.hd95 == pytest.approx(theirs.hd95, rel=1e-5, abs=1e-6)
    assert ours.nsd == pytest.approx(theirs.nsd)


def test_each_class_is_measured_alone() -> None:
    mask, reference = blobs(13, VOLUME, 3), blobs(14, VOLUME, 3)
    together = surface_per_class(mask, reference, (1, 2, 3), (2, 1, 1), TOLERANCE)
    for c in (1, 2, 3):
        alone = Example((mask == c).astype(np.int32), (reference == c).astype(np.int32), (2, 1, 1))
        assert together[c] == surface_per_class(alone.mask, alone.reference, (1,), (2, 1, 1), TOLERANCE)[1]
        assert together[c].hd95 == pytest.approx(by_all_pairs(alone).hd95)


def test_what_lies_around_both_masks_changes_nothing(example: Example) -> None:
    bare = surface_per_class(example.mask, example.reference, (1,), example.spacing, TOLERANCE)[1]
    room = [(3, 9)] * len(example.spacing)
    mask, reference = (np.pad(m, room) for m in (example.mask, example.reference))
    assert surface_per_class(mask, reference, (1,), example.spacing, TOLERANCE)[1] == bare


def test_nothing_is_warned_of() -> None:
    empty, one = only(IMAGE), only(IMAGE, (3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pair in ((empty, empty), (empty, one), (one, empty), (one, one)):
            scores(*pair, (1,), (1, 1))


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """Masks of up to three classes, with any of them or all missing."""
    ndim = draw(st.integers(2, 3))
    shape = draw(st.tuples(*[st.integers(2, 6)] * ndim))
    present = st.lists(st.integers(0, 3), min_size=1, max_size=4)
    seeds = st.integers(0, 2**32 - 1)
    masks = [np.random.default_rng(draw(seeds)).choice(np.array(draw(present), np.int32), shape) for _ in range(2)]
    spacing = draw(st.tuples(*[st.sampled_from([0.25, 0.5, 1.0, 3.0])] * ndim))
    return Example(masks[0], masks[1], spacing)


CLASSES = (1, 2, 3)
of_any_masks = settings(max_examples=40, deadline=None, database=None)


def measured(e: Example, classes: tuple[int, ...] = CLASSES) -> MaskScores:
    return scores(e.mask, e.reference, classes, e.spacing, TOLERANCE)


def figures(s: MaskScores) -> list[float]:
    return [s.dice, s.iou, s.hd95_mm, s.nsd, s.mean_iou, *s.dice_per_class.values()]


@of_any_masks
@given(examples())
def test_scores_keep_their_range(e: Example) -> None:
    found = measured(e)
    diagonal = math.hypot(*(n * s for n, s in zip(e.mask.shape, e.spacing, strict=True)))
    assert 0 <= found.iou <= found.dice <= 1
    assert 0 <= found.mean_iou <= 1
    assert 0 <= found.nsd <= 1
    assert 0 <= found.hd95_mm <= diagonal * (1 + 1e-12)


@of_any_masks
@given(examples())
def test_mask_and_reference_may_change_places(e: Example) -> None:
    assert figures(measured(Example(e.reference, e.mask, e.spacing))) == pytest.approx(figures(measured(e)))


@of_any_masks
@given(examples())
def test_a_mask_agrees_with_itself(e: Example) -> None:
    found = measured(Example(e.mask, e.mask, e.spacing))
    assert (found.dice, found.iou, found.hd95_mm, found.nsd, found.mean_iou) == (1, 1, 0, 1, 1)


@of_any_masks
@given(examples(), st.permutations(CLASSES))
def test_the_order_and_the_names_of_classes_do_not_matter(e: Example, names: list[int]) -> None:
    rename = np.array([0, *names], np.int32)
    renamed = measured(Example(rename[e.mask], rename[e.reference], e.spacing), tuple(names))
    assert figures(renamed) == pytest.approx(figures(measured(e)))


@of_any_masks
@given(examples(), st.randoms())
def test_the_order_and_the_directions_of_axes_do_not_matter(e: Example, random: object) -> None:
    axes = list(range(e.mask.ndim))
    random.shuffle(axes)  # type: ignore[attr-defined]
    turned = [np.flip(m.transpose(axes), 0) for m in (e.mask, e.reference)]
    spacing = tuple(e.spacing[a] for a in axes)
    assert figures(measured(Example(turned[0], turned[1], spacing))) == pytest.approx(figures(measured(e)))


@of_any_masks
@given(examples(), st.sampled_from([0.25, 2.0, 8.0]))
def test_distances_grow_with_the_spacing(e: Example, factor: float) -> None:
    larger = tuple(s * factor for s in e.spacing)
    found = scores(e.mask, e.reference, CLASSES, larger, TOLERANCE * factor)
    expected = measured(e)
    assert found.hd95_mm == pytest.approx(expected.hd95_mm * factor)
    assert found.nsd == pytest.approx(expected.nsd)


@of_any_masks
@given(examples(), st.floats(0, 5), st.floats(0, 5))
def test_a_larger_tolerance_forgives_more(e: Example, one: float, other: float) -> None:
    strict, lenient = (scores(e.mask, e.reference, CLASSES, e.spacing, t).nsd for t in sorted((one, other)))
    assert strict <= lenient
