"""A training run as a folder: started, watched, stopped, and found again later. No Qt here.

The run is a process of its own (`napari_cease.jobs.training_process`), which tells all it does in files of the folder.
Whoever opens the folder sees the same; nothing is lost with the window, and nothing but the last seconds with the
process. The folder is one that ``cease train --resume`` understands, too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.io.files import write_atomically, write_text

RECORD, EVENTS, CONTROL, LOG, PREVIEW, JOB = "run.json", "events.jsonl", "control", "log.txt", "preview.npz", "job.json"
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

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Processes that this one started, so that they are waited for when they have ended."""


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
        """That of a run."""
        values = _read_json(folder / JOB)
        if not isinstance(values, dict) or "library" not in values:
            raise CeaseError(f"{folder / JOB} is missing or damaged; start a new run.")
        return cls(**values | {"library": Path(values["library"])})


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
        for name in (RECORD, CONTROL):
            (self.folder / name).unlink(missing_ok=True)
        # Its own session: it outlives napari and the terminal, and their Ctrl-C is none of its business.
        apart: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        try:
            with (self.folder / LOG).open("ab") as log:
                _children[self.folder] = subprocess.Popen(
                    [sys.executable, "-m", MODULE, str(self.folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    **apart,
                )
        except OSError as error:
            raise CeaseError(f"no process can be started ({error.strerror}); close other programs.") from error

    def pause(self) -> None:
        """Ask the process to save the state and end."""
        self._ask("pause")

    def stop(self) -> None:
        """Ask the process to end at once; what it did since the state was last saved is lost."""
        self._ask("stop")

    def kill(self) -> None:
        """End the process without asking; files stay whole."""
        process = self.process()
        if process is not None:
            with suppress(psutil.Error):
                process.kill()
                process.wait(10)

    def _ask(self, what: str) -> None:
        write_text(self.folder / CONTROL, what)

    @property
    def asked(self) -> str:
        """``"pause"`` or ``"stop"`` if the process was asked to end, else nothing."""
        with suppress(OSError):
            return (self.folder / CONTROL).read_text(encoding="utf-8").strip()
        return ""

    def process(self) -> psutil.Process | None:
        """The process that works on the run, if there is one: not another one that has got its number since."""
        pid = (_read_json(self.folder / RECORD) or {}).get("pid")
        child = _children.get(self.folder)
        for number in (pid, child.pid if child is not None and child.poll() is None else None):
            with suppress(psutil.Error):
                found = psutil.Process(number) if number is not None else None
                if found is None or found.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = found.cmdline()
                if MODULE in words and str(self.folder) in words:
                    return found
        return None

    # --- what it tells --------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where the run stands now."""
        child = _children.get(self.folder)
        code = child.poll() if child is not None else None
        record = _read_json(self.folder / RECORD) or {}
        stage = record.get("stage", "")
        if stage and stage != "running":
            model = record.get("model")
            return Status(stage, record.get("sentence", ""), Path(model) if model else None)
        if self.process() is not None:
            return Status("running" if stage else "starting")
        # It may have told its end between the first look and the second.
        again = _read_json(self.folder / RECORD) or {}
        if again != record:
            return self.status()
        if self.asked == "stop":
            return Status("stopped")
        if not stage:
            if code:
                return Status("failed", f"The training could not begin: {self.last_words()}")
            return Status("stopped")
        return Status("lost", self.last_words() if code is not None and code > 0 else "")

    def last_words(self) -> str:
        """The last line of the process's log."""
        try:
            lines = (self.folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

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
    except (OSError, ValueError, KeyError):
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


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
