"""A part of a dock that folds away."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QIcon
from qtpy.QtWidgets import QSizePolicy, QWidget
from superqt import QCollapsible


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

    @property
    def title(self) -> str:
        """What the part is called."""
        return self._title

    @title.setter
    def title(self, title: str) -> None:
        if title != self._title:
            self._title = title
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
        fitting = self.toggleButton().fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, self.width() - 4)
        self.setText(fitting.replace("&", "&&"))  # else it marks a key
