"""Figures of robustness, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cease_core.evaluation import asr_drop, curve_area, d_censored, interval, paired

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


def test_area_of_a_straight_curve() -> None:
    assert curve_area([1.0], [[0.5], [0.0]], [4, 8]) == pytest.approx(0.5)
    assert curve_area([0.8, 0.6], [[0.8, 0.6], [0.8, 0.6]], [2, 10]) == pytest.approx(0.7)


def test_area_weighs_levels_by_their_distance() -> None:
    assert curve_area([1.0], [[1.0], [0.0]], [2, 10]) == pytest.approx((2 * 1.0 + 8 * 0.5) / 10)


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
