"""What an audit comes to: curves of the worst case, and the verdict with its checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyqtgraph as pg
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from cease_core.evaluation.report.words import level, number, plural, share
from cease_core.evaluation.summary import CheckLine, ModelSummary, Summary
from cease_core.models.card import PALETTE
from napari_cease.units import LEVELS
from napari_cease.widgets.parts import SmallPlot, escape

SYMBOLS = {"o": "●", "s": "■", "t1": "▲", "d": "◆", "t": "▼", "star": "★"}
"""Of pyqtgraph, and the same in text: lines are told apart without colour, too."""

# Okabe and Ito's bluish green and vermillion, legible on dark and on light ground; the sign says it, too.
GOOD, BAD = "#009E73", "#D55E00"
SIGNS = {"pass": ("✓", "passed", GOOD), "fail": ("✗", "failed", BAD), "not run": ("○", "not run", "")}

Points = Sequence[tuple[float, float]]
Band = Sequence[tuple[float, float, float]]
"""ε with the ends of the interval there."""

_SEE_THROUGH = 50
"""Of 255: how opaque a band is, so that two of them are told apart where they cross."""


class WorstCurves(QWidget):
    """Mean worst-case Dice of each model over ε, with a legend underneath."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setToolTip(
            "Mean over the cases of the lowest Dice that any attack has reached up to each ε; once the audit has "
            "finished, with its 95 % interval over the patients"
        )
        self.setAccessibleName("Worst-case Dice over ε")
        self.plot = SmallPlot(180)
        self.plot.setLabel("bottom", "ε (1/255 of the window)")
        self.plot.show_dice("Dice, worst case")
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(self.plot)
        column.addWidget(self.legend)
        self.lines: dict[str, pg.PlotDataItem] = {}
        self.bands: dict[str, pg.FillBetweenItem] = {}
        self._points: dict[str, Points] = {}
        self._bands: dict[str, Band] = {}

    def show_curve(self, title: str, points: Points) -> None:
        """Draw a model's curve, if it has changed."""
        if self._points.get(title) == points:
            return
        if title not in self.lines:
            at = len(self.lines)
            colour, symbol = PALETTE[at % len(PALETTE)], list(SYMBOLS)[at % len(SYMBOLS)]
            pen, brush = pg.mkPen(colour, width=2), pg.mkBrush(colour)
            self.lines[title] = self.plot.plot(
                [], [], name=title, pen=pen, symbol=symbol, symbolSize=7, symbolBrush=brush, symbolPen=None
            )
            self._list()
        self._points[title] = points
        self.lines[title].setData([LEVELS * e for e, _ in points], [dice for _, dice in points])

    def show_band(self, title: str, band: Band) -> None:
        """Draw the interval around a curve that is shown, if it has changed; without any it goes."""
        if self._bands.get(title, ()) == band:
            return
        self._bands[title] = band
        if title in self.bands:
            self.plot.removeItem(self.bands.pop(title))
        if band:
            levels = [LEVELS * e for e, _, _ in band]
            edges = (pg.PlotDataItem(levels, [row[end] for row in band]) for end in (1, 2))
            colour = pg.mkColor(self.lines[title].opts["pen"].color())
            colour.setAlpha(_SEE_THROUGH)
            self.bands[title] = pg.FillBetweenItem(*edges, brush=pg.mkBrush(colour))
            self.bands[title].setZValue(-1)  # behind the lines
            self.plot.addItem(self.bands[title])
        self._list()

    def forget(self) -> None:
        """Draw nothing."""
        for item in (*self.lines.values(), *self.bands.values()):
            self.plot.removeItem(item)
        self.lines, self.bands, self._points, self._bands = {}, {}, {}, {}
        self._list()

    def set_colours(self, text: str, ground: str) -> None:
        """Axes and labels in the theme's text colour, on its background."""
        self.plot.set_colours(text, ground)

    def _list(self) -> None:
        marks = list(SYMBOLS.values())
        entries = [
            f"<span style='color:{PALETTE[at % len(PALETTE)]}'>{marks[at % len(marks)]}</span> {escape(title)}"
            for at, title in enumerate(self.lines)
        ]
        if self.bands:
            entries.append("Shaded: 95 % interval over the patients")
        self.legend.setText("<br>".join(entries))


class _Rich(QLabel):
    """Words with signs, in the theme's colours, to read and to copy."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWordWrap(True)
        self.setTextFormat(Qt.TextFormat.RichText)
        self.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.setAccessibleName(name)


class VerdictView(_Rich):
    """Each model's verdict and headline."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Verdict", parent)

    def show_summary(self, summary: Summary | None) -> None:
        """Show an audit's figures, or nothing."""
        models = summary.models if summary else ()
        self.setText("".join(f"<p>{_verdict(summary, model)}</p>" for model in models))  # type: ignore[arg-type]


class ChecksView(_Rich):
    """The checks that each verdict rests on, those that failed first."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Checks", parent)

    def show_summary(self, summary: Summary | None) -> None:
        """Show an audit's checks, or nothing."""
        self.setText("<hr>".join("".join(_checks(model)) for model in (summary.models if summary else ())))


def _verdict(summary: Summary, model: ModelSummary) -> str:
    label, head = model.verdict.label, model.headline
    sign, _, colour = SIGNS["pass" if label == "credible" else "fail" if label.startswith("doubtful") else "not run"]
    part = share(head.asr_drop.mean).replace(" ", "\N{NO-BREAK SPACE}")
    broken = f"{part} of {plural(model.counts.eligible, 'eligible case')} broken"
    passed, failed = (sum(c.status == status for c in model.checks) for status in ("pass", "fail"))
    return (
        f"<b>{escape(model.title)}</b><br>"
        f"{_coloured(sign, colour)} <b>{escape(label)}</b> ({plural(passed, 'check')} passed, {failed} failed)<br>"
        f"Dice {number(head.clean_dice.mean)} clean, {number(head.worst_dice.mean)} in the worst case at "
        f"{level(summary.epsilon)}; {broken}"
    )


def _checks(model: ModelSummary) -> Iterator[str]:
    yield f"<p><b>{escape(model.title)}</b></p>"
    order = {"fail": 0, "not run": 1, "pass": 2}
    for check in sorted(model.checks, key=lambda c: order[c.status]):
        yield f"<p style='margin:3px 0'>{_check(check)}</p>"


def _check(check: CheckLine) -> str:
    sign, word, colour = SIGNS[check.status]
    optional = "" if check.required or check.status != "not run" else ", not required"
    said = f"{_coloured(sign, colour)} {escape(check.title)} – <b>{word}</b>{optional}: {escape(check.figure)}."
    return said + (f"<br><i>{escape(check.why)}</i>" if check.status == "fail" else "")


def _coloured(sign: str, colour: str) -> str:
    return f"<b style='color:{colour}'>{sign}</b>" if colour else f"<b>{sign}</b>"
