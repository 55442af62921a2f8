"""An attack under way: what it spent, the strongest perturbation so far, and whether it was told to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cease_core.attacks.criteria import CRITERIA
from cease_core.attacks.norms import per_case
from cease_core.attacks.problem import Answer, Objective, Problem
from cease_core.errors import CeaseError


@dataclass(frozen=True)
class Step:
    """Progress of a running attack: ``done`` of ``total`` steps, with the loss (N,) before the step."""

    done: int
    total: int
    loss: Tensor


Callback = Callable[[Step], bool | None]
"""Called after each step; returning ``False`` stops the attack, which then returns its best so far."""


class Relay:
    """Tells a callback of several runs, one after the other, as if they were one.

    Parameters
    ----------
    callback
        Who is told; None for nobody.
    parts
        How many runs there are. Each is taken to have as many steps as the one that is under way.
    """

    def __init__(self, callback: Callback | None, parts: int) -> None:
        self.callback = callback
        self.parts = parts
        self.part = 0
        self.stopped = False
        self.done = self.total = 0

    def __call__(self, step: Step) -> bool:
        self.done, self.total = self.part * step.total + step.done, self.parts * step.total
        told = Step(self.done, self.total, step.loss)
        self.stopped = self.callback is not None and self.callback(told) is False
        return not self.stopped


@dataclass(frozen=True, eq=False, kw_only=True)
class AttackResult:
    """Outcome of an attack on a batch, on the device of its input.

    Parameters
    ----------
    adversarial, perturbation
        Shape (N, C, *spatial); ``adversarial = images + perturbation`` in float32.
    logits
        The model's answer to ``adversarial``, shape (N, K, *spatial).
    dice
        Dice (N,) of the decided mask with the labels.
    target_dice
        Dice (N,) with the mask that was to be reached; None for an untargeted attack.
    score
        The criterion (N,) by which the strongest perturbation was kept; lower is stronger.
    loss
        Trace of what was ascended, shape (evaluations, N).
    epsilon
        Radius it was made for.
    gradients, queries
        Evaluations spent on each case (N,), with a gradient and without one.
    cancelled
        Whether the callback stopped it early.
    """

    adversarial: Tensor
    perturbation: Tensor
    logits: Tensor
    dice: Tensor
    score: Tensor
    loss: Tensor
    epsilon: float
    gradients: Tensor
    queries: Tensor
    target_dice: Tensor | None = None
    cancelled: bool = False

    def strongest_of(self, restarts: int) -> AttackResult:
        """One result a case from ``restarts`` of each (see `Problem.repeated`); what was spent is summed."""
        if restarts == 1:
            return self
        count = len(self.score) // restarts
        case = torch.arange(count, device=self.score.device)
        chosen = self.score.view(restarts, count).argmin(dim=0) * count + case
        picked: dict[str, Any] = {
            name: getattr(self, name)[chosen] for name in _PER_CASE if getattr(self, name) is not None
        }
        return replace(
            self,
            **picked,
            loss=self.loss[:, chosen],
            gradients=self.gradients.view(restarts, count).sum(dim=0),
            queries=self.queries.view(restarts, count).sum(dim=0),
        )


def stronger(a: AttackResult, b: AttackResult) -> AttackResult:
    """Case by case the lower score of two results at one ε (``a`` where they tie); what was spent is summed."""
    return either(a, b, b.score < a.score)


def either(a: AttackResult, b: AttackResult, second: Tensor) -> AttackResult:
    """Case by case ``b`` where ``second`` (N,) says so, else ``a``; what was spent is summed."""
    picked: dict[str, Any] = {
        name: torch.where(per_case(second, getattr(a, name)), getattr(b, name), getattr(a, name))
        for name in _PER_CASE
        if getattr(a, name) is not None
    }
    return replace(
        a,
        **picked,
        loss=torch.cat((a.loss, b.loss)),
        gradients=a.gradients + b.gradients,
        queries=a.queries + b.queries,
        cancelled=a.cancelled or b.cancelled,
    )


def among(whole: AttackResult, some: AttackResult, index: Tensor) -> AttackResult:
    """The result ``some`` of the cases ``index`` with those of ``whole`` for the others, which cost nothing."""

    def placed(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, index, new)

    put: dict[str, Any] = {
        name: placed(getattr(whole, name), getattr(some, name))
        for name in _PER_CASE
        if getattr(whole, name) is not None
    }
    return replace(
        some,
        **put,
        loss=whole.loss[-1].expand(len(some.loss), -1).index_copy(1, index, some.loss),
        gradients=placed(torch.zeros_like(whole.gradients), some.gradients),
        queries=placed(torch.zeros_like(whole.queries), some.queries),
    )


_PER_CASE = ("adversarial", "perturbation", "logits", "dice", "target_dice", "score")


class Best:
    """The strongest perturbation met so far, case by case: lowest score, then highest loss."""

    def __init__(self, delta: Tensor, answer: Answer) -> None:
        self.delta = delta.clone()
        self.answer = Answer(*(t.clone() for t in answer))

    def update(self, delta: Tensor, answer: Answer) -> None:
        """Take over the cases in which ``delta`` is stronger."""
        mine = self.answer
        better = (answer.score < mine.score) | ((answer.score == mine.score) & (answer.loss > mine.loss))
        if better.device.type == "cpu" and not better.any():
            return
        # Not by index: on a GPU that would wait for the mask.
        self.delta = torch.where(per_case(better, delta), delta, self.delta)
        self.answer = Answer(
            *(torch.where(per_case(better, new), new, old) for new, old in zip(answer, mine, strict=True))
        )


class Run:
    """What every attack does between its steps: judge, keep the best, count, report.

    Parameters
    ----------
    problem
        What is attacked. The clean images are the first best so far.
    epsilon
        Radius, for the record.
    total
        Steps that the attack expects to take.
    callback
        Told of each step.
    stop_below
        Score at which a case is done and costs nothing more, one for all or (N,); None goes on to the end with all.
    before
        Steps already told of, where several runs count as one.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        epsilon: float,
        total: int,
        callback: Callback | None = None,
        stop_below: float | Tensor | None = None,
        before: int = 0,
    ) -> None:
        self.problem = problem
        self.epsilon = epsilon
        self.total = total
        self.callback = callback
        self.stop_below = stop_below
        self.done = before
        self.stopped = False
        self.trace: list[Tensor] = []
        self.best = Best(torch.zeros_like(problem.images), problem.clean())
        self.score = self.best.answer.score  # (N,), of the latest evaluation, kept or not
        self.gradients = torch.zeros(len(problem.images), dtype=torch.long, device=problem.images.device)
        self.queries = torch.ones_like(self.gradients)

    @property
    def over(self) -> bool:
        """Whether to take no further step: told to stop, or every case is done."""
        return self.stopped or not self._open().any()

    def gradient(self, delta: Tensor, objective: Objective | None = None, *, keep: bool = True) -> Tensor:
        """Gradient at ``delta``; the evaluation is one step: judged, counted and reported.

        Parameters
        ----------
        delta
            Shape (N, C, *spatial).
        objective
            What is ascended; by default the problem's own.
        keep
            Whether ``delta`` is allowed as a result.

        Returns
        -------
        Tensor
            Shape of ``delta``; zero for cases that are done.
        """
        grad = torch.zeros_like(delta)

        def ask(problem: Problem, part: Tensor, index: Tensor | None) -> Answer:
            nonlocal grad
            slope, answer = problem.gradient(part, objective)
            grad = slope if index is None else grad.index_copy(0, index, slope)
            return answer

        self.gradients += self._open()
        answer = self._ask(delta, ask)
        self._judge(delta, answer, keep=keep)
        self.step(answer.loss)
        return grad

    def look(self, delta: Tensor, objective: Objective | None = None, *, keep: bool = True) -> Answer:
        """The model's answer at ``delta``: judged and counted, but no step."""
        self.queries += self._open()
        answer = self._ask(delta, lambda problem, part, _: problem.look(part, objective))
        self._judge(delta, answer, keep=keep)
        return answer

    def _ask(self, delta: Tensor, ask: Callable[[Problem, Tensor, Tensor | None], Answer]) -> Answer:
        """Ask for the cases that are not done; those that are keep their best answer."""
        going = self._open()
        if going.all():
            return ask(self.problem, delta, None)
        index = going.nonzero()[:, 0]
        if not len(index):
            return self.best.answer
        some = ask(self.problem.part(index), delta[index], index)
        return Answer(*(old.index_copy(0, index, new) for old, new in zip(self.best.answer, some, strict=True)))

    def step(self, loss: Tensor) -> None:
        """Report one step."""
        self.done += 1
        if self.callback is not None and self.callback(Step(self.done, self.total, loss)) is False:
            self.stopped = True

    def result(self) -> AttackResult:
        """The strongest perturbation, judged once more in full precision where the model has less."""
        problem, best = self.problem, self.best
        whole = problem.exact
        if whole is not problem:
            # Where reduced precision misled, the clean image may be the stronger one: keep it a candidate.
            judge = Best(torch.zeros_like(best.delta), whole.clean())
            judge.update(best.delta, whole.look(best.delta))
            best = judge
        logits = best.answer.logits
        return AttackResult(
            adversarial=problem.images + best.delta,
            perturbation=best.delta,
            logits=logits,
            dice=CRITERIA["dice"](logits, problem.labels, problem.mode),
            target_dice=None if problem.goal is None else CRITERIA["dice"](logits, problem.goal, problem.mode),
            score=best.answer.score,
            loss=torch.stack(self.trace or [best.answer.loss]),
            epsilon=self.epsilon,
            gradients=self.gradients,
            queries=self.queries,
            cancelled=self.stopped and self.done < self.total,
        )

    def _open(self) -> Tensor:
        if self.stop_below is None:
            return torch.ones_like(self.gradients, dtype=torch.bool)
        return self.best.answer.score > self.stop_below

    def _judge(self, delta: Tensor, answer: Answer, *, keep: bool) -> None:
        if not torch.isfinite(answer.loss).all():
            raise CeaseError(
                "the model's logits are not finite on an attacked image; choose a smaller ε or check its weights."
            )
        self.trace.append(answer.loss)
        self.score = answer.score
        if keep:
            self.best.update(delta, answer)
