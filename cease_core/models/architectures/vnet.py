"""V-Net (Milletari et al. 2016, arXiv 1606.04797)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets.vnet import DownTransition, InputTransition, OutputTransition, UpTransition, VNet
from torch import Tensor

from cease_core.models.architectures.base import Backbone, Features, MonaiBackbone

LEVELS = 5


class VNetBackbone(MonaiBackbone):
    """MONAI's V-Net.

    Its first block repeats the image up to the level's channels, which must be a multiple of the image's: empty
    channels fill up where they are not, for colour images for example.
    """

    def __init__(self, net: VNet, filters: int, spare: int) -> None:
        super().__init__(net, [filters * 2**i for i in range(LEVELS)], 2 ** (LEVELS - 1))
        self.spare = spare

    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse, each half the size of the one before."""
        net = self.net
        features = [net.in_tr(self.fill(images))]
        for down in (net.down_tr32, net.down_tr64, net.down_tr128, net.down_tr256):
            features.append(down(features[-1]))
        return features

    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""
        net, x = self.net, features[-1]
        ups = (net.up_tr256, net.up_tr128, net.up_tr64, net.up_tr32)
        for feature, up in zip(reversed(features[:-1]), ups, strict=True):
            x = up(x, feature)
        return net.out_tr(x)

    def fill(self, images: Tensor) -> Tensor:
        """Images (N, C, *spatial) with the empty channels that the network needs."""
        return F.pad(images, (0, 0) * (images.ndim - 2) + (0, self.spare)) if self.spare else images


def vnet(ndim: int, inputs: int, outputs: int, filters: int = 4) -> Backbone:
    """Build it with ``filters`` channels at the first of its five levels (16 in the paper), twice as many at each next.

    There is no dropout: MONAI cannot turn off the one of its last two up-transitions, and drops whole images in 2-D.
    """
    if filters < inputs:
        raise ValueError(f"filters must be at least the image's {inputs} channels")
    filled = next(n for n in range(inputs, filters + 1) if filters % n == 0)
    with torch.device("meta"):
        net = VNet(spatial_dims=ndim, in_channels=1, out_channels=outputs)
    act: Any = ("elu", {"inplace": True})
    net.in_tr = InputTransition(ndim, filled, filters, act)
    for name, scale, convs in (("32", 1, 1), ("64", 2, 2), ("128", 4, 3), ("256", 8, 2)):
        setattr(net, f"down_tr{name}", DownTransition(ndim, filters * scale, convs, act))
    for name, wide, scale, convs in (("256", 16, 16, 2), ("128", 16, 8, 2), ("64", 8, 4, 1), ("32", 4, 2, 1)):
        up = UpTransition(ndim, filters * wide, filters * scale, convs, act, dropout_prob=(None, 0.0))
        setattr(net, f"up_tr{name}", up)
    net.out_tr = OutputTransition(ndim, 2 * filters, outputs, act)
    return VNetBackbone(net, filters, filled - inputs)
