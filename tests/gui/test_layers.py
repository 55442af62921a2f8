"""Panes: our layers in a viewer, found by role, and the user's left alone. No window is needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.utils.colormaps import DirectLabelColormap

from cease_core.evaluation import Distortion
from cease_core.models.card import PALETTE, ClassInfo
from cease_core.models.checkpoint import load_card
from napari_cease.geometry import display_array
from napari_cease.jobs.exploration import SIDES, Opened, View
from napari_cease.jobs.training import Preview
from napari_cease.layers import NEGATIVE, OURS, POSITIVE, TRAINING, Panes, TrainingLayers, perturbation_rgba, role_of

GEOMETRY = ("scale", "translate", "units", "axis_labels")


@pytest.fixture
def viewer():
    return ViewerModel()


@pytest.fixture
def cards(library):
    return lambda scene: {side: load_card(library / f"{scene}-{side}") for side in SIDES}


@pytest.fixture
def panes(viewer, volume, show_layers, cards):
    """Both panes over a volume."""
    made = Panes(viewer)
    image, mask = show_layers(viewer, *volume)
    made.open(volume[0], image, mask, cards("cardiac"), split=True)
    return made


def shown(panes, side="undefended", index=2, value=0.5, limit=1.0, title="a title"):
    """Show a view whose mask is one and whose perturbation is ``value`` throughout slice ``index``."""
    scan = panes.scan
    place = (index, *(slice(0, s) for s in scan.shape[1:]))
    shape = scan.shape[1:]
    view = View(
        side,
        0.1,
        np.ones(shape, np.int32),
        np.full((1, *shape), value, np.float32),
        0.5,
        Distortion(0.1, 0.1, 30.0, 0.9),
        False,
    )
    opened = Opened(side, place, scan.window, "labels", view.mask, 1.0)
    panes.show(view, opened, limit=limit, title=title)
    return view


# --- the perturbation's colours ---


def test_no_change_is_transparent():
    assert perturbation_rgba(np.zeros((1, 3, 4), np.float32), 0.1)[..., 3].max() == 0


def test_the_sign_is_the_colour_and_the_size_the_opacity():
    values = np.array([[[-0.2, -0.05, 0.0, 0.05, 0.1, 0.2]]], np.float32)
    rgba = perturbation_rgba(values, 0.1)[0]
    assert [tuple(c[:3]) for c in rgba[:2]] == [NEGATIVE] * 2
    assert [tuple(c[:3]) for c in rgba[3:]] == [POSITIVE] * 3
    alpha = rgba[:, 3].astype(int)
    assert alpha[0] == alpha[4] == alpha[5] == alpha.max()
    assert alpha[1] == alpha[3] == pytest.approx(alpha.max() / 2, abs=1)


def test_a_smaller_limit_is_more_contrast():
    values = np.full((1, 2, 2), 0.02, np.float32)
    assert perturbation_rgba(values, 0.05)[0, 0, 3] == pytest.approx(2 * perturbation_rgba(values, 0.1)[0, 0, 3], abs=1)


def test_of_several_channels_the_largest_change_counts():
    values = np.array([0.01, -0.08, 0.05], np.float32).reshape(3, 1, 1)
    np.testing.assert_array_equal(perturbation_rgba(values, 0.1), perturbation_rgba(values[1:2], 0.1))


# --- whose layers they are ---


def test_both_panes_have_their_layers(panes, viewer):
    for side in SIDES:
        assert all(panes.find(role, side) is not None for role in OURS)
    names = [role_of(layer) for layer in viewer.layers]
    right = names.index(("scan twin", None))
    assert {side for _, side in names[:right]} == {None, "undefended"}
    assert {side for _, side in names[right:]} == {None, "defended"}
    grid = viewer.canvas.grid
    assert (grid.enabled, grid.stride, grid.shape) == (True, right, (1, 2))


def test_every_layer_lies_where_the_scan_lies(panes, viewer):
    for layer in viewer.layers:
        for part in GEOMETRY:
            np.testing.assert_array_equal(getattr(layer, part), getattr(viewer.layers[0], part))
    np.testing.assert_allclose(viewer.layers[0].scale, panes.scan.spacing)
    assert viewer.layers.extent.units is not None


def test_layers_are_found_after_the_user_renamed_them(panes, viewer):
    for i, layer in enumerate(viewer.layers):
        layer.name = f"renamed {i}"
    shown(panes)
    assert panes.find("mask", "undefended").data[2].all()


def test_only_ours_go(panes, viewer, volume):
    mine = viewer.add_image(np.zeros((4, 4)), name="my own")
    scan, mask = viewer.layers[0], next(x for x in viewer.layers if role_of(x)[0] == "labels")
    values = scan.data.copy(), mask.data.copy()
    shown(panes)
    panes.close()
    assert list(viewer.layers) == [scan, mask, mine]
    np.testing.assert_array_equal(scan.data, values[0])
    np.testing.assert_array_equal(mask.data, values[1])
    assert not viewer.canvas.grid.enabled


def test_a_second_scan_replaces_ours_and_leaves_the_order_of_the_users(viewer, show_layers, cards, volume, picture):
    panes = Panes(viewer)
    first, first_mask = show_layers(viewer, *volume)
    second, second_mask = show_layers(viewer, *picture)
    note = viewer.add_points(np.zeros((1, 2)), name="a note")
    users = [first, first_mask, second, second_mask, note]
    for image, mask, scan, scene in (
        (first, first_mask, volume[0], "cardiac"),
        (second, second_mask, picture[0], "polyp"),
        (first, first_mask, volume[0], "cardiac"),
    ):
        panes.open(scan, image, mask, cards(scene), split=True)
        assert [x for x in viewer.layers if x in users] == users
        assert len(viewer.layers) == len(users) + 2 * len(OURS) + 2
        assert panes.find("mask", "defended").data.shape == scan.shape


def test_without_side_by_side_both_masks_lie_over_one_scan(viewer, show_layers, cards, volume):
    panes = Panes(viewer)
    image, mask = show_layers(viewer, *volume)
    panes.open(volume[0], image, mask, cards("cardiac"), split=False)
    assert not viewer.canvas.grid.enabled
    assert panes.find("scan twin") is None
    assert panes.find("mask", "undefended").contour == 0
    assert panes.find("mask", "defended").contour > 0


def test_one_model_needs_one_pane(viewer, show_layers, cards, volume):
    panes = Panes(viewer)
    image, mask = show_layers(viewer, *volume)
    panes.open(volume[0], image, mask, {"defended": cards("cardiac")["defended"]}, split=True)
    assert not viewer.canvas.grid.enabled
    assert panes.find("mask", "undefended") is None
    assert panes.find("scan twin") is None


def test_the_right_pane_starts_at_its_floor_whatever_the_user_deletes(panes, viewer):
    viewer.layers.remove(panes.find("perturbation", "undefended"))
    assert viewer.canvas.grid.stride == viewer.layers.index(panes.find("scan twin"))
    viewer.layers.insert(0, viewer.add_image(np.zeros((4, 4))).__class__(np.zeros((4, 4))))
    assert viewer.canvas.grid.stride == viewer.layers.index(panes.find("scan twin"))
    viewer.layers.remove(panes.find("scan twin"))
    assert not viewer.canvas.grid.enabled


def test_a_deleted_layer_of_ours_is_done_without(panes, viewer):
    viewer.layers.remove(panes.find("perturbation", "undefended"))
    shown(panes)
    assert panes.find("mask", "undefended").data[2].all()
    viewer.layers.remove(panes.find("mask", "undefended"))
    shown(panes, index=1)


# --- colours ---


def colours(layer):
    return np.round(layer.get_color(1), 3).tolist()


def test_a_class_has_one_colour_in_every_layer_and_it_is_the_users(viewer, show_layers, cards, volume):
    panes = Panes(viewer)
    image, mask = show_layers(viewer, *volume)
    mask.colormap = DirectLabelColormap(color_dict={None: "transparent", 0: "transparent", 1: "#ff00ff"})
    panes.open(volume[0], image, mask, cards("cardiac"), split=True)
    wanted = [1.0, 0.0, 1.0, 1.0]
    everyone = [mask, panes.find("labels twin"), *(panes.find("mask", side) for side in SIDES)]
    assert [colours(layer) for layer in everyone] == [wanted] * 4


def test_without_a_reference_the_cards_colours_count(viewer, show_layers, cards, volume):
    panes = Panes(viewer)
    image, _ = show_layers(viewer, volume[0])
    panes.open(volume[0], image, None, cards("cardiac"), split=True)
    red, green, blue = (int(PALETTE[0][i : i + 2], 16) / 255 for i in (1, 3, 5))
    for side in SIDES:
        np.testing.assert_allclose(panes.find("mask", side).get_color(1), (red, green, blue, 1), atol=0.01)


def test_more_than_255_classes_fit_into_the_mask(viewer, show_layers, cards, volume):
    many = tuple(ClassInfo(id=i, name=str(i), color=PALETTE[i % 7]) for i in range(1, 301))
    card = cards("cardiac")["undefended"].model_copy(update={"classes": many, "mode": "multiclass"})
    panes = Panes(viewer)
    image, _ = show_layers(viewer, volume[0])
    panes.open(volume[0], image, None, {"undefended": card}, split=True)
    view = replace(shown(panes), mask=np.full(volume[0].shape[1:], 300, np.int32))
    opened = Opened("undefended", (1, slice(0, 32), slice(0, 40)), volume[0].window, "labels", view.mask, 1.0)
    panes.show(view, opened, limit=1.0, title="300")
    assert panes.find("mask", "undefended").data.max() == 300


# --- what they show ---


def test_another_slice_empties_the_one_before(panes, volume):
    scan = volume[0]
    panes.set_visible("adversarial", True)
    shown(panes, index=2)
    shown(panes, index=4)
    mask, map_, changed = (panes.find(role, "undefended") for role in OURS)
    assert [bool(mask.data[i].any()) for i in range(5)] == [False, False, False, False, True]
    assert [bool(map_.data[i].any()) for i in range(5)] == [False, False, False, False, True]
    clean = display_array(scan.image, scan)
    np.testing.assert_array_equal(changed.data[:4], clean[:4])
    np.testing.assert_allclose(changed.data[4], clean[4] + 0.5 * scan.window.width, rtol=1e-5)


def test_a_hidden_layer_is_filled_when_it_is_shown(panes):
    shown(panes)
    layer = panes.find("adversarial", "undefended")
    clean = layer.data.copy()
    assert not layer.visible
    layer.visible = True  # the eye in the layer list
    assert not np.array_equal(layer.data, clean)


def test_the_same_view_is_not_drawn_twice(panes):
    view = shown(panes)
    redrawn = []
    panes.find("mask", "undefended").events.set_data.connect(lambda _: redrawn.append(1))
    opened = panes._shown["undefended"][1]
    panes.show(view, opened, limit=1.0, title="a title")
    assert not redrawn
    panes.show(view, opened, limit=0.5, title="a title")
    assert redrawn


def test_a_visibility_that_stays_is_not_set(panes):
    told = []
    panes.find("perturbation", "undefended").events.visible.connect(lambda _: told.append(1))
    panes.set_visible("perturbation", True)
    assert not told
    panes.set_visible("perturbation", False)
    assert told == [1]


def test_the_right_pane_follows_the_users_edits(panes, viewer):
    mask = next(x for x in viewer.layers if role_of(x)[0] == "labels")
    twin = panes.find("labels twin")
    assert twin.data is mask.data
    mask.data = np.zeros_like(mask.data)
    assert twin.data is mask.data
    drawn = []
    twin.events.set_data.connect(lambda _: drawn.append(1))
    mask.paint((2, 5, 5), 1)
    assert drawn
    panes.close()
    mask.data = np.ones_like(mask.data)  # nobody listens any more


# --- a training's preview ---


@pytest.fixture
def training(viewer, qtbot):
    """Its layers, and whether they have gone; Qt's loop is needed."""
    gone = []
    made = TrainingLayers(viewer, lambda: gone.append(True))
    yield made, gone
    made.release()


