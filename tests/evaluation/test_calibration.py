"""Calibration against values worked out by hand, in each mode and far beyond what single precision tells apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.evaluation import calibration, reliability
from cease_core.models import Mode

# Sigmoids of these are .8, .4 and .9.
ODDS = [math.log(4), math.log(2 / 3), math.log(9)]


def row(*channels: list[float]) -> Tensor:
    """Logits (1, K, 1, pixels)."""
    return torch.tensor(channels, dtype=torch.float64)[None, :, None]


def ids(*labels: int) -> Tensor:
    return torch.tensor([[labels]])


def test_sigmoids_by_hand() -> None:
    found = calibration(row(ODDS), ids(1, 1, 0), "binary")
    assert found.nll == pytest.approx(-(math.log(0.8) + math.log(0.4) + math.log(0.1)) / 3)
    assert found.brier == pytest.approx((0.2**2 + 0.6**2 + 0.9**2) / 3)
    # Decided with .8 (right), .6 (wrong) and .9 (wrong), each alone in its bin.
    assert found.ece == pytest.approx((0.2 + 0.6 + 0.9) / 3)


def test_softmax_by_hand() -> None:
    # Scores (.5, .25, .25) and (.2, .2, .6) for pixels of classes 0 and 1.
    logits = row([math.log(2), 0], [0, 0], [0, math.log(3)])
    found = calibration(logits, ids(0, 1), "multiclass")
    assert found.nll == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2)
    assert found.brier == pytest.approx((0.5**2 + 2 * 0.25**2 + 0.2**2 + 0.8**2 + 0.6**2) / 2 / 2)
    assert found.ece == pytest.approx((0.5 + 0.6) / 2)


def test_multilabel_decides_once_a_pixel_and_class() -> None:
    logits = row(ODDS, ODDS[::-1])
    overlapping = torch.tensor([[[[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]]])
    found = calibration(logits, overlapping, "multilabel")
    each = [calibration(logits[:, k : k + 1], overlapping[:, k].long(), "binary") for k in (0, 1)]
    assert found.nll == pytest.approx((each[0].nll + each[1].nll) / 2)
    assert found.brier == pytest.approx((each[0].brier + each[1].brier) / 2)
    ids_alone = calibration(logits, ids(1, 0, 2), "multilabel")
    channels = torch.tensor([[[[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    assert ids_alone == calibration(logits, channels, "multilabel")


def test_decisions_of_one_bin_are_averaged_before_they_are_compared() -> None:
    # Two right and two wrong, all with .5 or a little more: the bin's accuracy is ½.
    logits = row([0.01, 0.01, 0.01, 0.01])
    found = calibration(logits, ids(1, 0, 1, 0), "binary")
    assert found.ece == pytest.approx(torch.tensor(0.01, dtype=torch.float64).sigmoid().item() - 0.5)


def test_probabilities_that_come_true_are_calibrated() -> None:
    # Of ten decisions with .8 eight are right, of ten with .6 six.
    logits = row([math.log(4)] * 10 + [math.log(1.5)] * 10)
    found = calibration(logits, ids(*[1] * 8, *[0] * 2, *[1] * 6, *[0] * 4), "binary")
    assert found.ece == pytest.approx(0, abs=1e-12)
    assert found.nll > 0


def test_a_diagram() -> None:
    found = reliability(row([*ODDS, math.log(4)]), ids(1, 1, 0, 0), "binary", bins=4)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.count.tolist() == [0, 0, 1, 3]
    assert found.confidence[2:].tolist() == pytest.approx([0.6, (0.8 + 0.9 + 0.8) / 3])
    assert found.accuracy[2:].tolist() == pytest.approx([0, 1 / 3])
    assert np.isnan(found.confidence[:2]).all()
    assert found.ece == pytest.approx((0.6 + 3 * (2.5 / 3 - 1 / 3)) / 4)


def test_a_bin_holds_its_upper_edge() -> None:
    assert reliability(row([0.0]), ids(0), "binary", bins=4).count.tolist() == [0, 1, 0, 0]
    assert reliability(row([100.0]), ids(1), "binary", bins=4).count.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("z", [40.0, 1000.0, 1e6])
def test_a_model_sure_of_everything_has_a_finite_loss(z: float, dtype: torch.dtype) -> None:
    right, wrong = (calibration(row([s, -s]).to(dtype), ids(1, 0), "binary") for s in (z, -z))
    assert right.nll == pytest.approx(math.exp(-z), rel=1e-6)
    assert wrong.nll == pytest.approx(z, rel=1e-6)
    assert (right.brier, wrong.brier) == pytest.approx((0, 1))
    assert (right.ece, wrong.ece) == pytest.approx((0, 1))
    wrong = calibration(row([z], [0], [-z]).to(dtype), ids(2), "multiclass")
    assert wrong.nll == pytest.approx(2 * z, rel=1e-6)
    assert (wrong.ece, wrong.brier) == pytest.approx((1, 1))


def test_certainty_beyond_all_bounds() -> None:
    found = calibration(row([math.inf, -math.inf]), ids(1, 0), "binary")
    assert (found.ece, found.nll, found.brier) == (0, 0, 0)
    found = calibration(row([math.inf]), ids(0), "binary")
    assert (found.ece, found.nll, found.brier) == (1, math.inf, 1)


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_of_a_model_that_answers_nan_nothing_is_known(mode: Mode) -> None:
    logits = torch.zeros(1, 1 if mode == "binary" else 2, 3, 3)
    logits[0, 0, 1, 1] = math.nan
    found = calibration(logits, torch.zeros(1, 3, 3, dtype=torch.long), mode)
    assert all(math.isnan(v) for v in (found.ece, found.nll, found.brier))


def test_many_pixels_are_counted_like_few() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 90, 101, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 90, 101), generator=generator)
    p = z.softmax(dim=1).movedim(1, -1).reshape(-1, 4).numpy()
    y = labels.flatten().numpy()
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(15)]
    found = calibration(z, labels, "multiclass")
    assert found.ece == pytest.approx(sum(gaps) / len(y))
    assert found.nll == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean())
    assert found.brier == pytest.approx(((p - np.eye(4)[y]) ** 2).sum(axis=1).mean() / 2)


seeds = st.integers(0, 2**32 - 1)
of_any_logits = settings(max_examples=25, deadline=None, database=None)


def drawn(seed: int, outputs: int, highest: int) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    scale = 10 ** generator.uniform(-2, 3)
    shape = (2, 5, 4, 3)[: generator.integers(3, 5)]
    logits = torch.from_numpy(generator.normal(0, scale, (shape[0], outputs, *shape[1:])))
    return logits, torch.from_numpy(generator.integers(0, highest + 1, shape))


@of_any_logits
@given(seeds)
def test_a_sigmoid_is_a_softmax_over_nought_and_its_logit(seed: int) -> None:
    z, labels = drawn(seed, 1, 1)
    one = calibration(z, labels, "binary")
    two = calibration(torch.cat((torch.zeros_like(z), z), dim=1), labels, "multiclass")
    assert (one.ece, one.nll, one.brier) == pytest.approx((two.ece, two.nll, two.brier), abs=1e-12)


@of_any_logits
@given(seeds)
def test_figures_keep_their_range(seed: int) -> None:
    found = calibration(*drawn(seed, 3, 2), "multiclass")
    assert 0 <= found.ece <= 1
    assert 0 <= found.brier <= 1
    assert found.nll >= 0


@of_any_logits
@given(seeds, st.permutations([0, 1, 2]), st.floats(-50, 50))
def test_neither_the_order_of_classes_nor_a_common_shift_matters(seed: int, order: list[int], shift: float) -> None:
    z, labels = drawn(seed, 3, 2)
    one = calibration(z, labels, "multiclass")
    other = calibration(z[:, order] + shift, torch.tensor(order).argsort()[labels], "multiclass")
    assert (one.ece, one.nll, one.brier) == pytest.approx((other.ece, other.nll, other.brier), abs=1e-9)


@pytest.mark.parametrize(
    ("shape", "bins", "sentence"),
    [
        ((1, 4, 5), 15, r"labels of shape \(1, 4, 5\) do not fit logits of shape \(1, 1, 4, 4\); choose the labels"),
        ((2, 4, 4), 15, r"labels of shape \(2, 4, 4\) do not fit"),
        ((1, 4, 4), 0, "bins is 0; give at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], bins: int, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        calibration(torch.zeros(1, 1, 4, 4), torch.zeros(shape, dtype=torch.long), "binary", bins)
