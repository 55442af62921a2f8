"""Overlap of masks and size of perturbations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.regression import SSIMMetric
from torch import Tensor

from cease_core.scan import LabelArray


def dice_per_class(mask: LabelArray, reference: LabelArray, classes: Sequence[int]) -> dict[int, float]:
    """Dice coefficient of each class; 1 where both masks lack it.

    Parameters
    ----------
    mask, reference
        Class ids on the same grid.
    classes
        Foreground ids to report.
    """
    scores = {}
    for c in classes:
        a, b = mask == c, reference == c
        total = int(a.sum()) + int(b.sum())
        scores[c] = 1.0 if total == 0 else 2 * int((a & b).sum()) / total
    return scores


def mean_dice(mask: LabelArray, reference: LabelArray, classes: Sequence[int]) -> float:
    """Mean of `dice_per_class`."""
    return float(np.mean(list(dice_per_class(mask, reference, classes).values())))


@dataclass(frozen=True)
class Distortion:
    """Size of a perturbation in window fractions; PSNR (dB) and SSIM take the window as the data range.

    SSIM of a volume is the mean over its slices.
    """

    linf: float
    rms: float
    psnr: float
    ssim: float


def distortion(clean: Tensor, adversarial: Tensor, *, structure: bool = True) -> Distortion:
    """Measure a perturbation.

    Parameters
    ----------
    clean, adversarial
        Window fractions, shape (N, C, *spatial) with two or three spatial axes.
    structure
        Whether SSIM is measured, which takes longer than most models; otherwise it is NaN.

    Returns
    -------
    Distortion
        PSNR is infinite and SSIM 1 for identical images.
    """
    delta = (adversarial - clean).float()
    rms = float(delta.square().mean().sqrt())
    psnr = math.inf if rms == 0 else -20 * math.log10(rms)
    ssim = _ssim(clean.float(), adversarial.float()) if structure else math.nan
    return Distortion(float(delta.abs().max()), rms, psnr, ssim)


def _ssim(clean: Tensor, adversarial: Tensor) -> float:
    # Volumes are compared slice by slice: that is what is looked at, and a cubic window costs a hundred times more.
    if clean.ndim == 5:
        clean, adversarial = (t.transpose(1, 2).flatten(0, 1) for t in (clean, adversarial))
    edge = min(11, *clean.shape[2:])
    metric = SSIMMetric(spatial_dims=2, data_range=1.0, win_size=edge - 1 + edge % 2)
    with torch.no_grad():
        return float(metric(adversarial, clean).mean())
