"""What a window shows, kept while it is open, so that a crash loses seconds.

Every window keeps a record of its own, a folder that it holds locked. Whoever closes a window removes its record; so a
record that nobody holds was left by one that has crashed, and the next window offers it. The operating system lets go
of a lock when its process ends, however it ends.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import filelock
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer, Shapes
from qtpy.QtCore import QCoreApplication, QEvent, QObject, QTimer, Signal
from qtpy.QtWidgets import QWidget

from cease_core.errors import CeaseError
from napari_cease.explorer import Explorer
from napari_cease.jobs.worker import Job, Worker
from napari_cease.layers import edits, role_of
from napari_cease.saved_session import (
    DESCRIPTION,
    Faults,
    Kept,
    Rebuilt,
    Revisions,
    SavedSession,
    read_session,
    rebuild,
    show_again,
    snapshot,
    write_file,
    write_folder,
)
from napari_cease.settings import on_change, preferences
from napari_cease.widgets.window import main_window

log = logging.getLogger(__name__)

LOCK, DAMAGED = ".lock", "damaged-session.json"
SOON = 2000
"""Milliseconds from a change until it is on disk."""
ABANDONED = 24 * 3600.0
"""Seconds after which a folder without a record is nobody's."""
PUT_ASIDE_DAYS = 30
"""For which a record that could not be restored stays on disk."""
LAST_SECONDS = 60.0
"""For which a window that closes waits until sessions that the user saves are written."""
_INPUT = (QEvent.Type.MouseButtonPress, QEvent.Type.KeyPress, QEvent.Type.ShortcutOverride, QEvent.Type.Wheel)


def sessions_place() -> Path:
    """Folder of the records: ``$CEASE_SESSIONS``, or ``~/.napari-cease/sessions``, wherever the models are."""
    given = os.environ.get("CEASE_SESSIONS")
    return Path(given) if given else Path.home() / ".napari-cease" / "sessions"


