"""The audit dock without its widgets: looks at the data, starts the audit, and follows its journal.

The audit is a process of its own; this looks at its folder a few times a second and reads what is new there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qtpy.QtCore import QObject, QTimer, Signal

from cease_core.errors import CeaseError
from cease_core.evaluation.audit.store import read_facts
from napari_cease.audit_session import (
    AuditSession,
    ChosenCase,
    JournalTail,
    Looked,
    Row,
    audits_place,
    chosen_case,
    look,
)
from napari_cease.jobs.auditing import FACTS, JOURNAL, AuditRun, find_audits
from napari_cease.jobs.worker import Worker
from napari_cease.settings import device, preferences

POLL, AGAIN = 250, 20
"""Milliseconds between two looks at an audit's folder: usually, and while there is more to read."""

_DATA = ("models", "data", "tier", "changes", "keep_seen")


class Auditor(QObject):
    """Joins a session to the audit that it starts or opens.

    Parameters
    ----------
    session
        Its choices are listened to; where its audit stands and what it found is written.
    """

    looked = Signal()
    """`present` or `fault` has changed."""
    refreshed = Signal()
    """The audit has found something, or stands elsewhere."""
    finished = Signal(object)
    """An audit that was followed has finished; its folder."""
    failed = Signal(str)

    def __init__(self, session: AuditSession, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.session = session
        self.present: Looked | None = None
        self.fault = ""
        self.looking = False
        self.run: AuditRun | None = None
        self._starting = False
        self._watched = False
        self._tail: JournalTail | None = None
        self._generation = 0
        self.worker = Worker(self)
        self.worker.said.connect(self._on_said)
        self.worker.failed.connect(self._on_failed)
        self._poll = QTimer(self)
        self._poll.setSingleShot(True)
        self._poll.timeout.connect(self.poll)
        for name in _DATA:
            getattr(session.events, name).connect(self.look)

    # --- before it starts -----------------------------------------------------------------------------------

    def look(self) -> None:
        """Count the cases of the chosen folder, beside the window's thread."""
        s = self.session
        self.present, self.fault, self.looking = None, "", False
        if s.data is not None and s.models:
            models, data, settings, keep_seen = s.models, s.data, s.settings, s.keep_seen
            self.looking = True

            def work(emit: Callable[[object], None], _: Callable[[], bool]) -> None:
                emit(look(models, data, settings, keep_seen=keep_seen))

            self._generation = self.worker.submit(work)
        else:
            self._starting = False
        self.looked.emit()

    def _on_said(self, generation: int, found: object) -> None:
        if generation == self._generation and isinstance(found, Looked):
            self.present, self.looking = found, False
            self.looked.emit()
            if self._starting:
                self._launch()

    def _on_failed(self, generation: int, sentence: str) -> None:
        if generation == self._generation:
            self.fault, self.looking = sentence, False
            if self._starting:
                self._starting = False
                self.failed.emit(sentence)
            self.looked.emit()

    # --- the audit ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the audit that the choices describe, once the data are known to be usable."""
        if self.session.alive:
            self.failed.emit("An audit is under way already; cancel it first, or let it finish.")
        elif self.fault:
            self.failed.emit(self.fault)
        elif self.looking:
            self._starting = True
        else:
            self._launch()

    def _launch(self) -> None:
        self._starting = False
        try:
            wanted = preferences().device
            request = self.session.request()
            if wanted != "auto":
                request = replace(request, device=str(device()))
            run = AuditRun.create(self.session.place(time.strftime("%Y-%m-%d")), request)
            run.start()
        except CeaseError as error:
            self.failed.emit(str(error))
            return
        self._follow(run, started=True)

    def resume(self) -> None:
        """Let the audit go on: the same request again, of which what is done is not done again."""
        if self.run is None or not self.session.resumable:
            return
        try:
            self.run.start()
        except CeaseError as error:
            self.failed.emit(str(error))
            return
        # From the journal's beginning: lines that a kill has left damaged are written anew.
        self._follow(self.run, started=True)

    def cancel(self) -> None:
        """Ask the audit to end; what is done is kept. Asked again, it is ended at once."""
        if self.run is not None and self.session.alive:
            self.run.cancel()
            self.refreshed.emit()

    @property
    def asked(self) -> bool:
        """Whether the audit was asked to end and has not yet."""
        return self.run is not None and self.session.alive and self.run.asked

    def open(self, folder: Path) -> None:
        """Show an audit that was started before, here or elsewhere, and follow it if it is under way.

        Raises
        ------
        CeaseError
            If the folder holds none.
        """
        self._follow(AuditRun.open(folder))

    def open_alive(self) -> bool:
        """Follow the newest audit that is under way, if there is one in the usual place."""
        for run in find_audits(audits_place()):
            if run.status().stage == "running":
                self._follow(run)
                return True
        return False

    def let_go(self) -> None:
        """Show no audit any more; one that is under way goes on."""
        self._poll.stop()
        self.run = self._tail = None
        self._starting = False
        self.session.begin(None)
        self.refreshed.emit()

    def _follow(self, run: AuditRun, *, started: bool = False) -> None:
        # An audit that was started here may end before it is looked at for the first time.
        self.run, self._tail, self._watched = run, JournalTail(run.folder / JOURNAL), started
        # A start that was still to come would take this audit's place.
        self._starting = False
        self.session.begin(run.folder)
        self.poll()

    def poll(self) -> None:
        """Take in what is new in the audit's folder, and where the audit stands."""
        if self.run is None or self._tail is None:
            return
        s = self.session
        # In this order: what was kept before its end is there when the end is known.
        status = self.run.status()
        try:
            if s.results is None and (self.run.folder / FACTS).is_file():
                s.know(read_facts(self.run.folder))
        except CeaseError as error:
            self.let_go()
            self.failed.emit(str(error))
            return
        if s.results is not None:
            s.hear(self._tail.read())
        # How it ended is known once all of its journal is.
        if status.stage == "running" or not self._tail.more:
            s.stand(status)
        if s.alive or self._tail.more:
            self._poll.start(AGAIN if self._tail.more else POLL)
        self.refreshed.emit()
        ended = self._watched and not s.alive and not self._tail.more
        self._watched = (self._watched or s.alive) and not ended
        if ended and s.state == "finished":
            self.finished.emit(self.run.folder)
        elif ended and s.state == "failed":
            self.failed.emit(s.told)

    def chosen(self, row: Row) -> ChosenCase | None:
        """What a row of the table is about; None without an audit."""
        if self.run is None or self.session.results is None:
            return None
        return chosen_case(row, self.session.results.facts, self.run.folder, self.run.request)

    # --- the end --------------------------------------------------------------------------------------------

    def shutdown(self) -> bool:
        """Stop looking; an audit goes on. Returns whether the thread has ended."""
        self._poll.stop()
        for name in _DATA:
            getattr(self.session.events, name).disconnect(self.look)
        return self.worker.shutdown()
