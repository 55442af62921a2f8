"""Charts as inline SVG: colours and fonts come from the page, exact numbers stand in ``data-`` attributes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from cease_core.evaluation.report.words import level, number, parts_of_255, plural
from cease_core.evaluation.summary import Curve, Point

# Narrow, so that the letters of a chart can be read on a telephone too.
WIDTH, HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 14, 46
_APART = 20  # least distance of two tick labels

MARKS = (
    "M-3.6,0A3.6,3.6 0 1 1 3.6,0A3.6,3.6 0 1 1 -3.6,0Z",
    "M-3.2,-3.2H3.2V3.2H-3.2Z",
    "M0,-4.4L4.2,3H-4.2Z",
    "M0,-4.6L4.4,0L0,4.6L-4.4,0Z",
    "M0,4.4L4.2,-3H-4.2Z",
    "M-1.4,-4.2H1.4V-1.4H4.2V1.4H1.4V4.2H-1.4V1.4H-4.2V-1.4H-1.4Z",
    "M-4,-4L4,-4L0,0L4,4L-4,4L0,0Z",
)
"""Shapes of points, so that curves are told apart without colours."""


@dataclass(frozen=True)
class Style:
    """The look of a series.

    Parameters
    ----------
    classes
        Of the page: ``s0`` to ``s6`` are the models' colours, ``t0`` to ``t6`` dashes for attacks.
    shape
        Which of `MARKS` its points have.
    wide
        Whether it is drawn broad and pale, for others to lie on.
    """

    classes: str
    shape: int
    wide: bool = False

    @classmethod
    def of_model(cls, number: int, *, wide: bool = False) -> Style:
        """Of the model with that number, from 0 on."""
        return cls(f"s{number % len(MARKS)}", number % len(MARKS), wide)

    @classmethod
    def of_trial(cls, number: int) -> Style:
        """Of the attack with that number among those on one model."""
        return cls(f"t{number % len(MARKS)}", (number + 1) % len(MARKS))

    @property
    def dot(self) -> str:
        return MARKS[self.shape]

    @property
    def line(self) -> str:
        return "line wide" if self.wide else "line"


@dataclass(frozen=True)
class Series:
    """A curve to draw.

    Parameters
    ----------
    label
        For tooltips.
    style
        Its look.
    curve
        What to draw; points without a Dice are left out.
    """

    label: str
    style: Style
    curve: Curve


@dataclass(frozen=True)
class CasePair:
    """A case's Dice without an attack and in the worst case."""

    case: str
    clean: float
    attacked: float


@dataclass(frozen=True)
class _Plane:
    """From figures to places in the picture."""

    most: float
    height: int = HEIGHT

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / self.most

    def y(self, value: float) -> float:
        return _TOP + (self.height - _TOP - _BOTTOM) * (1 - value)


def mark(style: Style) -> str:
    """A small SVG with the look of a series, for legends."""
    return (
        f'<svg class="mark {style.classes}" viewBox="-10 -6 20 12" aria-hidden="true">'
        f'<path class="{style.line}" d="M-10,0H10"/><path class="dot" d="{style.dot}"/></svg>'
    )


def curves(series: Sequence[Series], *, title: str) -> str:
    """Dice over ε.

    Parameters
    ----------
    series
        Those without a point are left out.
    title
        For readers that hear the page.

    Returns
    -------
    str
        SVG; every point is a ``g.point`` with ``data-series``, ``data-epsilon`` and ``data-dice``, and with
        ``data-low`` and ``data-high`` where it has a band.
    """
    shown = [s for s in series if any(p.dice is not None for p in s.curve.points)]
    ticks = sorted({p.epsilon for s in shown for p in s.curve.points})
    if len(ticks) < 2:
        return ""
    plane = _Plane(ticks[-1])
    parts = [
        *_frame(plane),
        *_ticks(plane, ticks),
        _words(plane.x(plane.most / 2), HEIGHT - 8, "largest change ε of a pixel, in 1/255 of the window", "middle"),
        *(_band(plane, s) for s in shown),
        *(_line(plane, s) for s in shown),
        *(_point(plane, s, p) for s in shown for p in s.curve.points if p.dice is not None),
    ]
    return _svg(parts, title, HEIGHT)


