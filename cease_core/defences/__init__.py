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
from cease_core.defences.ensemble import Ensemble
from cease_core.defences.input_transforms import (
    JPEG,
    BitDepth,
    Median,
    Noise,
    TotalVariation,
    Transform,
    Transformed,
)
from cease_core.defences.joint import Heads, joint_terms, load_heads, task_losses
from cease_core.defences.objective import Cost, Objective
from cease_core.defences.presets import PRESETS, preset
from cease_core.defences.smoothing import Certificate, Smoothed, certify
from cease_core.defences.views import Batch

__all__ = [
    "JPEG",
    "PRESETS",
    "AuxiliaryTerm",
    "Batch",
    "BitDepth",
    "Certificate",
    "ConsistencyTerm",
    "ContrastiveTerm",
    "Cost",
    "Defence",
    "DistillationTerm",
    "DivideTerm",
    "Ensemble",
    "FrequencyTerm",
    "Heads",
    "InnerAttack",
    "MartTerm",
    "Median",
    "Noise",
    "Objective",
    "SegmentationTerm",
    "Smoothed",
    "TotalVariation",
    "Transform",
    "Transformed",
    "certify",
    "joint_terms",
    "load_heads",
    "preset",
    "task_losses",
]
