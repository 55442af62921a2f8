"""What a config builds: the model at its beginning, and its card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cease_core.data.cases import Case
from cease_core.defences import Defence
from cease_core.errors import CeaseError
from cease_core.models.card import DataInfo, ModelCard
from cease_core.models.checkpoint import load_model
from cease_core.models.library import find_model
from cease_core.models.segmenter import SegmentationModel
from cease_core.training.config import TrainingConfig


def build_model(config: TrainingConfig) -> SegmentationModel:
    """The model at the beginning: random weights from the seed, or those of ``config.start``.

    Raises
    ------
    CeaseError
        If the starting model has other layers.
    """
    torch.manual_seed(config.seed)
    # Samples are already at the working resolution.
    card = card_of(config, config.defence, [], [], None).model_copy(update={"downsample": 1})
    model = SegmentationModel(card)
    if config.start:
        try:
            model.backbone.load_state_dict(load_model(find_model(config.start)).backbone.state_dict())
        except RuntimeError as error:
            raise CeaseError(
                f"start: {config.start} has other layers than the config's {config.architecture}; choose a model of "
                "the same architecture, channels and classes."
            ) from error
    return model


def epochs_of(config: TrainingConfig, gradients: int, images: int, spent: int = 0) -> int:
    """Passes over ``images`` images that cost ``gradients`` each and replay, within what is left of the budget."""
    if config.epochs is not None:
        return config.epochs
    assert config.budget is not None
    return max(1, (config.budget - spent) // (gradients * images * config.defence.replays))


def card_of(
    config: TrainingConfig,
    defence: Defence,
    train_cases: Sequence[Case],
    validation_cases: Sequence[Case],
    selection: dict[str, Any] | None,
) -> ModelCard:
    """The card of the model that a run makes, before it is known how well it does."""
    training = config.model_dump(mode="json", exclude={"data", "classes", "defence"})
    training["defence"] = defence.model_dump(mode="json")
    if selection is not None:
        training["selection"] = selection
    return ModelCard(
        name=config.name,
        title=config.title,
        architecture=config.architecture,
        architecture_args=config.architecture_args,
        ndim=config.ndim,
        channels=config.channels,
        classes=config.classes,
        mode=config.mode,
        window=config.window,
        downsample=config.downsample,
        defence=defence.name,
        scene=config.scene,
        data=DataInfo(
            name=config.data.name,
            source=config.data.source,
            licence=config.data.licence,
            train=tuple(c.name for c in train_cases),
            validation=tuple(c.name for c in validation_cases),
        ),
        training=training,
        licence=config.licence,
    )
