"""Alike spectra of the clean and the attacked prediction."""

from __future__ import annotations

from torch import Tensor

from cease_core.attacks.dct import Cosines
from cease_core.defences.terms.base import TermModule
from cease_core.defences.views import Context


def spectrum(logits: Tensor) -> Tensor:
    """Orthonormal cosine coefficients of logits (N, K, *spatial), in one block."""
    return Cosines(logits.shape[2:], logits).forward(logits.float())


class Frequency(TermModule):
    """Sum of absolute differences between the two `spectrum`, over that of the clean one (Hanif et al. 2023).

    The quotient is the authors' code's; their paper has the difference alone.
    """

    def forward(self, context: Context) -> dict[str, Tensor]:
        clean, adversarial = (spectrum(context.looks[view].logits) for view in ("clean", "adversarial"))
        return {"frequency": (clean - adversarial).abs().sum() / clean.abs().sum().clamp_min(1e-6)}
