"""What is known about a scan under attack, and what that depends on. No Qt here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cease_core.attacks import Attack, CriticalMap
from napari_cease.jobs.exploration import SIDES, Opened, Side, View
from napari_cease.session import Reference, Region
from napari_cease.units import LEVELS


class Settings(NamedTuple):
    """What results depend on, besides scan, reference and ε."""

    undefended: Path | None
    defended: Path | None
    attack: Attack
    target: str | Reference | None
    region: Region | None
    top: int
    slice_index: int

    @property
    def whole(self) -> Settings:
        """The same for all slices."""
        return self._replace(slice_index=-1)


@dataclass
class Results:
    """What is known about one slice (or volume) under one choice of settings; ε counted in 1/255."""

    opened: dict[Side, Opened] = field(default_factory=dict)
    views: dict[tuple[Side, int], View] = field(default_factory=dict)
    complete: bool = False
    critical: dict[Side, tuple[int, NDArray[np.float32]]] = field(default_factory=dict)
    revision: int = 0

    def learn(self, view: View) -> None:
        """Take a view in; a preview never replaces the ladder's own."""
        key = (view.side, round(view.epsilon * LEVELS))
        old = self.views.get(key)
        if view.preview and old is not None and not old.preview:
            return
        self.views[key] = view
        self.revision += not view.preview

    def critical_levels(self, side: Side) -> NDArray[np.float32] | None:
        """ε, in 1/255, at which each voxel first flips: the same array until the ladder has learnt more."""
        opened = self.opened.get(side)
        if opened is None:
            return None
        if side not in self.critical or self.critical[side][0] != self.revision:
            # From the start, so that a rung which was found anew counts as it is now.
            found = CriticalMap(opened.mask)
            for (one, _), view in self.views.items():
                if one == side and not view.preview:
                    found.update(view.epsilon, view.mask)
            self.critical[side] = self.revision, found.values * np.float32(LEVELS)
        return self.critical[side][1]

    @property
    def nbytes(self) -> int:
        """Memory that the views hold."""
        return sum(v.mask.nbytes + v.perturbation.nbytes for v in self.views.values())

    def curve(self, side: Side) -> tuple[list[int], list[float]]:
        """Levels and Dice of the ladder's own results, from 0 up."""
        points = sorted((level, v.dice) for (s, level), v in self.views.items() if s == side and not v.preview)
        return [p[0] for p in points], [p[1] for p in points]

    def class_curves(self, side: Side) -> tuple[list[int], list[list[float]]]:
        """Levels of the ladder's own results from 0 up, and for each class its Dice there."""
        points = sorted((level, v.class_dice) for (s, level), v in self.views.items() if s == side and not v.preview)
        return [p[0] for p in points], [list(dice) for dice in zip(*(p[1] for p in points), strict=True)]


NOTHING = Results()
"""Of settings that were never explored."""


def all_known(settings: Settings, results: Results) -> bool:
    """Whether every ε of the ladder has its own result."""
    levels = range(1, settings.top + 1)
    chosen = [side for side in SIDES if getattr(settings, side)]
    views = [results.views.get((side, level)) for side in chosen for level in levels]
    return all(view is not None and not view.preview for view in views)
