"""ASMA: make the model draw a given mask, in steps that grow as it comes closer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About
from cease_core.attacks.criteria import decide, mean_iou
from cease_core.attacks.gradient import Iterative
from cease_core.attacks.norms import per_case, project
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import Run
from cease_core.errors import CeaseError


@dataclass(frozen=True, kw_only=True)
class ASMA(Iterative):
    """Adaptive segmentation mask attack (Ozbulak, Van Messem & De Neve 2019, arXiv 1907.13124), in a ball.

    Step n ascends the target's logits, summed over the pixels that do not show it yet (with sigmoids: over
    channels, with the sign that the target asks for), by α_n = β · IoU(target, prediction_n) + τ for each case.

    The paper adds the raw gradient times α_n, with β = 1e-6 and τ = 1e-7, for thousands of steps, and holds
    the image near by an ℓ2 penalty. Here a step has unit size in the attack's norm, so α_n is counted in step
    sizes, with the paper's β = 10 τ; the ball takes the penalty's place; the strongest iterate is kept.
    ``loss`` is not used.

    Parameters
    ----------
    step_size
        In window fractions, times α_n; by default ε / 4.
    beta, tau
        β and τ, in step sizes. The IoU is the mean over classes and background.

    Raises
    ------
    CeaseError
        If β or τ is negative, or both are 0.

    Examples
    --------
    >>> ASMA(beta=0, tau=1).about.goals
    ('targeted',)
    """

    about: ClassVar[About] = About(
        title="ASMA",
        group="targeted",
        definition="Ascends the target's logits where the mask differs from it, in steps that grow with the overlap.",
        source="Ozbulak, Van Messem & De Neve 2019, arXiv 1907.13124",
        when="The classic of medical segmentation for making a model draw a given mask.",
        goals=("targeted",),
        shown=("norm", "steps"),
    )

    steps: int = 40
    random: bool = False
    beta: float = 2.0
    tau: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.beta + self.tau) and min(self.beta, self.tau) >= 0 < self.beta + self.tau):
            raise CeaseError(f"beta is {self.beta} and tau {self.tau}; give numbers ≥ 0, one of them above 0.")

    def size(self, epsilon: float) -> float:
        return self.step_size or epsilon / 4

    def climb(self, run: Run, delta: Tensor, *, epsilon: float, steps: int, step_size: float) -> Tensor:
        # The objective may see the batch in parts: each case has its place here.
        alike = delta.new_zeros(int(run.problem.restart.max()) + 1, int(run.problem.cases.max()) + 1)

        def objective(part: Problem, adversarial: Tensor) -> tuple[Tensor, Tensor]:
            logits = part.model(adversarial)
            alike[part.restart, part.cases] = mean_iou(logits.detach(), part.reference, part.mode)
            return logits, missing(logits, part)

        problem = run.problem = run.problem.ascending(objective)
        # Ties in the score are broken by the loss, so the clean images need the same one.
        clean = run.best.answer
        run.best.answer = clean._replace(loss=missing(clean.logits, problem))
        direction = self.direction(problem)
        for _ in range(steps):
            grad = run.gradient(delta)
            pace = step_size * (self.beta * alike[problem.restart, problem.cases] + self.tau)
            moved = delta + per_case(pace, delta) * direction(grad)
            delta = problem.clip(project(moved, epsilon, self.norm, problem.region))
            if run.over:
                break
        run.look(delta)
        return delta


def missing(logits: Tensor, problem: Problem) -> Tensor:
    """What ASMA ascends (N,): the target's logits over the pixels that do not show it yet.

    The logit of the class that a pixel shows instead is subtracted as a constant: the gradient is the paper's,
    and the value says how far away the target is, 0 where it is reached.
    """
    goal = problem.reference > 0.5
    absent = decide(logits.detach(), problem.mode) != goal
    if problem.mode != "multiclass":
        return (torch.where(goal, logits, -logits) * absent).flatten(1).sum(dim=1)
    rival = logits.detach().amax(dim=1, keepdim=True)
    return ((logits - rival) * (goal & absent)).flatten(1).sum(dim=1)
