"""A python process that works on a folder and outlives the window: started, found again, asked to end. No Qt here.

It tells where it stands in ``run.json``, is asked things by ``control``, and prints into ``log.txt``; whoever opens the
folder sees the same. What the figures of ``run.json`` mean is the business of those who write them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import psutil

from cease_core.errors import CeaseError
from cease_core.io.files import write_text

RECORD, CONTROL, LOG, START = "run.json", "control", "log.txt", ".start"
STARTING, RUNNING, FAILED = "starting", "running", "failed"
"""Stages that every process goes through; the first is written by whoever starts it."""
GRACE = 10.0
"""Seconds that a process which was killed may take to go."""
CLOCK = 2.0
"""Seconds by which two accounts of when a process was created may differ."""
PATIENCE = 5.0
"""Seconds to wait for another window that starts a process on the same folder."""

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Processes that this one started, so that they are waited for when they have ended."""


class Seen(NamedTuple):
    """What a look at a folder has found.

    Parameters
    ----------
    record
        What the process has told last; empty if it has not.
    alive
        Whether it works.
    code
        What it has returned, if it was started from here; negative if it was killed.
    """

    record: Mapping[str, Any]
    alive: bool
    code: int | None

    @property
    def stage(self) -> str:
        """What the process says of itself, which need not be true any more; empty if nothing."""
        return str(self.record.get("stage", ""))

    @property
    def ended(self) -> bool:
        """Whether the process has said how it ended."""
        return self.stage not in ("", STARTING, RUNNING)


