"""One attack for a whole range of ε: from the largest down, streamed rung by rung.

A perturbation found at a large radius, shrunk to the next smaller one, is a far better start there than a
fresh one; the other direction is not. A few steps a rung then match an independent attack at every ε, for
about a third of the gradients. The smallest radii get a full attack of their own, where shrinking helps least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cease_core.attacks.base import AttackResult, Best, Callback, Problem, Step
from cease_core.attacks.gradient import FGSM, PGD, ascend
from cease_core.attacks.norms import project, random_start, steepest
from cease_core.errors import CeaseError

SMALL = 2 / 255


@dataclass(frozen=True, eq=False)
class Rung:
    """The attack's result at one ε; a later rung of the same ε replaces an earlier one.

    Parameters
    ----------
    epsilon
        Radius in window fractions.
    result
        The strongest perturbation known at this radius.
    done, total
        Gradient evaluations spent so far on a case, and expected in all.
    """

    epsilon: float
    result: AttackResult
    done: int
    total: int


def ladder(
    attack: FGSM | PGD,
    problem: Problem,
    epsilons: Sequence[float],
    *,
    refine: int = 3,
    restarts: int = 1,
    callback: Callback | None = None,
) -> Iterator[Rung]:
    """Attack at every radius, from large to small, yielding each as soon as it is known.

    Last comes the running minimum: a smaller perturbation is allowed at every larger radius too, so where
    it is the stronger one, the larger rung is yielded again with it. Closing the generator cancels.

    Parameters
    ----------
    attack
        Its ``epsilon`` is ignored; for `PGD`, ``steps`` are spent at the top and at radii up to 2/255.
    problem
        What to attack.
    epsilons
        Radii in window fractions.
    refine
        Steps at each rung in between.
    restarts
        Random starts at the top; the strongest goes down.
    callback
        Told of every gradient step; returns ``False`` to stop, and the ladder ends where it is.

    Raises
    ------
    CeaseError
        If there is no radius above 0.
    """
    radii = sorted({float(e) for e in epsilons if e > 0}, reverse=True)
    if not radii:
        raise CeaseError("the ladder needs at least one ε above 0.")
    if isinstance(attack, FGSM):
        rungs = _one_step(attack, problem, radii, callback)
    else:
        rungs = _descend(attack, problem, radii, refine, restarts, callback)
    best: dict[float, Rung] = {}
    for rung in rungs:
        best[rung.epsilon] = rung
        yield rung
    yield from _running_minimum(problem, best)


def _one_step(attack: FGSM, problem: Problem, radii: list[float], callback: Callback | None) -> Iterator[Rung]:
    # The direction of one step does not depend on ε: one gradient serves every rung.
    zero = torch.zeros_like(problem.images)
    grad, *clean = problem.gradient(zero)
    if callback is not None and callback(Step(1, 1, clean[1])) is False:
        return
    direction = steepest(grad, attack.norm, problem.region)
    for epsilon in radii:
        best = Best(zero, *clean)
        delta = problem.clip(project(direction * epsilon, epsilon, attack.norm, problem.region))
        best.update(delta, *problem.look(delta))
        yield Rung(epsilon, best.result(problem, [clean[1], best.loss], epsilon, gradients=1), 1, 1)


def _descend(
    attack: PGD, problem: Problem, radii: list[float], refine: int, restarts: int, callback: Callback | None
) -> Iterator[Rung]:
    zero = torch.zeros_like(problem.images)
    clean = problem.look(zero)
    full = [i == 0 or e <= SMALL + 1e-9 for i, e in enumerate(radii)]
    total = sum(attack.steps * (restarts if i == 0 else 1) if f else refine for i, f in enumerate(full))
    delta, done = zero, 0
    for i, epsilon in enumerate(radii):
        best = Best(zero, *clean)
        trace: list[Tensor] = []
        starts = (
            [
                random_start(problem.images, epsilon, attack.norm, attack.seed + r, problem.region)
                for r in range(restarts)
            ]
            if i == 0
            else [delta * (epsilon / radii[i - 1])]
        )
        steps = attack.steps if full[i] else refine
        for start in starts:
            spent, stopped = ascend(
                problem,
                problem.clip(project(start, epsilon, attack.norm, problem.region)),
                best,
                trace,
                epsilon=epsilon,
                norm=attack.norm,
                steps=steps,
                # From a good start the steps refine, so they must be small beside the radius.
                step_size=max(epsilon / 4, 2.5 * epsilon / steps) if i == 0 else epsilon / 4,
                callback=callback,
            )
            done += spent
            if stopped:
                return
        delta = best.delta
        yield Rung(epsilon, best.result(problem, trace, epsilon, gradients=done), done, total)


def _running_minimum(problem: Problem, best: dict[float, Rung]) -> Iterator[Rung]:
    lowest: Best | None = None
    for epsilon in sorted(best):
        result = best[epsilon].result
        mine = Best(result.perturbation, result.logits, result.loss[-1], result.dice)
        if lowest is not None:
            stronger = lowest.dice < mine.dice
            if stronger.any():
                mine.update(lowest.delta, lowest.logits, lowest.loss, lowest.dice)
                replaced = AttackResult(
                    adversarial=problem.images + mine.delta,
                    perturbation=mine.delta,
                    logits=mine.logits,
                    dice=mine.dice,
                    loss=result.loss,
                    epsilon=epsilon,
                    gradients=result.gradients,
                )
                yield Rung(epsilon, replaced, best[epsilon].done, best[epsilon].total)
        lowest = mine
