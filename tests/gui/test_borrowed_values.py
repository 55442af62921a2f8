"""Layers over a large scan share its values until they have some of their own, and never change it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from napari.components import ViewerModel

from cease_core.evaluation import Distortion
from cease_core.models.checkpoint import load_card
from napari_cease.jobs.exploration import SIDES, Opened, View
from napari_cease.layers import Panes


@pytest.fixture
def panes(volume, show_layers, library):
    """Both panes over a scan that is a read-only view, as one mapped from a file is."""
    scan, labels = volume
    image = scan.image[..., ::-1]
    image.flags.writeable = False
    scan = replace(scan, image=image)
    viewer = ViewerModel()
    made = Panes(viewer)
    cards = {side: load_card(library / f"cardiac-{side}") for side in SIDES}
    made.open(scan, *show_layers(viewer, scan, labels), cards, split=True)
    return made


def attacked(panes, index=2, by=0.25):
    scan = panes.scan
    part = scan.shape[1:]
    view = View(
        "undefended",
        0.1,
        np.ones(part, np.int32),
        np.full((1, *part), by, np.float32),
        0.5,
        Distortion(0.1, 0.1, 30.0, 0.9),
        False,
    )
    place = (index, *(slice(0, n) for n in part))
    panes.show(view, Opened("undefended", place, scan.window, "labels", view.mask, 1.0), limit=1.0, title="a title")


def test_nothing_is_copied_for_layers_that_nobody_looks_at(panes):
    attacked(panes)
    for side in SIDES:
        assert np.shares_memory(panes.find("adversarial", side).data, panes.scan.image)
    assert np.shares_memory(panes.find("scan twin").data, panes.scan.image)


def test_an_attacked_scan_that_is_shown_has_values_of_its_own(panes):
    before = panes.scan.image.copy()
    attacked(panes, index=2)
    panes.set_visible("adversarial", True)
    attacked(panes, index=3)
    shown = panes.find("adversarial", "undefended").data
    np.testing.assert_array_equal(panes.scan.image, before)
    np.testing.assert_allclose(shown[3] - before[0, 3], 0.25 * panes.scan.window.width, rtol=1e-4)
    np.testing.assert_array_equal(np.delete(shown, 3, axis=0), np.delete(before[0], 3, axis=0))
