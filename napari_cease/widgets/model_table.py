"""The library as a table that can be sorted, filtered, edited and dragged from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qtpy.QtCore import QAbstractTableModel, QEvent, QMimeData, QModelIndex, QSortFilterProxyModel, Qt, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from cease_core.models.shelf import ShelvedModel
from napari_cease.widgets.model_card import UNKNOWN, dice, in_255, measured_text, takes_text
from napari_cease.widgets.parts import BESIDE_HEADER, dress_header

MODEL_MIME = "application/x-napari-cease-model"
"""What is dragged: the path of a model's folder, in UTF-8."""

SORT, MODEL = Qt.ItemDataRole.UserRole, Qt.ItemDataRole.UserRole + 1
FIGURES = 3
"""Columns that stand in the narrowest dock too, with rows of two lines."""

_WIDEST_TITLE, _WIDEST_TEXT = 260, 150
_BESIDE_TEXT = 14  # margins


class Column(NamedTuple):
    """What a column shows of a model, sorts it by (None goes last), and explains."""

    title: str
    tip: str
    text: Callable[[ShelvedModel], str]
    key: Callable[[ShelvedModel], Any]
    explain: Callable[[ShelvedModel], str]
    number: bool = False


def _classes(model: ShelvedModel) -> str:
    return ", ".join(c.name for c in model.card.classes)


def _attacked(model: ShelvedModel) -> str:
    found = model.headline
    known = found.worst_dice is not None and found.epsilon is not None
    # Where it is narrow, the line breaks after the preposition.
    return f"{dice(found.worst_dice)}\N{NO-BREAK SPACE}at {in_255(found.epsilon)}" if known else UNKNOWN  # type: ignore[arg-type]


def _origin(model: ShelvedModel) -> str:
    return "shipped" if model.shipped else "yours"


def _title(model: ShelvedModel) -> str:
    return f"{model.card.title}\n{takes_text(model.card)}\nSegments {_classes(model)}\n{model.folder}"


COLUMNS = (
    Column("Model", "What the model is called", lambda m: m.card.title, lambda m: m.card.title.casefold(), _title),
    Column(
        "Attacked",
        "Mean Dice under attack, and the ε of that attack, a fraction of the window",
        _attacked,
        lambda m: m.headline.worst_dice,
        measured_text,
        number=True,
    ),
    Column(
        "Clean",
        "Mean Dice without attack",
        lambda m: dice(m.headline.clean_dice),
        lambda m: m.headline.clean_dice,
        lambda m: "Mean Dice without attack, " + ("of the audit" if m.headline.audited else "of the validation cases"),
        number=True,
    ),
    Column(
        "Verdict",
        "What an audit concluded",
        lambda m: m.headline.verdict or UNKNOWN,
        lambda m: m.headline.verdict or None,
        lambda m: m.headline.verdict or "No audit yet",
    ),
    Column(
        "Defence",
        "What the model was trained with against attacks",
        lambda m: m.card.defence,
        lambda m: m.card.defence,
        lambda m: f"Trained with the defence {m.card.defence}",
    ),
    Column("Classes", "What the model segments", _classes, _classes, lambda m: f"Segments {_classes(m)}"),
    Column(
        "Origin",
        "Whether the model came with the program, or is yours",
        _origin,
        _origin,
        lambda m: "Came with the program: cannot be changed" if m.shipped else f"Yours: {m.folder}",
    ),
    Column(
        "Dim.",
        "Whether the model takes images or volumes",
        lambda m: f"{m.card.ndim}-D",
        lambda m: m.card.ndim,
        lambda m: takes_text(m.card),
    ),
)
"""In order of importance: where the dock is narrow, the last ones go first."""


def mime_of(folder: Path) -> QMimeData:
    """What is dragged of a model."""
    data = QMimeData()
    data.setData(MODEL_MIME, str(folder).encode())
    return data


def dragged_model(data: QMimeData | None) -> Path | None:
    """The folder of the model that is dragged; None if it is something else."""
    if data is None or not data.hasFormat(MODEL_MIME):
        return None
    return Path(bytes(data.data(MODEL_MIME)).decode())


