"""What a window shows, kept while it is open, so that a crash loses seconds.

Every window keeps a record of its own, a folder that it holds locked. Whoever closes a window removes its record; so a
record that nobody holds was left by one that has crashed, and the next window offers it. The operating system lets go
of a lock when its process ends, however it ends.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import filelock
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer, Shapes
from qtpy.QtCore import QEvent, QObject, QTimer, Signal

from cease_core.errors import CeaseError
from cease_core.models.library import user_library
from napari_cease.explorer import Explorer
from napari_cease.jobs.worker import Job, Worker
from napari_cease.layers import edits, role_of
from napari_cease.saved_session import (
    DESCRIPTION,
    Kept,
    Rebuilt,
    Revisions,
    read_session,
    rebuild,
    show_again,
    snapshot,
    write_file,
    write_folder,
)
from napari_cease.settings import preferences
from napari_cease.widgets.window import main_window

SESSIONS, LOCK, DAMAGED = "sessions", ".lock", "damaged-session.json"
SOON = 2000
"""Milliseconds from a change until it is on disk."""
ABANDONED = 24 * 3600.0
"""Seconds after which a folder without a record is nobody's."""


def sessions_place() -> Path:
    """Folder of the records: ``$CEASE_SESSIONS``, or beside the user's models."""
    given = os.environ.get("CEASE_SESSIONS")
    return Path(given) if given else user_library().parent / SESSIONS


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
        """A new one."""
        folder = place / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return cls(folder)

    def let_go(self) -> None:
        """Leave it to others."""
        self._lock.release()

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

    A damaged record is put aside, with all that is in it, so that it is spoken of once.
    """
    faults: list[str] = []
    for folder in sorted((p.parent for p in place.glob(f"*/{LOCK}")), key=_touched, reverse=True):
        try:
            record = Record(folder)
        except (filelock.Timeout, OSError):
            continue
        if not (folder / DESCRIPTION).is_file():
            if not (folder / DAMAGED).exists() and time.time() - _touched(folder) > ABANDONED:
                record.remove()
            else:
                record.let_go()
            continue
        try:
            return Left(record, read_session(folder)), tuple(faults)
        except CeaseError:
            with suppress(OSError):
                (folder / DESCRIPTION).replace(folder / DAMAGED)
            record.let_go()
            faults.append(
                f"The record of a window that has crashed is damaged and cannot be restored; it is still in {folder}."
            )
    return None, tuple(faults)


def _touched(folder: Path) -> float:
    with suppress(OSError):
        return max(p.stat().st_mtime for p in (folder / DESCRIPTION, folder) if p.exists())
    return 0.0


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
        self._jobs: deque[tuple[Job, Callable[[Any], None]]] = deque()
        self._running: Callable[[Any], None] | None = None
        self.worker = Worker(self, "cease-session")
        self.worker.said.connect(self._on_said)
        self.worker.failed.connect(self._on_failed)
        self.worker.finished.connect(self._on_finished)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(SOON)
        self._soon.timeout.connect(self.keep)
        # Runs while the window is asked to close, which it may refuse.
        self._leaving = QTimer(self)
        self._leaving.setSingleShot(True)
        explorer.session.events.connect(self._on_change)
        for event in self._events:
            event.connect(self._on_change)
        viewer.layers.events.inserted.connect(self._on_inserted)
        viewer.layers.events.removed.connect(self._on_removed)
        for layer in viewer.layers:
            self._watch(layer)
        main_window(viewer).installEventFilter(self)

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
        if self._closed or not preferences().keep_session:
            return
        if self._running is not None:
            # Values are copied once it is known which of them are on disk.
            self._soon.start()
            return
        if not any(isinstance(x, (Image, Labels, Shapes)) for x in self.viewer.layers):
            # Nothing to lose; what was kept of it is no offer.
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
        session, arrays = snapshot(self.viewer, self.explorer, self._revisions, self._have)

        def work(emit: Callable[[object], None], _: Callable[[], bool]) -> None:
            write_folder(folder, session, arrays)
            emit(session.arrays)

        self._submit(work, self._on_kept)

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
        if self.left is not None:
            left, self.left = self.left, None
            self._rebuild(left.kept, lambda rebuilt: self._on_rebuilt(rebuilt, left.record))

    def discard(self) -> None:
        """Forget what was offered, and offer what there is besides."""
        if self.left is not None:
            self.left.record.remove()
            self.left = None
            self.look()

    def _rebuild(self, kept: Kept, then: Callable[[Rebuilt], None]) -> None:
        self._submit(lambda emit, stopped: emit(rebuild(kept, stopped)), then)

    def _on_rebuilt(self, rebuilt: Rebuilt, record: Record | None = None) -> None:
        faults = show_again(self.viewer, self.explorer, rebuilt)
        for fault in faults:
            self.failed.emit(fault)
        if record is not None and faults:
            # All that could not be had is still there for another time, and is not offered for ever.
            with suppress(OSError):
                (record.folder / DESCRIPTION).replace(record.folder / DAMAGED)
            record.let_go()
        elif record is not None:
            if self._after is not None:
                self._after.let_go()
            self._after = record
        self._on_change()
        self.restored.emit()
        self.look()

    # --- sessions as files ----------------------------------------------------------------------------------

    def save_as(self, path: Path) -> None:
        """Save what is shown now as one file, beside the window's thread."""
        session, arrays = snapshot(self.viewer, self.explorer, self._revisions)

        def work(emit: Callable[[object], None], _: Callable[[], bool]) -> None:
            write_file(path, session, arrays)
            emit(path)

        self._submit(work, self.saved.emit)

    def open_file(self, path: Path) -> None:
        """Add what a file holds to what is shown, and choose what was chosen in it.

        Raises
        ------
        CeaseError
            If it is no session, or damaged.
        """
        self._rebuild(read_session(path), self._on_rebuilt)

    # --- the thread -----------------------------------------------------------------------------------------

    def _submit(self, job: Job, then: Callable[[Any], None]) -> None:
        self._jobs.append((job, then))
        self._next()

    def _next(self) -> None:
        if self._running is None and self._jobs and not self._closed:
            job, self._running = self._jobs.popleft()
            self.worker.submit(job)

    def _on_said(self, _: int, answer: object) -> None:
        if self._running is not None and not self._closed:
            self._running(answer)

    def _on_failed(self, _: int, sentence: str) -> None:
        self._tell(sentence)

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
        """A window that was asked to close may still stay; once it is hidden, it has closed."""
        if event is not None and event.type() == QEvent.Type.Close:
            self._leaving.start()
        elif event is not None and event.type() == QEvent.Type.Hide and self._leaving.isActive():
            self.close()
        return bool(super().eventFilter(watched, event))

    def close(self) -> bool:
        """The window closes as it should: nothing is to be restored. Returns whether the thread has ended."""
        if self._closed:
            return True
        self._closed = True
        self._soon.stop()
        self._leaving.stop()
        with suppress(RuntimeError):  # the window may have gone first
            main_window(self.viewer).removeEventFilter(self)
        self.explorer.session.events.disconnect(self._on_change)
        for event in self._events:
            event.disconnect(self._on_change)
        self.viewer.layers.events.inserted.disconnect(self._on_inserted)
        self.viewer.layers.events.removed.disconnect(self._on_removed)
        for layer in self.viewer.layers:
            self._unwatch(layer)
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
