"""MedIS: the fewest small steps that break a mask, over several surrogate losses.

Two protocols share the steps. The published one (``legacy=True``) is there to compare with published figures;
the corrected one, the default, differs in four ways:

=====================  ======================================  =========================================
what                   published                               corrected
=====================  ======================================  =========================================
metric of step s       read before its update: after s − 1     read after its update: after s
clean image broken     success at step 1                       step 0, not eligible: no success
mask                   probabilities stretched to [0, 1] per   the model's own decision
                       image, then rounded: never empty
losses made for        given probabilities                     given logits
logits
=====================  ======================================  =========================================

The threshold is lenient: the background's IoU counts half, so erasing a structure that fills 10 % of the image
is a success only once the structure's own IoU falls below .1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About, Attack
from cease_core.attacks.losses import Loss, ascent, probabilities
from cease_core.attacks.norms import per_case, project, steepest
from cease_core.attacks.problem import Objective, Problem, of_logits
from cease_core.attacks.run import AttackResult, Best, Callback, Run
from cease_core.attacks.surrogates import SURROGATES, as_published, weighted_sum
from cease_core.errors import CeaseError
from cease_core.models.card import Mode

ALL: dict[str, Loss] = SURROGATES | {"weighted_sum": weighted_sum}
"""What `MedIS` can ascend."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MedISResult(AttackResult):
    """Outcome of `MedIS` on a batch.

    Parameters
    ----------
    steps_needed
        Step of the first success (N,), floating point; infinite where there was none, and 0 for a clean image
        that counted as broken already (corrected protocol only).
    surrogate
        Name of the loss that was kept, case by case.
    mean_iou
        What success was judged by (N,), with the labels or the target, at ``perturbation``; of the stretched
        mask in the published protocol.
    """

    steps_needed: Tensor
    surrogate: tuple[str, ...]
    mean_iou: Tensor

    @property
    def success(self) -> Tensor:
        """Whether the attack, not the clean image, reached the threshold (N,), bool."""
        return (self.steps_needed > 0) & self.steps_needed.isfinite()


def attack_success_rate(steps_needed: Tensor) -> float:
    """Share of successes among the cases that were not broken before the attack; NaN if there are none.

    Parameters
    ----------
    steps_needed
        As in `MedISResult`, of one batch or of many put together, shape (N,).

    Examples
    --------
    >>> attack_success_rate(torch.tensor([0.0, 2.0, 4.0, 7.0, math.inf]))
    0.75
    """
    eligible = steps_needed[steps_needed > 0]
    return eligible.isfinite().float().mean().item()


def distortion(steps_needed: Tensor) -> float:
    """Mean number of steps over the successes; NaN if there are none.

    In the corrected protocol a step is an ℓ∞ distance of ``step_size``; in the published one the first costs none.

    Examples
    --------
    >>> distortion(torch.tensor([0.0, 2.0, 4.0, math.inf]))
    3.0
    """
    return steps_needed[(steps_needed > 0) & steps_needed.isfinite()].float().mean().item()


