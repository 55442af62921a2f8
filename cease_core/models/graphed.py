"""Captured CUDA graphs: a small model spends more time on launching kernels than in them.

Off by default. A graph is checked against the plain call when it is captured, and whatever goes wrong, the plain
call is used instead.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from cease_core.models.segmenter import SegmentationModel

log = logging.getLogger(__name__)

# Each holds the activations of its shape.
SHAPES = 4
TOLERANCE = 1e-3


class Replay(Protocol):
    """The forward and the backward pass for one shape of input, in fixed memory."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits; valid until the next call."""

    def backward(self, upstream: Tensor) -> Tensor:
        """Input gradient of the last forward pass; valid until the next call."""


class Captured:
    """Both passes as CUDA graphs.

    Parameters
    ----------
    model
        Frozen, on a CUDA device.
    images
        Of the shape to capture.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], images: Tensor) -> None:
        self.images = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            # Libraries choose their kernels in the first calls, which must not be captured.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    logits = model(self.images)
                    self.upstream = torch.ones_like(logits)
                    torch.autograd.grad(logits, self.images, self.upstream)
            torch.cuda.current_stream().wait_stream(stream)
            self.there, self.back = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.there):
                self.logits = model(self.images)
            with torch.cuda.graph(self.back, pool=self.there.pool()):
                (self.gradient,) = torch.autograd.grad(self.logits, self.images, self.upstream, retain_graph=True)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        self.images.copy_(images)
        self.there.replay()
        return self.logits.detach()

    @torch.no_grad()
    def backward(self, upstream: Tensor) -> Tensor:
        self.upstream.copy_(upstream)
        self.back.replay()
        return self.gradient


class Graphed(SegmentationModel):
    """A prepared model that replays one captured graph for each shape of input.

    Parameters
    ----------
    model
        Frozen; its weights are shared, and must not change afterwards.
    capture
        Makes the passes for a shape.
    """

    plain: SegmentationModel
    exact: SegmentationModel | None

    def __init__(
        self,
        model: SegmentationModel,
        capture: Callable[[Callable[[Tensor], Tensor], Tensor], Replay] = Captured,
    ) -> None:
        super().__init__(model.card, model.backbone)
        self.eval()
        self._capture = capture
        self._shapes: OrderedDict[tuple[int, ...], _Shape | None] = OrderedDict()
        # Not as submodules: their weights are this one's.
        object.__setattr__(self, "plain", model)
        object.__setattr__(self, "exact", getattr(model, "exact", None))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, *spatial) for images (N, C, *spatial) in window fractions."""
        key = tuple(images.shape)
        if key not in self._shapes:
            if len(self._shapes) == SHAPES:
                self._shapes.popitem(last=False)
            self._shapes[key] = self._checked(images)
        self._shapes.move_to_end(key)
        shape = self._shapes[key]
        logits: Tensor = self.plain(images) if shape is None else _Replayed.apply(images, shape)
        return logits

    def _checked(self, images: Tensor) -> _Shape | None:
        # Another process may hold the memory, a layer may not be capturable: none of it is worth an attack.
        try:
            shape = _Shape(self._capture(self.plain, images))
            difference = max(
                float((ours - exact).norm() / exact.norm().clamp_min(torch.finfo(exact.dtype).tiny))
                for ours, exact in zip(_both(shape, images), _both(self.plain, images), strict=True)
            )
        except RuntimeError as error:
            log.warning("no CUDA graph for shape %s, going on without: %s", tuple(images.shape), error)
            return None
        if not difference <= TOLERANCE:
            log.warning("the CUDA graph for shape %s differs by %.1e: not used", tuple(images.shape), difference)
            return None
        return shape


class _Shape:
    """A replay that knows whose activations it holds."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.stamp = 0

    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = _Replayed.apply(images, self)
        return logits

    def forward(self, images: Tensor) -> tuple[Tensor, int]:
        self.stamp += 1
        return self.replay.forward(images).clone(), self.stamp

    def backward(self, images: Tensor, upstream: Tensor, stamp: int) -> Tensor:
        if stamp != self.stamp:
            # Another image went through in between, and its activations took the place of these.
            self.forward(images)
        return self.replay.backward(upstream).clone()


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, shape: _Shape) -> Tensor:
        ctx.save_for_backward(images)
        ctx.shape = shape
        logits, ctx.stamp = shape.forward(images)
        return logits

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        return ctx.shape.backward(images, upstream[0], ctx.stamp), None


def _both(call: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = call(images)
        (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    return logits.detach(), gradient
