"""The explorer as a user meets it: boxes, slider, plot and buttons in a real window."""

from __future__ import annotations

import shutil
import threading
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QDockWidget, QStyle, QStyleOptionSlider

from cease_core.errors import CeaseError
from napari_cease import explorer as explorer_module
from napari_cease.jobs import exploration
from napari_cease.jobs.exploration import SIDES
from napari_cease.layers import OURS, role_of
from napari_cease.samples import polyp

WAIT = 30_000


def settle(qtbot, dock):
    qtbot.waitUntil(lambda: dock.explorer.settled and bool(dock.explorer.results.opened), timeout=WAIT)


def masks(dock):
    return {side: dock.explorer.panes.find("mask", side).data.copy() for side in SIDES}


def handle(slider, level):
    option = QStyleOptionSlider()
    slider.initStyleOption(option)
    option.sliderPosition = level
    kind = QStyle.ComplexControl.CC_Slider
    return slider.style().subControlRect(kind, option, QStyle.SubControl.SC_SliderHandle, slider).center()


def ours(viewer):
    return [layer for layer in viewer.layers if role_of(layer)[0] not in (None, "scan", "labels")]


def alive(name="cease-worker"):
    """Threads that compute; with another name, those whose name begins so."""
    return [t for t in threading.enumerate() if t.name.startswith(name)]


# --- the way through ---


