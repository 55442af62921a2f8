"""Several attacks as one: each case keeps the strongest."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

from cease_core.attacks.base import Attack
from cease_core.attacks.losses import ascent
from cease_core.attacks.problem import Problem, of_logits
from cease_core.attacks.run import AttackResult, Callback, Run, Step, stronger


@dataclass(frozen=True, kw_only=True)
class Ensemble(Attack):
    """Runs its members one after the other; what they spend is summed."""

    @abstractmethod
    def members(self) -> tuple[Attack, ...]:
        """The attacks, each with its own loss, at this attack's ε, norm and seed."""

    def perturb(self, problem: Problem, callback: Callback | None) -> AttackResult:
        if self.epsilon == 0:
            return Run(problem, epsilon=0.0, total=0).result()
        members = self.members()
        best: AttackResult | None = None
        for i, member in enumerate(members):
            stopped = False

            def hear(step: Step, before: int = i) -> bool:
                nonlocal stopped
                done, total = before * step.total + step.done, len(members) * step.total
                stopped = callback is not None and callback(Step(done, total, step.loss)) is False
                return not stopped

            found = member.run(ascending(problem, member), hear)
            best = found if best is None else stronger(best, found)
            if stopped:
                return replace(best, cancelled=found.cancelled or i + 1 < len(members))
        assert best is not None
        return best


def ascending(problem: Problem, attack: Attack) -> Problem:
    """The same problem with the loss of ``attack`` as its objective."""
    return problem.ascending(of_logits(ascent(attack.loss, targeted=problem.targeted)))