@dataclass(frozen=True)
class Detached:
    """A process of its own, from the outside.

    Parameters
    ----------
    module
        What it runs: ``python -m module folder``.
    folder
        What it works on.
    """

    module: str
    folder: Path

    def start(self) -> None:
        """Start it, unless one works there already; what one before it has told is forgotten.

        Raises
        ------
        CeaseError
            If one works on the folder already, or none can be started.
        """
        taken = f"another window has started a process on {self.folder} already; open the run to follow it."
        try:
            # Of two windows that start at once, the second finds what the first has announced.
            with filelock.FileLock(self.folder / START, timeout=PATIENCE):
                if not self._gone():
                    raise CeaseError(taken)
                self._start()
        except filelock.Timeout as error:
            raise CeaseError(taken) from error
        except OSError as error:
            raise CeaseError(f"cannot write to {self.folder} ({error.strerror}); choose another folder.") from error

    def _gone(self) -> bool:
        """Whether nothing works there; one that has told its end may still be tidying up, and is waited for."""
        before = self.find()
        if before is not None and self.record().get("stage") not in (STARTING, RUNNING):
            child = _children.get(self.folder)
            with suppress(psutil.Error, subprocess.TimeoutExpired):
                (before if child is None else child).wait(PATIENCE)
            before = self.find()
        return before is None

    def _start(self) -> None:
        # Its own session: it outlives napari and the terminal, and their Ctrl-C is none of its business.
        apart: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        try:
            for name in (RECORD, CONTROL, LOG):
                (self.folder / name).unlink(missing_ok=True)
            with (self.folder / LOG).open("ab") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", self.module, str(self.folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    **apart,
                )
        except OSError as error:
            raise CeaseError(
                f"no process can be started for {self.folder} ({error.strerror}); close other programs, or choose "
                "another folder."
            ) from error
        _children[self.folder] = child
        self._announce(child.pid)

    def _announce(self, pid: int) -> None:
        """Let others find the process while it has not told anything; what it has told by now stays."""
        part = self.folder / f".{pid}.json"
        with suppress(OSError, psutil.Error):
            part.write_text(_record(psutil.Process(pid), STARTING), encoding="utf-8")
            os.link(part, self.folder / RECORD)
        with suppress(OSError):
            part.unlink(missing_ok=True)

    def find(self) -> psutil.Process | None:
        """The process, if it works: not another one that has got its number since."""
        child = _children.get(self.folder)
        if child is not None and child.poll() is None:
            with suppress(psutil.Error):
                return psutil.Process(child.pid)
        record = self.record()
        number, created = record.get("pid"), record.get("created")
        if not isinstance(number, int):
            return None
        with suppress(psutil.Error, ValueError):
            found = psutil.Process(number)
            if found.status() != psutil.STATUS_ZOMBIE and self._is(found, created):
                return found
        return None

    def _is(self, found: psutil.Process, created: object) -> bool:
        # The folder may have been moved or have several names, and the clock may have been set, hardly both.
        if isinstance(created, float) and abs(found.create_time() - created) < CLOCK:
            return True
        words = found.cmdline()
        return self.module in words and str(self.folder) in words

    def record(self) -> dict[str, Any]:
        """What the process has told last; empty if it has not."""
        found = read_json(self.folder / RECORD)
        return found if isinstance(found, dict) else {}

    def look(self) -> Seen:
        """Where the process stands now."""
        while True:
            record = self.record()
            alive = self.find() is not None
            # It may have told its end between the first look and the second.
            if alive or self.record() == record:
                child = _children.get(self.folder)
                return Seen(record, alive, child.poll() if child is not None else None)

    def ask(self, what: str) -> None:
        """Tell the process to do something, such as ``"stop"``."""
        write_text(self.folder / CONTROL, f"{what}\n")

    @property
    def asked(self) -> str:
        """What the process was asked for; empty if nothing."""
        with suppress(OSError):
            return (self.folder / CONTROL).read_text(encoding="utf-8").strip()
        return ""

    def terminate(self) -> None:
        """Interrupt the process, which then may tidy up; on Windows, where it cannot, it ends."""
        process = self.find()
        if process is not None:
            with suppress(psutil.Error):
                process.terminate()

    def kill(self) -> None:
        """End the process without asking; files stay whole."""
        process = self.find()
        if process is not None:
            with suppress(psutil.Error):
                process.kill()
                process.wait(GRACE)

    def last_words(self) -> str:
        """The last line that the process printed."""
        try:
            lines = (self.folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def why(self, code: int | None) -> str:
        """Why the process has vanished: what it printed if it ended by itself, else what may have happened."""
        words = self.last_words() if code is not None and code > 0 else ""
        return words or "it was killed, or the computer was restarted."


def read_json(path: Path) -> Any:
    """Content of a file that somebody may be writing; None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# --- in the process ------------------------------------------------------------------------------------------


class Ended(BaseException):
    """The work is to end, and how it then stands; whoever wraps errors in sentences lets it through."""

    def __init__(self, stage: str = "stopped") -> None:
        super().__init__(stage)
        self.stage = stage


def end(*_: object) -> None:
    """End at once, as a signal's handler: whatever is being written is put in its place only once it is complete."""
    raise Ended


def work(
    folder: Path,
    name: str,
    do: Callable[[], tuple[str, Mapping[str, Any]]],
    hear: Callable[..., None] = end,
) -> int:
    """Do what there is to do in a folder and tell how it ended; returns the exit code.

    Parameters
    ----------
    name
        What the work is called: ``"training"``.
    do
        Returns the stage that was reached, and what else is to be told.
    hear
        Called when somebody interrupts.
    """
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, hear)
        tell(folder, RUNNING)
        with suppress(psutil.Error, OSError):
            # The window and whatever else somebody looks at comes first.
            psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else 10)
        stage, figures = do()
        tell(folder, stage, **figures)
    except Ended as ended:
        tell(folder, ended.stage)
    except CeaseError as error:
        print(error, file=sys.stderr)
        tell(folder, FAILED, sentence=str(error))
        return 2
    except Exception as error:
        traceback.print_exc()
        told = " ".join(str(error).split())[:200].rstrip(".")
        sentence = (
            f"The {name} ended on an unexpected error, {type(error).__name__}: {told}; {LOG} in its folder has all."
        )
        tell(folder, FAILED, sentence=sentence)
        return 1
    return 0


def tell(folder: Path, stage: str, **figures: Any) -> None:
    """Say where this process stands."""
    write_text(folder / RECORD, _record(psutil.Process(), stage, **figures))


def _record(process: psutil.Process, stage: str, **figures: Any) -> str:
    created = process.create_time()
    return json.dumps({"pid": process.pid, "created": created, "stage": stage, **figures}, ensure_ascii=False) + "\n"
