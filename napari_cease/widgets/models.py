"""The models dock: the library, and what can be done with it.

This module keeps its annotations as objects, since napari looks at them to hand over the viewer.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import napari
from napari.layers import Image
from napari.utils import progress
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QEvent, QFileSystemWatcher, QObject, Qt, QTimer, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHBoxLayout,
    QInputDialog,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QSplitter,
    QTextBrowser,
    QVBoxLayout,
    QWidget,
)

from cease_core.errors import CeaseError
from cease_core.models.foreign.drafts import Choices, Question
from cease_core.models.importing import Imported, Source, import_any, source_of
from cease_core.models.library import user_library
from cease_core.models.shelf import (
    NameTakenError,
    ShelvedModel,
    delete_model,
    export_model,
    import_source,
    rename_model,
    restore,
    shelf,
)
from cease_core.scan import Scan
from napari_cease.explorer import takes
from napari_cease.geometry import scan_of_layer
from napari_cease.jobs.worker import Worker
from napari_cease.layers import role_of
from napari_cease.widgets.import_form import ask_about, ask_consent
from napari_cease.widgets.model_card import card_html, takes_text
from napari_cease.widgets.model_table import MODEL, ModelFilter, ModelTable, ModelView, dragged_model
from napari_cease.widgets.window import canvas, end_if_removed, main_window

log = logging.getLogger(__name__)

IMPORTABLE = "Models (*.zip *.safetensors *.pt *.pth *.ts *.pt2 card.json metadata.json plans.json);;All files (*)"
IMPORT_TIP = "Take a model into your library: of this program, MONAI, nnU-Net, TorchScript, torch.export, or weights"
INSIDE = {"metadata.json": 2, "plans.json": 1}
"""Files that stand for the folder that many levels above, of a MONAI bundle and of nnU-Net's results."""
READ_ONLY = "This model came with the program and cannot be changed"


class Change(NamedTuple):
    """Something that was done, and how to take it back; taking it back returns the model's folder."""

    sentence: str
    back: Callable[[], Path]


class ConsentNeededError(CeaseError):
    """A file may run code, and the user has not yet been asked."""

    def __init__(self, question: Question) -> None:
        super().__init__(question.why)
        self.question = question


