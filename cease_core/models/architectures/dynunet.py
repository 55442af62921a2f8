"""DynUNet, MONAI's nnU-Net (Isensee et al. 2018, arXiv 1809.10486)."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.dynunet import DynUNet, DynUNetSkipLayer
from torch import Tensor

from cease_core.models.architectures.base import Backbone, Features, MonaiBackbone, affine


class DynUNetBackbone(MonaiBackbone):
    """MONAI's recursive DynUNet, unrolled level by level."""

    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse, each half the size of the one before."""
        features, layer = [], self.net.skip_layers
        while isinstance(layer, DynUNetSkipLayer):
            images = layer.downsample(images)
            features.append(images)
            layer = layer.next_layer
        features.append(layer(images))
        return features

    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""
        ups, layer = [], self.net.skip_layers
        while isinstance(layer, DynUNetSkipLayer):
            ups.append(layer.upsample)
            layer = layer.next_layer
        x = features[-1]
        for feature, up in zip(reversed(features[:-1]), reversed(ups), strict=True):
            x = up(x, feature)
        return self.net.output_block(x)


def dynunet(
    ndim: int,
    inputs: int,
    outputs: int,
    channels: tuple[int, ...] = (16, 32, 64, 128),
    norm: str | tuple[Any, ...] = "instance",
    residual: bool = False,
) -> Backbone:
    """Build it with ``channels`` from fine to coarse, and with ``residual`` blocks or plain ones."""
    strides = (1, *(2,) * (len(channels) - 1))
    net = DynUNet(
        spatial_dims=ndim,
        in_channels=inputs,
        out_channels=outputs,
        kernel_size=(3,) * len(channels),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=channels,
        norm_name=affine(norm),
        res_block=residual,
    )
    # The skip layers hold these once more, and a checkpoint cannot store a tensor under two names.
    del net.input_block, net.downsamples, net.bottleneck, net.upsamples
    return DynUNetBackbone(net, channels, 2 ** (len(channels) - 1))