@dataclass(frozen=True, kw_only=True)
class MedIS(Attack):
    """Small steps from the clean image for each surrogate loss; per case the loss that needs the fewest is kept.

    A case counts as broken once the mean IoU over background and classes is at most ``threshold``, or with a
    target at least ``target_threshold``. Where losses need equally many steps the lower mean IoU wins (towards a
    target the higher), then the first named; where none succeeds, the strongest iterate by mean IoU is returned.
    A loss costs a case nothing after its success. A case that a clean image loses, or whose target the clean
    image reaches, is left as it is.

    ``loss`` and ``stop_below`` play no part. ``criterion`` is what the result's ``score`` tells, not what is
    kept. Where the model runs in reduced precision, its full precision is attacked, since steps are counted.

    Parameters
    ----------
    surrogates
        Names from `ALL`, each attacked in turn.
    steps
        At most; no step is taken that could leave the ball, so fewer where ``epsilon < steps * step_size``.
    step_size
        In window fractions, of each value for ``linf``, root mean square for ``l2``.
    legacy
        Follow the published protocol to the letter; see the module's table. Decisions of softmax models have no
        threshold, so for them the stretch changes nothing.
    threshold, target_threshold
        Mean IoU at which a mask is left, or a target reached.

    Raises
    ------
    CeaseError
        If a parameter is out of range or a surrogate unknown.

    Examples
    --------
    >>> round(MedIS().epsilon * 255), len(MedIS().surrogates)
    (10, 6)
    """

    about: ClassVar[About] = About(
        title="MedIS",
        group="minimal",
        definition="Steps of 1/255 on each of six losses; per case the one that breaks the mask in the fewest.",
        source="Shukla & Gupta 2023, doi 10.1007/s11042-023-15575-8",
        when="To compare with that paper's success rate and distortion; it stops as soon as it succeeds.",
        shown=("norm", "steps", "legacy"),
    )

    epsilon: float = 10 / 255
    surrogates: tuple[str, ...] = tuple(ALL)
    steps: int = 10
    step_size: float = 1 / 255
    legacy: bool = False
    threshold: float = 0.5
    target_threshold: float = 0.45

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.surrogates if name not in ALL]
        if unknown or not self.surrogates:
            raise CeaseError(
                f"{f'unknown surrogate {unknown[0]!r}' if unknown else 'no surrogate'}; choose from {', '.join(ALL)}."
            )
        if self.steps < 1:
            raise CeaseError(f"steps is {self.steps}; give at least 1.")
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            raise CeaseError(f"step_size is {self.step_size}; give a number above 0, such as 1/255.")
        for name in ("threshold", "target_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise CeaseError(f"{name} is {getattr(self, name)}; give a mean IoU from 0 to 1.")

    @property
    def updates(self) -> int:
        """Updates whose outcome is judged, for each surrogate."""
        # The published protocol never looks at what its last update did.
        # ε = s · step_size is s steps, although their quotient may round to a little less.
        return min(self.steps - self.legacy, int(self.epsilon / self.step_size + 1e-6))

    def perturb(self, problem: Problem, callback: Callback | None) -> MedISResult:
        problem = problem.exact
        names = self.surrogates if self.updates else self.surrogates[:1]
        whole = Run(problem, epsilon=self.epsilon, total=self.updates * len(names))
        delta = torch.zeros_like(problem.images)
        score, reached = (delta.new_full((len(delta),), math.inf) for _ in range(2))
        kept = torch.zeros_like(problem.cases)
        for i, name in enumerate(names):
            run = Run(
                self.posed(problem, name),
                epsilon=self.epsilon,
                total=whole.total,
                callback=callback,
                stop_below=self.limit(problem),
                before=whole.done,
            )
            found, best = self.climb(run), run.best
            better = (found < reached) | ((found == reached) & (best.answer.score < score))
            delta = torch.where(per_case(better, delta), best.delta, delta)
            score = torch.where(better, best.answer.score, score)
            reached, kept = torch.where(better, found, reached), torch.where(better, i, kept)
            whole.gradients += run.gradients
            whole.queries += run.queries
            whole.trace += run.trace
            whole.done, whole.stopped = run.done, run.stopped
            if run.stopped:
                break
        # The criterion has no say in what is kept, so it is judged once more outside the run.
        whole.best = Best(delta, problem.look(delta))
        whole.queries += 1
        return MedISResult(
            **vars(whole.result()),
            steps_needed=reached + 1 if self.legacy else reached,
            surrogate=tuple(names[k] for k in kept.tolist()),
            mean_iou=1 - score if problem.targeted else score,
        )

    def limit(self, problem: Problem) -> float:
        """Score at which a case is broken: mean IoU with the labels, or one minus that with the target."""
        return 1 - self.target_threshold if problem.targeted else self.threshold

    def posed(self, problem: Problem, surrogate: str) -> Problem:
        """The same problem, ascending a surrogate and judged by mean IoU."""
        if self.legacy:
            objective = _deciding_as_published(ascent(as_published(surrogate), targeted=problem.targeted))
        else:
            objective = of_logits(ascent(ALL[surrogate], targeted=problem.targeted))
        return replace(problem.ascending(objective), criterion="mean_iou")

    def climb(self, run: Run) -> Tensor:
        """Step until every case is broken; ``run.best`` holds each case's first success, or its strongest iterate.

        Returns
        -------
        Tensor
            Updates (N,) that the first success took, floating point; infinite where there was none.
        """
        problem, end = run.problem, run.done + self.updates
        delta = torch.zeros_like(problem.images)
        reached = torch.full_like(run.best.answer.score, math.inf)

        def note(made: int) -> Tensor:
            broken = run.best.answer.score <= self.limit(problem)
            return torch.where(broken & reached.isinf(), made, reached)

        made, reached = 0, note(0)
        while made < self.updates and not run.over:
            grad = run.gradient(delta)
            reached = note(made)
            moved = delta + self.step_size * steepest(grad, self.norm, problem.region)
            moved = problem.clip(project(moved, self.epsilon, self.norm, problem.region))
            delta = torch.where(per_case(reached.isinf(), delta), moved, delta)
            made += 1
        if self.updates:
            run.look(delta)
            reached = note(made)
        if run.done < end and not run.stopped:
            # Every case is broken: the steps left over are reported as one.
            run.done = end - 1
            run.step(run.best.answer.loss)
        return reached


def _deciding_as_published(ascended: Loss) -> Objective:
    def objective(problem: Problem, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        logits = problem.model(adversarial)
        return stretched(logits, problem.mode), ascended(logits, problem.reference, problem.mode)

    return objective


def stretched(logits: Tensor, mode: Mode) -> Tensor:
    """Logits that decide like probabilities stretched to [0, 1], for each case and channel, and then rounded.

    The highest probability is always decided as foreground and the lowest as background, whatever they are.
    """
    if mode == "multiclass":
        return logits
    p = probabilities(logits, mode).flatten(2)
    low, high = p.amin(dim=2, keepdim=True), p.amax(dim=2, keepdim=True)
    return ((p - low) / (high - low + 1e-8) - 0.5).view_as(logits)
