"""What an attack has to solve: a model, clean images, a mask to leave or to reach, and the limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cease_core.attacks.criteria import CRITERIA
from cease_core.attacks.losses import Loss, ascent, one_hot
from cease_core.errors import CeaseError
from cease_core.models.card import Mode
from cease_core.models.memory import BatchSize, in_batches
from cease_core.models.segmenter import NO_GRADIENT, Segmenter


class Answer(NamedTuple):
    """The model's answer to a batch: logits (N, K, *spatial), what is ascended (N,), and the score (N,).

    The score is what the attack is judged by; lower is stronger.
    """

    logits: Tensor
    loss: Tensor
    score: Tensor


Objective = Callable[["Problem", Tensor], tuple[Tensor, Tensor]]
"""From a problem and adversarial images to logits and the value (N,) that is ascended, with a graph."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A batch to attack, checked once. Make one with `pose`.

    Parameters
    ----------
    model
        Under attack.
    images
        Clean images, window fractions, shape (N, C, *spatial).
    labels
        The mask that the model should find, one-hot, shape (N, K, *spatial).
    goal
        The mask that the attack wants, of the same shape; None for an untargeted attack.
    objective
        What is ascended.
    criterion
        Key of `CRITERIA`: how alike two masks are (towards a goal, ``"dice"`` counts the background as a class),
        or ``"loss"`` to judge by what is ascended.
    region
        One where the scan may change, shape of ``images``; None for everywhere.
    low, high
        Allowed intensities, broadcastable to ``images``.
    cases, restart
        Which case of the batch as it was posed each one is, and which restart of it, shape (N,).
    batch
        How many cases go through the model at once.
    """

    model: Segmenter
    images: Tensor
    labels: Tensor
    goal: Tensor | None
    objective: Objective
    criterion: str
    region: Tensor | None
    low: Tensor
    high: Tensor
    cases: Tensor
    restart: Tensor
    batch: BatchSize
    _clean: list[Answer] = field(default_factory=list, repr=False)

    @classmethod
    def pose(
        cls,
        model: Segmenter,
        images: Tensor,
        labels: Tensor,
        loss: str | Loss,
        *,
        target: Tensor | None = None,
        region: Tensor | None = None,
        bounds: tuple[float, float] | None = None,
        criterion: str = "dice",
    ) -> Problem:
        """Check that everything fits together.

        Parameters
        ----------
        model
            Maps (N, C, *spatial) to logits (N, K, *spatial).
        images
            Window fractions, shape (N, C, *spatial).
        labels
            Class ids (N, *spatial); for multilabel also one channel a class, floating point.
        loss
            Key of `LOSSES`, or a function of logits, one-hot target and mode that returns (N,).
        target
            Mask to reach, like ``labels``; without one the attack flees from ``labels``.
        region
            Non-zero where the scan may change, broadcastable to ``images``.
        bounds
            Allowed intensities; by default the window, widened to each case's own range.
        criterion
            Key of `CRITERIA`, or ``"loss"``.

        Raises
        ------
        CeaseError
            If labels, target, region, bounds or the model's output do not fit.
        """
        images = images.detach().float()
        ascended = ascent(loss, targeted=target is not None)
        batch = BatchSize(len(images))
        logits = _clean_logits(model, images, batch)
        mode: Mode = model.mode
        truth = _mask(labels, images, logits, mode, "labels")
        goal = None if target is None else _mask(target, images, logits, mode, "target")
        if criterion != "loss" and criterion not in CRITERIA:
            raise CeaseError(f"unknown criterion {criterion!r}; choose one of {', '.join(CRITERIA)} or loss.")
        low, high = limits(images, bounds)
        problem = cls(
            model=model,
            images=images,
            labels=truth,
            goal=goal,
            objective=of_logits(ascended),
            criterion=criterion,
            region=None if region is None else _check_region(region, images),
            low=low,
            high=high,
            cases=torch.arange(len(images), device=images.device),
            restart=torch.zeros(len(images), dtype=torch.long),
            batch=batch,
        )
        # The check has asked already what every attack asks first.
        value = ascended(logits, problem.reference, mode)
        problem._clean.append(Answer(logits, value, problem.score(logits, value)))
        return problem

    @property
    def mode(self) -> Mode:
        return self.model.mode

    @property
    def targeted(self) -> bool:
        return self.goal is not None

    @property
    def reference(self) -> Tensor:
        """The mask that losses compare with: the goal if there is one, else the labels."""
        return self.labels if self.goal is None else self.goal

    def score(self, logits: Tensor, loss: Tensor) -> Tensor:
        """How well the attack did on each case (N,): lower is stronger."""
        if self.criterion == "loss":
            return -loss
        if not self.targeted:
            return CRITERIA[self.criterion](logits, self.labels, self.mode)
        criterion = "whole_dice" if self.criterion == "dice" else self.criterion
        return 1 - CRITERIA[criterion](logits, self.reference, self.mode)

    def clean(self) -> Answer:
        """The model's answer to the clean images; asked once."""
        if not self._clean:
            self._clean.append(self.look(torch.zeros_like(self.images)))
        return self._clean[0]

    def gradient(self, delta: Tensor, objective: Objective | None = None) -> tuple[Tensor, Answer]:
        """Gradient of the objective with respect to the image, at a perturbation.

        Parameters
        ----------
        delta
            Perturbation, shape of ``images``.
        objective
            What is ascended; by default the problem's own.

        Raises
        ------
        CeaseError
            If no gradient reaches the image.
        """
        ascended = objective or self.objective

        def one(part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            problem = self._slice(part)
            adversarial = (problem.images + delta[part]).requires_grad_()
            with torch.enable_grad():
                logits, loss = ascended(problem, adversarial)
                grad = None
                if loss.requires_grad:
                    (grad,) = torch.autograd.grad(loss.sum(), adversarial, allow_unused=True)
                if grad is None:
                    raise CeaseError(NO_GRADIENT)
            logits, loss = logits.detach(), loss.detach()
            return grad, logits, loss, problem.score(logits, loss)

        grad, *answer = _joined(in_batches(one, len(delta), self.batch))
        return grad, Answer(*answer)

    @torch.no_grad()
    def look(self, delta: Tensor, objective: Objective | None = None) -> Answer:
        """The model's answer at a perturbation, without a gradient."""
        ascended = objective or self.objective

        def one(part: slice) -> tuple[Tensor, ...]:
            problem = self._slice(part)
            logits, loss = ascended(problem, problem.images + delta[part])
            return logits, loss, problem.score(logits, loss)

        return Answer(*_joined(in_batches(one, len(delta), self.batch)))

    def clip(self, delta: Tensor) -> Tensor:
        """Keep ``images + delta`` within bounds; values already outside them may only stay."""
        return within(delta, self.images, self.low, self.high)

    @property
    def exact(self) -> Problem:
        """The same problem in full precision: itself, unless its model has less."""
        model = getattr(self.model, "exact", None)
        return self if model is None else self.judged_by(model)

    def judged_by(self, model: Segmenter) -> Problem:
        """The same problem for another model with the same classes."""
        return replace(self, model=model, _clean=[])

    def ascending(self, objective: Objective) -> Problem:
        """The same problem with another objective."""
        # What the clean images score does not depend on the objective, but their loss does.
        return replace(self, objective=objective, _clean=[])

    def part(self, index: Tensor) -> Problem:
        """Some of the cases, in any order, any of them more than once."""
        return self._take(index)

    def repeated(self, times: int) -> Problem:
        """Every case ``times`` over, restart after restart, as one batch."""
        if times == 1:
            return self
        count = len(self.images)
        several = self.part(torch.arange(count, device=self.images.device).repeat(times))
        restart = torch.arange(times).repeat_interleave(count)
        # A case more is a case more in memory: what does not fit is halved.
        return replace(several, restart=restart, batch=BatchSize(times * self.batch.size))

    def _slice(self, part: slice) -> Problem:
        return self if part.stop - part.start == len(self.images) else self._take(part)

    def _take(self, index: Tensor | slice) -> Problem:
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            goal=None if self.goal is None else self.goal[index],
            region=None if self.region is None else self.region[index],
            low=self.low[index],
            high=self.high[index],
            cases=self.cases[index],
            restart=self.restart[index.cpu() if isinstance(index, Tensor) else index],
            _clean=[Answer(*(t[index] for t in answer)) for answer in self._clean],
        )