class ModelsDock(QWidget):
    """The library: look at models, try them, import, export, rename and delete them.

    Parameters
    ----------
    napari_viewer
        Given by napari.

    Attributes
    ----------
    ask_open, ask_save, ask_name, ask_about
        What asks the user for a file to import, a file to export to (given a proposal), another name (given a sentence
        and a proposal), and what the file does not tell (given the file, its kind, what is known and why the last
        attempt failed); each returns None if the user would rather not.
    ask_consent
        Whether the user agrees to open a file that may run code.
    current_scan
        Says which scan a model is tried on; None if there is none.
    """

    tried = Signal(object)
    """The folder of a model that the user wants to see at work on the current scan."""
    changed = Signal()
    """The library has other models than before, or other titles."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.ask_open: Callable[[], Path | None] = self._dialog_open
        self.ask_save: Callable[[Path], Path | None] = self._dialog_save
        self.ask_name: Callable[[str, str], str | None] = self._dialog_name
        self.ask_about: Callable[[Path, Source, Choices, str], Choices | None] = self._dialog_about
        self.ask_consent: Callable[[Question], bool] = lambda question: ask_consent(question, self)
        self.current_scan: Callable[[], Scan | None] = self._scan_of_viewer
        self._changes: list[Change] = []
        self._worker: Worker | None = None
        self._progress: Any = None
        self._dropped: Path | None = None
        self._place = Path.home()
        self._closed = False
        self._build()
        self._connect()
        self.refresh()
        self._on_changes()

    # --- what it is made of ---------------------------------------------------------------------------------

    def _build(self) -> None:
        self.setMinimumWidth(300)
        self.setAcceptDrops(True)
        column = QVBoxLayout(self)
        column.setContentsMargins(5, 6, 5, 6)
        column.setSpacing(6)

        self.filter = QLineEdit()
        self.filter.setPlaceholderText("Filter by title, class, defence, data…")
        self.filter.setToolTip("Models that have all these words on their card")
        self.filter.setClearButtonEnabled(True)
        self.table = ModelTable(self)
        self.sorted = ModelFilter(self)
        self.sorted.setSourceModel(self.table)
        self.view = ModelView(self.sorted)
        self.view.setToolTip("Drag a model onto the scan to try it")
        self.card = QTextBrowser()
        self.card.setToolTip("The chosen model's card")
        self.card.setOpenLinks(False)
        split = QSplitter(Qt.Orientation.Vertical)
        split.setChildrenCollapsible(False)
        split.addWidget(self.view)
        split.addWidget(self.card)
        split.setSizes([320, 300])
        column.addWidget(self.filter)
        column.addWidget(split, 1)

        self.try_button = _button("Try on the current scan", "Open the model on the scan in the viewer (Enter)")
        self.import_button = _button(
            "Import…",
            IMPORT_TIP,
        )
        self.export_button = _button("Export…", "Write the model as a zip that others can import")
        self.rename_button = _button("Rename", "Give the model another title (F2)")
        self.delete_button = _button("Delete", "Move the model to the trash; can be undone (Del)")
        column.addWidget(self.try_button)
        row = QHBoxLayout()
        row.setSpacing(4)
        for button in (self.import_button, self.export_button, self.rename_button, self.delete_button):
            row.addWidget(button)
        column.addLayout(row)

        self.note = QLabel()
        self.note.setWordWrap(True)
        self.note.setTextFormat(Qt.TextFormat.PlainText)
        self.undo_button = _button("Undo", "Take the last deletion or renaming back (Ctrl+Z)")
        self.undo_button.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        row = QHBoxLayout()
        row.addWidget(self.note, 1)
        row.addWidget(self.undo_button)
        column.addLayout(row)

    def _connect(self) -> None:
        self.filter.textChanged.connect(self._on_filter)
        self.view.selectionModel().selectionChanged.connect(self._on_chosen)
        self.table.retitled.connect(self.rename)
        self.view.try_pressed.connect(self.try_chosen)
        self.view.rename_pressed.connect(self.edit_title)
        self.view.delete_pressed.connect(self.delete_chosen)
        self.view.undo_pressed.connect(self.undo)
        self.try_button.clicked.connect(self.try_chosen)
        self.import_button.clicked.connect(self._import)
        self.export_button.clicked.connect(self._export)
        self.rename_button.clicked.connect(self.edit_title)
        self.delete_button.clicked.connect(self.delete_chosen)
        self.undo_button.clicked.connect(self.undo)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(200)  # a model that is written or deleted tells of several changes
        self._soon.timeout.connect(self.refresh)
        self._watcher = QFileSystemWatcher(self)
        self._watcher.directoryChanged.connect(lambda _: self._soon.start())
        main_window(self.viewer).installEventFilter(self)
        self._canvas = canvas(self.viewer)
        if self._canvas is not None:
            self._canvas.installEventFilter(self)

    # --- the library ----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read the library again; the same model stays chosen."""
        if self._closed:
            return
        if self.view.state() == QAbstractItemView.State.EditingState:
            self._soon.start()
            return
        chosen = self.chosen
        models = shelf()
        self._watch([user_library(), *(m.folder for m in models if not m.shipped)])
        if self.table.show_models(models):
            self.choose(chosen.folder if chosen else None)
            self.view.fit()
            self.changed.emit()

    def _watch(self, folders: list[Path]) -> None:
        wanted = {str(folder) for folder in folders if folder.is_dir()}
        known = set(self._watcher.directories())
        if gone := known - wanted:
            self._watcher.removePaths(sorted(gone))
        if new := wanted - known:
            self._watcher.addPaths(sorted(new))

    @property
    def chosen(self) -> ShelvedModel | None:
        """The chosen model; None where the filter lets none through."""
        rows = self.view.selectionModel().selectedRows()
        model: ShelvedModel | None = rows[0].data(MODEL) if rows else None
        return model

    def choose(self, folder: Path | None) -> None:
        """Choose a model by its folder, or the first one if it is not there."""
        rows = range(self.sorted.rowCount())
        shown = [self.sorted.index(row, 0).data(MODEL).folder for row in rows]
        if shown:
            row = shown.index(folder) if folder in shown else 0
            self.view.selectRow(row)
            self.view.scrollTo(self.sorted.index(row, 0))
        self._on_chosen()

    def _on_filter(self, text: str) -> None:
        self.sorted.set_text(text)
        chosen = self.chosen
        self.choose(chosen.folder if chosen else None)

    def _on_chosen(self, *_: Any) -> None:
        model = self.chosen
        if model is not None:
            self.card.setHtml(card_html(model))
        else:
            self.card.setPlainText(f"No model has “{self.filter.text()}” on its card.")
        self._enable()

    def _enable(self) -> None:
        model, free = self.chosen, self._worker is None
        self.try_button.setEnabled(model is not None)
        self.import_button.setEnabled(free)
        self.export_button.setEnabled(free and model is not None)
        for button, tip in (
            (self.rename_button, "Give the model another title (F2)"),
            (self.delete_button, "Move the model to the trash; can be undone (Del)"),
        ):
            button.setEnabled(model is not None and not model.shipped)
            button.setToolTip(READ_ONLY if model is not None and model.shipped else tip)

    # --- trying ---------------------------------------------------------------------------------------------

    def try_chosen(self) -> None:
        """Ask for the chosen model at work on the current scan."""
        if self.chosen is not None:
            self.try_model(self.chosen.folder)

    def try_model(self, folder: Path) -> None:
        """Ask for a model at work on the current scan, if it takes such scans."""
        model = next((m for m in self.table.models if m.folder == folder), None)
        try:
            scan = self.current_scan()
        except CeaseError as error:
            show_error(str(error))
            return
        if model is None:
            show_error(f"There is no model in {folder} any more; choose another one.")
        elif scan is None:
            show_info("Open a scan first (File › Open File, or File › Open Sample › napari-cease).")
        elif not takes(model.card, scan):
            channels = f"{scan.channels} channel" + ("" if scan.channels == 1 else "s")
            show_error(
                f"{model.card.title} takes {takes_text(model.card)}, but {scan.name} is {scan.ndim}-D with {channels}; "
                "choose another model or scan."
            )
        else:
            self.tried.emit(folder)

    def _scan_of_viewer(self) -> Scan | None:
        layers = [x for x in self.viewer.layers if isinstance(x, Image) and role_of(x)[0] in (None, "scan")]
        active = self.viewer.layers.selection.active
        layer = active if active in layers else next(iter(layers), None)
        return None if layer is None else scan_of_layer(layer)

    # --- changing -------------------------------------------------------------------------------------------

    def edit_title(self) -> None:
        """Let the user type another title, in the table."""
        model = self.chosen
        if model is not None and model.shipped:
            show_info(f"{READ_ONLY}.")
        elif model is not None:
            index = self.view.selectionModel().selectedRows()[0]
            self.view.setCurrentIndex(index)
            self.view.edit(index)

    def rename(self, folder: Path, title: str) -> None:
        """Give a model another title."""
        before = next(m.card.title for m in self.table.models if m.folder == folder)

        def back() -> Path:
            rename_model(folder, before)
            return folder

        if self._done(lambda: rename_model(folder, title)):
            # The table is in the middle of editing.
            QTimer.singleShot(0, self.refresh)
            if title.strip() != before:
                self._changes.append(Change(f"Renamed {before} to {' '.join(title.split())}.", back))
                self._on_changes()

    def delete_chosen(self) -> None:
        """Move the chosen model to the trash; the next one is chosen."""
        model = self.chosen
        if model is None:
            return
        row = self.view.selectionModel().selectedRows()[0].row()
        deleted = self._done(lambda: delete_model(model.folder))
        if deleted is not None:
            self.refresh()
            row = min(row, self.sorted.rowCount() - 1)
            self.choose(self.sorted.index(row, 0).data(MODEL).folder if row >= 0 else None)
            self._changes.append(Change(f"Deleted {model.card.title}.", lambda: restore(deleted)))
            self._on_changes()

    def undo(self) -> None:
        """Take the last deletion or renaming back."""
        if not self._changes:
            return
        folder = self._done(self._changes[-1].back)
        if folder is not None:
            self._changes.pop()
            self.refresh()
            self.choose(folder)
            self._on_changes()

    def _done(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns, True for nothing; None if it failed, which the user is told."""
        try:
            result = work()
        except CeaseError as error:
            show_error(str(error))
            return None
        return True if result is None else result

    def _on_changes(self) -> None:
        self.note.setText(self._changes[-1].sentence if self._changes else "")
        self.undo_button.setVisible(bool(self._changes))
        self.note.setVisible(bool(self._changes))

    # --- import and export, beside the window's thread --------------------------------------------------------

    def _import(self) -> None:
        source = self.ask_open()
        if source is not None:
            self._place = source.parent
            self.import_from(source)

    def import_from(self, source: Path, choices: Choices | None = None) -> None:
        """Import a model; the window goes on meanwhile."""
        if source.name in INSIDE:
            source = source.parents[INSIDE[source.name] - 1]
        try:
            kind = source_of(import_source(source))
        except CeaseError as error:
            show_error(str(error))
            return
        if choices is None and kind in ("program", "weights"):
            choices = self.ask_about(source, kind, Choices(), "")
            if choices is None:
                return
        self._try_import(source, kind, choices or Choices(), frozenset())

    def _try_import(self, source: Path, kind: Source, choices: Choices, agreed: frozenset[str]) -> None:
        def consent(question: Question) -> bool:
            # The worker cannot ask: it gives up, the window asks, and the work begins anew.
            if question.sha256 not in agreed:
                raise ConsentNeededError(question)
            return True

        def done(result: Imported | CeaseError) -> None:
            if isinstance(result, ConsentNeededError):
                if self.ask_consent(result.question):
                    self._try_import(source, kind, choices, agreed | {result.question.sha256})
            elif isinstance(result, NameTakenError):
                other = self.ask_name(str(result), result.free)
                if other is not None:
                    named = choices.model_copy(update={"name": other.strip()})
                    self._try_import(source, kind, named, agreed)
            elif isinstance(result, CeaseError) and kind != "own":
                more = self.ask_about(source, kind, choices, str(result))
                if more is not None:
                    self._try_import(source, kind, more, agreed)
            elif isinstance(result, CeaseError):
                show_error(str(result))
            else:
                self.filter.clear()
                self.refresh()
                self.choose(result.folder)
                title = self.chosen.card.title if self.chosen else result.folder.name
                show_info(" ".join((f"Imported {title}.", *result.remarks)))

        doing = f"Importing {import_source(source).name}…"
        self._start(doing, lambda: import_any(source, choices, consent), done)

    def _export(self) -> None:
        model = self.chosen
        target = None if model is None else self.ask_save(self._place / f"{model.card.name}.zip")
        if model is None or target is None:
            return
        self._place = target.parent
        folder = model.folder

        def done(result: Path | CeaseError) -> None:
            (show_error if isinstance(result, CeaseError) else show_info)(
                str(result) if isinstance(result, CeaseError) else f"Exported to {result}."
            )

        self._start(f"Exporting {model.card.title}…", lambda: export_model(folder, target), done)

    def _start(self, doing: str, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        if self._worker is not None:
            show_info(f"{self.note.text()} Wait for its end, then try again.")
            return

        def job(emit: Callable[[object], None], _: Callable[[], bool]) -> None:
            try:
                emit(work())
            except CeaseError as error:
                emit(error)
            except Exception as error:
                log.exception("the library could not be changed")
                emit(CeaseError(f"it stopped on an unexpected error: {error!r}; try again, or report it."))

        def end(_: int, result: object) -> None:
            self._stop()
            done(result)

        self._worker = Worker(self)
        self._worker.said.connect(end)
        self._worker.submit(job)
        self.note.setText(doing)
        self.note.show()
        self.undo_button.hide()
        self._progress = progress(total=0, desc=doing.rstrip("…"))
        self._enable()

    def _stop(self) -> None:
        """Let the worker and the progress bar go."""
        if self._worker is not None:
            self._worker.shutdown()
            self._worker.deleteLater()
            self._worker = None
            self._progress.close()
            self._on_changes()
            self._enable()

    def _dialog_open(self) -> Path | None:
        path, _ = QFileDialog.getOpenFileName(
            self, "Import a model: its file, a zip, or a file in its folder", str(self._place), IMPORTABLE
        )
        return Path(path) if path else None

    def _dialog_about(self, source: Path, kind: Source, choices: Choices, fault: str) -> Choices | None:
        return ask_about(source, kind, choices, fault, self)

    def _dialog_save(self, proposed: Path) -> Path | None:
        path, _ = QFileDialog.getSaveFileName(self, "Export a model", str(proposed), "Zip archives (*.zip)")
        return Path(path) if path else None

    def _dialog_name(self, sentence: str, proposed: str) -> str | None:
        name, given = QInputDialog.getText(self, "Import a model", sentence, text=proposed)
        return name if given and name.strip() else None

    # --- keys, drags, and the end ---------------------------------------------------------------------------

    def keyPressEvent(self, event: Any) -> None:
        """Undo, wherever in the dock the focus is."""
        if event.matches(QKeySequence.StandardKey.Undo):
            self.undo()
        else:
            super().keyPressEvent(event)

    def dragEnterEvent(self, event: Any) -> None:
        """Files from elsewhere can be imported."""
        if _files(event):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:
        """Import what was dropped."""
        event.acceptProposedAction()
        self.import_from(_files(event)[0])

    def _try_dropped(self) -> None:
        if self._dropped is not None and not self._closed:
            self.try_model(self._dropped)
        self._dropped = None

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Take models that are dropped on the canvas, and watch the main window for its end."""
        if event is None or self._closed:
            return False
        if watched is self._canvas and event.type() in (QEvent.Type.DragEnter, QEvent.Type.DragMove, QEvent.Type.Drop):
            folder = dragged_model(event.mimeData())
            if folder is not None:
                event.acceptProposedAction()
                if event.type() == QEvent.Type.Drop:
                    # After the drop has ended: what comes of it may take a while.
                    self._dropped = folder
                    QTimer.singleShot(0, self._try_dropped)
                return True
        elif event.type() == QEvent.Type.Close:
            self._stop()
        return bool(super().eventFilter(watched, event))

    def event(self, event: QEvent | None) -> bool:
        """A dock that loses its parent has been removed."""
        end_if_removed(self, event)
        return bool(super().event(event))

    def showEvent(self, event: Any) -> None:
        """Shown again, the dock knows what has changed."""
        super().showEvent(event)
        self.refresh()
        self.view.fit()

    def shutdown(self) -> None:
        """Let go of the window and of the work; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._soon.stop()
        self._stop()
        self._watch([])
        with suppress(RuntimeError):  # the window may have gone first
            main_window(self.viewer).removeEventFilter(self)
            if self._canvas is not None:
                self._canvas.removeEventFilter(self)
                self._canvas = None


def _files(event: Any) -> list[Path]:
    return [Path(url.toLocalFile()) for url in event.mimeData().urls() if url.isLocalFile()]


def _button(text: str, tip: str) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tip)
    return button
