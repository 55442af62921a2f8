"""What every attack is and returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cease_core.attacks.losses import LOSSES, hard_dice, one_hot
from cease_core.attacks.norms import Norm
from cease_core.errors import CeaseError
from cease_core.models.card import Mode
from cease_core.models.segmenter import Segmenter


@dataclass(frozen=True)
class Step:
    """Progress of a running attack: ``done`` of ``total`` steps, with the loss (N,) before the step."""

    done: int
    total: int
    loss: Tensor


Callback = Callable[[Step], bool | None]
"""Called after each step; returning ``False`` stops the attack, which then returns its best so far."""


@dataclass(frozen=True, eq=False)
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
    loss
        Loss trace, shape (evaluations, N).
    epsilon
        Radius it was made for.
    gradients
        Gradient evaluations spent on each case.
    cancelled
        Whether the callback stopped it early.
    """

    adversarial: Tensor
    perturbation: Tensor
    logits: Tensor
    dice: Tensor
    loss: Tensor
    epsilon: float
    gradients: int
    cancelled: bool = False


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack with its parameters; call it on a batch.

    Parameters
    ----------
    epsilon
        Radius in window fractions: of every value for ``linf``, root mean square for ``l2``.
    norm
        ``"linf"`` or ``"l2"``.
    loss
        What is ascended, a key of `cease_core.attacks.LOSSES`. The default is the strongest single one,
        or within .01 of it, on five of the six shipped models (``benchmarks/results/demo_scenes.md``).
    seed
        Of the random start.

    Raises
    ------
    CeaseError
        If a parameter is out of range.
    """

    epsilon: float = 8 / 255
    norm: Norm = "linf"
    loss: str = "soft_dice"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise CeaseError(f"epsilon is {self.epsilon}; give a number of window fractions ≥ 0, such as 8/255.")
        if self.norm not in ("linf", "l2"):
            raise CeaseError(f"unknown norm {self.norm!r}; choose linf or l2.")
        if self.loss not in LOSSES:
            raise CeaseError(f"unknown loss {self.loss!r}; choose one of {', '.join(LOSSES)}.")

    def __call__(
        self,
        model: Segmenter,
        images: Tensor,
        labels: Tensor,
        *,
        region: Tensor | None = None,
        bounds: tuple[float, float] | None = None,
        callback: Callback | None = None,
    ) -> AttackResult:
        """Perturb ``images`` so that ``model`` disagrees with ``labels``.

        Parameters
        ----------
        model
            Maps (N, C, *spatial) to logits (N, K, *spatial); best `cease_core.models.prepare`-d.
        images
            Window fractions, shape (N, C, *spatial).
        labels
            Class ids (N, *spatial).
        region
            Where the scan may change, broadcastable to ``images``; all else stays bit-identical.
        bounds
            Allowed intensities; by default the window, widened to each case's own range.
        callback
            Told of every step; returns ``False`` to stop.

        Raises
        ------
        CeaseError
            If labels, region or the model's output do not fit.
        """
        problem = Problem.pose(model, images, labels, self.loss, region=region, bounds=bounds)
        return self.run(problem, callback)

    @abstractmethod
    def run(self, problem: Problem, callback: Callback | None = None) -> AttackResult:
        """Attack a posed problem."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A batch to attack, checked once: the model, the clean images, the target and the limits."""

    model: Segmenter
    images: Tensor
    target: Tensor
    loss: str
    region: Tensor | None
    low: Tensor
    high: Tensor

    @classmethod
    def pose(
        cls,
        model: Segmenter,
        images: Tensor,
        labels: Tensor,
        loss: str,
        *,
        region: Tensor | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> Problem:
        images = images.detach().float()
        mode: Mode = model.mode
        with torch.no_grad():
            logits = model(images[:1])
        if not isinstance(logits, Tensor):
            raise CeaseError(f"the model returns a {type(logits).__name__}; wrap it so that it returns logits alone.")
        if not torch.isfinite(logits).all():
            raise CeaseError("the model's logits are not finite on the clean image; check its weights and window.")
        if logits.shape[2:] != images.shape[2:]:
            raise CeaseError(
                f"the model's logits have grid {tuple(logits.shape[2:])}, the image {tuple(images.shape[2:])}; "
                "use a model that answers on the image's grid."
            )
        spatial = labels.shape[-(images.ndim - 2) :]
        if spatial != images.shape[2:] or labels.shape[0] != images.shape[0]:
            raise CeaseError(
                f"labels of shape {tuple(labels.shape)} do not fit images of shape {tuple(images.shape)}; "
                "choose the labels of this scan."
            )
        target = one_hot(labels, mode, logits.shape[1]).to(images.device)
        if region is not None:
            region = _check_region(region, images)
        flat = images.flatten(1)
        shape = (-1, *(1,) * (images.ndim - 1))
        if bounds is None:
            low, high = flat.amin(dim=1).clamp_max(0).view(shape), flat.amax(dim=1).clamp_min(1).view(shape)
        else:
            if bounds[0] > bounds[1]:
                raise CeaseError(f"bounds {bounds} are reversed; give (low, high).")
            low, high = (
                images.new_full((len(flat), 1), bounds[0]).view(shape),
                images.new_full((len(flat), 1), bounds[1]).view(shape),
            )
        return cls(model, images, target, loss, region, low, high)

    @property
    def mode(self) -> Mode:
        return self.model.mode

    def evaluate(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (N,) and hard Dice (N,) of some logits."""
        loss = LOSSES[self.loss](logits, self.target, self.mode)
        return loss, hard_dice(logits.detach(), self.target, self.mode)

    def gradient(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input gradient, logits, loss (N,) and Dice (N,) at a perturbation."""
        adversarial = (self.images + delta).requires_grad_()
        with torch.enable_grad():
            logits = self.model(adversarial)
            loss, dice = self.evaluate(logits)
            if not loss.requires_grad:
                raise CeaseError(
                    "no gradient reaches the image through this model; use one without a hard decision inside."
                )
            (grad,) = torch.autograd.grad(loss.sum(), adversarial)
        return grad, logits.detach(), loss.detach(), dice

    @torch.no_grad()
    def look(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, loss (N,) and Dice (N,) at a perturbation, without a gradient."""
        logits = self.model(self.images + delta)
        loss, dice = self.evaluate(logits)
        return logits, loss, dice

    def clip(self, delta: Tensor) -> Tensor:
        """Keep ``images + delta`` within bounds; values already outside them may only stay."""
        return delta.clamp(min=(self.low - self.images).clamp_max(0), max=(self.high - self.images).clamp_min(0))


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


class Best:
    """The strongest perturbation met so far, case by case: lowest Dice, then highest loss."""

    def __init__(self, delta: Tensor, logits: Tensor, loss: Tensor, dice: Tensor) -> None:
        self.delta, self.logits, self.loss, self.dice = (
            delta.clone(),
            logits.clone(),
            loss.clone(),
            dice.clone(),
        )

    def update(self, delta: Tensor, logits: Tensor, loss: Tensor, dice: Tensor) -> None:
        better = (dice < self.dice) | ((dice == self.dice) & (loss > self.loss))
        for name, value in (("delta", delta), ("logits", logits), ("loss", loss), ("dice", dice)):
            mine: Tensor = getattr(self, name)
            mine[better] = value[better].to(mine.dtype)

    def result(
        self, problem: Problem, trace: list[Tensor], epsilon: float, gradients: int, cancelled: bool = False
    ) -> AttackResult:
        return AttackResult(
            adversarial=problem.images + self.delta,
            perturbation=self.delta,
            logits=self.logits,
            dice=self.dice,
            loss=torch.stack(trace),
            epsilon=epsilon,
            gradients=gradients,
            cancelled=cancelled,
        )
