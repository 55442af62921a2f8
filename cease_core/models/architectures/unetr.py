"""UNETR (Hatamizadeh et al. 2021, arXiv 2103.10504)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from monai.networks.nets.unetr import UNETR
from torch import Tensor, nn

from cease_core.models.architectures.base import Backbone, Features, MonaiBackbone

PATCH = 16
# Transformer blocks whose output reaches the decoder, fine to coarse; the last one's is the coarsest feature.
TAPS = (3, 6, 9)


class UNETRBackbone(MonaiBackbone):
    """MONAI's UNETR, with position embeddings that are interpolated to the size of the image."""

    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse: at the image's size, and half the size of the one before thrice.

        The coarsest are the tokens of the transformer, at a 16th of the image's size.
        """
        net, vit = self.net, self.net.vit
        patches = vit.patch_embedding.patch_embeddings(images)
        grid = patches.shape[2:]
        x = vit.patch_embedding.dropout((patches + self.positions(tuple(grid))).flatten(2).transpose(1, 2))
        tapped = []
        for number, block in enumerate(vit.blocks):
            x = block(x)
            if number in TAPS:
                tapped.append(x)
        tokens = [t.transpose(1, 2).unflatten(2, grid).contiguous() for t in (*tapped, vit.norm(x))]
        ups = (net.encoder2, net.encoder3, net.encoder4)
        return [net.encoder1(images), *(up(t) for up, t in zip(ups, tokens[:-1], strict=True)), tokens[-1]]

    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""
        net, x = self.net, features[-1]
        ups = (net.decoder5, net.decoder4, net.decoder3, net.decoder2)
        for feature, up in zip(reversed(features[:-1]), ups, strict=True):
            x = up(x, feature)
        return net.out(x)

    def positions(self, grid: tuple[int, ...]) -> Tensor:
        """Position embeddings (1, hidden, *grid)."""
        own: Tensor = self.net.vit.patch_embedding.position_embeddings.transpose(1, 2).unflatten(2, self.net.feat_size)
        if grid == tuple(own.shape[2:]):
            return own
        return F.interpolate(own, size=grid, mode="bilinear" if len(grid) == 2 else "trilinear", align_corners=False)


def unetr(
    ndim: int,
    inputs: int,
    outputs: int,
    filters: int = 8,
    hidden: int = 96,
    mlp: int = 192,
    heads: int = 4,
    image_size: int | tuple[int, ...] = 64,
    norm: str | tuple[Any, ...] = "instance",
) -> Backbone:
    """Build it.

    Parameters
    ----------
    ndim, inputs, outputs
        Spatial dimensions, input channels and logit channels.
    filters
        Channels of the finest features.
    hidden, mlp, heads
        Width of the twelve transformer blocks, of their inner layers, and number of attention heads.
    image_size
        Size that the position embeddings are made for; they are interpolated to any other.
    norm
        Of the convolutional blocks.
    """
    net = UNETR(
        in_channels=inputs,
        out_channels=outputs,
        img_size=image_size,
        feature_size=filters,
        hidden_size=hidden,
        mlp_dim=mlp,
        num_heads=heads,
        norm_name=norm,
        spatial_dims=ndim,
    )
    for block in net.vit.blocks:
        # Never called, and parameters without a gradient stop distributed training.
        block.norm_cross_attn = nn.Identity()
    return UNETRBackbone(net, (filters, 2 * filters, 4 * filters, 8 * filters, hidden), PATCH)
