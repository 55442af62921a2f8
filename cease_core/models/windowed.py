"""Whole volumes through a model that sees one window at a time, with the exact gradient.

The blended output of overlapping windows is one function of the volume. `Windowed` computes it without
keeping any window's graph, and its backward pass visits the windows again, one vector-Jacobian product
each: memory stays at one window, and any attack written for a plain model works on it unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.utils.enums import BlendMode
from torch import Tensor

from cease_core.models.card import Mode
from cease_core.models.segmenter import Segmenter

Slices = tuple[slice, ...]


class Windowed:
    """A model for volumes of any size, blended from windows.

    Parameters
    ----------
    model
        Called on windows: a 3-D model, or a 2-D one (then the first window edge must be 1 and windows
        reach it as images).
    window
        Edge of the windows in voxels, along (slices, rows, columns); clipped to the volume.
    overlap
        Share of a window that the next one covers again, in [0, 1).
    batch
        Windows per forward pass.
    planar
        Whether ``model`` is a 2-D model.
    """

    def __init__(
        self,
        model: Segmenter,
        window: tuple[int, int, int],
        *,
        overlap: float = 0.5,
        batch: int = 4,
        planar: bool = False,
    ) -> None:
        if planar and window[0] != 1:
            raise ValueError("a 2-D model sees one slice at a time: the first window edge must be 1")
        self.model = model
        self.mode: Mode = model.mode
        self.window = window
        self.overlap = overlap
        self.batch = batch
        self.planar = planar

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, K, *spatial) for volumes (N, C, *spatial)."""
        return _Blend.apply(images, self)

    def plan(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[Slices]]:
        """The window actually used on a volume of ``shape``, and where its copies lie."""
        window = tuple(min(w, s) for w, s in zip(self.window, shape, strict=True))
        step = tuple(max(1, round(w * (1 - self.overlap))) for w in window)
        return window, list(dense_patch_slices(shape, window, step))

    def weights(self, window: tuple[int, ...], like: Tensor) -> Tensor:
        if self.overlap == 0 or self.planar:
            return torch.ones(window, dtype=like.dtype, device=like.device)
        return compute_importance_map(
            window, mode=BlendMode.GAUSSIAN, sigma_scale=0.125, device=like.device, dtype=like.dtype
        ).clamp_min(1e-3)

    def batches(self, images: Tensor) -> Iterator[list[tuple[int, Slices]]]:
        _, places = self.plan(tuple(images.shape[2:]))
        jobs = [(n, p) for n in range(images.shape[0]) for p in places]
        for i in range(0, len(jobs), self.batch):
            yield jobs[i : i + self.batch]

    def cut(self, images: Tensor, jobs: list[tuple[int, Slices]]) -> Tensor:
        patches = torch.stack([images[_at(n, place)] for n, place in jobs])
        return patches.squeeze(2) if self.planar else patches

    def run(self, patches: Tensor) -> Tensor:
        logits = self.model(patches)
        return logits.unsqueeze(2) if self.planar else logits


def _at(case: int, place: Slices) -> tuple[Any, ...]:
    return (case, slice(None), *place)


def _total_weight(windowed: Windowed, images: Tensor) -> tuple[Tensor, Tensor]:
    window, places = windowed.plan(tuple(images.shape[2:]))
    weight = windowed.weights(window, images)
    total = torch.zeros(images.shape[2:], dtype=images.dtype, device=images.device)
    for place in places:
        total[place] += weight
    return weight, total


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, windowed: Windowed) -> Tensor:
        ctx.windowed = windowed
        ctx.save_for_backward(images)
        weight, total = _total_weight(windowed, images)
        blended: Tensor | None = None
        for jobs in windowed.batches(images):
            logits = windowed.run(windowed.cut(images, jobs))
            if blended is None:
                blended = logits.new_zeros(images.shape[0], logits.shape[1], *images.shape[2:])
            for (n, place), part in zip(jobs, logits, strict=True):
                blended[_at(n, place)] += weight * part
        assert blended is not None
        return blended / total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        windowed: Windowed = ctx.windowed
        (images,) = ctx.saved_tensors
        weight, total = _total_weight(windowed, images)
        upstream = grad_outputs[0] / total
        gradient = torch.zeros_like(images)
        for jobs in windowed.batches(images):
            with torch.enable_grad():
                patches = windowed.cut(images, jobs).detach().requires_grad_()
                logits = windowed.run(patches)
            part = torch.stack([upstream[_at(n, place)] * weight for n, place in jobs])
            (grads,) = torch.autograd.grad(logits, patches, part)
            if windowed.planar:
                grads = grads.unsqueeze(2)
            for (n, place), g in zip(jobs, grads, strict=True):
                gradient[_at(n, place)] += g
        return gradient, None
