"""Tell by which multiple of 90° the image was turned; home of what tasks that guess a change share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import GlobalHead


@dataclass(frozen=True, kw_only=True)
class Guess(Task):
    """Tell which of equally likely changes the encoder sees the image after.

    What is drawn of a case is the number of the change, a scalar. Target: these numbers (N,); prediction: logits
    (N, answers).

    Attributes
    ----------
    answers
        Number of changes; change 0 is none.
    """

    presents: ClassVar[bool] = True
    answers: ClassVar[int]

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(self.answers, (), generator=generator, device=generator.device)

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        return draws.to(images.device)

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        return GlobalHead(widths, self.answers)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(prediction, target, reduction="none")

    def constant(self, targets: Tensor) -> Tensor:
        shares = F.one_hot(targets, self.answers).float().mean(dim=0, keepdim=True)
        # The floor keeps answers that no case has finite.
        return shares.clamp_min(1e-7).log()


@dataclass(frozen=True, kw_only=True)
class Rotation(Guess):
    """Tell by how many quarter turns the image was turned (Gidaris, Singh & Komodakis 2018, arXiv 1803.07728).

    Turns are counter-clockwise in the plane of the last two axes. Of an image that is not square in this plane, the
    square in its middle is turned and then continued to the old size by its border pixels, after no turn as after
    any other: the shape alone would give a quarter turn away, and so would a border that did not turn.

    Examples
    --------
    >>> Rotation().present(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([1]))
    tensor([[[[2., 4.],
              [1., 3.]]]])
    """

    title: ClassVar[str] = "Rotation"
    source: ClassVar[str] = "Gidaris, Singh & Komodakis 2018, arXiv 1803.07728"
    answers: ClassVar[int] = 4

    def present(self, images: Tensor, draws: Tensor) -> Tensor:
        rows, columns = images.shape[-2:]
        edge = min(rows, columns)
        above, left = (rows - edge) // 2, (columns - edge) // 2
        square = images[..., above : above + edge, left : left + edge]
        cases = zip(square, draws.tolist(), strict=True)
        turned = torch.stack([torch.rot90(case, turns, (-2, -1)) for case, turns in cases])
        if rows == columns:
            return turned
        margins = (left, columns - edge - left, above, rows - edge - above)
        return F.pad(turned, (*margins, *(0,) * (2 * images.ndim - 8)), mode="replicate")
