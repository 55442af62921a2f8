"""Keys: arrows for ε, space for clean and back, and none that a field or napari needs."""

from __future__ import annotations

import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_cease.session import ExplorerSession
from napari_cease.widgets.keys import CanvasKeys


def press(widget, key, modifier=Qt.KeyboardModifier.NoModifier):
    QTest.keyClick(widget, key, modifier)


def canvas_press(viewer, key):
    """What napari does with a key on its canvas: the layer's binding, the viewer's own, then the class's."""
    from napari.utils.key_bindings import KeymapHandler

    handler = KeymapHandler()
    active = viewer.layers.selection.active
    handler.keymap_providers = [viewer] if active is None else [active, viewer]
    handler.press_key(key)
    return handler


def test_arrows_change_epsilon_and_space_shows_clean_and_back(opened):
    _, dock, *_ = opened
    press(dock, Qt.Key.Key_Right)
    press(dock, Qt.Key.Key_Right)
    assert dock.slider.value() == dock.session.level == 2
    press(dock, Qt.Key.Key_Left)
    assert dock.session.level == 1
    press(dock, Qt.Key.Key_Space)
    assert dock.session.level == 0
    assert dock.epsilon_text.text() == "ε = 0 (clean)"
    press(dock, Qt.Key.Key_Left)
    assert dock.session.level == 0
    press(dock, Qt.Key.Key_Space)
    assert dock.session.level == 1
    assert "Space" in dock.slider.toolTip()
    assert "←" in dock.slider.toolTip()


def test_arrows_end_at_the_ladders_top_and_space_starts_there():
    session = ExplorerSession(top=3)
    session.toggle_clean()
    assert session.level == 3
    session.step(1)
    assert session.level == 3
    session.toggle_clean()
    session.top = 2
    session.toggle_clean()
    assert session.level == 2


def test_on_the_plot_they_are_the_explorers_too(opened):
    _, dock, *_ = opened
    press(dock.curve, Qt.Key.Key_Right)
    press(dock.curve, Qt.Key.Key_Right)
    press(dock.curve, Qt.Key.Key_Left)
    assert dock.session.level == 1


def test_a_focused_slider_passes_space_on_and_a_field_keeps_its_keys(opened):
    _, dock, *_ = opened
    press(dock.slider, Qt.Key.Key_Right)
    assert dock.session.level == 1
    press(dock.slider, Qt.Key.Key_Space)
    assert dock.session.level == 0
    steps = dock.parameters.fields["steps"].widget
    for key in (Qt.Key.Key_Left, Qt.Key.Key_Right, Qt.Key.Key_Space):
        press(steps, key)
    assert dock.session.level == 0
    before = dock.perturbation.isChecked()
    press(dock.perturbation, Qt.Key.Key_Space)
    assert dock.perturbation.isChecked() is not before
    assert dock.session.level == 0


def test_on_a_flat_canvas_arrows_change_epsilon(opened):
    viewer, dock, image, _ = opened
    viewer.layers.selection = {image}
    canvas_press(viewer, "Right")
    canvas_press(viewer, "Alt-Right")
    assert dock.session.level == 2
    canvas_press(viewer, "Left")
    canvas_press(viewer, "Space")
    assert dock.session.level == 0


def test_on_a_canvas_with_slices_arrows_stay_naparis_and_alt_arrows_change_epsilon(opened_volume):
    viewer, dock, *_ = opened_volume
    index = dock.session.index
    canvas_press(viewer, "Left")
    assert (dock.session.index, dock.session.level) == (index - 1, 0)
    canvas_press(viewer, "Alt-Right")
    assert (dock.session.index, dock.session.level) == (index - 1, 1)


def test_space_with_a_brush_in_hand_moves_the_view(opened):
    viewer, dock, _, mask = opened
    dock.session.level = 5
    viewer.layers.selection = {mask}
    mask.mode = "paint"
    handler = canvas_press(viewer, "Space")
    assert mask.mode == "pan_zoom"
    handler.release_key("Space")
    assert mask.mode == "paint"
    assert dock.session.level == 5


@pytest.mark.parametrize("key", ["Left", "Alt-Right", "Space"])
def test_a_closed_dock_gives_the_keys_back(opened, key):
    viewer, dock, *_ = opened
    dock.shutdown()
    assert not viewer.keymap
    canvas_press(viewer, key)
    assert dock.session.level == 0


def test_what_somebody_else_has_bound_comes_back():
    from napari.components import ViewerModel

    viewer, heard = ViewerModel(), []
    viewer.bind_key("Space", lambda _: heard.append("mine"))
    keys = CanvasKeys(viewer, ExplorerSession())
    canvas_press(viewer, "Space")
    assert heard == []
    keys.release()
    canvas_press(viewer, "Space")
    assert heard == ["mine"]
