"""The train dock, driven as a user would: real trainings of seconds, in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSpinBox,
    QComboBox,
    QLineEdit,
)
from tiny_training import HEARTS, SECONDS, tiny, uninterrupted

from cease_core.cli.train import DATA
from cease_core.io import read_labels, read_scan
from cease_core.models import available_models
from cease_core.models.checkpoint import load_card
from napari_cease.jobs.training import Job, Run, find_runs
from napari_cease.jobs.training_process import train_run
from napari_cease.jobs.training_recipe import create_run
from napari_cease.layers import TRAINING
from napari_cease.training_session import TrainingSession
from napari_cease.widgets.train import TrainDock

Open = Callable[[], TrainDock]
Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty library; what still works on one of its runs afterwards is ended."""
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path / "library"))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # as many threads as the tests have: else no bit is the same
    yield tmp_path / "library"
    for run in find_runs(tmp_path / "library"):
        run.kill()


@pytest.fixture
def open_dock(windowless: Callable[..., TrainDock], own_library: Path) -> Open:
    """Opens the dock in a window without a canvas; again for another one."""
    return lambda: windowless(TrainDock)


@pytest.fixture
def until(qtbot: Any) -> Until:
    return lambda condition: qtbot.waitUntil(condition, timeout=1000 * SECONDS)


@pytest.fixture
def on_hearts(open_dock: Open, until: Until) -> TrainDock:
    """The dock with a small training of the sample hearts planned."""
    dock = open_dock()
    tiny(dock.session)
    dock.form.folder.setText(str(HEARTS))
    dock.form.folder.editingFinished.emit()
    until(lambda: dock.trainer.present is not None)
    return dock


@pytest.fixture
def show_heart(show_layers: Any) -> Callable[[Any], None]:
    def show(viewer: Any) -> None:
        scan = read_scan(HEARTS / "images" / "scd_15.nii.gz")
        show_layers(viewer, scan, read_labels(HEARTS / "labels" / "scd_15.nii.gz", like=scan))

    return show


_CONTROLS = (QAbstractButton, QAbstractItemView, QAbstractSpinBox, QComboBox, QLineEdit)


def begun(dock: TrainDock) -> bool:
    return dock.session.progress is not None and dock.session.state == "running"


# --- before the run -----------------------------------------------------------------------------------------


def test_an_empty_dock_says_what_to_do_and_cannot_start(open_dock: Open) -> None:
    dock = open_dock()
    assert dock.note.text() == "Choose a folder with scans and their masks."
    assert not dock.start.isEnabled()


def test_by_default_a_case_is_held_out_from_all(on_hearts: TrainDock, until: Until) -> None:
    on_hearts.session.test = TrainingSession().test
    until(lambda: "4 training, 1 validation, 1 test" in on_hearts.note.text())


def test_the_plan_says_what_a_run_would_cost(on_hearts: TrainDock) -> None:
    told = on_hearts.note.text()
    assert "5 training, 1 validation, 0 test" in told
    assert "4 an image and step, 176 an epoch, 352 in 2 epochs" in told
    assert on_hearts.form.title.placeholderText() == "cardiac_mr_sunnybrook-at"


def test_a_folder_without_scans_is_refused_in_a_sentence(open_dock: Open, until: Until, tmp_path: Path) -> None:
    dock = open_dock()
    dock.ask_folder = lambda _: tmp_path
    dock.form.browse.click()
    until(lambda: bool(dock.trainer.fault))
    assert "needs the folders images/ and labels/" in dock.note.text()
    assert not dock.start.isEnabled()


def test_a_list_of_cases_is_a_data_set_too(open_dock: Open, until: Until, tmp_path: Path, own_library: Path) -> None:
    table = tmp_path / "hearts.csv"
    names = sorted(p.name for p in (HEARTS / "images").iterdir())[:3]
    table.write_text("\n".join(["image,labels", *(f"{HEARTS}/images/{n},{HEARTS}/labels/{n}" for n in names)]))
    dock = open_dock()
    tiny(dock.session)
    asked: list[str] = []
    dock.ask_file = lambda question: asked.append(question) or None
    dock.form.browse_list.click()
    assert asked
    assert dock.session.folder is None
    dock.ask_file = lambda _: table
    dock.form.browse_list.click()
    until(lambda: dock.trainer.present is not None)
    assert dock.form.folder.text() == str(table)
    assert "2 training, 1 validation, 0 test" in dock.note.text()
    assert dock.start.isEnabled()
    run = create_run(dock.trainer.present.recipe, Job(own_library))
    assert str(table) in (run.folder / DATA).read_text()


