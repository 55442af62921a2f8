"""What the channels of logits and masks mean in each mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.models.card import Mode

Loss = Callable[[Tensor, Tensor, Mode], Tensor]
"""From logits and a one-hot target, both (N, K, *spatial), and the mode to one value a case, (N,)."""


def one_hot(labels: Tensor, mode: Mode, outputs: int, name: str = "labels") -> Tensor:
    """Target (N, K, *spatial), float32, from a mask.

    Parameters
    ----------
    labels
        Class ids (N, *spatial); or, for multilabel, already one channel a class (N, K, *spatial).
    mode, outputs
        Meaning and number of the logit channels.
    name
        What the mask is called in an error.

    Raises
    ------
    CeaseError
        If the mask holds an id that the model does not know.
    """
    if mode == "multilabel" and labels.ndim > 2 and labels.shape[1] == outputs and labels.is_floating_point():
        return labels.float()
    highest = outputs - 1 if mode == "multiclass" else outputs
    found = int(labels.max()) if labels.numel() else 0
    if found > highest or (labels.numel() and int(labels.min()) < 0):
        raise CeaseError(
            f"the {name} hold class {found if found > highest else int(labels.min())}, but the model knows "
            f"0 to {highest}; choose {name} with the model's classes."
        )
    first = 0 if mode == "multiclass" else 1
    ids = torch.arange(first, first + outputs, device=labels.device)
    return (labels.unsqueeze(1) == ids.view(1, -1, *(1,) * (labels.ndim - 1))).float()


def probabilities(logits: Tensor, mode: Mode) -> Tensor:
    """Softmax or sigmoid, as the mode says."""
    if mode == "multiclass":
        return logits.softmax(dim=1)
    # Through its logarithm: the sigmoid's own gradient, p (1 − p), is 0 in float32 from a logit of 17 on.
    return F.logsigmoid(logits).exp()


def foreground(channels: Tensor, mode: Mode) -> Tensor:
    """The channels that are structures: all but a multiclass model's background."""
    return channels[:, 1:] if mode == "multiclass" else channels
