"""How a model's gradient behaves on an unattacked scan: whether an attack that follows it can be trusted.

Masked gradients come in three kinds (Athalye, Carlini & Wagner 2018, arXiv 1802.00420, section 3): shattered ones,
which are missing or wrong; random ones; and those that vanish. A probe has a figure for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cease_core.attacks.criteria import decide
from cease_core.attacks.losses import foreground, soft_dice
from cease_core.attacks.losses.pixelwise import margins
from cease_core.attacks.problem import Problem
from cease_core.errors import CeaseError
from cease_core.models.segmenter import Segmenter

STEP = 1 / 255
"""Of the finite difference, in window fractions: the shortest step that attacks take by default, and one grey level.

A shorter one would call a model honest whose gradient is right only where no attack will ever look, and one that reads
8-bit pictures masked although attacks see through its rounding.
"""

SAME = 1e-5
"""How far two answers to one image may differ, relative to the largest logit: float32 sums in another order."""

FLOOR = 1e-7
"""Gain that a gradient has to promise to be compared with one: below it lies the rounding of the logits."""

_CUT = ("no gradient reaches the image", "does not require grad", "appears to not have been used")
"""How a problem says that nothing arrives, and torch, where not the loss itself was cut off."""


@dataclass(frozen=True)
class Probe:
    """What the gradient at one unattacked scan is worth.

    Parameters
    ----------
    reached
        Whether there is a path for a gradient from the loss back to the image; one of zeros counts.
    zero_gradient
        Share of values whose gradient is exactly 0 or not finite, among those of the reference and of the found
        structures (of the image, if there are none). Elsewhere an honest gradient may end: beyond the receptive
        field, or in air that the model clips. 1 where nothing is reached.
    repeats
        Whether the model gives one image the same logits each time, with a gradient and without.
    rise
        What the loss gains by a step of `STEP` along the gradient's sign, over what the gradient promises: about 1
        for a smooth model, at most 0 where the gradient leads nowhere. NaN if it promises nothing.
    saturated
        Share of decisions so sure that the probability of the other answer, exp(−margin), is exactly 0 in float32.
        No loss of probabilities, on logits or not, has a slope there.
    logit_scale
        Median absolute logit.
    """

    reached: bool
    zero_gradient: float
    repeats: bool
    rise: float
    saturated: float
    logit_scale: float


def probe(model: Segmenter, images: Tensor, labels: Tensor) -> Probe:
    """Look at a model's gradient on one unattacked scan.

    The loss is soft Dice: of those that attacks ascend it alone is smooth, so that a finite difference has something
    to agree with. Losses over the pixels that are still right jump as soon as a pixel turns.

    Parameters
    ----------
    model
        As the attacks see it.
    images
        Window fractions, shape (1, C, *spatial).
    labels
        Class ids, shape (1, *spatial).

    Raises
    ------
    CeaseError
        If image, labels and model do not fit; a gradient that does not arrive is an answer, not an error.
    """
    problem = Problem.pose(model, images, labels, soft_dice)
    nothing = torch.zeros_like(problem.images)
    logits = problem.clean().logits
    answers = [problem.look(nothing).logits]
    slope = None
    try:
        slope, answer = problem.gradient(nothing)
        answers.append(answer.logits)
    except (CeaseError, RuntimeError) as error:
        if not any(sign in str(error) for sign in _CUT):
            raise
    return Probe(
        reached=slope is not None,
        zero_gradient=1.0 if slope is None else _zeros(problem, slope, logits),
        repeats=all(_same(logits, other) for other in answers),
        rise=math.nan if slope is None else _rise(problem, slope, logits),
        saturated=_saturated(logits, problem),
        logit_scale=float(logits.abs().median()),
    )


def _zeros(problem: Problem, slope: Tensor, logits: Tensor) -> float:
    mask = decide(logits, problem.mode) | (problem.labels > 0.5)
    structure = foreground(mask, problem.mode).any(dim=1, keepdim=True).expand_as(slope)
    values = slope[structure] if structure.any() else slope
    return float(((values == 0) | ~values.isfinite()).float().mean())


def _rise(problem: Problem, slope: Tensor, logits: Tensor) -> float:
    slope = slope.nan_to_num(0.0, 0.0, 0.0)
    step = STEP * slope.sign()
    promised = float((slope.double() * step).sum())
    if promised < FLOOR:
        return math.nan
    moved = problem.look(step).logits
    return float(_loss(moved, problem) - _loss(logits, problem)) / promised


def _loss(logits: Tensor, problem: Problem) -> Tensor:
    # In double: what is left is the rounding of the logits alone. On the CPU, since not every device has doubles.
    return soft_dice(logits.cpu().double(), problem.labels.cpu().double(), problem.mode)


def _saturated(logits: Tensor, problem: Problem) -> float:
    distance = margins(logits.float(), decide(logits, problem.mode).float(), problem.mode)
    # A margin towards the decided answer is negative or 0.
    return float((distance.exp() == 0).float().mean())


def _same(logits: Tensor, other: Tensor) -> bool:
    return bool((logits - other).abs().max() <= SAME * logits.abs().max())
