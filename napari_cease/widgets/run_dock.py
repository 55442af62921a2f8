"""What the docks have in common that watch a process of its own: a column that scrolls, and how they end.

This module keeps its annotations as objects, as those of the docks do.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from napari.utils.theme import get_theme
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QFileDialog, QFrame, QScrollArea, QVBoxLayout, QWidget

from napari_cease.widgets.window import end_if_removed, main_window

LISTS = "Lists of cases (*.csv *.tsv *.jsonl);;dataset.json (dataset.json)"
"""The files that are data sets: what a dialog offers."""


class RunDock(QScrollArea):
    """A dock, as narrow as it needs to be, that ends with its window or when it is removed.

    Parameters
    ----------
    viewer
        Whose window and theme are watched.

    Attributes
    ----------
    ask_folder
        What asks for a folder, given the question; None if the user would rather not.
    ask_file
        The same for a file that lists cases.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.viewer = viewer
        self.ask_folder: Callable[[str], Path | None] = self._ask_folder
        self.ask_file: Callable[[str], Path | None] = self._ask_file
        self._closed = False
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMinimumWidth(320)
        body = QWidget()
        self.setWidget(body)
        self.column = QVBoxLayout(body)
        self.column.setContentsMargins(5, 6, 5, 6)
        self.column.setSpacing(6)

    def watch(self) -> None:
        """Follow the theme, and notice when the window closes."""
        self.viewer.events.theme.connect(self._on_theme)
        main_window(self.viewer).installEventFilter(self)
        self._on_theme()

    def colour(self, text: str, ground: str) -> None:
        """Take the theme's colours of text and background."""

    def may_leave(self) -> bool:
        """Asked when the window closes, which other docks may still refuse; false if it is to stay."""
        return True

    def let_loose(self) -> None:
        """End all that must not outlive the dock."""

    def shutdown(self) -> None:
        """Stop looking; what goes on in a process of its own does so. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with suppress(RuntimeError):  # the window may have gone first
            main_window(self.viewer).removeEventFilter(self)
        self.viewer.events.theme.disconnect(self._on_theme)
        self.let_loose()

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Watch the main window for its end."""
        if event is not None and event.type() == QEvent.Type.Close and not self._closed and not self.may_leave():
            event.ignore()
            return True
        return bool(super().eventFilter(watched, event))

    def event(self, event: QEvent | None) -> bool:
        """A dock that loses its parent has been removed."""
        end_if_removed(self, event)
        return bool(super().event(event))

    def closeEvent(self, event: Any) -> None:
        """Closed as a window of its own."""
        if not self._closed and not self.may_leave():
            event.ignore()
            return
        self.shutdown()
        super().closeEvent(event)

    def _on_theme(self, _: Any = None) -> None:
        theme = get_theme(self.viewer.theme)
        self.colour(theme.text.as_hex(), theme.background.as_hex())

    def _ask_folder(self, question: str) -> Path | None:
        found = QFileDialog.getExistingDirectory(self, question)
        return Path(found) if found else None

    def _ask_file(self, question: str) -> Path | None:
        found, _ = QFileDialog.getOpenFileName(self, question, filter=LISTS)
        return Path(found) if found else None
