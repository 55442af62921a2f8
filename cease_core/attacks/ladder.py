"""One attack for a whole range of ε: from the largest down, streamed rung by rung.

A perturbation found at a large radius, shrunk to the next smaller one, is a far better start there than a
fresh one; the other direction is not. A few steps a rung then match an independent attack at every ε, for
about a third of the gradients. The smaller the radius, the less shrinking helps, and the more steps a rung gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from cease_core.attacks.base import Attack
from cease_core.attacks.ensemble import Ensemble, ascending
from cease_core.attacks.gradient import FGSM, Iterative, step_to_edge
from cease_core.attacks.minimal import Minimal
from cease_core.attacks.norms import project
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import AttackResult, Callback, Relay, Run, Step, stronger
from cease_core.errors import CeaseError

# Found on held-out cardiac and polyp slices, undefended and defended (benchmarks/ladder.py): smaller steps, or
# fewer at the small radii, are up to .08 Dice weaker there.
EFFORT = 1.8 / 255
STEP = 1 / 3


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
        Steps taken so far, and expected in all.
    """

    epsilon: float
    result: AttackResult
    done: int
    total: int


def ladder(
    attack: Attack,
    problem: Problem,
    epsilons: Sequence[float],
    *,
    refine: int = 3,
    wanted: Callable[[], float | None] | None = None,
    monotone: bool = True,
    callback: Callback | None = None,
) -> Iterator[Rung]:
    """Attack at every radius, from large to small, yielding each as soon as it is known.

    Last comes the running minimum: a smaller perturbation is allowed at every larger radius too, so where
    it is the stronger one, the larger rung is yielded again with it. Closing the generator cancels.

    Parameters
    ----------
    attack
        Its ``epsilon`` is ignored. Gradient attacks spend their ``steps`` at the top and fewer below, with step
        sizes of the ladder's own; an ensemble does so for each member. A minimal attack runs once, and radii below
        what it found get its perturbation shrunk. All others run afresh at every radius.
    problem
        What to attack.
    epsilons
        Radii in window fractions.
    refine
        Steps that every rung below the top gets at least; small radii get up to half the attack's own.
    wanted
        Asked before every fresh run: the radius to attack next, if it has not been; otherwise the largest is.
    monotone
        Whether the running minimum comes last; without it each rung is what was found at its own radius.
    callback
        Told of every step; returns ``False`` to stop, and the ladder ends where it is.

    Raises
    ------
    CeaseError
        If there is no radius above 0, or the attack does not suit the problem.
    """
    attack.check(problem)
    radii = sorted({float(e) for e in epsilons if e > 0}, reverse=True)
    if not radii:
        raise CeaseError("the ladder needs at least one ε above 0.")
    best: dict[float, Rung] = {}
    for rung in _rungs(attack, problem, radii, refine, callback, wanted):
        best[rung.epsilon] = rung
        yield rung
    if monotone:
        yield from _running_minimum(best)


def _rungs(
    attack: Attack,
    problem: Problem,
    radii: list[float],
    refine: int,
    callback: Callback | None,
    wanted: Callable[[], float | None] | None = None,
) -> Iterator[Rung]:
    if isinstance(attack, Ensemble):
        return _together(attack, problem, radii, refine, callback)
    if isinstance(attack, FGSM):
        return _one_step(attack, problem, radii, callback)
    if isinstance(attack, Iterative):
        return _descend(attack, problem, radii, refine, callback)
    if isinstance(attack, Minimal):
        return _shrunk(attack, problem, radii, callback)
    return _afresh(attack, problem, radii, callback, wanted)


def _one_step(attack: FGSM, problem: Problem, radii: list[float], callback: Callback | None) -> Iterator[Rung]:
    # The direction of one step does not depend on ε: one gradient serves every rung.
    first = Run(problem, epsilon=radii[0], total=1, callback=callback)
    grad = first.gradient(torch.zeros_like(problem.images))
    if first.stopped:
        return
    for epsilon in radii:
        run = Run(problem, epsilon=epsilon, total=1)
        run.trace.extend(first.trace)
        run.look(step_to_edge(problem, grad, epsilon, attack))
        yield Rung(epsilon, replace(run.result(), gradients=first.gradients), 1, 1)


