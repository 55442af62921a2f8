"""What a training run shows while it goes on: its curves, and one validation image under attack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QGridLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget
from skimage.segmentation import find_boundaries

from cease_core.models.card import PALETTE
from napari_cease.jobs.training import Preview
from napari_cease.training_session import Epoch
from napari_cease.units import LEVELS
from napari_cease.widgets.parts import SmallPlot, escape, words

# Okabe and Ito's palette, as everywhere; a symbol or a dash tells lines apart without colour, too.
CLEAN, ATTACKED = "#56B4E9", "#D55E00"
PARTS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")
STYLES = ((Qt.PenStyle.SolidLine, "━"), (Qt.PenStyle.DashLine, "╍"), (Qt.PenStyle.DotLine, "┈"))
HEIGHT = 130
LEFT = 56
"""Height of a plot, and where its axis begins, in pixels."""

Points = Sequence[tuple[float, float]]


class Curve(QWidget):
    """A small plot over epochs, with its legend underneath."""

    def __init__(self, title: str, tip: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setToolTip(tip)
        self.setAccessibleName(title)
        self.plot = SmallPlot(HEIGHT)
        self.plot.setLabel("left", title)
        left = self.plot.getPlotItem().getAxis("left")
        left.setWidth(LEFT)  # the plots' epochs stand under each other
        left.enableAutoSIPrefix(False)
        self.plot.setMinimumWidth(120)
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        self.legend.setContentsMargins(LEFT, 0, 0, 0)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self.plot)
        column.addWidget(self.legend)
        self.lines: dict[str, pg.PlotDataItem] = {}
        self._colours: dict[str, str] = {}
        self._shown: dict[str, Points] = {}
        self._text = "#888888"

    def show_line(self, name: str, points: Points, *, symbol: str | None = None) -> None:
        """Draw a line, if it has changed; without points it goes. A single point needs a symbol to be seen."""
        if self._shown.get(name) == points:
            return
        self._shown[name] = points
        if not points:
            self._drop(name)
            return
        if name not in self.lines:
            self.lines[name] = self.plot.plot([], [], name=name, symbolSize=6, symbolPen=None)
        self.lines[name].setSymbol(symbol or ("o" if len(points) == 1 else None))
        self._dress()
        x, y = np.asarray(points, float).T
        self.lines[name].setData(x, y)

    def colour(self, name: str, colour: str) -> None:
        """Give a line a colour of its own; others take the next of the palette."""
        self._colours[name] = colour

    def span(self, epochs: int) -> None:
        """Let the axis reach from the beginning to the last epoch."""
        self.plot.setXRange(0, max(1, epochs), padding=0.03)

    def forget(self) -> None:
        """Draw nothing."""
        for name in list(self.lines):
            self.show_line(name, [])

    def set_colours(self, text: str, ground: str) -> None:
        """Axes and labels in the theme's text colour, on its background."""
        self._text = text
        self.plot.set_colours(text, ground)
        self._dress()

    def _drop(self, name: str) -> None:
        line = self.lines.pop(name, None)
        if line is not None:
            self.plot.removeItem(line)
            self._dress()

    def _dress(self) -> None:
        legend = []
        free = iter(c for c in PARTS if c not in self._colours.values())
        for number, (name, line) in enumerate(self.lines.items()):
            colour = self._colours.get(name) or next(free, self._text)
            colour = self._text if colour == "text" else colour
            style, mark = STYLES[0 if name in self._colours else number % len(STYLES)]
            line.setPen(pg.mkPen(colour, width=2, style=style))
            line.setSymbolBrush(colour)
            mark = {"o": "●", "s": "■"}.get(line.opts["symbol"], mark)
            legend.append(f"<span style='color:{colour}'>{mark}</span>&nbsp;{escape(name).replace(' ', '&nbsp;')}")
        self.legend.setText("&ensp; ".join(legend))
        self.legend.setVisible(bool(legend))


