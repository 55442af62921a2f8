"""Tasks whose target is the image, or something computed from it: values worked out by hand on tiny images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.models import build
from cease_core.tasks.base import Setting, Task
from cease_core.tasks.edges import Edges
from cease_core.tasks.histogram import Histogram
from cease_core.tasks.hog import HOG
from cease_core.tasks.inpainting import Inpainting
from cease_core.tasks.low_pass import LowPass
from cease_core.tasks.reconstruction import Reconstruction
from cease_core.tasks.sobel import Sobel

TASKS: list[Task] = [Reconstruction(), Inpainting(), Sobel(), Edges(), HOG(), Histogram(), LowPass()]
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
both_dims = pytest.mark.parametrize("ndim", [2, 3])
SHAPES = {2: (24, 16), 3: (5, 16, 24)}


def setting(images: Tensor) -> Setting:
    return Setting(ndim=images.ndim - 2, channels=images.shape[1], classes=1, mode="binary")


def draws_for(task: Task, images: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([task.draw(tuple(images.shape[1:]), generator) for _ in images])


def target_of(task: Task, images: Tensor) -> Tensor:
    labels = torch.zeros(len(images), *images.shape[2:], dtype=torch.long)
    return task.target(images, labels, draws_for(task, images), setting(images))


def random_images(ndim: int, cases: int = 3, channels: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(cases, channels, *SHAPES[ndim], generator=torch.Generator().manual_seed(seed))


def as_everyone_would(task: Task, targets: Tensor) -> Tensor:
    constant = task.constant(targets)
    return constant.expand(len(targets), *constant.shape[1:])


def along(axis: int, profile: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An image (1, 1, *shape) that follows ``profile`` along one axis."""
    view = [1] * len(shape)
    view[axis] = -1
    return profile.view(view).expand(shape)[None, None].clone()


def step(n: int, height: float = 1.0) -> Tensor:
    return height * (torch.arange(n) >= n // 2).float()


# What holds for every task


@every_task
@both_dims
def test_the_target_is_finite_and_detached(task: Task, ndim: int) -> None:
    target = target_of(task, random_images(ndim).requires_grad_())
    assert not target.requires_grad
    assert target.dtype == torch.float32
    assert target.isfinite().all()


@every_task
@both_dims
def test_a_case_does_not_depend_on_its_batch(task: Task, ndim: int) -> None:
    images = random_images(ndim)
    draws = draws_for(task, images)
    labels = torch.zeros(3, *SHAPES[ndim], dtype=torch.long)
    target = task.target(images, labels, draws, setting(images))
    alone = task.target(images[1:2], labels[1:2], draws[1:2], setting(images))
    torch.testing.assert_close(alone, target[1:2])
    prediction = torch.randn(3, *task.constant(target).shape[1:])
    loss = task.loss(prediction, target)
    assert loss.shape == (3,)
    torch.testing.assert_close(task.loss(prediction[1:2], alone), loss[1:2])


@every_task
@both_dims
def test_a_perfect_prediction_costs_nothing(task: Task, ndim: int) -> None:
    target = target_of(task, random_images(ndim))
    perfect = {Inpainting: target[:, :-1], Edges: 60 * target - 30, Histogram: target.clamp_min(1e-12).log()}
    loss = task.loss(perfect.get(type(task), target), target)
    assert (loss >= 0).all()
    torch.testing.assert_close(loss, torch.zeros(3), rtol=0, atol=1e-6)


@every_task
@both_dims
def test_no_other_constant_is_better(task: Task, ndim: int) -> None:
    targets = target_of(task, random_images(ndim, cases=5) ** 2)
    best = as_everyone_would(task, targets)
    least = task.loss(best, targets).mean()
    generator = torch.Generator().manual_seed(1)
    for size in (0.003, 0.03, 0.3):
        for _ in range(4):
            moved = best + size * torch.randn(1, best.shape[1], *(1,) * (best.ndim - 2), generator=generator)
            assert task.loss(moved, targets).mean() >= least - 1e-6


@every_task
@both_dims
def test_the_constant_is_one_value_a_channel_everywhere(task: Task, ndim: int) -> None:
    targets = target_of(task, random_images(ndim))
    constant = task.constant(targets)
    assert constant.shape[0] == 1
    assert constant.shape[2:] == targets.shape[2:]
    flat = constant.reshape(constant.shape[1], -1)
    assert torch.equal(flat, flat[:, :1].expand_as(flat))


@every_task
@both_dims
def test_the_head_predicts_in_the_targets_shape_and_teaches_the_encoder(task: Task, ndim: int) -> None:
    images = torch.rand(2, 2, *(16,) * ndim)
    target = target_of(task, images)
    backbone = build("unet", ndim, 2, 1, {"channels": (4, 6, 8)})
    features = backbone.encode(task.present(images, draws_for(task, images)))
    for f in features:
        f.retain_grad()
    prediction = task.head((4, 6, 8), setting(images))(features, tuple(images.shape[2:]))
    assert prediction.shape == (2, *task.constant(target).shape[1:])
    task.loss(prediction, target).mean().backward()
    for f in features:
        assert f.grad is not None
        assert f.grad.any()


@every_task
def test_only_tasks_that_cannot_copy_the_image_read_finer_levels(task: Task) -> None:
    features = [torch.rand(1, w, s, s, requires_grad=True) for w, s in ((4, 16), (6, 8), (8, 4))]
    head = task.head((4, 6, 8), Setting(ndim=2, channels=1, classes=1, mode="binary"))
    head(features, (16, 16)).sum().backward()
    reads_finer = features[0].grad is not None
    assert reads_finer == isinstance(task, (Sobel, Edges, HOG))


@every_task
@both_dims
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -2.0])
def test_constant_images_give_finite_targets_losses_and_gradients(task: Task, ndim: int, value: float) -> None:
    images = torch.full((2, 1, *SHAPES[ndim]), value)
    target = target_of(task, images)
    constant = as_everyone_would(task, target)
    assert task.loss(constant, target).max() < 1e-4
    prediction = torch.zeros_like(constant).requires_grad_()
    task.loss(prediction, target).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


