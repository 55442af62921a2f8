"""What a backbone is: a network as encoder and decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

Features = list[Tensor]


class Backbone(nn.Module, ABC):
    """A network as encoder and decoder.

    Attributes
    ----------
    multiple
        What the size of its input must be divisible by, along each axis.
    widths
        Channels of `encode`'s features, fine to coarse.
    """

    multiple: int
    widths: tuple[int, ...]

    @abstractmethod
    def encode(self, images: Tensor) -> Features:
        """Features from fine to coarse for ``images`` of shape (N, C, *spatial)."""

    @abstractmethod
    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, *spatial) for ``images`` of shape (N, C, *spatial)."""
        return self.decode(self.encode(images))


class MonaiBackbone(Backbone):
    """A MONAI network ``net``, cut in two."""

    net: Any

    def __init__(self, net: nn.Module, widths: Sequence[int], multiple: int) -> None:
        super().__init__()
        self.net = net
        self.widths = tuple(widths)
        self.multiple = multiple


def affine(norm: str | tuple[Any, ...]) -> str | tuple[Any, ...]:
    """MONAI's ``norm`` argument; a plain ``"instance"`` gets a learnt scale and offset, as nnU-Net has it."""
    return ("instance", {"affine": True}) if norm == "instance" else norm
