"""Figures that say how much a perturbation changed, in the mask and in the image."""

from cease_core.evaluation.metrics import Distortion, dice_per_class, distortion, mean_dice

__all__ = ["Distortion", "dice_per_class", "distortion", "mean_dice"]
