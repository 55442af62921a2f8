"""MONAI architectures by name, each split into an encoder and a decoder.

The split is what defences work on: auxiliary heads and contrastive losses read encoder features, and the
deployed model is decoder after encoder, with nothing added.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from cease_core.errors import CeaseError

Features = list[Tensor]


class Backbone(nn.Module, ABC):
    """A network as encoder and decoder; ``multiple`` is the size its input must be divisible by."""

    multiple: int

    @abstractmethod
    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse for ``images`` of shape (N, C, *spatial)."""

    @abstractmethod
    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


class UNetBackbone(Backbone):
    """MONAI's recursive U-Net, unrolled level by level."""

    def __init__(self, net: UNet, levels: int) -> None:
        super().__init__()
        self.net = net
        self.multiple = 2 ** (levels - 1)

    def encode(self, images: Tensor) -> Features:
        features, block = [], self.net.model
        while len(block) == 3 and isinstance(block[1], SkipConnection):
            images = block[0](images)
            features.append(images)
            block = block[1].submodule
            if not isinstance(block, nn.Sequential) or isinstance(block, (Convolution, ResidualUnit)):
                break
        features.append(block(images))
        return features

    def decode(self, features: Features) -> Tensor:
        ups, block = [], self.net.model
        for _ in range(len(features) - 1):
            ups.append(block[2])
            block = block[1].submodule
        x = features[-1]
        for feature, up in zip(reversed(features[:-1]), reversed(ups), strict=True):
            x = up(torch.cat([feature, x], dim=1))
        return x


class SegResNetBackbone(Backbone):
    """MONAI's SegResNet, which is already split."""

    def __init__(self, net: SegResNet, levels: int) -> None:
        super().__init__()
        self.net = net
        self.multiple = 2 ** (levels - 1)

    def encode(self, images: Tensor) -> Features:
        return list(self.net.encode(images)[1])

    def decode(self, features: Features) -> Tensor:
        return self.net.decode(features[-1], features[::-1])


def _unet(units: int) -> Callable[..., Backbone]:
    def make(
        ndim: int,
        inputs: int,
        outputs: int,
        channels: tuple[int, ...] = (16, 32, 64, 128),
        norm: str = "batch",
    ) -> Backbone:
        net = UNet(
            spatial_dims=ndim,
            in_channels=inputs,
            out_channels=outputs,
            channels=tuple(channels),
            strides=(2,) * (len(channels) - 1),
            num_res_units=units,
            norm=norm,
        )
        return UNetBackbone(net, len(channels))

    return make


def _segresnet(ndim: int, inputs: int, outputs: int, filters: int = 8, levels: int = 4) -> Backbone:
    blocks = tuple(min(2**i, 4) for i in range(levels))
    net = SegResNet(
        spatial_dims=ndim,
        init_filters=filters,
        in_channels=inputs,
        out_channels=outputs,
        blocks_down=blocks,
        blocks_up=(1,) * (levels - 1),
    )
    return SegResNetBackbone(net, levels)


ARCHITECTURES: dict[str, Callable[..., Backbone]] = {
    "unet": _unet(units=0),
    "residual_unet": _unet(units=2),
    "segresnet": _segresnet,
}


def build(name: str, ndim: int, inputs: int, outputs: int, args: dict[str, Any] | None = None) -> Backbone:
    """Build an architecture with random weights.

    Parameters
    ----------
    name
        Key of `ARCHITECTURES`.
    ndim, inputs, outputs
        Spatial dimensions, input channels and logit channels.
    args
        Further arguments of the architecture (``channels``, ``norm``; ``filters``, ``levels``).

    Raises
    ------
    CeaseError
        If the name is unknown or the arguments do not fit.
    """
    if name not in ARCHITECTURES:
        raise CeaseError(f"unknown architecture {name!r}; choose one of {', '.join(sorted(ARCHITECTURES))}.")
    try:
        return ARCHITECTURES[name](ndim, inputs, outputs, **(args or {}))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().rstrip(".")
        raise CeaseError(f"architecture {name!r} cannot be built with {args}: {reason}.") from error
