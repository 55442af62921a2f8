"""Small parts that the docks' forms are made of: rows, numbers, words."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pyqtgraph as pg
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QDoubleSpinBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_cease.widgets.parameters import modest


def empty_column() -> tuple[QWidget, QVBoxLayout]:
    """A widget for other widgets one below the other."""
    inside = QWidget()
    column = QVBoxLayout(inside)
    column.setContentsMargins(0, 0, 0, 0)
    column.setSpacing(4)
    return inside, column


def empty_form() -> tuple[QWidget, QFormLayout]:
    """A widget for rows, each with its label."""
    inside = QWidget()
    form = QFormLayout(inside)
    form.setContentsMargins(0, 0, 0, 0)
    form.setSpacing(4)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return inside, form


def align(forms: Sequence[QFormLayout]) -> None:
    """One column of labels throughout; how wide they are is known once the theme has its fonts."""
    labels = [
        item.widget()
        for form in forms
        for at in range(form.rowCount())
        if (item := form.itemAt(at, QFormLayout.ItemRole.LabelRole)) is not None and item.widget()
    ]
    width = max(label.sizeHint().width() for label in labels)
    for label in labels:
        label.setMinimumWidth(width)


def row(*widgets: QWidget) -> QHBoxLayout:
    """Widgets side by side; labels and tool buttons as narrow as they are."""
    row = QHBoxLayout()
    row.setSpacing(6)
    for widget in widgets:
        row.addWidget(widget, 0 if isinstance(widget, QLabel | QToolButton) else 1)
    return row


def button_row(*buttons: QPushButton) -> QHBoxLayout:
    """Buttons side by side that share the room there is."""
    row = QHBoxLayout()
    row.setSpacing(4)
    for button in buttons:
        button.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        row.addWidget(button, 1)
    return row


def browse_button(tip: str) -> QToolButton:
    """A button that opens a dialog for a folder."""
    button = QToolButton()
    button.setText("…")
    button.setToolTip(tip)
    button.setAccessibleName(tip)
    return button


def words(text: str = "", *, rich: bool = False) -> QLabel:
    """Text that breaks into lines and can be copied, shown as it is unless it is ``rich``."""
    label = QLabel(text)
    label.setTextFormat(Qt.TextFormat.RichText if rich else Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def escape(text: str) -> str:
    """Text as rich text shows it."""
    return html.escape(text, quote=False)


def tip_of(text: str) -> str:
    """A tool tip that shows a text as it is, whatever names it holds."""
    return f"<p>{escape(text).replace(chr(10), '<br>')}</p>" if text else ""


def entry_of(text: str) -> str:
    """A menu's entry that shows a text as it is: an ampersand marks no key."""
    return text.replace("&", "&&")


def whole(least: int, most: int, tip: str) -> QSpinBox:
    """A whole number."""
    box = QSpinBox()
    box.setRange(least, most)
    return _dress_box(box, tip)


def real(least: float, most: float, digits: int, unit: str, tip: str) -> QDoubleSpinBox:
    """A number with its unit."""
    box = QDoubleSpinBox()
    box.setDecimals(digits)
    box.setRange(least, most)
    box.setSuffix(unit)
    return _dress_box(box, tip)


def _dress_box(box: QAbstractSpinBox, tip: str) -> Any:
    box.setToolTip(tip)
    box.setAccessibleName(tip)
    box.setButtonSymbols(QAbstractSpinBox.ButtonSymbols.NoButtons)
    modest(box)
    return box


def rule() -> QFrame:
    """A line between two parts."""
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    line.setFixedHeight(1)
    line.setStyleSheet("background: palette(mid)")
    return line


def paint_plot(plot: pg.PlotWidget, text: str, ground: str) -> None:
    """Axes and labels in the theme's text colour, on its background."""
    plot.setBackground(ground)
    for name in ("bottom", "left"):
        axis = plot.getPlotItem().getAxis(name)
        axis.setPen(text)
        axis.setTextPen(text)
