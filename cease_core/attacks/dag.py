"""DAG: press the pixels that still hold out across the border to another class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About
from cease_core.attacks.criteria import decide
from cease_core.attacks.gradient import Direction, Iterative
from cease_core.attacks.norms import per_case, steepest
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import Run


@dataclass(frozen=True, kw_only=True)
class DAG(Iterative):
    """Dense adversary generation (Xie et al. 2017, arXiv 1703.08603), in a ball.

    Each step ascends Σ (z_wanted - z_rival) over the active pixels, by γ · r / ‖r‖∞ where r is the gradient.
    Untargeted, a pixel is active while it is decided as labelled; z_rival is its label's logit, and the wanted
    class comes from one random cycle through the classes. Towards a target it is active until it shows it,
    and z_rival is the strongest other logit: the label's, until a third class wins the pixel. With sigmoids every
    channel is a pixel of two classes. A case without active pixels stands still.

    The paper has no ball and takes 200 steps of γ = 0.5/255. Here every step is projected, the strongest
    iterate is kept even if pixels hold out, and larger steps make do with fewer. ``loss`` is not used.

    Parameters
    ----------
    step_size
        In window fractions; by default ε / 4.
    reach
        γ in step sizes, for ``linf``: how far the value with the largest gradient moves, before projection.
        Most move far less. For ``l2`` the root mean square of a step is its size, as in every attack.

    Examples
    --------
    >>> DAG(epsilon=8 / 255).size(8 / 255) * 255
    2.0
    """

    about: ClassVar[About] = About(
        title="DAG",
        group="targeted",
        definition="Ascends the logit of a wrong class over the right one's, summed over the pixels not yet won.",
        source="Xie et al. 2017, arXiv 1703.08603",
        when="The first dense attack, to compare with older papers; towards a target or away from the mask.",
        shown=("norm", "steps"),
    )

    random: bool = False
    reach: float = 16.0

    def size(self, epsilon: float) -> float:
        return self.step_size or epsilon / 4

    def direction(self, problem: Problem) -> Direction:
        if self.norm == "l2":
            return lambda grad: steepest(grad, self.norm, problem.region)

        def over_largest(grad: Tensor) -> Tensor:
            if problem.region is not None:
                grad = grad * problem.region
            largest = grad.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(grad.dtype).tiny)
            return self.reach * (grad / per_case(largest, grad))

        return over_largest

    def climb(self, run: Run, delta: Tensor, *, epsilon: float, steps: int, step_size: float) -> Tensor:
        def objective(problem: Problem, adversarial: Tensor) -> tuple[Tensor, Tensor]:
            logits = problem.model(adversarial)
            return logits, self.advantage(logits, problem)

        run.problem = run.problem.ascending(objective)
        # Ties in the score are broken by the loss, so the clean images need the same one.
        clean = run.best.answer
        run.best.answer = clean._replace(loss=self.advantage(clean.logits, run.problem))
        return super().climb(run, delta, epsilon=epsilon, steps=steps, step_size=step_size)

    def advantage(self, logits: Tensor, problem: Problem) -> Tensor:
        """Sum (N,) of z_wanted - z_rival over the active pixels, never above 0."""
        decided, labelled = decide(logits.detach(), problem.mode), problem.labels > 0.5
        goal = None if problem.goal is None else problem.goal > 0.5
        if problem.mode != "multiclass":
            wanted = ~labelled if goal is None else goal
            active = decided != wanted
            margin = torch.where(wanted, logits, -logits)
        elif goal is None:
            active = (decided & labelled).any(dim=1)
            wanted = labelled[:, self.origin(labelled.shape[1])]
            margin = (logits * wanted).sum(dim=1) - (logits * labelled).sum(dim=1)
        else:
            active = (decided & ~goal).any(dim=1)
            margin = (logits * goal).sum(dim=1) - logits.masked_fill(goal, -torch.inf).amax(dim=1)
        return (margin * active).flatten(1).sum(dim=1)

    def origin(self, classes: int) -> Tensor:
        """Which class is sent to each one: a cycle through all of them, drawn from the seed."""
        order = torch.randperm(classes, generator=torch.Generator().manual_seed(self.seed))
        return torch.empty_like(order).scatter_(0, order, order.roll(1))