class TrainingCurves(QWidget):
    """Dice clean and under attack, the loss with its parts, and the learning rate, by epoch."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.dice = Curve("Dice", "Overlap on the validation cases, clean and under PGD-10 at the training ε")
        self.dice.plot.setYRange(0, 1, padding=0.06)
        self.dice.colour("clean", CLEAN)
        self.dice.colour("under attack", ATTACKED)
        self.loss = Curve("Loss", "What is minimised, batch by batch, and its parts before their weights, by epoch")
        self.loss.colour("total", "text")
        self.rate = Curve("Rate · 10³", "Learning rate after each epoch, in thousandths")
        self.rate.plot.getPlotItem().getAxis("left").setScale(1000)
        self.rate.colour("learning rate", PARTS[2])
        self.rate.plot.setFixedHeight(100)
        self.rate.plot.setLabel("bottom", "epoch")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        for curve in self.curves:
            column.addWidget(curve)

    @property
    def curves(self) -> tuple[Curve, ...]:
        """All of them, from above."""
        return self.dice, self.loss, self.rate

    def show_run(self, history: Sequence[Epoch], losses: Points, rates: Points, epochs: int) -> None:
        """Draw what a run has told; what it has not told is not drawn."""
        for name, field in {"clean": "clean_dice", "under attack": "robust_dice"}.items():
            points = [(float(r.epoch), value) for r in history if (value := getattr(r, field)) is not None]
            self.dice.show_line(name, points, symbol={"clean": "o"}.get(name, "s"))
        self.loss.show_line("total", list(losses))
        names = dict.fromkeys(name for row in history for name in row.parts)
        shown = list(names) if len(names) > 1 else []
        for name in [n for n in self.loss.lines if n != "total" and n not in shown]:
            self.loss.show_line(name, [])
        for name in shown:
            points = [(float(r.epoch), r.parts[name]) for r in history if name in r.parts]
            self.loss.show_line(name, points)
        self.rate.show_line("learning rate", list(rates), symbol="o")
        for curve in self.curves:
            curve.span(epochs)

    def forget(self) -> None:
        """Draw nothing."""
        for curve in self.curves:
            curve.forget()

    def set_colours(self, text: str, ground: str) -> None:
        """As the theme has them."""
        for curve in self.curves:
            curve.set_colours(text, ground)


class PreviewPictures(QWidget):
    """A validation image twice: with the model's mask, and with its mask under attack; the reference as an outline."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(4)
        self.pictures = (_Picture(), _Picture())
        self.captions = (QLabel(), QLabel())
        for column, (picture, caption) in enumerate(zip(self.pictures, self.captions, strict=True)):
            caption.setAlignment(Qt.AlignmentFlag.AlignHCenter)
            grid.addWidget(picture, 0, column)
            grid.addWidget(caption, 1, column)
        self.note = words()
        grid.addWidget(self.note, 2, 0, 1, 2)

    def show_preview(self, preview: Preview) -> None:
        """Draw the newest one."""
        for picture, mask in zip(self.pictures, (preview.clean, preview.attacked), strict=True):
            picture.set_picture(painted(preview.image, mask, preview.labels))
        for caption, title, dice in zip(self.captions, ("Clean", "Attacked"), preview.dice, strict=True):
            caption.setText(f"{title}: Dice {dice:.2f}")
        self.note.setText(
            f"{preview.case} (validation) after epoch {preview.epoch}; "
            f"PGD-10 at {preview.epsilon * LEVELS:.3g}/{LEVELS}. White outline: reference."
        )


class _Picture(QLabel):
    """A picture as wide as there is room, in its own proportions."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._whole = QPixmap()

    def set_picture(self, rgb: NDArray[np.uint8]) -> None:
        height, width, _ = rgb.shape
        # A copy: Qt does not keep the array alive.
        self._whole = QPixmap.fromImage(QImage(rgb.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888))
        self._fit()

    def resizeEvent(self, event: object) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        if self._whole.isNull() or self.width() < 2:
            return
        edge = min(self.width(), 260)
        fitting = self._whole.scaled(
            edge, edge, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.FastTransformation
        )
        self.setFixedHeight(fitting.height())
        self.setPixmap(fitting)


def painted(image: NDArray[np.float32], mask: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (C, H, W) in window fractions with a mask over it and the outline of another one, as RGB (H, W, 3)."""
    grey = image.mean(axis=0) if len(image) != 3 else None
    base = np.moveaxis(image, 0, -1) if grey is None else np.repeat(grey[..., None], 3, axis=-1)
    picture = np.clip(base, 0, 1) * 255
    for value in np.unique(mask[mask > 0]).tolist():
        colour = PALETTE[(value - 1) % len(PALETTE)]
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)
        picture[mask == value] = 0.5 * picture[mask == value] + 0.5 * rgb
    picture[find_boundaries(labels, mode="inner")] = 255
    return np.ascontiguousarray(np.rint(picture).astype(np.uint8))
