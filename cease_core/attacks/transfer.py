"""Perturbations made on one model and judged on another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from cease_core.attacks.base import About, Attack
from cease_core.attacks.gradient import MIFGSM
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import AttackResult, Callback, Run, Step
from cease_core.errors import CeaseError
from cease_core.models.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """An attack crafted on a source model; its perturbation is then shown to the model under attack.

    What the attacker sees of the model under attack is nothing at all (Papernot et al. 2016, arXiv 1605.07277).

    Parameters
    ----------
    source
        Model that is attacked in its place: the same channels, classes and mode.
    inner
        The attack on the source; ε, norm, loss, criterion and seed are taken from this one.

    Raises
    ------
    CeaseError
        When it runs: if there is no source, or its classes are not those of the model under attack.

    Examples
    --------
    >>> Transfer().inner.about.title
    'MI-FGSM'
    """

    about: ClassVar[About] = About(
        title="Transfer",
        group="black box",
        definition="The perturbation is made on another model and judged on this one.",
        source="Papernot, McDaniel & Goodfellow 2016, arXiv 1605.07277; Dong et al. 2018, arXiv 1710.06081",
        when="To test for gradient masking: if it beats the white-box attacks, those are broken.",
        shown=("norm", "loss"),
    )

    source: Segmenter | None = None
    inner: Attack = field(default_factory=MIFGSM)

    def perturb(self, problem: Problem, callback: Callback | None) -> AttackResult:
        if self.source is None:
            raise CeaseError("transfer needs a second model to make the perturbation on; choose one as its source.")
        if self.source.mode != problem.mode:
            raise CeaseError(
                f"the source is a {self.source.mode} model, the one under attack {problem.mode}; "
                "choose a source with the same classes."
            )
        with torch.no_grad():
            seen = self.source(problem.images[:1])
        if seen.shape[1:] != problem.labels.shape[1:]:
            raise CeaseError(
                f"the source answers with shape {tuple(seen.shape[1:])}, the model under attack with "
                f"{tuple(problem.labels.shape[1:])}; choose a source with the same classes."
            )
        inner = replace(
            self.inner,
            epsilon=self.epsilon,
            norm=self.norm,
            loss=self.loss,
            criterion=self.criterion,
            stop_below=None,
            seed=self.seed,
        )
        steps: list[Step] = []

        def hear(step: Step) -> bool:
            steps.append(step)
            return callback is None or callback(Step(step.done, step.total + 1, step.loss)) is not False

        made = inner.run(problem.judged_by(self.source), hear)
        done = steps[-1].done if steps else 0
        run = Run(problem, epsilon=self.epsilon, total=done + 1, callback=callback, before=done)
        answer = run.look(made.perturbation)
        if not made.cancelled:
            run.step(answer.loss)
        result = run.result()
        return replace(
            result,
            gradients=made.gradients,
            queries=result.queries + made.queries,
            cancelled=made.cancelled,
        )