def test_a_user_opens_the_sample_picks_models_and_drags(dock_in, choose, qtbot, tmp_path):
    viewer, dock = dock_in(show=True)
    for data in polyp():
        viewer._add_layer_from_data(*data)
    assert dock.labels.value is viewer.layers[1]  # the mask that came with the scan
    choose(dock, "polyp")
    settle(qtbot, dock)
    seen = [masks(dock)]
    assert dock.epsilon_text.text() == "ε = 0 (clean)"
    slider = dock.slider
    QTest.mousePress(slider, Qt.MouseButton.LeftButton, pos=handle(slider, 0))
    for level in (4, 12):
        QTest.mouseMove(slider, handle(slider, level))
        qtbot.waitUntil(lambda level=level: dock.session.level == level, timeout=WAIT)
        settle(qtbot, dock)
        seen.append(masks(dock))
        assert dock.epsilon_text.text() == f"ε = {level}/255  =  {level:.1f} grey levels"
        assert dock.curve.cursor_line.value() == level
    QTest.mouseRelease(slider, Qt.MouseButton.LeftButton, pos=handle(slider, 12))
    for before, after in pairwise(seen):
        assert (before["undefended"] != after["undefended"]).any()
    QTest.keyClick(slider, Qt.Key.Key_Right)
    assert dock.session.level == 13
    settle(qtbot, dock)
    levels, dice = dock.curve.lines["undefended"].getData()
    assert list(levels) == list(range(17))
    assert dice[16] < dice[0]
    assert dock.figures["dice", "undefended"].text() == f"{dice[13]:.3f}"
    assert dock.figures["linf", "undefended"].text().endswith(" grey levels")
    assert dock.figures["psnr", "defended"].text().endswith(" dB")
    # A click on the plot moves the slider.
    at = dock.curve.getPlotItem().vb.mapViewToScene(dock.curve.cursor_line.pos()).toPoint()
    there = dock.curve.getPlotItem().vb.mapViewToScene(QPointF(3, 0.5)).toPoint()
    QTest.mouseClick(dock.curve.viewport(), Qt.MouseButton.LeftButton, pos=QPoint(there.x(), there.y()))
    assert at.x() > there.x()
    assert slider.value() == dock.session.level == 3
    # Keys, on the canvas as in the dock.
    canvas = viewer.window._qt_viewer.canvas.native
    for widget, key, level in (
        (canvas, Qt.Key.Key_Right, 4),
        (canvas, Qt.Key.Key_Space, 0),
        (dock, Qt.Key.Key_Space, 4),
        (dock, Qt.Key.Key_Left, 3),
    ):
        QTest.keyClick(widget, key)
        assert dock.session.level == level
    # What was chosen can be undone, and the canvas recorded.
    dock.history.note()
    dock.top.value = 2
    QTest.keyClick(slider, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert dock.session.top == 16
    QTest.keyClick(slider, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
    assert dock.session.top == 2
    dock.save.save_animation(tmp_path / "sweep.gif")
    qtbot.waitUntil((tmp_path / "sweep.gif").is_file, timeout=WAIT)
    film = Image.open(tmp_path / "sweep.gif")
    assert film.n_frames == 4
    clean = np.asarray(film.convert("RGB"))
    film.seek(2)
    assert (np.asarray(film.convert("RGB"))[: clean.shape[0] // 2] != clean[: clean.shape[0] // 2]).any()


def test_a_tick_is_answered_by_a_preview_while_the_attack_runs(docked, picture, show_layers, choose, qtbot):
    viewer, dock = docked()
    dock.session.tune(steps=400)
    show_layers(viewer, *picture)
    choose(dock, "polyp")
    dock.slider.setValue(5)
    qtbot.waitUntil(lambda: all(dock.explorer.view(side) is not None for side in SIDES), timeout=WAIT)
    assert all(dock.explorer.view(side).preview for side in SIDES)
    qtbot.waitUntil(lambda: "(preview)" in dock.explorer.panes.find("mask", "undefended").name, timeout=WAIT)
    qtbot.waitUntil(lambda: "Preview" in dock.note.text(), timeout=WAIT)
    QTest.mouseClick(dock.cancel, Qt.MouseButton.LeftButton)
    settle(qtbot, dock)
    assert not dock.cancel.isEnabled()
    assert dock.explorer.view("undefended").preview


def test_after_cancelling_an_unknown_epsilon_is_looked_for_again(opened, qtbot):
    _, dock, *_ = opened
    dock.session.tune(steps=400)
    qtbot.waitUntil(lambda: dock.explorer._running is not None and bool(dock.explorer.results.opened), timeout=WAIT)
    dock.explorer.cancel()
    settle(qtbot, dock)
    dock.slider.setValue(2)
    qtbot.waitUntil(lambda: dock.explorer.view("undefended") is not None, timeout=WAIT)
    dock.explorer.cancel()


def test_previews_at_every_epsilon_are_no_end(docked, picture, show_layers, choose, qtbot, monkeypatch):
    monkeypatch.setattr(exploration, "AHEAD", 60)
    viewer, dock = docked()
    dock.session.tune(steps=1000)
    dock.session.top = 3
    show_layers(viewer, *picture)
    choose(dock, "polyp")
    explorer = dock.explorer
    qtbot.waitUntil(lambda: sum(v.preview for v in explorer.results.views.values()) == 6, timeout=WAIT)
    explorer.cancel()
    settle(qtbot, dock)
    assert not explorer.results.complete
    dock.session.level = 2
    assert explorer._running is not None


def test_a_level_above_the_range_does_not_start_it_again(opened):
    _, dock, *_ = opened
    dock.slider.setMaximum(255)  # a program may set any level
    dock.session.level = dock.session.top + 5
    assert dock.explorer._running is None
    assert dock.explorer.view("undefended") is None


def test_only_what_failed_is_refused(opened, qtbot):
    _, dock, *_ = opened
    explorer = dock.explorer
    dock.session.tune(steps=400)
    qtbot.waitUntil(lambda: explorer._running is not None, timeout=WAIT)
    # The attack is changed just before the failure of the one before is heard.
    dock.session.tune(steps=3)
    explorer._on_failed(explorer.worker.generation, "out of luck")
    qtbot.waitUntil(lambda: explorer._running is not None, timeout=WAIT)
    settle(qtbot, dock)
    assert explorer.results.complete


def test_without_a_reference_the_panel_says_so(opened, qtbot):
    _, dock, *_ = opened
    assert "No reference" not in dock.note.text()
    dock.labels.value = None
    settle(qtbot, dock)
    qtbot.waitUntil(lambda: "No reference" in dock.note.text(), timeout=WAIT)
    assert dock.figures["clean", "undefended"].text() == "1.000"


def test_what_was_looked_at_is_kept(opened, qtbot):
    _, dock, *_ = opened
    dock.attack.value = "fgsm"
    qtbot.waitUntil(lambda: dock.session.attack == "fgsm" and dock.explorer._running is not None, timeout=WAIT)
    settle(qtbot, dock)
    generation = dock.explorer.worker.generation
    dock.attack.value = "pgd"
    settle(qtbot, dock)
    assert len(dock.explorer.results.views) == 34
    assert not dock.explorer._running
    assert generation < dock.explorer.worker.generation


def test_the_perturbation_and_the_adversarial_scan_can_be_shown_and_hidden(opened, qtbot):
    viewer, dock, image, _ = opened
    dock.slider.setValue(16)
    settle(qtbot, dock)
    assert dock.explorer.panes.find("perturbation", "defended").data[..., 3].any()
    QTest.mouseClick(dock.perturbation, Qt.MouseButton.LeftButton, pos=QPoint(8, dock.perturbation.height() // 2))
    assert not dock.explorer.panes.find("perturbation", "defended").visible
    dock.adversarial.setChecked(True)
    changed = dock.explorer.panes.find("adversarial", "undefended")
    assert changed.visible
    assert (changed.data != image.data).any()
    largest = np.abs(changed.data.astype(int) - image.data).max()
    assert 8 < largest <= 16
    dock.split.setChecked(False)
    settle(qtbot, dock)
    # Laid out again, the layers show the same.
    assert not viewer.canvas.grid.enabled
    again = dock.explorer.panes.find("adversarial", "undefended")
    assert np.abs(again.data.astype(int) - image.data).max() == largest
    assert not dock.explorer.panes.find("perturbation", "defended").visible


# --- volumes ---


def test_looking_at_another_slice_attacks_that_slice(opened_volume, qtbot):
    viewer, dock, *_ = opened_volume
    dock.slider.setValue(8)
    settle(qtbot, dock)
    viewer.dims.set_current_step(0, 1)
    qtbot.waitUntil(lambda: dock.explorer._running is not None, timeout=WAIT)
    settle(qtbot, dock)
    assert dock.session.index == 1
    mask = dock.explorer.panes.find("mask", "undefended").data
    assert [bool(part.any()) for part in mask] == [False, True, False, False, False]
    assert "Slice 1 of 5" in dock.note.text()
    assert "a.u." in dock.epsilon_text.text()


def test_the_slice_is_the_scans_own_whatever_else_is_open(opened_volume, qtbot):
    viewer, dock, *_ = opened_volume
    scan = dock.session.scan
    viewer.add_image(np.zeros((4, 8, 8)), translate=(scan.translate[0] - 80, 0, 0), units=("mm",) * 3, scale=(8, 1, 1))
    viewer.dims.set_point(0, scan.translate[0] + 3 * scan.spacing[0])
    assert dock.session.index == 3


def test_a_volume_attack_shows_progress_and_fills_every_slice(opened_volume, qtbot):
    _, dock, *_ = opened_volume
    dock.slider.setValue(8)
    assert dock.whole.isEnabled()
    heard = []
    dock.explorer.progressed.connect(lambda done, total: heard.append((done, total)))
    dock.session.tune(steps=60)
    settle(qtbot, dock)
    QTest.mouseClick(dock.whole, Qt.MouseButton.LeftButton)
    assert dock.explorer._volume_running
    settle(qtbot, dock)
    assert heard
    assert all(0 < done <= total for done, total in heard)
    for side in SIDES:
        assert all(part.any() for part in dock.explorer.panes.find("mask", side).data)
        assert dock.explorer.view(side).mask.ndim == 3
    qtbot.waitUntil(lambda: "Whole volume" in dock.note.text(), timeout=WAIT)


def test_a_cancelled_volume_attack_keeps_the_best_so_far_and_another_slice_does_not_end_it(opened_volume, qtbot):
    viewer, dock, *_ = opened_volume
    dock.slider.setValue(8)
    dock.session.tune(steps=1000)
    qtbot.waitUntil(lambda: dock.explorer._running is not None, timeout=WAIT)
    QTest.mouseClick(dock.whole, Qt.MouseButton.LeftButton)
    running = dock.explorer._volume_running
    with qtbot.waitSignal(dock.explorer.progressed, timeout=WAIT):
        pass
    viewer.dims.set_current_step(0, 0)
    qtbot.wait(120)
    assert dock.explorer._volume_running == running
    QTest.mouseClick(dock.cancel, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.explorer.settled, timeout=WAIT)
    assert dock.explorer.view("undefended").mask.shape == dock.session.scan.shape
    assert dock.explorer.view("undefended").dice < dock.explorer.opened("undefended").dice


def test_a_volume_that_fails_leaves_its_slices_to_be_attacked(opened_volume, qtbot, monkeypatch, errors):
    def fail(request, emit, stopped):
        raise CeaseError("the volume does not fit; attack a slice.")

    monkeypatch.setattr(explorer_module, "attack_volume", fail)
    viewer, dock, *_ = opened_volume
    dock.slider.setValue(8)
    QTest.mouseClick(dock.whole, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: any("does not fit" in sentence for sentence in errors), timeout=WAIT)
    settle(qtbot, dock)
    viewer.dims.set_current_step(0, 1)
    qtbot.waitUntil(lambda: dock.session.index == 1 and dock.explorer._running is not None, timeout=WAIT)
    settle(qtbot, dock)
    assert dock.explorer.results.complete


def test_only_so_much_is_kept_of_volumes(opened_volume, qtbot, monkeypatch):
    monkeypatch.setattr(explorer_module, "KEPT_BYTES", 1)
    _, dock, *_ = opened_volume
    for level in (4, 8):
        dock.slider.setValue(level)
        QTest.mouseClick(dock.whole, Qt.MouseButton.LeftButton)
        settle(qtbot, dock)
    assert [level for _, level in dock.explorer._volumes] == [8]
    assert dock.explorer.view("undefended").mask.ndim == 3


def test_there_is_nothing_to_attack_at_zero(opened_volume):
    _, dock, *_ = opened_volume
    QTest.mouseClick(dock.whole, Qt.MouseButton.LeftButton)
    assert not dock.explorer._volume_running


# --- changes on the way ---


def test_a_second_scan_while_the_first_is_attacked(docked, picture, volume, show_layers, choose, qtbot, errors):
    viewer, dock = docked()
    dock.session.tune(steps=1000)
    show_layers(viewer, *picture)
    choose(dock, "polyp")
    qtbot.waitUntil(lambda: bool(dock.explorer.results.opened), timeout=WAIT)
    image, mask = show_layers(viewer, *volume)
    dock.scan.value = image
    assert dock.labels.value is mask
    assert dock.session.scan is volume[0]
    # The models of colour pictures were let go of, with one sentence.
    assert [dock.models[side].value for side in SIDES] == [None, None]
    assert len(errors) == 1
    assert "does not take" in errors[0]
    dock.session.tune(steps=4)
    choose(dock, "cardiac")
    settle(qtbot, dock)
    assert dock.explorer.panes.find("mask", "undefended").data.shape == (5, 32, 40)
    assert len(errors) == 1
    assert len(alive()) == 1


def test_deleting_the_scan_in_use(opened, volume, show_layers, qtbot, errors):
    viewer, dock, image, mask = opened
    dock.session.tune(steps=1000)
    qtbot.waitUntil(lambda: dock.explorer._running is not None, timeout=WAIT)
    viewer.layers.remove(image)
    assert ours(viewer) == []
    assert list(viewer.layers) == [mask]
    assert dock.session.scan is None
    assert "Open a scan" in dock.note.text()
    qtbot.waitUntil(lambda: dock.explorer.settled, timeout=WAIT)
    show_layers(viewer, *volume)
    assert dock.session.scan is volume[0]


def test_deleting_the_reference_in_use(opened, qtbot):
    viewer, dock, _, mask = opened
    viewer.layers.remove(mask)
    settle(qtbot, dock)
    assert dock.session.reference is None
    assert dock.explorer.results.opened["undefended"].reference == "clean mask"


def test_deleting_one_of_our_layers(opened, qtbot):
    viewer, dock, *_ = opened
    viewer.layers.remove(dock.explorer.panes.find("mask", "undefended"))
    dock.slider.setValue(9)
    settle(qtbot, dock)
    assert dock.explorer.panes.find("mask", "defended").name.startswith("Defended · ε 9/255")


def test_an_edited_reference_is_judged_by_anew(opened, qtbot):
    _, dock, _, mask = opened
    before = dock.explorer.results.opened["undefended"].dice
    mask.data = np.ones_like(mask.data)
    qtbot.waitUntil(lambda: dock.explorer.results.opened.get("undefended") is not None, timeout=WAIT)
    qtbot.waitUntil(lambda: dock.session.reference.labels.all(), timeout=WAIT)
    settle(qtbot, dock)
    assert dock.explorer.results.opened["undefended"].dice != before


def test_a_renamed_layer_is_offered_under_its_new_name(opened):
    _, dock, image, _ = opened
    image.name = "patient 7"
    assert dock.scan.current_choice == "patient 7"


# --- what cannot be used ---


def test_labels_of_another_shape(opened, errors, qtbot):
    viewer, dock, _, mask = opened
    scan = dock.session.scan
    wrong = viewer.add_labels(np.zeros((7, 9), np.int32), name="wrong")
    dock.labels.value = wrong
    assert len(errors) == 1
    assert "wrong: the mask has shape (7, 9)" in errors[0]
    assert dock.labels.value is mask
    usable(dock, qtbot, scan)
    assert len(errors) == 1


def test_labels_with_an_unknown_class(opened, errors, qtbot):
    viewer, dock, _, mask = opened
    scan = dock.session.scan
    dock.labels.value = viewer.add_labels(5 * mask.data, name="other classes")
    qtbot.waitUntil(lambda: bool(errors), timeout=WAIT)
    dock.slider.setValue(3)
    qtbot.wait(100)
    assert len(errors) == 1
    assert "unknown class 5" in errors[0]
    dock.labels.value = mask
    settle(qtbot, dock)
    usable(dock, qtbot, scan)
    assert len(errors) == 1


def test_a_constant_image(opened, errors, qtbot):
    viewer, dock, image, _ = opened
    scan = dock.session.scan
    dock.scan.value = viewer.add_image(np.full((48, 64, 3), 7, np.uint8), rgb=True, name="grey")
    qtbot.waitUntil(lambda: bool(errors), timeout=WAIT)
    assert len(errors) == 1
    assert "every voxel has the same value" in errors[0]
    dock.scan.value = image
    settle(qtbot, dock)
    usable(dock, qtbot, scan)
    assert len(errors) == 1


def test_models_for_other_channels(opened, models, volume, errors, qtbot):
    _, dock, image, mask = opened
    scan = dock.session.scan
    dock.choose(image, mask, **models("cardiac"))
    qtbot.waitUntil(lambda: bool(errors), timeout=WAIT)
    assert len(errors) == 1
    assert "expects 1 channel" in errors[0]
    dock.choose(image, mask, **models("polyp"))
    settle(qtbot, dock)
    usable(dock, qtbot, scan)
    assert len(errors) == 1


def test_a_model_whose_weights_are_missing(opened, models, errors, tmp_path, qtbot):
    _, dock, *_ = opened
    lost = shutil.copytree(models("polyp")["undefended"], tmp_path / "lost")
    (lost / "model.safetensors").unlink()
    dock.session.undefended = lost
    qtbot.waitUntil(lambda: bool(errors), timeout=WAIT)
    assert len(errors) == 1
    assert "holds no model.safetensors" in errors[0]
    dock.session.undefended = models("polyp")["undefended"]
    settle(qtbot, dock)
    assert dock.explorer.opened("undefended") is not None


def test_a_folder_that_is_no_model_changes_nothing(opened, errors, tmp_path, qtbot):
    _, dock, image, mask = opened
    before = dock.session.undefended, dock.session.reference, len(dock.explorer.results.views)
    with pytest.raises(CeaseError):
        dock.explorer.choose(image, mask, {"undefended": tmp_path, "defended": None})
    dock.choose(image, mask, tmp_path)
    assert len(errors) == 1
    assert (dock.session.undefended, dock.session.reference, len(dock.explorer.results.views)) == before


def usable(dock, qtbot, scan):
    assert dock.session.scan is scan
    dock.slider.setValue(0)
    settle(qtbot, dock)
    clean = masks(dock)["undefended"]
    dock.slider.setValue(16)
    settle(qtbot, dock)
    assert (masks(dock)["undefended"] != clean).any()


# --- the end ---


@pytest.fixture
def running(dock_in, picture, show_layers, choose, qtbot):
    """A napari window with an attack that takes long."""
    viewer, dock = dock_in()
    dock.session.tune(steps=1000)
    image, mask = show_layers(viewer, *picture)
    choose(dock, "polyp")
    qtbot.waitUntil(lambda: bool(dock.explorer.results.opened), timeout=WAIT)
    assert len(alive()) == 1
    return viewer, dock, [image, mask]


def holder_of(viewer, dock):
    return next(x for x in viewer.window._qt_window.findChildren(QDockWidget) if x.widget() is dock)


@pytest.mark.parametrize("by", ["menu", "cross"])
def test_closing_the_dock_while_it_runs_and_opening_it_again(running, choose, qtbot, by):
    from napari_cease.widgets.explore import AttackExplorer

    viewer, dock, mine = running
    mine.append(viewer.add_points(np.zeros((1, 2))))
    if by == "menu":
        viewer.window.remove_dock_widget(dock)
    else:
        holder_of(viewer, dock).destroyOnClose()
    qtbot.waitUntil(lambda: not alive("cease-"), timeout=WAIT)
    assert [x for x in viewer.layers if x in mine] == list(viewer.layers)
    again = AttackExplorer(viewer)
    again.session.tune(steps=2)
    viewer.window.add_dock_widget(again, name="Attack explorer", area="right")
    choose(again, "polyp")
    settle(qtbot, again)
    assert len(ours(viewer)) == 2 * len(OURS) + 2
    again.shutdown()


def test_floating_and_hiding_the_dock_ends_nothing(running, qtbot):
    viewer, dock, _ = running
    holder = holder_of(viewer, dock)
    for change in (lambda: holder.setFloating(True), lambda: holder.setFloating(False), holder.hide, holder.show):
        change()
        qtbot.wait(20)
        assert len(alive()) == 1
        assert ours(viewer)
    dock.session.tune(steps=2)
    qtbot.waitUntil(lambda: dock.explorer.settled and dock.session.rule.steps == 2, timeout=WAIT)
    usable(dock, qtbot, dock.session.scan)


def test_closing_the_window_while_it_runs(running, qtbot):
    viewer, dock, _ = running
    viewer.close()
    del dock
    qtbot.waitUntil(lambda: not alive("cease-"), timeout=WAIT)
