"""Editors for whatever parameters the chosen attack shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QDoubleSpinBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QSizePolicy,
    QSpinBox,
    QWidget,
)

from napari_cease.choices import Editor
from napari_cease.widgets.grouped_box import Choice, GroupedBox


class Field(NamedTuple):
    """A widget that edits one value."""

    widget: QWidget
    changed: Any
    value: Callable[[], Any]
    show: Callable[[Any], None]


class ParameterRows(QWidget):
    """Rows of a form, one for each parameter; short ones share a row with a fixed companion or with each other.

    Parameters
    ----------
    companion
        A label and a widget that always stand in the first row of short editors.
    """

    edited = Signal(str, object)
    """Name of a parameter, and the value that the user gave it."""

    def __init__(self, companion: tuple[str, QWidget], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.form = QFormLayout(self)
        self.form.setContentsMargins(0, 0, 0, 0)
        self.form.setSpacing(4)
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.companion = companion
        self.fields: dict[str, Field] = {}
        self._editors: tuple[Editor, ...] | None = None
        self._label_width = 0

    def align(self, width: int) -> None:
        """Make labels at least ``width`` pixels wide, as those of the form above."""
        self._label_width = width
        for row in range(self.form.rowCount()):
            self.form.itemAt(row, QFormLayout.ItemRole.LabelRole).widget().setMinimumWidth(width)

    def show_editors(self, editors: tuple[Editor, ...], values: Mapping[str, Any]) -> None:
        """Show these editors with these values; tells nobody."""
        if editors != self._editors:
            self._rebuild(editors)
        for name, field in self.fields.items():
            field.widget.blockSignals(True)
            field.show(values[name])
            field.widget.blockSignals(False)

    def _rebuild(self, editors: tuple[Editor, ...]) -> None:
        self._editors = editors
        title, widget = self.companion
        widget.setParent(self)
        self.setUpdatesEnabled(False)
        while self.form.rowCount():
            row = self.form.takeRow(0)
            for item in (row.labelItem, row.fieldItem):
                _discard(item, keep=widget)
        self.fields = {editor.name: self._field(editor) for editor in editors}
        wide = [e for e in editors if e.kind not in _SHORT]
        short = [(e.title, self.fields[e.name].widget, e.tip) for e in editors if e.kind in _SHORT]
        for editor in wide:
            self._add(editor.title, self.fields[editor.name].widget, editor.tip)
        # The companion comes second, so that it stays where it is from attack to attack.
        short.insert(min(1, len(short)), (title, widget, widget.toolTip()))
        for i in range(0, len(short), 2):
            self._add_pair(short[i : i + 2])
        widget.show()
        self.setUpdatesEnabled(True)

    def _add(self, title: str, field: QWidget | QHBoxLayout, tip: str) -> None:
        label = QLabel(title)
        label.setToolTip(tip)
        label.setMinimumWidth(self._label_width)
        self.form.addRow(label, field)

    def _add_pair(self, pair: list[tuple[str, QWidget, str]]) -> None:
        row = QHBoxLayout()
        (title, field, tip), *second = pair
        row.addWidget(field, 1)
        for other, beside, tip_beside in second:
            label = QLabel(other)
            label.setToolTip(tip_beside)
            row.addSpacing(8)
            row.addWidget(label)
            row.addWidget(beside, 1)
        self._add(title, row, tip)

    def _field(self, editor: Editor) -> Field:
        field = _MAKE[editor.kind](editor)
        field.widget.setToolTip(field.widget.toolTip() or editor.tip)
        field.changed.connect(lambda *_: self.edited.emit(editor.name, field.value()))
        return field


class PairBox(QWidget):
    """Two numbers, from and to."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self.ends = (_number(), _number())
        for text, end in zip(("from", "to"), self.ends, strict=True):
            end.setButtonSymbols(QAbstractSpinBox.ButtonSymbols.NoButtons)
            row.addWidget(QLabel(text))
            row.addWidget(end, 1)
            end.valueChanged.connect(self.changed)

    def value(self) -> tuple[float, float]:
        """Both numbers."""
        return self.ends[0].value(), self.ends[1].value()

    def show_value(self, value: tuple[float, float]) -> None:
        """Show two numbers; tells nobody."""
        for end, part in zip(self.ends, value, strict=True):
            end.blockSignals(True)
            end.setValue(part)
            end.blockSignals(False)


def _choice(editor: Editor) -> Field:
    box = GroupedBox(editor.tip)
    box.offer({"": [Choice(title, value) for title, value in editor.choices]}, None)
    return Field(box, box.chosen, lambda: box.value, box.show_value)


def _whole(editor: Editor) -> Field:
    box = QSpinBox()
    box.setRange(int(editor.least), 100_000)
    modest(box)
    return Field(box, box.valueChanged, box.value, box.setValue)


def _number(least: float = 0.0) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setDecimals(3)
    box.setRange(least, 1000.0)
    box.setSingleStep(0.05)
    modest(box)
    return box


def _real(editor: Editor) -> Field:
    box = _number(editor.least)
    return Field(box, box.valueChanged, box.value, box.setValue)


def _flag(editor: Editor) -> Field:
    box = QCheckBox()
    return Field(box, box.toggled, box.isChecked, box.setChecked)


def _pair(editor: Editor) -> Field:
    box = PairBox()
    return Field(box, box.changed, box.value, box.show_value)


def _text(editor: Editor) -> Field:
    box = QLineEdit()
    return Field(box, box.editingFinished, lambda: box.text().strip() or None, lambda v: box.setText(_written(v)))


_SHORT = ("whole", "number", "flag")
_MAKE: dict[str, Callable[[Editor], Field]] = {
    "choice": _choice,
    "whole": _whole,
    "number": _real,
    "flag": _flag,
    "pair": _pair,
    "text": _text,
}


def modest(box: QAbstractSpinBox) -> None:
    """Tell of a number when it is complete, and be as wide as the dock has room."""
    box.setKeyboardTracking(False)
    box.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    box.setStyleSheet("min-width: 48px;")  # napari's theme asks for more


def _written(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _discard(item: Any, keep: QWidget) -> None:
    if item is None:
        return
    if (layout := item.layout()) is not None:
        while layout.count():
            _discard(layout.takeAt(0), keep)
    elif (widget := item.widget()) is not None and widget is not keep:
        widget.hide()
        widget.deleteLater()
