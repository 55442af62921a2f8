"""What both models make of single pixels: clean, attacked and augmented, side by side in a plane each.

It follows what the explorer shows, and computes nothing while it is folded away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyqtgraph as pg
from napari.utils.notifications import show_error
from numpy.typing import NDArray
from qtpy.QtCore import QRectF, Qt, QTimer
from qtpy.QtWidgets import QApplication, QCheckBox, QGridLayout, QLabel, QPushButton, QSizePolicy

from cease_core.errors import CeaseError
from cease_core.evaluation.features import LEAST_PIXELS, FeaturePicture
from cease_core.scan import Scan
from napari_cease import findings
from napari_cease.explorer import Explorer
from napari_cease.jobs.exploration import SIDES, Side
from napari_cease.jobs.features import FeatureGallery, FeatureRequest, FeaturesFound
from napari_cease.jobs.worker import Worker
from napari_cease.layers import COLOURS, MARKS, TITLES
from napari_cease.widgets import figure
from napari_cease.widgets.fold import Fold
from napari_cease.widgets.parts import SmallPlot, empty_column, escape, make_menu, own_menu, words
from napari_cease.widgets.saving import or_tell, save_as

TITLE = "Features"
TIP = (
    "Pixels of each class as both models see them: the decoder's features at a quarter of the working resolution, "
    "which the contrastive defence compares, projected to a plane. Nothing is computed while this is folded away"
)
FIGURES_TIP = (
    "<p><b>Cosine to clean</b>: of the attacked feature with the clean one of the same pixel, mean.<br>"
    "<b>Separation</b> of the classes, clean → attacked: spread between them over the spread within.<br>"
    "<b>Own class</b>, clean → attacked: share of pixels nearest to where the others of their class lie when clean.<br>"
    f"Both leave out classes with fewer than {LEAST_PIXELS} pixels.<br>"
    "<b>Variance shown</b>: that of the clean features in the plane; the figures above are of whole features.</p>"
)
ONE_CLASS = "There is but one class in this slice, so there is nothing to tell apart."
FEW_PIXELS = f"Fewer than two classes have {LEAST_PIXELS} pixels in this slice, so there is nothing to tell apart."
CHOOSE = "Choose a scan and a model: the model's features appear here."
NOTHING = "There are no features yet; choose a scan and a model, and wait for the attack."
BACKGROUND = "#8C8C8C"
"""Grey on dark and on light; layers leave the background transparent."""
LEAST, MOST = 140, 340
"""Height of a plot, which is as wide as it is high, in pixels."""
HEIGHT, FOOT = 420, 134
"""Height of a saved figure's plots, and of what stands below them, in pixels."""
UNBOUNDED = 2**24 - 1
"""Qt's largest height."""
MARGIN = 1.12
PACE = 80
"""Milliseconds between two looks while ε is dragged: each repaint composes the whole window with its canvas."""

Colours = dict[int, tuple[str, str]]
"""Name and colour of each class, by id."""


