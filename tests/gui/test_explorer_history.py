"""Earlier runs and choices: undone, redone, and chosen again without computing them anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from napari.layers import Image
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_cease.history import KEPT_RUNS, Choices, Run, Runs, Timeline
from napari_cease.widgets import history as panel

WAIT = 30_000
CTRL = Qt.KeyboardModifier.ControlModifier
SHIFT = Qt.KeyboardModifier.ShiftModifier


def choices(**changes):
    given = {"scan": None, "labels": None, "undefended": Path("a"), "defended": None, "attack": "pgd"}
    return Choices(**(given | {"parameters": {}, "target": None, "region": None, "top": 16} | changes))


def texts(dock):
    tree = dock.history.list
    return [[tree.topLevelItem(i).text(c) for c in range(4)] for i in range(tree.topLevelItemCount())]


@pytest.fixture
def noted(opened, settled, qtbot):
    """The small picture under attack, with its run in the list."""
    _, dock, *_ = opened

    def wait(runs):
        settled(dock)
        qtbot.waitUntil(lambda: len(texts(dock)) == runs and not dock.history._settle.isActive(), timeout=WAIT)

    wait(1)
    return dock, wait


# --- a line of choices ---


def test_undo_and_redo_go_along_the_line_and_a_new_choice_ends_it():
    line = Timeline()
    made = [choices(attack=attack) for attack in ("pgd", "fgsm", "noise")]
    assert [line.note(one) for one in made] == [True] * 3
    assert line.step(-1) is made[1]
    assert line.step(-1) is made[0]
    assert line.step(-1) is None
    assert not line.can_undo
    assert line.step(1) is made[1]
    line.note(choices(attack="sea"))
    assert not line.can_redo
    assert line.step(-1) is made[1]


def test_looking_elsewhere_is_no_step():
    line = Timeline()
    line.note(choices(level=0))
    assert not line.note(choices(level=8, index=2))
    assert not line.can_undo
    line.note(choices(attack="fgsm"))
    assert line.step(-1) == choices(level=8, index=2)


def test_a_line_without_a_layer_that_is_gone_keeps_its_place():
    gone, here = Image(np.zeros((2, 2))), Image(np.zeros((2, 2)))
    line = Timeline()
    for scan, attack in ((here, "pgd"), (gone, "pgd"), (here, "fgsm"), (gone, "fgsm")):
        line.note(choices(scan=scan, attack=attack))
    line.forget(gone)
    assert line.step(-1) == choices(scan=here)
    line.forget(here)
    assert not line.can_undo
    assert line.step(-1) is None


def test_the_same_choices_are_one_run_and_only_the_last_are_kept():
    runs = Runs()
    for top in range(1, KEPT_RUNS + 3):
        assert runs.note(Run(choices(top=top), "", {}, {"undefended": 0.5}))
    assert len(runs.all) == KEPT_RUNS
    oldest = runs.all[-1]
    assert not runs.note(oldest)
    assert runs.note(Run(choices(top=oldest.choices.top, level=4), "", {}, {"undefended": 0.1}))
    assert runs.all[-1].level == 4
    assert len(runs.all) == KEPT_RUNS


# --- in the dock ---


def test_a_finished_run_appears_with_epsilon_and_dice(noted, qtbot):
    dock, wait = noted
    assert dock.history.fold.text() == "▸  Earlier runs (1)"
    dock.slider.setValue(9)
    qtbot.waitUntil(lambda: texts(dock)[0][1] == "9", timeout=WAIT)
    row = texts(dock)[0]
    assert row[0] == "PGD · picture"
    assert row[2:] == [f"{dock.explorer.view(side).dice:.2f}" for side in ("undefended", "defended")]
    dock.attack.value = "fgsm"
    wait(2)
    assert [row[0] for row in texts(dock)] == ["FGSM · picture", "PGD · picture"]
    assert "steps = 4" in dock.history.list.topLevelItem(1).toolTip(0)


def test_a_click_chooses_a_run_again_and_computes_nothing(noted, qtbot):
    dock, wait = noted
    dock.slider.setValue(6)
    dock.history.note()
    dock.target.value = "erase"
    dock.session.tune(steps=3)
    dock.top.value = 12
    dock.slider.setValue(2)
    wait(2)
    before = dock.explorer._known.copy()
    QTest.mouseClick(dock.history.fold, Qt.MouseButton.LeftButton)
    tree = dock.history.list
    where = tree.visualItemRect(tree.topLevelItem(1)).center()
    QTest.mouseClick(tree.viewport(), Qt.MouseButton.LeftButton, pos=where)
    assert dock.session.rule.steps == 4
    assert (dock.session.target, dock.target.value) == (None, None)
    assert (dock.slider.value(), dock.slider.maximum(), dock.top.value) == (6, 16, 16)
    assert dock.parameters.fields["steps"].widget.value() == 4
    assert not dock.explorer.running
    assert dock.explorer.results.complete
    assert all(dock.explorer._known[key] is results for key, results in before.items())
    assert f"ε 6/255 · Dice {dock.explorer.view('undefended').dice:.2f}" in (
        dock.explorer.panes.find("mask", "undefended").name
    )


def test_models_are_chosen_again_too(noted, models, settled):
    dock, wait = noted
    dock.models["defended"].value = None
    wait(2)
    QTest.keyClick(dock, Qt.Key.Key_Z, CTRL)
    assert dock.models["defended"].value == models("polyp")["defended"]
    assert dock.explorer.results.complete
    assert dock.explorer.panes.find("mask", "defended") is not None
    QTest.keyClick(dock, Qt.Key.Key_Z, CTRL | SHIFT)
    assert dock.models["defended"].value is None
    assert dock.explorer.panes.find("mask", "defended") is None
    settled(dock)


def test_ctrl_z_and_the_buttons_undo_and_redo_choices(noted):
    dock, _ = noted
    dock.history.note()
    dock.attack.value = "fgsm"
    QTest.keyClick(dock, Qt.Key.Key_Z, CTRL)
    assert dock.session.attack == dock.attack.value == "pgd"
    QTest.keyClick(dock, Qt.Key.Key_Z, CTRL | SHIFT)
    assert dock.session.attack == "fgsm"
    assert not dock.history.redo_button.isEnabled()
    QTest.mouseClick(dock.history.undo_button, Qt.MouseButton.LeftButton)
    assert dock.session.attack == "pgd"
    QTest.mouseClick(dock.history.redo_button, Qt.MouseButton.LeftButton)
    assert dock.session.attack == "fgsm"


def test_typing_in_a_field_several_values_is_one_step(noted, qtbot, monkeypatch):
    dock, _ = noted
    dock.history.note()
    for steps in (5, 6, 7):
        dock.session.tune(steps=steps)
    qtbot.wait(panel.SETTLE + 100)
    dock.history.undo()
    assert dock.session.rule.steps == 4


def test_a_region_and_a_mask_to_reach_come_back(opened, settled, qtbot):
    viewer, dock, *_ = opened
    dock.history.note()
    region = viewer.add_labels((np.arange(48 * 64).reshape(48, 64) % 64 < 30).astype(int), name="left")
    dock.region.value = region
    dock.target.value = region
    dock.history.note()
    dock.history.undo()
    assert (dock.session.region, dock.session.target) == (None, None)
    assert (dock.region.value, dock.target.value) == (None, None)
    dock.history.redo()
    assert dock.session.region.inside.sum() == 48 * 30
    assert (dock.region.value, dock.target.value) == (region, region)
    viewer.layers.remove(region)
    dock.history.undo()
    assert dock.session.region is None
    settled(dock)


def test_a_run_of_another_scan_and_slice(opened_volume, picture, show_layers, choose, settled, qtbot, errors):
    viewer, dock, image, mask = opened_volume
    viewer.dims.set_current_step(0, 3)
    qtbot.waitUntil(lambda: dock.session.index == 3, timeout=WAIT)
    settled(dock)
    dock.history.note()
    other, _ = show_layers(viewer, *picture)
    dock.scan.value = other
    assert len(errors) == 1  # the models of volumes were let go of
    choose(dock, "polyp")
    settled(dock)
    dock.history.note()
    assert texts(dock)[0][0] == "PGD · picture"
    row = next(i for i, row in enumerate(texts(dock)) if row[0] == "PGD · volume · slice 3")
    dock.history._on_clicked(dock.history.list.topLevelItem(row))
    assert (dock.scan.value, dock.labels.value) == (image, mask)
    assert dock.session.index == 3
    assert dock.models["undefended"].value.name == "cardiac-undefended"
    settled(dock)
    viewer.layers.remove(other)
    assert all("picture" not in row[0] for row in texts(dock))
    assert len(errors) == 1


def test_a_model_that_was_deleted_is_a_sentence(noted, tmp_path, errors):
    import shutil

    dock, wait = noted
    lost = shutil.copytree(dock.session.defended, tmp_path / "lost")
    dock.session.defended = lost
    wait(2)
    dock.models["defended"].value = None
    wait(3)
    shutil.rmtree(lost)
    dock.history.undo()
    assert len(errors) == 1
    assert dock.session.defended is None
    assert not dock.history.redo_button.isEnabled()