def _descend(
    attack: Iterative, problem: Problem, radii: list[float], refine: int, callback: Callback | None
) -> Iterator[Rung]:
    problem = attack.posed(problem)
    restarts = attack.restarts if attack.random else 1
    steps = [attack.steps, *(_effort(attack.steps, e, refine) for e in radii[1:])]
    total = sum(steps)
    done = 0
    spent = torch.zeros_like(problem.cases)
    delta = torch.zeros_like(problem.images)
    for i, epsilon in enumerate(radii):
        top = i == 0
        posed = problem.repeated(restarts if top else 1)
        if top:
            start = replace(attack, epsilon=epsilon).start(posed)
        else:
            start = problem.clip(project(delta * (epsilon / radii[i - 1]), epsilon, attack.norm, problem.region))
        run = Run(posed, epsilon=epsilon, total=total, callback=callback, before=done)
        # From a good start the steps refine, so they must be small beside the radius.
        size = (attack.step_size or max(epsilon / 4, attack.size(epsilon))) if top else STEP * epsilon
        attack.climb(run, start, epsilon=epsilon, steps=steps[i], step_size=size)
        done = run.done
        if run.stopped:
            return
        result = run.result().strongest_of(restarts if top else 1)
        spent = spent + result.gradients
        delta = result.perturbation
        yield Rung(epsilon, replace(result, gradients=spent), done, total)


def _effort(steps: int, epsilon: float, refine: int) -> int:
    """Steps of a rung: in inverse proportion to its radius, within reason."""
    return max(refine, min(steps // 2, round(EFFORT * steps / epsilon)))


def _together(
    attack: Ensemble, problem: Problem, radii: list[float], refine: int, callback: Callback | None
) -> Iterator[Rung]:
    best: dict[float, AttackResult] = {}
    members = attack.members()
    hear = Relay(callback, len(members))
    for hear.part, member in enumerate(members):
        for rung in _rungs(member, ascending(problem, member), radii, refine, hear):
            known = best.get(rung.epsilon)
            best[rung.epsilon] = rung.result if known is None else stronger(known, rung.result)
            done, total = hear.part * rung.total + rung.done, len(members) * rung.total
            yield Rung(rung.epsilon, best[rung.epsilon], done, total)
        if hear.stopped:
            return


def _shrunk(attack: Minimal, problem: Problem, radii: list[float], callback: Callback | None) -> Iterator[Rung]:
    steps: list[Step] = []

    def hear(step: Step) -> bool | None:
        steps.append(step)
        return None if callback is None else callback(step)

    found = replace(attack, epsilon=radii[0]).run(problem, hear)
    if found.cancelled:
        return
    done = steps[-1].done if steps else 0
    for epsilon in radii:
        run = Run(problem, epsilon=epsilon, total=done)
        run.look(problem.clip(project(found.perturbation, epsilon, attack.norm, problem.region)))
        result = replace(run.result(), gradients=found.gradients, queries=found.queries + run.queries)
        yield Rung(epsilon, result, done, done)


def _afresh(
    attack: Attack,
    problem: Problem,
    radii: list[float],
    callback: Callback | None,
    wanted: Callable[[], float | None] | None,
) -> Iterator[Rung]:
    left = list(radii)
    hear = Relay(callback, len(radii))
    for hear.part in range(len(radii)):
        asked = wanted() if wanted is not None else None
        epsilon = left.pop(left.index(asked) if asked in left else 0)
        result = replace(attack, epsilon=epsilon).run(problem, hear)
        if hear.stopped:
            return
        yield Rung(epsilon, result, hear.done, hear.total)


def _running_minimum(best: dict[float, Rung]) -> Iterator[Rung]:
    lowest: AttackResult | None = None
    for epsilon in sorted(best):
        mine = best[epsilon].result
        if lowest is not None and (lowest.score < mine.score).any():
            both = stronger(mine, lowest)
            mine = replace(both, loss=mine.loss, gradients=mine.gradients, queries=mine.queries)
            yield replace(best[epsilon], result=mine)
        lowest = mine
