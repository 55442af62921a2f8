"""What the train dock shows, as an evented value that knows no Qt: the choices, and the run that came of them.

`TrainingSession.hear` takes in what a run tells, line by line. A run that was resumed tells some epochs again: what it
says last holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from psygnal import EventedModel
from pydantic import ConfigDict, Field, field_validator

from cease_core.defences import PRESETS
from cease_core.models.architectures import ARCHITECTURES
from cease_core.models.library import user_library
from cease_core.tasks import TASKS
from cease_core.training.propose import ARCHITECTURE, EPOCHS, VALIDATION
from napari_cease.jobs.process import LOG
from napari_cease.jobs.training import RESUMABLE, Status
from napari_cease.units import LEVELS

TEST = 0.15
"""Share of the patients that no training sees, so that there is a case to look at the model on: one of four or more."""

State = Literal["idle", "starting", "running", "paused", "stopped", "finished", "failed", "lost"]
Source = Literal["folder", "layers"]
Length = Literal["epochs", "minutes", "gradients"]


class Progress(NamedTuple):
    """The newest batch; see `cease_core.training.StepDone`."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    gradients: int
    seconds: float

    @property
    def done(self) -> int:
        """Batches so far."""
        return (self.epoch - 1) * self.batches + self.batch

    @property
    def total(self) -> int:
        """Batches in all."""
        return self.epochs * self.batches


class Epoch(NamedTuple):
    """An epoch; Dice is None where it was not validated."""

    epoch: int
    loss: float
    parts: Mapping[str, float]
    clean_dice: float | None
    robust_dice: float | None


