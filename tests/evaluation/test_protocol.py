"""Figures of robustness, against values worked out by hand."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from cease_core.evaluation import (
    asr_drop,
    asr_medis,
    asr_pixel,
    case_areas,
    curve_area,
    curve_interval,
    d_censored,
    d_success,
    independent,
    interval,
    paired,
    smallest_epsilon,
)

CLEAN = [0.9, 0.8, 0.6, 0.4]
LEVELS = [2, 4, 8]
# The last case is not eligible, whatever becomes of it.
ATTACKED = [
    [0.85, 0.40, 0.50, 0.0],
    [0.50, 0.10, 0.45, 0.0],
    [0.45, 0.00, 0.31, 0.0],
]


def test_success_is_a_dice_of_half_the_clean_one_or_lower() -> None:
    assert [asr_drop(CLEAN, level) for level in ATTACKED] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_without_an_eligible_case_there_is_no_rate() -> None:
    assert math.isnan(asr_drop([0.4], [0.0]))
    assert math.isnan(d_censored([0.4], [[0.0]], [8]))


def test_distortion_is_the_first_level_that_succeeds_and_the_last_where_none_does() -> None:
    assert d_censored(CLEAN, ATTACKED, LEVELS) == pytest.approx((8 + 2 + 8) / 3)


def test_each_cases_smallest_epsilon() -> None:
    found = smallest_epsilon(CLEAN, ATTACKED, LEVELS)
    assert found.tolist()[:3] == [8, 2, math.inf]
    assert math.isnan(found[3])


def test_distortion_of_the_successes_alone() -> None:
    assert d_success(CLEAN, ATTACKED, LEVELS) == pytest.approx((8 + 2) / 2)
    assert math.isnan(d_success([0.8], [[0.8], [0.5]], [4, 8]))


def test_medis_counts_every_case_at_a_mean_iou_of_half_or_lower() -> None:
    assert asr_medis([0.9, 0.51, 0.5, 0.2]) == 0.5
    assert asr_medis([0.9, math.nan, 0.2]) == 0.5
    assert math.isnan(asr_medis([]))


def test_by_pixels_the_rate_is_the_mean_share() -> None:
    assert asr_pixel([0.1, 0.4, math.nan]) == pytest.approx(0.25)
    assert math.isnan(asr_pixel([math.nan]))


def test_a_case_that_could_not_be_measured_counts_nowhere() -> None:
    clean = [*CLEAN, math.nan, 0.9]
    attacked = [[*level, 0.0, 0.0] for level in ATTACKED]
    attacked[1][-1] = math.nan
    assert asr_drop(clean, attacked[0]) == pytest.approx(2 / 4)
    assert asr_drop(clean, attacked[1]) == asr_drop(CLEAN, ATTACKED[1])
    assert d_censored(clean, attacked, LEVELS) == d_censored(CLEAN, ATTACKED, LEVELS)
    assert d_success(clean, attacked, LEVELS) == d_success(CLEAN, ATTACKED, LEVELS)
    assert curve_area(clean, attacked, LEVELS) == pytest.approx(curve_area(CLEAN, ATTACKED, LEVELS))


def test_area_of_a_straight_curve() -> None:
    assert curve_area([1.0], [[0.5], [0.0]], [4, 8]) == pytest.approx(0.5)
    assert curve_area([0.8, 0.6], [[0.8, 0.6], [0.8, 0.6]], [2, 10]) == pytest.approx(0.7)


def test_area_weighs_levels_by_their_distance() -> None:
    assert curve_area([1.0], [[1.0], [0.0]], [2, 10]) == pytest.approx((2 * 1.0 + 8 * 0.5) / 10)


def test_the_area_of_the_mean_is_the_mean_of_the_areas() -> None:
    areas = case_areas(CLEAN, ATTACKED, LEVELS)
    by_hand = (2 * (0.9 + 0.85) / 2 + 2 * (0.85 + 0.5) / 2 + 4 * (0.5 + 0.45) / 2) / 8
    assert areas[0] == pytest.approx(by_hand)
    assert areas.shape == (4,)
    assert curve_area(CLEAN, ATTACKED, LEVELS) == pytest.approx(areas.mean())


def test_a_paired_comparison() -> None:
    first = np.linspace(0.5, 0.6, 12)
    result = paired(first, first - 0.05)
    assert result.cases == 12
    assert result.mean == pytest.approx(0.05)
    assert result.low == pytest.approx(0.05)
    assert result.high == pytest.approx(0.05)
    # All twelve signs agree: two of the 2¹² equally likely patterns are as extreme.
    assert result.p == pytest.approx(2 / 2**12)


def test_no_difference_is_none() -> None:
    same = paired([0.5, 0.6], [0.5, 0.6])
    assert (same.mean, same.p) == (0.0, 1.0)


def test_the_interval_holds_the_mean_and_narrows_with_cases() -> None:
    values = np.random.default_rng(3).normal(0.4, 0.1, 200)
    low, high = interval(values)
    few = interval(values[:20])
    assert low < values.mean() < high
    assert high - low < few[1] - few[0]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(200), rel=0.1)
    assert interval(values) == (low, high)


def test_cases_of_one_patient_are_one_value() -> None:
    values, patients = [0.2, 0.9, 0.4, math.nan, math.nan], ["b", "a", "b", "a", "c"]
    assert independent(values, patients).tolist() == pytest.approx([0.9, 0.3])
    assert independent(values).tolist() == [0.2, 0.9, 0.4]


def test_more_slices_of_a_patient_say_nothing_more() -> None:
    values = np.random.default_rng(5).normal(0.5, 0.1, 12)
    names = [f"patient {i:02}" for i in range(12)]
    slices, whose = np.repeat(values, 9), np.repeat(names, 9)
    assert interval(slices, patients=whose) == pytest.approx(interval(values))
    low, high = interval(slices)
    assert high - low < np.ptp(interval(values)) / 2
    clustered, plain = paired(slices, slices - values.mean() / 10, whose), paired(values, values - values.mean() / 10)
    assert clustered.cases == 12
    assert (clustered.mean, clustered.p) == pytest.approx((plain.mean, plain.p))


def test_pairs_that_were_not_measured_are_left_out() -> None:
    first, second = [0.5, 0.6, math.nan, 0.9], [0.4, math.nan, 0.1, 0.7]
    result = paired(first, second)
    assert (result.mean, result.cases) == (pytest.approx(0.15), 2)
    nothing = paired([math.nan], [0.5])
    assert nothing.cases == 0
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.p)


def test_an_interval_belongs_to_the_mean_beside_it_however_unequal_patients_are() -> None:
    values = np.array([0.9] * 10 + [0.5, 0.52, 0.48, 0.5, 0.51])
    low, high = interval(values, patients=["a"] * 10 + ["b", "c", "d", "e", "f"])
    assert low < values.mean() < high
    assert low < 0.55  # where the patient with ten slices was not drawn


def test_one_patient_has_no_interval() -> None:
    assert all(math.isnan(edge) for edge in interval([0.4, 0.5, 0.6], patients=["a", "a", "a"]))
    assert all(math.isnan(edge) for edge in interval([0.4]))
    one = paired([0.9, 0.8], [0.1, 0.2], ["a", "a"])
    assert (one.mean, one.cases) == (pytest.approx(0.7), 1)
    assert math.isnan(one.low)


def test_memory_of_an_interval_does_not_grow_with_its_cases() -> None:
    values = np.random.default_rng(1).random(2000)
    tracemalloc.start()
    interval(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 2**20


def test_a_band_is_the_interval_of_each_level() -> None:
    curve = np.random.default_rng(4).random((3, 10))
    low, high = curve_interval(curve)
    assert list(zip(low, high, strict=True)) == [interval(level) for level in curve]
    patients = np.arange(10) // 2
    low, high = curve_interval(curve, patients=patients)
    assert list(zip(low, high, strict=True)) == [interval(level, patients=patients) for level in curve]


def test_a_band_of_parallel_levels_is_equally_wide() -> None:
    clean = np.random.default_rng(6).random(10)
    low, high = curve_interval([clean, clean - 0.3])
    assert high - low == pytest.approx([high[0] - low[0]] * 2)


def test_there_is_no_interval_of_nothing() -> None:
    assert all(math.isnan(edge) for edge in interval([math.nan]))
    assert all(math.isnan(edge) for edge in interval([], patients=[]))
