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


def epsilon_text(level: int, width: float | None = None, unit: str = "") -> str:
    """ε in words.

    Parameters
    ----------
    level
        ε in 1/255.
    width
        Width of the window in the scan's unit; None if it is not known.
    """
    if level == 0:
        return "ε = 0 (clean)"
    text = f"ε = {level}/{LEVELS}"
    return text if width is None else f"{text}  =  {in_unit(level / LEVELS * width, unit)}"