def test_a_choice_that_does_not_fit_is_refused_in_a_sentence(on_hearts: TrainDock, until: Until) -> None:
    dock = on_hearts
    dock.form.patch.setText("32 x 32 x 32")
    dock.form.patch.editingFinished.emit()
    until(lambda: bool(dock.trainer.fault))
    assert "patch has 3 sizes, but ndim is 2" in dock.note.text()
    dock.form.patch.setText("wide")
    dock.form.patch.editingFinished.emit()
    assert "A patch is a size in voxels for each axis" in dock.note.text()


def test_a_name_that_is_taken_is_refused_before_the_start(
    on_hearts: TrainDock, until: Until, own_library: Path
) -> None:
    (own_library / "runs" / "my-heart").mkdir(parents=True)
    on_hearts.form.title.setText("My heart")
    on_hearts.form.title.editingFinished.emit()
    until(lambda: bool(on_hearts.trainer.fault))
    assert "a run called my-heart" in on_hearts.note.text()


def test_what_a_defence_does_not_have_is_not_asked_for(open_dock: Open) -> None:
    dock = open_dock()
    for preset, epsilon, tasks, teacher in (
        ("cease", True, True, False),
        ("none", False, False, False),
        ("distillation", False, False, True),
    ):
        dock.form.preset.value = preset
        shown = [not w.isHidden() for w in (dock.form.level, dock.tasks_part, dock.form.teacher)]
        assert shown == [epsilon, tasks, teacher], preset


def test_a_defence_comes_with_its_own_number_of_steps_until_another_is_asked_for(open_dock: Open) -> None:
    dock = open_dock()
    seen = []
    for preset in ("cease", "cease_reuse", "none", "at"):
        dock.form.preset.value = preset
        seen.append(dock.form.steps.value())
    assert seen == [7, 2, 7, 7]
    dock.form.steps.setValue(3)
    dock.form.preset.value = "cease_reuse"
    assert dock.session.steps == dock.form.steps.value() == 3


def test_auxiliary_tasks_are_chosen_by_relevance_or_by_hand(on_hearts: TrainDock, until: Until) -> None:
    dock = on_hearts
    dock.form.preset.value = "multitask_at"
    until(lambda: dock.trainer.present is not None)
    assert "chosen first" in dock.note.text()
    dock.tasks.choose.click()
    names = [dock.tasks.table.item(row, 0).text() for row in range(dock.tasks.table.rowCount())]
    dock.tasks.table.item(names.index("edges"), 0).setCheckState(Qt.CheckState.Checked)
    assert dock.session.tasks == ("reconstruction", "sobel", "edges")
    until(lambda: dock.trainer.present is not None)
    assert dock.trainer.present is not None
    assert dock.trainer.present.recipe.config.defence.auxiliary.tasks == ("reconstruction", "sobel", "edges")
    dock.tasks.choose.click()
    assert dock.session.tasks is None


def test_nothing_is_clipped_at_320_pixels(on_hearts: TrainDock) -> None:
    on_hearts.form.preset.value = "cease"
    for part in (*on_hearts.form.parts, on_hearts.tasks_part):
        part.open(True)
    scroll_bar = on_hearts.verticalScrollBar().sizeHint().width()
    assert on_hearts.widget().minimumSizeHint().width() <= 320 - scroll_bar


def test_every_control_says_what_it_is_for(open_dock: Open) -> None:
    dock = open_dock()
    holders = (dock, dock.form, dock.tasks)
    controls = [v for holder in holders for v in vars(holder).values() if isinstance(v, _CONTROLS)]
    assert len(controls) > 30
    assert [c for c in controls if not c.toolTip() and not c.accessibleName()] == []
    assert [c for c in controls if not c.focusPolicy() & Qt.FocusPolicy.TabFocus] == []


# --- the run ------------------------------------------------------------------------------------------------


