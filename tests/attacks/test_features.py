"""Attacks on features move features; the mixed one moves the mask as well."""

from __future__ import annotations

import pytest
import torch
from attack_subjects import target
from torch import Tensor

from cease_core.attacks import PGD, FeatureAttack, MixedAttack, Problem
from cease_core.attacks.build import describe
from cease_core.attacks.features import CaseTerm, Glance, feature_distance
from cease_core.errors import CeaseError
from cease_core.models import Mode
from cease_core.models.windowed import Windowed


def test_distance_by_hand() -> None:
    clean = [torch.tensor([[[[3.0, 0.0]], [[4.0, 1.0]]]])]
    moved = [torch.tensor([[[[3.0, 1.0]], [[4.0, 0.0]]]])]
    # Squares of the differences: 0, 1, 0, 1; of the clean features: 9, 0, 16, 1.
    assert feature_distance(moved, clean, "l2").item() == pytest.approx(2 / 26)
    # The first pixel's vectors agree, the second's are orthogonal.
    assert feature_distance(moved, clean, "cosine").item() == pytest.approx(0.5)


def test_levels_count_alike_and_cases_stay_apart() -> None:
    clean = [torch.ones(2, 1, 4, 4), torch.ones(2, 8, 2, 2)]
    moved = [clean[0].clone(), clean[1].clone()]
    moved[1][1] += 1
    assert feature_distance(moved, clean).tolist() == [0, 0.5]


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_features_move_further_than_under_a_mask_attack(distance: str) -> None:
    t = target("binary", 2)
    clean = t.net.encode(t.images)

    def moved(attack: PGD | FeatureAttack) -> Tensor:
        found = attack(t.net, t.images, t.labels)
        return feature_distance(t.net.encode(found.adversarial), clean, distance)  # type: ignore[arg-type]

    # Kept by its own loss: otherwise the iterate with the lowest Dice is kept.
    alone = moved(FeatureAttack(steps=8, distance=distance, criterion="loss"))  # type: ignore[arg-type]
    assert (alone > moved(PGD(steps=8))).all()


def test_mixed_without_weight_is_pgd() -> None:
    t = target("multiclass", 3)
    mixed = MixedAttack(steps=4, feature_weight=0.0)(t.net, t.images, t.labels)
    assert torch.equal(mixed.perturbation, PGD(steps=4)(t.net, t.images, t.labels).perturbation)


def test_mixed_ascends_the_sum() -> None:
    t = target("binary", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    delta = 0.01 * torch.ones_like(t.images)
    clean, moved = t.net.encode(t.images), t.net.encode(t.images + delta)
    attack = MixedAttack(
        loss="soft_dice", feature_weight=0.7, terms=(lambda a, b: (a[0] - b[0]).abs().flatten(1).sum(1),)
    )
    value = problem.look(delta, attack.ascended(problem)).loss
    expected = (
        problem.look(delta).loss
        + 0.7 * feature_distance(moved, clean, "cosine")
        + (moved[0] - clean[0]).abs().flatten(1).sum(1)
    )
    torch.testing.assert_close(value, expected)


def test_a_term_may_know_something_of_each_case() -> None:
    t = target("binary", 2, cases=3)

    class Named(CaseTerm):
        name = "number of the case"

        def __call__(self, glance: Glance, /) -> Tensor:
            assert torch.equal(glance.moved[0], t.net.encode(glance.images)[0])
            assert torch.equal(glance.clean[0], t.net.encode(t.images)[0][glance.cases])
            return glance.cases.float()

    attack = MixedAttack(loss="soft_dice", feature_weight=0, terms=(Named(),))
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice").part(torch.tensor([2, 0, 2]))
    delta = torch.zeros_like(problem.images)
    value = problem.look(delta, attack.ascended(problem)).loss
    torch.testing.assert_close(value - problem.look(delta).loss, torch.tensor([2.0, 0, 2]))
    assert describe(attack)["terms"] == ["number of the case"]


def test_parts_of_a_batch_find_their_own_clean_features() -> None:
    t = target("binary", 2, cases=3)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    objective = FeatureAttack().ascended(problem)
    delta = 0.01 * torch.ones_like(t.images)
    whole = problem.look(delta, objective).loss
    order = torch.tensor([2, 0, 2])
    torch.testing.assert_close(problem.part(order).look(delta, objective).loss, whole[order])


def test_a_model_without_features_is_refused() -> None:
    t = target("binary", 2)

    class Closed:
        mode: Mode = "binary"

        def __call__(self, images: Tensor) -> Tensor:
            return t.net(images)

    with pytest.raises(CeaseError, match="shows its features, which Closed does not; attack a single model"):
        MixedAttack()(Closed(), t.images, t.labels)
    volume = target("binary", 3)
    parts = Windowed(volume.net, (4, 6, 7))
    with pytest.raises(CeaseError, match=r"shows its features on the whole image, .*; attack a slice or a smaller"):
        MixedAttack()(parts, volume.images, volume.labels)
    with pytest.raises(CeaseError, match="choose l2 or cosine"):
        FeatureAttack(distance="l1")  # type: ignore[arg-type]
