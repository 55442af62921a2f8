"""APGD: gradient ascent that finds its own step size, in one ball or through a series of shrinking ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About
from cease_core.attacks.gradient import Iterative
from cease_core.attacks.norms import per_case, project, steepest
from cease_core.attacks.run import Run

MOMENTUM = 0.75
"""Weight of the new step; what is left goes on in the direction of the last one."""
RISING = 0.75
"""Share of steps that must raise the loss, or the step size is halved."""
STAGES = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))
"""Radii as multiples of ε and shares of the steps, from wide to narrow (arXiv 2306.12941, section 3.3)."""
FEWEST = 10
"""Steps below which there is no time for three stages."""


@dataclass(frozen=True, kw_only=True)
class APGD(Iterative):
    """PGD with momentum and a step size that halves, case by case, where progress stalls (arXiv 2003.01690).

    The first step size is 2 ε. At each of `checkpoints` a case's step is halved, and its ascent goes on from
    its highest loss so far, if less than three quarters of its steps since the last checkpoint raised the
    loss, or if neither its step size nor its highest loss has changed since.

    Parameters
    ----------
    shrink
        Whether to go through balls of 2 ε, 1.5 ε and ε, for 30, 30 and 40 % of the steps: the highest point of
        each is projected onto the next ("red-ε", Croce et al. 2024, arXiv 2306.12941). What lies outside the
        ball of ε is never a result. With fewer than ten steps there is one stage. Points are then ranked by
        score, and by loss where that ties: a masked loss falls while the attack succeeds, and the point of
        highest loss is no good start.

    Examples
    --------
    >>> APGD().size(8 / 255) * 255
    16.0
    >>> [(round(255 * radius), steps) for radius, steps in APGD(shrink=True, steps=40).radii(8 / 255)]
    [(16, 12), (12, 12), (8, 16)]
    """

    about: ClassVar[About] = About(
        title="APGD",
        group="strong",
        definition="PGD with momentum; each case halves its step and returns to its best where progress stalls.",
        source="Croce & Hein 2020, arXiv 2003.01690; shrinking radius: Croce et al. 2024, arXiv 2306.12941",
        when="Many steps and no step size to tune; the step from which SEA is built.",
        shown=("norm", "loss", "steps", "restarts"),
    )

    shrink: bool = False

    def size(self, epsilon: float) -> float:
        return self.step_size or 2 * epsilon

    def radii(self, epsilon: float, steps: int | None = None) -> tuple[tuple[float, int], ...]:
        """Radius and number of steps of each stage; the last radius is ``epsilon``."""
        steps = self.steps if steps is None else steps
        if not self.shrink or steps < FEWEST:
            return ((epsilon, steps),)
        wide = [(times * epsilon, round(share * steps)) for times, share in STAGES[:-1]]
        return (*wide, (epsilon, steps - sum(n for _, n in wide)))

    def climb(self, run: Run, delta: Tensor, *, epsilon: float, steps: int, step_size: float) -> Tensor:
        problem = run.problem
        highest = delta
        for radius, count in self.radii(epsilon, steps):
            start = problem.clip(project(highest, radius, self.norm, problem.region))
            size = step_size * radius / epsilon
            delta, highest = self._ascend(run, start, radius, count, size, keep=radius == epsilon)
            if run.over:
                break
        if radius != epsilon:
            delta = problem.clip(project(highest, epsilon, self.norm, problem.region))
        run.look(delta)
        return delta

    def _ascend(
        self, run: Run, delta: Tensor, radius: float, steps: int, step_size: float, *, keep: bool
    ) -> tuple[Tensor, Tensor]:
        """The last iterate, and the highest point of those whose gradient was asked for."""
        problem = run.problem

        def inside(moved: Tensor) -> Tensor:
            return problem.clip(project(moved, radius, self.norm, problem.region))

        progress = Progress(delta, step_size)
        judged = {0, *checkpoints(steps)}
        before = delta
        for step in range(steps):
            grad = run.gradient(delta, keep=keep)
            loss = run.trace[-1]
            progress.note(delta, grad, -run.score if self.shrink else loss, loss)
            if step in judged:
                delta, grad = progress.judge(delta, grad)
            stepped = inside(delta + per_case(progress.size, delta) * steepest(grad, self.norm, problem.region))
            onwards = MOMENTUM * (stepped - delta) + (1 - MOMENTUM) * (delta - before) if step else stepped - delta
            delta, before = inside(delta + onwards), delta
            if run.over:
                break
        return delta, progress.delta


class Progress:
    """Where each case of an ascent got highest, how often it rose, and the step size that it has come to.

    Parameters
    ----------
    delta
        Where the ascent begins, shape (N, C, *spatial).
    step_size
        The first, of every case.

    Attributes
    ----------
    size
        Step sizes (N,).
    delta, grad
        The highest point of each case, and the gradient there.
    """

    def __init__(self, delta: Tensor, step_size: float) -> None:
        self.size = delta.new_full((len(delta),), step_size)
        self.delta = delta
        self.grad = torch.zeros_like(delta)
        lowest = torch.full_like(self.size, -torch.inf)
        self._highest = self._last = (lowest, lowest)
        self._steps = 0
        self._rises = torch.zeros_like(self.size)
        self._higher = torch.zeros_like(self.size, dtype=torch.bool)
        self._halved = torch.zeros_like(self._higher)

    def note(self, delta: Tensor, grad: Tensor, merit: Tensor, loss: Tensor) -> None:
        """Take in an evaluated iterate: its height is ``merit`` (N,) and, where that ties, ``loss`` (N,)."""
        mine = (merit, loss)
        self._steps += 1
        self._rises += _above(mine, self._last)
        self._last = mine
        higher = _above(mine, self._highest)
        self._higher |= higher
        best, tie = self._highest
        self._highest = (torch.where(higher, merit, best), torch.where(higher, loss, tie))
        self.delta = torch.where(per_case(higher, delta), delta, self.delta)
        self.grad = torch.where(per_case(higher, grad), grad, self.grad)

    def judge(self, delta: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Halve the step where progress stalls; where each case goes on from, and the gradient there."""
        stalled = (self._rises < RISING * self._steps) | ~(self._halved | self._higher)
        self.size = torch.where(stalled, self.size / 2, self.size)
        self._halved = stalled
        self._steps = 0
        self._rises = torch.zeros_like(self._rises)
        self._higher = torch.zeros_like(self._higher)
        back = per_case(stalled, delta)
        return torch.where(back, self.delta, delta), torch.where(back, self.grad, grad)


def _above(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    return (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] > b[1]))


def checkpoints(steps: int) -> tuple[int, ...]:
    """Steps after which progress is judged: ⌈p steps⌉ with p = 0.22, then on by max(last gap − 0.03, 0.06).

    Examples
    --------
    >>> checkpoints(20)
    (5, 9, 12, 14, 16, 18, 19, 20)
    """
    at: list[int] = []
    reached, gap = 22, 22
    while reached <= 100:  # in hundredths: .22 · 100 is above 22 in floating point
        at.append(-(-reached * steps // 100))
        gap = max(gap - 3, 6)
        reached += gap
    return tuple(sorted(set(at)))