class ModelTable(QAbstractTableModel):
    """A row for each model."""

    retitled = Signal(object, str)
    """A model's folder, and the title that the user gave it."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.models: list[ShelvedModel] = []

    def show_models(self, models: Sequence[ShelvedModel]) -> bool:
        """Show these models; whether anything changed."""
        if list(models) == self.models:
            return False
        self.beginResetModel()
        self.models = list(models)
        self.endResetModel()
        return True

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        """One for each model."""
        return 0 if parent is not None and parent.isValid() else len(self.models)

    def columnCount(self, parent: QModelIndex | None = None) -> int:
        """One for each entry of `COLUMNS`."""
        return 0 if parent is not None and parent.isValid() else len(COLUMNS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Titles and explanations."""
        if orientation == Qt.Orientation.Horizontal:
            if role == Qt.ItemDataRole.TextAlignmentRole and COLUMNS[section].number:
                return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
            if role == Qt.ItemDataRole.DisplayRole:
                return COLUMNS[section].title
            if role == Qt.ItemDataRole.ToolTipRole:
                return f"{COLUMNS[section].tip}. Click to sort"
        return None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Text, explanation, alignment and sorting key of a cell; under ``MODEL`` the model itself."""
        if not index.isValid():
            return None
        model, column = self.models[index.row()], COLUMNS[index.column()]
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return column.text(model)
        if role == Qt.ItemDataRole.ToolTipRole:
            return column.explain(model)
        if role == Qt.ItemDataRole.TextAlignmentRole and column.number:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        if role == SORT:
            return column.key(model)
        return model if role == MODEL else None

    def flags(self, index: QModelIndex) -> Qt.ItemFlag:
        """All can be dragged; titles of the user's own models can be edited."""
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsDragEnabled
        own = index.isValid() and index.column() == 0 and not self.models[index.row()].shipped
        return flags | Qt.ItemFlag.ItemIsEditable if own else flags

    def setData(self, index: QModelIndex, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        """Tell of another title; it is shown once the library has it."""
        if role != Qt.ItemDataRole.EditRole or not index.isValid():
            return False
        self.retitled.emit(self.models[index.row()].folder, str(value))
        return True

    def mimeTypes(self) -> list[str]:
        """`MODEL_MIME` alone: napari would open a folder's path as an image."""
        return [MODEL_MIME]

    def mimeData(self, indexes: Any) -> QMimeData:
        """The first model's folder."""
        return mime_of(self.models[next(iter(indexes)).row()].folder)


class ModelFilter(QSortFilterProxyModel):
    """Sorts with what is unknown last either way, and keeps the models that have all words of a text."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._words: list[str] = []

    def set_text(self, text: str) -> None:
        """Keep the models that have all these words on them."""
        self._words = text.casefold().split()
        self.invalidateFilter()

    def filterAcceptsRow(self, row: int, parent: QModelIndex) -> bool:
        """Whether all words are on the model."""
        model: ShelvedModel = self.sourceModel().models[row]
        card = model.card
        texts = [column.text(model) for column in COLUMNS] + [card.name, card.architecture]
        texts += [card.data.name, card.data.licence] if card.data is not None else []
        whole = " ".join(texts).casefold()
        return all(word in whole for word in self._words)

    def lessThan(self, left: QModelIndex, right: QModelIndex) -> bool:
        """By the columns' keys."""
        a, b = left.data(SORT), right.data(SORT)
        if a is None or b is None:
            if self.sortOrder() == Qt.SortOrder.AscendingOrder:
                return a is not None and b is None
            return a is None and b is not None
        return bool(a < b)


class ModelView(QTableView):
    """The table on the screen: as many columns as there is room for, the most important ones first."""

    delete_pressed = Signal()
    rename_pressed = Signal()
    undo_pressed = Signal()
    try_pressed = Signal()

    def __init__(self, model: ModelFilter, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setModel(model)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setDragEnabled(True)
        self.setDragDropMode(QAbstractItemView.DragDropMode.DragOnly)
        self.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.setShowGrid(False)
        self.setTabKeyNavigation(False)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.verticalHeader().hide()
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setMinimumSectionSize(24)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        dress_header(header)
        self.setSortingEnabled(True)
        self.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self.doubleClicked.connect(self.try_pressed)

    def fit(self) -> None:
        """Show as many columns as there is room for: the first ones, on two lines if need be, then the others."""
        left = self.viewport().width() - sum(self._width(column) for column in range(FIGURES))
        narrow = left < 0
        for column in range(1, len(COLUMNS)):
            width = self._width(column)
            if column >= FIGURES:
                left -= width
                self.setColumnHidden(column, left < 0)
            self.setColumnWidth(column, min(width, self._header(column)) if narrow else width)
        lines = 2 if narrow else 1
        self.verticalHeader().setDefaultSectionSize(lines * self.fontMetrics().lineSpacing() + 8)

    def _width(self, column: int) -> int:
        """What a column needs to show all models, whatever the filter hides at the moment."""
        models = self.model().sourceModel().models
        texts = [self.fontMetrics().horizontalAdvance(COLUMNS[column].text(m)) for m in models]
        widest = _WIDEST_TITLE if column == 0 else _WIDEST_TEXT
        return max(min(max(texts, default=0) + _BESIDE_TEXT, widest), self._header(column))

    def _header(self, column: int) -> int:
        return int(self.fontMetrics().horizontalAdvance(COLUMNS[column].title)) + BESIDE_HEADER

    def resizeEvent(self, event: Any) -> None:
        """More or less room."""
        super().resizeEvent(event)
        self.fit()

    def event(self, event: QEvent | None) -> bool:
        """Our keys are ours while the table has the focus: napari knows some of them too."""
        if event is not None and event.type() == QEvent.Type.ShortcutOverride and self._meaning(event) is not None:
            event.accept()
            return True
        return bool(super().event(event))

    def keyPressEvent(self, event: Any) -> None:
        """Delete, rename, undo, try."""
        signal = self._meaning(event)
        if signal is None:
            super().keyPressEvent(event)
        else:
            signal.emit()

    def _meaning(self, event: Any) -> Any:
        if event.matches(QKeySequence.StandardKey.Undo):
            return self.undo_pressed
        meanings = {
            Qt.Key.Key_Delete: self.delete_pressed,
            Qt.Key.Key_F2: self.rename_pressed,
            Qt.Key.Key_Return: self.try_pressed,
            Qt.Key.Key_Enter: self.try_pressed,
        }
        return meanings.get(event.key()) if not event.modifiers() & ~Qt.KeyboardModifier.KeypadModifier else None
