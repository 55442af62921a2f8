"""How robust a model is, in figures: success rates, distortions, curves, and whether a difference is one.

Most take Dice per case, an array (cases,) for clean images and (levels, cases) under attack, where each level is the
worst over all attacks up to that ε. A case that is NaN anywhere could not be measured and counts nowhere.

Cases of one patient are no independent evidence. Where ``patients`` are given, intervals draw patients with all their
cases, and tests compare the means over each patient's cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import wilcoxon

ELIGIBLE = 0.5
MEDIS_THRESHOLD = 0.5

FloatArray = NDArray[np.float64]

_AT_ONCE = 1 << 20
"""Values that a bootstrap holds at once, whatever the number of cases."""


def _floats(values: ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float64)


def _mean(values: FloatArray) -> float:
    """Mean of what was measured; NaN if nothing was."""
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else float("nan")


def eligible(clean: ArrayLike) -> NDArray[np.bool_]:
    """Cases that count for success rates: those with a clean Dice of at least ½."""
    return np.asarray(_floats(clean) >= ELIGIBLE)


def asr_drop(clean: ArrayLike, attacked: ArrayLike) -> float:
    """Attack success rate: share of the eligible cases whose Dice falls to half the clean one or lower.

    Parameters
    ----------
    clean, attacked
        Dice (cases,), at one ε.

    Returns
    -------
    float
        In [0, 1]; NaN without an eligible case.
    """
    before, after = _floats(clean), _floats(attacked)
    fallen = np.where(np.isnan(after), np.nan, after <= before / 2)
    return _mean(fallen[eligible(before)])


def asr_medis(mean_iou: ArrayLike) -> float:
    """Attack success rate of MedIS (doi 10.1007/s11042-023-15575-8): share of all cases whose mean IoU is at most ½.

    It counts a case that the clean image loses, and forgives a badly damaged small structure, since the background's
    IoU counts as much as the structure's.

    Parameters
    ----------
    mean_iou
        Over the background and the classes (cases,), at one ε; see `MaskScores`.

    Returns
    -------
    float
        In [0, 1]; NaN without a case.
    """
    values = _floats(mean_iou)
    return _mean(np.where(np.isnan(values), np.nan, values <= MEDIS_THRESHOLD))


def asr_pixel(flipped: ArrayLike) -> float:
    """Attack success rate by pixels: mean over the cases of the share of right pixels that were turned.

    Parameters
    ----------
    flipped
        Shares (cases,), at one ε; see `cease_core.evaluation.metrics.flipped`.

    Returns
    -------
    float
        In [0, 1]; NaN without a case.
    """
    return _mean(_floats(flipped))


def smallest_epsilon(clean: ArrayLike, attacked: ArrayLike, epsilons: ArrayLike) -> FloatArray:
    """Find the smallest ε at which each case falls to half its clean Dice or lower.

    Parameters
    ----------
    clean
        Dice (cases,).
    attacked
        Dice (levels, cases).
    epsilons
        Of the levels, rising.

    Returns
    -------
    FloatArray
        One for each case (cases,); infinite where none succeeds, NaN where a case is not eligible.
    """
    before, after, levels = _floats(clean), _floats(attacked), _floats(epsilons)
    fallen = after <= before / 2
    first = np.where(fallen.any(axis=0), levels[fallen.argmax(axis=0)], np.inf)
    return np.where(eligible(before) & ~np.isnan(after).any(axis=0), first, np.nan)


def d_censored(clean: ArrayLike, attacked: ArrayLike, epsilons: ArrayLike) -> float:
    """Mean over eligible cases of the smallest ε that succeeds (see `asr_drop`), at most the largest tried.

    Parameters
    ----------
    clean
        Dice (cases,).
    attacked
        Dice (levels, cases).
    epsilons
        Of the levels, rising.

    Returns
    -------
    float
        In the unit of ``epsilons``; NaN without an eligible case.
    """
    return _mean(np.minimum(smallest_epsilon(clean, attacked, epsilons), _floats(epsilons)[-1]))


def d_success(clean: ArrayLike, attacked: ArrayLike, epsilons: ArrayLike) -> float:
    """Mean over the successes alone of the smallest ε that succeeds (see `asr_drop`).

    What resists does not count, so a more robust model may have the lower figure; `d_censored` has no such fault.

    Parameters
    ----------
    clean
        Dice (cases,).
    attacked
        Dice (levels, cases).
    epsilons
        Of the levels, rising.

    Returns
    -------
    float
        In the unit of ``epsilons``; NaN where nothing succeeds.
    """
    smallest = smallest_epsilon(clean, attacked, epsilons)
    return _mean(smallest[np.isfinite(smallest)])


def case_areas(clean: ArrayLike, attacked: ArrayLike, epsilons: ArrayLike) -> FloatArray:
    """Area under each case's Dice over ε from 0 to the largest, over that range; in [0, 1].

    Parameters
    ----------
    clean
        Dice (cases,).
    attacked
        Dice (levels, cases).
    epsilons
        Of the levels, rising and above 0.

    Returns
    -------
    FloatArray
        One for each case (cases,).
    """
    levels = np.concatenate([[0.0], _floats(epsilons)])
    heights = np.concatenate([_floats(clean)[None], _floats(attacked)])
    return np.asarray(np.trapezoid(heights, levels, axis=0) / levels[-1])


def curve_area(clean: ArrayLike, attacked: ArrayLike, epsilons: ArrayLike) -> float:
    """Area under mean Dice over ε from 0 to the largest, over that range; in [0, 1].

    Parameters
    ----------
    clean
        Dice (cases,).
    attacked
        Dice (levels, cases).
    epsilons
        Of the levels, rising and above 0.
    """
    return _mean(case_areas(clean, attacked, epsilons))


@dataclass(frozen=True)
class Paired:
    """A difference between two models on the same cases.

    Parameters
    ----------
    mean
        Of first minus second.
    low, high
        95 % interval of the mean, by bootstrap over cases or patients; NaN for fewer than two.
    p
        Two-sided, Wilcoxon's signed-rank test; 1 where all differences are 0.
    cases
        How many pairs: of cases, or of patients where these are given.
    """

    mean: float
    low: float
    high: float
    p: float
    cases: int


def independent(values: ArrayLike, patients: ArrayLike | None = None) -> FloatArray:
    """Reduce cases to independent values: those measured, or the mean of each patient's.

    Parameters
    ----------
    values
        One for each case (cases,).
    patients
        Whose case each is (cases,); none if every case is of another.

    Returns
    -------
    FloatArray
        In the order of the cases, or of the patients' names; who has no measured case is left out.
    """
    data = _floats(values)
    measured = ~np.isnan(data)
    if patients is None:
        return data[measured]
    _, whose = np.unique(np.asarray(patients)[measured], return_inverse=True)
    return np.asarray(np.bincount(whose, data[measured]) / np.bincount(whose))


def interval(
    values: ArrayLike, *, patients: ArrayLike | None = None, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` (cases,), by percentile bootstrap over cases or ``patients`` (cases,).

    A patient is drawn with all of its cases, so that the interval is of the mean over cases, however unequal the
    patients are. NaN with fewer than two to draw from.
    """
    data = _floats(values)
    measured = ~np.isnan(data)
    whose = np.arange(measured.sum())
    if patients is not None:
        _, whose = np.unique(np.asarray(patients)[measured], return_inverse=True)
    sums, counts = np.bincount(whose, data[measured]), np.bincount(whose)
    if len(sums) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    step = max(1, _AT_ONCE // len(sums))
    for first in range(0, draws, step):
        picks = generator.integers(0, len(sums), (min(step, draws - first), len(sums)))
        means[first : first + step] = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def curve_interval(
    values: ArrayLike, *, patients: ArrayLike | None = None, draws: int = 10_000, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """95 % band of a curve: the `interval` of each level, from the same draws.

    Parameters
    ----------
    values
        Such as Dice (levels, cases).
    patients
        Whose case each is (cases,).

    Returns
    -------
    tuple
        Lower and upper edge, each (levels,).
    """
    edges = [interval(level, patients=patients, draws=draws, seed=seed) for level in _floats(values)]
    low, high = np.array(edges, dtype=np.float64).reshape(-1, 2).T
    return low, high


def paired(first: ArrayLike, second: ArrayLike, patients: ArrayLike | None = None) -> Paired:
    """Compare two models case by case.

    Parameters
    ----------
    first, second
        One value a case (cases,), in the same order.
    patients
        Whose case each is (cases,); none if every case is of another.
    """
    difference = independent(_floats(first) - _floats(second), patients)
    if not difference.size:
        return Paired(mean=float("nan"), low=float("nan"), high=float("nan"), p=float("nan"), cases=0)
    p = 1.0 if not difference.any() else float(wilcoxon(difference).pvalue)
    return Paired(float(difference.mean()), *interval(difference), p, len(difference))
