"""The radius of an attack as people write it: a fraction of the window, or an amount in the scan's unit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cease_core.errors import CeaseError
from cease_core.scan import Scan, Window

_PATTERN = re.compile(
    r"(?P<number>\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)\s*(?:/\s*(?P<divisor>\d+(?:\.\d*)?)|(?P<unit>[^\W\d].*))?",
    re.IGNORECASE,
)

GREY_LEVELS = "levels"
"""How the unit of 8-bit pictures is written: a number directly before "8-bit" would read as another number."""


def unit_name(scan: Scan) -> str:
    """The scan's unit as it stands behind a number."""
    return GREY_LEVELS if scan.unit == "8-bit" else scan.unit


@dataclass(frozen=True)
class Epsilon:
    """A radius; ``unit`` is empty for window fractions."""

    value: float
    unit: str = ""

    @classmethod
    def parse(cls, text: str) -> Epsilon:
        """Read ``8/255``, ``0.03`` or ``20HU``.

        Raises
        ------
        CeaseError
            If it is anything else.

        Examples
        --------
        >>> Epsilon.parse("20 HU")
        Epsilon(value=20.0, unit='HU')
        """
        match = _PATTERN.fullmatch(text.strip())
        divisor = float(match["divisor"]) if match and match["divisor"] else 1.0
        value = float(match["number"]) / divisor if match and divisor else math.nan
        if match is None or not math.isfinite(value):
            raise CeaseError(
                f"epsilon {text!r} is not understood; give a share of the window such as 8/255 or 0.03, "
                "or an amount in the scan's unit such as 20HU."
            )
        return cls(value, (match["unit"] or "").strip())

    def fraction(self, window: Window, scan: Scan) -> float:
        """As a share of the window.

        Raises
        ------
        CeaseError
            If the unit is not the scan's, or the radius exceeds the window.
        """
        unit = unit_name(scan)
        if self.unit and self.unit.casefold() != unit.casefold():
            raise CeaseError(
                f"epsilon is given in {self.unit}, but the intensities of {scan.name} are in {unit}; "
                f"write {self.value:g}{unit}, or a share of the window such as 8/255."
            )
        fraction = self.value / window.width if self.unit else self.value
        if fraction > 1:
            raise CeaseError(
                f"epsilon is {fraction:g} times the whole window of {window.width:g} {unit}; "
                "give at most 1, for example 8/255."
            )
        return fraction
