"""One background thread on which the newest job wins."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qtpy.QtCore import QObject, Signal

from cease_core.errors import CeaseError

log = logging.getLogger(__name__)

Job = Callable[[Callable[[object], None], Callable[[], bool]], None]
"""Called as ``job(emit, stopped)``: emits events, and returns soon after ``stopped()`` turns true."""


class Worker(QObject):
    """Runs jobs one after the other; submitting one stops the one that is running.

    Events reach the GUI thread through queued signals, each with the generation that `submit` returned, so
    that whatever an overtaken job still says can be told apart and dropped.

    Parameters
    ----------
    name
        Of its thread.
    """

    said = Signal(int, object)
    failed = Signal(int, str)
    finished = Signal(int)

    def __init__(self, parent: QObject | None = None, name: str = "cease-worker") -> None:
        super().__init__(parent)
        self._condition = threading.Condition()
        self._pending: tuple[int, Job, threading.Event] | None = None
        self._stop = threading.Event()
        self._closing = False
        self._release: Callable[[], object] | None = None
        self.generation = 0
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> int:
        """Run ``job`` as soon as the present one has stopped; returns its generation."""
        with self._condition:
            self.generation += 1
            self._stop.set()
            self._stop = threading.Event()
            self._pending = (self.generation, job, self._stop)
            self._condition.notify()
            return self.generation

    def cancel(self) -> None:
        """Ask the running job to stop; its events up to there still arrive."""
        with self._condition:
            self._stop.set()

    def end_with(self, owner: QObject) -> None:
        """Stop when ``owner`` is destroyed, should nobody have called `shutdown` before."""

        def gone(*_: Any) -> None:
            self._end(0.0)

        owner.destroyed.connect(gone)
        self._release = lambda: owner.destroyed.disconnect(gone)

    def shutdown(self, seconds: float = 10.0) -> bool:
        """Stop everything and wait for the thread; returns whether it has ended."""
        if self._release is not None:
            # Qt may destroy the owner while Python collects it, and nothing is left to be done then.
            with suppress(RuntimeError, TypeError):
                self._release()
            self._release = None
        return self._end(seconds)

    def _end(self, seconds: float) -> bool:
        with self._condition:
            self._closing = True
            self._pending = None
            self._stop.set()
            self._condition.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while True:
            with self._condition:
                while self._pending is None and not self._closing:
                    self._condition.wait()
                if self._closing or self._pending is None:
                    return
                generation, job, stop = self._pending
                self._pending = None
            try:
                job(lambda e, g=generation: self._say("said", g, e), stop.is_set)  # type: ignore[misc]
            except CeaseError as error:
                self._say("failed", generation, str(error))
            except Exception as error:
                log.exception("a job failed")
                self._say("failed", generation, f"Stopped on an unexpected error: {error!r}.")
            self._say("finished", generation)

    def _say(self, signal: str, *values: object) -> None:
        # After shutdown, or when the window was closed, the receiver may be gone.
        if not self._closing:
            with suppress(RuntimeError):
                getattr(self, signal).emit(*values)
