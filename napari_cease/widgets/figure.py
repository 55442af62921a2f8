"""The curves as a figure for a page: dark on white, with a legend, as PNG or SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import pyqtgraph as pg
from pyqtgraph.exporters import ImageExporter
from qtpy.QtCore import QPoint, QRect, QRectF, Qt
from qtpy.QtGui import QFont, QFontMetricsF, QImage, QPainter
from qtpy.QtSvg import QSvgGenerator

from cease_core.io.files import write_atomically
from napari_cease.export import Curve
from napari_cease.jobs.exploration import Side
from napari_cease.layers import MARKS, TITLES
from napari_cease.widgets.curve import DASHES, SYMBOLS
from napari_cease.widgets.parts import own_menu

SUFFIXES = (".png", ".svg")
WIDTH, HEIGHT, ROW = 720, 384, 28
"""Pixels: across, without legend, and for each row of the legend."""
SCALE = 2
"""Pixels of a PNG for one of the figure's."""
INK = "#202020"
GAP = "&nbsp; &nbsp; "
LINES: dict[Side, str] = {"undefended": f"─{MARKS['undefended']}─", "defended": f"╌{MARKS['defended']}╌"}


def make_figure(curves: Sequence[Curve], title: str, top: int) -> pg.GraphicsLayoutWidget:
    """Draw curves; not shown on the screen."""
    rows = legend_rows(curves, WIDTH - 60)
    figure = pg.GraphicsLayoutWidget()
    figure.setBackground("w")
    figure.resize(WIDTH, HEIGHT + ROW * len(rows))
    plot = figure.addPlot(0, 0, enableMenu=False)
    own_menu(plot, figure)
    plot.setTitle(title, color=INK, size="10pt")
    plot.setLabel("bottom", "ε (1/255 of the window)", color=INK)
    plot.setLabel("left", "Dice", color=INK)
    plot.setXRange(0, top, padding=0.02)
    plot.setYRange(0, 1, padding=0.03)
    plot.showGrid(x=True, y=True, alpha=0.15)
    plot.hideButtons()
    for name in ("bottom", "left"):
        plot.getAxis(name).setPen(INK)
        plot.getAxis(name).setTextPen(INK)
    for curve in curves:
        plot.plot(curve.levels, curve.dice, **_style(curve))
    for row, entries in enumerate(rows, start=1):
        figure.addLabel(GAP.join(entries), row, 0, color=INK)
    # Only what is shown is laid out.
    figure.setAttribute(Qt.WidgetAttribute.WA_DontShowOnScreen)
    figure.show()
    figure.ci.layout.activate()
    return figure


def legend_rows(curves: Sequence[Curve], width: int) -> list[list[str]]:
    """Entries of the legend as rich text, in rows no wider than ``width`` pixels where that is possible.

    A class stands there once, in its colour; then what the lines and symbols mean.
    """
    colours = {curve.of: curve.colour for curve in curves if curve.of}
    entries = [(f"━ {of}", f"<span style='color: {c}'>━</span>&nbsp;{escape(of)}") for of, c in colours.items()]
    if colours:
        sides = dict.fromkeys(curve.side for curve in curves)
        entries += [(f"{LINES[s]} {s}", f"{LINES[s]}&nbsp;{TITLES[s].lower()}") for s in sides]
    else:
        for c in curves:
            line = f"─{MARKS[c.side]}─"
            entries.append((line + c.model, f"<span style='color: {c.colour}'>{line}</span>&nbsp;{escape(c.model)}"))
    metrics = QFontMetricsF(QFont())
    rows: list[list[str]] = [[]]
    used = 0.0
    for plain, rich in entries:
        used += metrics.horizontalAdvance(plain + 4 * " ")
        if used > width and rows[-1]:
            rows.append([])
            used = metrics.horizontalAdvance(plain)
        rows[-1].append(rich)
    return rows


def _style(curve: Curve) -> dict[str, object]:
    side: Side = curve.side
    return {
        "pen": pg.mkPen(curve.colour, width=2, style=DASHES[side] if curve.of else Qt.PenStyle.SolidLine),
        "symbol": SYMBOLS[side],
        "symbolSize": 6,
        "symbolBrush": curve.colour,
        "symbolPen": None,
    }


def picture(figure: pg.GraphicsLayoutWidget) -> QImage:
    """A figure as pixels."""
    exporter = ImageExporter(figure.scene())
    exporter.parameters()["width"] = SCALE * WIDTH
    return exporter.export(toBytes=True)


def save_figure(figure: pg.GraphicsLayoutWidget, path: Path, title: str = "Dice(ε)") -> None:
    """Write a figure as PNG or SVG, by the path's suffix; ``title`` is what an SVG says it shows.

    Raises
    ------
    CeaseError
        If the file cannot be written.
    """
    suffix = path.suffix.lower()

    def write(part: Path) -> None:
        if suffix == ".svg":
            _draw_svg(figure, part, title)
        elif not picture(figure).save(str(part)):
            raise OSError

    write_atomically(path, suffix, write)


def _draw_svg(figure: pg.GraphicsLayoutWidget, path: Path, title: str) -> None:
    # With Qt's own generator: pyqtgraph's stops at the symbols of a legend.
    svg = QSvgGenerator()
    svg.setFileName(str(path))
    size = figure.size()
    svg.setSize(size)
    # Axes are drawn from a recording, which is scaled where resolutions differ.
    svg.setResolution(figure.logicalDpiX())
    svg.setViewBox(QRect(QPoint(0, 0), size))
    svg.setTitle(title)
    exporter = ImageExporter(figure.scene())
    painter = QPainter(svg)
    exporter.setExportMode(True, {"antialias": True, "background": "w", "painter": painter, "resolutionScale": 1.0})
    page = QRectF(0, 0, size.width(), size.height())
    figure.scene().render(painter, page, page)
    exporter.setExportMode(False)
    painter.end()
