"""The rows below the scan's box: a CT's window, a series' frame; each only where it means something."""

from __future__ import annotations

import threading
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from qtpy.QtWidgets import QApplication

from cease_core.io import WINDOWS
from napari_cease.readers import open_scan, read_layers

SHAPE = (40, 32, 5)


def rows(dock):
    """Names of the rows that are there."""
    view = dock.scan_view
    return [name for name, box in (("Window", view.window), ("Frame", view.frame)) if not box.isHidden()]


def pick(dock, name):
    """Choose a window as a user does."""
    box = dock.scan_view.window
    index = next(i for i in range(box.count()) if box.itemText(i).startswith(name))
    box.setCurrentIndex(index)
    box.activated.emit(index)


@pytest.fixture
def ct(volume):
    scan, labels = volume
    return replace(scan, unit="HU", window=WINDOWS["soft tissue"].window), labels


@pytest.fixture
def bold(tmp_path):
    """A series of three volumes, each a constant above the one before."""
    x, y, z = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    frames = np.stack([200 + 10 * x + 5 * z + 3 * y + 50 * t for t in range(3)], axis=-1)
    nib.save(nib.Nifti1Image(frames.astype(np.int16), np.diag([2.0, 1.5, 8, 1])), tmp_path / "bold.nii.gz")
    return tmp_path / "bold.nii.gz"


def add(viewer, path):
    (data,) = read_layers(path)
    return viewer._add_layer_from_data(*data)[0]


# --- windows ---


def test_a_scan_without_a_unit_has_neither_row(docked, volume, show_layers):
    viewer, dock = docked()
    assert rows(dock) == []
    show_layers(viewer, *volume)
    assert rows(dock) == []


def test_a_ct_offers_the_presets_and_shows_which_one_it_is_in(docked, ct, show_layers):
    viewer, dock = docked()
    show_layers(viewer, *ct)
    assert rows(dock) == ["Window"]
    box = dock.scan_view.window
    assert [box.itemText(i).split(" (")[0] for i in range(box.count())] == list(WINDOWS)
    assert box.currentText() == "soft tissue (−160 to 240 HU)"


def test_a_window_is_for_the_eye_alone(docked, ct, show_layers, choose, settled):
    viewer, dock = docked()
    image, _ = show_layers(viewer, *ct)
    choose(dock, "cardiac")
    settled(dock)
    seen = dict(dock.explorer.results.opened)
    pick(dock, "lung")
    panes = dock.explorer.panes
    shown = [image, panes.find("scan twin"), *(panes.find("adversarial", s) for s in ("undefended", "defended"))]
    assert [tuple(layer.contrast_limits) for layer in shown] == [(-1350, 150)] * 4
    # What the models answered, and the window they see, are what they were.
    assert dock.explorer.settled
    assert dock.explorer.results.opened == seen
    assert dock.session.scan.window == WINDOWS["soft tissue"].window
    # Panes that are laid out anew come in the same window.
    dock.session.side_by_side = False
    assert tuple(panes.find("adversarial", "defended").contrast_limits) == (-1350, 150)


def test_limits_that_were_set_by_hand_are_no_preset(docked, ct, show_layers):
    viewer, dock = docked()
    image, _ = show_layers(viewer, *ct)
    image.contrast_limits = (-100, 300)
    box = dock.scan_view.window
    assert box.currentText() == "adjusted (−100 to 300 HU)"
    pick(dock, "bone")
    assert box.currentText() == "bone (−500 to 1300 HU)"
    assert box.count() == len(WINDOWS)


def test_the_row_follows_the_scan_that_is_chosen(docked, ct, volume, show_layers):
    viewer, dock = docked()
    show_layers(viewer, *ct)
    other, _ = show_layers(viewer, volume[0])
    dock.scan.value = other
    assert rows(dock) == []
    dock.scan.value = viewer.layers[0]
    assert rows(dock) == ["Window"]


# --- frames ---


def test_a_frame_is_read_into_the_layer_and_attacked(docked, bold, choose, settled, qtbot):
    viewer, dock = docked()
    layer = add(viewer, bold)
    choose(dock, "cardiac")
    settled(dock)
    first = layer.data.copy()
    assert rows(dock) == ["Frame"]
    spin = dock.scan_view.frame
    assert (spin.value(), spin.minimum(), spin.maximum()) == (0, 0, 2)
    with qtbot.waitSignal(dock.scan_view.shown, timeout=10_000):
        spin.setValue(2)
    np.testing.assert_array_equal(layer.data, first + 100)
    assert layer.name == "bold, frame 2"
    qtbot.waitUntil(lambda: dock.session.scan.metadata["frame"] == 2, timeout=10_000)
    settled(dock)
    np.testing.assert_array_equal(dock.session.scan.image[0], first + 100)
    assert spin.value() == 2
    np.testing.assert_array_equal(dock.explorer.panes.find("scan twin").data, first + 100)


def test_the_last_of_several_wishes_counts(docked, bold, qtbot):
    viewer, dock = docked()
    layer = add(viewer, bold)
    for frame in (1, 2, 1):
        dock.scan_view.frame.setValue(frame)
    qtbot.waitUntil(lambda: layer.name == "bold, frame 1", timeout=10_000)
    qtbot.waitUntil(lambda: dock.session.scan.metadata["frame"] == 1, timeout=10_000)
    assert dock.scan_view.frame.value() == 1


def test_a_scan_that_is_left_while_a_frame_is_read_keeps_the_one_it_shows(
    docked, bold, show_layers, volume, qtbot, monkeypatch
):
    go_on = threading.Event()

    def slowly(*args):
        go_on.wait(10)
        return open_scan(*args)

    monkeypatch.setattr("napari_cease.widgets.scan_view.open_scan", slowly)
    viewer, dock = docked()
    layer = add(viewer, bold)
    other, _ = show_layers(viewer, *volume)
    view = dock.scan_view
    dock.scan.value = layer
    view.frame.setValue(2)
    dock.scan.value = other
    dock.scan.value = layer
    assert view.frame.value() == 0
    with qtbot.waitSignal(view._worker.finished, timeout=10_000):
        go_on.set()
    QApplication.processEvents()
    assert (layer.name, view.frame.value()) == ("bold, frame 0", 0)
    # It can be wanted again.
    with qtbot.waitSignal(view.shown, timeout=10_000):
        view.frame.setValue(2)
    qtbot.waitUntil(lambda: dock.session.scan.metadata["frame"] == 2, timeout=10_000)
    assert (layer.name, view.frame.value()) == ("bold, frame 2", 2)


def test_a_file_that_is_gone_is_said_and_the_frame_stays(docked, bold, errors, qtbot):
    viewer, dock = docked()
    layer = add(viewer, bold)
    bold.unlink()
    dock.scan_view.frame.setValue(1)
    qtbot.waitUntil(lambda: bool(errors), timeout=10_000)
    assert "does not exist" in errors[0]
    assert dock.scan_view.frame.value() == 0
    assert layer.name == "bold, frame 0"
