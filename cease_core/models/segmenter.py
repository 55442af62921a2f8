"""A model as the engine sees it: window intensities in, logits out, gradients all the way."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.models.architectures import Backbone, Features, build
from cease_core.models.card import Mode, ModelCard
from cease_core.scan import Scan

NO_GRADIENT = "no gradient reaches the image through this model; use one without a hard decision inside."
"""What is said of a model that cannot be attacked with gradients."""


@runtime_checkable
class Segmenter(Protocol):
    """What an attack needs: a differentiable call from images (N, C, *spatial) to logits (N, K, *spatial)."""

    mode: Mode

    def __call__(self, images: Tensor, /) -> Tensor: ...


@runtime_checkable
class ScanModel(Segmenter, Protocol):
    """A `Segmenter` that says what it is made for, and whether a scan is that."""

    card: ModelCard

    def check(self, scan: Scan, /) -> None: ...


class SegmentationModel(nn.Module):
    """A backbone with its card: padding, working resolution and normalisation are inside.

    Parameters
    ----------
    card
        What the model expects and returns.
    backbone
        The network; built from the card if not given.

    Notes
    -----
    Intensities outside the window stay outside [0, 1]; nothing is clipped, so a perturbation of the
    scan and one of the network's input are the same up to the window's width.
    """

    def __init__(self, card: ModelCard, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.card = card
        self.mode: Mode = card.mode
        self.backbone = backbone or build(
            card.architecture, card.ndim, card.channels, card.outputs, card.architecture_args
        )

    @property
    def minimum(self) -> int:
        """Smallest edge of an input that still reaches the coarsest level with two samples."""
        # Padding rounds up, so one voxel more than reaches it with one sample; instance norms fail on a single one.
        return self.backbone.multiple * self.card.downsample + 1

    def encode(self, images: Tensor) -> Features:
        """Encoder features from fine to coarse, at the working resolution."""
        return self.backbone.encode(self._enter(images))

    def decode(self, features: Features, shape: tuple[int, ...]) -> Tensor:
        """Logits on a grid of spatial ``shape`` from `encode`'s features."""
        logits = self.backbone.decode(features)
        k = self.card.downsample
        if k > 1:
            mode = "bilinear" if self.card.ndim == 2 else "trilinear"
            logits = F.interpolate(logits, scale_factor=k, mode=mode, align_corners=False)
        whole: tuple[Any, ...] = (..., *(slice(0, s) for s in shape))
        return logits[whole]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, *spatial) for images (N, C, *spatial) in window fractions."""
        return self.decode(self.encode(images), tuple(images.shape[2:]))

    def _enter(self, images: Tensor) -> Tensor:
        ndim, k = self.card.ndim, self.card.downsample
        step = self.backbone.multiple * k
        pad = [(-s) % step for s in images.shape[2:]]
        x = (images - 0.5) * 4.0  # a window's contents have a standard deviation of about 1/4
        if any(pad):
            x = F.pad(x, [v for p in reversed(pad) for v in (0, p)], mode="replicate")
        if k > 1:
            x = F.avg_pool2d(x, k) if ndim == 2 else F.avg_pool3d(x, k)
        return x

    def check(self, scan: Scan) -> None:
        """Raise a `CeaseError` that says why ``scan`` does not fit this model, if it does not."""
        check_scan(scan, self.card, self.minimum)


def check_scan(scan: Scan, card: ModelCard, minimum: int = 1) -> None:
    """Raise a `CeaseError` that says why a scan is not what a card's model is made for, if it is not.

    Parameters
    ----------
    minimum
        Smallest edge that the model can see.
    """
    if scan.channels != card.channels:
        raise CeaseError(
            f"{card.title} expects {_count(card.channels, 'channel')}, but {scan.name} has "
            f"{scan.channels}; choose a model made for such images."
        )
    if scan.ndim < card.ndim:
        raise CeaseError(f"{card.title} segments volumes, but {scan.name} is a single image; choose a 2-D model.")
    small = [s for s in scan.shape[-card.ndim :] if s < minimum]
    if small:
        raise CeaseError(
            f"{scan.name} has shape {scan.shape}, but {card.title} needs at least {minimum} voxels "
            "along each axis; choose a larger scan or a shallower model."
        )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def likeliest(logits: Tensor) -> Tensor:
    """Index (N, 1, *spatial) of the largest logit, the first of equal ones."""
    # On a CPU argmax over channels takes up to ten times as long for the same answer.
    return logits.max(dim=1, keepdim=True).indices


def predict_labels(logits: Tensor, mode: Mode) -> Tensor:
    """Class ids (N, *spatial) from logits; for multilabel the last positive class wins where they overlap.

    Parameters
    ----------
    logits
        Shape (N, K, *spatial).
    mode
        Meaning of the K channels.
    """
    if mode == "multiclass":
        return likeliest(logits)[:, 0]
    positive = logits > 0
    if mode == "binary":
        return positive[:, 0].long()
    ids = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    return (positive * ids.view(1, -1, *(1,) * (logits.ndim - 2))).amax(dim=1)
