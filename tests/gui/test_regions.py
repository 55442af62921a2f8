"""Where the scan may change: chosen, drawn, edited and deleted."""

from __future__ import annotations

import numpy as np
import pytest
from napari.layers import Labels, Shapes

from cease_core.errors import CeaseError
from napari_cease.geometry import layer_geometry
from napari_cease.jobs.exploration import SIDES
from napari_cease.regions import region_of_layer

WAIT = 30_000


def box(top, left, bottom, right, *slice_index):
    return np.array([[*slice_index, y, x] for y, x in ((top, left), (top, right), (bottom, right), (bottom, left))])


def extent(mask):
    where = np.argwhere(mask)
    return where.min(axis=0).tolist(), where.max(axis=0).tolist()


# --- what a layer marks ---


@pytest.mark.parametrize("kind", ["rectangle", "polygon", "ellipse"])
def test_a_shape_on_one_slice_of_a_volume_marks_that_slice(volume, kind):
    scan, _ = volume
    drawn = Shapes([box(4, 6, 20, 30, 2.0)], shape_type=kind, **layer_geometry(scan))
    inside = region_of_layer(drawn, scan)
    assert np.flatnonzero(inside.any(axis=(1, 2))).tolist() == [2]
    if kind == "ellipse":
        assert np.abs(np.subtract(extent(inside[2]), ([4, 6], [20, 30]))).max() <= 1
        assert inside.sum() == pytest.approx(np.pi / 4 * 16 * 24, rel=0.08)
    else:
        assert extent(inside[2]) == ([4, 6], [20, 30])
        assert inside.sum() == 17 * 25


def test_shapes_on_several_slices_add_up(volume):
    scan, _ = volume
    drawn = Shapes([box(4, 6, 8, 10, 0.0), box(4, 6, 8, 10, 3.0), box(6, 8, 12, 12, 3.0)], **layer_geometry(scan))
    assert region_of_layer(drawn, scan).sum(axis=(1, 2)).tolist() == [25, 0, 0, 25 + 35 - 9, 0]


def test_a_shape_in_another_plane_marks_that_plane(volume):
    scan, _ = volume
    upright = np.array([[1.0, 4, 7], [1, 9, 7], [3, 9, 7], [3, 4, 7]])
    inside = region_of_layer(Shapes([upright], **layer_geometry(scan)), scan)
    assert extent(inside) == ([1, 4, 7], [3, 9, 7])
    assert inside.sum() == 3 * 6


def test_shapes_of_a_flat_layer_hold_for_every_slice(volume):
    scan, _ = volume
    flat = Shapes([box(4, 6, 8, 10)], scale=scan.spacing[1:], translate=scan.translate[1:])
    assert region_of_layer(flat, scan).sum(axis=(1, 2)).tolist() == [25] * 5


def test_a_layer_lies_where_napari_shows_it(volume):
    scan, _ = volume
    # Drawn in millimetres, beside the scan's own grid.
    corners = box(4, 6, 8, 10, 2.0) * scan.spacing + scan.translate
    assert extent(region_of_layer(Shapes([corners]), scan)) == ([2, 4, 6], [2, 8, 10])
    mask = np.zeros(scan.shape, np.uint8)
    mask[2, 4:9, 6:11] = 3
    here = layer_geometry(scan)
    assert extent(region_of_layer(Labels(mask, **here), scan)) == ([2, 4, 6], [2, 8, 10])
    here["translate"] = np.add(scan.translate, (scan.spacing[0], -2 * scan.spacing[1], 0))
    assert extent(region_of_layer(Labels(mask, **here), scan)) == ([3, 2, 6], [3, 6, 10])


@pytest.mark.parametrize(
    ("corners", "sentence"),
    [
        (None, "marks no voxel"),
        (box(4, 6, 8, 10, 99.0), "marks no voxel"),
        (np.array([[0.0, 4, 6], [1, 4, 12], [3, 10, 12], [2, 10, 6]]), "spans several slices"),
    ],
)
def test_shapes_that_mark_nothing_are_one_sentence(volume, corners, sentence):
    scan, _ = volume
    drawn = Shapes([] if corners is None else [corners], ndim=3, **layer_geometry(scan))
    with pytest.raises(CeaseError, match=sentence):
        region_of_layer(drawn, scan)


def test_labels_of_another_shape_are_one_sentence(volume):
    with pytest.raises(CeaseError, match=r"shape \(7, 9\).*draw it on a labels layer of this scan"):
        region_of_layer(Labels(np.ones((7, 9), int)), volume[0])


# --- the region in the dock ---


@pytest.fixture
def marked(opened, settled):
    """The picture, of which a labels layer leaves a box to change."""
    viewer, dock, *_ = opened
    where = np.zeros(dock.session.scan.shape, np.uint8)
    where[10:30, 20:40] = 1
    layer = viewer.add_labels(where, name="here")
    dock.region.value = layer
    settled(dock)
    dock.slider.setValue(16)
    return viewer, dock, layer


def perturbations(dock):
    return [dock.explorer.view(side).perturbation for side in SIDES]


def test_nothing_changes_outside_the_labels(marked):
    _, dock, layer = marked
    outside = layer.data == 0
    for perturbation in perturbations(dock):
        assert not perturbation[:, outside].any()
        assert perturbation[:, ~outside].any()
    assert "in here" in dock.goal.text()