def test_stopped_within_an_epoch_killed_and_left_alone_a_run_still_ends_with_the_same_weights(
    on_hearts: TrainDock, open_dock: Open, until: Until, own_library: Path, tmp_path: Path, errors: list[str]
) -> None:
    dock, s = on_hearts, on_hearts.session
    s.epochs, s.validate_every = 8, 4  # so many that it does not end before it is stopped
    until(lambda: dock.trainer.present is not None)
    dock.start.click()
    while s.saved is None or s.saved[1] == 0:  # between two epochs, by chance, would be too easy
        until(lambda: begun(dock) and s.saved is not None and s.saved[1] > 0)
        dock.stop.click()
        assert "Stopping" in dock.told.text()
        until(lambda: s.state == "stopped")
        assert "Resume" in dock.told.text()
        dock.resume.click()

    done = s.progress.done
    until(lambda: begun(dock) and s.progress.done > done)
    dock.trainer.run.kill()
    until(lambda: s.state == "lost")
    assert "has vanished" in dock.told.text()
    assert errors == [s.told]

    dock.resume.click()
    until(lambda: s.state == "running")
    dock.ask_leave = lambda: "keep"
    assert dock.window().close()
    dock.shutdown()

    # Another window finds the run, which has gone on.
    again = open_dock()
    assert again.session.run == s.run == (own_library / "runs" / "cardiac_mr_sunnybrook-at").resolve()
    assert again.session.alive
    models: list[Path] = []
    again.trained.connect(models.append)
    until(lambda: again.session.state == "finished")
    assert models == [own_library / "cardiac_mr_sunnybrook-at"]
    assert models[0] in available_models()
    assert again.session.told.endswith("the model is in the library as cardiac_mr_sunnybrook-at.")
    best = load_card(models[0]).training["best_epoch"]
    assert f"the checkpoint of epoch {best} was chosen: Dice " in again.session.told
    assert [row.epoch for row in again.session.history] == list(range(1, 9))
    assert set(again.curves.dice.lines) == {"clean", "under attack"}
    assert len(again.session.rates) == 8
    assert not again.pictures.isHidden()
    assert "PGD-10 at 8/255" in again.pictures.note.text()
    assert again.trainer.preview.clean.shape == again.trainer.preview.labels.shape == (64, 64)
    assert (models[0] / "model.safetensors").read_bytes() == uninterrupted(s.run, HEARTS, tmp_path / "again")

    compared: list[Path] = []
    again.compare.connect(compared.append)
    again.compare_button.click()
    assert compared == models


def test_on_layers_saved_and_stopped_with_the_window_a_run_is_found_and_its_best_model_kept(
    open_dock: Open, show_heart: Any, until: Until, own_library: Path, qtbot: Any
) -> None:
    dock = open_dock()
    show_heart(dock.viewer)
    tiny(dock.session, preset="none", epochs=500)
    dock.form.source.value = "layers"
    until(lambda: dock.trainer.present is not None)
    assert "neighbours" in dock.form.facts.text()
    dock.form.title.setText("My heart")
    dock.form.title.editingFinished.emit()
    dock.start.click()
    until(lambda: begun(dock) and len(dock.session.history) > 0)

    main, run = dock.window(), dock.session.run
    assert run == (own_library / "runs" / "my-heart").resolve()
    asked: list[str] = []
    dock.ask_leave = lambda: asked.append("asked") or "cancel"  # type: ignore[assignment, func-returns-value]
    assert not main.close()
    assert main.isVisible()
    assert asked == ["asked"]
    dock.ask_leave = lambda: "stop"
    assert main.close()
    dock.shutdown()
    until(lambda: Run(run).status().stage == "paused")

    again = open_dock()
    assert again.session.state == "idle"
    again.attach_menu.aboutToShow.emit()
    entry = again.attach_menu.actions()[0]
    assert entry.text() == "my-heart (paused)"
    entry.trigger()
    assert again.session.state == "paused"
    with qtbot.waitSignal(again.trained) as trained:
        again.keep.click()
    assert trained.args == [own_library / "my-heart"]
    again.new.click()
    assert again.session.state == "idle"
    assert again.session.run is None


def test_the_table_of_tasks_shows_what_a_run_measured_and_why_it_chose(
    on_hearts: TrainDock, until: Until, own_library: Path
) -> None:
    dock, s = on_hearts, on_hearts.session
    tiny(s, preset="multitask_at", batch_size=8, patch=(16, 16), epochs=1)
    until(lambda: dock.trainer.present is not None)
    run = create_run(dock.trainer.present.recipe, Job(own_library, threads=1, device="cpu"))
    train_run(run.folder)
    dock.trainer.attach(run.folder)
    relevance, selection = dock.trainer.relevance
    shown = {dock.tasks.table.item(row, 0).text().replace(" ", "_"): row for row in range(dock.tasks.table.rowCount())}
    assert tuple(shown) == relevance.weakest_first
    for name, row in shown.items():
        cells = [dock.tasks.table.item(row, column) for column in range(4)]
        assert [cell.text() for cell in cells[1:3]] == [
            f"{relevance.scores[name].c_in:.2f}",
            f"{relevance.scores[name].learnable:.2f}",
        ]
        assert cells[3].toolTip() == selection.reasons[name]
        assert (cells[0].checkState() == Qt.CheckState.Checked) == (name in selection.chosen)
    assert dock.tasks.note.text() == selection.summary


@pytest.fixture
def other_run(on_hearts: TrainDock, own_library: Path) -> Run:
    """A run that was planned and never started."""
    checked = on_hearts.trainer.present
    assert checked is not None
    return create_run(checked.recipe, Job(own_library, threads=1, device="cpu"))


