"""What every attack is: a frozen value that is called on a batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from cease_core.attacks.losses import Loss, ascent
from cease_core.attacks.norms import Norm
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import AttackResult, Callback
from cease_core.errors import CeaseError
from cease_core.models.segmenter import Segmenter

Group = Literal["quick", "strong", "minimal", "targeted", "frequency", "black box", "adaptive", "control"]


@dataclass(frozen=True, kw_only=True)
class About:
    """What people need to know about an attack before they choose it.

    Parameters
    ----------
    title
        Its name in the field.
    group
        What it is for.
    definition
        One line: what it does.
    source
        Authors, year and arXiv number.
    when
        One line: when to use it.
    norms
        Balls it knows.
    goals
        Whether it can leave the mask, reach a target, or both.
    shown
        Parameters that matter enough to be offered in a window, besides ε.
    """

    title: str
    group: Group
    definition: str
    source: str
    when: str
    norms: tuple[Norm, ...] = ("linf", "l2")
    goals: tuple[Literal["untargeted", "targeted"], ...] = ("untargeted", "targeted")
    shown: tuple[str, ...] = ("norm", "loss", "steps")


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack with its parameters; call it on a batch.

    Parameters
    ----------
    epsilon
        Radius in window fractions: of every value for ``linf``, root mean square for ``l2``.
    norm
        ``"linf"`` or ``"l2"``.
    loss
        What is ascended: a key of `cease_core.attacks.LOSSES`, or a function of logits, one-hot target and
        mode that returns one value a case. The default is the strongest single one, or close to it, on the
        shipped models (``docs/attacks.md``); which one is strongest depends on the model.
    criterion
        What the strongest perturbation is kept by: a key of `cease_core.attacks.CRITERIA`, or ``"loss"``.
    stop_below
        Score at which a case counts as broken and costs nothing more. It hides the worst case, so by default
        every case is attacked to the end.
    seed
        Of everything random.

    Raises
    ------
    CeaseError
        If a parameter is out of range.
    """

    about: ClassVar[About]

    epsilon: float = 8 / 255
    norm: Norm = "linf"
    loss: str | Loss = "dice_masked"
    criterion: str = "dice"
    stop_below: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise CeaseError(f"epsilon is {self.epsilon}; give a number of window fractions ≥ 0, such as 8/255.")
        if self.norm not in self.about.norms:
            raise CeaseError(
                f"unknown norm {self.norm!r} for {self.about.title}; choose {' or '.join(self.about.norms)}."
            )
        ascent(self.loss, targeted=False)

    def __call__(
        self,
        model: Segmenter,
        images: Tensor,
        labels: Tensor,
        *,
        target: Tensor | None = None,
        region: Tensor | None = None,
        bounds: tuple[float, float] | None = None,
        callback: Callback | None = None,
    ) -> AttackResult:
        """Perturb ``images`` so that ``model`` disagrees with ``labels``, or agrees with ``target``.

        Parameters
        ----------
        model
            Maps (N, C, *spatial) to logits (N, K, *spatial); best `cease_core.models.prepare`-d.
        images
            Window fractions, shape (N, C, *spatial).
        labels
            Class ids (N, *spatial); for multilabel also one channel a class, floating point.
        target
            Mask to reach, like ``labels`` (see `cease_core.attacks.targets`); without one, any other mask will do.
        region
            Where the scan may change, broadcastable to ``images``; all else stays bit-identical.
        bounds
            Allowed intensities; by default the window, widened to each case's own range.
        callback
            Told of every step; returns ``False`` to stop.

        Raises
        ------
        CeaseError
            If labels, target, region or the model's output do not fit.
        """
        problem = Problem.pose(
            model,
            images,
            labels,
            self.loss,
            target=target,
            region=region,
            bounds=bounds,
            criterion=self.criterion,
        )
        return self.run(problem, callback)

    def run(self, problem: Problem, callback: Callback | None = None) -> AttackResult:
        """Attack a posed problem.

        Raises
        ------
        CeaseError
            If the attack does not suit the problem; see `check`.
        """
        self.check(problem)
        return self.perturb(problem, callback)

    def check(self, problem: Problem) -> None:
        """Raise a `CeaseError` if the problem has a target and the attack cannot use one, or needs one."""
        goal = "targeted" if problem.targeted else "untargeted"
        if goal not in self.about.goals:
            advice = "leave out the target" if problem.targeted else "give it a target mask"
            raise CeaseError(f"{self.about.title} cannot run {goal}; {advice}, or choose another attack.")

    @abstractmethod
    def perturb(self, problem: Problem, callback: Callback | None) -> AttackResult:
        """Do what `run` promises, on a problem that suits the attack."""