class Record:
    """A folder that one window holds.

    Raises
    ------
    filelock.Timeout
        If another window holds it.
    OSError
        If it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = filelock.FileLock(folder / LOCK, timeout=0)
        self._lock.acquire()

    @classmethod
    def create(cls, place: Path) -> Record:
        """A new one, which only its user may read: masks of patients are in it."""
        place.mkdir(0o700, parents=True, exist_ok=True)
        folder = place / uuid.uuid4().hex
        folder.mkdir(0o700)
        return cls(folder)

    def let_go(self) -> None:
        """Leave it to others."""
        self._lock.release()

    def put_aside(self) -> None:
        """Keep it, but offer it no more."""
        with suppress(OSError):
            (self.folder / DESCRIPTION).replace(self.folder / DAMAGED)
            (self.folder / DAMAGED).touch()
        self.let_go()

    def remove(self) -> None:
        """It is not needed any more."""
        # On Windows a file that is locked cannot be removed.
        with suppress(OSError):
            (self.folder / DESCRIPTION).unlink(missing_ok=True)
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Left:
    """A session that a window has left behind, held so that no other window offers it."""

    record: Record
    kept: Kept


def find_left(place: Path) -> tuple[Left | None, tuple[str, ...]]:
    """The newest session that no window holds, and what is wrong with others, a sentence for each.

    A damaged record is put aside, with all that is in it, so that it is spoken of once, and removed after
    `PUT_ASIDE_DAYS`.
    """
    faults: list[str] = []
    for folder in sorted((p.parent for p in place.glob(f"*/{LOCK}")), key=_touched, reverse=True):
        try:
            record = Record(folder)
        except (filelock.Timeout, OSError):
            continue
        if not (folder / DESCRIPTION).is_file():
            if _is_over(folder):
                record.remove()
            else:
                record.let_go()
            continue
        try:
            return Left(record, read_session(folder)), tuple(faults)
        except CeaseError:
            record.put_aside()
            faults.append(
                "The record of a window that has crashed is damaged and cannot be restored; it is still in "
                f"{folder} for {PUT_ASIDE_DAYS} days."
            )
    return None, tuple(faults)


def _is_over(folder: Path) -> bool:
    """Whether a folder without a record need not be kept."""
    with suppress(OSError):
        return time.time() - (folder / DAMAGED).stat().st_mtime > PUT_ASIDE_DAYS * 24 * 3600
    return time.time() - _touched(folder) > ABANDONED


def _touched(folder: Path) -> float:
    with suppress(OSError):
        return max(p.stat().st_mtime for p in (folder / DESCRIPTION, folder) if p.exists())
    return 0.0


def _nothing() -> None:
    return None


@dataclass(frozen=True, eq=False)
class _Task:
    """Something for the thread, what is done with its answer, and what if it fails."""

    job: Job
    then: Callable[[Any], None]
    otherwise: Callable[[], None] = _nothing


@dataclass(eq=False)
class _Saving:
    """A session that the user saves as a file."""

    path: Path
    session: SavedSession
    arrays: dict[str, Any]
    fault: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def write(self) -> None:
        if self.over.is_set():
            return
        try:
            write_file(self.path, self.session, self.arrays)
        except CeaseError as error:
            self.fault = str(error)
            raise
        except Exception as error:
            self.fault = f"{self.path.name} was not written ({type(error).__name__}); save the session again."
            log.exception("a session could not be written")
            raise CeaseError(self.fault) from error
        finally:
            self.over.set()


class SessionKeeper(QObject):
    """Keeps what a viewer and its explorer show, offers what a crash has left, and saves and opens sessions as files.

    All reading and writing happens on a thread of its own, one thing after the other.
    """

    offered = Signal(object)
    """A `Left` may be restored; None if there is nothing, or nothing any more."""
    restored = Signal()
    kept = Signal()
    """The record on disk is what the window shows."""
    saved = Signal(object)
    """A session was saved as a file; its path."""
    failed = Signal(str)

    def __init__(self, viewer: ViewerModel, explorer: Explorer, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer, self.explorer = viewer, explorer
        self.left: Left | None = None
        self.record: Record | None = None
        self._revisions = Revisions()
        self._painted: WeakKeyDictionary[Layer, tuple[Any, ...]] = WeakKeyDictionary()
        self._have: frozenset[str] = frozenset()
        self._after: Record | None = None
        self._told = ""
        self._closed = False
        self._jobs: deque[_Task] = deque()
        self._running: _Task | None = None
        self._saving: list[_Saving] = []
        self.worker = Worker(self, "cease-session")
        self.worker.said.connect(self._on_said)
        self.worker.failed.connect(self._on_failed)
        self.worker.finished.connect(self._on_finished)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(SOON)
        self._soon.timeout.connect(self.keep)
        # The window was asked to close, which it may refuse.
        self._leaving = False
        explorer.session.events.connect(self._on_change)
        for event in self._events:
            event.connect(self._on_change)
        viewer.layers.events.inserted.connect(self._on_inserted)
        viewer.layers.events.removed.connect(self._on_removed)
        for layer in viewer.layers:
            self._watch(layer)
        window = main_window(viewer)
        window.installEventFilter(self)
        # The window shall go when it is closed, whoever still has this.
        self._main = weakref.ref(window)
        on_change(self._on_change)

    @property
    def _events(self) -> list[Any]:
        viewer = self.viewer
        camera = (viewer.camera.events.center, viewer.camera.events.zoom, viewer.camera.events.angles)
        return [*camera, viewer.dims.events.current_step, viewer.dims.events.ndisplay, viewer.layers.events.reordered]

    # --- what changes ---------------------------------------------------------------------------------------

    def _on_change(self, _: Any = None) -> None:
        # Not put off by further changes: a sweep of ε is kept while it lasts.
        if not self._soon.isActive() and not self._closed:
            self._soon.start()

    def _on_edit(self, event: Any) -> None:
        self._revisions.edited(event.source)
        self._on_change()

    def _on_repaint(self, event: Any) -> None:
        """Another slice is no edit."""
        now = self._slice
        before, self._painted[event.source] = self._painted.get(event.source), now
        if before == now:
            self._on_edit(event)

    @property
    def _slice(self) -> tuple[Any, ...]:
        dims = self.viewer.dims
        return dims.current_step, dims.ndisplay, dims.order

    def _on_inserted(self, event: Any) -> None:
        self._watch(event.value)
        self._on_change()

    def _on_removed(self, event: Any) -> None:
        self._unwatch(event.value)
        self._on_change()

    def _watch(self, layer: Layer) -> None:
        for event, slot in self._of(layer):
            event.connect(slot)

    def _unwatch(self, layer: Layer) -> None:
        for event, slot in self._of(layer):
            event.disconnect(slot)

    def _of(self, layer: Layer) -> list[tuple[Any, Callable[[Any], None]]]:
        if not isinstance(layer, (Image, Labels, Shapes)):
            return []
        changed: Callable[[Any], None] = self._on_change
        looks = [(getattr(layer.events, name), changed) for name in ("visible", "opacity", "name")]
        if role_of(layer)[0] not in (None, "scan", "labels"):
            return looks
        # Undoing a stroke tells of nothing but a repaint.
        undone = [(layer.events.set_data, self._on_repaint)] if isinstance(layer, Labels) else []
        return [*looks, *((event, self._on_edit) for event in edits(layer)), *undone]

    # --- the record -----------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Write what is shown now, beside the window's thread."""
        if self._closed:
            return
        if self._running is not None:
            # Values are copied once it is known which of them are on disk.
            self._soon.start()
            return
        anything = any(isinstance(x, (Image, Labels, Shapes)) for x in self.viewer.layers)
        if not anything or not preferences().keep_session:
            # Nothing to lose, or nothing wanted; what was kept of it is no offer.
            self._drop()
            return
        try:
            if self.record is None:
                self.record = Record.create(sessions_place())
        except (OSError, filelock.Timeout) as error:
            why = getattr(error, "strerror", None) or "it is locked"
            self._tell(
                f"nothing can be written to {sessions_place()} ({why}), so this window cannot be restored after a "
                "crash; make room there, or save the session by hand."
            )
            return
        folder = self.record.folder
        for layer in self.viewer.layers:
            self._painted.setdefault(layer, self._slice)
        taken = self._snapshot(self._have)
        if taken is None:
            return
        session, arrays = taken

        def work(emit: Callable[[object], None], _: Callable[[], bool]) -> None:
            write_folder(folder, session, arrays)
            emit(session.arrays)

        self._submit(_Task(work, self._on_kept))

    def _snapshot(self, have: frozenset[str] = frozenset()) -> tuple[SavedSession, dict[str, Any]] | None:
        """What is shown now; None, and a sentence, if it cannot be described."""
        try:
            return snapshot(self.viewer, self.explorer, self._revisions, have)
        except CeaseError as error:
            self._tell(f"the session was not kept or saved: {error}")
        except Exception as error:
            log.exception("what a window shows could not be described")
            self._tell(
                f"the session was not kept or saved ({type(error).__name__}); save the layers that you have drawn "
                "by themselves."
            )
        return None

    def _on_kept(self, arrays: frozenset[str]) -> None:
        self._have, self._told = arrays, ""
        if self._after is not None:
            # What was restored is safe in this window's own record.
            self._after.remove()
            self._after = None
        self.kept.emit()

    def _drop(self) -> None:
        if self.record is not None:
            self.record.remove()
            self.record, self._have = None, frozenset()

    # --- what a crash has left ------------------------------------------------------------------------------

    def look(self) -> None:
        """Offer the newest session that a crash has left, if there is one."""
        if self.left is None:
            self.left, faults = find_left(sessions_place())
            for fault in faults:
                self.failed.emit(fault)
            self.offered.emit(self.left)

    def restore(self) -> None:
        """Show again what was offered."""
        if (left := self.left) is not None:
            # Still offered if it fails.
            again = partial(self.offered.emit, left)
            self._submit(_Task(_rebuilding(left.kept), partial(self._on_restored, left), again))

    def _on_restored(self, left: Left, rebuilt: Rebuilt) -> None:
        try:
            faults = self._show_again(rebuilt)
        except Exception as error:
            log.exception("a session could not be restored")
            self.failed.emit(f"the session could not be restored ({type(error).__name__}); discard it, or try again.")
            self.offered.emit(left)
            return
        self.left = None
        if faults.layers:
            # All that could not be had is still there for another time, and is not offered for ever.
            left.record.put_aside()
        else:
            if self._after is not None:
                self._after.let_go()
            self._after = left.record
        self._was_shown()

    def discard(self) -> None:
        """Forget what was offered, and offer what there is besides."""
        if self.left is not None:
            self.left.record.remove()
            self.left = None
            self.look()

    def _show_again(self, rebuilt: Rebuilt) -> Faults:
        faults = show_again(self.viewer, self.explorer, rebuilt)
        for fault in (*faults.layers, *faults.choices):
            self.failed.emit(fault)
        return faults

    def _was_shown(self) -> None:
        self._on_change()
        self.restored.emit()
        self.look()

    # --- sessions as files ----------------------------------------------------------------------------------

    def save_as(self, path: Path) -> None:
        """Save what is shown now as one file, beside the window's thread."""
        self._told = ""
        taken = self._snapshot()
        if taken is None:
            return
        saving = _Saving(path, *taken)
        self._saving = [*(one for one in self._saving if not one.over.is_set()), saving]

        def work(emit: Callable[[object], None], _: Callable[[], bool]) -> None:
            saving.write()
            emit(path)

        self._submit(_Task(work, self.saved.emit))

    def open_file(self, path: Path) -> None:
        """Add what a file holds to what is shown, and choose what was chosen in it.

        Raises
        ------
        CeaseError
            If it is no session, or damaged.
        """
        self._submit(_Task(_rebuilding(read_session(path)), self._on_opened))

    def _on_opened(self, rebuilt: Rebuilt) -> None:
        self._show_again(rebuilt)
        self._was_shown()

    # --- the thread -----------------------------------------------------------------------------------------

    def _submit(self, task: _Task) -> None:
        self._jobs.append(task)
        self._next()

    def _next(self) -> None:
        if self._running is None and self._jobs and not self._closed:
            self._running = self._jobs.popleft()
            self.worker.submit(self._running.job)

    def _on_said(self, _: int, answer: object) -> None:
        if self._running is not None and not self._closed:
            self._running.then(answer)

    def _on_failed(self, _: int, sentence: str) -> None:
        self._tell(sentence)
        if self._running is not None and not self._closed:
            self._running.otherwise()

    def _on_finished(self, _: int) -> None:
        self._running = None
        self._next()

    def _tell(self, sentence: str) -> None:
        # A disk that is full stays so; once is enough.
        if sentence != self._told:
            self._told = sentence
            self.failed.emit(sentence)

    @property
    def busy(self) -> bool:
        """Whether something is read or written."""
        return self._running is not None

    # --- the end --------------------------------------------------------------------------------------------

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """A window that was asked to close may ask back, and stay; once it is hidden, it has closed."""
        if event is not None:
            kind, main = event.type(), self._main()
            if kind == QEvent.Type.Close and watched is main:
                self._leave(True)
            elif self._leaving and kind == QEvent.Type.Hide and watched is main and not event.spontaneous():
                self.close()
            elif self._leaving and (
                (kind == QEvent.Type.Show and watched is main)
                # Who works on in the window has not closed it.
                or (kind in _INPUT and isinstance(watched, QWidget) and watched.window() is main)
            ):
                self._leave(False)
        return bool(super().eventFilter(watched, event))

    def _leave(self, leaving: bool) -> None:
        app = QCoreApplication.instance()
        if app is not None and leaving != self._leaving:
            # What is done in a window goes to the widgets in it.
            (app.installEventFilter if leaving else app.removeEventFilter)(self)
        self._leaving = leaving

    def close(self) -> bool:
        """The window closes as it should: nothing is to be restored. Returns whether the thread has ended."""
        if self._closed:
            return True
        self._closed = True
        self._soon.stop()
        self._leave(False)
        on_change(self._on_change, follow=False)
        with suppress(RuntimeError):  # the window may have gone first
            main_window(self.viewer).removeEventFilter(self)
        self.explorer.session.events.disconnect(self._on_change)
        for event in self._events:
            event.disconnect(self._on_change)
        self.viewer.layers.events.inserted.disconnect(self._on_inserted)
        self.viewer.layers.events.removed.disconnect(self._on_removed)
        for layer in self.viewer.layers:
            self._unwatch(layer)
        self._write_the_rest()
        ended = self.worker.shutdown()
        self._drop()
        if self._after is not None:
            # Restored, and then closed by the user.
            self._after.remove()
        if self.left is not None:
            # Neither restored nor discarded: for the next window.
            self.left.record.let_go()
            self.left = None
        return ended

    def _write_the_rest(self) -> None:
        """Sessions that the user saves are still written."""
        waiting = [saving for saving in self._saving if not saving.over.is_set()]

        def work(_emit: Callable[[object], None], _stopped: Callable[[], bool]) -> None:
            for saving in waiting:
                with suppress(CeaseError):
                    saving.write()

        if waiting:
            # After the one that is being written, if there is one.
            self.worker.submit(work)
        end = time.monotonic() + LAST_SECONDS
        for saving in waiting:
            if not saving.over.wait(max(end - time.monotonic(), 0.0)):
                saving.fault = f"{saving.path.name} was not written before the window closed; save the session again."
            if saving.fault:
                log.error(saving.fault)
                self._tell(saving.fault)


def _rebuilding(kept: Kept) -> Job:
    return lambda emit, stopped: emit(rebuild(kept, stopped))
