"""The small plot of Dice against ε."""

import pyqtgraph as pg
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QWidget

from napari_cease.jobs.exploration import SIDES, Side

# Okabe–Ito vermillion and bluish green: apart in any common colour vision, and on dark or light ground.
COLOURS: dict[Side, str] = {"undefended": "#D55E00", "defended": "#009E73"}
SYMBOLS: dict[Side, str] = {"undefended": "o", "defended": "s"}
MARKS: dict[Side, str] = {"undefended": "●", "defended": "■"}
"""The symbols in text: the readout's head is the curve's legend."""


class DiceCurve(pg.PlotWidget):
    """Dice over ε for both models, with a cursor at the present ε; a click moves it."""

    level_clicked = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent, background=None)
        self.setFixedHeight(170)
        self.setMenuEnabled(False)
        self.setMouseEnabled(False, False)
        self.hideButtons()
        self.getPlotItem().showGrid(x=True, y=True, alpha=0.2)
        self.setLabel("bottom", "ε (1/255 of the window)")
        self.setLabel("left", "Dice")
        self.setYRange(0, 1, padding=0.06)
        left = self.getPlotItem().getAxis("left")
        left.setStyle(hideOverlappingLabels=False)  # or 0 and 1 vanish at the ends
        left.setTicks([[(v, f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)]])
        self._points: dict[Side, tuple[list[int], list[float]]] = {}
        self.lines = {
            side: self.plot(
                [],
                [],
                name=side,
                pen=pg.mkPen(COLOURS[side], width=2),
                symbol=SYMBOLS[side],
                symbolSize=6,
                symbolBrush=COLOURS[side],
                symbolPen=None,
            )
            for side in SIDES
        }
        self.cursor_line = pg.InfiniteLine(0, angle=90, pen=pg.mkPen("#999999", width=1, style=Qt.PenStyle.DashLine))
        self.addItem(self.cursor_line)
        self.scene().sigMouseClicked.connect(self._on_click)

    def set_top(self, top: int) -> None:
        """Largest ε on the axis, in 1/255."""
        self.setXRange(0, top, padding=0.03)

    def show_points(self, side: Side, levels: list[int], dice: list[float]) -> None:
        """Draw one model's curve, if it has changed: a repaint costs some milliseconds."""
        if self._points.get(side) != (levels, dice):
            self._points[side] = (levels, dice)
            self.lines[side].setData(levels, dice)

    def set_colours(self, colour: str, ground: str) -> None:
        """Axes and labels in the theme's text colour, on its background."""
        self.setBackground(ground)
        for name in ("bottom", "left"):
            axis = self.getPlotItem().getAxis(name)
            axis.setPen(colour)
            axis.setTextPen(colour)

    def _on_click(self, event: object) -> None:
        point = self.getPlotItem().vb.mapSceneToView(event.scenePos())  # type: ignore[attr-defined]
        low, high = self.getPlotItem().vb.viewRange()[0]
        self.level_clicked.emit(round(min(max(point.x(), low, 0.0), high)))
