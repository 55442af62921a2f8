"""Earlier runs to go back to, and undo and redo of what was chosen."""

from __future__ import annotations

from typing import Any

from napari.utils.notifications import show_error
from qtpy.QtCore import QModelIndex, Qt, QTimer
from qtpy.QtGui import QBrush, QColor, QKeyEvent, QKeySequence
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from cease_core.errors import CeaseError
from napari_cease import findings
from napari_cease.explorer import Explorer
from napari_cease.history import Choices, Run, Runs, Timeline
from napari_cease.jobs.exploration import SIDES
from napari_cease.layers import COLOURS, MARKS, TITLES

SETTLE = 250
"""Milliseconds without a change after which what is chosen counts as a step."""
ROWS = 5
"""Runs to be seen without scrolling."""


class HistoryPanel(QWidget):
    """The last runs in a list that is folded away; a click on one brings its choices back.

    Parameters
    ----------
    explorer
        Whose choices are remembered.
    """

    def __init__(self, explorer: Explorer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.explorer = explorer
        self.timeline = Timeline()
        self.runs = Runs()
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE)
        self._settle.timeout.connect(self.note)
        self._build()
        # Started anew by each change, so that a drag costs nothing but this.
        explorer.session.events.connect(self._soon)
        explorer.busy.connect(self._soon)
        explorer.viewer.layers.events.removed.connect(self._on_removed)

    def _build(self) -> None:
        self.undo_button = _button("↶", "Undo the last choice of scan, model, attack, target or region (Ctrl+Z)")
        self.redo_button = _button("↷", "Redo what was undone (Ctrl+Shift+Z)")
        self.undo_button.clicked.connect(self.undo)
        self.redo_button.clicked.connect(self.redo)
        self.list = QTreeWidget()
        self.list.setHeaderLabels(["Run", "ε", *(MARKS[side] for side in SIDES)])
        for column, side in enumerate(SIDES, start=2):
            self.list.headerItem().setForeground(column, QBrush(QColor(COLOURS[side])))
            self.list.headerItem().setToolTip(column, f"{TITLES[side]}: Dice at this ε")
        self.list.headerItem().setToolTip(1, "ε in 1/255")
        self.list.setRootIsDecorated(False)
        self.list.setUniformRowHeights(True)
        self.list.setAllColumnsShowFocus(True)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.list.setTextElideMode(Qt.TextElideMode.ElideRight)
        head = self.list.header()
        head.setStretchLastSection(False)
        head.setMinimumSectionSize(24)
        head.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column in range(1, 4):
            head.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        self.list.itemClicked.connect(self._on_clicked)
        self.list.itemActivated.connect(self._on_clicked)
        self.fold = QPushButton()
        self.fold.setCheckable(True)
        self.fold.setToolTip("Show the last runs; a click on one chooses its scan, models and attack again")
        # napari colours a button that is down, as if there were something to mind.
        self.fold.setStyleSheet(
            "text-align: left; border: none; outline: none; background: transparent; padding: 2px 0;"
        )
        self.fold.toggled.connect(self.list.setVisible)
        self.fold.toggled.connect(self._show_title)
        self.list.hide()
        row = QHBoxLayout()
        row.setSpacing(2)
        row.addWidget(self.fold, 1)
        row.addWidget(self.undo_button)
        row.addWidget(self.redo_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addLayout(row)
        column.addWidget(self.list)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
        self._show_runs()
        self._show_buttons()

    # --- remembering ----------------------------------------------------------------------------------------

    def _soon(self, _: Any = None) -> None:
        self._settle.start()

    def note(self) -> None:
        """Take in what is chosen now, and the run, if it has finished."""
        self._settle.stop()
        e = self.explorer
        now = e.choices()
        if now.scan is None:
            return
        self.timeline.note(now)
        self._show_buttons()
        dice = {side: view.dice for side in e.cards_chosen() if (view := e.results.views.get((side, now.level)))}
        if dice and e.results.complete and self.runs.note(Run(now, findings.title(e), findings.facts(e), dice)):
            self._show_runs()

    def _on_removed(self, event: Any) -> None:
        self.timeline.forget(event.value)
        if self.runs.forget(event.value):
            self._show_runs()
        self._show_buttons()

    # --- going back -----------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Choose again what was chosen before."""
        self._step(-1)

    def redo(self) -> None:
        """Choose again what was undone."""
        self._step(1)

    def pressed(self, event: QKeyEvent) -> bool:
        """Answer a key that no widget of the dock has used; returns whether it was one of ours."""
        if event.matches(QKeySequence.StandardKey.Undo):
            self.undo()
        elif event.matches(QKeySequence.StandardKey.Redo):
            self.redo()
        else:
            return False
        return True

    def _step(self, by: int) -> None:
        self.note()
        choices = self.timeline.step(by)
        if choices is not None and not self._restored(choices):
            self.timeline.step(-by)
        self._show_buttons()

    def _restored(self, choices: Choices) -> bool:
        try:
            self.explorer.restore(choices)
        except CeaseError as error:
            show_error(str(error))
            return False
        return True

    def _on_clicked(self, item: QTreeWidgetItem, _: int = 0) -> None:
        self.note()
        run = self.runs.all[self.list.indexOfTopLevelItem(item)]
        self._restored(run.choices)
        self.note()

    # --- showing --------------------------------------------------------------------------------------------

    def _show_buttons(self) -> None:
        self.undo_button.setEnabled(self.timeline.can_undo)
        self.redo_button.setEnabled(self.timeline.can_redo)

    def _show_title(self, _: Any = None) -> None:
        count = len(self.runs.all)
        self.fold.setText(f"{'▾' if self.fold.isChecked() else '▸'}  Earlier runs ({count})")

    def _show_runs(self) -> None:
        self.list.clear()
        for run in self.runs.all:
            cells = [run.title, str(run.level)]
            cells += [f"{run.dice[side]:.2f}" if side in run.dice else "–" for side in SIDES]
            item = QTreeWidgetItem(cells)
            tip = "\n".join([*(f"{name}: {value}" for name, value in run.details.items()), "Click to choose it again"])
            for column in range(len(cells)):
                item.setToolTip(column, tip)
                if column:
                    item.setTextAlignment(column, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            self.list.addTopLevelItem(item)
        row = max(self.list.sizeHintForRow(0), self.fontMetrics().height() + 4)
        frame = self.list.header().sizeHint().height() + 2 * self.list.frameWidth()
        self.list.setFixedHeight(frame + row * max(2, min(ROWS, len(self.runs.all))))
        self.list.setCurrentIndex(QModelIndex())
        self._show_title()

    def close_history(self) -> None:
        """Stop listening."""
        self._settle.stop()
        self.explorer.viewer.layers.events.removed.disconnect(self._on_removed)


def _button(sign: str, tip: str) -> QToolButton:
    button = QToolButton()
    button.setText(sign)
    button.setToolTip(tip)
    button.setAutoRaise(True)
    button.setFixedSize(26, 24)
    return button
