"""Decoder features of any architecture, without changing its code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.models.segmenter import SegmentationModel


class Tap:
    """Looks into a model's decoder at the layer whose grid is ``stride`` times coarser than the image.

    Which layer that is, a dry run finds out: the last whose output has that stride, or the nearest to it. The model
    carries a hook only while `open`, so that it can be copied and saved at any other time, and nothing that the
    decoder returns is held on to.

    Parameters
    ----------
    model
        Any model; its backbone's ``decode`` is what is looked into.
    shape
        Spatial shape of the images it will see.
    stride
        Voxels of the image to one of the features.

    Raises
    ------
    CeaseError
        If no layer of the decoder returns a picture of several channels.

    Attributes
    ----------
    width
        Channels of the layer's output.
    """

    def __init__(self, model: SegmentationModel, shape: tuple[int, ...], stride: int = 4) -> None:
        seen: list[tuple[float, int, str]] = []
        hooks = [
            m.register_forward_hook(_note(seen, name, shape, stride)) for name, m in model.backbone.named_modules()
        ]
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                device = next(model.parameters()).device
                features = model.encode(torch.zeros(1, model.card.channels, *shape, device=device))
                seen.clear()
                model.decode(features, shape)
        finally:
            model.train(was_training)
            for hook in hooks:
                hook.remove()
        if not seen:
            raise CeaseError(
                f"{model.card.architecture} has no decoder feature to compare pixels by; set contrastive.dense to 0, "
                "or give it more levels."
            )
        nearest = min(distance for distance, _, _ in seen)
        # By name: layers are exchanged when batch norms are joined over processes.
        _, self.width, self._layer = [s for s in seen if s[0] == nearest][-1]

    @contextmanager
    def open(self, model: SegmentationModel) -> Iterator[list[Tensor]]:
        """A list that receives what the layer returns, of shape (N, width, *spatial / stride), at each pass."""
        caught: list[Tensor] = []
        layer = model.backbone.get_submodule(self._layer)
        hook = layer.register_forward_hook(lambda module, inputs, output: caught.append(output))
        try:
            yield caught
        finally:
            hook.remove()


def _note(seen: list[tuple[float, int, str]], name: str, shape: tuple[int, ...], stride: int) -> Any:
    def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == len(shape) + 2 and output.shape[1] > 1:
            grid = output.shape[2:]
            off = sum(abs(s / g - stride) for s, g in zip(shape, grid, strict=True))
            seen.append((off, output.shape[1], name))

    return hook
