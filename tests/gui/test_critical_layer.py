"""The critical ε map: how small an ε flips each voxel, as the ladder finds out."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from napari_cease.jobs.exploration import SIDES
from napari_cease.layers import role_of

WAIT = 30_000


def maps(dock):
    return {side: dock.explorer.panes.find("critical", side) for side in SIDES}


def turn(dock):
    QTest.mouseClick(dock.critical, Qt.MouseButton.LeftButton, pos=QPoint(8, dock.critical.height() // 2))


def smallest_levels(dock, side):
    """By the definition: the lowest level whose mask differs from the clean one."""
    results = dock.explorer.results
    clean = results.opened[side].mask
    levels = np.full(clean.shape, np.nan, np.float32)
    for level in range(dock.session.top, 0, -1):
        levels[results.views[side, level].mask != clean] = level
    return levels


def test_it_is_off_until_it_is_asked_for(opened):
    viewer, dock, *_ = opened
    before = list(viewer.layers)
    assert not dock.critical.isChecked()
    assert maps(dock) == dict.fromkeys(SIDES)
    assert dock.explorer.results.critical == {}
    turn(dock)
    assert len(viewer.layers) == len(before) + 2
    turn(dock)
    assert list(viewer.layers) == before


def test_each_pane_shows_the_smallest_epsilon_that_flips_a_voxel(opened):
    viewer, dock, image, _ = opened
    viewer.layers.selection = {image}
    turn(dock)
    for side, layer in maps(dock).items():
        levels = smallest_levels(dock, side)
        np.testing.assert_allclose(layer.data, levels, rtol=1e-5)
        assert np.isnan(levels).any()
        assert 1 <= np.nanmin(levels) < np.nanmax(levels) <= 16
        assert tuple(layer.contrast_limits) == (0, 16)
        assert layer.name == f"critical ε in 1/255 ({side})"
        assert layer.colorbar.visible
    # The undefended model gives way first, and what the user had selected stays selected.
    undefended, defended = (np.nan_to_num(maps(dock)[side].data, nan=17).mean() for side in ("undefended", "defended"))
    assert undefended < defended
    assert viewer.layers.selection == {image}


def test_each_map_lies_in_its_own_pane(opened):
    viewer, dock, *_ = opened
    turn(dock)
    layers = list(viewer.layers)
    stride = viewer.canvas.grid.stride
    assert stride == layers.index(dock.explorer.panes.find("scan twin"))
    at = {side: layers.index(layer) for side, layer in maps(dock).items()}
    assert at["undefended"] < stride <= at["defended"]
    for side in SIDES:
        assert at[side] == layers.index(dock.explorer.panes.find("mask", side)) + 1


def test_the_most_fragile_voxels_are_the_brightest_and_the_others_unseen(opened):
    _, dock, *_ = opened
    turn(dock)
    scale = maps(dock)["undefended"].colormap
    seen = scale.map(np.linspace(0, 1, 9))[:, :3] @ (0.21, 0.72, 0.07)
    assert (np.diff(seen) < 0).all()
    assert scale.map(np.array([np.nan]))[0, 3] == 0


def test_it_fills_in_place_from_the_ladders_own_results(opened, settled, qtbot):
    _, dock, *_ = opened
    turn(dock)
    dock.session.tune(steps=3000)
    qtbot.waitUntil(lambda: len(dock.explorer.results.views) > 8, timeout=WAIT)
    # Nothing but previews so far: they are not what the attack has found.
    assert all(v.preview for (_, level), v in dock.explorer.results.views.items() if level)
    dock.explorer.draw()
    layers, arrays = maps(dock), {side: layer.data for side, layer in maps(dock).items()}
    assert all(np.isnan(data).all() for data in arrays.values())
    dock.session.tune(steps=4)
    settled(dock)
    assert maps(dock) == layers
    for side, layer in layers.items():
        assert layer.data is arrays[side]
        np.testing.assert_allclose(layer.data, smallest_levels(dock, side), rtol=1e-5)


def test_another_top_is_another_scale(opened, settled):
    _, dock, *_ = opened
    turn(dock)
    dock.top.value = 6
    settled(dock)
    for side, layer in maps(dock).items():
        assert tuple(layer.contrast_limits) == (0, 6)
        np.testing.assert_allclose(layer.data, smallest_levels(dock, side), rtol=1e-5)


def test_another_slice_empties_the_one_before(opened_volume, settled, qtbot):
    viewer, dock, *_ = opened_volume
    turn(dock)
    before = dock.session.index
    viewer.dims.set_current_step(0, before + 1)
    qtbot.waitUntil(lambda: dock.explorer._running is not None, timeout=WAIT)
    settled(dock)
    for side, layer in maps(dock).items():
        filled = [bool(np.isfinite(part).any()) for part in layer.data]
        assert [i for i, full in enumerate(filled) if full] == [before + 1]
        np.testing.assert_allclose(layer.data[before + 1], smallest_levels(dock, side), rtol=1e-5)


@pytest.mark.parametrize("split", [True, False])
def test_it_stays_when_the_panes_are_laid_out_again(opened, settled, split):
    viewer, dock, *_ = opened
    turn(dock)
    dock.split.setChecked(not split)
    dock.split.setChecked(split)
    settled(dock)
    for side, layer in maps(dock).items():
        np.testing.assert_allclose(layer.data, smallest_levels(dock, side), rtol=1e-5)
    assert sum(role_of(layer)[0] == "critical" for layer in viewer.layers) == 2


def test_a_deleted_map_is_done_without(opened, settled):
    viewer, dock, *_ = opened
    turn(dock)
    viewer.layers.remove(maps(dock)["undefended"])
    dock.attack.value = "fgsm"
    settled(dock)
    np.testing.assert_allclose(maps(dock)["defended"].data, smallest_levels(dock, "defended"), rtol=1e-5)
