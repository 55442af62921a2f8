"""Terms of a training objective as modules; `build_term` makes one from its config."""

from __future__ import annotations

from cease_core.defences.config import (
    AuxiliaryTerm,
    ConsistencyTerm,
    ContrastiveTerm,
    DistillationTerm,
    DivideTerm,
    FrequencyTerm,
    MartTerm,
    SegmentationTerm,
    Term,
)
from cease_core.defences.terms.auxiliary import TASK, Auxiliary
from cease_core.defences.terms.base import TermModule
from cease_core.defences.terms.consistency import Consistency
from cease_core.defences.terms.contrastive import Contrastive
from cease_core.defences.terms.distillation import Distillation
from cease_core.defences.terms.divide import Divide
from cease_core.defences.terms.frequency import Frequency
from cease_core.defences.terms.mart import Mart
from cease_core.defences.terms.segmentation import Segmentation
from cease_core.tasks.base import Setting


def build_term(term: Term, widths: tuple[int, ...], dense_width: int, setting: Setting) -> TermModule:
    """A term with random weights.

    Parameters
    ----------
    term
        Its config.
    widths
        Channels of the encoder's features, fine to coarse.
    dense_width
        Channels of the decoder's feature that dense terms read.
    setting
        Of the model.
    """
    match term:
        case SegmentationTerm():
            return Segmentation(term)
        case ContrastiveTerm():
            return Contrastive(term, widths, dense_width, setting.ndim)
        case AuxiliaryTerm():
            return Auxiliary(term, widths, setting)
        case ConsistencyTerm():
            return Consistency()
        case MartTerm():
            return Mart(term.trade_off)
        case DivideTerm():
            return Divide(widths, setting)
        case FrequencyTerm():
            return Frequency()
        case DistillationTerm():
            return Distillation(term, setting)


__all__ = ["TASK", "TermModule", "build_term"]