@every_task
def test_a_half_precision_prediction_is_judged_in_single_precision(task: Task) -> None:
    target = target_of(task, random_images(2))
    prediction = as_everyone_would(task, target).bfloat16()
    loss = task.loss(prediction, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, task.loss(prediction.float(), target))


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Inpainting, {"share": 0.0}),
        (Inpainting, {"share": 0.8}),
        (Inpainting, {"edge": 1.0}),
        (Sobel, {"sigma": 0.0}),
        (LowPass, {"sigma": math.nan}),
        (Edges, {"sigma": -1.0}),
        (Edges, {"low": 0.3, "high": 0.2}),
        (Edges, {"low": 0.0}),
        (Edges, {"cap": 0.5}),
        (HOG, {"bins": 1}),
        (HOG, {"cell": 0}),
        (HOG, {"floor": 0.0}),
        (Histogram, {"bins": 1}),
    ],
)
def test_options_out_of_range_are_refused(make: type[Task], wrong: dict[str, float]) -> None:
    with pytest.raises(CeaseError, match=rf"{next(iter(wrong))}.*; give"):
        make(**wrong)


# Reconstruction


def test_reconstruction_is_judged_by_the_mean_absolute_error() -> None:
    images = torch.tensor([[[[0.0, 1.0]]], [[[0.25, 0.5]]]])
    task = Reconstruction()
    assert torch.equal(target_of(task, images), images)
    assert task.loss(torch.full_like(images, 0.5), images).tolist() == [0.5, 0.125]


def test_the_best_constant_image_is_each_channels_median() -> None:
    images = torch.tensor([[[[0.0, 0.1, 0.9]], [[5.0, 5.0, 6.0]]]])
    assert torch.equal(Reconstruction().constant(images), torch.tensor([0.1, 5.0]).view(1, 2, 1, 1).expand(1, 2, 1, 3))


# Inpainting


@both_dims
def test_one_square_hides_its_own_size(ndim: int) -> None:
    mask = Inpainting(share=0.4**ndim, edge=0.4).draw((1, *(10,) * ndim), torch.Generator().manual_seed(3))
    assert mask.shape == (1, *(10,) * ndim)
    hidden = mask[0].nonzero()
    assert len(hidden) == 4**ndim
    assert (hidden.amax(dim=0) - hidden.amin(dim=0) + 1).tolist() == [4] * ndim


