"""ALMA prox: a minimal-norm attack that holds every pixel to a constraint of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About
from cease_core.attacks.losses import Loss, ascent, foreground
from cease_core.attacks.losses.pixelwise import margins
from cease_core.attacks.minimal import Minimal, MinimalResult
from cease_core.attacks.norms import magnitude, per_case, project
from cease_core.attacks.problem import Answer, Problem, of_logits
from cease_core.attacks.proximal import prox_l2, prox_linf
from cease_core.attacks.run import Best, Callback, Run
from cease_core.errors import CeaseError
from cease_core.models.card import Mode


@dataclass(frozen=True, kw_only=True)
class ALMAProx(Minimal):
    """Augmented Lagrangian with proximal splitting (Rony, Pesquet & Ben Ayed 2023, arXiv 2206.07179).

    Every pixel that has to fall is a constraint "the margin of the decision is on the other side", with a
    multiplier of its own. The attack descends size plus penalties: a gradient step on the penalties in a running
    metric, then the proximal operator of the norm within box, bounds and region. The smallest perturbation
    that broke the case is kept.

    Parameters
    ----------
    steps
        Gradient steps.
    rate
        First step as a share of the perturbation's size; it falls to a tenth of that.
    narrowing
        Share of the steps over which the constraints are narrowed from all to those that suffice; 0 starts with
        these. It helps where nothing but trying tells which pixels are easy; on trained networks the first
        margins nearly tell, and a long detour costs.
    loss
        Recorded, not ascended.

    Notes
    -----
    What differs from the paper, so that 100 steps do and every kind of model can be attacked:

    - The margin is divided by its own absolute value plus the mean absolute margin of the clean image, which,
      like the ratio of differences of logits, does not change with the logits' scale; that ratio needs three
      classes, this one a single logit.
    - The paper drops from the constraints the hardest 1 % of the pixels, step by step. Here the easiest are
      kept, in the end as few as bring the case to its bar if they fall. With the criterion ``"accuracy"`` and
      share .01 that is the same.
    - The penalties are averaged, and sizes and steps measured by the smallest size known, so that the balance
      does not depend on the number of pixels and on the size that is looked for.
    - At the end the perturbation is cut back as far as it still succeeds, which takes 8 forward passes.

    Raises
    ------
    CeaseError
        If a parameter is out of range.

    Examples
    --------
    >>> ALMAProx(steps=100).share
    0.5
    """

    about: ClassVar[About] = About(
        title="ALMA prox",
        group="minimal",
        definition="Descends size plus one penalty a pixel, each with its own multiplier, by proximal splitting.",
        source="Rony, Pesquet & Ben Ayed 2023, arXiv 2206.07179",
        when="To measure distortion with an attack that is not a search over radii: the smaller of both counts.",
        shown=("norm", "share", "steps"),
    )

    steps: int = 100
    rate: float = 0.2
    narrowing: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise CeaseError(f"steps is {self.steps}; give at least 1.")
        if not 0 < self.rate <= 1:
            raise CeaseError(f"rate is {self.rate}; give a share of the size above 0 and up to 1.")
        if not 0 <= self.narrowing <= 1:
            raise CeaseError(f"narrowing is {self.narrowing}; give a share of the steps from 0 to 1.")

    def perturb(self, problem: Problem, callback: Callback | None) -> MinimalResult:
        bar = self.bar(problem)
        if self.epsilon == 0:
            return self.report(Run(problem, epsilon=0.0, total=0).result(), problem, bar)
        # Cases are looked up by their place in this batch, and a loss that rises and falls with the
        # multipliers could not tell which of two perturbations is the stronger.
        recorded = ascent(self.loss, targeted=problem.targeted)
        posed = replace(
            problem.ascending(of_logits(recorded)),
            cases=torch.arange(len(problem.images), device=problem.images.device),
        )
        run = Run(posed, epsilon=self.epsilon, total=self.steps, callback=callback)
        smallest = _Smallest(posed, bar, self)
        smallest.look(torch.zeros_like(posed.images), posed.clean())
        constraints = _Constraints(posed, bar, recorded)
        delta = torch.zeros_like(posed.images)
        square = torch.zeros_like(delta)
        scale = torch.ones_like(bar)
        for step in range(self.steps):
            constraints.spare = max(0.0, 1 - step / (self.narrowing * self.steps)) if self.narrowing else 0.0
            gradient = run.gradient(delta, constraints.objective)
            broken = smallest.look(delta, constraints.answer)
            constraints.tighten(step)
            if run.over:
                break
            ever = smallest.size.isfinite()
            # Before anything succeeded the size is a guess, which grows until something does.
            reached = magnitude(delta, self.norm, posed.region).clamp_min(self.epsilon / _FIRST)
            size = self.rate * torch.where(ever, smallest.size, reached) * _decay(step, self.steps)
            scale = (scale / torch.where(broken, 1 + _ADJUST, 1 - _ADJUST)).clamp(*_SCALES)
            gradient = self._unit(gradient, posed)
            square = _MEMORY * square + (1 - _MEMORY) * gradient.square()
            metric = (square / (1 - _MEMORY ** (step + 1))).sqrt()
            metric = metric.clamp_min(1e-6 * per_case(metric.flatten(1).amax(dim=1), metric)).clamp_min(_TINY)
            delta = delta + per_case(size, delta) * gradient / metric
            delta = self._pull(posed, delta, metric, torch.where(ever, size / scale, 0.0))
        else:
            smallest.look(delta, run.look(delta))
            self._trim(run, smallest)
        run.best = smallest.or_else(run.best)
        return self.report(run.result(), problem, bar)

    def _trim(self, run: Run, smallest: _Smallest) -> None:
        """Bisect how far the smallest perturbation can be cut back as it is, without gradients."""
        low = torch.zeros_like(smallest.size)
        for _ in range(_TRIMS):
            radius = torch.where(smallest.size.isfinite(), (low + smallest.size) / 2, 0.0)
            trimmed = project(smallest.best.delta, radius, self.norm, run.problem.region)
            broken = smallest.look(trimmed, run.look(trimmed))
            low = torch.where(broken, low, radius)

    def _pull(self, problem: Problem, z: Tensor, metric: Tensor, weight: Tensor) -> Tensor:
        """The proximal operator within bounds, region and cap."""
        low, high = (problem.clip(torch.full_like(z, edge)) for edge in (-math.inf, math.inf))
        if problem.region is not None:
            z, low, high = (torch.where(problem.region > 0, t, 0.0) for t in (z, low, high))
        if self.norm == "linf":
            return prox_linf(z, metric, weight, low.clamp_min(-self.epsilon), high.clamp_max(self.epsilon))
        pulled = prox_l2(z, metric, weight / _values(problem).sqrt(), low, high)
        return project(pulled, self.epsilon, "l2", problem.region)

    def _unit(self, gradient: Tensor, problem: Problem) -> Tensor:
        """The gradient at the size in the dual norm that a norm's own gradient has: the two weigh the same."""
        if problem.region is not None:
            gradient = gradient * problem.region
        peak = gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        gradient = gradient / per_case(peak, gradient)
        flat = gradient.flatten(1)
        size = flat.abs().sum(dim=1) if self.norm == "linf" else flat.norm(dim=1) * _values(problem).sqrt()
        return gradient / per_case(size.clamp_min(_TINY), gradient)


