"""What is really on the screen: the window is drawn, and its pixels are looked at."""

from __future__ import annotations

import numpy as np
import pytest

from cease_core.models.card import PALETTE
from napari_cease.jobs.exploration import SIDES

WAIT = 20_000


@pytest.fixture
def window(dock_in, picture, show_layers, library, qtbot):
    viewer, dock = dock_in(show=True)
    viewer.window._qt_window.resize(1500, 900)  # panes with room for their titles
    dock.session.tune(steps=2)
    image, mask = show_layers(viewer, *picture)
    dock.choose(image, mask, *(library / f"polyp-{side}" for side in SIDES))
    dock.slider.setValue(16)
    qtbot.waitUntil(lambda: dock.explorer.settled and bool(dock.explorer.results.opened), timeout=WAIT)
    qtbot.waitUntil(lambda: "16/255" in dock.explorer.panes.find("mask", "defended").name, timeout=WAIT)
    return viewer, dock


def canvas(viewer, qtbot):
    qtbot.wait(150)  # the view is fitted once the panes have their size
    return viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)


def halves(picture):
    middle = picture.shape[1] // 2
    return picture[:, :middle], picture[:, middle:]


def has_colour(picture, colour, tolerance=40):
    return (np.abs(picture - np.array(colour)).max(axis=-1) <= tolerance).sum()


def test_masks_map_and_titles_are_on_the_screen(window, qtbot):
    viewer, dock = window
    panes = dock.explorer.panes
    with_all = canvas(viewer, qtbot)
    assert with_all.std() > 10

    # The perturbation map changes both panes.
    dock.perturbation.setChecked(False)
    without_map = canvas(viewer, qtbot)
    for before, after in zip(halves(with_all), halves(without_map), strict=True):
        assert (np.abs(before - after).max(axis=-1) > 20).sum() > 200

    # A class has the colour of its card: opaque, so that it can be told from the scan below.
    for side in SIDES:
        panes.find("mask", side).opacity = 1.0
    orange = tuple(int(PALETTE[0][i : i + 2], 16) for i in (1, 3, 5))
    opaque = canvas(viewer, qtbot)
    for half in halves(opaque):
        assert has_colour(half, orange) > 500

    # Each pane carries its title.
    for side in SIDES:
        panes.find("mask", side).name_overlay.visible = False
    untitled = canvas(viewer, qtbot)
    for before, after in zip(halves(opaque), halves(untitled), strict=True):
        assert (np.abs(before - after).max(axis=-1) > 60).sum() > 20

    # And the masks are where the colour was.
    for side in SIDES:
        panes.find("mask", side).visible = False
    assert has_colour(canvas(viewer, qtbot), orange) < has_colour(untitled, orange) / 4
