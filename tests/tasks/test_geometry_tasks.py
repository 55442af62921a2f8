"""Superpixels, rotation, jigsaw and the tasks of the mask, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.tasks import (
    TASKS,
    Boundary,
    DistanceMap,
    Jigsaw,
    Rotation,
    Setting,
    Shape,
    Superpixel,
    Task,
)
from cease_core.tasks.jigsaw import PERMUTATIONS
from cease_core.tasks.masks import structures
from cease_core.tasks.superpixel import region_means

GEOMETRY = ("superpixel", "rotation", "jigsaw", "boundary", "distance_map", "shape")
WIDTHS = (4, 8)
BINARY = Setting(ndim=2, channels=1, classes=1, mode="binary")
BINARY_3D = BINARY._replace(ndim=3)
DIMS = pytest.mark.parametrize("ndim", [2, 3])
EACH = pytest.mark.parametrize("name", GEOMETRY)


def target(task: Task, labels: Tensor, setting: Setting = BINARY) -> Tensor:
    """Target of a task of the mask, which does not look at the image."""
    return task.target(torch.zeros(len(labels), setting.channels, 1, 1), labels, torch.zeros(len(labels), 0), setting)


def square(shape: tuple[int, ...], low: int, high: int) -> Tensor:
    """Mask (1, *shape) of ones from ``low`` to ``high`` − 1 along every axis."""
    mask = torch.zeros(1, *shape, dtype=torch.long)
    mask[(0, *(slice(low, high),) * len(shape))] = 1
    return mask


class Batch:
    """Four cases of two overlapping kinds of structure in blurred noise, and what a task makes of them."""

    def __init__(self, task: Task, ndim: int) -> None:
        generator = torch.Generator().manual_seed(ndim)
        shape = (18, 13) if ndim == 2 else (5, 12, 9)
        self.setting = Setting(ndim, 3, 2, "multiclass")
        self.images = torch.rand(4, 3, *shape, generator=generator)
        self.labels = (self.images[:, 0] > 0.4).long() + (self.images[:, 0] > 0.8)
        self.draws = torch.stack([task.draw((3, *shape), generator) for _ in range(4)])
        self.target = task.target(self.images, self.labels, self.draws, self.setting)
        self.features = [
            torch.randn(4, w, *(-(-s // 2**level) for s in shape), generator=generator, requires_grad=True)
            for level, w in enumerate(WIDTHS)
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.prediction = task.head(WIDTHS, self.setting)(self.features, shape)


# What every task promises


def test_thirteen_tasks_with_titles_and_sources_of_their_own() -> None:
    assert list(TASKS) == [
        *("reconstruction", "inpainting", "sobel", "edges", "hog", "histogram", "low_pass"),
        *GEOMETRY,
    ]
    assert len({task.title for task in TASKS.values()}) == 13
    assert all(task.source and task.dims == (2, 3) for task in TASKS.values())
    assert [name for name, task in TASKS.items() if task.derived_from == "mask"] == [
        "boundary",
        "distance_map",
        "shape",
    ]
    assert [name for name, task in TASKS.items() if task.presents] == ["inpainting", "rotation", "jigsaw"]


@EACH
@DIMS
def test_target_is_finite_detached_and_the_same_again(name: str, ndim: int) -> None:
    batch = Batch(TASKS[name], ndim)
    again = TASKS[name].target(batch.images.requires_grad_(), batch.labels, batch.draws, batch.setting)
    assert len(again) == 4
    assert not again.requires_grad
    assert again.isfinite().all()
    assert torch.equal(again, batch.target)


@EACH
@DIMS
def test_loss_of_the_head_is_one_value_a_case_and_moves_the_encoder(name: str, ndim: int) -> None:
    batch = Batch(TASKS[name], ndim)
    loss = TASKS[name].loss(batch.prediction, batch.target)
    assert loss.shape == (4,)
    assert (loss > 0).all()
    loss.sum().backward()
    for case in range(4):
        assert batch.features[-1].grad[case].abs().sum() > 0


@EACH
@DIMS
def test_no_other_constant_is_better(name: str, ndim: int) -> None:
    task, batch = TASKS[name], Batch(TASKS[name], ndim)
    best = task.constant(batch.target)
    assert best.shape == (1, *batch.prediction.shape[1:])
    if best.ndim > 2:
        assert (best.flatten(2) == best.flatten(2)[..., :1]).all()

    def mean_loss(prediction: Tensor) -> float:
        return task.loss(prediction.expand(4, *prediction.shape[1:]), batch.target).mean().item()

    one_a_channel = (1, best.shape[1], *(1,) * (best.ndim - 2))
    generator = torch.Generator().manual_seed(5)
    for size in (0.01, 0.1, 1.0):
        for _ in range(10):
            other = best + size * torch.randn(one_a_channel, generator=generator)
            assert mean_loss(best) <= mean_loss(other) + 1e-5  # rounding, and half a step of the boundary's grid


@EACH
@DIMS
def test_nothing_to_see_is_no_reason_for_nan(name: str, ndim: int) -> None:
    task, shape = TASKS[name], (9, 8) if ndim == 2 else (4, 9, 8)
    setting = Setting(ndim, 1, 1, "binary")
    images = torch.full((2, 1, *shape), 0.5)
    draws = torch.stack([task.draw((1, *shape), torch.Generator().manual_seed(s)) for s in range(2)])
    found = task.target(images, torch.zeros(2, *shape, dtype=torch.long), draws, setting)
    best = task.constant(found)
    assert task.present(images, draws).isfinite().all()
    assert task.loss(best.expand(2, *best.shape[1:]), found).isfinite().all()


# The mask


def test_structures_leave_out_the_background() -> None:
    ids = torch.tensor([[[0, 1, 2]]])
    channels = torch.tensor([[[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    for mode in ("multiclass", "multilabel"):
        assert torch.equal(structures(ids, Setting(2, 1, 2, mode)), channels)
    assert torch.equal(structures(ids.clamp_max(1), BINARY), torch.tensor([[[[0.0, 1.0, 1.0]]]]))


def test_structures_that_overlap_come_as_channels() -> None:
    channels = torch.tensor([[[[0.0, 1.0, 1.0]], [[0.0, 0.0, 1.0]]]])
    assert torch.equal(structures(channels, Setting(2, 1, 2, "multilabel")), channels)


def test_a_class_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(CeaseError, match="class 2"):
        structures(torch.tensor([[[0, 2]]]), BINARY)


# Superpixels


def test_every_region_is_at_its_mean() -> None:
    picture = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [5.0, 9.0]]]).numpy()
    means = region_means(picture, torch.tensor([[0, 0, 2]]).numpy())
    assert means.tolist() == [[[2.0, 0.0], [2.0, 0.0], [5.0, 9.0]]]


@DIMS
def test_flat_regions_with_sharp_edges_are_their_own_mosaic(ndim: int) -> None:
    shape = (16, 16) if ndim == 2 else (8, 16, 16)
    images = torch.zeros(1, 2, *shape)
    images[..., 8:] = 0.75
    images[:, 1] += 0.25
    found = Superpixel().target(images, torch.zeros(0), torch.zeros(1, 0), BINARY._replace(ndim=ndim, channels=2))
    torch.testing.assert_close(found, images)


def test_noise_within_a_superpixel_is_averaged_away() -> None:
    images = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    # So compact that likeness does not count: about 64 pieces of about 64 pixels, so noise about an eighth as strong.
    mosaic = Superpixel(compactness=100).target(images, torch.zeros(0), torch.zeros(1, 0), BINARY)
    assert 56 <= len(mosaic.unique()) <= 64
    torch.testing.assert_close(mosaic.mean(), images.mean())
    assert images.std() / 10 < mosaic.std() < images.std() / 6


def test_number_of_superpixels_follows_the_size() -> None:
    assert Superpixel().segments((64, 64)) == 64
    assert Superpixel().segments((3, 20, 64)) == 1 * 2 * 8
    assert Superpixel(edge=16).segments((64, 64)) == 16


# Rotation


@pytest.mark.parametrize("shape", [(7, 7), (3, 6, 6)])
def test_turning_back_restores_the_image(shape: tuple[int, ...]) -> None:
    images = torch.rand(4, 2, *shape, generator=torch.Generator().manual_seed(0))
    turned = Rotation().present(images, torch.arange(4))
    for turns in range(4):
        assert torch.equal(torch.rot90(turned[turns], -turns, (-2, -1)), images[turns])


def test_of_an_oblong_image_the_middle_is_turned_and_continued() -> None:
    image = torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]).view(1, 1, 2, 4)
    seen = Rotation().present(image.expand(2, -1, -1, -1), torch.tensor([0, 1]))
    assert seen[0, 0].tolist() == [[1.0, 1.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]]
    assert seen[1, 0].tolist() == [[2.0, 2.0, 6.0, 6.0], [1.0, 1.0, 5.0, 5.0]]


@pytest.mark.parametrize("shape", [(3, 5, 8), (3, 9, 4)])
def test_oblong_volumes_keep_their_shape_and_every_turn_is_one_of_the_unturned(shape: tuple[int, ...]) -> None:
    images = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1, -1)
    seen = Rotation().present(images, torch.arange(4))
    assert seen.shape == images.shape
    # Of the presented image itself the middle square is turned, so that turns can be added up.
    assert torch.equal(Rotation().present(seen, (4 - torch.arange(4)) % 4), seen[:1].expand_as(seen))


def test_every_number_of_turns_is_drawn_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([Rotation().draw((1, 8, 8), generator) for _ in range(400)])
    counts = drawn.bincount(minlength=4)
    assert len(counts) == 4
    # Four deviations of a binomial distribution of 400 draws at ¼.
    assert (counts - 100).abs().max() < 4 * math.sqrt(400 * 0.25 * 0.75)


def test_answers_are_what_was_drawn_and_cost_their_surprise() -> None:
    batch = Batch(Rotation(), 2)
    assert torch.equal(batch.target, batch.draws)
    logits = torch.tensor([[0.5, 0.125, 0.125, 0.25]]).log()
    losses = Rotation().loss(logits.expand(2, -1), torch.tensor([0, 3]))
    torch.testing.assert_close(losses, torch.tensor([math.log(2), math.log(4)]))


def test_best_constant_is_how_often_each_answer_comes() -> None:
    shares = Rotation().constant(torch.tensor([0, 0, 1, 3])).softmax(dim=1)
    torch.testing.assert_close(shares, torch.tensor([[0.5, 0.25, 0.0, 0.25]]), atol=1e-6, rtol=0)


# Jigsaw


def test_tiles_stand_where_the_permutation_says() -> None:
    image = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 1, 2, 2)
    seen = Jigsaw().present(image.expand(24, -1, -1, -1), torch.arange(24))
    assert [tuple(map(int, case.flatten())) for case in seen] == list(PERMUTATIONS)
    assert PERMUTATIONS[0] == (0, 1, 2, 3)
    assert len(set(PERMUTATIONS)) == 24


@pytest.mark.parametrize("shape", [(6, 8), (7, 5), (3, 4, 7)])
def test_the_inverse_permutation_restores_the_image(shape: tuple[int, ...]) -> None:
    images = torch.rand(24, 2, *shape, generator=torch.Generator().manual_seed(0))
    inverses = [PERMUTATIONS.index(tuple(order.index(place) for place in range(4))) for order in PERMUTATIONS]
    shuffled = Jigsaw().present(images, torch.arange(24))
    assert torch.equal(shuffled[0], images[0])
    assert not any(torch.equal(shuffled[i], images[i]) for i in range(1, 24))
    assert torch.equal(Jigsaw().present(shuffled, torch.tensor(inverses)), images)


def test_lines_in_the_middle_of_odd_sizes_stay() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    seen = Jigsaw().present(image, torch.tensor([23]))
    assert seen[0, 0].tolist() == [[8.0, 1.0, 6.0], [3.0, 4.0, 5.0], [2.0, 7.0, 0.0]]


@pytest.mark.parametrize("task", [Rotation(), Jigsaw()])
def test_gradient_goes_through_the_change_to_the_pixels_seen(task: Task) -> None:
    images = torch.rand(4, 1, 6, 6, requires_grad=True)
    weights = torch.rand(4, 1, 6, 6)
    draws = torch.tensor([0, 1, 2, 3])
    (task.present(images, draws) * task.present(weights, draws)).sum().backward()
    assert torch.equal(images.grad, weights)


# Boundary


def test_band_of_a_square_is_two_pixels_wide() -> None:
    band = target(Boundary(), square((7, 7), 2, 5))
    expected = torch.zeros(7, 7)
    expected[1:6, 1:6] = 1
    expected[3, 3] = 0
    assert torch.equal(band[0, 0], expected)


def test_band_of_a_cube_is_a_shell() -> None:
    band = target(Boundary(), square((9, 9, 9), 2, 7), BINARY_3D)
    expected = torch.zeros(9, 9, 9)
    expected[1:8, 1:8, 1:8] = 1
    expected[3:6, 3:6, 3:6] = 0
    assert torch.equal(band[0, 0], expected)


def test_wider_bands_reach_further_to_both_sides() -> None:
    half = (torch.arange(10) >= 5).long().expand(1, 4, 10)
    assert target(Boundary(width=1), half)[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert target(Boundary(width=3), half)[0, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_neighbouring_classes_have_a_band_each() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]).expand(1, 3, 9)
    band = target(Boundary(), labels, Setting(2, 1, 2, "multiclass"))
    assert band[0, :, 0].tolist() == [[0, 0, 1, 1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0, 0]]


def test_boundary_loss_is_cross_entropy_plus_dice() -> None:
    logits = torch.zeros(1, 1, 2, 2)  # one half everywhere
    band = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    # Dice with 1 above and below: (2 · ½ + 1) / (4 · ½ + 1 + 1).
    torch.testing.assert_close(Boundary().loss(logits, band), torch.tensor([math.log(2) + 1 - 2 / 4]))


def test_a_certain_and_right_answer_costs_nothing() -> None:
    band = target(Boundary(), square((7, 7), 2, 5))
    torch.testing.assert_close(Boundary().loss(40 * band - 20, band), torch.zeros(1))


# Distance map


def test_distances_along_a_line() -> None:
    line = torch.tensor([[[0, 0, 0, 1, 1, 1, 1, 0]]])
    found = target(DistanceMap(reach=4), line)
    assert found[0, 0, 0].tolist() == [0.75, 0.5, 0.25, -0.25, -0.5, -0.5, -0.25, 0.25]


def test_distance_of_a_corner_is_the_straight_one() -> None:
    found = target(DistanceMap(reach=10), square((5, 5), 0, 1))[0, 0]
    assert found[0, 0] == -torch.tensor(0.1)
    torch.testing.assert_close(found[3, 4], torch.tensor(0.5))


def test_distances_in_a_volume() -> None:
    found = target(DistanceMap(reach=10), square((3, 3, 5), 0, 1), BINARY_3D)[0, 0]
    torch.testing.assert_close(found[1, 2, 2], torch.tensor(0.3))
    torch.testing.assert_close(found[2, 2, 4], torch.tensor(math.sqrt(24) / 10))


def test_distances_are_clipped() -> None:
    found = target(DistanceMap(reach=2), (torch.arange(12) >= 6).long().expand(1, 2, 12))
    assert found[0, 0, 0].tolist() == [1, 1, 1, 1, 1, 0.5, -0.5, -1, -1, -1, -1, -1]


def test_masks_without_an_edge_are_all_outside_or_all_inside() -> None:
    labels = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)]).long()
    found = target(DistanceMap(), labels)
    assert torch.equal(found, torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4))


# Shape


def test_shape_of_a_rectangle() -> None:
    mask = torch.zeros(1, 8, 10, dtype=torch.long)
    mask[0, 2:4, 5:10] = 1
    # 10 of 80 pixels, from 2 to 4 of 8 and from 5 to 10 of 10, in one part.
    torch.testing.assert_close(target(Shape(most=3), mask), torch.tensor([[0.125, 3 / 8, 7.5 / 10, 0.5]]))


def test_shape_of_a_box() -> None:
    mask = torch.zeros(1, 4, 8, 10, dtype=torch.long)
    mask[0, 1:3, 0:4, 5:10] = 1
    torch.testing.assert_close(target(Shape(most=3), mask, BINARY_3D), torch.tensor([[0.125, 0.5, 0.25, 0.75, 0.5]]))


def test_parts_that_touch_at_a_corner_count_apart_and_many_look_alike() -> None:
    diagonal = torch.eye(6, dtype=torch.long).unsqueeze(0)
    assert target(Shape(most=7), diagonal)[0, -1].item() == pytest.approx(math.log(7) / math.log(8))
    assert target(Shape(most=3), diagonal)[0, -1] == 1


def test_no_structure_lies_in_the_middle() -> None:
    assert target(Shape(), torch.zeros(1, 5, 6, dtype=torch.long)).tolist() == [[0.0, 0.5, 0.5, 0.0]]


def test_classes_follow_one_another() -> None:
    labels = torch.tensor([[[1, 0, 0, 2]]])
    found = target(Shape(most=1), labels, Setting(2, 1, 2, "multiclass"))
    assert found.tolist() == [[0.25, 0.5, 0.125, 1.0, 0.25, 0.5, 0.875, 1.0]]


def test_shape_loss_is_quadratic_for_small_errors_and_linear_for_large_ones() -> None:
    losses = Shape(beta=0.1).loss(torch.tensor([[0.05], [0.5]]), torch.zeros(2, 1))
    torch.testing.assert_close(losses, torch.tensor([0.5 * 0.05**2 / 0.1, 0.5 - 0.05]))


def test_best_constant_lies_between_mean_and_median() -> None:
    numbers = torch.tensor([[0.0], [0.0], [0.05], [1.0]])
    # Small β: a median. Large β: the mean. Between: slopes c/β, c/β, (c − 0.05)/β and −1 add up to 0.
    assert 0 <= Shape(beta=1e-3).constant(numbers).item() <= 0.05
    torch.testing.assert_close(Shape(beta=2.0).constant(numbers), torch.tensor([[1.05 / 4]]))
    torch.testing.assert_close(Shape(beta=0.2).constant(numbers), torch.tensor([[0.25 / 3]]))


# Options


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Superpixel, {"edge": 0}, "edge is 0"),
        (Superpixel, {"iterations": 0}, "iterations is 0"),
        (Superpixel, {"compactness": 0.0}, "compactness is 0"),
        (Boundary, {"width": 0}, "width is 0"),
        (DistanceMap, {"reach": 0.5}, "reach is 0.5"),
        (DistanceMap, {"reach": math.inf}, "reach is inf"),
        (Shape, {"most": 0}, "most is 0"),
        (Shape, {"beta": 0.0}, "beta is 0"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[Task], options: dict[str, float], said: str) -> None:
    with pytest.raises(CeaseError, match=said):
        kind(**options)
