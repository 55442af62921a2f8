"""Tell how the quarters of the image were shuffled."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.tasks.rotation import Guess

PERMUTATIONS: tuple[tuple[int, ...], ...] = tuple(permutations(range(4)))
"""Which tile stands at each place, in reading order; the first changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Jigsaw(Guess):
    """Tell in which of the 24 orders the 2 × 2 tiles of the image stand (Noroozi & Favaro 2016, arXiv 1603.09246).

    Tiles lie in the plane of the last two axes; in a volume a tile has its whole depth. Where a size is odd, the
    line in the middle belongs to no tile and stays.

    Examples
    --------
    >>> Jigsaw().present(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([23]))
    tensor([[[[4., 3.],
              [2., 1.]]]])
    """

    title: ClassVar[str] = "Jigsaw puzzle"
    source: ClassVar[str] = "Noroozi & Favaro 2016, arXiv 1603.09246"
    answers: ClassVar[int] = len(PERMUTATIONS)

    def present(self, images: Tensor, draws: Tensor) -> Tensor:
        rows, columns = images.shape[-2] // 2, images.shape[-1] // 2
        vertical = (slice(0, rows), slice(images.shape[-2] - rows, None))
        horizontal = (slice(0, columns), slice(images.shape[-1] - columns, None))
        places = [(..., v, h) for v in vertical for h in horizontal]
        tiles = torch.stack([images[place] for place in places], dim=1)
        orders = torch.tensor(PERMUTATIONS, device=images.device)[draws.to(images.device)]
        cases = torch.arange(len(images), device=images.device)
        shuffled = images.clone()
        for place, order in zip(places, orders.unbind(dim=1), strict=True):
            shuffled[place] = tiles[cases, order]
        return shuffled
