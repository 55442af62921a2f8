"""An audit in a process of its own, as a folder: started, watched, stopped, and found again later. No Qt here.

What counts is what `cease_core.evaluation.audit` keeps in the folder; beside it lie the request, where the process
stands, and what it printed. ``python -m napari_cease.jobs.auditing FOLDER`` is that process; torch comes in only after
the folder says that somebody works on it.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import psutil

from cease_core.errors import CeaseError
from cease_core.io.files import write_text
from napari_cease.jobs.process import RUNNING, STARTING, Detached, Ended, work

REQUEST, FACTS, JOURNAL, LOCK = "request.json", "audit.json", "log.jsonl", ".lock"
REPORT, FIGURES = "report.html", "report.json"
MODULE = "napari_cease.jobs.auditing"

Stage = Literal["running", "stopped", "finished", "failed"]


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
        self._detached.start()

    def cancel(self) -> None:
        """Ask the process to end after what it can keep; asked again, it is ended at once."""
        if self.process() is None:
            return
        if self.asked:
            self.kill()
        else:
            self._detached.ask("stop")
            self._detached.terminate()

    def kill(self) -> None:
        """End the process without asking; what is on disk stays whole."""
        self._detached.kill()

    @property
    def asked(self) -> bool:
        """Whether the process was asked to end."""
        return bool(self._detached.asked)

    def process(self) -> psutil.Process | None:
        """The process that works on the audit, if there is one."""
        return self._detached.find()

    @property
    def _detached(self) -> Detached:
        return Detached(MODULE, self.folder)

    def status(self) -> Status:
        """Where the audit stands now."""
        seen = self._detached.look()
        # A command line may have gone on with what a process of ours has left.
        if self._held() if seen.ended else seen.alive or self._held():
            return Status("running")
        if seen.ended:
            told = seen.record
            return Status(told["stage"], str(told.get("sentence", "")), tuple(told.get("headlines", ())))
        if self.asked:
            return Status("stopped")
        why = self._detached.why(seen.code)
        if seen.stage == RUNNING:
            return Status("failed", f"The audit's process has vanished: {why}")
        if seen.stage == STARTING or seen.code:
            return Status("failed", f"The audit could not begin: {why}")
        return Status("stopped")

    def _held(self) -> bool:
        """Whether somebody writes to the folder, such as a command line."""
        if not (self.folder / LOCK).exists():
            return False
        try:
            with filelock.FileLock(self.folder / LOCK, timeout=0):
                return False
        except filelock.Timeout:
            return True
        except OSError:
            return False


def find_audits(place: Path) -> list[AuditRun]:
    """Audits in a folder, the one last written to first."""
    folders = {path.parent for name in (REQUEST, FACTS) for path in place.glob(f"*/{name}")}
    return [AuditRun(f.resolve()) for f in sorted(folders, key=_touched, reverse=True)]


def _touched(folder: Path) -> float:
    names = (JOURNAL, FACTS, REQUEST)
    return max(((folder / name).stat().st_mtime for name in names if (folder / name).is_file()), default=0.0)


# --- the process ---------------------------------------------------------------------------------------------


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
    place, wish = Path(folder), _Wish()

    def do() -> tuple[Stage, dict[str, Any]]:
        complete, headlines = _work(place, wish)
        return "finished" if complete else "stopped", {"headlines": headlines}

    return work(place, "audit", do, wish.hear)


def _work(folder: Path, wish: _Wish) -> tuple[bool, list[str]]:
    from cease_core.data import find_cases
    from cease_core.data.splits import put_aside

    request = Request.read(folder)
    if request is None:
        raise CeaseError(f"{folder} holds no request; start a new audit.")
    # Before what takes seconds to load.
    cases = put_aside(find_cases(request.data))

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
    from cease_core.models.checkpoint import weights_file
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
        if model.shipped or name not in found or file_hash(weights_file(model.folder, model.card)) != weights[name]:
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