class Cloud:
    """The points of one model in a plot.

    Parameters
    ----------
    plot
        Where they are drawn, x and y to one scale.
    """

    def __init__(self, plot: pg.PlotItem) -> None:
        self._plot = plot
        self.lines = plot.plot([], [], connect="pairs", pen=pg.mkPen("#80808090", width=1))
        self.augmented: dict[int, pg.ScatterPlotItem] = {}
        self.clean: dict[int, pg.ScatterPlotItem] = {}
        self.adversarial: dict[int, pg.ScatterPlotItem] = {}
        plot.setAspectLocked(True)
        plot.hideButtons()
        # The plane has no scale to be read, only near and far.
        for name in ("bottom", "left"):
            plot.hideAxis(name)
        plot.getViewBox().setBorder(pg.mkPen(BACKGROUND, width=1))
        # napari's style frames the view, by which its right and lower end are out of sight.
        plot.layout.setContentsMargins(1, 1, 4, 4)

    def show(self, picture: FeaturePicture, colours: Colours, *, still: bool = False) -> None:
        """Draw a picture; ``still`` if only the adversarial points are not where they were."""
        if not still:
            self.clear()
            self._add(colours, set(picture.classes.tolist()))
        self.lines.setData(*np.stack([picture.clean, picture.adversarial], axis=1).reshape(-1, 2).T)
        for of, points in self.adversarial.items():
            mine = picture.classes == of
            points.setData(*picture.adversarial[mine].T)
            if not still:
                self.clean[of].setData(*picture.clean[mine].T)
                self.augmented[of].setData(*picture.augmented[mine].T)

    def _add(self, colours: Colours, classes: set[int]) -> None:
        # One item a class and view: a colour for each point would be drawn anew at each look, point by point.
        for of, (_, colour) in colours.items():
            if of in classes:
                self.augmented[of] = pg.ScatterPlotItem(symbol="s", size=5, brush=None, pen=colour)
                self.clean[of] = pg.ScatterPlotItem(symbol="o", size=8, brush=colour, pen=None)
                self.adversarial[of] = pg.ScatterPlotItem(symbol="x", size=9, brush=colour, pen=None)
        for kind in (self.augmented, self.clean, self.adversarial):
            for points in kind.values():
                self._plot.addItem(points)

    def clear(self) -> None:
        """Draw nothing."""
        self.lines.setData([], [])
        for kind in (self.augmented, self.clean, self.adversarial):
            for points in kind.values():
                self._plot.removeItem(points)
            kind.clear()


