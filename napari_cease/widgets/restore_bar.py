"""A line on top of the explorer that offers what a crash has left."""

from __future__ import annotations

from qtpy.QtWidgets import QFrame, QPushButton, QVBoxLayout

from napari_cease.recovery import Left, SessionKeeper
from napari_cease.widgets.parts import button_row, words


class RestoreBar(QFrame):
    """Says what can be restored; there only while something can.

    Parameters
    ----------
    keeper
        Whose offers are shown.
    """

    def __init__(self, keeper: SessionKeeper) -> None:
        super().__init__()
        self.setObjectName("restoreBar")
        self.setStyleSheet("#restoreBar { border: 1px solid palette(highlight); border-radius: 3px; }")
        column = QVBoxLayout(self)
        column.setContentsMargins(7, 5, 7, 6)
        column.setSpacing(5)
        self.told = words()
        column.addWidget(self.told)
        self.restore = QPushButton("Restore")
        self.restore.setToolTip("Open what was shown when napari ended without closing this window")
        self.discard = QPushButton("Discard")
        self.discard.setToolTip("Forget it; scans and models on disk stay as they are")
        column.addLayout(button_row(self.restore, self.discard))
        self.restore.clicked.connect(self._on_restore)
        self.discard.clicked.connect(keeper.discard)
        self._keeper = keeper
        keeper.offered.connect(self._on_offered)
        self.hide()

    def _on_restore(self) -> None:
        self._enable(False)
        self.told.setText("Restoring…")
        self._keeper.restore()

    def _on_offered(self, left: Left | None) -> None:
        if left is not None:
            self.told.setText(f"napari ended without closing a window: {left.kept.session.told}.")
        self._enable(True)
        self.setVisible(left is not None)

    def _enable(self, on: bool) -> None:
        self.restore.setEnabled(on)
        self.discard.setEnabled(on)
