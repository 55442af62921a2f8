"""Feature denoising (Xie et al. 2019, arXiv 1812.03411) between any encoder and its decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from monai.networks.layers.simplelayers import MedianFilter, separable_filtering
from torch import Tensor, nn

from cease_core.models.architectures.base import Backbone, Features

# Coarsest levels that are denoised: there, what is noise depends on what an object is.
LEVELS = 2
# Positions that non-local means compare with, at most; finer features are averaged to as many.
KEYS = 1024


class Blur(nn.Module):
    """One symmetric ``kernel`` along each axis, the border repeated."""

    def __init__(self, *kernel: float) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """Filter features (N, C, *spatial)."""
        kernel = torch.tensor(self.kernel, device=x.device, dtype=x.dtype)
        return separable_filtering(x, [kernel] * (x.ndim - 2), mode="replicate")


class NonLocalFilter(nn.Module):
    """A mean over all positions, weighted by the softmax of their scaled dot products (section 4.1, no embedding)."""

    def forward(self, x: Tensor) -> Tensor:
        """Filter features (N, C, *spatial)."""
        others = x
        while others[0, 0].numel() > KEYS:
            pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
            others = pool(others, 2, ceil_mode=True)
        tokens, keys = (t.flatten(2).transpose(1, 2) for t in (x, others))
        return F.scaled_dot_product_attention(tokens, keys, keys).transpose(1, 2).unflatten(2, x.shape[2:])


FILTERS: dict[str, Callable[[int], nn.Module]] = {
    "mean": lambda ndim: Blur(1 / 3, 1 / 3, 1 / 3),
    "gaussian": lambda ndim: Blur(0.25, 0.5, 0.25),
    "median": lambda ndim: MedianFilter(1, ndim),
    "nonlocal": lambda ndim: NonLocalFilter(),
}


class Denoising(nn.Module):
    """A filter, a 1×1 convolution and a residual connection (figure 4); at first it changes nothing.

    Parameters
    ----------
    ndim, width
        Spatial dimensions and channels of the features.
    kind
        Key of `FILTERS`.
    """

    def __init__(self, ndim: int, width: int, kind: str) -> None:
        super().__init__()
        self.filter = FILTERS[kind](ndim)
        self.mix = Conv[Conv.CONV, ndim](width, width, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Denoise features (N, C, *spatial)."""
        return x + self.mix(self.filter(x))


class Denoised(Backbone):
    """A backbone whose coarsest features are denoised; defences, tasks and the decoder see them so.

    Parameters
    ----------
    inner
        Any backbone.
    ndim
        Its spatial dimensions.
    kind
        Key of `FILTERS`.

    Raises
    ------
    ValueError
        If the filter is unknown.
    """

    def __init__(self, inner: Backbone, ndim: int, kind: str) -> None:
        super().__init__()
        if kind not in FILTERS:
            raise ValueError(f"unknown denoise filter {kind!r}; choose one of {', '.join(FILTERS)}")
        self.inner = inner
        self.multiple, self.widths = inner.multiple, inner.widths
        self.blocks = nn.ModuleList(Denoising(ndim, width, kind) for width in self.widths[-LEVELS:])

    def encode(self, images: Tensor) -> Features:
        """Denoised features from fine to coarse."""
        features = self.inner.encode(images)
        coarse = [block(f) for block, f in zip(self.blocks, features[-len(self.blocks) :], strict=True)]
        return [*features[: -len(coarse)], *coarse]

    def decode(self, features: Features) -> Tensor:
        """Logits (N, K, *spatial) from `encode`'s features."""
        return self.inner.decode(features)