def of_logits(loss: Loss) -> Objective:
    """The objective that looks at the logits alone."""

    def objective(problem: Problem, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        logits = problem.model(adversarial)
        return logits, loss(logits, problem.reference, problem.mode)

    return objective


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(t) for t in zip(*parts, strict=True))


@torch.no_grad()
def _clean_logits(model: Segmenter, images: Tensor, batch: BatchSize) -> Tensor:
    def one(part: slice) -> Tensor:
        logits = model(images[part])
        _check_logits(logits, images)
        return logits

    return torch.cat(in_batches(one, len(images), batch))


def _check_logits(logits: object, images: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise CeaseError(f"the model returns a {type(logits).__name__}; wrap it so that it returns logits alone.")
    if not torch.isfinite(logits).all():
        raise CeaseError("the model's logits are not finite on the clean image; check its weights and window.")
    if logits.shape[2:] != images.shape[2:]:
        raise CeaseError(
            f"the model's logits have grid {tuple(logits.shape[2:])}, the image {tuple(images.shape[2:])}; "
            "use a model that answers on the image's grid."
        )


def _mask(mask: Tensor, images: Tensor, logits: Tensor, mode: Mode, name: str) -> Tensor:
    ids = mask.shape == (len(images), *images.shape[2:])
    if not ids and len(mask) == len(images) and mask.shape[2:] == images.shape[2:]:
        # Anything else with channels would be broadcast against the logits without a word.
        if mode != "multilabel" or mask.shape != logits.shape:
            raise CeaseError(
                f"{name} of shape {tuple(mask.shape)} have channels; give class ids (N, *spatial), "
                "or, for a multilabel model, one channel a class."
            )
        if not mask.is_floating_point():
            raise CeaseError(f"{name} with one channel a class are {mask.dtype}; give them as floating point.")
    elif not ids:
        raise CeaseError(
            f"{name} of shape {tuple(mask.shape)} do not fit images of shape {tuple(images.shape)}; "
            f"choose the {name} of this scan."
        )
    return one_hot(mask, mode, logits.shape[1], name).to(images.device)


def within(delta: Tensor, images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The perturbation cut so that ``images + delta`` keeps to ``low`` and ``high``; see `Problem.clip`."""
    return delta.clamp(min=(low - images).clamp_max(0), max=(high - images).clamp_min(0))


def limits(images: Tensor, bounds: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """Lowest and highest intensity that each case may have: the bounds, or the window widened to its own range."""
    flat = images.flatten(1)
    shape = (-1, *(1,) * (images.ndim - 1))
    if bounds is None:
        return flat.amin(dim=1).clamp_max(0).view(shape), flat.amax(dim=1).clamp_min(1).view(shape)
    if not bounds[0] <= bounds[1]:
        raise CeaseError(f"bounds {bounds} are reversed; give (low, high).")
    low, high = (images.new_full((len(images), 1), b).view(shape) for b in bounds)
    return low, high


def _check_region(region: Tensor, images: Tensor) -> Tensor:
    try:
        region = (region != 0).to(images).expand_as(images)
    except RuntimeError as error:
        raise CeaseError(
            f"the region has shape {tuple(region.shape)}, the image {tuple(images.shape)}; draw it on this scan."
        ) from error
    if not region.flatten(1).any(dim=1).all():
        raise CeaseError("the region is empty, so nothing may change; draw it over some voxels.")
    return region
