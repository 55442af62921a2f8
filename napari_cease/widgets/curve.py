"""The small plot of Dice against ε."""

from collections.abc import Sequence
from html import escape

import pyqtgraph as pg
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_cease.export import Curve
from napari_cease.jobs.exploration import SIDES, Side
from napari_cease.layers import COLOURS
from napari_cease.widgets.parts import SmallPlot

SYMBOLS: dict[Side, str] = {"undefended": "o", "defended": "s"}
DASHES: dict[Side, Qt.PenStyle] = {"undefended": Qt.PenStyle.SolidLine, "defended": Qt.PenStyle.DashLine}
"""Where colours tell classes apart."""


class DiceCurve(SmallPlot):
    """Dice over ε for both models, with a cursor at the present ε; a click moves it."""

    level_clicked = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(170, parent)
        self.setLabel("bottom", "ε (1/255 of the window)")
        self.show_dice("Dice")
        self._points: dict[Side, tuple[list[int], list[float]]] = {}
        self._classes: list[Curve] = []
        self.class_lines: list[pg.PlotDataItem] = []
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

    def show_classes(self, curves: list[Curve]) -> None:
        """Draw a curve for each class in place of the models' own; none brings those back."""
        if curves == self._classes:
            return
        self._classes = curves
        while len(self.class_lines) > len(curves):
            self.removeItem(self.class_lines.pop())
        while len(self.class_lines) < len(curves):
            self.class_lines.append(self.plot([], []))
        for line, curve in zip(self.class_lines, curves, strict=True):
            line.setPen(pg.mkPen(curve.colour, width=2, style=DASHES[curve.side]))
            line.setData(curve.levels, curve.dice)
        for line in self.lines.values():
            line.setVisible(not curves)

    def _on_click(self, event: object) -> None:
        point = self.getPlotItem().vb.mapSceneToView(event.scenePos())  # type: ignore[attr-defined]
        low, high = self.getPlotItem().vb.viewRange()[0]
        self.level_clicked.emit(round(min(max(point.x(), low, 0.0), high)))


class CurvePanel(QWidget):
    """The plot, its legend where there are classes, and a row for what can be done with it."""

    split_changed = Signal()
    """Whether classes are drawn one by one has changed."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.curve = DiceCurve()
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        self.legend.setToolTip("Solid: undefended; dashed: defended")
        self.classes = QComboBox()
        self.classes.addItems(["Mean over classes", "Each class"])
        self.classes.setToolTip("Dice(ε) as the mean over all classes, or a curve for each class in its colour")
        self.classes.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.classes.currentIndexChanged.connect(self.split_changed)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(self.curve)
        column.addWidget(self.legend)
        self.row = QHBoxLayout()
        self.row.setSpacing(4)
        self.row.addWidget(self.classes, 1)
        column.addLayout(self.row)
        self.offer_classes(False)
        self.legend.hide()

    @property
    def split(self) -> bool:
        """Whether each class is drawn by itself."""
        return not self.classes.isHidden() and self.classes.currentIndex() == 1

    def offer_classes(self, several: bool) -> None:
        """Let the user choose, or not where there is but one class."""
        if several is self.classes.isHidden():
            self.classes.setVisible(several)

    def show_classes(self, curves: list[Curve]) -> None:
        """Draw a curve for each class; none brings the models' own back."""
        self.curve.show_classes(curves)
        text = legend_text(curves)
        if text != self.legend.text():
            self.legend.setText(text)
            self.legend.setVisible(bool(curves))


def legend_text(curves: Sequence[Curve]) -> str:
    """Each class in its colour, and what the lines mean, as rich text that can be wrapped."""
    colours = {curve.of: curve.colour for curve in curves}
    classes = [f"<span style='color: {c}'>━</span>&nbsp;{escape(of)}" for of, c in colours.items()]
    if not classes:
        return ""
    return " &nbsp;".join([*classes, "(━&nbsp;undefended&nbsp;&nbsp;╍&nbsp;defended)"])
