"""A model that computes in reduced precision and can be checked in full."""

from __future__ import annotations

import torch
from torch import Tensor

from cease_core.models.segmenter import SegmentationModel


class Reduced(SegmentationModel):
    """A prepared model under autocast; images and logits stay float32.

    Parameters
    ----------
    exact
        The model in float32, whose weights are shared; attacks judge their final masks by it.
    dtype
        What convolutions compute in.
    """

    exact: SegmentationModel

    def __init__(self, exact: SegmentationModel, dtype: torch.dtype) -> None:
        super().__init__(exact.card, exact.backbone)
        self.dtype = dtype
        self.eval()
        # Not as a submodule: its weights are this one's.
        object.__setattr__(self, "exact", exact)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, *spatial), float32, for images (N, C, *spatial) in window fractions."""
        with torch.autocast(images.device.type, self.dtype):
            return super().forward(images).float()
