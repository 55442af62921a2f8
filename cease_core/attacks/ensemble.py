"""Several attacks as one: each case keeps the strongest."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

from cease_core.attacks.base import Attack
from cease_core.attacks.losses import ascent
from cease_core.attacks.problem import Problem, of_logits
from cease_core.attacks.run import AttackResult, Callback, Relay, Run, Step, among, stronger
from cease_core.errors import CeaseError


@dataclass(frozen=True, kw_only=True)
class Ensemble(Attack):
    """Runs its members one after the other; what they spend is summed."""

    @abstractmethod
    def members(self) -> tuple[Attack, ...]:
        """The attacks, each with its own loss, at this attack's ε, norm and seed."""

    def check(self, problem: Problem) -> None:
        """As for every attack, and the members must be comparable."""
        super().check(problem)
        if problem.criterion == "loss":
            raise CeaseError(
                f"{self.about.title} cannot be judged by its loss, as its members ascend different ones; "
                "choose the criterion dice or another."
            )

    def perturb(self, problem: Problem, callback: Callback | None) -> AttackResult:
        if self.epsilon == 0:
            return Run(problem, epsilon=0.0, total=0).result()
        members = self.members()
        best: AttackResult | None = None
        hear = Relay(callback, len(members))
        for hear.part, member in enumerate(members):
            going = None if best is None or self.stop_below is None else best.score > self.stop_below
            if best is None or going is None or going.all():
                found = member.run(ascending(problem, member), hear)
                best = found if best is None else stronger(best, found)
            elif going.any():
                index = going.nonzero()[:, 0]
                found = member.run(ascending(problem.part(index), member), hear)
                best = stronger(best, among(best, found, index))
            else:
                hear(Step(1, 1, best.loss[-1]))
            if hear.stopped:
                return replace(best, cancelled=best.cancelled or hear.part + 1 < len(members))
        assert best is not None
        return best


def ascending(problem: Problem, attack: Attack) -> Problem:
    """The same problem with the loss of ``attack`` as its objective."""
    return problem.ascending(of_logits(ascent(attack.loss, targeted=problem.targeted)))
