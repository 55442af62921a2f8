"""Projected gradients, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cease_core.training.balance import pcgrad


def gradient(*slopes: tuple[float, float], seed: int = 0) -> list[float]:
    """What PCGrad makes of linear losses with these gradients."""
    weights = nn.Parameter(torch.zeros(2))
    unused = nn.Parameter(torch.zeros(3))
    pcgrad([(weights * torch.tensor(s)).sum() for s in slopes], [weights, unused], seed)
    assert unused.grad is not None
    assert not unused.grad.any()
    assert weights.grad is not None
    return weights.grad.tolist()


def test_gradients_that_agree_are_added() -> None:
    assert gradient((1, 0), (1, 2)) == [2, 2]


def test_gradients_in_conflict_lose_what_they_have_against_each_other() -> None:
    # (1, 0)·(−1, 1) = −1: the first becomes (1, 0) + ½ (−1, 1), the second (−1, 1) + (1, 0).
    assert gradient((1, 0), (-1, 1)) == pytest.approx([0.5, 1.5])


def test_opposite_gradients_cancel() -> None:
    assert gradient((1, 2), (-2, -4)) == pytest.approx([0, 0], abs=1e-6)


def test_the_order_in_which_three_meet_is_the_seed_s() -> None:
    slopes = ((1.0, 0.0), (-1.0, 0.2), (-0.3, -1.0))
    assert gradient(*slopes, seed=1) == gradient(*slopes, seed=1)
    assert len({tuple(gradient(*slopes, seed=s)) for s in range(20)}) > 1
