"""Fill in what squares hide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import DenseHead
from cease_core.tasks.reconstruction import everywhere


@dataclass(frozen=True, kw_only=True)
class Inpainting(Task):
    """Give back the clean image where squares hide it (context encoders: Pathak et al. 2016, arXiv 1604.07379).

    The encoder sees the visible pixels' mean, channel by channel, in place of the hidden ones. The target
    (N, C + 1, *spatial) is the image with the mask as its last channel; the prediction has the image's C channels
    and is judged under the mask alone.

    Parameters
    ----------
    share
        Share of the image that is hidden, in (0, 0.75]; the last square is cut short so that every case has it.
    edge
        Edge of a square, or of a cube, as a share of the image's along each axis, in (0, 1).

    Raises
    ------
    CeaseError
        If a parameter is out of range.

    Examples
    --------
    >>> Inpainting(share=0.25).draw((3, 8, 8), torch.Generator()).sum()
    tensor(16)
    """

    title: ClassVar[str] = "Inpainting"
    source: ClassVar[str] = "Pathak et al. 2016, arXiv 1604.07379"
    presents: ClassVar[bool] = True

    share: float = 0.28
    edge: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.75:
            raise CeaseError(f"share is {self.share}; give a share of the image above 0 and up to 0.75.")
        if not 0 < self.edge < 1:
            raise CeaseError(f"edge is {self.edge}; give a share of the image's edge between 0 and 1.")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Which pixels to hide: a mask (1, *spatial), boolean."""
        spatial = shape[1:]
        edges = [max(1, round(self.edge * s)) for s in spatial]
        mask = np.zeros(spatial, dtype=bool)  # many tiny steps, for which NumPy is several times as fast
        missing = max(1, round(self.share * mask.size))
        while missing:
            places = torch.rand(len(spatial), generator=generator, device=generator.device).tolist()
            corner = [int(u * (s - e + 1)) for u, s, e in zip(places, spatial, edges, strict=True)]
            square = mask[tuple(slice(c, c + e) for c, e in zip(corner, edges, strict=True))]
            fresh = ~square
            fresh &= fresh.cumsum().reshape(fresh.shape) <= missing
            square |= fresh
            missing -= int(fresh.sum())
        return torch.from_numpy(mask).unsqueeze(0)

    def present(self, images: Tensor, draws: Tensor) -> Tensor:
        hidden = draws.to(images)
        axes = tuple(range(2, images.ndim))
        visible = 1 - hidden
        mean = (images * visible).sum(axes, keepdim=True) / visible.sum(axes, keepdim=True).clamp_min(1)
        return images * visible + mean * hidden

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        return torch.cat([images.detach(), draws.to(images)], dim=1)

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return DenseHead(widths, setting.ndim, setting.channels)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        images, hidden = target[:, :-1], target[:, -1:]
        error = ((prediction - images).abs() * hidden).flatten(1).sum(dim=1)
        return error / (hidden.flatten(1).sum(dim=1) * images.shape[1]).clamp_min(1)

    def constant(self, targets: Tensor) -> Tensor:
        # Every case hides equally many pixels, so their common median is the best for the mean over cases.
        hidden = targets[:, -1] > 0
        medians = torch.stack([channel[hidden].median() for channel in targets[:, :-1].unbind(dim=1)])
        return everywhere(medians, tuple(targets.shape[2:]))