def preview():
    mask = np.ones((6, 8), np.uint8)
    return Preview("a", 1, 8 / 255, np.ones((1, 6, 8), np.float32), mask, mask, mask, (1.0, 0.5))


def ours(viewer):
    return [layer for layer in viewer.layers if role_of(layer)[0] == TRAINING]


@pytest.mark.parametrize("add", ["add_shapes", "add_points"])
def test_layers_without_content_have_no_place_that_counts(training, viewer, add):
    made, _ = training
    getattr(viewer, add)()
    made.show(preview())
    (scan, *_) = ours(viewer)
    assert (tuple(scan.scale), tuple(scan.translate)) == ((1, 1), (0, 0))
    made.close()
    viewer.add_image(np.eye(16), scale=(2, 2))
    made.show(preview())
    (scan, *_) = ours(viewer)
    assert tuple(scan.scale) == (30 / 8, 30 / 8)  # as wide as from its first pixel to its last
    assert scan.extent.world[0, 0] > viewer.layers[-1].extent.world[1, 0]


def test_a_preview_that_cannot_be_shown_does_not_keep_the_next_removal_from_being_noticed(training, viewer, qtbot):
    made, gone = training
    made.show(preview())
    with pytest.raises(ValueError, match="format"):
        made.show(preview()._replace(dice=("high", "low")))
    viewer.layers.remove(ours(viewer)[0])
    qtbot.waitUntil(lambda: gone == [True])
    assert not ours(viewer)


def test_all_layers_are_deleted_at_once_while_a_preview_is_shown(training, viewer, qtbot):
    made, gone = training
    viewer.add_image(np.eye(8))
    made.show(preview())
    viewer.layers.select_all()
    viewer.layers.remove_selected()
    assert not viewer.layers
    qtbot.waitUntil(lambda: gone == [True])
    made.show(preview())
    assert len(ours(viewer)) == 4
