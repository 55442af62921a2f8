"""The critical ε of a voxel is the smallest radius that flips its class."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from attack_subjects import target

from cease_core.attacks import PGD, CriticalMap, Problem, ladder
from cease_core.models import predict_labels

CLEAN = np.array([[1, 1, 2], [0, 0, 2]], np.int32)
MASKS = {
    0.01: np.array([[1, 0, 2], [0, 0, 2]], np.int32),
    0.02: np.array([[1, 2, 1], [0, 0, 2]], np.int32),
    0.03: np.array([[0, 1, 1], [0, 0, 2]], np.int32),
}
EXPECTED = np.array([[0.03, 0.01, 0.02], [np.nan, np.nan, np.nan]], np.float32)


def test_smallest_radius_counts_whatever_the_order() -> None:
    for order in itertools.permutations(MASKS):
        critical = CriticalMap(CLEAN)
        for epsilon in order:
            critical.update(epsilon, MASKS[epsilon])
        np.testing.assert_array_equal(critical.values, EXPECTED)


def test_update_says_what_it_changed() -> None:
    critical = CriticalMap(CLEAN)
    assert critical.update(0.03, MASKS[0.03]).sum() == 2
    assert critical.update(0.02, MASKS[0.02]).tolist() == [[False, True, True], [False, False, False]]
    assert not critical.update(0.02, MASKS[0.02]).any()


def test_a_ladder_fills_it_for_free() -> None:
    t = target("multiclass", 2)
    problem = Problem.pose(t.net, t.images[:1], t.labels[:1], "soft_dice")
    clean = predict_labels(problem.clean().logits, "multiclass").numpy().astype(np.int32)
    critical = CriticalMap(clean)
    final = {}
    for rung in ladder(PGD(steps=6), problem, [0.01, 0.03, 0.05]):
        mask = predict_labels(rung.result.logits, "multiclass").numpy().astype(np.int32)
        critical.update(rung.epsilon, mask)
        final[rung.epsilon] = mask
    for epsilon, mask in final.items():
        assert (critical.values[mask != clean] <= np.float32(epsilon)).all()
    assert np.isnan(critical.values).any()
    assert torch.from_numpy(critical.values).nan_to_num(0).amax() <= 0.05 + 1e-6
