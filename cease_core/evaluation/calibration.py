"""Whether a model's probabilities mean what they say, pixel by pixel.

A softmax model decides once a pixel, among all its classes. A sigmoid decides between two, so it is read as a softmax
over 0 and its logit; a multilabel model decides so once a pixel and class. All is worked out from logits in double
precision, so a model that is sure of everything has a finite loss still.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cease_core.attacks.losses import one_hot
from cease_core.errors import CeaseError
from cease_core.models.card import Mode

# Decisions worked on at once: what a processor's cache holds, whatever the volume.
_CHUNK = 1 << 14


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what happens; means over decisions.

    Parameters
    ----------
    ece
        Expected calibration error (Guo et al. 2017, arXiv 1706.04599): by how much the probability of what was decided
        differs from how often it is right, in bins of equal width, weighted by their decisions; in [0, 1].
    nll
        Negative log-likelihood of the truth in nats, 0 or more.
    brier
        Half the squared distance of the probabilities from the truth (Brier 1950), in [0, 1]; for two classes the
        square of the probability that the wrong one got.
    """

    ece: float
    nll: float
    brier: float


@dataclass(frozen=True, eq=False)
class Reliability:
    """Decisions by the probability they were made with, for a diagram.

    Parameters
    ----------
    edges
        Of the bins (bins + 1,), from 0 to 1; a bin holds its upper edge.
    count
        Decisions in each bin (bins,).
    confidence, accuracy
        Mean probability and share of right decisions in each bin (bins,); NaN in an empty one.
    """

    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error; NaN without a decision."""
        if not self.count.sum():
            return math.nan
        gaps = np.nan_to_num(np.abs(self.confidence - self.accuracy))
        return float(np.average(gaps, weights=self.count))


def calibration(logits: Tensor, labels: Tensor, mode: Mode, bins: int = 15) -> Calibration:
    """Measure calibration over all pixels of the images together, background included; give one image for its own.

    Parameters
    ----------
    logits
        Shape (N, K, *spatial).
    labels
        Class ids (N, *spatial); or, for multilabel, floats with one channel a class (N, K, *spatial).
    mode
        Meaning of the K channels.
    bins
        Of the expected calibration error.

    Returns
    -------
    Calibration
        NaN throughout if a logit is NaN, or infinite where softmax has no answer.

    Raises
    ------
    CeaseError
        If the labels do not fit the logits, or there are no bins.
    """
    sums = _sums(logits, labels, mode, bins)
    if math.isnan(sums.nll):
        return Calibration(math.nan, math.nan, math.nan)
    total = int(sums.count.sum())
    return Calibration(sums.reliability.ece, sums.nll / total, sums.brier / total)


def reliability(logits: Tensor, labels: Tensor, mode: Mode, bins: int = 15) -> Reliability:
    """Sort the decisions on all pixels of the images by the probability they were made with.

    Parameters
    ----------
    logits, labels, mode
        As in `calibration`; finite logits.
    bins
        Of equal width.

    Raises
    ------
    CeaseError
        If the labels do not fit the logits, or there are no bins.
    """
    return _sums(logits, labels, mode, bins).reliability


class _Decisions(NamedTuple):
    """Some decisions (decisions,): their losses, the probability of what was decided, and whether it is right."""

    nll: Tensor
    brier: Tensor
    confidence: Tensor
    right: Tensor


@dataclass
class _Sums:
    """Over all decisions, or over those in each bin (bins,)."""

    nll: float
    brier: float
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    right: NDArray[np.float64]

    @property
    def reliability(self) -> Reliability:
        edges = np.linspace(0, 1, len(self.count) + 1)
        with np.errstate(invalid="ignore"):
            return Reliability(edges, self.count, self.confidence / self.count, self.right / self.count)


def _sums(logits: Tensor, labels: Tensor, mode: Mode, bins: int) -> _Sums:
    if bins < 1:
        raise CeaseError(f"bins is {bins}; give at least 1.")
    sums = _Sums(0.0, 0.0, np.zeros(bins, np.int64), np.zeros(bins), np.zeros(bins))
    for some in _decisions(logits, labels, mode):
        sums.nll += float(some.nll.sum())
        sums.brier += float(some.brier.sum())
        index = (some.confidence * bins).ceil().nan_to_num().long().sub(1).clamp(0, bins - 1).numpy()
        sums.count += np.bincount(index, minlength=bins)
        sums.confidence += np.bincount(index, some.confidence.numpy(), bins)
        sums.right += np.bincount(index, some.right.numpy(), bins)
    return sums


def _decisions(logits: Tensor, labels: Tensor, mode: Mode) -> Iterator[_Decisions]:
    target = one_hot(labels.cpu(), mode, logits.shape[1])
    if target.shape != logits.shape:
        raise CeaseError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}; "
            "choose the labels of these images."
        )
    weigh = _of_softmax if mode == "multiclass" else _of_sigmoid
    for scores, truths in zip(logits.detach(), target, strict=True):
        z, t = (x.flatten(1) if mode == "multiclass" else x.flatten() for x in (scores, truths))
        for some, true in zip(z.split(_CHUNK, dim=-1), t.split(_CHUNK, dim=-1), strict=True):
            yield weigh(some.cpu().double(), true)


def _of_softmax(logits: Tensor, truth: Tensor) -> _Decisions:
    log_p = F.log_softmax(logits, dim=0)
    p, true = log_p.exp(), truth.argmax(dim=0)
    return _Decisions(
        nll=-log_p.gather(0, true[None])[0],
        brier=(p - truth).square().sum(dim=0) / 2,
        confidence=p.amax(dim=0),
        right=logits.max(dim=0).indices == true,
    )


def _of_sigmoid(logits: Tensor, truth: Tensor) -> _Decisions:
    wrong = torch.where(truth > 0.5, -logits, logits)
    return _Decisions(
        nll=-F.logsigmoid(-wrong),
        brier=wrong.sigmoid().square(),
        confidence=logits.abs().sigmoid(),
        right=(logits > 0) == (truth > 0.5),
    )
