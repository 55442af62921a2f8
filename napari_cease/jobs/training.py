"""A training run as a folder: started, watched, stopped, and found again later. No Qt here.

The run is a process of its own (`napari_cease.jobs.training_process`), which tells all it does in files of the folder.
Whoever opens the folder sees the same; nothing is lost with the window, and nothing but the last seconds with the
process. The folder is one that ``cease train --resume`` understands, too.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.io.files import write_atomically, write_text
from napari_cease.jobs.process import RUNNING, STARTING, Detached, read_json

EVENTS, PREVIEW, JOB = "events.jsonl", "preview.npz", "job.json"
RUNS = "runs"
"""Folder of a library that holds its runs; models are folders beside it."""
MODULE = "napari_cease.jobs.training_process"

Stage = Literal["starting", "running", "paused", "stopped", "finished", "failed", "lost"]
ALIVE: tuple[Stage, ...] = ("starting", "running")
RESUMABLE: tuple[Stage, ...] = ("paused", "stopped", "failed", "lost")

_KEPT = (
    "config.yaml",
    "split.json",
    "history.csv",
    "history.jsonl",
    "relevance.json",
    "relevance.md",
    "relevance.svg",
    "heads.safetensors",
    "model.safetensors",
    "card.json",
)
"""What goes into the library with a model; the card comes last, as it makes the folder a model."""


@dataclass(frozen=True)
class Job:
    """How a run is computed, beside what decides its outcome.

    Parameters
    ----------
    library
        Folder that receives the model.
    threads
        For torch. On a CPU a run goes on bit for bit only with the number that it began with.
    device
        By default the best there is.
    save_every
        Seconds after which the state is saved within an epoch; by default as often as costs little.
    minutes
        Length of the training, if that is what limits it: the process then measures how many epochs fit.
    """

    library: Path
    threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 2) - 1))
    device: str | None = None
    save_every: float | None = None
    minutes: float | None = None

    def write(self, folder: Path) -> None:
        """Into a run's folder."""
        write_text(folder / JOB, json.dumps(asdict(self) | {"library": str(self.library)}) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Job:
        """That of a run.

        Raises
        ------
        CeaseError
            If it is missing or damaged.
        """
        values = read_json(folder / JOB)
        try:
            return cls(**values | {"library": Path(values["library"])})
        except (TypeError, KeyError) as error:
            raise CeaseError(f"{folder / JOB} is missing or damaged; start a new run.") from error


@dataclass(frozen=True)
class Status:
    """Where a run stands; ``sentence`` says why it ended, ``model`` where its model is."""

    stage: Stage
    sentence: str = ""
    model: Path | None = None

    @property
    def alive(self) -> bool:
        """Whether its process works on it."""
        return self.stage in ALIVE


@dataclass(frozen=True)
class Run:
    """A run's folder, from the outside."""

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run that was started before.

        Raises
        ------
        CeaseError
            If the folder holds none.
        """
        folder = Path(folder).expanduser().resolve()
        if not (folder / JOB).is_file():
            raise CeaseError(f"{folder} holds no training run; choose a folder that has a {JOB}.")
        return cls(folder)

    # --- its process ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let a process work on the run: from its beginning, or from the state that was saved last.

        Raises
        ------
        CeaseError
            If one does already, or none can be started.
        """
        if self.status().alive:
            raise CeaseError(f"the run in {self.folder} is under way already; attach to it.")
        self._detached.start()

    def pause(self) -> None:
        """Ask the process to save the state and end."""
        self._detached.ask("pause")

    def stop(self) -> None:
        """Let the process end at once; what it did since the state was last saved is lost."""
        self._detached.ask("stop")
        # Before the first batch and while it chooses tasks it does not look at what it is asked for.
        self._detached.terminate()

    def kill(self) -> None:
        """End the process without asking; files stay whole."""
        self._detached.kill()

    @property
    def asked(self) -> str:
        """``"pause"`` or ``"stop"`` if the process was asked to end, else nothing."""
        return self._detached.asked

    @property
    def _detached(self) -> Detached:
        return Detached(MODULE, self.folder)

    # --- what it tells --------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where the run stands now."""
        seen = self._detached.look()
        if seen.ended:
            model = seen.record.get("model")
            return Status(seen.record["stage"], str(seen.record.get("sentence", "")), Path(model) if model else None)
        if seen.alive:
            return Status("running" if seen.stage == RUNNING else "starting")
        if self.asked == "stop":
            return Status("stopped")
        if seen.stage == RUNNING:
            return Status("lost", self._detached.why(seen.code))
        if seen.stage == STARTING or seen.code:
            return Status("failed", f"The training could not begin: {self._detached.why(seen.code)}")
        return Status("stopped")

    def job(self) -> Job:
        """How it is computed."""
        return Job.read(self.folder)


def find_runs(library: Path) -> list[Run]:
    """Runs of a library, the one last written to first."""
    folders = [path.parent for path in (library / RUNS).glob(f"*/{JOB}")]
    return [Run(f.resolve()) for f in sorted(folders, key=_touched, reverse=True)]


def _touched(folder: Path) -> float:
    times = [(folder / name).stat().st_mtime for name in (EVENTS, JOB) if (folder / name).is_file()]
    return max(times, default=0.0)


def publish(run: Path, library: Path, name: str) -> Path:
    """Copy a run's model, with what tells its origin, into a library; returns the model's folder.

    Raises
    ------
    CeaseError
        If there is no model yet, or the library cannot be written.
    """
    if not (run / _KEPT[-1]).is_file():
        raise CeaseError("this run has no model yet; let it go on until it has validated one.")
    target = library / name
    try:
        library.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=library) as scratch:
            whole = Path(scratch) / name
            whole.mkdir()
            for file in _KEPT:
                if (run / file).is_file():
                    shutil.copyfile(run / file, whole / file)
            if not target.exists():
                # By one rename, so that half a model never appears.
                os.replace(whole, target)
                return target
            for file in _KEPT:
                if (whole / file).is_file():
                    os.replace(whole / file, target / file)
                else:
                    (target / file).unlink(missing_ok=True)
    except OSError as error:
        raise CeaseError(
            f"cannot write the model to {target}: {error.strerror}; make room there, then keep it again."
        ) from error
    return target


