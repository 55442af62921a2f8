"""Which mask the attack wants: any other, a ready-made one, or one of the user's own."""

from __future__ import annotations

import numpy as np
import pytest
from napari.layers import Labels, Layer

from cease_core.scan import Scan
from napari_cease.readers import scan_layers
from napari_cease.trainer import labelled

WAIT = 30_000


def figure(dock, key, side="undefended"):
    return dock.figures[key, side].text()


def test_by_default_there_is_no_target(opened):
    _, dock, *_ = opened
    assert dock.target.currentText().strip() == "leave the mask (untargeted)"
    assert not any(widget.isVisible() for widget in dock.target_row)
    assert not dock.goal.isExpanded()


def test_with_a_target_the_figures_say_how_close_it_is(opened, settled):
    _, dock, *_ = opened
    dock.session.tune(steps=20)
    dock.target.value = "erase"
    dock.slider.setValue(16)
    settled(dock)
    assert all(widget.isVisible() for widget in dock.target_row)
    view, opened_ = dock.explorer.view("undefended"), dock.explorer.opened("undefended")
    assert figure(dock, "target") == f"{view.target_dice:.3f}"
    assert f"target {view.target_dice:.2f}" in dock.explorer.panes.find("mask", "undefended").name
    # Erasing takes pixels away and adds none.
    assert (view.mask > 0).sum() < (opened_.mask > 0).sum()
    assert not ((view.mask > 0) & (opened_.mask == 0)).any()
    dock.target.value = None
    settled(dock)
    assert not any(widget.isVisible() for widget in dock.target_row)
    assert dock.explorer.view("undefended").target_dice is None


def test_a_labels_layer_can_be_the_target_and_its_edits_count(opened, settled, qtbot, errors):
    viewer, dock, _, mask = opened
    wish = viewer.add_labels(np.zeros_like(mask.data), name="wish")
    assert "own mask: wish" in [dock.target.itemText(i).strip() for i in range(dock.target.count())]
    dock.target.value = wish
    settled(dock)
    dock.slider.setValue(16)
    before = dock.explorer.view("undefended")
    wish.data = mask.data.copy()
    qtbot.waitUntil(lambda: bool(dock.session.target.labels.any()), timeout=WAIT)
    settled(dock)
    after = dock.explorer.view("undefended")
    # The wish is now what the models find anyway.
    assert after.target_dice == pytest.approx(after.dice)
    assert after.dice > before.dice
    viewer.layers.remove(wish)
    assert dock.session.target is None
    settled(dock)
    assert errors == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [(lambda mask: np.ones((7, 9), int), "shape (7, 9)"), (lambda mask: 5 * mask, "holds class 5")],
)
def test_a_target_that_does_not_fit_is_a_sentence_in_the_note(opened, qtbot, errors, values, sentence):
    viewer, dock, _, mask = opened
    dock.target.value = viewer.add_labels(values(mask.data), name="wrong")
    qtbot.waitUntil(lambda: sentence in dock.note.text() and "there is no target" in dock.note.text(), timeout=WAIT)
    assert dock.session.target is None
    assert errors == []


def test_an_attack_that_needs_a_target_gets_one_and_says_so(opened, settled, qtbot, errors):
    _, dock, *_ = opened
    dock.attack.value = "asma"
    assert dock.session.target == "erase"
    assert dock.target.value == "erase"
    qtbot.waitUntil(lambda: "needs a mask to reach" in dock.note.text(), timeout=WAIT)
    settled(dock)
    dock.target.value = None
    assert dock.session.attack == "pgd"
    qtbot.waitUntil(lambda: "the attack is now PGD" in dock.note.text(), timeout=WAIT)
    settled(dock)
    assert errors == []


def test_with_a_target_only_attacks_that_reach_one_are_offered(opened, settled, qtbot, errors):
    _, dock, *_ = opened
    assert "feature" in dock.attack.values
    dock.attack.value = "feature"
    dock.target.value = "erase"
    assert dock.session.attack == "pgd"
    assert "feature" not in dock.attack.values
    qtbot.waitUntil(lambda: "cannot reach a mask" in dock.note.text(), timeout=WAIT)
    settled(dock)
    assert errors == []


def test_results_of_one_goal_are_not_taken_for_those_of_another(opened, settled):
    _, dock, *_ = opened
    key = dock.explorer.key
    dock.target.value = "erase"
    assert dock.explorer.key == key._replace(target="erase")
    assert not dock.explorer.results.views
    settled(dock)
    dock.target.value = None
    assert dock.explorer.key == key
    assert len(dock.explorer.results.views) == 34
    settled(dock)


def test_a_mask_that_was_opened_as_a_scan_and_converted_can_be_the_reference(docked, volume) -> None:
    viewer, dock = docked()
    scan, labels = volume
    opened = Scan(labels[None].astype("float32"), scan.affine, name="mask")
    for data in (*scan_layers(scan), *scan_layers(opened)):
        viewer.add_layer(Layer.create(*data))
    image = viewer.layers[-1]
    # What napari's "Convert to Labels" does: the data as integers, all else as it was.
    viewer.add_layer(Labels(image.data.astype(int), name="converted", metadata=image.metadata, affine=image.affine))
    assert "converted" in [name for name, _ in dock._labels_choices()]
    assert [mask.name for _, mask in labelled(viewer)] == ["converted"] * 2
