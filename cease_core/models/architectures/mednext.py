"""MedNeXt (Roy et al. 2023, arXiv 2303.09975)."""

from __future__ import annotations

from monai.networks.nets.mednext import MedNeXt
from torch import Tensor

from cease_core.models.architectures.base import Backbone, Features, MonaiBackbone


class MedNeXtBackbone(MonaiBackbone):
    """MONAI's MedNeXt."""

    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse, each half the size of the one before."""
        net, x, features = self.net, self.net.stem(images), []
        for stage, down in zip(net.enc_stages, net.down_blocks, strict=True):
            features.append(stage(x))
            x = down(features[-1])
        return [*features, net.bottleneck(x)]

    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""
        net, x = self.net, features[-1]
        for feature, up, stage in zip(reversed(features[:-1]), net.up_blocks, net.dec_stages, strict=True):
            x = stage(up(x) + feature)
        return net.out_0(x)


def mednext(
    ndim: int,
    inputs: int,
    outputs: int,
    filters: int = 16,
    levels: int = 5,
    blocks: int = 2,
    expansion: int = 2,
    kernel: int = 3,
) -> Backbone:
    """Build it; 32 filters and the other defaults are the paper's MedNeXt-S.

    Parameters
    ----------
    ndim, inputs, outputs
        Spatial dimensions, input channels and logit channels.
    filters, levels
        Channels of the finest level, and number of levels, each with twice the channels of the one before.
    blocks
        At every level of the encoder and of the decoder.
    expansion
        Width inside a block over the width outside.
    kernel
        Edge of the depthwise convolutions; odd.
    """
    if levels < 2 or kernel % 2 == 0:
        raise ValueError("levels must be at least 2, and kernel odd")
    net = MedNeXt(
        spatial_dims=ndim,
        init_filters=filters,
        in_channels=inputs,
        out_channels=outputs,
        encoder_expansion_ratio=expansion,
        decoder_expansion_ratio=expansion,
        bottleneck_expansion_ratio=expansion,
        kernel_size=kernel,
        use_residual_connection=True,
        blocks_down=(blocks,) * (levels - 1),
        blocks_bottleneck=blocks,
        blocks_up=(blocks,) * (levels - 1),
    )
    return MedNeXtBackbone(net, [filters * 2**i for i in range(levels)], 2 ** (levels - 1))
