"""The auxiliary tasks of a training: chosen by hand, or by what a run measured of them."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from cease_core.tasks import TASKS
from cease_core.tasks.relevance import Relevance, Selection
from napari_cease.widgets.parts import outline_boxes, words


class TaskTable(QWidget):
    """A row a task with its scores and the verdict, as far as they are known; ticks where tasks are named by hand."""

    edited = Signal(object)
    """Names of the ticked tasks, or None for a choice by relevance."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        self.choose = QCheckBox("Choose by relevance, from the data")
        self.choose.setToolTip(
            "Warms all tasks up for a tenth of the training, measures how each relates to segmentation on training "
            "cases of other patients, and takes two that are weakly relevant"
        )
        self.choose.setChecked(True)
        column.addWidget(self.choose)
        self.table = QTableWidget(0, 4)
        self.table.setHorizontalHeaderLabels(["Task", "c_in", "u", "Verdict"])
        for at, tip in enumerate(
            (
                "A tick: it is trained with",
                "How closely the task's input gradient follows segmentation's, from 0 to 1",
                "What was learnt of the task: 0 for nothing, 1 for all",
                "Why it was taken or not",
            )
        ):
            self.table.horizontalHeaderItem(at).setToolTip(tip)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(20)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setWordWrap(True)
        self.table.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header = self.table.horizontalHeader()
        for at in range(3):
            header.setSectionResizeMode(at, QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(3, QHeaderView.ResizeMode.Stretch)
        header.setMinimumSectionSize(28)
        self.table.setFixedHeight(220)
        outline_boxes(self.table)
        self.table.setAccessibleName("Auxiliary tasks")
        column.addWidget(self.table)
        self.note = words()
        column.addWidget(self.note)
        self._found: tuple[Relevance, Selection] | None = None
        self._shown: Any = None
        self._filling = False
        self.choose.toggled.connect(self._on_choose)
        self.table.itemChanged.connect(self._on_item)

    def show_tasks(
        self, tasks: tuple[str, ...] | None, found: tuple[Relevance, Selection] | None, *, editable: bool
    ) -> str:
        """Show which tasks are named (None: by relevance), and what is known of them; returns that in a word."""
        self.choose.blockSignals(True)
        self.choose.setChecked(tasks is None)
        self.choose.blockSignals(False)
        self.choose.setEnabled(editable)
        self._found = found
        scores, reasons = (found[0].scores, found[1].reasons) if found is not None else ({}, {})
        ticked = tasks if tasks is not None else (found[1].chosen if found is not None else ())
        by_hand = tasks is not None and editable
        shown = (ticked, by_hand, tuple(scores))
        told = ", ".join(name.replace("_", " ") for name in ticked) or ("none" if found is not None else "chosen first")
        if shown == self._shown:
            return told
        self._shown = shown
        order = [*(found[0].weakest_first if found is not None else ()), *(n for n in TASKS if n not in scores)]
        self._filling = True
        self.table.setRowCount(len(order))
        for row, name in enumerate(order):
            score = scores.get(name)
            texts = (
                name.replace("_", " "),
                "–" if score is None else f"{score.c_in:.2f}",
                "–" if score is None else f"{score.learnable:.2f}",
                reasons.get(name, "–").partition(":")[0],
            )
            for column, text in enumerate(texts):
                cell = QTableWidgetItem(text)
                about = f"{TASKS[name].title}. {TASKS[name].source}"
                cell.setToolTip(about if column < 3 else reasons.get(name, "Not measured yet"))
                cell.setFlags(Qt.ItemFlag.ItemIsEnabled)
                if column == 0:
                    cell.setData(Qt.ItemDataRole.UserRole, name)
                    cell.setCheckState(Qt.CheckState.Checked if name in ticked else Qt.CheckState.Unchecked)
                    if by_hand:
                        cell.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
                self.table.setItem(row, column, cell)
        self._filling = False
        self.note.setText(found[1].summary if found is not None else "")
        self.note.setVisible(found is not None)
        return told

    def _on_choose(self, automatic: bool) -> None:
        cheap = tuple(name for name, task in TASKS.items() if not task.presents)[:2]
        measured = self._found[1].chosen if self._found is not None else ()
        self.edited.emit(None if automatic else measured or cheap)

    def _on_item(self, item: QTableWidgetItem) -> None:
        if self._filling or item.column() != 0:
            return
        cells = [self.table.item(row, 0) for row in range(self.table.rowCount())]
        self._shown = None  # should these be refused, the old ticks are drawn again
        self.edited.emit(
            tuple(c.data(Qt.ItemDataRole.UserRole) for c in cells if c.checkState() == Qt.CheckState.Checked)
        )
