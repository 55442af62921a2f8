"""Attacks that follow the gradient of the loss: one step (FGSM) or many (PGD and its kin)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About, Attack
from cease_core.attacks.norms import per_case, project, random_start, steepest
from cease_core.attacks.problem import Objective, Problem
from cease_core.attacks.run import AttackResult, Callback, Run
from cease_core.errors import CeaseError

Direction = Callable[[Tensor], Tensor]
"""From a gradient to a step of unit size in the attack's norm; may remember earlier gradients."""


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step to the edge of the ball (Goodfellow, Shlens & Szegedy 2015, arXiv 1412.6572).

    Examples
    --------
    >>> FGSM(epsilon=4 / 255).norm
    'linf'
    """

    about: ClassVar[About] = About(
        title="FGSM",
        group="quick",
        definition="One step of size ε along the gradient's sign (ℓ2: along the gradient).",
        source="Goodfellow, Shlens & Szegedy 2015, arXiv 1412.6572",
        when="A first look: one gradient serves every ε. Never as evidence that a model holds.",
        shown=("norm", "loss"),
    )

    def perturb(self, problem: Problem, callback: Callback | None) -> AttackResult:
        run = Run(problem, epsilon=self.epsilon, total=1, callback=callback)
        grad = run.gradient(torch.zeros_like(problem.images))
        run.look(step_to_edge(problem, grad, self.epsilon, self))
        return run.result()


def step_to_edge(problem: Problem, grad: Tensor, epsilon: float, attack: Attack) -> Tensor:
    """The perturbation of one step along a gradient, as far as the ball and the bounds allow."""
    direction = steepest(grad, attack.norm, problem.region)
    return problem.clip(project(direction * epsilon, epsilon, attack.norm, problem.region))


@dataclass(frozen=True, kw_only=True)
class Iterative(Attack):
    """Projected gradient ascent, with hooks for what the members of the family do differently.

    The strongest iterate is kept per case: at a fixed step size, more steps never give a weaker attack.

    Parameters
    ----------
    steps
        Gradient steps of each restart.
    step_size
        In window fractions; by default ``max(1/255, 2.5 ε / steps)``, but never more than ε.
    random
        Whether to start from a random perturbation instead of the clean image.
    restarts
        Random starts, attacked side by side in one batch; the strongest is kept per case.
    """

    steps: int = 20
    step_size: float | None = None
    random: bool = True
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise CeaseError(f"{name} is {getattr(self, name)}; give at least 1.")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise CeaseError(f"step_size is {self.step_size}; give a number above 0 or leave it out.")

    def perturb(self, problem: Problem, callback: Callback | None) -> AttackResult:
        problem = self.posed(problem)
        if self.epsilon == 0:
            return Run(problem, epsilon=0.0, total=0).result()
        restarts = self.restarts if self.random else 1
        several = problem.repeated(restarts)
        run = Run(several, epsilon=self.epsilon, total=self.steps, callback=callback, stop_below=self.stop_below)
        self.climb(run, self.start(several), epsilon=self.epsilon, steps=self.steps, step_size=self.size(self.epsilon))
        return run.result().strongest_of(restarts)

    def posed(self, problem: Problem) -> Problem:
        """The problem with what this attack ascends, where that is not the problem's own loss."""
        return problem

    def start(self, problem: Problem) -> Tensor:
        """Where the ascent begins, within ball and bounds; each restart elsewhere."""
        zero = torch.zeros_like(problem.images)
        if not self.random:
            return zero
        noise = random_start(zero, self.epsilon, self.norm, self.seed, problem.region, problem.restart)
        return problem.clip(noise)

    def size(self, epsilon: float) -> float:
        """Step size at a radius."""
        return self.step_size or min(epsilon, max(1 / 255, 2.5 * epsilon / self.steps))

    def climb(self, run: Run, delta: Tensor, *, epsilon: float, steps: int, step_size: float) -> Tensor:
        """Ascend from ``delta`` inside the ball of ``epsilon``; ``run`` keeps what is found.

        Returns
        -------
        Tensor
            The last iterate; the strongest is in ``run.best``.
        """
        problem = run.problem
        direction = self.direction(problem)
        for step in range(steps):
            grad = run.gradient(delta, self.objective(step, steps))
            moved = delta + step_size * direction(grad)
            delta = problem.clip(project(moved, epsilon, self.norm, problem.region))
            if run.over:
                break
        run.look(delta)
        return delta

    def direction(self, problem: Problem) -> Direction:
        """How gradients become steps, for one ascent."""
        return lambda grad: steepest(grad, self.norm, problem.region)

    def objective(self, step: int, steps: int) -> Objective | None:
        """What step ``step`` (from 0) of ``steps`` ascends; None for the problem's own loss."""
        del step, steps
        return None


@dataclass(frozen=True, kw_only=True)
class PGD(Iterative):
    """Projected gradient ascent with a random start (Madry et al. 2018, arXiv 1706.06083).

    Examples
    --------
    >>> PGD(epsilon=8 / 255, steps=20).step_size is None
    True
    """

    about: ClassVar[About] = About(
        title="PGD",
        group="quick",
        definition="Steps along the gradient's sign, each followed by projection onto the ball; random start.",
        source="Madry et al. 2018, arXiv 1706.06083",
        when="The everyday attack: strong with a loss that suits masks, and quick enough to be live.",
    )


@dataclass(frozen=True, kw_only=True)
class BIM(Iterative):
    """The basic iterative method: PGD from the clean image, with steps of ε / steps (arXiv 1607.02533).

    Examples
    --------
    >>> BIM(epsilon=8 / 255, steps=8).size(8 / 255) * 255
    1.0
    """

    about: ClassVar[About] = About(
        title="BIM (I-FGSM)",
        group="quick",
        definition="FGSM repeated with small steps from the clean image, clipped to the ball.",
        source="Kurakin, Goodfellow & Bengio 2017, arXiv 1607.02533",
        when="To compare with older papers; PGD's larger steps and random start are usually stronger.",
    )

    random: bool = False

    def size(self, epsilon: float) -> float:
        return self.step_size or epsilon / self.steps


@dataclass(frozen=True, kw_only=True)
class MIFGSM(BIM):
    """Momentum iterative FGSM (Dong et al. 2018, arXiv 1710.06081).

    Parameters
    ----------
    decay
        Weight of the accumulated gradient, μ; gradients are added at unit mean absolute value.

    Examples
    --------
    >>> MIFGSM().decay
    1.0
    """

    about: ClassVar[About] = About(
        title="MI-FGSM",
        group="quick",
        definition="BIM along a running sum of gradients, each scaled to unit mean size.",
        source="Dong et al. 2018, arXiv 1710.06081",
        when="As the source of a transfer attack: momentum makes perturbations that other models share.",
    )

    decay: float = 1.0

    def direction(self, problem: Problem) -> Direction:
        momentum = torch.zeros_like(problem.images)

        def onwards(grad: Tensor) -> Tensor:
            nonlocal momentum
            if problem.region is not None:
                grad = grad * problem.region
            mean = grad.flatten(1).abs().mean(dim=1).clamp_min(torch.finfo(grad.dtype).tiny)
            momentum = self.decay * momentum + grad / per_case(mean, grad)
            return steepest(momentum, self.norm, problem.region)

        return onwards
