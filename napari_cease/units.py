"""How intensities and ε are written for people."""

from __future__ import annotations

LEVELS = 255
"""ε is counted in steps of 1/255 of the intensity window."""


def unit_name(unit: str) -> str:
    """A scan's unit in words."""
    return {"8-bit": "grey levels"}.get(unit, unit)


def in_unit(value: float, unit: str) -> str:
    """A change of intensity in words: ``8.0 grey levels``, ``12.5 HU``."""
    digits = 1 if value >= 1 or value == 0 else 3
    return f"{value:.{digits}f} {unit_name(unit)}"


def epsilon_words(level: int, width: float | None = None, unit: str = "") -> str:
    """The value of ε: ``8/255``, or in the scan's unit if the window's ``width`` is given: ``12.5 HU``."""
    return f"{level}/{LEVELS}" if width is None else in_unit(level / LEVELS * width, unit)


def epsilon_text(level: int, width: float | None = None, unit: str = "", *, intensity_first: bool = False) -> str:
    """ε in words.

    Parameters
    ----------
    level
        ε in 1/255.
    width
        Width of the window in the scan's unit; None if it is not known.
    intensity_first
        Say it in the scan's unit first, then in 1/255.
    """
    if level == 0:
        return "ε = 0 (clean)"
    values = [epsilon_words(level)] if width is None else [epsilon_words(level), epsilon_words(level, width, unit)]
    return "ε = " + "  =  ".join(reversed(values) if intensity_first else values)
