"""Replayed passes give what plain calls give, or are not used; the passes here are plain calls in fixed memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cease_core.models import SegmentationModel, prepare
from cease_core.models.graphed import SHAPES, Graphed


class FixedMemory:
    """What a captured graph does, call by call: every result overwrites the last."""

    def __init__(self, model, images: Tensor) -> None:
        self.model = model
        self.images = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            self.live = model(self.images)
        self.logits = self.live.detach().clone()
        self.gradient = torch.zeros_like(images)
        self.replays = 0

    def forward(self, images: Tensor) -> Tensor:
        self.replays += 1
        with torch.no_grad():
            self.images.copy_(images)
        with torch.enable_grad():
            self.live = self.model(self.images)
        return self.logits.copy_(self.live.detach())

    def backward(self, upstream: Tensor) -> Tensor:
        return self.gradient.copy_(torch.autograd.grad(self.live, self.images, upstream, retain_graph=True)[0])


@pytest.fixture
def model(make_model) -> SegmentationModel:
    return prepare(make_model())


def images(seed: int, edge: int = 12) -> Tensor:
    return torch.rand(1, 1, edge, edge, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_logits_and_gradients_are_those_of_the_plain_call(model) -> None:
    graphed = Graphed(model, FixedMemory)
    for seed in range(3):
        x = images(seed)
        assert torch.equal(graphed(x), model(x))
        found, exact = (torch.autograd.grad(net(x).square().sum(), x)[0] for net in (graphed, model))
        torch.testing.assert_close(found, exact)


def test_an_answer_outlives_the_next_one(model) -> None:
    graphed = Graphed(model, FixedMemory)
    one, other = images(0), images(1)
    first = graphed(one)
    gradient = torch.autograd.grad(first.square().sum(), one)[0]
    kept = first.detach().clone(), gradient.clone()
    torch.autograd.grad(graphed(other).square().sum(), other)
    assert torch.equal(first, kept[0])
    assert torch.equal(gradient, kept[1])


def test_a_gradient_asked_for_after_another_image_is_still_right(model) -> None:
    graphed = Graphed(model, FixedMemory)
    one, other = images(0), images(1)
    found = torch.autograd.grad(graphed(one).square().sum() + graphed(other).square().sum(), (one, other))
    exact = torch.autograd.grad(model(one).square().sum() + model(other).square().sum(), (one, other))
    torch.testing.assert_close(found, exact)


def test_a_shape_is_captured_once_and_few_are_kept(model) -> None:
    captured: list[tuple[int, ...]] = []

    def capture(net, x: Tensor) -> FixedMemory:
        captured.append(tuple(x.shape))
        return FixedMemory(net, x)

    graphed = Graphed(model, capture)
    for _ in range(2):
        for edge in range(8, 8 + SHAPES):
            graphed(images(0, edge))
    assert len(captured) == SHAPES
    graphed(images(0, 20))
    graphed(images(0, 8))
    assert captured[SHAPES:] == [(1, 1, 20, 20), (1, 1, 8, 8)]


def test_where_capturing_fails_the_plain_call_is_used(model, caplog: pytest.LogCaptureFixture) -> None:
    def capture(net, x: Tensor) -> FixedMemory:
        raise RuntimeError("operation not permitted when stream is capturing")

    x = images(0)
    assert torch.equal(Graphed(model, capture)(x), model(x))
    assert "going on without: operation not permitted" in caplog.text


@pytest.mark.parametrize("wrong", ["forward", "backward"])
def test_a_graph_that_differs_is_not_used(model, wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    def capture(net, x: Tensor) -> FixedMemory:
        replay = FixedMemory(net, x)
        right = getattr(replay, wrong)
        setattr(replay, wrong, lambda values: right(values) * 1.1)
        return replay

    graphed, x = Graphed(model, capture), images(0)
    assert torch.equal(graphed(x), model(x))
    assert torch.equal(*(torch.autograd.grad(net(x).sum(), x)[0] for net in (graphed, model)))
    assert "not used" in caplog.text


def test_the_exact_model_is_passed_on(make_model, model) -> None:
    reduced = prepare(make_model(), precision="bfloat16")
    assert Graphed(reduced, FixedMemory).exact is reduced.exact
    assert Graphed(model, FixedMemory).exact is None


def test_without_cuda_there_is_no_graph(make_model) -> None:
    assert not isinstance(prepare(make_model(), "cpu", graphs=True), Graphed)
