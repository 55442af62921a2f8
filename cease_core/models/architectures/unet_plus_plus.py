"""U-Net++ (Zhou et al. 2018, arXiv 1807.10165)."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from torch import Tensor, nn

from cease_core.models.architectures.base import Backbone, Features, MonaiBackbone, affine

LEVELS = 5


class UNetPlusPlusBackbone(MonaiBackbone):
    """MONAI's U-Net++: its encoder is the first column of the grid of nested nodes, all others are the decoder."""

    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse, each half the size of the one before."""
        features = []
        for level in range(LEVELS):
            images = getattr(self.net, f"conv_{level}_0")(images)
            features.append(images)
        return features

    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""
        rows = [[feature] for feature in features]
        for column in range(1, LEVELS):
            for level in range(LEVELS - column):
                node = getattr(self.net, f"upcat_{level}_{column}")
                rows[level].append(node(rows[level + 1][column - 1], torch.cat(rows[level], dim=1)))
        return self.net.final_conv_0_4(rows[0][-1])


def unet_plus_plus(
    ndim: int,
    inputs: int,
    outputs: int,
    channels: tuple[int, ...] = (16, 16, 32, 64, 128),
    norm: str | tuple[Any, ...] = "instance",
) -> Backbone:
    """Build it with ``channels`` of its five levels, fine to coarse."""
    if len(channels) != LEVELS:
        raise ValueError(f"channels must name {LEVELS} levels, not {len(channels)}")
    net = BasicUNetPlusPlus(
        spatial_dims=ndim,
        in_channels=inputs,
        out_channels=outputs,
        features=(*channels, channels[0]),
        norm=affine(norm),
    )
    # Only deep supervision reads these, and parameters without a gradient stop distributed training.
    net.final_conv_0_1 = net.final_conv_0_2 = net.final_conv_0_3 = nn.Identity()
    return UNetPlusPlusBackbone(net, channels, 2 ** (LEVELS - 1))