def test_an_edit_of_the_region_is_attacked_anew(marked, settled, qtbot):
    _, dock, layer = marked
    layer.paint((5, 5), 1)
    qtbot.waitUntil(lambda: bool(dock.session.region.inside[5, 5]), timeout=WAIT)
    settled(dock)
    assert any(p[:, 5, 5].any() for p in perturbations(dock))
    assert not any(p[:, 40, 5].any() for p in perturbations(dock))


def test_an_emptied_region_is_waited_for_and_nothing_is_lost(marked, settled, qtbot, errors):
    _, dock, layer = marked
    before, views = dock.session.region, len(dock.explorer.results.views)
    layer.data = np.zeros_like(layer.data)
    qtbot.waitUntil(lambda: "here marks no voxel" in dock.note.text(), timeout=WAIT)
    assert dock.session.region is before
    assert len(dock.explorer.results.views) == views
    layer.data = np.ones_like(layer.data)
    qtbot.waitUntil(lambda: bool(dock.session.region.inside.all()), timeout=WAIT)
    settled(dock)
    assert "marks no voxel" not in dock.note.text()
    assert errors == []


def test_shapes_are_chosen_first_and_drawn_then(opened, settled, qtbot, errors):
    viewer, dock, *_ = opened
    drawn = viewer.add_shapes(name="drawn", ndim=2)
    dock.region.value = drawn
    qtbot.waitUntil(lambda: "drawn marks no voxel" in dock.note.text(), timeout=WAIT)
    assert dock.session.region is None
    drawn.add_rectangles(box(10, 20, 29, 39))
    qtbot.waitUntil(lambda: dock.session.region is not None, timeout=WAIT)
    settled(dock)
    assert extent(dock.session.region.inside) == ([10, 20], [29, 39])
    drawn.translate = (0, 5)
    qtbot.waitUntil(lambda: extent(dock.session.region.inside) == ([10, 25], [29, 44]), timeout=WAIT)
    settled(dock)
    assert errors == []


def test_labels_that_do_not_fit_are_a_sentence_in_the_note(marked, qtbot, errors):
    viewer, dock, _ = marked
    before = dock.session.region
    dock.region.value = viewer.add_labels(np.ones((7, 9), int), name="wrong")
    qtbot.waitUntil(lambda: "wrong: the region has shape (7, 9)" in dock.note.text(), timeout=WAIT)
    assert "the region is still here" in dock.note.text()
    assert dock.session.region is before
    assert errors == []


def test_a_deleted_region_is_everywhere_again_and_what_was_known_is_shown(marked, settled):
    viewer, dock, layer = marked
    viewer.layers.remove(layer)
    assert dock.region.value is None
    assert dock.session.region is None
    settled(dock)
    assert all(p[:, 40, 5].any() for p in perturbations(dock))


def test_a_slice_that_the_region_does_not_reach_stays_as_it_is(opened_volume, settled, qtbot, errors):
    viewer, dock, *_ = opened_volume
    scan = dock.session.scan
    index = dock.session.index
    drawn = viewer.add_shapes([box(4, 6, 20, 30, float(index))], name="drawn", **layer_geometry(scan))
    dock.region.value = drawn
    dock.slider.setValue(16)
    settled(dock)
    assert all(p.any() for p in perturbations(dock))
    viewer.dims.set_current_step(0, index + 1)
    qtbot.waitUntil(lambda: dock.session.index == index + 1, timeout=WAIT)
    settled(dock)
    assert not any(p.any() for p in perturbations(dock))
    for side in SIDES:
        _, dice = dock.explorer.results.curve(side)
        assert dice == [dock.explorer.opened(side).dice] * 17
    qtbot.waitUntil(lambda: "drawn marks nothing here" in dock.note.text(), timeout=WAIT)
    assert errors == []


def test_the_whole_volume_changes_only_within_the_region(opened_volume, settled):
    viewer, dock, *_ = opened_volume
    scan = dock.session.scan
    dock.region.value = viewer.add_shapes([box(4, 6, 20, 30, 1.0)], name="drawn", **layer_geometry(scan))
    dock.slider.setValue(8)
    settled(dock)
    dock.whole.click()
    settled(dock)
    for perturbation in perturbations(dock):
        assert perturbation.shape == scan.image.shape
        assert np.flatnonzero(perturbation.any(axis=(0, 2, 3))).tolist() == [1]


def test_another_scan_has_no_region_yet(marked, volume, show_layers):
    viewer, dock, _ = marked
    image, _ = show_layers(viewer, *volume)
    dock.scan.value = image
    assert dock.session.region is None
    assert dock.region.value is None


def test_results_for_a_region_that_was_edited_since_are_let_go_of(marked, settled, qtbot):
    _, dock, layer = marked
    kept = {key.region for key in dock.explorer._known}
    assert kept == {None, dock.session.region}
    before = dock.session.region
    layer.paint((5, 5), 1)
    qtbot.waitUntil(lambda: dock.session.region is not before, timeout=WAIT)
    settled(dock)
    assert {key.region for key in dock.explorer._known} == {None, dock.session.region}
