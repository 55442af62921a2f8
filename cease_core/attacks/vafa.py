"""VAFA: information is dropped from the image's frequencies until the mask breaks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from monai.losses.ssim_loss import SSIMLoss
from torch import Tensor

from cease_core.attacks.base import About, Attack
from cease_core.attacks.dct import Cosines, cropped, padded
from cease_core.attacks.losses import Loss
from cease_core.attacks.norms import per_case, project
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import AttackResult, Callback, Run
from cease_core.errors import CeaseError

# Tables are in grey levels of the window, as in the paper.
LEVELS = 255.0
CENTRE = 128.0
CHOICES = 16

Update = Callable[[Tensor, Tensor], Tensor]
"""From a table and the gradient (N, C, *spatial) at what it does to the images to the next table."""


@dataclass(frozen=True, kw_only=True)
class VAFA(Attack):
    """Adversarial quantisation of block-wise cosine coefficients (Hanif et al. 2023, arXiv 2307.07269).

    Each block's coefficients c become q · φ(c / q) with a rounding φ that has a gradient (`soft_round`; the
    authors' code anneals a hyperbolic tangent instead). The table q has one value for each coefficient of each
    block, and is to raise the attack's loss minus ``structure`` · (1 − SSIM). The paper limits the table alone;
    here ``epsilon`` caps the perturbation as well, by projection onto the ball, so that it can be compared with
    other attacks. Quantising moves a coefficient by half a step at most, and none that is zero.

    SSIM of a volume is the mean over its slices.

    Parameters
    ----------
    steps
        Updates of the table.
    update
        ``"sign"`` is the paper's: along the sign of the table's own gradient. A large coefficient jumps from
        multiple to multiple as its q grows, so that this gradient says little. ``"choose"`` takes, for every
        coefficient, the one of 16 values of q that moves it farthest along the sum of its gradients so far:
        on the shipped cardiac model it brings Dice to 0.00 at 8/255 where the paper's stops at 0.57.
    q_max
        Largest step of quantisation, in grey levels of 255 to the window, above 1; the smallest is 1.
    edge
        Of a block, in pixels or voxels along every axis.
    structure
        Weight of the dissimilarity 1 − SSIM.

    Examples
    --------
    >>> VAFA(q_max=20).edge
    8
    """

    about: ClassVar[About] = About(
        title="VAFA",
        group="frequency",
        definition="Block-wise cosine coefficients are rounded to a table that climbs the loss and keeps SSIM high.",
        source="Hanif et al. 2023, arXiv 2307.07269",
        when="To see whether lost detail, as in lossy compression, breaks the mask; PGD is stronger at the same ε.",
        shown=("q_max", "norm", "loss", "steps"),
    )

    # As in the paper; a masked loss falls where the attack succeeds, and the tables are compared by it.
    loss: str | Loss = "soft_dice"
    steps: int = 20
    update: Literal["choose", "sign"] = "choose"
    q_max: float = 40.0
    edge: int = 8
    structure: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise CeaseError(f"steps is {self.steps}; give at least 1.")
        if self.update not in ("choose", "sign"):
            raise CeaseError(f"unknown update {self.update!r}; choose one of choose, sign.")
        if not (math.isfinite(self.q_max) and self.q_max > 1):
            raise CeaseError(f"q_max is {self.q_max}; give a number of grey levels above 1, such as 40.")
        if self.edge < 2:
            raise CeaseError(f"edge is {self.edge}; give a block of at least 2 pixels.")
        if not (math.isfinite(self.structure) and self.structure >= 0):
            raise CeaseError(f"structure is {self.structure}; give a number ≥ 0.")

    def perturb(self, problem: Problem, callback: Callback | None) -> AttackResult:
        if self.epsilon == 0:
            return Run(problem, epsilon=0.0, total=0).result()
        run = Run(problem, epsilon=self.epsilon, total=self.steps, callback=callback, stop_below=self.stop_below)
        rounding = Rounding(problem.images, self.edge)
        table = torch.full_like(rounding.coefficients, self.q_max)
        update = {"choose": self._choose, "sign": self._climb}[self.update](rounding)
        for _ in range(self.steps):
            delta = self._inside(problem, rounding.change(table))
            grad = run.gradient(delta)
            if self.structure:
                grad = grad - self.structure * dissimilarity_slope(problem.images, delta)
            if problem.region is not None:
                grad = grad * problem.region
            # As if the ball were not there: a clipped value would tell its table nothing.
            table = update(table, grad)
            if run.over:
                break
        run.look(self._inside(problem, rounding.change(table)))
        return run.result()

    def _climb(self, rounding: Rounding) -> Update:
        stride = 2.5 * (self.q_max - 1) / self.steps

        def update(table: Tensor, grad: Tensor) -> Tensor:
            leaf = table.requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(rounding.change(leaf), leaf, grad)
            return (leaf.detach() + stride * slope.sign()).clamp(1.0, self.q_max)

        return update

    def _choose(self, rounding: Rounding) -> Update:
        values = torch.linspace(1.0, self.q_max, CHOICES).tolist()
        uphill = torch.zeros_like(rounding.coefficients)

        def update(table: Tensor, grad: Tensor) -> Tensor:
            nonlocal uphill
            slope = rounding.slope(grad)
            mean = slope.flatten(1).abs().mean(dim=1).clamp_min(torch.finfo(slope.dtype).tiny)
            uphill = uphill + slope / per_case(mean, slope)
            chosen, most = table, torch.full_like(table, -math.inf)
            for value in values:
                gain = uphill * rounding.moved(torch.full_like(table, value))
                chosen = torch.where(gain > most, value, chosen)
                most = torch.maximum(most, gain)
            return chosen

        return update

    def _inside(self, problem: Problem, delta: Tensor) -> Tensor:
        return problem.clip(project(delta, self.epsilon, self.norm, problem.region))


class Rounding:
    """Quantises the coefficients of images (N, C, *spatial), block by block."""

    def __init__(self, images: Tensor, edge: int) -> None:
        self.edge = edge
        self.shape = images.shape[2:]
        self.cosines = Cosines([edge] * len(self.shape), images)
        self.coefficients = self.cosines.forward(padded(images, edge) * LEVELS - CENTRE)

    def moved(self, table: Tensor) -> Tensor:
        """How far a table (shape of ``coefficients``) moves each coefficient, in grey levels."""
        return table * soft_round(self.coefficients / table) - self.coefficients

    def change(self, table: Tensor) -> Tensor:
        """What a table does to the images, in window fractions (N, C, *spatial)."""
        return cropped(self.cosines.inverse(self.moved(table)), self.shape) / LEVELS

    def slope(self, grad: Tensor) -> Tensor:
        """Gradient with respect to the coefficients, from that with respect to the images (N, C, *spatial)."""
        return self.cosines.forward(padded(grad, self.edge, "constant")) / LEVELS


def soft_round(values: Tensor) -> Tensor:
    """Rounding with a gradient: ⌊x⌉ + (x − ⌊x⌉)³, whose slope is 3 (x − ⌊x⌉)²."""
    nearest = values.detach().round()
    return nearest + (values - nearest) ** 3


def dissimilarity_slope(images: Tensor, delta: Tensor) -> Tensor:
    """Gradient of each case's 1 − SSIM with respect to its perturbation (N, C, *spatial)."""
    with torch.enable_grad():
        leaf = delta.detach().requires_grad_()
        clean, changed = images, images + leaf
        if images.ndim == 5:
            clean, changed = (t.transpose(1, 2).flatten(0, 1) for t in (clean, changed))
        edge = min(11, *images.shape[-2:])
        loss = SSIMLoss(spatial_dims=2, win_size=edge - 1 + edge % 2, reduction="sum")
        total = loss(changed, clean) * (len(images) / len(clean))
        (slope,) = torch.autograd.grad(total, leaf)
    return slope
