"""Figures that say how much a perturbation changed, in the mask and in the image, and how robust a model is."""

from cease_core.evaluation.metrics import Distortion, dice_per_class, distortion, mean_dice
from cease_core.evaluation.protocol import Paired, asr_drop, curve_area, d_censored, interval, paired

__all__ = [
    "Distortion",
    "Paired",
    "asr_drop",
    "curve_area",
    "d_censored",
    "dice_per_class",
    "distortion",
    "interval",
    "mean_dice",
    "paired",
]
