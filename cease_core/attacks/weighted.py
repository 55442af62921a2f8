"""Attacks that weigh each pixel's cross-entropy by how the model decides it: SegPGD and CosPGD.

A pixel is one decision for a softmax model and one for each channel of a sigmoid model; every decision has a
weight of its own, and the mean is taken over all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About
from cease_core.attacks.gradient import Iterative
from cease_core.attacks.losses import Loss, ascent, probabilities
from cease_core.attacks.losses.pixelwise import right, surprise
from cease_core.attacks.problem import Objective, Problem, of_logits
from cease_core.models.card import Mode


@dataclass(frozen=True, kw_only=True)
class Weighted(Iterative):
    """PGD on a cross-entropy whose weights follow the prediction; what is reported is the unweighted mean.

    Parameters
    ----------
    loss
        Of no effect: it is the cross-entropy that is weighed.
    """

    loss: str | Loss = "cross_entropy"

    def posed(self, problem: Problem) -> Problem:
        return problem.ascending(of_logits(ascent("cross_entropy", targeted=problem.targeted)))

    def objective(self, step: int, steps: int) -> Objective:
        def ascended(problem: Problem, adversarial: Tensor) -> tuple[Tensor, Tensor]:
            def loss(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
                with torch.no_grad():
                    weight = self.weight(logits, target, mode, step / steps, targeted=problem.targeted)
                cost = surprise(logits, target, mode)
                plain, weighed = (c.flatten(1).mean(dim=1) for c in (cost, weight * cost))
                # The value of one and the gradient of the other: weights change from step to step, and values
                # under different ones could not be compared.
                value = plain.detach() + weighed - weighed.detach()
                return -value if problem.targeted else value

            return of_logits(loss)(problem, adversarial)

        return ascended

    @abstractmethod
    def weight(self, logits: Tensor, target: Tensor, mode: Mode, progress: float, *, targeted: bool) -> Tensor:
        """Weight of every decision, shape (N, D, *spatial), with D = 1 for softmax and K for sigmoid models.

        Parameters
        ----------
        logits, target
            Shape (N, K, *spatial); the target is the mask to leave or, ``targeted``, to reach.
        mode
            Meaning of the K channels.
        progress
            Steps taken over all steps, in [0, 1).
        targeted
            Whether the attack goes towards ``target``.
        """


@dataclass(frozen=True, kw_only=True)
class SegPGD(Weighted):
    """PGD that starts on what is still to be changed, and ends on all alike (Gu et al. 2022, arXiv 2207.12391).

    With λ = t / 2T after t of T steps, decisions still to be changed weigh 1 − λ and the others λ. Still to be
    changed are those that are right or, towards a target, those that are not yet as in the target.

    Parameters
    ----------
    loss
        Of no effect: it is the cross-entropy that is weighed.

    Examples
    --------
    >>> SegPGD(steps=40).loss
    'cross_entropy'
    """

    about: ClassVar[About] = About(
        title="SegPGD",
        group="quick",
        definition="PGD on cross-entropy; pixels still right weigh 1 − λ, wrong ones λ, and λ grows from 0 to ½.",
        source="Gu et al. 2022, arXiv 2207.12391",
        when="To compare with the literature on segmentation; soft Dice is usually stronger on small structures.",
        shown=("norm", "steps"),
    )

    def weight(self, logits: Tensor, target: Tensor, mode: Mode, progress: float, *, targeted: bool) -> Tensor:
        agrees = right(logits, target, mode)
        return torch.where(agrees != targeted, 1 - progress / 2, progress / 2)


@dataclass(frozen=True, kw_only=True)
class CosPGD(Weighted):
    """PGD whose weights are the cosine of prediction and reference (Agnihotri et al. 2024, arXiv 2302.02213).

    A decision weighs the cosine similarity between its probabilities and the one-hot reference: p over classes
    for softmax models, (p, 1 − p) for a channel of a sigmoid model. Towards a target it weighs one minus that.
    No gradient goes through the weights.

    Parameters
    ----------
    loss
        Of no effect: it is the cross-entropy that is weighed.

    Examples
    --------
    >>> CosPGD(steps=40).loss
    'cross_entropy'
    """

    about: ClassVar[About] = About(
        title="CosPGD",
        group="quick",
        definition="PGD on cross-entropy; each pixel weighs the cosine of its probabilities and the reference.",
        source="Agnihotri, Jung & Keuper 2024, arXiv 2302.02213",
        when="To compare with the literature on segmentation; like SegPGD, with weights that change smoothly.",
        shown=("norm", "steps"),
    )

    def weight(self, logits: Tensor, target: Tensor, mode: Mode, progress: float, *, targeted: bool) -> Tensor:
        del progress
        p = probabilities(logits, mode)
        if mode == "multiclass":
            length = p.square().sum(dim=1, keepdim=True).sqrt()
        else:
            length = (p.square() + (1 - p).square()).sqrt()
        cosine = (-surprise(logits, target, mode)).exp() / length
        return 1 - cosine if targeted else cosine
