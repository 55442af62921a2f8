"""Intensity windows that CT is read in, by name."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from cease_core.scan import Scan, Window


@dataclass(frozen=True)
class WindowPreset:
    """A window as consoles state it, in HU.

    Parameters
    ----------
    level
        Its middle.
    width
        Its length.
    """

    name: str
    level: float
    width: float

    @property
    def window(self) -> Window:
        """The interval from ``level - width / 2`` to ``level + width / 2``."""
        return Window(self.level - self.width / 2, self.level + self.width / 2)


WINDOWS: MappingProxyType[str, WindowPreset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            WindowPreset("soft tissue", 40.0, 400.0),
            WindowPreset("lung", -600.0, 1500.0),
            WindowPreset("bone", 400.0, 1800.0),
            WindowPreset("brain", 40.0, 80.0),
        )
    }
)
"""Presets by name. Levels and widths are conventions that differ a little from one department to the next; these are
common ones (Radiopaedia, "Windowing (CT)")."""


def presets_for(scan: Scan) -> tuple[WindowPreset, ...]:
    """The presets that make sense for a scan: all of them if its unit is HU, else none."""
    return tuple(WINDOWS.values()) if scan.unit == "HU" else ()
