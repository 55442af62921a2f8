"""What an auxiliary task is: a target made without extra labels, a head that predicts it, a loss.

Targets always come from the clean image or the mask, also when the encoder sees an attacked image: to
reconstruct the attacked one would reward keeping the perturbation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cease_core.models.architectures import Features
from cease_core.models.card import Mode, ModelCard


class Setting(NamedTuple):
    """What a task must know of the model it helps.

    Parameters
    ----------
    ndim, channels
        Spatial dimensions and channels of the images.
    classes
        Number of foreground classes.
    mode
        What the model's logits mean.
    """

    ndim: int
    channels: int
    classes: int
    mode: Mode

    @classmethod
    def of(cls, card: ModelCard) -> Setting:
        """That of a model."""
        return cls(card.ndim, card.channels, len(card.classes), card.mode)


class Head(nn.Module, ABC):
    """From the encoder's features, fine to coarse, to a task's prediction."""

    @abstractmethod
    def forward(self, features: Features, shape: tuple[int, ...]) -> Tensor:
        """Prediction for images of spatial ``shape``."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """An auxiliary task. A subclass in a file of its own, listed in `cease_core.tasks.TASKS`, is a new one.

    Attributes
    ----------
    title
        For tables and pictures.
    source
        Paper that the task comes from.
    derived_from
        ``"image"`` or ``"mask"``; tasks of the mask are expected to be strongly relevant.
    dims
        Spatial dimensions that the task is defined for.
    presents
        Whether the encoder sees a changed image, which costs a pass of its own.
    """

    title: ClassVar[str]
    source: ClassVar[str] = ""
    derived_from: ClassVar[Literal["image", "mask"]] = "image"
    dims: ClassVar[tuple[int, ...]] = (2, 3)
    presents: ClassVar[bool] = False

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """What is random about one case, given its image's ``shape`` (C, *spatial): a tensor of fixed size."""
        return torch.zeros(0)

    def present(self, images: Tensor, draws: Tensor) -> Tensor:
        """What the encoder sees of ``images`` (N, C, *spatial); differentiable, as attacks go through it."""
        return images

    @abstractmethod
    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        """What the head should predict, shape (N, …).

        Parameters
        ----------
        images
            Clean images in window fractions, shape (N, C, *spatial).
        labels
            Class ids (N, *spatial).
        draws
            One row a case, from `draw`, shape (N, …).
        setting
            Of the model.
        """

    @abstractmethod
    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        """A head with random weights on features of ``widths`` channels, fine to coarse."""

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One value a case (N,), at least 0."""

    @abstractmethod
    def constant(self, targets: Tensor) -> Tensor:
        """The best prediction that does not look at the image: one for all cases, in the shape of a prediction (1, …).

        What a head has learnt is judged against it. For targets on a grid it is one value a channel (or, where
        the loss is a distribution's, one distribution), the same at every position.
        """
