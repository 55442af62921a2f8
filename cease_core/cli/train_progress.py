"""A training run on stderr: a live display in a terminal, lines in a log file."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cease_core.training.events import EpochDone, Event, StepDone, TasksChosen


class TrainingProgress:
    """A run as it goes: a live bar in a terminal with a line for each validation, a line an epoch in a log file.

    Parameters
    ----------
    title
        Of the run.
    waiting
        What is done before the first batch.
    speaks
        False for all but one of several processes.
    live
        By default whether stderr is a terminal.
    """

    def __init__(self, title: str, waiting: str, *, speaks: bool = True, live: bool | None = None) -> None:
        self._console = Console(stderr=True, quiet=not speaks, highlight=False)
        self._title, self._waiting = title, waiting
        self._step: StepDone | None = None
        self._validated: EpochDone | None = None
        self._began: tuple[float, int] | None = None
        shown = self._console.is_terminal if live is None else live
        self._live = (
            Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True)
            if shown and speaks
            else None
        )

    def __enter__(self) -> TrainingProgress:
        if self._live is not None:
            self._live.start()
        else:
            self._say(f"{self._title}: {self._waiting}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def left(self) -> str:
        """Time left, as this process has gone so far; empty before the second batch."""
        if self._step is None or self._began is None:
            return ""
        since, first = self._began
        done, all_steps = _place(self._step)
        if done == first:
            return ""
        seconds = (time.monotonic() - since) / (done - first) * (all_steps - done)
        return f"{timedelta(seconds=round(seconds))} left"

    def show(self, event: Event) -> None:
        """Take in what the run tells."""
        if isinstance(event, StepDone):
            self._step = event
            if self._began is None:
                self._began = time.monotonic(), _place(event)[0]
        elif isinstance(event, TasksChosen):
            self._say(f"auxiliary tasks: {', '.join(event.tasks) or 'none is fit'}")
        elif isinstance(event, EpochDone):
            validated = not math.isnan(event.clean_dice)
            if validated:
                self._validated = event
            if self._live is None or validated:
                tail = "" if self._live is not None else f", {', '.join(filter(None, (_cost(event), self.left)))}"
                self._say(f"epoch {event.epoch}/{event.epochs}: {describe(event)}{tail}")

    def _say(self, text: str) -> None:
        # Never broken into lines: a log is searched by line.
        self._console.print(escape(text), soft_wrap=True)

    def _render(self) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        step = self._step
        if step is None:
            row.add_row(escape(self._title), ProgressBar(width=30, pulse=True), escape(self._waiting))
            return row
        done, steps = _place(step)
        place = f"epoch {step.epoch}/{step.epochs}, batch {step.batch}/{step.batches}"
        row.add_row(escape(self._title), ProgressBar(steps, done, width=30), place, f"[cyan]{self.left}[/cyan]")
        lines: list[RenderableType] = [row, Text(f"  loss {step.loss:.3f}{_parts(step.parts)}")]
        dice = "no validation yet" if self._validated is None else _dice(self._validated)
        lines.append(Text(f"  {dice}; {_cost(step)}"))
        return Group(*lines)


def describe(event: EpochDone) -> str:
    """Loss, its parts and, after a validation, Dice of one epoch.

    Examples
    --------
    >>> describe(EpochDone(1, 5, 0.25, 0.9, float("nan"), 10, 2.0, {"segmentation clean": 0.25}))
    'loss 0.250, clean Dice 0.900'
    """
    figures = (("clean Dice", event.clean_dice), ("robust Dice", event.robust_dice))
    told = [f"{name} {value:.3f}" for name, value in figures if not math.isnan(value)]
    return ", ".join([f"loss {event.loss:.3f}{_parts(event.parts)}", *told])


def _parts(parts: dict[str, float]) -> str:
    """The terms of a loss, where it has more than one."""
    return f" ({', '.join(f'{name} {value:.3f}' for name, value in parts.items())})" if len(parts) > 1 else ""


def _dice(event: EpochDone) -> str:
    robust = "" if math.isnan(event.robust_dice) else f", robust {event.robust_dice:.3f}"
    return f"Dice clean {event.clean_dice:.3f}{robust} (after epoch {event.epoch})"


def _cost(event: StepDone | EpochDone) -> str:
    return f"{event.gradients:,} gradient computations, {timedelta(seconds=round(event.seconds))}"


def _place(step: StepDone) -> tuple[int, int]:
    """Batches done, and how many there will be."""
    return (step.epoch - 1) * step.batches + step.batch, step.epochs * step.batches