class FeatureView(Fold):
    """A plot for each model, with its figures underneath.

    Parameters
    ----------
    explorer
        What it shows is looked at.
    """

    def __init__(self, explorer: Explorer) -> None:
        inside, column = empty_column()
        super().__init__(TITLE, inside, opened=False)
        self.toggleButton().setToolTip(TIP)
        self.explorer = explorer
        self.plots = {side: SmallPlot(LEAST) for side in SIDES}
        self.clouds = {side: Cloud(plot.getPlotItem()) for side, plot in self.plots.items()}
        self.heads = {side: QLabel(_head(side)) for side in SIDES}
        self.captions = {side: QLabel() for side in SIDES}
        self.pictures: dict[Side, FeaturePicture] = {}
        self._colours: dict[Side, Colours] = {}
        self._extent = Extent()
        self._worker: Worker | None = None
        self._gallery = FeatureGallery()
        self._busy = False
        self._pace = QTimer(self)
        self._pace.setSingleShot(True)
        self._pace.setInterval(PACE)
        self._pace.timeout.connect(self._ask)
        self._asked: dict[Side, FeatureRequest] = {}
        self._remarks: dict[Side | None, str] = {}
        self._subjects: dict[Side, tuple[Scan | None, Path | None]] = {}
        grid = QGridLayout()
        grid.setSpacing(4)
        for at, side in enumerate(SIDES):
            self.plots[side].setMinimumWidth(100)
            self.plots[side].setToolTip(TIP)
            self.plots[side].setAccessibleName(f"Features, {TITLES[side].lower()}")
            self.captions[side].setToolTip(FIGURES_TIP)
            self.captions[side].setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            self.captions[side].setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
            grid.addWidget(self.heads[side], 0, at)
            grid.addWidget(self.plots[side], 1, at)
            grid.addWidget(self.captions[side], 2, at)
            grid.setColumnStretch(at, 1)
        self.legend = words(rich=True)
        self.note = words()
        self.note.hide()
        self.joined = QCheckBox("Join clean and attacked")
        self.joined.setToolTip("A line from where a pixel lies when clean to where the attack puts it")
        self.joined.setChecked(True)
        self.joined.toggled.connect(self._on_joined)
        self.save = self._save_button()
        below = QGridLayout()
        below.setColumnStretch(0, 1)
        below.addWidget(self.joined, 0, 0)
        below.addWidget(self.save, 0, 1)
        column.addLayout(grid)
        column.addWidget(self.note)
        column.addWidget(self.legend)
        column.addLayout(below)
        # The collapsible sizes itself by what its content asks for at one width, and texts wrap at any.
        inside.removeEventFilter(self)
        self.toggled.connect(self._on_fold)
        explorer.refreshed.connect(self.refresh)
        explorer.session.events.scan.connect(self.refresh)

    def _save_button(self) -> QPushButton:
        button = QPushButton()
        button.setToolTip("The picture of the features")
        entries = (
            ("Copy figure", "Both plots, dark on white, to the clipboard", self.copy_figure),
            ("Save figure…", "Both plots, dark on white, as PNG or SVG", self.save_figure),
        )
        make_menu(button, "Save", entries)
        return button

    def set_colours(self, text: str, ground: str) -> None:
        """Plots on the theme's background."""
        for plot in self.plots.values():
            plot.set_colours(text, ground)

    # --- asking ---------------------------------------------------------------------------------------------

    def _on_fold(self, _: Any = None) -> None:
        if self.isExpanded():
            self.content().setMaximumHeight(UNBOUNDED)
            self.refresh()
        else:
            self.rest()

    def _start(self) -> None:
        self._worker = worker = Worker(self)
        # What one that was ended has still said arrives later, and counts no more.
        worker.said.connect(lambda _, found: self._on_found(worker, found))
        worker.failed.connect(lambda _, sentence: self._on_failed(worker, sentence))
        worker.finished.connect(lambda _: self._on_finished(worker))
        worker.end_with(self)
        self._gallery = FeatureGallery()

    def rest(self) -> None:
        """Compute nothing until the explorer shows something new and the section is open."""
        self._end(0)

    def shutdown(self) -> None:
        """End the thread; nothing is computed any more."""
        self.explorer.refreshed.disconnect(self.refresh)
        self.explorer.session.events.scan.disconnect(self.refresh)
        self._end(10)

    def _end(self, seconds: float) -> None:
        if self._worker is not None:
            self._worker.shutdown(seconds)
            self._worker.deleteLater()
            self._worker = None
        self._pace.stop()
        self._busy = False
        self._asked.clear()

    @property
    def settled(self) -> bool:
        """Whether what the explorer shows is drawn here, or nothing is to be."""
        return self._worker is None or not (self._busy or self._pace.isActive() or self._unasked())

    def refresh(self, _: Any = None) -> None:
        """Look at what the explorer shows, soon; while something is looked at already, once that is done."""
        if self._worker is None and self.isExpanded():
            self._start()
        if self._worker is not None and not self._pace.isActive():
            self._pace.start()

    def _ask(self) -> None:
        if self._worker is None:
            return
        self._let_go()
        unasked = self._unasked()
        if self._busy or not unasked:
            return
        self._asked |= {request.view.side: request for request in unasked}
        self._busy = True
        gallery = self._gallery
        self._worker.submit(lambda emit, stopped: gallery.show(unasked, emit, stopped))

    def _let_go(self) -> None:
        """What is known of another scan or model is not kept."""
        s, chosen = self.explorer.session, self.explorer.cards_chosen()
        for side in SIDES:
            now, before = (s.scan, getattr(s, side)), self._subjects.get(side, (None, None))
            if now[0] is not before[0] or now[1] != before[1]:
                self._subjects[side] = now
                self._asked.pop(side, None)
                self._drop(side)
            for widget in (self.heads[side], self.plots[side], self.captions[side]):
                widget.setVisible(side in chosen and s.scan is not None)
        self._remark(None, "" if s.scan is not None and chosen else CHOOSE)

    def _unasked(self) -> list[FeatureRequest]:
        requests = [self._request(side, load) for side, load in self.explorer.loaders().items()]
        return [r for r in requests if r is not None and not r.same(self._asked.get(r.view.side))]

    def _request(self, side: Side, load: Callable[[], Any]) -> FeatureRequest | None:
        e, s = self.explorer, self.explorer.session
        view, opened = e.view(side), e.opened(side)
        if s.scan is None or view is None or opened is None:
            return None
        return FeatureRequest(load, s.scan, s.reference.labels if s.reference else None, s.index, opened, view)

    def _on_failed(self, worker: Worker, sentence: str) -> None:
        if worker is self._worker:
            show_error(sentence)

    def _on_finished(self, worker: Worker) -> None:
        if worker is self._worker:
            self._busy = False
            self._ask()

    # --- drawing --------------------------------------------------------------------------------------------

    def _on_found(self, worker: Worker, found: FeaturesFound) -> None:
        side = found.side
        if worker is not self._worker or self._asked.get(side) is not found.request:
            return
        if found.picture is None:
            self._drop(side)
            self._remark(side, found.sentence)
            return
        before = self.pictures.get(side)
        colours = {0: ("background", BACKGROUND)} | findings.class_colours(self.explorer, side)
        still = (
            before is not None
            and self._colours.get(side) == colours
            and np.array_equal(before.classes, found.picture.classes)
            and np.array_equal(before.clean, found.picture.clean)
        )
        self.pictures[side], self._colours[side] = found.picture, colours
        self.clouds[side].show(found.picture, colours, still=still)
        self.captions[side].setText("\n".join(caption(found.picture)))
        self._extent.take_in(side, found.picture, anew=not still)
        for one, plot in self.plots.items():
            plot.setRange(self._extent.of(one), padding=0)
        self._remark(side, _too_few(found.picture))
        self.legend.setText(legend_text(self._shown_classes()))

    def _shown_classes(self) -> Colours:
        shown: Colours = {}
        for side, picture in self.pictures.items():
            there = set(picture.classes.tolist())
            shown |= {of: entry for of, entry in self._colours[side].items() if of in there}
        return dict(sorted(shown.items()))

    def _drop(self, side: Side) -> None:
        self.pictures.pop(side, None)
        self._colours.pop(side, None)
        self._extent.drop(side)
        self.clouds[side].clear()
        self.captions[side].setText("")
        self.legend.setText(legend_text(self._shown_classes()))
        self._remark(side, "")

    def _remark(self, about: Side | None, sentence: str) -> None:
        """Say something about a model, or in general, in place of what was said before."""
        self._remarks[about] = sentence
        text = " ".join(dict.fromkeys(filter(None, self._remarks.values())))
        self.note.setText(text)
        self.note.setVisible(bool(text))

    def _on_joined(self, on: bool) -> None:
        for cloud in self.clouds.values():
            cloud.lines.setVisible(on)

    def resizeEvent(self, event: Any) -> None:
        """Plots are as high as they are wide."""
        super().resizeEvent(event)
        edge = min(max((self.width() - 4) // 2, LEAST), MOST)
        for plot in self.plots.values():
            plot.setFixedHeight(edge)

    # --- saving ---------------------------------------------------------------------------------------------

    def copy_figure(self) -> None:
        """Put the figure on the clipboard."""
        or_tell(lambda: self._draw(lambda drawn: QApplication.clipboard().setImage(figure.picture(drawn))))

    def save_figure(self, path: Path | None = None) -> None:
        """Write the figure as PNG or SVG; asks where, if no path is given."""

        def write(to: Path) -> None:
            self._draw(lambda drawn: figure.save_figure(drawn, to, TITLE))

        save_as(self, self.explorer, path, "Save figure", "features", figure.SUFFIXES, write)

    def _draw(self, use: Callable[[Any], None]) -> None:
        if not self.pictures:
            raise CeaseError(NOTHING)
        e = self.explorer
        title = f"{findings.title(e)} · {findings.caption(e)[0]}"
        models = {side: card.title for side, card in e.cards().items()}
        drawn = make_figure(
            self.pictures,
            self._colours,
            self._extent,
            models,
            title,
            legend_text(self._shown_classes()),
            self.joined.isChecked(),
        )
        try:
            use(drawn)
        finally:
            drawn.hide()
            drawn.deleteLater()


class Extent:
    """What each plot shows: all that it has had to show of the image, both plots to one scale."""

    def __init__(self) -> None:
        self._corners: dict[Side, NDArray[np.float32]] = {}

    def take_in(self, side: Side, picture: FeaturePicture, *, anew: bool) -> None:
        """Grow to a picture; ``anew`` if what was seen before is another image's."""
        points = np.concatenate([picture.clean, picture.adversarial, picture.augmented])
        if side in self._corners and not anew:
            points = np.concatenate([points, self._corners[side]])
        self._corners[side] = np.stack([points.min(axis=0), points.max(axis=0)])

    def drop(self, side: Side) -> None:
        """Forget a model's."""
        self._corners.pop(side, None)

    def of(self, side: Side) -> QRectF:
        """A square around the middle of what one plot has to show, large enough for either."""
        edge = max((float(np.ptp(corners, axis=0).max()) for corners in self._corners.values()), default=0.0) or 1.0
        edge *= MARGIN
        x, y = self._corners[side].mean(axis=0).tolist() if side in self._corners else (0.0, 0.0)
        return QRectF(x - edge / 2, y - edge / 2, edge, edge)


def caption(picture: FeaturePicture) -> list[str]:
    """The figures of a picture, a line each."""
    few = len(picture.left_out)
    return [
        f"cosine to clean {picture.cosine:.2f}",
        f"separation {_figure(picture.separation[0])} → {_figure(picture.separation[1])}",
        f"own class {_percent(picture.recognised[0])} → {_percent(picture.recognised[1])} %",
        f"variance shown {_percent(picture.explained)} %",
        *([f"left out: {few} class{'es' * (few != 1)} (< {LEAST_PIXELS} pixels)"] if few else []),
    ]


def _too_few(picture: FeaturePicture) -> str:
    """Why there are no classes to tell apart; empty if there are."""
    classes = len(np.unique(picture.classes))
    if classes < 2:
        return ONE_CLASS
    return FEW_PIXELS if classes - len(picture.left_out) < 2 else ""


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.0f}"


def legend_text(classes: Colours) -> str:
    """What the symbols and colours mean, as rich text; empty without classes."""
    if not classes:
        return ""
    symbols = ["●&nbsp;clean", "✖&nbsp;attacked", "▫&nbsp;augmented"]
    named = [f"<span style='color: {colour}'>■</span>&nbsp;{escape(name)}" for name, colour in classes.values()]
    return " &nbsp;".join(symbols) + "<br>" + " &nbsp;".join(named)


def _head(side: Side) -> str:
    return f"<b style='color:{COLOURS[side]}'>{MARKS[side]} {TITLES[side]}</b>"


def make_figure(
    pictures: Mapping[Side, FeaturePicture],
    colours: Mapping[Side, Colours],
    extent: Extent,
    models: Mapping[Side, str],
    title: str,
    legend: str,
    joined: bool,
) -> pg.GraphicsLayoutWidget:
    """Both plots for a page, dark on white; not shown on the screen."""
    drawn = pg.GraphicsLayoutWidget()
    drawn.setBackground("w")
    drawn.resize(figure.WIDTH, HEIGHT + FOOT)
    drawn.addLabel(title, 0, 0, colspan=len(pictures), color=figure.INK, size="10pt")
    sides = [side for side in SIDES if side in pictures]
    for at, side in enumerate(sides):
        plot = drawn.addPlot(1, at, enableMenu=False)
        own_menu(plot, drawn)
        plot.setTitle(f"{MARKS[side]} {escape(models[side])}", color=COLOURS[side], size="10pt")
        cloud = Cloud(plot)
        cloud.show(pictures[side], colours[side])
        cloud.lines.setVisible(joined)
        plot.setRange(extent.of(side), padding=0)
        drawn.addLabel("<br>".join(caption(pictures[side])), 2, at, color=figure.INK)
    drawn.addLabel(legend, 3, 0, colspan=len(sides), color=figure.INK)
    drawn.setAttribute(Qt.WidgetAttribute.WA_DontShowOnScreen)
    drawn.show()
    drawn.ci.layout.activate()
    return drawn
