"""Lesions, what a mask finds of them, and their classes of size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label, regionprops

from cease_core.errors import CeaseError
from cease_core.evaluation import found, lesions, strata

REFERENCE = np.array(
    [
        [0, 1, 1, 0, 0, 2],
        [1, 0, 0, 0, 0, 2],
        [0, 0, 0, 1, 2, 2],
        [0, 0, 0, 1, 0, 0],
        [2, 0, 0, 0, 0, 0],
    ],
    np.int32,
)


def test_voxels_that_touch_by_a_corner_are_one_lesion_and_classes_are_apart() -> None:
    parts = lesions(REFERENCE, (1, 2), (1, 1))
    assert parts.classes == (1, 1, 2, 2)
    assert parts.numbers.tolist() == [
        [0, 1, 1, 0, 0, 3],
        [1, 0, 0, 0, 0, 3],
        [0, 0, 0, 2, 3, 3],
        [0, 0, 0, 2, 0, 0],
        [4, 0, 0, 0, 0, 0],
    ]


def test_sizes_are_areas_or_volumes() -> None:
    assert lesions(REFERENCE, (1, 2), (0.5, 3)).sizes == (4.5, 3.0, 6.0, 1.5)
    assert lesions(REFERENCE[None], (2,), (10, 0.5, 3)).sizes == (60.0, 15.0)


def test_a_class_that_was_not_asked_for_has_none() -> None:
    assert lesions(REFERENCE, (2,), (1, 1)).classes == (2, 2)
    nothing = lesions(REFERENCE, (3,), (1, 1))
    assert (nothing.classes, nothing.sizes, found(REFERENCE, nothing)) == ((), (), [])


def test_the_share_that_a_mask_finds() -> None:
    parts = lesions(REFERENCE, (1, 2), (1, 1))
    mask = np.zeros_like(REFERENCE)
    mask[0] = 1  # two of the first lesion's three voxels, and one of the third's in the wrong class
    mask[2] = 2  # two of the third's four, and one of the second's in the wrong class
    assert found(mask, parts) == pytest.approx([2 / 3, 0, 2 / 4, 0])
    assert found(REFERENCE, parts) == [1, 1, 1, 1]


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None, database=None)
@given(seeds, st.integers(2, 3))
def test_lesions_are_those_of_simple_itk_and_scikit_image(seed: int, ndim: int) -> None:
    generator = np.random.default_rng(seed)
    reference = (generator.random((6, 7, 5)[:ndim]) < generator.uniform(0, 0.5)).astype(np.int32)
    parts = lesions(reference, (1,), (2.0, 0.5, 3.0)[:ndim])
    components = sitk.ConnectedComponent(sitk.GetImageFromArray(reference), True)
    assert np.array_equal(parts.numbers > 0, reference > 0)
    assert np.array_equal(partition(parts.numbers), partition(sitk.GetArrayFromImage(components)))
    theirs = regionprops(label(reference, connectivity=ndim), spacing=(2.0, 0.5, 3.0)[:ndim])
    assert sorted(parts.sizes) == pytest.approx(sorted(r.area for r in theirs))
    mask = (generator.random(reference.shape) < 0.5).astype(np.int32)
    by_hand = [np.mean(mask[parts.numbers == n + 1]) for n in range(len(parts.sizes))]
    assert found(mask, parts) == pytest.approx(by_hand)


def partition(numbers: np.ndarray) -> np.ndarray:
    """Which voxels share a number, whatever it is."""
    flat = numbers.ravel()
    return flat[:, None] == flat[None]


def test_three_classes_of_size_at_the_terciles() -> None:
    groups = strata([5, 70, 900, 12, 60, 1000])
    # Terciles of 5, 12, 60, 70, 900, 1000: places 5/3 and 10/3 from 0 on.
    assert groups.edges == (44.0, 350.0)
    assert groups.index.tolist() == [0, 1, 2, 0, 1, 2]
    assert groups.titles("mm²") == ("small (below 44 mm²)", "medium (44 to 350 mm²)", "large (from 350 mm²)")


def test_it_is_the_rounded_bounds_that_divide() -> None:
    # The lower tercile, 104, is shown as 100, so 102 is medium.
    groups = strata([1, 102, 105, 3000, 3000, 3000])
    assert groups.edges == (100.0, 3000.0)
    assert groups.index.tolist() == [0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("size", "shown"), [(0.01234, "0.012"), (1.0, "1"), (123456.0, "120,000"), (9.96, "10"), (2.5, "2.5")]
)
def test_bounds_have_two_digits(size: float, shown: str) -> None:
    assert strata([size]).titles("mm³")[0] == f"small (below {shown} mm³)"


def test_bounds_of_another_data_set() -> None:
    groups = strata([5, 10, 20, 19], edges=(10, 20))
    assert groups.edges == (10, 20)
    assert groups.index.tolist() == [0, 1, 2, 1]


def test_few_lesions_and_none() -> None:
    assert strata([7.0]).index.tolist() == [2]
    assert strata([]).index.tolist() == []
    assert all(math.isnan(edge) for edge in strata([]).edges)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CeaseError, match=r"spacing \(1, 1, 1\) does not fit a mask of shape \(5, 6\); give one length"):
        lesions(REFERENCE, (1,), (1, 1, 1))
    with pytest.raises(CeaseError, match=r"mask has shape \(5, 5\) and its reference \(5, 6\); compare masks on"):
        found(REFERENCE[:, :5], lesions(REFERENCE, (1,), (1, 1)))
    with pytest.raises(CeaseError, match=r"bounds \(20, 10\) fall; give the lower one first"):
        strata([1.0], edges=(20, 10))
