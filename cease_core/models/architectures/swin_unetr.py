"""Swin UNETR (Hatamizadeh et al. 2022, arXiv 2201.01266)."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor

from cease_core.models.architectures.base import Backbone, Features, MonaiBackbone


class SwinUNETRBackbone(MonaiBackbone):
    """MONAI's Swin UNETR."""

    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse, each half the size of the one before, down to a 32nd of the image's."""
        net = self.net
        hidden = net.swinViT(images, net.normalize)
        return [
            net.encoder1(images),
            net.encoder2(hidden[0]),
            net.encoder3(hidden[1]),
            net.encoder4(hidden[2]),
            hidden[3],
            net.encoder10(hidden[4]),
        ]

    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""
        net, x = self.net, features[-1]
        ups = (net.decoder5, net.decoder4, net.decoder3, net.decoder2, net.decoder1)
        for feature, up in zip(reversed(features[:-1]), ups, strict=True):
            x = up(x, feature)
        return net.out(x)


def swin_unetr(
    ndim: int,
    inputs: int,
    outputs: int,
    filters: int = 12,
    depths: tuple[int, ...] = (2, 2, 2, 2),
    heads: tuple[int, ...] = (1, 2, 4, 8),
    window: int | tuple[int, ...] = 7,
    norm: str | tuple[Any, ...] = "instance",
) -> Backbone:
    """Build it.

    Parameters
    ----------
    ndim, inputs, outputs
        Spatial dimensions, input channels and logit channels.
    filters
        Channels of the finest features, a multiple of 12.
    depths, heads
        Transformer blocks and attention heads of the four stages.
    window
        Edge of the attention windows, in tokens.
    norm
        Of the convolutional blocks.
    """
    if len(depths) != 4 or len(heads) != 4:
        raise ValueError("depths and heads must name four stages")
    net = SwinUNETR(
        in_channels=inputs,
        out_channels=outputs,
        depths=depths,
        num_heads=heads,
        window_size=window,
        feature_size=filters,
        norm_name=norm,
        spatial_dims=ndim,
    )
    return SwinUNETRBackbone(net, [filters * n for n in (1, 1, 2, 4, 8, 16)], 32)
