"""Whole volumes through a model that sees one window at a time, with the exact gradient.

The blended output of overlapping windows is one function of the volume. `Windowed` computes it without
keeping any window's graph, and its backward pass visits the windows again, one vector-Jacobian product
each: memory stays at one window, and any attack written for a plain model works on it unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
from monai.data.utils import dense_patch_slices
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.models.card import Mode
from cease_core.models.memory import BatchSize, in_batches
from cease_core.models.segmenter import NO_GRADIENT, Segmenter

Slices = tuple[slice, ...]
Blend = Literal["gaussian", "floored", "constant"]

# Deviation of a window's Gaussian weight, as a share of its edge.
SIGMA = 0.125
# Least weight of MONAI's windows (`monai.data.utils.compute_importance_map`).
FLOOR = 1e-3


class Windowed:
    """A model for volumes of any size, blended from windows.

    Parameters
    ----------
    model
        Called on windows: a 3-D model, or a 2-D one (then the first window edge must be 1 and windows
        reach it as images).
    window
        Edge of the windows in voxels, along (slices, rows, columns) or, for large images, (rows, columns); clipped to
        the volume.
    overlap
        Share of a window that the next one covers again, in [0, 1).
    batch
        Windows per forward pass; halved, for good, where they do not fit into memory.
    planar
        Whether ``model`` is a 2-D model.
    blend
        What a voxel's weight in a window is: ``"gaussian"``, less towards the window's faces; ``"floored"``, the same
        but nowhere below `FLOOR`, which is MONAI's ``gaussian`` and takes memory for one more channel of the volume;
        or ``"constant"``.
    """

    def __init__(
        self,
        model: Segmenter,
        window: tuple[int, ...],
        *,
        overlap: float = 0.5,
        batch: int = 4,
        planar: bool = False,
        blend: Blend = "gaussian",
    ) -> None:
        if planar and window[0] != 1:
            raise ValueError("a 2-D model sees one slice at a time: the first window edge must be 1")
        self.model = model
        self.mode: Mode = model.mode
        self.window = window
        self.overlap = overlap
        self.batch = BatchSize(batch)
        self.planar = planar
        self.blend: Blend = blend

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, K, *spatial) for volumes (N, C, *spatial)."""
        logits: Tensor = _Blend.apply(images, self)
        return logits

    @property
    def exact(self) -> Windowed | None:
        """The same windows through the model's float32 version, where it computes in less; else None."""
        exact = getattr(self.model, "exact", None)
        if exact is None:
            return None
        return Windowed(
            exact, self.window, overlap=self.overlap, batch=self.batch.size, planar=self.planar, blend=self.blend
        )

    def plan(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[Slices]]:
        """The window actually used on a volume of ``shape``, and where its copies lie."""
        window = tuple(min(w, s) for w, s in zip(self.window, shape, strict=True))
        step = tuple(max(1, int(w * (1 - self.overlap))) for w in window)
        return window, list(dense_patch_slices(shape, window, step))

    def profile(self, edge: int) -> Tensor:
        """Weights (edge,) along one axis of a window; a voxel's weight is the product of its three."""
        if self.overlap == 0 or self.planar or self.blend == "constant":
            return torch.ones(edge)
        position = torch.arange(edge) - (edge - 1) / 2
        return torch.exp(-0.5 * (position / (SIGMA * edge)).square())

    def jobs(self, images: Tensor) -> list[_Job]:
        """Every window of every volume."""
        shape = tuple(images.shape[2:])
        window, places = self.plan(shape)
        if self.blend == "floored" and not self.planar and self.overlap > 0:
            return self._floored_jobs(images, window, places)
        # Windows lie on a grid and weights are products, so each axis adds up to one by itself:
        # neither the weights nor their sum are ever as large as a volume.
        scaled = []
        for axis, (edge, size) in enumerate(zip(window, shape, strict=True)):
            profile, total = self.profile(edge), torch.zeros(size)
            spans = sorted({(place[axis].start, place[axis].stop) for place in places})
            for start, stop in spans:
                total[start:stop] += profile
            scaled.append({start: (profile / total[start:stop]).to(images) for start, stop in spans})
        return [
            _Job((n, slice(None), *place), tuple(s[p.start] for s, p in zip(scaled, place, strict=True)))
            for n, place in product(range(images.shape[0]), places)
        ]

    def _floored_jobs(self, images: Tensor, window: tuple[int, ...], places: list[Slices]) -> list[_Job]:
        kernel = torch.ones(())
        for edge in window:
            kernel = kernel.unsqueeze(-1) * self.profile(edge)
        kernel = kernel.clamp_min(max(float(kernel.min()), FLOOR)).to(images)
        # No product of axes any more, so their sum is as large as a volume.
        total = images.new_zeros(images.shape[2:])
        for place in places:
            total[place] += kernel
        return [
            _Job((n, slice(None), *place), (), kernel, total[place])
            for n, place in product(range(images.shape[0]), places)
        ]

    def cut(self, volumes: Tensor, jobs: list[_Job]) -> Tensor:
        """Copies (B, channels, *window) of the windows."""
        return torch.stack([volumes[job.at] for job in jobs])

    def run(self, patches: Tensor) -> Tensor:
        """The model's logits for windows (B, C, *window)."""
        if not self.planar:
            return self.model(patches)
        return self.model(patches.squeeze(2)).unsqueeze(2)


@dataclass(frozen=True)
class _Job:
    """One window: where it lies, and its weights, along each axis or as a share of what all windows weigh there."""

    at: tuple[Any, ...]
    profiles: tuple[Tensor, ...]
    kernel: Tensor | None = None
    total: Tensor | None = None

    def weigh(self, values: Tensor) -> None:
        """Multiply values (channels, *window) in place."""
        if self.kernel is not None and self.total is not None:
            values *= self.kernel / self.total
        for axis, profile in enumerate(self.profiles):
            values *= profile.view(-1, *(1,) * (len(self.profiles) - 1 - axis))


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, windowed: Windowed) -> Tensor:
        ctx.windowed = windowed
        ctx.save_for_backward(images)
        jobs = windowed.jobs(images)
        blended: list[Tensor] = []

        def add(part: slice) -> None:
            some = jobs[part]
            logits = windowed.run(windowed.cut(images, some))
            if not blended:
                blended.append(logits.new_zeros(images.shape[0], logits.shape[1], *images.shape[2:]))
            for job, values in zip(some, logits, strict=True):
                job.weigh(values)
                blended[0][job.at] += values

        in_batches(add, len(jobs), windowed.batch)
        return blended[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        windowed: Windowed = ctx.windowed
        (images,) = ctx.saved_tensors
        jobs = windowed.jobs(images)
        gradient = torch.zeros_like(images)

        def add(part: slice) -> None:
            some = jobs[part]
            with torch.enable_grad():
                patches = windowed.cut(images, some).detach().requires_grad_()
                logits = windowed.run(patches)
            weighed = windowed.cut(upstream[0], some)
            for job, values in zip(some, weighed, strict=True):
                job.weigh(values)
            found = None
            if logits.requires_grad:
                (found,) = torch.autograd.grad(logits, patches, weighed, allow_unused=True)
            if found is None:
                raise CeaseError(NO_GRADIENT)
            for job, values in zip(some, found, strict=True):
                gradient[job.at] += values

        # Nothing is added before all of a batch is known, so a batch that did not fit can be done again.
        in_batches(add, len(jobs), windowed.batch)
        return gradient, None
