"""Minimal-norm attacks: the smallest perturbation that still breaks the mask, case by case.

A case is broken when its score is at or below its bar. Against the labels the bar is a share of the clean
score: half the clean Dice by default. Towards a target it is a Dice to reach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About, Attack
from cease_core.attacks.gradient import PGD, Iterative
from cease_core.attacks.norms import Norm, magnitude, per_case, project
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import AttackResult, Callback, Run, Step, either
from cease_core.errors import CeaseError


@dataclass(frozen=True, eq=False, kw_only=True)
class MinimalResult(AttackResult):
    """An attack's result whose perturbation is as small as the attack could make it.

    Where a case was not broken, the perturbation is the strongest that was met inside the ball.

    Parameters
    ----------
    bar
        Score (N,) at or below which a case is broken.
    norm, region
        What the size is measured in.
    """

    bar: Tensor
    norm: Norm
    region: Tensor | None = None

    @property
    def success(self) -> Tensor:
        """Whether each case is broken, shape (N,), bool."""
        return self.score <= self.bar

    @property
    def minimal(self) -> Tensor:
        """Size (N,) of the perturbation in window fractions; infinite where the case is not broken."""
        size = magnitude(self.perturbation, self.norm, self.region)
        return torch.where(self.success, size, math.inf)


@dataclass(frozen=True, kw_only=True)
class Minimal(Attack):
    """What minimal-norm attacks share: when a case counts as broken.

    Parameters
    ----------
    epsilon
        Cap of the search: a case that holds inside this ball is reported as not broken.
    share
        Untargeted, a case is broken when its score is at most this share of the clean score. With the
        criterion ``"dice"`` and .5 this is the attack success of the Dice drop; with ``"accuracy"`` and .01
        it is the pixel success rate of 99 % that Rony et al. 2023 ask for.
    reach
        Targeted, a case is broken when the criterion with the target is at least this.
    stop_below
        Score at which a case is broken, in place of ``share`` and ``reach``.

    Raises
    ------
    CeaseError
        If a parameter is out of range.
    """

    epsilon: float = 32 / 255
    share: float = 0.5
    reach: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share < 1:
            raise CeaseError(f"share is {self.share}; give a part of the clean score from 0 up to, not including, 1.")
        if not 0 < self.reach <= 1:
            raise CeaseError(f"reach is {self.reach}; give a score with the target above 0 and up to 1.")

    def bar(self, problem: Problem) -> Tensor:
        """Score (N,) at or below which a case is broken.

        Raises
        ------
        CeaseError
            If the problem is judged by its loss, which has no share.
        """
        if problem.criterion == "loss":
            raise CeaseError("a minimal attack cannot be judged by its loss; choose the criterion dice or another.")
        clean = problem.exact.clean().score
        if self.stop_below is not None:
            return torch.full_like(clean, self.stop_below)
        return torch.full_like(clean, 1 - self.reach) if problem.targeted else self.share * clean

    def report(self, result: AttackResult, problem: Problem, bar: Tensor) -> MinimalResult:
        """The result with its sizes."""
        known = {f.name: getattr(result, f.name) for f in fields(AttackResult)}
        return MinimalResult(**known, bar=bar, norm=self.norm, region=problem.region)


@dataclass(frozen=True, kw_only=True)
class Bisection(Minimal):
    """A gradient attack at the cap, then bisection of the radius, each case at its own.

    The first round of every case halves the radius, as does each further one that succeeds: the ε ladder from
    large to small. Each round starts from the smallest perturbation that broke the case, shrunk to the round's
    radius, and ends for a case once it is broken.

    Parameters
    ----------
    inner
        Attack at the cap, with its own ``steps`` and ``restarts``; later rounds use its direction and objective.
    refine
        Gradient steps of each later round, a quarter of the radius long.
    tolerance
        Width in window fractions of the bracket between failure and success at which a case is done.

    Raises
    ------
    CeaseError
        If a parameter is out of range.

    Examples
    --------
    >>> Bisection(epsilon=32 / 255).rounds
    7
    """

    about: ClassVar[About] = About(
        title="Smallest ε (bisection)",
        group="minimal",
        definition="PGD at the cap, then at radii halved and bisected per case down to the smallest that succeeds.",
        source="Radius search over PGD: Madry et al. 2018, arXiv 1706.06083",
        when="To measure distortion: how small a perturbation still halves the Dice.",
        shown=("norm", "loss", "share"),
    )

    inner: Iterative = field(default_factory=lambda: PGD(steps=20))
    refine: int = 8
    tolerance: float = 0.25 / 255

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine < 1:
            raise CeaseError(f"refine is {self.refine}; give at least 1 step.")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise CeaseError(f"tolerance is {self.tolerance}; give a width above 0, such as .25/255.")
        if self.norm not in self.inner.about.norms:
            raise CeaseError(f"{self.inner.about.title} does not know the norm {self.norm}; choose another inner one.")

    @property
    def rounds(self) -> int:
        """Halvings that narrow the cap to the tolerance."""
        return max(0, math.ceil(math.log2(max(self.epsilon, self.tolerance) / self.tolerance)))

    def perturb(self, problem: Problem, callback: Callback | None) -> MinimalResult:
        bar = self.bar(problem)
        if self.epsilon == 0:
            return self.report(Run(problem, epsilon=0.0, total=0).result(), problem, bar)
        inner = replace(self.inner, epsilon=self.epsilon, norm=self.norm, loss=self.loss, seed=self.seed)
        problem = inner.posed(problem)
        total = inner.steps + self.rounds * self.refine
        best, run = self._at_the_cap(inner, problem, bar, total, callback)
        broken = best.score <= bar
        high = torch.where(broken, magnitude(best.perturbation, self.norm, problem.region), math.inf)
        low = torch.zeros_like(high)
        for _ in range(self.rounds):
            narrowing = broken & (high - low > self.tolerance)
            if run.stopped or not narrowing.any():
                break
            radius = torch.where(narrowing, (low + high) / 2, 0.0)
            shrunk = best.perturbation * per_case(torch.where(narrowing, radius / high, 0.0), best.perturbation)
            done_at = torch.where(narrowing, bar, math.inf)
            run = Run(
                problem, epsilon=self.epsilon, total=total, callback=callback, stop_below=done_at, before=run.done
            )
            self._climb(run, inner, shrunk, radius)
            found = run.result()
            smaller = narrowing & (found.score <= bar)
            # Told to stop, a round has not shown that its radius is too small, but then it is the last.
            low = torch.where(narrowing & ~smaller, radius, low)
            high = torch.where(smaller, magnitude(found.perturbation, self.norm, problem.region), high)
            best = either(best, found, smaller)
        if callback is not None and not run.stopped and run.done < total:
            callback(Step(total, total, run.best.answer.loss))
        return self.report(best, problem, bar)

    def _at_the_cap(
        self, inner: Iterative, problem: Problem, bar: Tensor, total: int, callback: Callback | None
    ) -> tuple[AttackResult, Run]:
        restarts = inner.restarts if inner.random else 1
        several = problem.repeated(restarts)
        # To the end even once broken, as the rounds start from here; but not where the clean mask is broken already.
        done_at = torch.where(problem.clean().score <= bar, math.inf, -math.inf).repeat(restarts)
        run = Run(several, epsilon=self.epsilon, total=total, callback=callback, stop_below=done_at)
        if not run.over:
            size = inner.size(self.epsilon)
            inner.climb(run, inner.start(several), epsilon=self.epsilon, steps=inner.steps, step_size=size)
        return run.result().strongest_of(restarts), run

    def _climb(self, run: Run, inner: Iterative, delta: Tensor, radius: Tensor) -> None:
        problem = run.problem
        direction = inner.direction(problem)
        size = per_case(radius / 4, delta)
        delta = problem.clip(project(delta, radius, self.norm, problem.region))
        for step in range(self.refine):
            grad = run.gradient(delta, inner.objective(step, self.refine))
            delta = problem.clip(project(delta + size * direction(grad), radius, self.norm, problem.region))
            if run.over:
                return
        run.look(delta)
