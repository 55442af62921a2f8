"""Attacks that follow the gradient of the loss: one step (FGSM) or many (PGD)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cease_core.attacks.base import Attack, AttackResult, Best, Callback, Problem, Step
from cease_core.attacks.norms import Norm, project, random_start, steepest
from cease_core.errors import CeaseError


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step to the edge of the ball (Goodfellow, Shlens & Szegedy 2015, arXiv 1412.6572).

    Examples
    --------
    >>> FGSM(epsilon=4 / 255).norm
    'linf'
    """

    def run(self, problem: Problem, callback: Callback | None = None) -> AttackResult:
        zero = torch.zeros_like(problem.images)
        grad, logits, loss, dice = problem.gradient(zero)
        best = Best(zero, logits, loss, dice)
        direction = steepest(grad, self.norm, problem.region)
        delta = problem.clip(project(direction * self.epsilon, self.epsilon, self.norm, problem.region))
        logits, after, dice = problem.look(delta)
        best.update(delta, logits, after, dice)
        if callback is not None:
            callback(Step(1, 1, loss))
        return best.result(problem, [loss, after], self.epsilon, gradients=1)


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient ascent with a random start (Madry et al. 2018, arXiv 1706.06083).

    The strongest iterate is kept per case: at a fixed step size, more steps never give a weaker attack.

    Parameters
    ----------
    steps
        Gradient steps.
    step_size
        In window fractions; by default ``max(1/255, 2.5 ε / steps)``, but never more than ε.
    random
        Whether to start from a random perturbation instead of the clean image.

    Examples
    --------
    >>> PGD(epsilon=8 / 255, steps=20).step_size is None
    True
    """

    steps: int = 20
    step_size: float | None = None
    random: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise CeaseError(f"steps is {self.steps}; give at least 1.")
        if self.step_size is not None and not self.step_size > 0:
            raise CeaseError(f"step_size is {self.step_size}; give a number above 0 or leave it out.")

    def run(self, problem: Problem, callback: Callback | None = None) -> AttackResult:
        zero = torch.zeros_like(problem.images)
        best = Best(zero, *problem.look(zero))
        trace: list[Tensor] = []
        gradients, cancelled = 0, False
        if self.epsilon > 0:
            start = zero
            if self.random:
                start = random_start(problem.images, self.epsilon, self.norm, self.seed, problem.region)
            step_size = self.step_size or min(self.epsilon, max(1 / 255, 2.5 * self.epsilon / self.steps))
            gradients, stopped = ascend(
                problem,
                problem.clip(start),
                best,
                trace,
                epsilon=self.epsilon,
                norm=self.norm,
                steps=self.steps,
                step_size=step_size,
                callback=callback,
            )
            cancelled = stopped and gradients < self.steps
        return best.result(problem, trace or [best.loss], self.epsilon, gradients, cancelled)


def ascend(
    problem: Problem,
    delta: Tensor,
    best: Best,
    trace: list[Tensor],
    *,
    epsilon: float,
    norm: Norm,
    steps: int,
    step_size: float,
    callback: Callback | None = None,
) -> tuple[int, bool]:
    """Projected ascent from ``delta``; improves ``best`` and extends ``trace`` in place.

    Returns
    -------
    gradients, stopped
        Gradient evaluations spent, and whether the callback said to stop, be it after the last step.
    """
    stopped = False
    for done in range(1, steps + 1):
        grad, logits, loss, dice = problem.gradient(delta)
        best.update(delta, logits, loss, dice)
        trace.append(loss)
        moved = delta + step_size * steepest(grad, norm, problem.region)
        delta = problem.clip(project(moved, epsilon, norm, problem.region))
        stopped = callback is not None and callback(Step(done, steps, loss)) is False
        if stopped:
            break
    logits, loss, dice = problem.look(delta)
    best.update(delta, logits, loss, dice)
    trace.append(loss)
    return done, stopped
