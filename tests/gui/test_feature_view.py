"""The explorer's feature view as a user meets it: unfolded, followed while ε changes, folded away."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule, save_model
from cease_core.models.card import PALETTE
from cease_core.scan import Window
from napari_cease.jobs import features
from napari_cease.jobs.exploration import SIDES
from napari_cease.widgets.feature_view import BACKGROUND, CHOOSE, ONE_CLASS

WAIT = 30_000


def deep_model(folder, side, channels=3):
    """A model with enough levels for a feature that is coarser than the image; nobody has trained it."""
    torch.manual_seed(SIDES.index(side))
    card = ModelCard(
        name=f"deep-{side}-{channels}",
        title=f"Deep, {side} (test)",
        architecture="unet",
        architecture_args={"channels": (4, 6, 8, 8)},
        ndim=2,
        channels=channels,
        classes=(ClassInfo(id=1, name="bright", color=PALETTE[0]),),
        mode="binary",
        window=WindowRule(kind="percentile", low=0, high=100),
    )
    return save_model(SegmentationModel(card).eval(), folder / card.name)


@pytest.fixture
def deep(tmp_path):
    return {side: deep_model(tmp_path, side) for side in SIDES}


@pytest.fixture
def docked(docked):
    """The explorer with a short ladder."""

    def make():
        viewer, dock = docked()
        dock.session.top = 4
        return viewer, dock

    return make


@pytest.fixture
def looked_at(docked, picture, show_layers, deep, qtbot):
    """The explorer on a small picture, with both models' features unfolded."""
    viewer, dock = docked()
    image, mask = show_layers(viewer, *picture)
    dock.choose(image, mask, **deep)
    unfold(dock, qtbot)
    return viewer, dock, image, mask


def unfold(dock, qtbot):
    QTest.mouseClick(dock.features.toggleButton(), Qt.MouseButton.LeftButton)
    assert dock.features.isExpanded()
    settle(dock, qtbot)


def settle(dock, qtbot):
    qtbot.waitUntil(lambda: dock.explorer.settled and bool(dock.explorer.results.opened), timeout=WAIT)
    qtbot.waitUntil(lambda: dock.features.settled, timeout=WAIT)


def drawn(dock, side, kind):
    """Points on the screen, class by class."""
    items = getattr(dock.features.clouds[side], kind)
    return np.concatenate([np.stack(items[of].getData(), axis=1) for of in sorted(items)])


@pytest.fixture
def looks(monkeypatch):
    """The perturbations that were looked at."""
    seen = []
    picture = features.FeatureProbe.picture

    def watched(self, perturbation):
        seen.append(float(perturbation.abs().max()))
        return picture(self, perturbation)

    monkeypatch.setattr(features.FeatureProbe, "picture", watched)
    return seen


# --- following ε ---


def test_attacked_points_move_with_epsilon_and_clean_and_augmented_ones_stay(looked_at, qtbot):
    _, dock, *_ = looked_at
    before = {(side, kind): drawn(dock, side, kind) for side in SIDES for kind in ("clean", "augmented")}
    for side in SIDES:
        np.testing.assert_array_equal(drawn(dock, side, "adversarial"), before[side, "clean"])
        assert "cosine to clean 1.00" in dock.features.captions[side].text()
    moved = []
    for level in (1, 4):
        dock.slider.setValue(level)
        settle(dock, qtbot)
        moved.append([np.linalg.norm(drawn(dock, s, "adversarial") - before[s, "clean"], axis=1).mean() for s in SIDES])
        for (side, kind), points in before.items():
            np.testing.assert_array_equal(drawn(dock, side, kind), points)
    assert (np.array(moved[0]) > 0).all()
    assert (np.array(moved[1]) > moved[0]).all()
    for side in SIDES:
        assert dock.features.pictures[side].cosine < 1
        x, y = dock.features.clouds[side].lines.getData()
        ends = np.stack([x, y], axis=1).reshape(-1, 2, 2)
        np.testing.assert_allclose(np.sort(ends[:, 0], axis=0), np.sort(drawn(dock, side, "clean"), axis=0))
        np.testing.assert_allclose(np.sort(ends[:, 1], axis=0), np.sort(drawn(dock, side, "adversarial"), axis=0))


