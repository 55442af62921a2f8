"""What a term is once it is built: a module with parameters of its own, read only while training."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from cease_core.defences.views import Context


class TermModule(nn.Module, ABC):
    """One term of an objective."""

    @abstractmethod
    def forward(self, context: Context) -> dict[str, Tensor]:
        """Values by name, each a scalar to be minimised; the term's weight is shared among them evenly."""

    def passes(self, views: int) -> int:
        """Encoder passes an image beyond one for each of ``views`` views."""
        return 0
