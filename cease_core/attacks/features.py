"""Attacks on what a model computes on the way: its features, alone or mixed with the segmentation loss.

A defence that shapes features, as the contrastive one does, has to be attacked through them too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.attacks.base import About
from cease_core.attacks.gradient import Iterative
from cease_core.attacks.losses import Loss, ascent
from cease_core.attacks.problem import Objective, Problem
from cease_core.errors import CeaseError
from cease_core.models.architectures import Features
from cease_core.models.windowed import Windowed

Distance = Literal["l2", "cosine"]


@dataclass(frozen=True, eq=False)
class Glance:
    """What a further term may look at: some of the cases under attack, at one step.

    Parameters
    ----------
    cases
        Which case of the batch as it was posed each one is (N,), in any order, any of them more than once.
    images
        Adversarial images (N, C, *spatial).
    moved, clean
        The encoder's features of the adversarial and of the clean images, one tensor a level.
    """

    cases: Tensor
    images: Tensor
    moved: Features
    clean: Features


class CaseTerm(ABC):
    """A further term that knows something of each case, such as what a head should answer.

    Attributes
    ----------
    name
        What records of an attack call it.
    """

    name: str

    @abstractmethod
    def __call__(self, glance: Glance, /) -> Tensor:
        """One value a case (N,), to be ascended."""

    @property
    def __name__(self) -> str:
        return self.name


Term = Callable[[Features, Features], Tensor] | CaseTerm
"""From the features of the adversarial and of the clean images to one value a case (N,), to be ascended; or the same
from a `Glance`."""


@runtime_checkable
class Encoder(Protocol):
    """A model in two halves."""

    def encode(self, images: Tensor, /) -> Features: ...

    def decode(self, features: Features, shape: tuple[int, ...], /) -> Tensor: ...


def feature_distance(moved: Features, clean: Features, distance: Distance = "l2") -> Tensor:
    """How far features have moved (N,), mean over the encoder's levels.

    Parameters
    ----------
    moved, clean
        One tensor a level, each (N, C, *spatial).
    distance
        ``"l2"``: root mean square of the difference over that of the clean features.
        ``"cosine"``: one minus the cosine at every position, mean over positions.
    """
    return torch.stack([_distance(a, b, distance) for a, b in zip(moved, clean, strict=True)]).mean(dim=0)


def _distance(moved: Tensor, clean: Tensor, distance: Distance) -> Tensor:
    if distance == "cosine":
        return 1 - F.cosine_similarity(moved, clean, dim=1, eps=1e-6).flatten(1).mean(dim=1)
    size = clean.flatten(1).square().mean(dim=1).clamp_min(1e-12)
    # Not the root: its slope is infinite where nothing has moved yet.
    return (moved - clean).flatten(1).square().mean(dim=1) / size


@dataclass(frozen=True, kw_only=True)
class FeatureAttack(Iterative):
    """Moves the encoder's features as far as possible: max ‖f(x + δ) − f(x)‖, whatever the mask.

    The untrained cousin of the inner attack of contrastive defences (Kim, Tack & Hwang 2020, arXiv 2006.07589).

    Parameters
    ----------
    distance
        How features are compared: ``"l2"`` or ``"cosine"``.

    Raises
    ------
    CeaseError
        When it runs: if the model does not show its features.

    Examples
    --------
    >>> FeatureAttack().distance
    'l2'
    """

    about: ClassVar[About] = About(
        title="Feature attack",
        group="adaptive",
        definition="PGD on the distance between the encoder's features of the attacked and the clean scan.",
        source="after RoCL: Kim, Tack & Hwang 2020, arXiv 2006.07589",
        when="Against defences that shape features; alone it is weaker than a mask loss on ordinary models.",
        goals=("untargeted",),
        shown=("norm", "steps"),
    )

    distance: Distance = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in ("l2", "cosine"):
            raise CeaseError(f"unknown distance {self.distance!r}; choose l2 or cosine.")

    def posed(self, problem: Problem) -> Problem:
        return problem.ascending(self.ascended(problem))

    def ascended(self, problem: Problem) -> Objective:
        """The objective, with the clean features computed once."""
        return _through_features(problem, None, (self.term,))

    def term(self, moved: Features, clean: Features) -> Tensor:
        return feature_distance(moved, clean, self.distance)


@dataclass(frozen=True, kw_only=True)
class MixedAttack(FeatureAttack):
    """The segmentation loss, plus the features' distance, plus any further terms: the adaptive attack.

    A defence with several losses must be attacked through all of them at once (Tramèr et al. 2020,
    arXiv 2002.08347): what its contrastive and auxiliary terms hold together, these terms pull apart.

    Parameters
    ----------
    feature_weight
        Of the features' distance beside the segmentation loss; towards a target the features that leave the
        clean ones are no hindrance, so its sign stays.
    terms
        Further functions of the attacked and the clean features, with a value (N,) to be ascended each:
        the losses of auxiliary heads, for one (see `cease_core.defences.joint`). Added at weight 1.

    Examples
    --------
    >>> MixedAttack(feature_weight=0.5).distance
    'cosine'
    """

    about: ClassVar[About] = About(
        title="Mixed (adaptive)",
        group="adaptive",
        definition="PGD on the segmentation loss plus the distance of features plus the losses of auxiliary heads.",
        source="after Tramèr et al. 2020, arXiv 2002.08347",
        when="Against contrastive and multitask defences, CEASE among them.",
        shown=("norm", "loss", "steps", "feature_weight"),
    )

    distance: Distance = "cosine"
    feature_weight: float = 0.3
    terms: tuple[Term, ...] = ()

    def ascended(self, problem: Problem) -> Objective:
        def near(moved: Features, clean: Features) -> Tensor:
            return self.feature_weight * self.term(moved, clean)

        return _through_features(problem, ascent(self.loss, targeted=problem.targeted), (near, *self.terms))


def _through_features(problem: Problem, loss: Loss | None, terms: tuple[Term, ...]) -> Objective:
    model = problem.model
    if isinstance(model, Windowed):
        raise CeaseError(
            "this attack needs a model that shows its features on the whole image, and this one sees it in parts; "
            "attack a slice or a smaller volume, or choose another attack."
        )
    if not isinstance(model, Encoder):
        raise CeaseError(
            f"this attack needs a model that shows its features, which {type(model).__name__} does not; "
            "attack a single model that nothing is wrapped around, or choose another attack."
        )
    encoder: Encoder = model
    with torch.no_grad():
        clean = encoder.encode(problem.images)
    row = {int(case): i for i, case in enumerate(problem.cases)}

    def objective(part: Problem, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        moved = encoder.encode(adversarial)
        logits = encoder.decode(moved, tuple(adversarial.shape[2:]))
        index = torch.tensor([row[int(case)] for case in part.cases], device=adversarial.device)
        glance = Glance(part.cases, adversarial, moved, [f[index] for f in clean])
        value = torch.stack([_value(term, glance) for term in terms]).sum(dim=0)
        if loss is not None:
            value = value + loss(logits, part.reference, part.mode)
        return logits, value

    return objective


def _value(term: Term, glance: Glance) -> Tensor:
    return term(glance) if isinstance(term, CaseTerm) else term(glance.moved, glance.clean)
