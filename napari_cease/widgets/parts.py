"""Small parts that the docks' forms are made of: rows, numbers, words."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import pyqtgraph as pg
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QAbstractSpinBox,
    QDoubleSpinBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QMenu,
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


def make_menu(button: QPushButton, title: str, entries: Sequence[tuple[str, str, Callable[[], object]]]) -> None:
    """Let a button open a menu; each entry has its title, its tooltip and what it does."""
    # As text, which follows the theme; the menu's own arrow lies over it.
    button.setText(f"{title}  ▾")
    button.setStyleSheet("QPushButton::menu-indicator { image: none; width: 0; }")
    menu = QMenu(button)
    menu.setToolTipsVisible(True)
    for name, tip, slot in entries:
        action = menu.addAction(name)
        action.setToolTip(tip)
        action.triggered.connect(lambda _=False, slot=slot: slot())
    button.setMenu(menu)


def button_row(*buttons: QPushButton) -> QHBoxLayout:
    """Buttons side by side that share the room there is."""
    row = QHBoxLayout()
    row.setSpacing(4)
    for button in buttons:
        button.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        row.addWidget(button, 1)
    return row


def browse_button(tip: str, text: str = "…") -> QToolButton:
    """A button that opens a dialog for a folder or a file."""
    button = QToolButton()
    button.setText(text)
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
    box = _Real()
    box.setDecimals(digits)
    box.setRange(least, most)
    box.setSuffix(unit)
    return _dress_box(box, tip)


class _Real(QDoubleSpinBox):
    """Without zeros at the end."""

    def textFromValue(self, value: float) -> str:
        text: str = super().textFromValue(value)
        point: str = self.locale().decimalPoint()
        return text.rstrip("0").rstrip(point) if point in text else text


def _dress_box(box: QAbstractSpinBox, tip: str) -> Any:
    box.setToolTip(tip)
    box.setAccessibleName(tip)
    box.setButtonSymbols(QAbstractSpinBox.ButtonSymbols.NoButtons)
    modest(box)
    return box


BESIDE_HEADER = 24
"""Pixels of a header beside its title: margins, and the arrow of its order."""


def dress_header(header: QHeaderView) -> None:
    """Keep room for the arrow of a table's order, which napari's style draws over the title."""
    header.setStyleSheet("QHeaderView::section { padding: 2px 15px 2px 2px; }")


def outline_boxes(view: QAbstractItemView) -> None:
    """Draw a line around boxes without a tick, which the dark theme draws dark on dark."""
    view.setStyleSheet(
        "QAbstractItemView::indicator:unchecked "
        "{ border: 1px solid #808080; border-radius: 2px; width: 11px; height: 11px; }"
    )


def rule() -> QFrame:
    """A line between two parts."""
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    line.setFixedHeight(1)
    line.setStyleSheet("background: palette(mid)")
    return line


def own_menu(plot: pg.PlotItem, owner: QWidget) -> None:
    """Let a plot's menu, which pyqtgraph makes even if it is never shown, end with a widget.

    Without a parent it would be a window that outlives all others.
    """
    plot.ctrlMenu.setParent(owner, plot.ctrlMenu.windowFlags())


class SmallPlot(pg.PlotWidget):
    """A plot to look at, not to handle: no menu, no buttons, no zoom.

    Parameters
    ----------
    height
        Pixels.
    """

    def __init__(self, height: int, parent: QWidget | None = None) -> None:
        super().__init__(parent, background=None, enableMenu=False)
        own_menu(self.getPlotItem(), self)
        self.setFixedHeight(height)
        self.setMouseEnabled(False, False)
        self.hideButtons()
        self.getPlotItem().showGrid(x=True, y=True, alpha=0.2)

    def show_dice(self, title: str) -> None:
        """Let the axis on the left be one of Dice, from 0 to 1."""
        self.setLabel("left", title)
        self.setYRange(0, 1, padding=0.06)
        left = self.getPlotItem().getAxis("left")
        left.setStyle(hideOverlappingLabels=False)  # or 0 and 1 vanish at the ends
        left.setTicks([[(v, f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)]])

    def set_colours(self, text: str, ground: str) -> None:
        """Axes and labels in the theme's text colour, on its background."""
        self.setBackground(ground)
        for name in ("bottom", "left"):
            axis = self.getPlotItem().getAxis(name)
            axis.setPen(text)
            axis.setTextPen(text)
