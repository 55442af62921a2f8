"""The train dock, driven as a user would: real trainings of seconds, in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from napari.components import ViewerModel
from pydantic import PrivateAttr
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSpinBox,
    QComboBox,
    QDockWidget,
    QLineEdit,
    QMainWindow,
)
from tiny_training import HEARTS, SECONDS, tiny, uninterrupted

from cease_core.io import read_labels, read_scan
from cease_core.models import available_models
from napari_cease.jobs.training import Job, Run, find_runs
from napari_cease.jobs.training_process import train_run
from napari_cease.jobs.training_recipe import create_run
from napari_cease.widgets.train import TrainDock


class Windowless(ViewerModel):
    """napari's viewer model in a bare main window."""

    _window: Any = PrivateAttr(None)

    @property
    def window(self) -> Any:
        return self._window


Opened = tuple[Any, TrainDock]
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
def open_dock(qtbot: Any, own_library: Path) -> Iterator[Callable[[], Opened]]:
    made = []

    def make() -> Opened:
        viewer = Windowless()
        main = QMainWindow()
        qtbot.addWidget(main)
        viewer._window = SimpleNamespace(_qt_window=main)
        dock = TrainDock(viewer)  # type: ignore[arg-type]
        holder = QDockWidget(main)
        holder.setWidget(dock)
        main.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, holder)
        main.resize(500, 900)
        main.show()
        made.append(dock)
        return viewer, dock

    yield make
    for dock in made:
        dock.shutdown()


@pytest.fixture
def until(qtbot: Any) -> Until:
    return lambda condition: qtbot.waitUntil(condition, timeout=1000 * SECONDS)


@pytest.fixture
def on_hearts(open_dock: Callable[[], Opened], until: Until) -> TrainDock:
    """The dock with a small training of the sample hearts planned."""
    _, dock = open_dock()
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


def test_an_empty_dock_says_what_to_do_and_cannot_start(open_dock: Callable[[], Opened]) -> None:
    _, dock = open_dock()
    assert dock.note.text() == "Choose a folder with scans and their masks."
    assert not dock.start.isEnabled()


def test_the_plan_says_what_a_run_would_cost(on_hearts: TrainDock) -> None:
    told = on_hearts.note.text()
    assert "5 training, 1 validation, 0 test" in told
    assert "4 an image and step, 176 an epoch, 352 in 2 epochs" in told
    assert on_hearts.form.title.placeholderText() == "cardiac_mr_sunnybrook-at"


def test_a_folder_without_scans_is_refused_in_a_sentence(
    open_dock: Callable[[], Opened], until: Until, tmp_path: Path
) -> None:
    _, dock = open_dock()
    dock.ask_folder = lambda _: tmp_path
    dock.form.browse.click()
    until(lambda: bool(dock.trainer.fault))
    assert "needs the folders images/ and labels/" in dock.note.text()
    assert not dock.start.isEnabled()


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


def test_what_a_defence_does_not_have_is_not_asked_for(on_hearts: TrainDock) -> None:
    dock = on_hearts
    for preset, epsilon, tasks, teacher in (
        ("cease", True, True, False),
        ("none", False, False, False),
        ("distillation", False, False, True),
    ):
        dock.form.preset.value = preset
        shown = [not w.isHidden() for w in (dock.form.level, dock.tasks_part, dock.form.teacher)]
        assert shown == [epsilon, tasks, teacher], preset


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


def test_every_control_says_what_it_is_for(on_hearts: TrainDock) -> None:
    holders = (on_hearts, on_hearts.form, on_hearts.tasks)
    controls = [v for holder in holders for v in vars(holder).values() if isinstance(v, _CONTROLS)]
    assert len(controls) > 30
    assert [c for c in controls if not c.toolTip() and not c.accessibleName()] == []
    assert [c for c in controls if not c.focusPolicy() & Qt.FocusPolicy.TabFocus] == []


# --- the run ------------------------------------------------------------------------------------------------


def test_stopped_within_an_epoch_then_killed_a_run_still_ends_with_the_same_weights(
    on_hearts: TrainDock, until: Until, own_library: Path, tmp_path: Path, errors: list[str], qtbot: Any
) -> None:
    dock, s = on_hearts, on_hearts.session
    s.epochs, s.validate_every = 8, 4  # so many that it does not end before it is stopped
    until(lambda: dock.trainer.present is not None)
    dock.start.click()
    while s.saved is None or s.saved[1] == 0:  # between two epochs, by chance, would be too easy
        until(lambda: begun(dock))
        dock.stop.click()
        assert "Stopping" in dock.told.text()
        until(lambda: s.state == "stopped")
        assert "Resume goes on from there" in dock.told.text()
        dock.resume.click()

    done = s.progress.done
    until(lambda: begun(dock) and s.progress.done > done)
    dock.trainer.run.kill()
    until(lambda: s.state == "lost")
    assert "has vanished" in dock.told.text()
    assert errors == [s.told]

    with qtbot.waitSignal(dock.trained, timeout=1000 * SECONDS) as trained:
        dock.resume.click()
    (model,) = trained.args
    assert s.state == "finished"
    assert model == own_library / "cardiac_mr_sunnybrook-at"
    assert model in available_models()
    assert [row.epoch for row in s.history] == list(range(1, 9))
    assert (model / "model.safetensors").read_bytes() == uninterrupted(s.run, HEARTS, tmp_path / "again")

    with qtbot.waitSignal(dock.compare) as compared:
        dock.compare_button.click()
    assert compared.args == [model]