def _values(problem: Problem) -> Tensor:
    """How many values of each case may change, shape (N,)."""
    region = torch.ones_like(problem.images) if problem.region is None else problem.region
    return region.flatten(1).sum(dim=1)


class _Smallest:
    """The smallest perturbation so far that broke each case."""

    def __init__(self, problem: Problem, bar: Tensor, attack: ALMAProx) -> None:
        self.problem = problem
        self.bar = bar
        self.norm = attack.norm
        self.size = torch.full_like(bar, math.inf)
        self.best = Best(torch.zeros_like(problem.images), problem.clean())

    def look(self, delta: Tensor, answer: Answer) -> Tensor:
        """Take over the cases that ``delta`` breaks and is the smallest for; return those it breaks, (N,)."""
        broken = answer.score <= self.bar
        size = magnitude(delta, self.norm, self.problem.region)
        smaller = broken & (size < self.size)
        self.size = torch.where(smaller, size, self.size)
        self.best = _either(self.best, delta, answer, smaller)
        return broken

    def or_else(self, strongest: Best) -> Best:
        """The smallest where there is one, else the strongest."""
        return _either(strongest, self.best.delta, self.best.answer, self.size.isfinite())


def _either(first: Best, delta: Tensor, answer: Answer, second: Tensor) -> Best:
    picked = (torch.where(per_case(second, new), new, old) for new, old in zip(answer, first.answer, strict=True))
    return Best(torch.where(per_case(second, delta), delta, first.delta), Answer(*picked))