class Preview(NamedTuple):
    """One validation image with its masks, as the checkpoint of an epoch sees it.

    Parameters
    ----------
    image
        Window fractions (C, H, W) at the working resolution.
    labels, clean, attacked
        Class ids (H, W): reference, the model's mask, and its mask under PGD-10.
    dice
        Dice of the latter two with the reference.
    epsilon
        Of the attack, in window fractions.
    """

    case: str
    epoch: int
    epsilon: float
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    clean: NDArray[np.uint8]
    attacked: NDArray[np.uint8]
    dice: tuple[float, float]

    def write(self, folder: Path) -> None:
        """Into a run's folder, complete or not at all."""

        def save(part: Path) -> None:
            arrays: dict[str, Any] = {k: np.asarray(v) for k, v in self._asdict().items()}
            np.savez_compressed(part, **arrays)

        write_atomically(folder / PREVIEW, ".npz", save)


def read_preview(folder: Path) -> Preview | None:
    """The newest picture of a run, if there is one."""
    try:
        with np.load(folder / PREVIEW, allow_pickle=False) as file:
            values = {name: file[name] for name in Preview._fields}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    clean, attacked = (float(d) for d in values.pop("dice"))
    case, epoch, epsilon = (values.pop(n).item() for n in ("case", "epoch", "epsilon"))
    return Preview(case, epoch, epsilon, dice=(clean, attacked), **values)


class Tail:
    """What is appended to a file of JSON lines, as it comes; a line that is not complete is waited for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = 0

    def read(self) -> Iterator[Mapping[str, Any]]:
        """Lines since the last call; damaged ones, which a killed process may leave, are left out."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._place)
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.splitlines():
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value