class TrainingSession(EventedModel):
    """The train dock's state.

    Parameters
    ----------
    source, folder
        A data set's folder, or labelled layers of the viewer.
    validation, test
        Shares of the patients that choose the checkpoint, and that no training sees.
    patients
        Pattern that finds the patient in a case's name.
    architecture, preset, start
        Keys of `ARCHITECTURES` and `PRESETS`; a model folder to start from.
    teacher
        Model folder for the preset *distillation*.
    title
        Of the model; empty for one made of data and preset.
    library
        Folder that receives the model.
    level
        Training ε in 1/255.
    length, epochs, minutes, gradients
        What limits the training, and by how much.
    ndim, batch_size, patch
        None where they follow from the data; patch in voxels at the working resolution.
    tasks
        Auxiliary tasks named by hand; None to choose them by their relevance.
    save_every
        Seconds between two saves within an epoch; None for as often as costs little.
    run
        Folder of the run that the rest is about.
    state, sentence
        Where it stands, and why it ended.
    model
        Folder of the model that came of it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, validate_assignment=True, extra="forbid")

    source: Source = "folder"
    folder: Path | None = None
    validation: float = Field(default=VALIDATION, gt=0, lt=1)
    test: float = Field(default=TEST, ge=0, lt=1)
    patients: str = ""
    architecture: str = ARCHITECTURE
    preset: str = "cease"
    start: Path | None = None
    teacher: Path | None = None
    title: str = ""
    library: Path = Field(default_factory=user_library)
    level: float = Field(default=8.0, gt=0, le=LEVELS)
    length: Length = "epochs"
    epochs: int = Field(default=EPOCHS, ge=1)
    minutes: float = Field(default=30.0, gt=0)
    gradients: int = Field(default=100_000, ge=1)
    ndim: Literal[2, 3] | None = None
    batch_size: int | None = Field(default=None, ge=2)
    patch: tuple[int, ...] | None = None
    steps: int = Field(default=7, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    validate_every: int = Field(default=5, ge=1)
    patience: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    channels: tuple[int, ...] | None = None
    tasks: tuple[str, ...] | None = None
    save_every: float | None = Field(default=None, ge=0)

    run: Path | None = None
    state: State = "idle"
    sentence: str = ""
    model: Path | None = None
    choosing: bool = False
    cases: Mapping[str, int] = Field(default_factory=dict)
    progress: Progress | None = None
    history: tuple[Epoch, ...] = ()
    losses: tuple[tuple[float, float], ...] = ()
    rates: tuple[tuple[float, float], ...] = ()
    saved: tuple[int, int] | None = None
    metrics: Mapping[str, float] = Field(default_factory=dict)
    best_epoch: int | None = None
    first: tuple[int, float] | None = None

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, name: str) -> str:
        if name not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
        return name

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        return name

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if unknown := sorted(set(tasks or ()) - TASKS.keys()):
            raise ValueError(f"unknown task {', '.join(unknown)}; choose from {', '.join(TASKS)}")
        return tasks

    # --- the choices ----------------------------------------------------------------------------------------

    def choose_preset(self, name: str) -> None:
        """Take a preset, and its number of inner steps unless another has been asked for."""
        own = self.steps == PRESETS[self.preset].inner.steps
        self.preset = name
        if own:
            self.steps = PRESETS[name].inner.steps

    @property
    def attacks(self) -> bool:
        """Whether the preset attacks while it trains."""
        return PRESETS[self.preset].attacks

    @property
    def multitask(self) -> bool:
        """Whether the preset has auxiliary tasks."""
        return PRESETS[self.preset].auxiliary is not None

    @property
    def data(self) -> dict[str, Any]:
        """Entries of the config's ``data``."""
        return {"validation": self.validation, "test": self.test, "patients": self.patients or None}

    @property
    def choices(self) -> dict[str, Any]:
        """Other entries of the config by dotted name; those that follow from the data are left out."""
        inner = PRESETS[self.preset].inner
        entries: dict[str, Any] = {
            "defence": self.preset,
            "defence.inner.epsilon": self.level / LEVELS,
            "architecture": None if self.start is not None else self.architecture,
            "architecture_args": {"channels": list(self.channels)} if self.channels and self.start is None else None,
            "start": None if self.start is None else str(self.start),
            "ndim": self.ndim,
            "batch_size": self.batch_size,
            "patch": None if self.patch is None else list(self.patch),
            "learning_rate": self.learning_rate,
            "precision": self.precision,
            "validate_every": self.validate_every,
            "patience": self.patience,
            "seed": self.seed,
        }
        if self.attacks and inner.ascent != "free" and inner.steps > 1:
            entries["defence.inner.steps"] = self.steps
        if self.multitask and self.tasks is not None:
            entries["defence.auxiliary.tasks"] = list(self.tasks)
        if self.preset == "distillation" and self.teacher is not None:
            entries["defence.distillation.teacher"] = str(self.teacher)
        # Minutes are turned into epochs by the process that knows how fast it is.
        entries["budget" if self.length == "gradients" else "epochs"] = (
            self.gradients if self.length == "gradients" else self.epochs
        )
        return {name: value for name, value in entries.items() if value is not None}

    # --- the run --------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether a process works on the run."""
        return self.state in ("starting", "running")

    @property
    def resumable(self) -> bool:
        """Whether it can go on."""
        return self.state in RESUMABLE

    def begin(self, run: Path | None) -> None:
        """Forget the run before and be about another one."""
        self.progress = self.saved = self.model = self.first = self.best_epoch = None
        self.history, self.losses, self.rates = (), (), ()
        self.metrics, self.cases, self.choosing, self.sentence = {}, {}, False, ""
        self.run = run
        self.state = "idle"

    def stand(self, status: Status) -> None:
        """Take in where the run stands."""
        self.sentence, self.model = status.sentence, status.model
        self.state = status.stage

    def hear(self, lines: Iterable[Mapping[str, Any]]) -> set[str]:
        """Take in what the run has told; returns the kinds of events among it."""
        heard: set[str] = set()
        history, losses, rates = list(self.history), list(self.losses), list(self.rates)
        progress, first = self.progress, self.first
        for line in lines:
            kind, told = str(line.get("kind")), dict(line)
            heard.add(kind)
            if kind == "began":
                self.choosing, self.cases, first = bool(told["choosing"]), told["cases"], None
            elif kind == "step":
                progress = Progress(*(told[name] for name in Progress._fields))
                at = progress.done / progress.batches
                while losses and losses[-1][0] >= at:
                    losses.pop()
                losses.append((at, progress.loss))
                first = first or (progress.done, progress.seconds)
                self.choosing = False
            elif kind == "tasks":
                self.choosing = False
            elif kind == "epoch":
                row = Epoch(*(told[name] for name in Epoch._fields))
                history = [r for r in history if r.epoch < row.epoch] + [row]
                if progress is not None:
                    progress = progress._replace(
                        epoch=row.epoch, batch=progress.batches, loss=row.loss, seconds=told["seconds"]
                    )
            elif kind == "saved":
                self.saved = told["epoch"], told["batch"]
                if "learning_rate" in told:
                    rates = [r for r in rates if r[0] < told["epoch"]] + [(told["epoch"], told["learning_rate"])]
            elif kind == "finished":
                self.metrics, self.best_epoch = told["metrics"], told.get("best_epoch")
        if heard:
            self.first, self.history = first, tuple(history)
            self.losses, self.rates = tuple(losses), tuple(rates)
            self.progress = progress
        return heard

    @property
    def seconds_left(self) -> float | None:
        """Time left, as fast as the process has been since it began; None before its second batch."""
        if self.progress is None or self.first is None or not self.alive:
            return None
        done, seconds = self.progress.done - self.first[0], self.progress.seconds - self.first[1]
        return None if done <= 0 else seconds / done * (self.progress.total - self.progress.done)

    @property
    def told(self) -> str:
        """Where the run stands, in a sentence."""
        return _TOLD[self.state](self)

    @property
    def place(self) -> str:
        """Where the newest batch is: ``epoch 3 of 20, batch 4 of 11``."""
        p = self.progress
        if p is None:
            return "before the first batch"
        batch = f", batch {p.batch} of {p.batches}" if p.batch < p.batches else ""
        return f"epoch {p.epoch} of {p.epochs}{batch}"

    @property
    def _reached(self) -> str:
        return self.place if self.progress is None else f"at {self.place}"

    @property
    def _kept(self) -> str:
        if self.saved is None:
            return "nothing was saved yet, and Resume begins anew."
        epoch, batch = self.saved
        kept = f"batch {batch} of epoch {epoch + 1}" if batch else f"epoch {epoch}"
        return f"{kept} is saved, and Resume goes on from there."


