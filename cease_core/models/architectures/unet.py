"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597), plain or with residual units."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from cease_core.models.architectures.base import Backbone, Features, MonaiBackbone


class UNetBackbone(MonaiBackbone):
    """MONAI's recursive U-Net, unrolled level by level."""

    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse; the first is at half the size, the last two are of one size."""
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
        """Logits (N, K, *spatial) from `encode`'s features."""
        ups, block = [], self.net.model
        for _ in range(len(features) - 1):
            ups.append(block[2])
            block = block[1].submodule
        x = features[-1]
        for feature, up in zip(reversed(features[:-1]), reversed(ups), strict=True):
            x = up(torch.cat([feature, x], dim=1))
        return x


def _unet(
    ndim: int,
    inputs: int,
    outputs: int,
    channels: tuple[int, ...] = (16, 32, 64, 128),
    norm: str | tuple[Any, ...] = "batch",
    *,
    units: int,
) -> Backbone:
    net = UNet(
        spatial_dims=ndim,
        in_channels=inputs,
        out_channels=outputs,
        channels=channels,
        strides=(2,) * (len(channels) - 1),
        num_res_units=units,
        norm=norm,
    )
    return UNetBackbone(net, channels, 2 ** (len(channels) - 1))


unet = partial(_unet, units=0)
residual_unet = partial(_unet, units=2)