def test_a_run_that_ends_before_it_is_looked_at_is_still_told_of(
    on_hearts: TrainDock, other_run: Run, until: Until, errors: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Run.start

    def start_and_see_its_end(run: Run) -> None:
        start(run)
        until(lambda: not run.status().alive)

    monkeypatch.setattr(Run, "start", start_and_see_its_end)
    on_hearts.trainer.attach(other_run.folder)
    (other_run.folder / "job.json").write_text("{")
    on_hearts.resume.click()
    (sentence,) = errors
    assert sentence.endswith("job.json is missing or damaged; start a new run.")


def test_attached_to_a_run_no_start_is_left_to_come(
    on_hearts: TrainDock, other_run: Run, until: Until, own_library: Path
) -> None:
    dock = on_hearts
    dock.session.epochs = 3
    dock.start.click()  # while the choices are being checked
    dock.trainer.attach(other_run.folder)
    until(lambda: dock.trainer.present is not None)
    assert dock.session.run == other_run.folder
    assert find_runs(own_library) == [other_run]


def test_names_are_shown_as_they_are(open_dock: Open, until: Until, own_library: Path, tmp_path: Path) -> None:
    dock = open_dock()
    dock.session.folder = tmp_path / "<i>R&D</i>"
    until(lambda: bool(dock.trainer.fault))
    assert "&lt;i&gt;R&amp;D&lt;/i&gt;" in dock.note.text()
    for label in (dock.told, dock.form.facts, dock.tasks.note, dock.pictures.note):
        assert label.textFormat() == Qt.TextFormat.PlainText
    run = own_library / "runs" / "R&D"
    run.mkdir(parents=True)
    (run / "job.json").write_text("{}")
    dock.attach_menu.aboutToShow.emit()
    assert dock.attach_menu.actions()[0].text() == "R&&D (stopped)"


def test_a_folder_that_holds_no_run_cannot_be_attached_to(open_dock: Open, errors: list[str], tmp_path: Path) -> None:
    dock = open_dock()
    dock.ask_folder = lambda _: tmp_path
    dock.attach_menu.aboutToShow.emit()
    dock.attach_menu.actions()[-1].trigger()
    assert errors == [f"{tmp_path} holds no training run; choose a folder that has a job.json."]
    assert dock.session.run is None


def test_in_a_napari_window_it_follows_the_theme_and_leaves_nothing_behind(
    make_napari_viewer: Any, own_library: Path
) -> None:
    viewer = make_napari_viewer()
    dock = TrainDock(viewer)
    viewer.window.add_dock_widget(dock, name="Train", area="right")
    pens = []
    for theme in ("dark", "light"):
        viewer.theme = theme
        pens.append(dock.curves.loss.plot.getPlotItem().getAxis("left").textPen().color().lightness())
    assert pens[0] > 128 > pens[1]
    dock.shutdown()


def test_no_menu_lies_over_the_curves(open_dock: Open) -> None:
    dock = open_dock()
    dock.curves.show()
    for curve in dock.curves.curves:
        assert not curve.plot.getPlotItem().ctrlMenu.isVisible()


# --- in the viewer ------------------------------------------------------------------------------------------


def training_layers(dock: TrainDock) -> dict[str, Any]:
    return {
        x.metadata["cease"]["side"]: x
        for x in dock.viewer.layers
        if x.metadata.get("cease", {}).get("role") == TRAINING
    }


def test_each_epoch_is_seen_under_attack_in_the_viewer(on_hearts: TrainDock, until: Until) -> None:
    dock, seen = on_hearts, []
    dock.viewer.canvas.size = (600, 900)
    open_before = dock.viewer.add_image(np.eye(50), scale=(2, 2))
    dock.preview.connect(lambda preview: seen.append((preview.epoch, dict(training_layers(dock)))))
    dock.start.click()
    until(lambda: dock.session.state == "finished")
    until(lambda: bool(seen) and seen[-1][0] == 2)
    preview, shown = dock.trainer.preview, training_layers(dock)
    assert list(shown) == ["scan", "clean", "mask", "truth"]
    assert set(dock.viewer.layers.selection) == {open_before}
    assert np.array_equal(shown["mask"].data, preview.attacked)
    assert np.array_equal(shown["truth"].data, preview.labels)
    assert np.allclose(shown["scan"].data, preview.image[0])
    assert "epoch 2 · ε 8/255 · Dice " in shown["mask"].name
    assert all(after["mask"] is shown["mask"] for _, after in seen[1:]), "in place"
    assert shown["scan"].extent.world[0, 0] > open_before.extent.world[1, 0], "below what was open"
    dock.in_viewer.click()
    assert training_layers(dock) == {}
    dock.in_viewer.click()
    dock.viewer.layers.remove(training_layers(dock)["truth"])
    until(lambda: training_layers(dock) == {})  # who removes one removes all
    assert not dock.in_viewer.isChecked()
    dock.in_viewer.click()
    assert len(training_layers(dock)) == 4
    dock.new.click()
    assert dock.viewer.layers == [open_before]
    assert dock.in_viewer.isHidden()
