"""Several models as one, by the mean of their answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.models.card import Mode
from cease_core.models.segmenter import Segmenter

Average = Literal["logits", "probabilities"]


class Ensemble(nn.Module):
    """The mean answer of several models; attacks go through all of them at once.

    Parameters
    ----------
    models
        Of one mode and with the same classes.
    average
        What the mean is taken of. Mean probabilities are returned as logits again (multiclass: their logarithms;
        else their log-odds), computed without ever leaving the logarithms, so that losses on logits stay exact.

    Raises
    ------
    CeaseError
        If there is no model, ``average`` is unknown or modes differ; when called, if the classes do.
    """

    def __init__(self, models: Sequence[Segmenter], *, average: Average = "logits") -> None:
        super().__init__()
        if not models:
            raise CeaseError("an ensemble of no models has no answer; give it at least one.")
        if average not in ("logits", "probabilities"):
            raise CeaseError(f"unknown average {average!r}; choose logits or probabilities.")
        modes = {model.mode for model in models}
        if len(modes) > 1:
            raise CeaseError(f"an ensemble needs models of one mode, not {' and '.join(sorted(modes))}; choose others.")
        self.mode: Mode = models[0].mode
        self.average = average
        self.models = tuple(models)
        # What is no module, such as windows over one, has no weights to register.
        self.registered = nn.ModuleList(model for model in models if isinstance(model, nn.Module))

    @property
    def exact(self) -> Ensemble | None:
        """The same ensemble with the full precision of each model that has less; None where none has."""
        exact = [getattr(model, "exact", None) for model in self.models]
        if all(model is None for model in exact):
            return None
        best = [m if e is None else e for e, m in zip(exact, self.models, strict=True)]
        return Ensemble(best, average=self.average)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, *spatial) for images (N, C, *spatial) in window fractions."""
        answers = [model(images) for model in self.models]
        counts = {answer.shape[1] for answer in answers}
        if len(counts) > 1:
            raise CeaseError(
                f"an ensemble needs models with the same classes, not {' and '.join(map(str, sorted(counts)))} "
                "output channels; choose others."
            )
        if self.average == "logits":
            return torch.stack(answers).mean(dim=0)
        logs = torch.stack([log_probabilities(answer, self.mode) for answer in answers])
        return from_log_probabilities(logs.logsumexp(dim=0) - math.log(len(answers)), self.mode)


def log_probabilities(logits: Tensor, mode: Mode) -> Tensor:
    """Logarithms of the classes' probabilities.

    Parameters
    ----------
    logits
        Shape (N, K, *spatial).

    Returns
    -------
    Tensor
        Multiclass: (N, K, *spatial). Else (N, 2 K, *spatial), of each class and then of its absence: neither can be
        had from the other where it is close to 0 or 1.
    """
    if mode == "multiclass":
        return logits.log_softmax(dim=1)
    return torch.cat((F.logsigmoid(logits), F.logsigmoid(-logits)), dim=1)


def from_log_probabilities(logs: Tensor, mode: Mode) -> Tensor:
    """Logits (N, K, *spatial) that stand for what `log_probabilities` returns."""
    if mode == "multiclass":
        return logs
    present, absent = logs.chunk(2, dim=1)
    return present - absent
