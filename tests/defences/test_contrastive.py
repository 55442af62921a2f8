"""Contrastive losses against closed forms and a reference written pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.defences.config import ContrastiveTerm
from cease_core.defences.terms import contrastive
from cease_core.defences.terms.contrastive import (
    Contrastive,
    draw_anchors,
    positives_only,
    supervised_contrastive,
)
from cease_core.defences.views import Look


def unit(count: int, width: int = 8, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def pair_by_pair(rows: Tensor, groups: Tensor, temperature: float, keys: list[int] | None = None) -> Tensor:
    """The formula as it stands."""
    at = list(range(len(rows))) if keys is None else keys
    anchors = []
    for i in range(len(rows)):
        others = [a for a in at if a != i]
        positives = [j for j in others if groups[j] == groups[i]]
        if positives:
            crowd = torch.stack([(rows[i] @ rows[a] / temperature).exp() for a in others]).sum()
            shares = [(rows[i] @ rows[j] / temperature) - crowd.log() for j in positives]
            anchors.append(-torch.stack(shares).mean())
    return torch.stack(anchors).mean() if anchors else torch.tensor(0.0)


@pytest.mark.parametrize("count", [2, 6, 9])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_where_all_are_alike_or_all_are_orthogonal_it_is_the_logarithm_of_the_others(
    count: int, temperature: float
) -> None:
    one_group = torch.zeros(count, dtype=torch.long)
    for rows in (torch.eye(count), torch.eye(count)[:1].expand(count, -1)):
        loss = supervised_contrastive(rows, one_group, temperature)
        assert loss.item() == pytest.approx(math.log(count - 1), abs=1e-5)


def test_views_that_agree_on_orthogonal_scans() -> None:
    scans, views, temperature = 4, 3, 0.5
    loss = supervised_contrastive(torch.eye(scans).repeat(views, 1), torch.arange(scans).repeat(views), temperature)
    alike = math.exp(1 / temperature)
    assert loss.item() == pytest.approx(math.log((2 * alike + 3 * (scans - 1)) / alike), abs=1e-6)


def test_two_pairs_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    e = math.exp
    first, second = -math.log(e(0.6) / (e(0.6) + e(0) + e(-1))), -math.log(e(0.6) / (e(0.6) + e(0.8) + e(-0.6)))
    third, fourth = -math.log(e(0) / (e(0) + e(0.8) + e(0))), -math.log(e(0) / (e(-1) + e(-0.6) + e(0)))
    loss = supervised_contrastive(rows, torch.tensor([0, 0, 1, 1]), 1.0)
    assert loss.item() == pytest.approx((first + second + third + fourth) / 4, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("keys", [None, [0, 3, 4, 7, 11, 12], [2]])
@pytest.mark.parametrize("block", [1, 20, 2**20])
def test_value_and_gradient_are_those_of_the_formula(
    temperature: float, keys: list[int] | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "_BLOCK", block)
    raw = torch.randn(13, 6, generator=torch.Generator().manual_seed(1))
    groups = torch.tensor([5, 5, 5, 2, 2, 9, 2, 5, 5, 2, 5, 2, 5])  # 9 has no positive
    found = []
    for loss in (
        lambda z: supervised_contrastive(z, groups, temperature, None if keys is None else torch.tensor(keys)),
        lambda z: pair_by_pair(z.double(), groups, temperature, keys),
    ):
        leaf = raw.clone().requires_grad_()
        value = loss(F.normalize(leaf, dim=1))
        (3 * value).backward()
        found.append((value.item(), leaf.grad))
    (value, gradient), (expected, slope) = found
    assert value == pytest.approx(expected, abs=1e-5 + 1e-6 / temperature)
    torch.testing.assert_close(gradient, slope, atol=1e-5 / temperature, rtol=1e-4)


def test_without_positives_it_is_nothing_and_still_has_a_gradient() -> None:
    for loss in (
        lambda z: supervised_contrastive(z, torch.arange(5), 0.1),
        lambda z: positives_only(z, torch.arange(5)),
    ):
        rows = unit(5).requires_grad_()
        value = loss(rows)
        value.backward()
        assert value.item() == 0
        assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_positives_only_is_the_mean_over_pairs() -> None:
    rows, groups = unit(9), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 3])
    pairs = [1 - rows[i] @ rows[j] for i in range(9) for j in range(9) if i != j and groups[i] == groups[j]]
    assert positives_only(rows, groups).item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)
    assert positives_only(torch.eye(4), torch.zeros(4)).item() == pytest.approx(1)
    assert positives_only(torch.eye(4)[:1].repeat(4, 1), torch.zeros(4)).item() == pytest.approx(0, abs=1e-6)


def test_anchors_are_as_many_a_class_as_asked_for_half_of_them_turned() -> None:
    classes = torch.tensor([0] * 60 + [1] * 30 + [2] * 4)
    wrong = torch.zeros(94, dtype=torch.bool)
    wrong[:40] = True  # plenty
    wrong[60:63] = True  # too few
    index = draw_anchors(classes, wrong, 20, torch.Generator().manual_seed(0))
    assert len(set(index.tolist())) == len(index)
    assert [int((classes[index] == c).sum()) for c in range(3)] == [20, 20, 4]
    assert int(wrong[index][classes[index] == 0].sum()) >= 10
    assert int(wrong[index][classes[index] == 1].sum()) == 3


def test_exactly_half_is_turned_where_no_more_than_that_is_wrong() -> None:
    classes, wrong = torch.zeros(100, dtype=torch.long), torch.arange(100) < 8
    index = draw_anchors(classes, wrong, 16, torch.Generator().manual_seed(0))
    assert len(index) == 16
    assert int(wrong[index].sum()) == 8


def test_anchors_follow_from_their_generator_alone() -> None:
    classes, wrong = torch.arange(50) % 2, torch.arange(50) % 3 == 0
    first, again, other = (draw_anchors(classes, wrong, 10, torch.Generator().manual_seed(s)) for s in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def dense_context(make_context, labels: Tensor, colours: Tensor):
    """Features (N, 2, *grid) of which the first two channels are given, in both views."""
    logits = torch.where(labels == 1, 5.0, -5.0).unsqueeze(1)
    context = make_context(labels, {"clean": logits, "adversarial": logits})
    looks = {v: Look(look.images, [], look.logits, colours) for v, look in context.looks.items()}
    return make_context(labels, {"clean": logits, "adversarial": logits}, looks=looks)


def test_the_dense_part_compares_pixels_of_all_views(make_context) -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[:, :, 4:] = 1
    # On the grid of 2 × 2, each class has a colour of its own.
    colours = torch.zeros(2, 2, 2, 2)
    colours[:, 0, :, 0] = colours[:, 1, :, 1] = 1
    term = ContrastiveTerm(over=("clean", "adversarial"), instance=0, dense=1, width=2, dense_temperature=0.5, ramp=0)
    module = Contrastive(term, (4,), 2, 2)
    module.densely = torch.nn.Identity()
    value = module(dense_context(make_context, labels, colours))["contrastive"]
    # Eight pixels of each class: two places, two views, two scans.
    alike, other = math.exp(1 / 0.5), 1.0
    assert value.item() == pytest.approx(math.log((7 * alike + 8 * other) / alike), abs=1e-5)


@pytest.mark.parametrize("fill", [0, 1])
def test_scans_of_one_class_only(make_context, fill: int) -> None:
    labels = torch.full((1, 8, 8), fill, dtype=torch.long)
    colours = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    for lone in (True, False):
        term = ContrastiveTerm(over=("clean", "adversarial"), instance=0, dense=1, positives_only=lone, ramp=0)
        value = Contrastive(term, (4,), 2, 2)(dense_context(make_context, labels, colours))["contrastive"]
        assert torch.isfinite(value)


def test_the_weight_rises_over_the_ramp(make_context) -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[:, 4:] = 1
    colours = torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    module = Contrastive(ContrastiveTerm(over=("clean", "adversarial"), instance=0, ramp=0.2), (4,), 2, 2)
    context = dense_context(make_context, labels, colours)
    full = module(context)["contrastive"].item()
    for progress, share in ((0.0, 0.0), (0.05, 0.25), (0.2, 1.0), (0.9, 1.0)):
        object.__setattr__(context, "progress", progress)
        assert module(context)["contrastive"].item() == pytest.approx(share * full, rel=1e-5)
