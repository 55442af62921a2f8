"""The mask as the tasks that are derived from it see it."""

from __future__ import annotations

from torch import Tensor

from cease_core.attacks.losses import foreground, one_hot
from cease_core.tasks.base import Setting


def structures(labels: Tensor, setting: Setting) -> Tensor:
    """One channel a foreground class (N, classes, *spatial), 1 inside and 0 outside, float32.

    Parameters
    ----------
    labels
        Class ids (N, *spatial); or, for multilabel, one channel a class (N, classes, *spatial), floating point and
        inside where above ½.
    setting
        Of the model.

    Raises
    ------
    CeaseError
        If the mask holds an id that the model does not know.
    """
    outputs = setting.classes + (1 if setting.mode == "multiclass" else 0)
    channels = one_hot(labels.detach(), setting.mode, outputs)
    return (foreground(channels, setting.mode) > 0.5).float()
