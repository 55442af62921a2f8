"""Segmentation models that take window intensities and return logits."""

from cease_core.models.architectures import ARCHITECTURES, build
from cease_core.models.card import ClassInfo, Mode, ModelCard, WindowRule
from cease_core.models.checkpoint import load_model, open_model, save_model
from cease_core.models.foreign.model import ForeignModel
from cease_core.models.library import available_models, find_model
from cease_core.models.prepare import best_device, prepare
from cease_core.models.segmenter import SegmentationModel, Segmenter, predict_labels
from cease_core.models.windowed import Windowed

__all__ = [
    "ARCHITECTURES",
    "ClassInfo",
    "ForeignModel",
    "Mode",
    "ModelCard",
    "SegmentationModel",
    "Segmenter",
    "WindowRule",
    "Windowed",
    "available_models",
    "best_device",
    "build",
    "find_model",
    "load_model",
    "open_model",
    "predict_labels",
    "prepare",
    "save_model",
]