@both_dims
@pytest.mark.parametrize("seed", range(3))
def test_overlapping_squares_hide_the_share_exactly(ndim: int, seed: int) -> None:
    shape = (2, 20, 30, 10)[: ndim + 1]
    mask = Inpainting(share=0.25, edge=0.3).draw(shape, torch.Generator().manual_seed(seed))
    assert mask.sum() == mask.numel() // 4


def test_masks_follow_the_generator() -> None:
    first, again, other = (Inpainting().draw((1, 16, 16), torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_encoder_sees_the_visible_mean_where_pixels_are_hidden() -> None:
    images = torch.tensor([[[[0.0, 1.0], [0.5, 9.0]], [[3.0, 3.0], [6.0, 0.0]]]], requires_grad=True)
    hidden = torch.tensor([[[[False, False], [False, True]]]])
    seen = Inpainting().present(images, hidden)
    assert torch.equal(seen, torch.tensor([[[[0.0, 1.0], [0.5, 0.5]], [[3.0, 3.0], [6.0, 4.0]]]]))
    seen.sum().backward()
    expected = (1 - hidden.float()) * 4 / 3
    torch.testing.assert_close(images.grad, expected.expand_as(images))


def test_inpainting_is_judged_under_the_mask_alone() -> None:
    images = torch.tensor([[[[0.0, 0.2, 0.4, 0.6]], [[1.0, 1.0, 1.0, 1.0]]]])
    hidden = torch.tensor([[[[False, True, True, False]]]])
    target = Inpainting().target(images, torch.zeros(1, 1, 4), hidden, setting(images))
    prediction = images.clone()
    prediction[..., [0, 3]] = 50.0
    assert Inpainting().loss(prediction, target).item() == 0
    prediction[0, 0, 0, 1] += 0.8
    torch.testing.assert_close(Inpainting().loss(prediction, target), torch.tensor([0.2]))


def test_the_best_constant_for_inpainting_is_the_hidden_pixels_median() -> None:
    images = torch.tensor([[[[9.0, 0.1, 0.2, 0.7, 9.0]]]])
    hidden = torch.tensor([[[[False, True, True, True, False]]]])
    target = Inpainting().target(images, torch.zeros(1, 1, 5), hidden, setting(images))
    assert torch.equal(Inpainting().constant(target), torch.full((1, 1, 1, 5), 0.2))


# Sobel


@pytest.mark.parametrize(("ndim", "axis"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
@pytest.mark.parametrize("height", [1.0, -0.25])
def test_a_straight_step_is_as_steep_as_it_is_high(ndim: int, axis: int, height: float) -> None:
    target = target_of(Sobel(), along(axis, step(16, height), (16,) * ndim))
    beside = target.index_select(axis + 2, torch.tensor([7, 8]))
    torch.testing.assert_close(beside, torch.full_like(beside, abs(height)))
    far = target.index_select(axis + 2, torch.tensor([0, 1, 14, 15]))
    assert far.abs().max() < 1e-4
    assert target.max() <= abs(height) * (1 + 1e-6)


def test_slopes_add_up_as_vectors() -> None:
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    target = target_of(Sobel(), (0.03 * rows + 0.04 * columns)[None, None])[0, 0, 8:12, 8:12]
    # Over two pixels a ramp of 0.05 a pixel rises by 0.1, and a blurred unit step by two of the Gaussian's weights.
    step_rises = (1 + math.exp(-0.5)) / sum(math.exp(-(x**2) / 2) for x in range(-4, 5))
    torch.testing.assert_close(target, torch.full_like(target, 0.1 / step_rises), rtol=1e-5, atol=0)


def test_steepness_is_the_mean_over_channels() -> None:
    image = along(1, step(16), (16, 16))
    both = torch.cat([image, torch.zeros_like(image)], dim=1)
    torch.testing.assert_close(target_of(Sobel(), both), target_of(Sobel(), image) / 2)


# Edges


def test_the_edge_of_a_step_is_one_line() -> None:
    profile = step(17)
    profile[8] = 0.5
    expected = torch.zeros(12, 17)
    expected[1:-1, 8] = 1
    assert torch.equal(target_of(Edges(), along(1, profile, (12, 17)))[0, 0], expected)


def test_a_bright_square_has_a_closed_outline() -> None:
    image = torch.zeros(1, 1, 24, 24)
    image[..., 8:16, 8:16] = 1
    edges = target_of(Edges(), image)[0, 0]
    assert edges[10:14, 10:14].sum() == 0
    assert edges[:5].sum() == 0
    for line in (edges[12, :12], edges[12, 12:], edges[:12, 12], edges[12:, 12]):
        assert line.sum() >= 1


@pytest.mark.parametrize(("height", "seen"), [(0.201, True), (0.199, False), (-0.201, True), (-0.199, False)])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_a_step_is_an_edge_from_the_upper_threshold_on(height: float, seen: bool, sigma: float) -> None:
    edges = target_of(Edges(sigma=sigma, low=0.1, high=0.2), along(0, step(20, height), (20, 20)))
    assert bool(edges.any()) is seen


def test_a_weak_edge_counts_if_a_strong_one_continues_it() -> None:
    profile = step(17)
    profile[8] = 0.5
    fading = along(0, torch.linspace(0.4, 0.12, 20), (20, 17)) * profile
    task = Edges(low=0.1, high=0.2)
    assert not target_of(task, fading[:, :, 15:]).any()
    assert torch.equal(target_of(task, fading)[0, 0, 1:-1, 8], torch.ones(18))
    assert not target_of(Edges(low=0.2, high=0.2), fading)[0, 0, 15:].any()


def test_the_edges_of_a_volume_are_those_of_its_slices() -> None:
    volume = random_images(3)
    edges = target_of(Edges(), volume)
    assert 0 < edges.mean() < 1
    for z in range(volume.shape[2]):
        assert torch.equal(edges[:, :, z], target_of(Edges(), volume[:, :, z]))


@pytest.mark.parametrize(("cap", "weight"), [(20.0, 3.0), (2.0, 2.0), (1.0, 1.0)])
def test_edge_pixels_weigh_as_much_as_the_others_up_to_the_cap(cap: float, weight: float) -> None:
    target = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    task = Edges(cap=cap)
    on, off = math.log1p(math.exp(-0.7)), math.log1p(math.exp(0.7))
    expected = (weight * on + 3 * off) / (weight + 3)
    torch.testing.assert_close(task.loss(torch.full((1, 1, 1, 4), 0.7), target), torch.tensor([expected]))
    torch.testing.assert_close(task.constant(target), torch.full((1, 1, 1, 4), math.log(weight / 3)))


# Histograms of oriented gradients


def ramp(degrees: float, slope: float, shape: tuple[int, int]) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    angle = math.radians(degrees)
    return slope * (math.sin(angle) * rows + math.cos(angle) * columns)[None, None].float()


@pytest.mark.parametrize(
    ("degrees", "votes"),
    [
        (0, {0: 1.0}),
        (180, {0: 1.0}),
        (40, {2: 1.0}),
        (220, {2: 1.0}),
        (30, {1: 0.5, 2: 0.5}),
        (90, {4: 0.5, 5: 0.5}),
        (-15, {8: 0.75, 0: 0.25}),
    ],
)
def test_a_ramp_votes_for_its_direction_without_sign(degrees: float, votes: dict[int, float]) -> None:
    target = target_of(HOG(floor=0.02), ramp(degrees, 0.1, (8, 16)))
    expected = torch.zeros(9)
    for b, share in votes.items():
        expected[b] = 0.1 * share
    expected /= (expected.square().sum() + 0.02**2).sqrt()
    torch.testing.assert_close(target, expected.view(1, 9, 1, 1).expand(1, 9, 1, 2), rtol=0, atol=1e-5)


def test_each_cell_counts_its_own_pixels_and_the_rest_is_dropped() -> None:
    image = torch.zeros(1, 1, 23, 20)
    image[:, :, :8, :8] = ramp(0, 0.1, (8, 8))
    image[:, :, 12:, :] = 7.0
    target = target_of(HOG(), image)
    assert target.shape == (1, 9, 2, 2)
    assert target[0, 0, 0, 0] > 0.9
    assert target[0, :, 0, 1].argmax() == 0  # the drop beside the ramp's end
    # An edge across the rows lies at 90°, half-way between bins 4 and 5.
    torch.testing.assert_close(target[0, 4:6, 1, :], torch.full((2, 2), math.sqrt(0.5)), rtol=0, atol=1e-4)


def test_a_flat_cell_is_near_zero_and_a_steep_one_has_unit_length() -> None:
    noise = 1e-4 * torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert target_of(HOG(), noise).norm(dim=1).max() < 0.02
    torch.testing.assert_close(target_of(HOG(), 1e4 * noise).norm(dim=1), torch.ones(1, 2, 2), rtol=1e-3, atol=0)


def test_the_steepest_channel_counts() -> None:
    steep, gentle = ramp(0, 0.1, (8, 8)), ramp(90, 0.05, (8, 8))
    expected = target_of(HOG(), steep)
    assert torch.equal(target_of(HOG(), torch.cat([gentle, steep], dim=1)), expected)
    assert torch.equal(target_of(HOG(), torch.cat([steep, gentle], dim=1)), expected)


def test_cells_of_a_volume_lie_within_its_slices() -> None:
    volume = random_images(3)
    target = target_of(HOG(), volume)
    assert target.shape == (3, 9, 5, 2, 3)
    for z in range(5):
        torch.testing.assert_close(target[:, :, z], target_of(HOG(), volume[:, :, z]))


def test_images_smaller_than_a_cell_are_refused() -> None:
    with pytest.raises(CeaseError, match=r"shape \(7, 30\) are smaller than a cell of 8 × 8 pixels; use larger"):
        target_of(HOG(), torch.rand(1, 1, 7, 30))


# Intensity histogram


def test_values_are_counted_in_equal_bins_with_the_outside_at_the_ends() -> None:
    first = torch.tensor([0.0, 0.24, 0.25, 0.5, 0.74, 1.0, 7.0, -3.0]).view(1, 2, 2, 2)
    second = torch.full((1, 2, 2, 2), 0.6)
    target = target_of(Histogram(bins=4), torch.cat([first, second]))
    assert target.tolist() == [[3 / 8, 1 / 8, 2 / 8, 2 / 8], [0.0, 0.0, 1.0, 0.0]]


@both_dims
def test_the_default_histogram_has_32_shares(ndim: int) -> None:
    target = target_of(Histogram(), random_images(ndim))
    assert target.shape == (3, 32)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(3))


def test_histograms_are_judged_by_the_kullback_leibler_divergence() -> None:
    target = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    prediction = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log() + 5
    expected = torch.tensor([0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(4)])
    torch.testing.assert_close(Histogram(bins=2).loss(prediction, target), expected)
    best = Histogram(bins=2).constant(target).softmax(dim=1)
    torch.testing.assert_close(best, torch.tensor([[0.75, 0.25]]))


# Low pass


@both_dims
def test_a_bright_pixel_becomes_a_gaussian(ndim: int) -> None:
    image = torch.zeros(1, 1, *(17,) * ndim)
    image[(0, 0, *(8,) * ndim)] = 1
    blurred = target_of(LowPass(sigma=1.5), image)[0, 0]
    profile = torch.exp(-((torch.arange(17) - 8) ** 2) / (2 * 1.5**2))
    profile /= profile.sum()
    expected = profile
    for _ in range(ndim - 1):
        expected = expected.unsqueeze(-1) * profile
    torch.testing.assert_close(blurred, expected, rtol=0, atol=1e-4)


@both_dims
def test_the_border_is_not_darkened(ndim: int) -> None:
    images = torch.full((1, 2, *SHAPES[ndim]), 0.7)
    torch.testing.assert_close(target_of(LowPass(), images), images)


def test_channels_are_blurred_apart() -> None:
    images = torch.cat([torch.zeros(1, 1, 9, 9), torch.ones(1, 1, 9, 9)], dim=1)
    torch.testing.assert_close(target_of(LowPass(), images), images)
