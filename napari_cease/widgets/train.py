"""The train dock: choose data and a defence, start, watch; the training goes on without the window.

This module keeps its annotations as objects, since napari looks at them to hand over the viewer.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import napari
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QMenu, QMessageBox, QProgressBar, QPushButton

from cease_core.errors import CeaseError
from napari_cease.jobs.training import Run, find_runs
from napari_cease.layers import TrainingLayers, role_of
from napari_cease.trainer import Trainer
from napari_cease.training_session import TrainingSession
from napari_cease.widgets.fold import Fold
from napari_cease.widgets.parts import button_row, entry_of, escape, rule, words
from napari_cease.widgets.run_dock import RunDock
from napari_cease.widgets.task_table import TaskTable
from napari_cease.widgets.training_curves import PreviewPictures, TrainingCurves
from napari_cease.widgets.training_form import TrainingForm

Leave = Literal["keep", "stop", "cancel"]


class TrainDock(RunDock):
    """Train a model on scans and masks of your own, in a process of its own.

    Parameters
    ----------
    napari_viewer
        Given by napari.

    Attributes
    ----------
    ask_leave
        What asks, when the window closes, whether the training goes on (``"keep"``), is saved and stopped (``"stop"``),
        or the window stays (``"cancel"``).
    """

    trained = Signal(object)
    """A model has come into the library; its folder."""
    compare = Signal(object)
    """The user wants to see this model beside an undefended one; its folder."""
    preview = Signal(object)
    """A validation image under attack, as the newest epoch sees it: `napari_cease.jobs.training.Preview`."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:
        super().__init__(napari_viewer)
        self.session = TrainingSession()
        self.ask_leave: Callable[[], Leave] = self._ask_leave
        self._folded = False
        self._remark = ""
        self.form = TrainingForm(
            self.session,
            napari_viewer,
            lambda question: self.ask_folder(question),
            lambda question: self.ask_file(question),
        )
        self.trainer = Trainer(self.session, self.form.pairs, self)
        self.layers = TrainingLayers(napari_viewer, self._on_layers_gone)
        self._build()
        self._connect()
        self.watch()
        self._on_chosen()
        self._on_checked()
        self._on_refreshed()
        self.trainer.attach_to_alive()

    # --- what it is made of ---------------------------------------------------------------------------------

    def _build(self) -> None:
        column = self.column
        column.addWidget(self.form)
        self.tasks = TaskTable()
        self.tasks_part = Fold("Auxiliary tasks", self.tasks, opened=False)
        column.addWidget(self.tasks_part)
        column.addWidget(rule())
        self._build_run()
        self.pictures = PreviewPictures()
        self.pictures.hide()
        column.addWidget(self.pictures)
        self.in_viewer = QCheckBox("Show in the viewer too")
        self.in_viewer.setToolTip(
            "Layers with a validation case, its mask under attack and the truth, below what is open; "
            "brought up to date after each epoch"
        )
        self.in_viewer.setChecked(True)
        self.in_viewer.hide()
        column.addWidget(self.in_viewer)
        self.curves = TrainingCurves()
        self.curves.hide()
        column.addWidget(self.curves)
        column.addStretch(1)

    def _build_run(self) -> None:
        column = self.column
        self.note = words(rich=True)
        column.addWidget(self.note)
        self.start = QPushButton("Start")
        self.start.setToolTip("Train in a process of its own; the window stays free, and may be closed")
        self.pause = QPushButton("Pause")
        self.pause.setToolTip("Save the state, then end the process and free its memory; Resume goes on from there")
        self.resume = QPushButton("Resume")
        self.resume.setToolTip("Go on from the state that was saved last, as if there had been no break")
        self.stop = QPushButton("Stop")
        self.stop.setToolTip("End at once; what was done since the state was last saved is lost")
        column.addLayout(button_row(self.start, self.pause, self.resume, self.stop))
        self.progress = QProgressBar()
        self.progress.setTextVisible(True)
        column.addWidget(self.progress)
        self.told = words()
        column.addWidget(self.told)
        self.attach = QPushButton("Attach to a run…")
        self.attach.setToolTip("Follow a training that was started before, here or in another window")
        self.attach_menu = QMenu(self.attach)
        self.attach.setMenu(self.attach_menu)
        self.new = QPushButton("New run")
        self.new.setToolTip("Let go of this run, which stays as it is, and choose another one")
        self.keep = QPushButton("Keep best so far")
        self.keep.setToolTip("Put the best checkpoint of this run into the library, although it has not ended")
        self.compare_button = QPushButton("Compare with undefended")
        self.compare_button.setToolTip("Open the attack explorer with this model on a case that it was not trained on")
        column.addLayout(button_row(self.attach, self.new, self.keep))
        column.addWidget(self.compare_button)

    def _connect(self) -> None:
        t = self.trainer
        self.form.remarked.connect(self._on_remarked)
        self.form.ticked.connect(t.look)
        self.tasks.edited.connect(self._on_tasks)
        self.start.clicked.connect(t.start)
        self.pause.clicked.connect(t.pause)
        self.resume.clicked.connect(t.resume)
        self.stop.clicked.connect(t.stop)
        self.keep.clicked.connect(t.keep)
        self.new.clicked.connect(t.let_go)
        self.compare_button.clicked.connect(lambda: self.compare.emit(self.session.model))
        self.attach_menu.aboutToShow.connect(self._fill_menu)
        t.checked.connect(self._on_checked)
        t.refreshed.connect(self._on_refreshed)
        t.previewed.connect(self._on_preview)
        self.in_viewer.toggled.connect(self._show_layers)
        t.trained.connect(self._on_trained)
        t.failed.connect(self._on_failed)
        for name in ("preset", "tasks"):
            getattr(self.session.events, name).connect(self._on_chosen)
        layers = self.viewer.layers.events
        for event in (layers.inserted, layers.removed, layers.renamed):
            event.connect(self._on_layers)
        t.worker.end_with(self)

    def _on_layers(self, event: Any = None) -> None:
        layer = getattr(event, "value", None)
        if layer is not None and role_of(layer)[0] not in (None, "scan", "labels"):
            return
        self.form.offer_layers()
        if self.session.source == "layers":
            self.trainer.look()

    # --- before the run -------------------------------------------------------------------------------------

    def _on_remarked(self, sentence: str) -> None:
        self._remark = sentence
        self._on_checked()

    def _on_tasks(self, names: tuple[str, ...] | None) -> None:
        if names is None or names:
            self.session.tasks = names
            self._on_remarked("")
        else:
            self._on_remarked("Training with auxiliary tasks needs one at least; tick another one first.")
        self._on_chosen()

    def _on_chosen(self) -> None:
        """Show the auxiliary tasks, where the defence has some."""
        s = self.session
        self.tasks_part.setVisible(s.multitask)
        self.tasks_part.tell(self.tasks.show_tasks(s.tasks, self.trainer.relevance, editable=not s.alive))

    def _on_checked(self) -> None:
        """Show what the choices come to, or what is wrong with them."""
        t, s = self.trainer, self.session
        reading, now = t.reading, t.present
        if self._remark:
            told = escape(self._remark)
        elif t.fault:
            told = f"<b>Cannot start:</b> {escape(t.fault)}"
        elif s.source == "folder" and s.folder is None:
            told = "Choose a folder with scans and their masks."
        elif now is None:
            counted = reading is not None and reading.total
            told = f"Reading case {reading.done} of {reading.total}…" if reading and counted else "Checking…"
        else:
            lines = (f"<b>{escape(name.capitalize())}:</b> {escape(value)}" for name, value in now.plan.items())
            told = "<br>".join(lines)
        self.note.setText(told)
        self.note.setVisible(self.trainer.run is None)
        if now is None:
            self.form.show_facts((), None)
        else:
            self.form.show_facts(now.warnings, now.recipe.config)
        self._enable()

    # --- the run --------------------------------------------------------------------------------------------

    def _enable(self) -> None:
        s, t = self.session, self.trainer
        # Also while the choices are being checked: the click that ends typing must not be lost.
        self.start.setEnabled(t.run is None and (t.present is not None or t.checking))
        self.pause.setEnabled(s.alive and not t.asked)
        self.stop.setEnabled(s.alive and t.asked != "stop")
        self.resume.setEnabled(s.resumable)
        self.attach.setEnabled(not s.alive)
        self.new.setVisible(t.run is not None and not s.alive)
        self.keep.setVisible(t.keepable)
        self.compare_button.setVisible(s.model is not None)
        for part in self.form.parts:
            part.inside.setEnabled(not s.alive)

    def _on_refreshed(self) -> None:
        """Show what the run has told."""
        s, t = self.session, self.trainer
        asked = {"pause": " Pausing once the state is saved.", "stop": " Stopping."}.get(t.asked, "")
        self.told.setText(s.told + asked if t.run is not None else "")
        self.told.setVisible(t.run is not None)
        self.note.setVisible(self.trainer.run is None)
        p = s.progress
        if p is not None:
            self.progress.setRange(0, p.total)
            self.progress.setValue(p.done)
            left = s.seconds_left
            tail = "" if left is None else f", {timedelta(seconds=round(left))} left"
            self.progress.setFormat(f"epoch {p.epoch} of {p.epochs}{tail}")
        else:
            self.progress.setRange(0, 0 if s.alive else 1)
            self.progress.setValue(0)
            self.progress.setFormat("")
        self.progress.setVisible(t.run is not None)
        if s.history or s.losses:
            self.curves.show_run(s.history, s.losses, s.rates, p.epochs if p is not None else len(s.history))
        else:
            self.curves.forget()
        self.curves.setVisible(bool(s.history or s.losses))
        for part in (self.pictures, self.in_viewer):
            part.setVisible(t.preview is not None)
        if t.preview is None:
            # Another run, or none; what a finished one has shown last stays.
            self.layers.close()
        self._on_chosen()
        self._fold()
        self._enable()

    def _fold(self) -> None:
        """Of a run its curves are looked at, not the choices; folded away, these say in a word what they are."""
        shown = self.trainer.run is not None
        if shown != self._folded:
            self._folded = shown
            self.form.data_part.open(not shown)
            self.form.model_part.open(not shown)
            self.form.more_part.open(False)

    def _on_preview(self, preview: Any) -> None:
        self.pictures.show_preview(preview)
        self.preview.emit(preview)
        self._show_layers(self.in_viewer.isChecked())

    def _show_layers(self, shown: bool) -> None:
        if not shown:
            self.layers.close()
        elif self.trainer.preview is not None:
            self.layers.show(self.trainer.preview)

    def _on_layers_gone(self) -> None:
        with suppress(RuntimeError):  # the window may have gone first, and its layers with it
            self.in_viewer.setChecked(False)

    def _on_trained(self, model: Path) -> None:
        show_info(f"{model.name} is in the library.")
        self.form.refresh_models()
        self.trained.emit(model)

    def _on_failed(self, sentence: str) -> None:
        show_error(sentence)
        self._enable()

    def _fill_menu(self) -> None:
        self.attach_menu.clear()
        for run in find_runs(self.session.library)[:15]:
            status = run.status()
            stage = "under way" if status.alive else status.stage
            action = self.attach_menu.addAction(entry_of(f"{run.folder.name} ({stage})"))
            action.triggered.connect(lambda _=False, run=run: self._attach(run))
        self.attach_menu.addSeparator()
        self.attach_menu.addAction("Another folder…").triggered.connect(self._attach_elsewhere)

    def _attach(self, run: Run) -> None:
        try:
            self.trainer.attach(run.folder)
        except CeaseError as error:
            show_error(str(error))

    def _attach_elsewhere(self) -> None:
        folder = self.ask_folder("Folder of a training run")
        if folder is not None:
            self._attach(Run(folder))

    # --- the end --------------------------------------------------------------------------------------------

    def _ask_leave(self) -> Leave:
        box = QMessageBox(self)
        box.setIcon(QMessageBox.Icon.Question)
        box.setWindowTitle("A training is under way")
        box.setText(self.session.told)
        box.setInformativeText("It can go on without napari; the train dock finds it again next time.")
        keep = box.addButton("Keep training in the background", QMessageBox.ButtonRole.AcceptRole)
        stop = box.addButton("Stop and save", QMessageBox.ButtonRole.DestructiveRole)
        box.addButton("Cancel", QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(keep)
        box.exec()
        clicked = box.clickedButton()
        box.deleteLater()
        return "keep" if clicked is keep else "stop" if clicked is stop else "cancel"

    def may_leave(self) -> bool:
        """Ask, if a training is under way, what becomes of it; false if the window is to stay."""
        if not self.session.alive:
            return True
        answer = self.ask_leave()
        if answer == "stop":
            self.trainer.pause()
        return answer != "cancel"

    def let_loose(self) -> None:
        """Stop looking; a training goes on."""
        layers = self.viewer.layers.events
        for event in (layers.inserted, layers.removed, layers.renamed):
            event.disconnect(self._on_layers)
        self.layers.release()
        self.trainer.shutdown()

    def showEvent(self, event: Any) -> None:
        """Shown, the dock has its theme."""
        super().showEvent(event)
        self.form.align()
        self.form.refresh_models()

    def colour(self, text: str, ground: str) -> None:
        """For the curves."""
        self.curves.set_colours(text, ground)
