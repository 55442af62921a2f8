"""Save: figure, numbers and animation of what the explorer shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from napari.utils.notifications import show_error, show_info
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QRectF, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QFont, QFontMetricsF, QImage, QPainter
from qtpy.QtWidgets import QApplication, QFileDialog, QPushButton, QWidget

from cease_core.errors import CeaseError
from cease_core.io.files import write_text
from napari_cease import findings
from napari_cease.explorer import Explorer
from napari_cease.export import (
    Curve,
    Frame,
    animation_suffixes,
    fitted_width,
    numbers,
    with_suffix,
    write_animation,
)
from napari_cease.jobs.exploration import Side
from napari_cease.jobs.worker import Worker
from napari_cease.layers import COLOURS, MARKS, TITLES
from napari_cease.widgets import figure
from napari_cease.widgets.parts import make_menu

GROUND, INK = "#ffffff", "#202020"
NOTHING = "There is no curve yet; choose a scan and a model, and wait for the attack."


def or_tell(action: Callable[[], Any]) -> None:
    """Do something, and show in a sentence why it cannot be done."""
    try:
        action()
    except CeaseError as error:
        show_error(str(error))


def save_as(
    parent: QWidget,
    explorer: Explorer,
    path: Path | None,
    title: str,
    name: str,
    suffixes: tuple[str, ...],
    write: Callable[[Path], None],
    *,
    say: bool = True,
) -> None:
    """Write a file that belongs to the scan, with one of the suffixes; asks where, if no path is given."""
    to = path or _ask(parent, explorer, title, name, suffixes)
    if to is None:
        return

    def save() -> None:
        there = with_suffix(to, suffixes)
        write(there)
        if say:
            show_info(f"Saved {there}")

    or_tell(save)


def _ask(parent: QWidget, explorer: Explorer, title: str, name: str, suffixes: tuple[str, ...]) -> Path | None:
    scan = explorer.session.scan
    proposed = f"{scan.name if scan is not None else 'scan'}-{name}{suffixes[0]}"
    kinds = ";;".join(f"{suffix[1:].upper()} (*{suffix})" for suffix in suffixes)
    chosen, _ = QFileDialog.getSaveFileName(parent, title, proposed, kinds)
    return Path(chosen) if chosen else None


class SaveButton(QPushButton):
    """A menu of what can be saved.

    Parameters
    ----------
    explorer
        What it shows is saved.
    by_class
        Whether the figure has a curve for each class.
    grab
        Takes a picture of the canvas, uint8, shape (height, width, 3 or 4).
    """

    def __init__(
        self,
        explorer: Explorer,
        by_class: Callable[[], bool],
        grab: Callable[[], NDArray[np.uint8]],
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self.explorer = explorer
        self.by_class = by_class
        self.recorder = Recorder(explorer, grab, self)
        self.recorder.failed.connect(show_error)
        self.recorder.saved.connect(lambda path: show_info(f"Saved {path}"))
        self.setToolTip("Figure, numbers or animation of Dice over ε")
        entries = (
            ("Copy figure", "The curves, dark on white, to the clipboard", self.copy_figure),
            ("Save figure…", "The curves, dark on white, as PNG or SVG", self.save_figure),
            ("Save numbers…", "Dice of each model, class and ε as CSV, with the attack's settings", self._ask_numbers),
            ("Save animation…", "The canvas from ε = 0 to the right end and back", self.save_animation),
        )
        make_menu(self, "Save", entries)

    # --- what is done ---------------------------------------------------------------------------------------

    def copy_figure(self) -> None:
        """Put the figure on the clipboard."""
        or_tell(lambda: self._draw(lambda drawn: QApplication.clipboard().setImage(figure.picture(drawn))))

    def save_figure(self, path: Path | None = None) -> None:
        """Write the figure; asks where, if no path is given."""

        def write(to: Path) -> None:
            self._draw(lambda drawn: figure.save_figure(drawn, to))

        save_as(self, self.explorer, path, "Save figure", "curve", figure.SUFFIXES, write)

    def save_numbers(self, path: Path | None = None) -> None:
        """Write the numbers; asks where, if no path is given."""
        e = self.explorer

        def write(to: Path) -> None:
            curves = self._known([*findings.mean_curves(e), *findings.class_curves(e)])
            write_text(to, numbers(curves, findings.facts(e), findings.widths(e)))

        save_as(self, self.explorer, path, "Save numbers", "numbers", (".csv",), write)

    def save_animation(self, path: Path | None = None) -> None:
        """Record the sweep through ε, in the background; asks where, if no path is given."""
        if not self.explorer.cards_chosen():
            show_error(NOTHING)
            return
        save_as(
            self, self.explorer, path, "Save animation", "sweep", animation_suffixes(), self.recorder.start, say=False
        )

    def _ask_numbers(self) -> None:
        self.save_numbers()

    def _known(self, curves: list[Curve]) -> list[Curve]:
        if not any(curve.levels for curve in curves):
            raise CeaseError(NOTHING)
        return curves

    def _draw(self, use: Callable[[Any], None]) -> None:
        e = self.explorer
        curves = self._known(findings.class_curves(e) if self.by_class() else findings.mean_curves(e))
        drawn = figure.make_figure(curves, findings.summary(e), e.session.top)
        try:
            use(drawn)
        finally:
            drawn.hide()
            drawn.deleteLater()


class Recorder(QObject):
    """Takes a picture of the canvas at every ε, one a turn of the event loop, and writes them on a thread.

    Whatever else changes ε or the settings meanwhile ends it, and nothing is written.
    """

    progressed = Signal(int, int)
    saved = Signal(str)
    failed = Signal(str)
    busy = Signal(bool)

    def __init__(
        self, explorer: Explorer, grab: Callable[[], NDArray[np.uint8]], parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self.explorer = explorer
        self.grab = grab
        self._timer = QTimer(self)
        self._timer.setInterval(10)
        self._timer.timeout.connect(self._next)
        self._worker: Worker | None = None
        self._path = Path()
        self._before = 0
        self._mine = False
        self._pictures: list[Frame] = []
        self._captions: list[Frame] = []
        explorer.session.events.connect(self._on_session)

    @property
    def running(self) -> bool:
        """Whether it records or writes."""
        return self._timer.isActive() or self._worker is not None

    def start(self, path: Path) -> None:
        """Record, then write to ``path``; one that is running is given up."""
        self.cancel()
        self._path, self._before = path, self.explorer.session.level
        if not self.explorer.results.complete and self.explorer.settled:
            self.explorer.explore()  # it was cancelled
        self.busy.emit(True)
        self._timer.start()

    def cancel(self) -> None:
        """Give up; nothing is written."""
        recording, writing = self._timer.isActive(), self._worker is not None
        self._end()
        if recording:
            self._go(self._before)
        if recording or writing:
            self.busy.emit(False)

    def close(self) -> None:
        """Give up and end the thread; tells nobody."""
        self._timer.stop()
        self._end()

    def _end(self) -> None:
        self._timer.stop()
        self._pictures, self._captions = [], []
        if self._worker is not None:
            self._worker.shutdown()
            self._worker.deleteLater()
            self._worker = None

    def _next(self) -> None:
        e, level = self.explorer, len(self._pictures)
        if not e.results.complete:
            if e.settled:  # cancelled, or failed: nothing is on its way
                self._give_up("the attack was stopped before every ε was known; start it again")
            return
        if e.session.level != level:
            # The picture is taken at the next turn, so that the window answers in between.
            self._go(level)
            return
        picture = np.ascontiguousarray(self.grab()[..., :3])
        if self._pictures and picture.shape != self._pictures[0].shape:
            self._give_up("the window has changed its size; leave it as it is meanwhile")
            return
        self._pictures.append(picture)
        self._captions.append(draw_caption(*findings.caption(e), fitted_width(picture.shape[1])))
        self.progressed.emit(level + 1, 2 * (e.session.top + 1))
        if level == e.session.top:
            self._timer.stop()
            self._go(self._before)
            self._write()

    def _write(self) -> None:
        path, pictures, captions = self._path, self._pictures, self._captions
        self._pictures, self._captions = [], []
        self._worker = Worker(self)
        self._worker.said.connect(lambda _, done: self.progressed.emit(len(pictures) + done, 2 * len(pictures)))
        self._worker.failed.connect(lambda _, sentence: self._done(sentence))
        self._worker.finished.connect(lambda _: self._done(""))
        self._worker.submit(
            lambda emit, stopped: write_animation(path, pictures, captions, lambda done, _: emit(done), stopped)
        )

    def _done(self, sentence: str) -> None:
        if self._worker is None:
            return  # given up, or failed just before
        self._end()
        self.busy.emit(False)
        if sentence:
            self.failed.emit(sentence)
        else:
            self.saved.emit(str(self._path))

    def _give_up(self, reason: str) -> None:
        self._end()
        self.busy.emit(False)
        self.failed.emit(f"{self._path.name} was not written: {reason}.")

    def _go(self, level: int) -> None:
        self._mine = True
        self.explorer.session.level = level
        self._mine = False

    def _on_session(self, _: Any) -> None:
        if self._timer.isActive() and not self._mine:
            self._give_up("something else was chosen while it was recorded; save it again")


def draw_caption(epsilon: str, dice: dict[Side, str], width: int) -> Frame:
    """A strip of two lines: ε, and each model's Dice in its colour.

    Returns
    -------
    array
        uint8, shape (height, ``width``, 3); the height follows from the width alone.
    """
    size = min(max(width // 42, 11), 20)
    font = QFont()
    font.setPixelSize(size)
    image = QImage(width, 4 * size, QImage.Format.Format_RGB888)
    image.fill(QColor(GROUND))
    painter = QPainter(image)
    painter.setRenderHint(QPainter.RenderHint.TextAntialiasing)
    font.setBold(True)
    painter.setFont(font)
    painter.setPen(QColor(INK))
    line = QRectF(size, 0.5 * size, width - size, 1.5 * size)
    painter.drawText(line, Qt.AlignmentFlag.AlignVCenter, epsilon)
    line.translate(0, 1.5 * size)
    for side, text in dice.items():
        words = f"{MARKS[side]} {TITLES[side]}: {text}"
        painter.setPen(QColor(COLOURS[side]))
        painter.drawText(line, Qt.AlignmentFlag.AlignVCenter, words)
        line.translate(QFontMetricsF(font).horizontalAdvance(words) + 1.5 * size, 0)
    painter.end()
    bits = image.constBits()
    bits.setsize(image.sizeInBytes())
    rows = np.frombuffer(bits, np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : 3 * width].reshape(image.height(), width, 3).copy()
