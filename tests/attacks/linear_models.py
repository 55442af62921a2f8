"""Models whose smallest breaking perturbation is known: every decision is linear in its own pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from cease_core.attacks.criteria import dice
from cease_core.attacks.losses import one_hot
from cease_core.models import Mode

GENERATOR = torch.Generator().manual_seed(3)
WEIGHTS = torch.randn(2, 6, 5, generator=GENERATOR)
IMAGES = torch.rand(3, 2, 6, 5, generator=GENERATOR)
WIDE = (-9.0, 9.0)
OUTPUTS: dict[Mode, int] = {"binary": 1, "multiclass": 2, "multilabel": 2}


class PixelByPixel:
    """A pixel's logit is a weighted sum of its channels; for multilabel each channel decides a class."""

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode

    def __call__(self, images: Tensor) -> Tensor:
        each = WEIGHTS * (images - 0.5)
        if self.mode == "multilabel":
            return each
        logit = each.sum(dim=1, keepdim=True)
        return logit if self.mode == "binary" else torch.cat((-logit / 2, logit / 2), dim=1)

    def labels(self, images: Tensor = IMAGES) -> Tensor:
        """The model's own mask, so that the clean Dice is 1."""
        logits = self(images)
        if self.mode == "multilabel":
            return (logits > 0).float()
        return logits.argmax(dim=1) if self.mode == "multiclass" else (logits > 0)[:, 0].long()

    def radii(self, images: Tensor = IMAGES) -> Tensor:
        """Radius in ℓ∞ at which each decision flips: its margin over the ℓ1 norm of its weights."""
        logits = self(images)
        if self.mode == "multilabel":
            return logits.abs() / WEIGHTS.abs()
        margin = logits.abs() if self.mode == "binary" else (logits[:, 1:] - logits[:, :1]).abs()
        return margin / WEIGHTS.abs().sum(dim=0)

    def smallest(self, bar: float = 0.5, images: Tensor = IMAGES) -> Tensor:
        """Smallest ℓ∞ radius (N,) at which flipping all that flips brings the Dice to ``bar``."""
        logits, radii = self(images), self.radii(images)
        truth = one_hot(self.labels(images), self.mode, OUTPUTS[self.mode])
        found = []
        for i in range(len(images)):
            case = slice(i, i + 1)
            found.append(
                min(
                    float(r)
                    for r in radii[i].flatten()
                    if dice(torch.where(radii[case] <= r, -1, 1) * logits[case], truth[case], self.mode) <= bar
                )
            )
        return torch.tensor(found)


class WholeImage:
    """One weighted sum of all values, the answer for every pixel: ``logit`` on the first image."""

    mode: Mode = "binary"

    def __init__(self, logit: float) -> None:
        self.logit = logit

    def __call__(self, images: Tensor) -> Tensor:
        return (self.logit + (WEIGHTS * (images - IMAGES[:1])).sum(dim=(1, 2, 3), keepdim=True)).expand(-1, 1, 6, 5)

    def smallest(self) -> float:
        """Smallest root mean square that turns the answer: the margin over the weights' ℓ2 norm."""
        return abs(self.logit) / float(WEIGHTS.norm()) / WEIGHTS.numel() ** 0.5
