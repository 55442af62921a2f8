"""How robust a model is, in figures: success rates, distortions, curves, and whether a difference is one.

All take Dice per case, an array (cases,) for clean images and (levels, cases) under attack, where each level is
the worst over all attacks at that ε.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import wilcoxon

ELIGIBLE = 0.5


def _arrays(clean: ArrayLike, attacked: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.asarray(clean, dtype=float), np.asarray(attacked, dtype=float)


def eligible(clean: ArrayLike) -> NDArray[np.bool_]:
    """Cases that count for success rates: those with a clean Dice of at least ½."""
    return np.asarray(np.asarray(clean, dtype=float) >= ELIGIBLE)


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
    before, after = _arrays(clean, attacked)
    counts = eligible(before)
    return float(np.mean(after[counts] <= before[counts] / 2)) if counts.any() else float("nan")


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
    before, after = _arrays(clean, attacked)
    levels = np.asarray(epsilons, dtype=float)
    counts = eligible(before)
    if not counts.any():
        return float("nan")
    fallen = after[:, counts] <= before[counts] / 2
    first = np.where(fallen.any(axis=0), levels[fallen.argmax(axis=0)], levels[-1])
    return float(first.mean())


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
    before, after = _arrays(clean, attacked)
    levels = np.concatenate([[0.0], np.asarray(epsilons, dtype=float)])
    heights = np.concatenate([[before.mean()], after.mean(axis=1)])
    return float(np.trapezoid(heights, levels) / levels[-1])


@dataclass(frozen=True)
class Paired:
    """A difference between two models on the same cases.

    Parameters
    ----------
    mean
        Of first minus second.
    low, high
        95 % interval of the mean, by bootstrap over cases.
    p
        Two-sided, Wilcoxon's signed-rank test; 1 where all differences are 0.
    cases
        How many pairs.
    """

    mean: float
    low: float
    high: float
    p: float
    cases: int


def interval(values: ArrayLike, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` (cases,), by percentile bootstrap."""
    data = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(data), (draws, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def paired(first: ArrayLike, second: ArrayLike) -> Paired:
    """Compare two models case by case.

    Parameters
    ----------
    first, second
        One value a case (cases,), in the same order; independent cases, such as patients.
    """
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    p = 1.0 if not difference.any() else float(wilcoxon(difference).pvalue)
    return Paired(float(difference.mean()), *interval(difference), p, len(difference))
