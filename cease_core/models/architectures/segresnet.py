"""SegResNet (Myronenko 2018, arXiv 1810.11654)."""

from __future__ import annotations

from monai.networks.nets.segresnet import SegResNet
from torch import Tensor

from cease_core.models.architectures.base import Backbone, Features, MonaiBackbone


class SegResNetBackbone(MonaiBackbone):
    """MONAI's SegResNet, which is already split."""

    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse, each half the size of the one before."""
        return list(self.net.encode(images)[1])

    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""
        return self.net.decode(features[-1], features[::-1])


def segresnet(ndim: int, inputs: int, outputs: int, filters: int = 8, levels: int = 4) -> Backbone:
    """Build it with ``filters`` channels at the finest of its ``levels``, twice as many at each next one."""
    net = SegResNet(
        spatial_dims=ndim,
        init_filters=filters,
        in_channels=inputs,
        out_channels=outputs,
        blocks_down=tuple(min(2**i, 4) for i in range(levels)),
        blocks_up=(1,) * (levels - 1),
    )
    return SegResNetBackbone(net, [filters * 2**i for i in range(levels)], 2 ** (levels - 1))
