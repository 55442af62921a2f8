"""Play: ε goes from 0 to the top and back through results that are already known."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QApplication, QToolButton, QWidget

from napari_cease.explorer import Explorer

PACE = 180
"""Milliseconds that an ε is shown at least."""
PLAY, PAUSE = "▶", "❚❚"
TIPS = {
    "idle": "Play: ε from 0 to the right end and back, as soon as every ε is known",
    "waiting": "Waiting until every ε is known; press again, or do anything else, to give up",
    "playing": "Pause; so does anything else that you do",
}

_ACTIONS = (QEvent.Type.MouseButtonPress, QEvent.Type.KeyPress, QEvent.Type.Wheel)


def there_and_back(top: int) -> list[int]:
    """Levels of one sweep: 0, 1, …, top, …, 1, 0."""
    return [*range(top + 1), *range(top - 1, -1, -1)]


class PlayButton(QToolButton):
    """Sweeps ε once, and stops at whatever the user does.

    Parameters
    ----------
    explorer
        Whose ε is swept.
    """

    def __init__(self, explorer: Explorer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.explorer = explorer
        self._levels: list[int] = []
        self._at = 0
        self._mine = False
        self._timer = QTimer(self)
        self._timer.setInterval(PACE)
        self._timer.timeout.connect(self._next)
        self.setCheckable(True)
        self.setAutoRaise(True)
        # As wide for both signs, so that the slider beside it keeps its length.
        self.setFixedSize(28, 24)
        self.toggled.connect(self._on_toggled)
        explorer.session.events.connect(self._on_session)
        self._label()

    @property
    def playing(self) -> bool:
        """Whether it plays, or waits to."""
        return bool(self._timer.isActive())

    def stop(self) -> None:
        """Stay at the present ε; from there the next sweep goes on."""
        self.setChecked(False)

    def _on_toggled(self, on: bool) -> None:
        application = QApplication.instance()
        assert application is not None
        if on:
            self._prepare()
            if not self.explorer.results.complete and self.explorer.settled:
                self.explorer.explore()  # it was cancelled
            self._timer.start()
            # Only while it plays: every event of the application passes by.
            application.installEventFilter(self)
        else:
            self._timer.stop()
            application.removeEventFilter(self)
        self._label()

    def _prepare(self) -> None:
        s = self.explorer.session
        levels = there_and_back(s.top)
        if levels != self._levels or self._at >= len(levels) or levels[self._at] != s.level:
            self._levels, self._at = levels, 0

    def _next(self) -> None:
        if not self.explorer.cards_chosen():
            self.stop()
            return
        if not self.explorer.results.complete:
            self._label()
            if self.explorer.settled:  # cancelled, or failed: nothing is on its way
                self.stop()
            return
        if self.explorer.session.level == self._levels[self._at]:
            self._at += 1
        if self._at == len(self._levels):
            self.stop()
            return
        self._mine = True
        self.explorer.session.level = self._levels[self._at]
        self._mine = False
        self._label()

    def _on_session(self, _: Any) -> None:
        if not self._mine:
            self.stop()

    def _label(self) -> None:
        state = "idle" if not self.playing else "playing" if self.explorer.results.complete else "waiting"
        text = PLAY if state == "idle" else PAUSE
        if self.text() != text:
            self.setText(text)
        if self.toolTip() != TIPS[state]:
            self.setToolTip(TIPS[state])

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Stop at a key, a click or the wheel anywhere but on this button."""
        if event is not None and event.type() in _ACTIONS and isinstance(watched, QWidget) and watched is not self:
            self.stop()
        return False