class _Constraints:
    """One constraint a decision: at or below 0 where the decision is as the attack wants it.

    Parameters
    ----------
    problem
        Its ``cases`` number the batch from 0.
    bar
        Score (N,) at or below which a case is broken.
    recorded
        Loss that is reported.
    """

    def __init__(self, problem: Problem, bar: Tensor, recorded: Loss) -> None:
        self.problem = problem
        self.bar = bar
        self.recorded = recorded
        logits, self.loss, _ = (t.clone() for t in problem.clean())
        clean = margin(logits, problem.reference, problem.mode)
        self.logits = logits
        self.scale = clean.flatten(1).abs().mean(dim=1).clamp_min(torch.finfo(clean.dtype).tiny)
        self.values = torch.zeros_like(clean)
        self.before = torch.full_like(clean, math.inf)
        self.needed = torch.zeros_like(clean, dtype=torch.bool)
        self.fell = torch.zeros_like(self.needed)
        self.multiplier = torch.ones_like(clean)
        self.steepness = torch.full_like(clean, _STEEPNESS)
        self.spare = 0.0

    @property
    def answer(self) -> Answer:
        """The model's answer when the objective was asked last."""
        return Answer(self.logits, self.loss, self.problem.score(self.logits, self.loss))

    def objective(self, problem: Problem, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """The penalties' gradient under the recorded loss's value: what rises is minus the mean penalty."""
        case = problem.cases
        logits = problem.model(adversarial)
        found = margin(logits, problem.reference, problem.mode)
        values = found / (found.abs() + per_case(self.scale[case], found))
        values = (-values if problem.targeted else values) + _TOLERANCE
        now = values.detach()
        needed = easiest(now, logits.detach(), problem, self.bar[case], self.spare)
        penalties = penalty(values, self.multiplier[case], self.steepness[case]) * needed
        ascended = -penalties.flatten(1).sum(dim=1) / needed.flatten(1).sum(dim=1)
        shown = self.recorded(logits.detach(), problem.reference, problem.mode)
        # A batch that did not fit into memory comes again in parts: nothing here depends on what was noted.
        for noted, seen in zip(
            (self.logits, self.loss, self.values, self.needed), (logits.detach(), shown, now, needed), strict=True
        ):
            noted[case] = seen
        return logits, shown + (ascended - ascended.detach())

    def tighten(self, step: int) -> None:
        """Update multipliers and steepness from what `objective` saw last."""
        self.fell |= self.values <= 0
        if step % _CHECK == _CHECK - 1:
            stuck = self.needed & ~self.fell & (self.values > _IMPROVED * self.before)
            self.steepness = torch.where(stuck, 2 * self.steepness, self.steepness)
            self.fell.zero_()
            self.before = self.values.clone()
        slope = penalty_slope(self.values, self.multiplier, self.steepness)
        towards = (_MEMORY * self.multiplier + (1 - _MEMORY) * slope).clamp(1e-12, 1)
        self.multiplier = torch.where(self.needed, towards, self.multiplier)


def margin(logits: Tensor, reference: Tensor, mode: Mode) -> Tensor:
    """By how much each decision is as in the reference, in logits; below 0 where it is not.

    Parameters
    ----------
    logits, reference
        Shape (N, K, *spatial); the reference one-hot.

    Returns
    -------
    Tensor
        Shape (N, 1, *spatial) for multiclass, a decision a pixel; else one a channel, (N, K, *spatial).
    """
    return -margins(logits, reference, mode)


def easiest(values: Tensor, logits: Tensor, problem: Problem, bar: Tensor, spare: float = 0.0) -> Tensor:
    """The constraints of lowest value, as few as bring the score to the bar once they all hold.

    Parameters
    ----------
    values
        Of the constraints, (N, 1 or K, *spatial); at or below 0 they hold.
    logits
        What says, for a pixel whose class is not the reference's, which class it has instead.
    spare
        How many more are taken, from 0, none, to 1, all; geometric in between.

    Returns
    -------
    Tensor
        Shape of ``values``, bool; all, if even they would not be enough.
    """
    reference = problem.reference > 0.5
    other = ~reference
    if problem.mode == "multiclass":
        runner_up = logits.masked_fill(reference, -math.inf).argmax(dim=1, keepdim=True)
        other = torch.zeros_like(reference).scatter_(1, runner_up, True)
    held, broken = (other, reference) if problem.targeted else (reference, other)
    values = values / _effect(problem, values, bar)
    ranked = values.flatten(1).sort(dim=1).values
    left = torch.zeros_like(bar, dtype=torch.long)
    right = torch.full_like(left, ranked.shape[1] - 1)
    for _ in range(max(1, (ranked.shape[1] - 1).bit_length())):
        middle = (left + right) // 2
        falls = values <= per_case(ranked.gather(1, middle[:, None])[:, 0], values)
        enough = problem.score(torch.where(falls, broken, held).float() - 0.5, bar) <= bar
        left, right = torch.where(enough, left, middle + 1), torch.where(enough, middle, right)
        left = torch.minimum(left, right)
    every = ranked.shape[1]
    last = ((right + 1) * (every / (right + 1)) ** spare).long().clamp(max=every) - 1
    last = torch.maximum(last, right)
    return values <= per_case(ranked.gather(1, last[:, None])[:, 0], values)


def _effect(problem: Problem, values: Tensor, bar: Tensor) -> Tensor:
    """What one decision weighs in the criterion, where the case stands at its bar."""
    if problem.criterion == "accuracy":
        return torch.ones_like(values)
    # A decision in the structure adds to Dice's intersection and to its sum, one outside to the sum alone:
    # at a Dice of d they change it by (2 − d) : d.
    at = ((1 - bar) if problem.targeted else bar).clamp(0.1, 1)
    inside = foreground(problem.reference, problem.mode) > 0.5
    if problem.mode == "multiclass":
        inside = inside.any(dim=1, keepdim=True)
    return torch.where(inside, per_case((2 - at) / at, values), 1.0)


def penalty(value: Tensor, multiplier: Tensor, steepness: Tensor) -> Tensor:
    """Penalty-Lagrangian P2 of a constraint: near ``multiplier · value`` about 0, cubic above, bounded below.

    Birgin, Castillo & Martínez 2005; in the form of Rony et al. 2021 (arXiv 2011.11857), with the steepness of
    the lower branch at least 1.
    """
    over, under = value.clamp_min(0), value.clamp_max(0)
    above = multiplier * over + multiplier * steepness * over**2 + steepness**2 * over**3 / 6
    return above + multiplier * under / (1 - steepness.clamp_min(1) * under)


def penalty_slope(value: Tensor, multiplier: Tensor, steepness: Tensor) -> Tensor:
    """Derivative of `penalty` with respect to the value: the next multiplier."""
    over, under = value.clamp_min(0), value.clamp_max(0)
    above = 2 * multiplier * steepness * over + steepness**2 * over**2 / 2
    return above + multiplier / (1 - steepness.clamp_min(1) * under) ** 2


def _decay(step: int, steps: int) -> float:
    """From 1 to a tenth."""
    return 1 / (1 + 9 * step / max(1, steps - 1))


_MEMORY = 0.8
_STEEPNESS = 0.01
_TOLERANCE = 1e-4
_CHECK = 10
_IMPROVED = 0.95
_ADJUST = 0.1
_SCALES = (0.1, 10.0)
_FIRST = 16
_TINY = 1e-30
_TRIMS = 8
