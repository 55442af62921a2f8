"""Small nets and images to attack: every mode, two and three dimensions, any range of intensities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cease_core.models import Mode, predict_labels

OUTPUTS: dict[Mode, int] = {"binary": 1, "multiclass": 3, "multilabel": 2}


class SmoothNet(nn.Module):
    """Random convolutions, curved enough that one step misses what several reach.

    Its logits have mean 0 and deviation 1 on the images of `calibration`.
    """

    def __init__(self, mode: Mode, calibration: Tensor) -> None:
        super().__init__()
        self.mode = mode
        ndim = calibration.ndim - 2
        conv = nn.Conv2d if ndim == 2 else nn.Conv3d
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = conv(calibration.shape[1], 6, 3, padding=1)
            self.last = conv(6, OUTPUTS[mode], 3, padding=1)
        with torch.no_grad():
            self.first.weight *= 8 / (calibration.max() - calibration.min())
            logits = self(calibration).transpose(0, 1).flatten(1)
            deviation = logits.std(dim=1)
            self.last.weight /= deviation.view(-1, *(1,) * (ndim + 1))
            self.last.bias.sub_(logits.mean(dim=1)).div_(deviation)

    def encode(self, images: Tensor) -> list[Tensor]:
        return [torch.tanh(self.first(images))]

    def decode(self, features: list[Tensor], shape: tuple[int, ...]) -> Tensor:
        assert features[0].shape[2:] == shape
        return self.last(features[0])

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images), tuple(images.shape[2:]))


@dataclass(frozen=True, eq=False)
class Target:
    """A batch of images, the net that is attacked, and the net's own clean answer as labels (clean Dice 1)."""

    net: SmoothNet
    images: Tensor
    labels: Tensor


@cache
def target(mode: Mode, ndim: int, low: float = 0.0, high: float = 1.0, cases: int = 2) -> Target:
    """Blurred noise with many values at ``low`` and ``high`` exactly, where clipping bites."""
    generator = torch.Generator().manual_seed(1)
    shape = (16, 14) if ndim == 2 else (8, 6, 7)
    coarse = torch.rand(cases, 2, *(5,) * ndim, generator=generator)
    blurred = F.interpolate(coarse, shape, mode="bilinear" if ndim == 2 else "trilinear")
    images = low + (high - low) * ((blurred - 0.5) * 2.5 + 0.5).clamp(0, 1)
    net = SmoothNet(mode, images).eval()
    with torch.no_grad():
        logits = net(images)
    # Ids cannot say that two structures overlap, so a multilabel reference has a channel for each.
    return Target(net, images, (logits > 0).float() if mode == "multilabel" else predict_labels(logits, mode))
