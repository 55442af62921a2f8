"""A combo box whose choices stand under headings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QStandardItem, QStandardItemModel
from qtpy.QtWidgets import QComboBox, QSizePolicy, QStyle, QStyleOptionComboBox, QStylePainter, QWidget

_BESIDE_TEXT = 4
"""Pixels that styles leave free beside the text."""


class Choice(NamedTuple):
    """A title, what it stands for, and an explanation."""

    title: str
    value: Any
    tip: str = ""


class GroupedBox(QComboBox):
    """Offers choices under headings, which cannot be chosen.

    Values are told apart by identity or equality; the box explains what is chosen.
    """

    chosen = Signal(object)
    """The user (or a program, through `value`) has chosen another value."""

    def __init__(self, tip: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._tip = tip
        self._choices: list[Choice | None] = []
        self.setModel(QStandardItemModel(self))
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setMinimumWidth(120)
        self.setMaxVisibleItems(30)
        self.currentIndexChanged.connect(self._on_index)

    def offer(self, groups: Mapping[str, Sequence[Choice]], value: Any) -> None:
        """Offer other choices, of which ``value`` is chosen (the first, if it is not among them); tells nobody.

        Parameters
        ----------
        groups
            Choices under their headings; those under the empty heading stand for themselves.
        """
        choices: list[Choice | None] = []
        titles: list[str] = []
        for heading, members in groups.items():
            if heading:
                choices.append(None)
                titles.append(heading)
            choices += members
            titles += [choice.title for choice in members]
        if choices != self._choices:
            self.blockSignals(True)
            self._fill(choices, titles)
            self.blockSignals(False)
        self.show_value(value)

    def _fill(self, choices: list[Choice | None], titles: list[str]) -> None:
        model = self.model()
        model.clear()
        under = ""
        for choice, title in zip(choices, titles, strict=True):
            item = QStandardItem(under + title if choice is not None else title)
            if choice is None:
                under = "   "
                item.setFlags(Qt.ItemFlag.NoItemFlags)
                font = item.font()
                font.setBold(True)
                item.setFont(font)
            elif choice.tip:
                item.setToolTip(choice.tip)
            model.appendRow(item)
        self._choices = choices

    @property
    def values(self) -> list[Any]:
        """What can be chosen, in order."""
        return [choice.value for choice in self._choices if choice is not None]

    @property
    def headings(self) -> list[str]:
        """What the choices stand under."""
        return [self.itemText(i) for i, choice in enumerate(self._choices) if choice is None]

    @property
    def value(self) -> Any:
        """What is chosen."""
        index = self.currentIndex()
        choice = self._choices[index] if 0 <= index < len(self._choices) else None
        return None if choice is None else choice.value

    @value.setter
    def value(self, value: Any) -> None:
        self.setCurrentIndex(self._index(value))

    def show_value(self, value: Any) -> None:
        """Show what was chosen elsewhere; tells nobody."""
        self.blockSignals(True)
        self.setCurrentIndex(self._index(value))
        self.blockSignals(False)
        self._explain()

    def _index(self, value: Any) -> int:
        choosable = [i for i, choice in enumerate(self._choices) if choice is not None]
        # By identity first: layers and masks are not compared by their values.
        same = [i for i in choosable if self._choices[i].value is value]  # type: ignore[union-attr]
        if not same and isinstance(value, (str, int, float)):
            same = [i for i in choosable if self._choices[i].value == value]  # type: ignore[union-attr]
        return (same or choosable or [-1])[0]

    def paintEvent(self, event: Any) -> None:
        """Without the indent that tells choices from headings in the list; with an ellipsis where room is short."""
        painter = QStylePainter(self)
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        field = self.style().subControlRect(
            QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self
        )
        option.currentText = option.fontMetrics.elidedText(
            option.currentText.strip(), Qt.TextElideMode.ElideRight, field.width() - _BESIDE_TEXT
        )
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)

    def _on_index(self, _: int) -> None:
        self._explain()
        self.chosen.emit(self.value)

    def _explain(self) -> None:
        index = self.currentIndex()
        choice = self._choices[index] if 0 <= index < len(self._choices) else None
        tip = choice.tip if choice is not None and choice.tip else self._tip
        # Where a long title is cut, this is where it can be read.
        self.setToolTip(tip if choice is None else f"{choice.title}: {tip}" if tip else choice.title)