def test_the_window_is_closed_while_a_training_on_its_layers_goes_on(
    open_dock: Callable[[], Opened], show_heart: Any, until: Until, own_library: Path, qtbot: Any
) -> None:
    viewer, dock = open_dock()
    show_heart(viewer)
    tiny(dock.session, epochs=8, validate_every=4)
    dock.form.source.value = "layers"
    until(lambda: dock.trainer.present is not None)
    assert "neighbours" in dock.form.facts.text()
    dock.form.title.setText("My heart")
    dock.form.title.editingFinished.emit()
    dock.start.click()
    until(lambda: begun(dock))

    main = viewer.window._qt_window
    asked: list[str] = []
    dock.ask_leave = lambda: asked.append("asked") or "cancel"  # type: ignore[assignment, func-returns-value]
    assert not main.close()
    assert main.isVisible()
    dock.ask_leave = lambda: "keep"
    assert main.close()
    assert asked == ["asked"]
    dock.shutdown()

    _, again = open_dock()
    assert again.session.run == (own_library / "runs" / "my-heart").resolve()
    assert again.session.alive
    until(lambda: again.session.state == "finished")
    assert again.session.told.endswith("the model is in the library as my-heart.")
    assert [row.epoch for row in again.session.history] == list(range(1, 9))
    assert set(again.curves.dice.lines) == {"clean", "under attack"}
    assert len(again.session.rates) == 8
    assert not again.pictures.isHidden()
    assert "PGD-10 at 8/255" in again.pictures.note.text()
    assert again.trainer.preview.clean.shape == again.trainer.preview.labels.shape == (64, 64)


def test_stopped_and_saved_with_the_window_a_run_is_found_and_its_best_model_kept(
    on_hearts: TrainDock, open_dock: Callable[[], Opened], until: Until, own_library: Path, qtbot: Any
) -> None:
    dock = on_hearts
    dock.form.preset.value = "none"
    dock.session.epochs = 500
    until(lambda: dock.trainer.present is not None)
    dock.start.click()
    until(lambda: begun(dock) and len(dock.session.history) > 0)
    dock.ask_leave = lambda: "stop"
    run = dock.session.run
    assert dock.viewer.window._qt_window.close()
    dock.shutdown()
    until(lambda: Run(run).status().stage == "paused")

    _, again = open_dock()
    assert again.session.state == "idle"
    again.attach_menu.aboutToShow.emit()
    entry = again.attach_menu.actions()[0]
    assert entry.text() == "cardiac_mr_sunnybrook-none (paused)"
    entry.trigger()
    assert again.session.state == "paused"
    with qtbot.waitSignal(again.trained) as trained:
        again.keep.click()
    assert trained.args == [own_library / "cardiac_mr_sunnybrook-none"]
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


def test_a_folder_that_holds_no_run_cannot_be_attached_to(
    open_dock: Callable[[], Opened], errors: list[str], tmp_path: Path
) -> None:
    _, dock = open_dock()
    dock.ask_folder = lambda _: tmp_path
    dock.attach_menu.aboutToShow.emit()
    dock.attach_menu.actions()[-1].trigger()
    assert errors == [f"{tmp_path} holds no training run; choose a folder that has a job.json."]
    assert dock.session.run is None


def test_in_a_napari_window_it_follows_the_theme_and_leaves_nothing_behind(
    make_napari_viewer: Any, own_library: Path
) -> None:
    viewer = make_napari_viewer(strict_qt="raise")
    dock = TrainDock(viewer)
    viewer.window.add_dock_widget(dock, name="Train", area="right")
    pens = []
    for theme in ("dark", "light"):
        viewer.theme = theme
        pens.append(dock.curves.loss.plot.getPlotItem().getAxis("left").textPen().color().lightness())
    assert pens[0] > 128 > pens[1]
    dock.shutdown()


def test_no_menu_lies_over_the_curves(on_hearts: TrainDock, qtbot: Any) -> None:
    on_hearts.curves.show()
    for curve in on_hearts.curves.curves:
        assert not curve.plot.getPlotItem().ctrlMenu.isVisible()
