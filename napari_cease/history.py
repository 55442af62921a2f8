"""What was explored, to go back to: a line of choices to undo and redo, and the runs that were made. No Qt here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from napari.layers import Image, Labels, Layer, Shapes

from napari_cease.jobs.exploration import Side

KEPT_RUNS = 12
KEPT_CHOICES = 100


@dataclass(frozen=True)
class Choices:
    """Everything that the explorer's results depend on, as it can be chosen again.

    Parameters
    ----------
    target
        A key of `cease_core.attacks.targets.TARGETS`, or the layer of the mask to reach.
    level, index
        ε in 1/255, and the slice: where one was looking.
    """

    scan: Image | None
    labels: Labels | None
    undefended: Path | None
    defended: Path | None
    attack: str
    parameters: Mapping[str, Any]
    target: str | Labels | None
    region: Labels | Shapes | None
    top: int
    level: int = 0
    index: int = 0

    def alike(self, other: Choices) -> bool:
        """Whether they differ at most in where one was looking."""
        return self == replace(other, level=self.level, index=self.index)

    def uses(self, layer: Layer) -> bool:
        """Whether a layer is among what was chosen."""
        return any(layer is mine for mine in (self.scan, self.labels, self.target, self.region))


class Timeline:
    """Choices in the order they were made, with a place among them."""

    def __init__(self) -> None:
        self._made: list[Choices] = []
        self._at = -1

    def note(self, now: Choices) -> bool:
        """Take in what is chosen now; returns whether that is a new step, which ends what could be redone."""
        if self._made and self._made[self._at].alike(now):
            self._made[self._at] = now
            return False
        self._made = [*self._made[: self._at + 1], now][-KEPT_CHOICES:]
        self._at = len(self._made) - 1
        return True

    @property
    def can_undo(self) -> bool:
        """Whether there is something before."""
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is something after."""
        return self._at < len(self._made) - 1

    def step(self, by: int) -> Choices | None:
        """Go back (-1) or forth (1); None if there is nothing."""
        if not 0 <= self._at + by < len(self._made):
            return None
        self._at += by
        return self._made[self._at]

    def forget(self, layer: Layer) -> None:
        """Let go of what used a layer that is no more."""
        kept = [i for i, choices in enumerate(self._made) if not choices.uses(layer)]
        self._at = sum(i <= self._at for i in kept) - 1
        self._made = [self._made[i] for i in kept]
        self._at = max(self._at, 0) if self._made else -1


@dataclass(frozen=True)
class Run:
    """A finished attack, and what it showed where one looked.

    Parameters
    ----------
    title
        Scan, slice and attack.
    details
        Everything else that was chosen, by name.
    dice
        Of each model at ε.
    """

    choices: Choices
    title: str
    details: Mapping[str, str]
    dice: Mapping[Side, float]

    @property
    def level(self) -> int:
        """ε in 1/255."""
        return self.choices.level


class Runs:
    """The last runs, newest first; the same choices are one run."""

    def __init__(self) -> None:
        self.all: list[Run] = []

    def note(self, run: Run) -> bool:
        """Take a run in; returns whether that is news. One that is there keeps its place and gets the newest ε."""
        for i, old in enumerate(self.all):
            if replace(old.choices, level=run.level) == run.choices:
                self.all[i] = run
                return old != run
        self.all = [run, *self.all][:KEPT_RUNS]
        return True

    def forget(self, layer: Layer) -> bool:
        """Let go of what used a layer that is no more; returns whether there was any."""
        before = len(self.all)
        self.all = [run for run in self.all if not run.choices.uses(layer)]
        return len(self.all) != before