def _running(s: TrainingSession) -> str:
    if s.progress is None:
        count = sum(s.cases.values())
        reading = f"reading {count} cases" if count else "loading"
        return f"Beginning: {reading}{', then choosing auxiliary tasks by their relevance' if s.choosing else ''}."
    return f"Training: {s.place}, loss {s.progress.loss:.3f}."


def _finished(s: TrainingSession) -> str:
    clean, robust = (s.metrics.get(f"validation_{kind}_dice") for kind in ("clean", "robust"))
    reached = "" if clean is None else f"Dice {clean:.3f}"
    if reached and robust is not None:
        reached += f", {robust:.3f} under PGD-10"
    count = s.cases.get("validation", 0)
    reached += f" on {count} validation {'case' if count == 1 else 'cases'}" if reached and count else ""
    chosen = "" if s.best_epoch is None else f"the checkpoint of epoch {s.best_epoch} was chosen"
    told = ": ".join(part for part in (chosen, reached) if part)
    where = "" if s.model is None else f"the model is in the library as {s.model.name}"
    return f"Finished: {'; '.join(part for part in (told, where) if part)}."


_TOLD: dict[State, Callable[[TrainingSession], str]] = {
    "idle": lambda s: "Not started.",
    "starting": lambda s: "Starting a process of its own.",
    "running": _running,
    "paused": lambda s: f"Paused {s._reached}; everything is saved, Resume goes on from there.",
    "stopped": lambda s: f"Stopped {s._reached}; {s._kept}",
    "finished": _finished,
    "failed": lambda s: s.sentence or f"The training failed; {LOG} in its folder says why.",
    "lost": lambda s: f"The training process has vanished, {s._reached}: {s.sentence.rstrip('.')}; {s._kept}",
}
