"""Square: random search with squares, for models whose gradient is hidden or useless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cease_core.attacks.base import About, Attack
from cease_core.attacks.losses import Loss
from cease_core.attacks.norms import per_case, project
from cease_core.attacks.problem import Problem
from cease_core.attacks.run import AttackResult, Callback, Run
from cease_core.errors import CeaseError

# The squares' share of the image is halved at these of 10 000 queries (paper, section 5).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TILES = 5


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Score-based random search (Andriushchenko et al. 2020, arXiv 1912.00049): forward passes only.

    Each query changes one square of every image, a cube of a volume, and what raises the loss is kept, case by
    case. Under ``linf`` a square is ±ε in each channel, from stripes along the last axis. Under ``l2`` a second
    square is emptied, and what it held, together with what the ball has left, goes into the first as two humps
    of opposite sign; humps fall off with one over the distance, where the paper sums rectangles to much the
    same. With a region, squares lie in the smallest box around it.

    Parameters
    ----------
    queries
        Forward passes, the start's included and the clean image's not.
    share
        Of the image that the first squares cover, halved nine times on the way, when the paper does. The paper
        starts at 0.05 with 10 000 queries; the few hundred that are usual here need a larger start.

    Examples
    --------
    >>> Square(queries=2000).about.group
    'black box'
    """

    about: ClassVar[About] = About(
        title="Square",
        group="black box",
        definition="Random squares at the edge of the ball; what raises the loss is kept. No gradient is asked for.",
        source="Andriushchenko et al. 2020, arXiv 1912.00049",
        when="As a check on hidden gradients: where it beats PGD, PGD was misled. It needs thousands of queries.",
        shown=("norm", "loss", "queries"),
    )

    # Not a masked loss: it falls where the attack succeeds, and a change would be refused for that.
    loss: str | Loss = "soft_dice"
    queries: int = 500
    share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 1:
            raise CeaseError(f"queries is {self.queries}; give at least 1.")
        if not 0 < self.share <= 1:
            raise CeaseError(f"share is {self.share}; give a part of the image, above 0 and at most 1.")

    def perturb(self, problem: Problem, callback: Callback | None) -> AttackResult:
        if self.epsilon == 0:
            return Run(problem, epsilon=0.0, total=0).result()
        run = Run(problem, epsilon=self.epsilon, total=self.queries, callback=callback, stop_below=self.stop_below)
        draws = torch.Generator().manual_seed(self.seed)
        boxes = Boxes(problem)
        start, change = (stripes, self._square) if self.norm == "linf" else (tiles, self._shift)
        delta = self._inside(problem, start(boxes, self.epsilon, draws))
        loss = run.look(delta).loss
        run.step(loss)
        for query in range(1, self.queries):
            if run.over:
                break
            share = self.share / 2 ** sum(10_000 * query > self.queries * h for h in HALVINGS)
            candidate = self._inside(problem, change(delta, boxes, share, draws))
            answer = run.look(candidate)
            better = answer.loss > loss
            delta = torch.where(per_case(better, delta), candidate, delta)
            loss = torch.where(better, answer.loss, loss)
            run.step(answer.loss)
        return run.result()

    def _inside(self, problem: Problem, delta: Tensor) -> Tensor:
        return problem.clip(project(delta, self.epsilon, self.norm, problem.region))

    def _square(self, delta: Tensor, boxes: Boxes, share: float, draws: torch.Generator) -> Tensor:
        inside, _, _ = boxes.square(share, draws)
        return torch.where(inside, self.epsilon * boxes.signs(draws), delta)

    def _shift(self, delta: Tensor, boxes: Boxes, share: float, draws: torch.Generator) -> Tensor:
        filled, places, edges = boxes.square(share, draws)
        emptied, _, _ = boxes.square(share, draws)
        axis = int(torch.randint(0, len(boxes.axes), (), generator=draws))
        stays = delta.masked_fill(filled | emptied, 0.0)
        # Sums of squares in each channel: what lies in both squares, and what the ball has left.
        total, kept = (t.flatten(2).square().sum(dim=2) for t in (delta, stays))
        left = self.epsilon**2 * boxes.count - total.sum(dim=1)
        free = (total - kept + left.unsqueeze(1) / delta.shape[1]).clamp_min(0)
        inside = filled * boxes.region
        humps = unit(pair(places, edges, axis) * inside) * boxes.signs(draws)
        # A little less of the old, or a square of one pixel could cancel itself out.
        added = humps + 0.9 * unit(delta * inside)
        return stays + unit(added) * channelwise(free.sqrt(), delta)