def pairs(cases: Iterable[CasePair], style: Style, *, title: str, eligible: float) -> str:
    """Dice of every case before and in the worst case, from the best case to the poorest.

    Parameters
    ----------
    eligible
        Clean Dice from which a case counts, drawn as a line.

    Returns
    -------
    str
        SVG; every case is a ``g.pair`` with ``data-case``, ``data-clean`` and ``data-attacked``.
    """
    ordered = sorted(cases, key=lambda c: (-c.clean, c.case))
    if not ordered:
        return ""
    height = 220
    plane = _Plane(len(ordered), height)
    limit = plane.y(eligible)
    parts = [
        *_frame(plane),
        f'<path class="limit" d="M{_LEFT},{limit:.1f}H{WIDTH - _RIGHT}"/>',
        _words(
            plane.x(plane.most / 2), height - 14, f"{plural(len(ordered), 'case')}, by Dice without an attack", "middle"
        ),
    ]
    for i, case in enumerate(ordered):
        x, top, low = plane.x(i + 0.5), plane.y(case.clean), plane.y(case.attacked)
        parts.append(
            f'<g class="pair {style.classes}" data-case="{escape(case.case)}" data-clean="{case.clean!r}" '
            f'data-attacked="{case.attacked!r}"><path class="stem" d="M{x:.1f},{top:.1f}V{low:.1f}"/>'
            f'<circle class="before" cx="{x:.1f}" cy="{top:.1f}" r="3"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{low:.1f}" r="3.6"/>'
            f"<title>{escape(case.case)}: Dice {number(case.clean)} without an attack, "
            f"{number(case.attacked)} in the worst case</title></g>"
        )
    return _svg(parts, title, height)


# --- parts ---------------------------------------------------------------------------------------------------


def _svg(parts: Iterable[str], title: str, height: int) -> str:
    return "\n".join(
        [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
            *parts,
            "</svg>",
        ]
    )


def _frame(plane: _Plane) -> Iterable[str]:
    for tenths in range(0, 11, 2):
        y = plane.y(tenths / 10)
        yield f'<path class="{"axis" if tenths == 0 else "grid"}" d="M{_LEFT},{y:.1f}H{WIDTH - _RIGHT}"/>'
        yield _words(_LEFT - 7, y + 4, f"{tenths / 10:.1f}", "end")
    middle = (plane.y(0) + plane.y(1)) / 2
    yield (
        f'<text class="label" x="11" y="{middle:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 11 {middle:.1f})">Dice</text>'
    )


def _ticks(plane: _Plane, ticks: Iterable[float]) -> Iterable[str]:
    last = -float(_APART)
    for tick in ticks:
        x = plane.x(tick)
        yield f'<path class="axis" d="M{x:.1f},{plane.y(0):.1f}v4"/>'
        if x - last >= _APART:
            yield _words(x, plane.y(0) + 17, parts_of_255(tick), "middle")
            last = x


def _words(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _band(plane: _Plane, series: Series) -> str:
    edges = [
        (plane.x(p.epsilon), plane.y(p.low), plane.y(p.high))
        for p in series.curve.points
        if p.low is not None and p.high is not None
    ]
    if not edges:
        return ""
    outline = [(x, high) for x, _, high in edges] + [(x, low) for x, low, _ in reversed(edges)]
    return f'<path class="band {series.style.classes}" d="M{_path(outline)}Z"/>'


def _line(plane: _Plane, series: Series) -> str:
    way = [(plane.x(p.epsilon), plane.y(p.dice)) for p in series.curve.points if p.dice is not None]
    return f'<path class="{series.style.line} {series.style.classes}" d="M{_path(way)}"/>'


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _point(plane: _Plane, series: Series, point: Point) -> str:
    assert point.dice is not None
    data = {"series": series.curve.name, "label": series.label, "epsilon": point.epsilon, "dice": point.dice}
    data |= {"low": point.low, "high": point.high, "cases": point.cases}
    told = " ".join(
        f'data-{key}="{escape(value) if isinstance(value, str) else repr(value)}"'
        for key, value in data.items()
        if value is not None
    )
    between = ""
    if point.low is not None and point.high is not None:
        between = f", 95 % interval {number(point.low)} to {number(point.high)}"
    return (
        f'<g class="point {series.style.classes}" {told} '
        f'transform="translate({plane.x(point.epsilon):.1f} {plane.y(point.dice):.1f})">'
        f'<circle class="reach" r="11"/><path class="dot" d="{series.style.dot}"/>'
        f"<title>{escape(series.label)} at ε = {level(point.epsilon)}: Dice {number(point.dice)}{between}, "
        f"{plural(point.cases, 'case')}</title></g>"
    )
