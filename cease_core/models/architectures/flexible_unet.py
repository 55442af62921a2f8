"""FlexibleUNet: a U-Net on an EfficientNet (Tan & Le 2019, arXiv 1905.11946) or a ResNet."""

from __future__ import annotations

from monai.networks.nets.efficientnet import EfficientNetEncoder, MBConvBlock
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE, FlexibleUNet
from torch import Tensor, nn

from cease_core.models.architectures.base import Backbone, Features, MonaiBackbone


class FlexibleUNetBackbone(MonaiBackbone):
    """MONAI's FlexibleUNet, which is already split."""

    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse, from half the image's size to a 32nd."""
        return list(self.net.encoder(images))

    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""
        return self.net.segmentation_head(self.net.decoder(features, self.net.skip_connect))


def flexible_unet(
    ndim: int,
    inputs: int,
    outputs: int,
    encoder: str = "efficientnet-b0",
    channels: tuple[int, ...] = (64, 48, 32, 24, 16),
) -> Backbone:
    """Build it with random weights.

    Parameters
    ----------
    ndim, inputs, outputs
        Spatial dimensions, input channels and logit channels.
    encoder
        ``efficientnet-b0`` … ``b8``, ``resnet10`` … ``resnet200``.
    channels
        Of the decoder's five levels, coarse to fine.
    """
    known = FLEXUNET_BACKBONE.register_dict
    if encoder not in known:
        raise ValueError(f"unknown encoder {encoder!r}; choose one of {', '.join(known)}")
    net = FlexibleUNet(
        in_channels=inputs,
        out_channels=outputs,
        backbone=encoder,
        pretrained=False,
        decoder_channels=channels,
        spatial_dims=ndim,
    )
    if isinstance(net.encoder, EfficientNetEncoder):
        _suit(net.encoder)
    return FlexibleUNetBackbone(net, known[encoder]["feature_channel"], 32)


def _suit(encoder: EfficientNetEncoder) -> None:
    # The classifier is never called, and parameters without a gradient stop distributed training.
    encoder._conv_head = encoder._bn1 = encoder._fc = nn.Identity()
    for module in encoder.modules():
        if isinstance(module, MBConvBlock):
            module.drop_connect_rate = 0.0
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            # The ImageNet recipe's 0.01 needs thousands of steps to forget the random start.
            module.momentum = 0.1
