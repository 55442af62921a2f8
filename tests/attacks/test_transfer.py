"""A transferred perturbation is the source's own, and the model under attack pays no gradient for it."""

from __future__ import annotations

import pytest
import torch
from attack_subjects import target

from cease_core.attacks import PGD, Problem, Transfer
from cease_core.errors import CeaseError
from cease_core.models import Mode


class Stubborn:
    """Answers as the net does, but no gradient passes."""

    mode: Mode = "binary"

    def __init__(self, net: torch.nn.Module) -> None:
        self.net = net

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.net(images)


def test_perturbation_is_that_of_the_attack_on_the_source() -> None:
    t = target("binary", 2)
    made = PGD(steps=5)(t.net, t.images, t.labels)
    moved = Transfer(source=t.net, inner=PGD(steps=5))(t.net, t.images, t.labels)
    assert torch.equal(moved.perturbation, made.perturbation)
    assert moved.gradients.tolist() == [5, 5]


def test_model_under_attack_needs_no_gradient() -> None:
    t = target("binary", 2)
    result = Transfer(source=t.net, epsilon=0.04)(Stubborn(t.net), t.images, t.labels)
    assert (result.dice < 1).all()
    with pytest.raises(CeaseError, match="no gradient reaches the image"):
        PGD()(Stubborn(t.net), t.images, t.labels)


def test_a_perturbation_that_does_not_carry_over_is_not_kept() -> None:
    t = target("binary", 2)

    class Opposite:
        """Breaks where the net gets better."""

        mode: Mode = "binary"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return t.net(2 * t.images - images)

    clean = Problem.pose(t.net, t.images, t.labels, "soft_dice").clean()
    result = Transfer(source=Opposite(), epsilon=0.04)(t.net, t.images, t.labels)
    assert (result.dice <= clean.score).all()


def test_source_is_named_when_it_is_missing_or_unlike() -> None:
    t = target("binary", 2)
    with pytest.raises(CeaseError, match="needs a second model"):
        Transfer()(t.net, t.images, t.labels)
    with pytest.raises(CeaseError, match="the source is a multiclass model"):
        Transfer(source=target("multiclass", 2).net)(t.net, t.images, t.labels)
    classes = target("multilabel", 2)

    class Fewer:
        """One class where the model under attack has two; the two would broadcast."""

        mode: Mode = "multilabel"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return classes.net(images)[:, :1]

    with pytest.raises(CeaseError, match="choose a source with the same classes"):
        Transfer(source=Fewer())(classes.net, classes.images, classes.labels)
