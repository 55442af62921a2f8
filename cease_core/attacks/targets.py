"""Masks for an attack to reach, made from the mask that it shall replace.

A target maker takes labels as `Problem.pose` does, class ids (N, *spatial) or, for multilabel models, one
channel a class (N, K, *spatial, floating point), and returns a mask of the same form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Target = Callable[[Tensor], Tensor]


def erase(labels: Tensor) -> Tensor:
    """Nothing but background."""
    return torch.zeros_like(labels)
