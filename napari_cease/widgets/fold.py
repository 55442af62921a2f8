"""Small parts that the docks' forms are made of: a part that folds away, rows, numbers, words."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QIcon
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QDoubleSpinBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QSpinBox,
    QToolButton,
    QWidget,
)
from superqt import QCollapsible

from napari_cease.widgets.parameters import modest


class Fold(QCollapsible):
    """A part of the dock under its title, which folds it away."""

    def __init__(self, title: str, inside: QWidget, *, opened: bool = True) -> None:
        super().__init__(expandedIcon=QIcon(), collapsedIcon=QIcon())
        self._title, self._detail = title, ""
        self.inside = inside
        self.setDuration(0)
        self.toggleButton().setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.toggleButton().setToolTip(f"{title}: show or fold away")
        # napari colours a button that is down, as if there were something to mind.
        self.toggleButton().setStyleSheet(
            "text-align: left; border: none; background: transparent; padding: 2px 0; font-weight: bold;"
        )
        self.layout().setContentsMargins(0, 0, 0, 0)
        self.content().layout().setContentsMargins(0, 2, 0, 2)
        self.addWidget(inside)
        self.toggled.connect(self._on_toggled)
        self.open(opened)
        self._on_toggled()

    def tell(self, detail: str) -> None:
        """Say in a word, beside the title of a part that is folded away, what is inside."""
        if detail != self._detail:
            self._detail = detail
            self._on_toggled()

    def open(self, opened: bool) -> None:
        """Show what is inside, or fold it away."""
        (self.expand if opened else self.collapse)(animate=False)

    def resizeEvent(self, event: Any) -> None:
        """A title that does not fit is cut with an ellipsis."""
        super().resizeEvent(event)
        self._on_toggled()

    def _on_toggled(self, _: Any = None) -> None:
        opened = self.isExpanded()
        # As text, which follows the theme; the collapsible's own arrows keep the colour that they were made in.
        text = f"{'▾' if opened else '▸'}  {self._title}"
        text += f" · {self._detail}" if self._detail and not opened else ""
        self.setText(self.toggleButton().fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, self.width() - 4))


def row(*widgets: QWidget) -> QHBoxLayout:
    """Widgets side by side; labels and tool buttons as narrow as they are."""
    row = QHBoxLayout()
    row.setSpacing(6)
    for widget in widgets:
        row.addWidget(widget, 0 if isinstance(widget, QLabel | QToolButton) else 1)
    return row


def browse_button(tip: str) -> QToolButton:
    """A button that opens a dialog for a folder."""
    button = QToolButton()
    button.setText("…")
    button.setToolTip(tip)
    button.setAccessibleName(tip)
    return button


def words() -> QLabel:
    """Text that breaks into lines and can be copied."""
    label = QLabel()
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def whole(least: int, most: int, tip: str) -> QSpinBox:
    """A whole number."""
    box = QSpinBox()
    box.setRange(least, most)
    return _modest(box, tip)


def real(least: float, most: float, digits: int, unit: str, tip: str) -> QDoubleSpinBox:
    """A number with its unit."""
    box = QDoubleSpinBox()
    box.setDecimals(digits)
    box.setRange(least, most)
    box.setSuffix(unit)
    return _modest(box, tip)


def _modest(box: QAbstractSpinBox, tip: str) -> Any:
    box.setToolTip(tip)
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