def test_both_plots_have_one_scale_and_show_every_point(looked_at, qtbot):
    _, dock, *_ = looked_at
    dock.slider.setValue(4)
    settle(dock, qtbot)
    dock.slider.setValue(1)
    settle(dock, qtbot)
    spans = []
    for side, plot in dock.features.plots.items():
        (left, right), (bottom, top) = plot.getPlotItem().vb.viewRange()
        for kind in ("clean", "adversarial", "augmented"):
            x, y = drawn(dock, side, kind).T
            assert left < x.min() <= x.max() < right
            assert bottom < y.min() <= y.max() < top
        spans.append((right - left) / plot.getPlotItem().vb.width())
    assert spans[0] == pytest.approx(spans[1], rel=0.02)


def test_points_have_the_classes_colours_on_the_canvas(looked_at):
    _, dock, *_ = looked_at
    cloud = dock.features.clouds["undefended"]
    shown = dock.explorer.panes.find("mask", "undefended").get_color(1)[:3]
    assert sorted(cloud.clean) == [0, 1]
    for kind in (cloud.clean, cloud.adversarial):
        assert kind[0].opts["brush"].color().name() == BACKGROUND.lower()
        np.testing.assert_allclose(kind[1].opts["brush"].color().getRgbF()[:3], shown, atol=1 / 255)
    assert "bright" in dock.features.legend.text()
    assert len({kind[1].opts["symbol"] for kind in (cloud.clean, cloud.adversarial, cloud.augmented)}) == 3


def test_the_lines_can_be_left_out(looked_at):
    _, dock, *_ = looked_at
    assert all(cloud.lines.isVisible() for cloud in dock.features.clouds.values())
    dock.features.joined.click()
    assert not any(cloud.lines.isVisible() for cloud in dock.features.clouds.values())


def test_a_drag_ends_at_the_newest_epsilon_without_a_look_at_each(looked_at, looks, qtbot):
    _, dock, *_ = looked_at
    generation = dock.explorer.worker.generation
    for level in 10 * (1, 2, 3, 4):
        dock.slider.setValue(level)
        qtbot.wait(1)
    settle(dock, qtbot)
    assert looks[-2:] == [pytest.approx(np.abs(dock.explorer.view(side).perturbation).max()) for side in SIDES]
    assert len(looks) < 2 * 40
    assert dock.explorer.worker.generation == generation  # nothing was attacked for it


# --- folding ---


def test_folded_away_nothing_is_computed(docked, picture, show_layers, deep, looks, qtbot):
    viewer, dock = docked()
    image, mask = show_layers(viewer, *picture)
    dock.choose(image, mask, **deep)
    dock.slider.setValue(2)
    settle(dock, qtbot)
    assert not dock.features.isExpanded()
    assert looks == []
    unfold(dock, qtbot)
    assert looks == pytest.approx([2 / 255] * 2, abs=1e-6)
    QTest.mouseClick(dock.features.toggleButton(), Qt.MouseButton.LeftButton)
    dock.slider.setValue(1)
    settle(dock, qtbot)
    qtbot.wait(200)
    assert len(looks) == 2
    # Unfolded again, it is up to date.
    unfold(dock, qtbot)
    assert looks[2:] == pytest.approx([1 / 255] * 2, abs=1e-6)


def test_the_dock_is_closed_while_features_are_looked_at(looked_at):
    _, dock, *_ = looked_at
    dock.slider.setValue(3)
    dock.shutdown()  # that no thread is left, every test checks


# --- what there is to look at ---


def test_one_model_has_one_plot_and_another_model_other_points(looked_at, deep, qtbot):
    _, dock, *_ = looked_at
    view = dock.features
    before = drawn(dock, "undefended", "clean")
    dock.models["defended"].value = None
    settle(dock, qtbot)
    assert not view.plots["undefended"].isHidden()
    assert view.plots["defended"].isHidden()
    assert view.heads["defended"].isHidden()
    dock.session.undefended = deep["defended"]
    settle(dock, qtbot)
    assert drawn(dock, "undefended", "clean").shape == before.shape
    assert (drawn(dock, "undefended", "clean") != before).any()


def test_without_a_scan_it_says_what_to_do(docked, qtbot):
    _, dock = docked()
    QTest.mouseClick(dock.features.toggleButton(), Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.features.note.text() == CHOOSE, timeout=WAIT)
    assert all(plot.isHidden() for plot in dock.features.plots.values())