class Boxes:
    """Where squares may lie: in the box around each case's region, or anywhere.

    What is drawn does not depend on how many cases there are.
    """

    def __init__(self, problem: Problem) -> None:
        self.images = problem.images
        self.region = torch.ones_like(self.images) if problem.region is None else problem.region
        self.count = self.region.flatten(1).sum(dim=1)
        self.axes = range(self.images.ndim - 2)
        attacked = self.region.amax(dim=1)
        self.first = torch.empty(len(attacked), len(self.axes), device=self.images.device)
        self.length = torch.empty_like(self.first)
        for axis in self.axes:
            line = attacked.movedim(axis + 1, 1).flatten(2).amax(dim=2)
            self.first[:, axis] = line.argmax(dim=1)
            self.length[:, axis] = line.shape[1] - line.flip(1).argmax(dim=1) - self.first[:, axis]

    def square(self, share: float, draws: torch.Generator) -> tuple[Tensor, list[Tensor], Tensor]:
        """A square, or cube, of a share of the box at a random place.

        Returns
        -------
        inside
            True in the square (N, 1, *spatial).
        places
            For each axis the distance from the square's lower end, broadcastable to ``inside``.
        edges
            Of the square, shape (N, axes).
        """
        edge = (share * self.length.prod(dim=1, keepdim=True)) ** (1 / len(self.axes))
        edges = edge.round().clamp_min(1).minimum(self.length)
        drawn = torch.rand(len(self.axes), generator=draws).to(edges)
        # A float32 product may reach the next whole number.
        room = self.length - edges
        places = self.places(self.first + (drawn * (room + 1)).floor().minimum(room))
        inside = torch.ones_like(self.images[:, :1], dtype=torch.bool)
        for axis, place in enumerate(places):
            inside &= (place >= 0) & (place < channelwise(edges[:, axis : axis + 1], place))
        return inside, places, edges

    def places(self, origin: Tensor) -> list[Tensor]:
        """Distance of every pixel from ``origin`` (N, axes) along each axis, broadcastable to images."""
        sizes = self.images.shape[2:]
        found = []
        for axis, size in enumerate(sizes):
            place = torch.arange(size, device=origin.device) - origin[:, axis : axis + 1]
            found.append(place.view(len(origin), 1, *(size if a == axis else 1 for a in self.axes)))
        return found

    def signs(self, draws: torch.Generator, *shape: int) -> Tensor:
        """Random ±1 for each channel (1, C, *shape); one for all pixels if no shape is given."""
        drawn = torch.randint(0, 2, (1, self.images.shape[1], *(shape or (1,) * len(self.axes))), generator=draws)
        return (2.0 * drawn - 1).to(self.images)


def stripes(boxes: Boxes, epsilon: float, draws: torch.Generator) -> Tensor:
    """±ε, the same for all pixels that share their place along the last axis."""
    sizes = (*(1,) * (len(boxes.axes) - 1), boxes.images.shape[-1])
    return (epsilon * boxes.signs(draws, *sizes)).expand_as(boxes.images)


def tiles(boxes: Boxes, epsilon: float, draws: torch.Generator) -> Tensor:
    """A hump of random sign in each of 5 × 5 (× 5) tiles of the box, at the edge of the ℓ2 ball."""
    signs = boxes.signs(draws, *(TILES for _ in boxes.axes))
    index, distances = [], []
    for axis, place in enumerate(boxes.places(boxes.first)):
        edge = channelwise(boxes.length[:, axis : axis + 1] / TILES, place)
        tile = ((place + 0.5) / edge).floor().clamp(0, TILES - 1)
        index.append(tile.long().squeeze(1))
        distances.append((place + 0.5 - (tile + 0.5) * edge).abs())
    pattern = signs[0][:, *torch.broadcast_tensors(*index)].movedim(0, 1)
    size = epsilon * (boxes.count / pattern.shape[1]).sqrt().unsqueeze(1)
    return unit(pattern * hump(distances) * boxes.region) * channelwise(size, boxes.images)


def pair(places: list[Tensor], edges: Tensor, axis: int) -> Tensor:
    """Two humps of opposite sign, one in each half of a square along ``axis``."""
    distances, sign = [], torch.ones(())
    for a, place in enumerate(places):
        edge = channelwise(edges[:, a : a + 1], place)
        middle = place + 0.5
        if a == axis:
            second = middle > edge / 2
            sign = 1 - 2 * second.to(place)
            middle = middle - second * edge / 2
            edge = edge / 2
        distances.append((middle - edge / 2).abs())
    return sign * hump(distances)


def hump(distances: list[Tensor]) -> Tensor:
    """One over one plus the largest of the distances along the axes."""
    farthest = distances[0]
    for distance in distances[1:]:
        farthest = torch.maximum(farthest, distance)
    return 1 / (1 + farthest)


def unit(values: Tensor) -> Tensor:
    """Each channel of ``values`` (N, C, *spatial) scaled to a root sum of squares of 1; zeros stay."""
    return values / channelwise(values.flatten(2).norm(dim=2).clamp_min(1e-20), values)


def channelwise(values: Tensor, like: Tensor) -> Tensor:
    """View ``values`` of shape (N, C) so that it broadcasts over ``like`` of shape (N, C, *spatial)."""
    return values.view(*values.shape, *(1,) * (like.ndim - 2))
