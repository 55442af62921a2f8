"""An audit in a process of its own, as a folder: started, watched, stopped, and found again later. No Qt here.

What counts is what `cease_core.evaluation.audit` keeps in the folder; beside it lie the request, where the process
stands, and what it printed. ``python -m napari_cease.jobs.auditing FOLDER`` is that process; torch comes in only after
the folder says that somebody works on it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import psutil

from cease_core.errors import CeaseError
from cease_core.io.files import write_text

REQUEST, RECORD, CONTROL, LOG = "request.json", "run.json", "control", "log.txt"
FACTS, JOURNAL, REPORT, FIGURES, LOCK = "audit.json", "log.jsonl", "report.html", "report.json", ".lock"
MODULE = "napari_cease.jobs.auditing"
GRACE = 10.0
"""Seconds that a process which was killed may take to go."""

Stage = Literal["running", "stopped", "finished", "failed"]

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Processes that this one started, so that they are waited for when they have ended."""


@dataclass(frozen=True)
class Request:
    """What was asked for: the same request in the same folder goes on with its audit.

    Parameters
    ----------
    models
        Folders of the models.
    data
        Folder of the data set.
    settings
        `cease_core.evaluation.audit.Settings` as plain values.
    keep_seen
        Whether cases stay that a model was trained on or its checkpoint chosen by.
    headline
        Whether the headline goes into the folders of the user's own models.
    device
        ``"auto"`` for the fastest there is.
    """

    models: tuple[Path, ...]
    data: Path
    settings: dict[str, Any]
    keep_seen: bool = False
    headline: bool = True
    device: str = "auto"

    def write(self, folder: Path) -> None:
        """Into an audit's folder."""
        plain = vars(self) | {"models": [str(m) for m in self.models], "data": str(self.data)}
        write_text(folder / REQUEST, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Request | None:
        """That of an audit's folder; None if there is none, as where the command line has started it.

        Raises
        ------
        CeaseError
            If it is damaged.
        """
        path = folder / REQUEST
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            models = tuple(Path(m) for m in values.pop("models"))
            return cls(models=models, data=Path(values.pop("data")), **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CeaseError(f"{path} is damaged, so this audit cannot go on; start a new one.") from error


@dataclass(frozen=True)
class Status:
    """Where an audit stands.

    Parameters
    ----------
    stage
        ``"stopped"`` also where nobody works on it and none has said why.
    sentence
        What went wrong.
    headlines
        Titles of the models whose folders got the headline.
    """

    stage: Stage
    sentence: str = ""
    headlines: tuple[str, ...] = ()


@dataclass(frozen=True)
class AuditRun:
    """An audit's folder, from the outside."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, request: Request) -> AuditRun:
        """A new audit, or the one that the same request has begun there; `start` makes it go.

        Raises
        ------
        CeaseError
            If the folder holds another audit, or cannot be written.
        """
        folder = folder.expanduser().absolute()
        begun = any((folder / name).exists() for name in (REQUEST, FACTS, JOURNAL))
        if begun and Request.read(folder) != request:
            raise CeaseError(f"{folder} holds another audit; open that one, or choose another folder for the results.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CeaseError(f"cannot make the folder {folder} ({error.strerror}); choose another one.") from error
        request.write(folder)
        return cls(folder.resolve())

    @classmethod
    def open(cls, folder: str | Path) -> AuditRun:
        """An audit that was started before, here or on the command line.

        Raises
        ------
        CeaseError
            If the folder holds none.
        """
        folder = Path(folder).expanduser().resolve()
        if not any((folder / name).is_file() for name in (REQUEST, FACTS)):
            raise CeaseError(f"{folder} holds no audit; choose a folder that has an {FACTS}.")
        return cls(folder)

    @property
    def request(self) -> Request | None:
        """What was asked for; None if the audit was started on the command line.

        Raises
        ------
        CeaseError
            If it is damaged.
        """
        return Request.read(self.folder)

    # --- its process ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let a process do what is missing.

        Raises
        ------
        CeaseError
            If one does already, there is no request, or none can be started.
        """
        if self.status().stage == "running":
            raise CeaseError(f"the audit in {self.folder} is under way already; open it to watch.")
        if self.request is None:
            raise CeaseError(
                f"{self.folder} was written by the command line; give the same `cease audit` command again to go on."
            )
        # Its own session: it outlives napari and the terminal, and their Ctrl-C is none of its business.
        apart: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        try:
            for name in (RECORD, CONTROL, LOG):
                (self.folder / name).unlink(missing_ok=True)
            with (self.folder / LOG).open("ab") as log:
                _children[self.folder] = subprocess.Popen(
                    [sys.executable, "-m", MODULE, str(self.folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    **apart,
                )
        except OSError as error:
            raise CeaseError(
                f"no process can be started for {self.folder} ({error.strerror}); close other programs, or choose "
                "another folder for the results."
            ) from error

    def cancel(self) -> None:
        """Ask the process to end after what it can keep; asked again, it is ended at once."""
        process = self.process()
        if process is None:
            return
        twice = self.asked
        write_text(self.folder / CONTROL, "stop\n")
        with suppress(psutil.Error):
            (process.kill if twice else process.terminate)()

    def kill(self) -> None:
        """End the process without asking; what is on disk stays whole."""
        process = self.process()
        if process is not None:
            with suppress(psutil.Error):
                process.kill()
                process.wait(GRACE)

    @property
    def asked(self) -> bool:
        """Whether the process was asked to end."""
        return (self.folder / CONTROL).is_file()

    def process(self) -> psutil.Process | None:
        """The process that works on the audit, if there is one: not another one that has got its number since."""
        child = _children.get(self.folder)
        pid = (_read_json(self.folder / RECORD) or {}).get("pid")
        for number in (pid, child.pid if child is not None and child.poll() is None else None):
            with suppress(psutil.Error):
                found = psutil.Process(number) if number is not None else None
                if found is None or found.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = found.cmdline()
                if MODULE in words and str(self.folder) in words:
                    return found
        return None

    def status(self) -> Status:
        """Where the audit stands now."""
        child = _children.get(self.folder)
        code = child.poll() if child is not None else None
        record = _read_json(self.folder / RECORD) or {}
        stage = record.get("stage", "")
        if stage and stage != "running":
            return Status(stage, record.get("sentence", ""), tuple(record.get("headlines", ())))
        if self.process() is not None:
            return Status("running")
        # It may have told its end between the first look and the second.
        if (_read_json(self.folder / RECORD) or {}) != record:
            return self.status()
        if self.asked:
            return Status("stopped")
        if stage:
            return Status("failed", "The audit's process has vanished: it was killed, or the computer was restarted.")
        if code:
            return Status("failed", f"The audit could not begin: {self.last_words()}")
        return Status("running" if self._held() else "stopped")

    def _held(self) -> bool:
        """Whether a command line writes to the folder."""
        if not (self.folder / LOCK).exists():
            return False
        try:
            with filelock.FileLock(self.folder / LOCK, timeout=0):
                return False
        except filelock.Timeout:
            return True
        except OSError:
            return False

    def last_words(self) -> str:
        """The last line that the process printed."""
        try:
            lines = (self.folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def find_audits(place: Path) -> list[AuditRun]:
    """Audits in a folder, the one last written to first."""
    folders = {path.parent for name in (REQUEST, FACTS) for path in place.glob(f"*/{name}")}
    return [AuditRun(f.resolve()) for f in sorted(folders, key=_touched, reverse=True)]


def _touched(folder: Path) -> float:
    names = (JOURNAL, FACTS, REQUEST)
    return max(((folder / name).stat().st_mtime for name in names if (folder / name).is_file()), default=0.0)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# --- the process ---------------------------------------------------------------------------------------------


class Ended(BaseException):
    """The audit is to end at once; whoever wraps errors in sentences lets it through."""


class _Wish:
    """Whether somebody wants the audit to end.

    While jobs are done they are asked to stop, so that tables and report are written; before and after, nothing is
    lost by ending at once.
    """

    def __init__(self) -> None:
        self.polite = False
        self.there = False

    def hear(self, *_: object) -> None:
        """As a signal's handler."""
        if not self.polite or self.there:
            raise Ended
        self.there = True

    def stopped(self) -> bool:
        """Asked by the audit between the steps of an attack."""
        return self.there


def main(folder: str) -> int:
    """Do what is missing of the audit in a folder; returns the exit code."""
    place = Path(folder)
    _tell(place, "running")
    wish = _Wish()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, wish.hear)
    with suppress(psutil.Error, OSError):
        # The window and whatever else somebody looks at comes first.
        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else 5)
    try:
        complete, headlines = _work(place, wish)
        _tell(place, "finished" if complete else "stopped", headlines=headlines)
    except Ended:
        _tell(place, "stopped")
    except CeaseError as error:
        print(error, file=sys.stderr)
        _tell(place, "failed", str(error))
        return 2
    except Exception as error:
        traceback.print_exc()
        told = " ".join(str(error).split())[:200]
        _tell(place, "failed", f"The audit ended on an unexpected error: {type(error).__name__}: {told}.")
        return 1
    return 0


def _tell(folder: Path, stage: Stage, sentence: str = "", headlines: Sequence[str] = ()) -> None:
    record = {"pid": os.getpid(), "stage": stage, "sentence": sentence, "headlines": list(headlines)}
    write_text(folder / RECORD, json.dumps(record, ensure_ascii=False) + "\n")


def _work(folder: Path, wish: _Wish) -> tuple[bool, list[str]]:
    from cease_core.data import find_cases

    request = Request.read(folder)
    if request is None:
        raise CeaseError(f"{folder} holds no request; start a new audit.")
    # Before what takes seconds to load.
    cases = find_cases(request.data)

    from cease_core.evaluation.audit import AuditFinished, Settings, audit
    from cease_core.evaluation.report import write_report
    from cease_core.models import best_device

    events = audit(
        request.models,
        cases,
        folder,
        Settings.model_validate(request.settings),
        keep_seen=request.keep_seen,
        device=str(best_device()) if request.device == "auto" else request.device,
        stopped=wish.stopped,
    )
    complete = False
    with closing(events):
        for event in events:
            wish.polite = True
            if isinstance(event, AuditFinished):
                complete = event.complete
    write_report(folder)
    return complete, write_headlines(folder) if complete and request.headline else []


def write_headlines(folder: Path) -> list[str]:
    """Write the headline of a reported audit into the folders of the user's own models.

    A model is recognised by its name and the hash of its weights, so one that was trained anew gets nothing.

    Returns
    -------
    list of str
        Titles of those that got it.

    Raises
    ------
    CeaseError
        If the folder holds no report, or a model's folder cannot be written.
    """
    from cease_core.evaluation.audit.store import read_facts
    from cease_core.evaluation.audit.victims import file_hash
    from cease_core.evaluation.summary import Summary
    from cease_core.models.checkpoint import WEIGHTS
    from cease_core.models.shelf import ROBUSTNESS, Robustness, shelf

    weights = {victim["name"]: victim["weights"] for victim in read_facts(folder)["victims"]}
    try:
        summary = Summary.model_validate_json((folder / FIGURES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CeaseError(f"{folder / FIGURES} cannot be read; write the report again with `cease report`.") from error
    found = {model.name: model for model in summary.models}
    written = []
    for model in shelf():
        name = model.card.name
        if model.shipped or name not in found or file_hash(model.folder / WEIGHTS) != weights[name]:
            continue
        head = found[name].headline
        if head.clean_dice.mean is None or head.worst_dice.mean is None:
            continue
        headline = Robustness(
            clean_dice=head.clean_dice.mean,
            worst_dice=head.worst_dice.mean,
            epsilon=summary.epsilon,
            asr_drop=head.asr_drop.mean,
            verdict=found[name].verdict.label,
        )
        write_text(model.folder / ROBUSTNESS, headline.model_dump_json(indent=1) + "\n")
        written.append(model.card.title)
    return written


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
