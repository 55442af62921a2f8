"""A heat map of how alike the input gradients of segmentation and its candidate tasks are, as SVG."""

from __future__ import annotations

import math
from html import escape

from cease_core.tasks.relevance import Relevance, Selection

# ColorBrewer's YlGnBu: it darkens steadily, so it reads in any colour vision and in print.
_COLOURS = ("#ffffd9", "#c7e9b4", "#41b6c4", "#225ea8", "#081d58")
_CHOSEN = "#D55E00"  # Okabe & Ito's vermilion, far from all of these
_INK, _PALE = "#222222", "#595959"
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
_CELL, _MARGIN, _TOP = 46, 24, 124
_WIDEST_LETTER = 7.6  # pixels a letter of a bold label, on average


def similarity_figure(relevance: Relevance, selection: Selection) -> str:
    """SVG text: mean |cos| of the input gradients of segmentation and all tasks, the chosen ones marked.

    Tasks run down from the weakest relation with segmentation, whose column is the first, to the strongest. Colours
    span 0 to the largest value, rounded up to a tenth.
    """
    names = relevance.weakest_first
    rows = [(relevance.scores[name].title, name in selection.chosen) for name in names]
    columns = [("Segmentation", False), *rows[:-1]]
    values = [
        [relevance.scores[name].c_in, *(relevance.pairwise[name][other] for other in names[:row])]
        for row, name in enumerate(names)
    ]
    most = max(0.1, math.ceil(10 * max(map(max, values))) / 10)
    longest = _WIDEST_LETTER * max(len(title) for title, _ in (*rows, *columns))
    left, foot = round(_MARGIN + 24 + longest), _TOP + _CELL * len(names)
    width = max(left + _CELL * len(names) + _MARGIN, 680)
    height = round(foot + _MARGIN + 14 + 0.77 * longest)
    parts = [
        _text(_MARGIN, 34, "Similarity of input gradients: mean |cos|", size=17, bold=True),
        _text(
            _MARGIN,
            55,
            f"{relevance.cases} held-out cases, clean and under PGD-{relevance.steps} at "
            f"{relevance.epsilon * 255:g}/255, weakest relation with segmentation first",
            fill=_PALE,
        ),
        *_legend(relevance.noise_floor, most),
    ]
    for row, line in enumerate(values):
        parts += [_cell(left + _CELL * column, _TOP + _CELL * row, v, most) for column, v in enumerate(line)]
    for row, (title, chosen) in enumerate(rows):
        middle = _TOP + _CELL * (row + 0.5)
        fill = _CHOSEN if chosen else _INK
        parts.append(_text(left - 12, middle + 4.5, title, anchor="end", bold=chosen, fill=fill))
        if chosen:
            parts.append(_frame(left, _TOP + _CELL * row))
    for column, (title, chosen) in enumerate(columns):
        at = (left + _CELL * (column + 0.5) + 5, foot + 16)
        fill = _CHOSEN if chosen else _INK
        parts.append(_text(*at, title, anchor="end", bold=chosen or column == 0, fill=fill, turn=-50))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="{_FONT}">',
            "<title>Similarity of input gradients</title>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _legend(floor: float, most: float) -> list[str]:
    """Colour bar with its ends and the noise floor, and what the frame means."""
    x, y, width, steps = _MARGIN, 72, 220, 44
    part = width / steps
    bar = [
        f'<rect x="{x + part * i:.1f}" y="{y}" width="{part + 0.5:.1f}" height="12" '
        f'fill="{_colour((i + 0.5) / steps)}"/>'
        for i in range(steps)
    ]
    at = x + width * min(1.0, floor / most)
    return [
        *bar,
        f'<rect x="{x}" y="{y}" width="{width}" height="12" fill="none" stroke="{_PALE}"/>',
        _text(x, y + 27, "0", fill=_PALE, size=12),
        _text(x + width, y + 27, f"{most:.1f}", fill=_PALE, size=12, anchor="end"),
        f'<path d="M {at:.1f} {y - 3} v 18" stroke="{_INK}" stroke-width="2"/>',
        f'<path d="M {x + width + 28} {y - 3} v 18" stroke="{_INK}" stroke-width="2"/>',
        _text(x + width + 36, y + 10, f"pure noise: {floor:.2f}", size=12),
        _frame(x + width + 150, y - 2, 16),
        _text(x + width + 174, y + 10, "chosen", size=12, bold=True, fill=_CHOSEN),
    ]


def _cell(x: float, y: float, value: float, most: float) -> str:
    colour = _colour(value / most)
    ink = "#ffffff" if _luminance(colour) < 0.21 else _INK
    square = f'<rect x="{x}" y="{y}" width="{_CELL - 2}" height="{_CELL - 2}" fill="{colour}"/>'
    number = _text(x + (_CELL - 2) / 2, y + _CELL / 2 + 3.5, f"{value:.2f}", anchor="middle", fill=ink)
    return f"{square}\n{number}"


def _frame(x: float, y: float, edge: float = _CELL - 2) -> str:
    return (
        f'<rect x="{x + 1.5}" y="{y + 1.5}" width="{edge - 3}" height="{edge - 3}" fill="none" '
        f'stroke="{_CHOSEN}" stroke-width="3"/>'
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = 13,
    fill: str = _INK,
    anchor: str = "start",
    bold: bool = False,
    turn: int = 0,
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}{turned}>'
        f"{escape(words)}</text>"
    )


def _colour(share: float) -> str:
    """Between the palette's colours, for 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(_COLOURS) - 1)
    index = min(int(at), len(_COLOURS) - 2)
    low, high = (_rgb(c) for c in _COLOURS[index : index + 2])
    mixed = (round(a + (at - index) * (b - a)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)


def _luminance(colour: str) -> float:
    """Relative luminance, 0 to 1 (WCAG 2)."""
    linear = ((c / 255 / 12.92) if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in _rgb(colour))
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
