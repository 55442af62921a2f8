"""Random perturbations: what an attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About, Attack
from cease_core.attacks.norms import project
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import AttackResult, Callback, Run
from cease_core.errors import CeaseError


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Attack):
    """Every value moved by ε up or down at random; the worst of some draws is kept.

    Parameters
    ----------
    draws
        How often it is drawn anew.

    Examples
    --------
    >>> RandomNoise().draws
    10
    """

    about: ClassVar[About] = About(
        title="Random signs",
        group="control",
        definition="±ε at every value at random, the worst of a few draws.",
        source="control",
        when="As the control: what does not clearly beat it is no attack.",
        shown=("norm", "draws"),
    )

    draws: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise CeaseError(f"draws is {self.draws}; give at least 1.")

    def perturb(self, problem: Problem, callback: Callback | None) -> AttackResult:
        if self.epsilon == 0:
            return Run(problem, epsilon=0.0, total=0).result()
        run = Run(problem, epsilon=self.epsilon, total=self.draws, callback=callback, stop_below=self.stop_below)
        for draw in range(self.draws):
            answer = run.look(problem.clip(self._draw(problem, draw)))
            run.step(answer.loss)
            if run.over:
                break
        return run.result()

    def _draw(self, problem: Problem, draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
        signs = torch.randint(0, 2, problem.images.shape[1:], generator=generator) * 2 - 1
        delta = signs.to(problem.images).expand_as(problem.images) * self.epsilon
        return project(delta, self.epsilon, self.norm, problem.region)
