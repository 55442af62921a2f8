"""The audit's table as it grows: sorted and filtered by itself, since there may be a hundred thousand rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt, Signal
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from cease_core.evaluation.report.words import level
from napari_cease.audit_session import Row
from napari_cease.widgets.parts import BESIDE_HEADER, dress_header, tip_of

UNKNOWN = "–"
_WIDEST, _LEAST = 260, 60  # pixels of a column of words: at most, and where it is narrow
_BESIDE_TEXT = 10  # margins


class Column(NamedTuple):
    """What a column shows of a row and sorts it by; a key that is None goes last."""

    title: str
    tip: str
    text: Callable[[Row], str]
    key: Callable[[Row], Any]
    number: bool = False


def epsilon_text(epsilon: float) -> str:
    """``8/255``, ``0`` for the clean scan, ``0.5`` for an ε that leaves nothing of it."""
    return level(epsilon) if epsilon else "0"


def _in_common(names: Sequence[str]) -> int:
    """Letters that all names begin with, up to the last break between words."""
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in shared)
    return max(common.rfind(mark) for mark in "-_ ") + 1


def _figure(value: float, digits: int) -> str:
    if math.isnan(value):
        return UNKNOWN
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


COLUMNS = (
    Column("Model", "Which model was attacked", lambda r: r.model, lambda r: r.model),
    Column("Attack", "Which trial: “clean” is the scan without an attack", lambda r: r.attack, lambda r: r.attack),
    Column(
        "ε",
        "Largest change of any value, as a fraction of the window",
        lambda r: epsilon_text(r.epsilon),
        lambda r: r.epsilon,
        True,
    ),
    Column("Dice", "Mean over classes, under the attack", lambda r: _figure(r.dice, 3), lambda r: _known(r.dice), True),
    Column("Case", "Scan, and in brackets the slice of a volume", lambda r: r.case, lambda r: r.case),
    Column(
        "Clean",
        "Dice of the same model on the clean scan",
        lambda r: _figure(r.clean, 3),
        lambda r: _known(r.clean),
        True,
    ),
    Column(
        "PSNR (dB)",
        "Peak signal-to-noise ratio of the attacked scan; the window is the peak",
        lambda r: _figure(r.psnr, 1),
        lambda r: _known(r.psnr),
        True,
    ),
    Column("Error", "What went wrong with this trial", lambda r: r.error, lambda r: r.error or None),
)
_MODEL, _CASE, _ERROR = 0, 4, len(COLUMNS) - 1


class AuditTable(QAbstractTableModel):
    """A line for each row that has all words of the filter."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.rows: Sequence[Row] = ()
        self.titles: Mapping[str, str] = {}
        self._taken = self._common = 0
        self._shown: list[int] = []
        self._words: list[str] = []
        self._order: tuple[int, bool] | None = None

    def show_rows(self, rows: Sequence[Row], titles: Mapping[str, str]) -> None:
        """Show a list that has only grown since it was last shown, or another one."""
        if rows is not self.rows or len(rows) < self._taken:
            self.beginResetModel()
            self.rows, self.titles, self._taken, self._shown = rows, titles, 0, []
            self._common = _in_common(list(titles)) if len(titles) > 1 else 0
            self.endResetModel()
        new = [i for i in range(self._taken, len(rows)) if self._passes(rows[i])]
        self._taken = len(rows)
        if self._order is not None:
            for i in new:
                place = self._place(i)
                self.beginInsertRows(QModelIndex(), place, place)
                self._shown.insert(place, i)
                self.endInsertRows()
        elif new:
            self.beginInsertRows(QModelIndex(), len(self._shown), len(self._shown) + len(new) - 1)
            self._shown += new
            self.endInsertRows()

    def set_filter(self, text: str) -> None:
        """Keep the rows that have all these words."""
        self._words = text.casefold().split()
        self.beginResetModel()
        self._shown = self._sorted([i for i in range(self._taken) if self._passes(self.rows[i])])
        self.endResetModel()

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """By a column; by none (−1), as the jobs were done."""
        self._order = None if column < 0 else (column, order == Qt.SortOrder.DescendingOrder)
        self._rearrange()

    def row(self, index: QModelIndex) -> Row:
        """The row that a line shows."""
        found: Row = self.rows[self._shown[index.row()]]
        return found

    def text(self, row: Row, column: int) -> str:
        """What a cell shows; of the models' names only what tells them apart."""
        text = COLUMNS[column].text(row)
        return text[self._common :] if column == _MODEL else text

    def _passes(self, row: Row) -> bool:
        if not self._words:
            return True
        texts = (row.case, row.model, self.titles.get(row.model, ""), row.attack, epsilon_text(row.epsilon), row.error)
        whole = " ".join(texts).casefold()
        return all(word in whole for word in self._words)

    def _sorted(self, shown: list[int]) -> list[int]:
        if self._order is None:
            return sorted(shown)
        column, falling = self._order
        key, rows = COLUMNS[column].key, self.rows
        known = [i for i in shown if key(rows[i]) is not None]
        unknown = [i for i in shown if key(rows[i]) is None]
        return sorted(known, key=lambda i: key(rows[i]), reverse=falling) + unknown

    def _place(self, i: int) -> int:
        """Where a row goes among those that are shown, after its equals."""
        assert self._order is not None
        column, falling = self._order
        key, rows, shown = COLUMNS[column].key, self.rows, self._shown
        mine = key(rows[i])
        low, high = 0, len(shown)
        while mine is not None and low < high:
            middle = (low + high) // 2
            other = key(rows[shown[middle]])
            before = other is None or (mine > other if falling else mine < other)
            low, high = (low, middle) if before else (middle + 1, high)
        return high if mine is not None else len(shown)

    def _rearrange(self) -> None:
        self.layoutAboutToBeChanged.emit()
        held = [(index, self._shown[index.row()]) for index in self.persistentIndexList()]
        self._shown = self._sorted(self._shown)
        places = {i: line for line, i in enumerate(self._shown)} if held else {}
        self.changePersistentIndexList(
            [index for index, _ in held], [self.index(places[i], index.column()) for index, i in held]
        )
        self.layoutChanged.emit()

    # --- what Qt asks ---------------------------------------------------------------------------------------

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        """One for each row that passes."""
        return 0 if parent is not None and parent.isValid() else len(self._shown)

    def columnCount(self, parent: QModelIndex | None = None) -> int:
        """One for each entry of `COLUMNS`."""
        return 0 if parent is not None and parent.isValid() else len(COLUMNS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Titles and explanations."""
        if orientation == Qt.Orientation.Horizontal:
            if role == Qt.ItemDataRole.DisplayRole:
                return COLUMNS[section].title
            if role == Qt.ItemDataRole.ToolTipRole:
                return f"{COLUMNS[section].tip}. Click to sort"
            if role == Qt.ItemDataRole.TextAlignmentRole and COLUMNS[section].number:
                return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Text, explanation and alignment of a cell."""
        if not index.isValid():
            return None
        row, column = self.row(index), COLUMNS[index.column()]
        if role == Qt.ItemDataRole.DisplayRole:
            return self.text(row, index.column())
        if role == Qt.ItemDataRole.ToolTipRole:
            if row.error:
                return tip_of(row.error)
            title = self.titles.get(row.model, row.model)
            about = f"{row.case}: {title}\n{row.attack}, ε = {epsilon_text(row.epsilon)}"
            return tip_of(f"{about}\nDouble-click: look at it")
        if role == Qt.ItemDataRole.TextAlignmentRole and column.number:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None


class AuditView(QTableView):
    """The table on the screen."""

    chosen = Signal(object)
    """A `Row` that the user wants to look at."""

    def __init__(self, table: AuditTable, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.table = table
        self.setModel(table)
        self.setAccessibleName("Results")
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setWordWrap(False)
        self.setShowGrid(False)
        self.setTabKeyNavigation(False)
        self.verticalHeader().hide()
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setMinimumSectionSize(24)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        self.setSortingEnabled(True)
        self.sortByColumn(-1, Qt.SortOrder.AscendingOrder)
        self.doubleClicked.connect(self._on_chosen)
        dress_header(header)
        self._fitted = 0
        self._of: Sequence[Row] = ()
        self._needs = [0] * len(COLUMNS)

    def fit(self, *, failures: bool) -> None:
        """Give columns the room that they need, and hide those that say nothing."""
        self.setColumnHidden(_MODEL, len(self.table.titles) < 2)
        self.setColumnHidden(_ERROR, not failures)
        if self._of is not self.table.rows:
            self._of, self._fitted, self._needs = self.table.rows, 0, [0] * len(COLUMNS)
        new = self.table.rows[self._fitted :]
        metrics = self.fontMetrics()
        for at, column in enumerate(COLUMNS):
            texts = {self.table.text(row, at) for row in new}
            wide = max((metrics.horizontalAdvance(text) for text in texts), default=0) + _BESIDE_TEXT
            least = metrics.horizontalAdvance(column.title) + BESIDE_HEADER
            self._needs[at] = max(self._needs[at], least, wide if at == _ERROR else min(wide, _WIDEST))
        self._fitted = len(self.table.rows)
        self.verticalHeader().setDefaultSectionSize(metrics.lineSpacing() + 8)
        self._share()

    def _share(self) -> None:
        """Cut words until all is seen up to the case; what room is left goes to the case."""
        shown = [at for at in range(len(COLUMNS)) if not self.isColumnHidden(at)]
        widths = {at: self._needs[at] for at in shown}
        room = self.viewport().width()
        first = [at for at in shown if at <= _CASE]
        elastic = [at for at in first if not COLUMNS[at].number]
        while sum(widths[at] for at in first) > room:
            widest = max(elastic, key=lambda at: widths[at])
            if widths[widest] <= _LEAST:
                break
            widths[widest] -= 1
        widths[_CASE] += max(0, room - sum(widths.values()))
        for at, width in widths.items():
            self.setColumnWidth(at, width)

    def resizeEvent(self, event: Any) -> None:
        """More or less room."""
        super().resizeEvent(event)
        self._share()

    def keyPressEvent(self, event: Any) -> None:
        """Enter looks at the row."""
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.currentIndex().isValid():
            self._on_chosen(self.currentIndex())
        else:
            super().keyPressEvent(event)

    def _on_chosen(self, index: QModelIndex) -> None:
        self.chosen.emit(self.table.row(index))
