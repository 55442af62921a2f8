"""Attention U-Net (Oktay et al. 2018, arXiv 1804.03999)."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets.attentionunet import AttentionUnet
from torch import Tensor, nn

from cease_core.models.architectures.base import Backbone, Features, MonaiBackbone


class AttentionUNetBackbone(MonaiBackbone):
    """MONAI's recursive Attention U-Net, unrolled level by level."""

    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse, each half the size of the one before."""
        features = [self.net.model[0](images)]
        for down in self._downs():
            features.append(down(features[-1]))
        return features

    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""
        x = features[-1]
        for feature, layer in zip(reversed(features[:-1]), reversed(self._layers()), strict=True):
            up = layer.upconv(x)
            x = layer.merge(torch.cat([layer.attention(g=up, x=feature), up], dim=1))
        return self.net.model[2](x)

    def _layers(self) -> list[Any]:
        layers = [self.net.model[1]]
        while isinstance(layers[-1].submodule, nn.Sequential):
            layers.append(layers[-1].submodule[1])
        return layers

    def _downs(self) -> list[Any]:
        return [s[0] if isinstance(s, nn.Sequential) else s for s in (layer.submodule for layer in self._layers())]


def attention_unet(ndim: int, inputs: int, outputs: int, channels: tuple[int, ...] = (16, 32, 64, 128)) -> Backbone:
    """Build it with ``channels`` from fine to coarse; its batch norms are MONAI's choice."""
    if len(channels) < 2:
        raise ValueError("channels must name at least two levels")
    net = AttentionUnet(
        spatial_dims=ndim,
        in_channels=inputs,
        out_channels=outputs,
        channels=channels,
        strides=(2,) * (len(channels) - 1),
    )
    return AttentionUNetBackbone(net, channels, 2 ** (len(channels) - 1))
