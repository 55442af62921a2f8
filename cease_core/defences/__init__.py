"""Defences: training objectives as weighted terms over views, their presets, and wrappers around any model."""

from cease_core.defences.config import (
    AuxiliaryTerm,
    ConsistencyTerm,
    ContrastiveTerm,
    Defence,
    DistillationTerm,
    DivideTerm,
    FrequencyTerm,
    InnerAttack,
    MartTerm,
    SegmentationTerm,
)
from cease_core.defences.objective import Cost, Objective
from cease_core.defences.presets import PRESETS, preset
from cease_core.defences.views import Batch

__all__ = [
    "PRESETS",
    "AuxiliaryTerm",
    "Batch",
    "ConsistencyTerm",
    "ContrastiveTerm",
    "Cost",
    "Defence",
    "DistillationTerm",
    "DivideTerm",
    "FrequencyTerm",
    "InnerAttack",
    "MartTerm",
    "Objective",
    "SegmentationTerm",
    "preset",
]
