"""Features of single pixels and their picture, against closed forms and the layer that the defence looks into."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.attacks import PGD
from cease_core.attacks.on_scan import pose_on_scan
from cease_core.defences.tap import Tap
from cease_core.errors import CeaseError
from cease_core.evaluation.features import FeatureProbe, mean_cosine, principal_plane, recognised, separation
from cease_core.io import read_labels, read_scan
from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule, find_model, load_model, prepare
from cease_core.models.card import PALETTE
from napari_cease.scenes import SCENES


def unet(downsample: int = 1, channels: tuple[int, ...] = (4, 6, 8, 8)) -> SegmentationModel:
    torch.manual_seed(0)
    card = ModelCard(
        name="small",
        title="Small",
        architecture="unet",
        architecture_args={"channels": channels},
        ndim=2,
        channels=1,
        classes=(ClassInfo(id=1, name="left", color=PALETTE[0]), ClassInfo(id=2, name="right", color=PALETTE[1])),
        mode="multiclass",
        window=WindowRule(kind="fixed", low=0, high=1),
        downsample=downsample,
    )
    return SegmentationModel(card).eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def thirds(height: int, width: int) -> Tensor:
    """Background, class 1, class 2, from left to right."""
    return (torch.arange(width) * 3 // width).expand(1, height, width)


def distances(rows: Tensor, others: Tensor) -> Tensor:
    between: Tensor = (rows[:, None] - others).norm(dim=2)
    return between


# --- which pixels, which feature ---


@pytest.mark.parametrize("downsample", [1, 2])
def test_a_pixel_is_the_unit_vector_of_the_layer_that_the_defence_compares_pixels_by(downsample: int) -> None:
    model, images, labels = unet(downsample), noise(1, 1, 44, 60), thirds(44, 60)
    probe = FeatureProbe(model, images, labels, per_class=10_000)
    working = SegmentationModel(model.card.model_copy(update={"downsample": 1}), model.backbone).eval()
    with torch.no_grad(), Tap(working, (48, 64)).open(model) as caught:
        model(images)
    every = F.normalize(caught[0], dim=1)[0].flatten(1).T
    distance, place = distances(probe.clean, every).min(dim=1)
    assert distance.max() < 1e-5
    # All that lie in the image are taken, none of what the model pads; and each has the class of its middle.
    stride = 4 * downsample
    rows, columns = (torch.arange(0.5, size / stride) for size in (44, 60))
    rows, columns = rows[rows * stride < 44], columns[columns * stride < 60]
    width = caught[0].shape[3]
    assert sorted(place.tolist()) == [int(r) * width + int(c) for r in rows for c in columns]
    middles = ((place % width + 0.5) * stride).long()
    assert probe.classes.tolist() == labels[0, 0, middles].tolist()


def test_classes_are_drawn_alike_as_far_as_there_are_pixels() -> None:
    model, images, labels = unet(), noise(1, 1, 64, 96), thirds(64, 96)
    assert FeatureProbe(model, images, labels, per_class=20).classes.bincount().tolist() == [20, 20, 20]
    labels = labels.clamp_max(1)
    labels[:, 8:16, 8:16] = 2
    assert FeatureProbe(model, images, labels, per_class=20).classes.bincount().tolist() == [20, 20, 4]


def test_a_mask_with_a_channel_a_class_names_the_same_pixels() -> None:
    model, images, labels = unet(), noise(1, 1, 64, 96), thirds(64, 96)
    stacked = torch.stack([labels == 1, labels == 2], dim=1).float()
    by_ids, by_channels = (FeatureProbe(model, images, mask) for mask in (labels, stacked))
    assert torch.equal(by_ids.clean, by_channels.clean)
    assert torch.equal(by_ids.classes, by_channels.classes)


def test_without_a_perturbation_nothing_moves_and_a_second_look_is_the_same() -> None:
    one, two = (FeatureProbe(unet(2), noise(1, 1, 50, 70), thirds(50, 70)) for _ in range(2))
    still, moved = one.picture(torch.zeros(1, 1, 50, 70)), two.picture(0.3 * noise(1, 1, 50, 70, seed=2))
    np.testing.assert_array_equal(still.clean, still.adversarial)
    assert still.cosine == pytest.approx(1, abs=1e-6)
    assert still.separation[0] == still.separation[1]
    np.testing.assert_array_equal(still.clean, moved.clean)
    np.testing.assert_array_equal(still.augmented, moved.augmented)
    assert np.abs(moved.adversarial - moved.clean).max() > 0.01
    assert np.abs(moved.augmented - moved.clean).max() > 0.01
    assert moved.cosine < still.cosine


def test_a_prepared_model_has_the_features_of_the_trained_one() -> None:
    model = load_model(find_model("polyp-defended")).eval()
    images, labels = noise(1, 3, 128, 128), thirds(128, 128)
    as_trained, prepared = (FeatureProbe(m, images, labels) for m in (model, prepare(model)))
    torch.testing.assert_close(as_trained.clean, prepared.clean, atol=1e-4, rtol=0)


def test_passes_of_the_model_elsewhere_are_not_taken_for_its_own() -> None:
    model, images = unet(channels=(8, 8, 16)), noise(1, 1, 64, 64)
    probe = FeatureProbe(model, images, thirds(64, 64))
    zero, done = torch.zeros_like(images), threading.Event()

    def attack() -> None:
        while not done.is_set():
            model(noise(3, 1, 32, 32, seed=3))

    thread = threading.Thread(target=attack)
    thread.start()
    try:
        looks = [probe.attacked(zero) for _ in range(100)]
    finally:
        done.set()
        thread.join()
    assert all(torch.equal(look, looks[0]) for look in looks)
    assert torch.allclose(looks[0], probe.clean, atol=1e-6)


# --- models that cannot be looked into ---


def test_a_model_with_one_level_says_that_it_has_no_such_feature() -> None:
    model = unet(channels=(2, 2))
    model.card = model.card.model_copy(update={"mode": "binary", "classes": model.card.classes[:1]})
    model = SegmentationModel(model.card).eval()
    with pytest.raises(CeaseError, match="Small has no decoder feature to compare pixels by; choose"):
        FeatureProbe(model, noise(1, 1, 32, 32), thirds(32, 32))


def test_a_network_from_elsewhere_says_that_it_does_not_show_its_features() -> None:
    class Elsewhere:
        def __init__(self, model: SegmentationModel) -> None:
            self.mode, self.card, self.check, self._model = model.mode, model.card, model.check, model

        def __call__(self, images: Tensor) -> Tensor:
            logits: Tensor = self._model(images)
            return logits

    with pytest.raises(CeaseError, match="Small does not show its features"):
        FeatureProbe(Elsewhere(unet()), noise(1, 1, 32, 32), thirds(32, 32))


# --- the picture ---


def test_features_in_a_plane_keep_their_distances() -> None:
    flat = noise(30, 2, seed=4) @ torch.linalg.qr(noise(7, 2, seed=5))[0].T + 3
    plane = principal_plane(flat)
    points = torch.from_numpy(plane(flat))
    assert plane.explained == pytest.approx(1)
    torch.testing.assert_close(distances(points, points), distances(flat, flat), atol=1e-5, rtol=0)


def test_the_first_axis_is_that_of_the_largest_spread_and_its_sign_does_not_depend_on_the_order() -> None:
    rows = torch.tensor([[-3.0, 0, 0], [3, 0, 0], [0, -2, 0], [0, 2, 0], [0, 0, -1], [0, 0, 1]])
    plane = principal_plane(rows)
    torch.testing.assert_close(plane.axes, torch.eye(3)[:, :2])
    assert plane.explained == pytest.approx((9 + 4) / (9 + 4 + 1))
    torch.testing.assert_close(principal_plane(rows.flip(0)).axes, plane.axes)


def test_one_pixel_lies_at_the_origin() -> None:
    plane = principal_plane(torch.tensor([[0.6, 0.8, 0.0]]))
    assert plane(torch.tensor([[0.6, 0.8, 0.0]])).tolist() == [[0, 0]]
    assert math.isnan(plane.explained)


# --- figures ---


def test_the_mean_cosine_is_that_of_each_pixel_with_itself() -> None:
    rows = torch.eye(3)
    turned = torch.tensor([[1.0, 0, 0], [0, -1, 0], [1, 0, 0]])
    assert mean_cosine(rows, rows) == pytest.approx(1)
    assert mean_cosine(rows, turned) == pytest.approx((1 - 1 + 0) / 3)


def test_separation_is_the_spread_between_classes_over_that_within() -> None:
    # Centres at ±2; members one away from theirs on one side, three on the other: (4) / ((1 + 9) / 2).
    left, right = torch.tensor([[-3.0], [-1]]).repeat(3, 1), torch.tensor([[5.0], [-1]]).repeat(3, 1)
    assert separation(torch.cat([left, right]), torch.tensor([0, 4]).repeat_interleave(6)) == pytest.approx(4 / 5)
    # A class that has more pixels counts no more.
    crowd, classes = torch.cat([left, left, left, right]), torch.tensor([0, 0, 0, 4]).repeat_interleave(6)
    assert separation(crowd, classes) == pytest.approx(4 / 5)


def test_without_spread_within_there_is_no_ratio() -> None:
    rows = F.normalize(noise(2, 30, seed=6), dim=1).repeat_interleave(7, dim=0)
    assert math.isnan(separation(rows, torch.tensor([0, 1]).repeat_interleave(7)))


def test_a_pixel_is_recognised_where_its_class_was_when_clean() -> None:
    clean, classes = torch.tensor([[-2.0]] * 6 + [[2.0]] * 5), torch.tensor([1] * 6 + [2] * 5)
    assert recognised(clean, classes, clean) == 1
    assert recognised(-clean, classes, clean) == 0
    # The classes' shares are 4/6 and 1, however many pixels they have.
    moved = torch.tensor([[-2.0]] * 4 + [[1.0]] * 2 + [[3.0]] * 5)
    assert recognised(moved, classes, clean) == pytest.approx((4 / 6 + 1) / 2)


@pytest.mark.parametrize("sizes", [(48, 48), (48, 48, 48), (48, 6)])
def test_features_that_know_nothing_of_the_classes_recognise_as_many_as_chance(sizes: tuple[int, ...]) -> None:
    classes = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    found = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        clean = F.normalize(torch.randn(len(classes), 64, generator=generator), dim=1)
        found.append(recognised(clean, classes, clean))
    assert np.mean(found) == pytest.approx(1 / len(sizes), abs=0.04)


def test_classes_of_few_pixels_count_in_no_figure_and_are_named() -> None:
    model, images, labels = unet(), noise(1, 1, 64, 96), thirds(64, 96).clamp_max(1)
    without = FeatureProbe(model, images, labels, per_class=10_000)
    labels[:, 8:16, 72:80] = 2
    probe = FeatureProbe(model, images, labels, per_class=10_000)
    assert probe.classes.bincount().tolist()[2] == 4
    picture = probe.picture(torch.zeros(1, 1, 64, 96))
    assert picture.left_out == (2,)
    counted = probe.classes != 2
    rows, classes = probe.clean[counted], probe.classes[counted]
    assert picture.separation[0] == separation(rows, classes)
    assert picture.recognised[0] == recognised(rows, classes, rows)
    assert without.picture(torch.zeros(1, 1, 64, 96)).left_out == ()


def test_a_single_class_is_neither_apart_nor_recognised() -> None:
    rows, classes = torch.eye(3), torch.zeros(3, dtype=torch.long)
    assert math.isnan(separation(rows, classes))
    assert math.isnan(recognised(rows, classes, rows))


# --- what it shows ---


@pytest.mark.parametrize("key", ["polyp", "cardiac"])
def test_the_defence_holds_features_in_their_place(key: str) -> None:
    scene = SCENES[key]
    scan = read_scan(scene.scan_path)
    labels = read_labels(scene.labels_path, scan)
    attack = PGD(epsilon=8 / 255, steps=10)
    middle = int(labels.reshape(len(labels), -1).astype(bool).sum(axis=1).argmax())
    found = []
    for name in (scene.undefended, scene.defended):
        model = prepare(load_model(find_model(name)))
        subject = pose_on_scan(model, scan, labels, extent="slice", index=middle)
        perturbation = attack.run(subject.problem(attack.loss)).perturbation
        found.append(FeatureProbe(model, subject.images, subject.labels).picture(perturbation))
    undefended, defended = found
    assert defended.cosine > undefended.cosine + 0.1
    assert defended.separation[1] / defended.separation[0] > 2 * undefended.separation[1] / undefended.separation[0]
    assert defended.recognised[1] > undefended.recognised[1] + 0.2
    for picture in found:
        assert picture.recognised[0] > 0.8