def test_a_model_without_such_a_feature_is_named_beside_one_that_has_it(looked_at, models, qtbot):
    _, dock, *_ = looked_at
    dock.session.defended = models("polyp")["defended"]
    settle(dock, qtbot)
    assert dock.features.note.text().startswith("Polyp, defended (test) has no decoder feature")
    assert list(dock.features.pictures) == ["undefended"]
    assert not dock.features.clouds["defended"].clean
    assert dock.features.captions["defended"].text() == ""


def test_an_image_of_one_class_has_no_separation(looked_at, qtbot):
    _, dock, _, mask = looked_at
    mask.data = np.zeros_like(mask.data)
    qtbot.waitUntil(lambda: dock.features.note.text() == ONE_CLASS, timeout=WAIT)
    assert "separation – → –" in dock.features.captions["undefended"].text()
    assert math.isnan(dock.features.pictures["undefended"].recognised[0])


def test_another_slice_has_other_pixels(docked, volume, show_layers, tmp_path, qtbot):
    viewer, dock = docked()
    image, mask = show_layers(viewer, *volume)
    dock.choose(image, mask, undefended=deep_model(tmp_path, "undefended", channels=1))
    unfold(dock, qtbot)
    before = drawn(dock, "undefended", "clean")
    viewer.dims.set_current_step(0, 1)
    qtbot.waitUntil(lambda: dock.explorer._running is not None, timeout=WAIT)
    settle(dock, qtbot)
    after = drawn(dock, "undefended", "clean")
    assert after.shape != before.shape or (after != before).any()
    # The whole volume's attack is shown at the slice that is looked at.
    dock.slider.setValue(4)
    settle(dock, qtbot)
    QTest.mouseClick(dock.whole, Qt.MouseButton.LeftButton)
    settle(dock, qtbot)
    np.testing.assert_allclose(drawn(dock, "undefended", "clean"), after, atol=1e-6)
    assert (drawn(dock, "undefended", "adversarial") != after).any()


def part(*shape, first=slice(None), middle=None):
    """A part of a scan, with one voxel of a structure in it."""
    mask = np.zeros(shape, np.int32)
    if middle is not None:
        mask[middle] = 1
    place = (first, *(slice(0, s) for s in shape[-2:]))
    return features.Opened("undefended", place, Window(0, 1), "labels", mask, 1.0)


def of_windows(*spans):
    return tuple(slice(*span) for span in spans)


@pytest.mark.parametrize(
    ("opened", "ndim", "index", "piece"),
    [
        (part(40, 50, first=7), 2, 7, (slice(None), slice(None))),
        (part(20, 40, 50, first=slice(0, 20)), 2, 13, (13, slice(None), slice(None))),
        (part(20, 40, 50, first=slice(30, 50)), 3, 41, of_windows((0, 20), (0, 40), (0, 50))),
        # Around the slice, the structure, and no further than the part reaches.
        (part(200, 300, 300, middle=(0, 150, 290)), 3, 100, of_windows((52, 148), (102, 198), (204, 300))),
        (part(200, 300, 300), 3, 5, of_windows((0, 96), (102, 198), (102, 198))),
    ],
    ids=["image", "slice of a volume", "small volume", "window at a structure", "window without one"],
)
def test_as_much_is_looked_at_as_the_model_sees_at_a_time(opened, ndim, index, piece):
    assert features.piece_of(opened, ndim, index) == piece


# --- keeping it ---


def test_the_figure_is_copied_and_saved(looked_at, tmp_path, qtbot):
    _, dock, *_ = looked_at
    dock.slider.setValue(4)
    settle(dock, qtbot)
    view = dock.features
    view.save_figure(tmp_path / "features.png")
    pixels = np.asarray(Image.open(tmp_path / "features.png").convert("RGB"))
    assert (pixels[:10] == 255).all()
    colour = [int(PALETTE[0][i : i + 2], 16) for i in (1, 3, 5)]
    halves = np.array_split((pixels == colour).all(axis=2), 2, axis=1)
    assert all(half.sum() > 200 for half in halves)
    view.save_figure(tmp_path / "features.svg")
    text = (tmp_path / "features.svg").read_text()
    assert "<title>Features</title>" in text
    assert "separation" in text
    view.copy_figure()
    assert QApplication.clipboard().image().width() == pixels.shape[1]


def test_before_there_is_a_picture_there_is_nothing_to_save(docked, errors, tmp_path):
    _, dock = docked()
    dock.features.save_figure(tmp_path / "features.png")
    assert "There are no features yet" in errors[0]
    assert not (tmp_path / "features.png").exists()
