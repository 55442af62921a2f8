"""The train dock without its widgets: checks the choices, starts the run, and follows what it tells.

What takes time to look at is looked at on a worker's thread; the training itself is a process of its own, of which
this reads the folder five times a second.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels
from pydantic import ValidationError
from qtpy.QtCore import QObject, QTimer, Signal

from cease_core.cli.recipe import Recipe
from cease_core.cli.train import CONFIG
from cease_core.errors import CeaseError
from cease_core.scan import check_labels
from cease_core.tasks.relevance import Relevance, Selection, select
from cease_core.training.config import load_config
from cease_core.training.selection import SCORES
from napari_cease.geometry import scan_of_layer
from napari_cease.jobs.training import EVENTS, Job, Preview, Run, Status, Tail, find_runs, publish, read_preview
from napari_cease.jobs.training_recipe import (
    Looked,
    Pair,
    create_run,
    draft,
    free_name,
    look,
    look_at_pairs,
    plan,
    warnings,
)
from napari_cease.jobs.worker import Worker
from napari_cease.layers import is_mask, role_of
from napari_cease.settings import device, preferences
from napari_cease.training_session import TrainingSession

POLL = 200
"""Milliseconds between two looks at a run's folder."""

_DATA = ("source", "folder")
_CHOICES = (
    "validation",
    "test",
    "patients",
    "architecture",
    "preset",
    "start",
    "teacher",
    "title",
    "library",
    "level",
    "length",
    "epochs",
    "gradients",
    "ndim",
    "batch_size",
    "patch",
    "steps",
    "learning_rate",
    "precision",
    "validate_every",
    "patience",
    "seed",
    "channels",
    "tasks",
)


@dataclass(frozen=True)
class Reading:
    """Cases ``done`` of ``total``."""

    done: int
    total: int


@dataclass(frozen=True, eq=False)
class Checked:
    """What the choices come to: the run that would start, its cost, and what to know before."""

    recipe: Recipe
    plan: dict[str, str]
    warnings: tuple[str, ...]


def labelled(viewer: ViewerModel) -> list[tuple[Image, Labels]]:
    """Images of the viewer with the labels layer that belongs to each: of the same scan, or of the same shape."""
    images = [x for x in viewer.layers if isinstance(x, Image) and role_of(x)[0] in (None, "scan")]
    masks = [x for x in viewer.layers if isinstance(x, Labels) and is_mask(x)]
    pairs = []
    for image in images:
        mark = image.metadata.get("cease", {}).get("scan")
        own = [m for m in masks if mark is not None and m.metadata.get("cease", {}).get("scan") is mark]
        alike = [m for m in masks if m.data.shape == image.data.shape[: image.ndim] and role_of(m)[0] in (None, "scan")]
        if own or alike:
            pairs.append((image, (own or alike)[0]))
    return pairs


def pair_of(image: Image, mask: Labels) -> Pair:
    """A scan and its mask from two layers, as they are now.

    Raises
    ------
    CeaseError
        If they do not fit together.
    """
    scan = scan_of_layer(image)
    labels = check_labels(np.asarray(mask.data), scan, mask.name).copy()
    return Pair(scan, labels, dict(mask.metadata.get("cease", {}).get("classes", {})))


class Trainer(QObject):
    """Joins a session to the runs that it starts or attaches to.

    Parameters
    ----------
    session
        Its choices are listened to; its run is written.
    pairs
        The labelled layers that were ticked, for the source *layers*.
    """

    checked = Signal()
    """`present`, `fault` or `reading` has changed."""
    refreshed = Signal()
    """The run has told something, or stands elsewhere."""
    previewed = Signal(object)
    """A `Preview` of the newest epoch."""
    trained = Signal(object)
    """A model has come into the library; its folder."""
    failed = Signal(str)

    def __init__(
        self, session: TrainingSession, pairs: Callable[[], Sequence[Pair]], parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self.session = session
        self.pairs = pairs
        self.present: Checked | None = None
        self.fault = ""
        self.reading: Reading | None = None
        self.preview: Preview | None = None
        self.run: Run | None = None
        self._looked: Looked | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._starting = False
        self._following = False
        self._news: tuple[Status, str] | None = None
        self._tail: Tail | None = None
        self.worker = Worker(self)
        self.worker.said.connect(self._on_said)
        self.worker.failed.connect(self._on_failed)
        self.worker.finished.connect(self._on_finished)
        self._again = QTimer(self)
        self._again.setSingleShot(True)
        self._again.setInterval(250)
        self._again.timeout.connect(self._check)
        self._poll = QTimer(self)
        self._poll.setInterval(POLL)
        self._poll.timeout.connect(self.poll)
        self._generation = 0
        self._stale = False
        self._source_read: tuple[Any, ...] = ()
        for name in _DATA:
            getattr(session.events, name).connect(self.look)
        for name in _CHOICES:
            getattr(session.events, name).connect(self.check)

    # --- before the run -------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the data anew, then check the choices."""
        self._looked, self._source_read = None, ()
        self.check()

    def check(self) -> None:
        """Check the choices once nobody types any more."""
        self.present, self.fault = None, ""
        self._stale = True
        self._again.start()
        self.checked.emit()

    @property
    def checking(self) -> bool:
        """Whether there are choices to which the answer is still to come."""
        given = self.session.source == "layers" or self.session.folder is not None
        return given and self.present is None and not self.fault

    def _check(self) -> None:
        if self.reading is not None and self._source == self._source_read:
            # What is being read stays right whatever is chosen; this is asked again when it has been read.
            return
        self._source_read = self._source
        s = self.session
        if s.source == "folder" and s.folder is None:
            self._answer(fault="")
            return
        looked, data, choices, title = self._looked, s.data, s.choices, s.title.strip()
        library, folder, source = s.library, s.folder, s.source
        pairs: Sequence[Pair] = ()
        place: Path | None = None
        if looked is None and source == "layers":
            try:
                pairs = self.pairs()
                place = self._fresh()
            except CeaseError as error:
                self._answer(fault=str(error))
                return

        def work(emit: Callable[[object], None], stopped: Callable[[], bool]) -> None:
            def told(done: int, total: int) -> bool:
                emit(Reading(done, total))
                return not stopped()

            found = looked
            if found is None and place is not None:
                found = look_at_pairs(pairs, place, told)
            elif found is None and folder is not None:
                found = look(folder, told)
            if found is not None:
                emit(found)
                recipe = free_name(draft(found, data, choices, title), library, chosen=bool(title))
                emit(Checked(recipe, plan(recipe), tuple(warnings(found, recipe.sides))))

        self._stale = False
        self.reading = Reading(0, 0) if looked is None else None
        self._generation = self.worker.submit(work)
        self.checked.emit()

    @property
    def _source(self) -> tuple[Any, ...]:
        return self.session.source, self.session.folder

    def _fresh(self) -> Path:
        """An empty folder for the data set of the viewer's layers; the one before goes."""
        if self._scratch is not None:
            self._scratch.cleanup()
        self._scratch = tempfile.TemporaryDirectory(prefix="napari-cease-", ignore_cleanup_errors=True)
        return Path(self._scratch.name) / "layers"

    def _answer(self, *, fault: str) -> None:
        self._stale, self.reading, self.present, self.fault = False, None, None, fault
        if self._starting:
            self._starting = False
            self.failed.emit(fault or "Choose a folder with scans and masks, or labelled layers, first.")
        self.checked.emit()

    def _on_said(self, generation: int, event: object) -> None:
        if generation != self._generation:
            return
        if isinstance(event, Reading):
            self.reading = event
        elif isinstance(event, Looked):
            self._looked, self.reading = event, None
        elif isinstance(event, Checked) and not self._stale:
            self.present, self.fault = event, ""
            if self._starting:
                self._launch()
        self.checked.emit()

    def _on_failed(self, generation: int, sentence: str) -> None:
        if generation == self._generation and not self._stale:
            self._answer(fault=sentence)

    def _on_finished(self, generation: int) -> None:
        if generation != self._generation:
            return
        self.reading = None
        if self._stale:
            self._check()
        self.checked.emit()

    # --- the run --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the run that the choices describe, once they are checked; layers are read as they are now."""
        if self.session.alive:
            self.failed.emit("A training is under way already; stop it first, or let it finish.")
            return
        self._starting = True
        if self.session.source == "layers":
            self.look()
        elif self.present is not None and not self._stale:
            self._launch()
        elif not self.checking:
            self._answer(fault=self.fault)

    def _launch(self) -> None:
        self._starting = False
        s = self.session
        assert self.present is not None
        try:
            # The name may have been taken since.
            recipe = free_name(self.present.recipe, s.library, chosen=bool(s.title.strip()))
            wanted = preferences().device
            job = Job(
                s.library,
                device=None if wanted == "auto" else str(device()),
                save_every=s.save_every,
                minutes=s.minutes if s.length == "minutes" else None,
            )
            run = create_run(recipe, job, copy_data=s.source == "layers")
            run.start()
        except CeaseError as error:
            self.failed.emit(str(error))
            return
        self._follow(run, started=True)

    def resume(self) -> None:
        """Let the run go on from what was saved."""
        if self.run is None or not self.session.resumable:
            return
        try:
            self.run.start()
        except CeaseError as error:
            self.failed.emit(str(error))
            # Another window may have been the first: its process is followed.
            self._watch(started=False)
            return
        self._watch(started=True)

    def pause(self) -> None:
        """Ask the run to save its state and end."""
        if self.run is not None and self.session.alive:
            self.run.pause()
            self.refreshed.emit()

    def stop(self) -> None:
        """Ask the run to end at once."""
        if self.run is not None and self.session.alive:
            self.run.stop()
            self.refreshed.emit()

    @property
    def asked(self) -> str:
        """What the run was asked for and has not done yet."""
        return self.run.asked if self.run is not None and self.session.alive else ""

    def keep(self) -> None:
        """Put the best model so far of a run that has not finished into the library."""
        if self.run is None:
            return
        try:
            model = publish(self.run.folder, self.run.job().library, self.run.folder.name)
        except CeaseError as error:
            self.failed.emit(str(error))
            return
        self.session.model = model
        self.refreshed.emit()
        self.trained.emit(model)

    @property
    def keepable(self) -> bool:
        """Whether the run has ended early, with a model that is not in the library yet."""
        ended = self.run is not None and self.session.resumable and self.session.model is None
        return ended and self.run is not None and (self.run.folder / "card.json").is_file()

    def attach(self, folder: Path) -> None:
        """Follow a run that was started before, by this window or another one.

        Raises
        ------
        CeaseError
            If the folder holds none.
        """
        self._follow(Run.open(folder))

    def attach_to_alive(self) -> bool:
        """Follow the newest run of the library that is under way, if there is one."""
        for run in find_runs(self.session.library):
            if run.status().alive:
                self._follow(run)
                return True
        return False

    def let_go(self) -> None:
        """Follow no run any more; one that is under way goes on."""
        self._poll.stop()
        self.run = self._tail = self.preview = None
        self._starting = False
        self.session.begin(None)
        self.refreshed.emit()
        # The name may be taken by now, by that very run.
        self.check()

    def _follow(self, run: Run, *, started: bool = False) -> None:
        self.run, self._tail, self.preview = run, Tail(run.folder / EVENTS), None
        # A start that was still to come would take this run's place.
        self._starting = False
        self.session.begin(run.folder)
        self._watch(started=started)

    def _watch(self, *, started: bool) -> None:
        # A run that was started here may end before it is looked at for the first time.
        self._following, self._news = started, None
        self._poll.start()
        self.poll()

    def poll(self) -> None:
        """Take in what the run has told since, and where it stands."""
        if self.run is None or self._tail is None:
            return
        # In this order: what it told before its end is there when the end is known.
        status = self.run.status()
        heard = self.session.hear(self._tail.read())
        news = (status, self.run.asked)
        if not heard and news == self._news:
            return
        self._news = news
        self.session.stand(status)
        if "preview" in heard and (preview := read_preview(self.run.folder)) is not None:
            self.preview = preview
            self.previewed.emit(preview)
        if not status.alive:
            self._poll.stop()
        self.refreshed.emit()
        ended = self._following and not status.alive
        self._following = status.alive
        if ended and status.stage == "finished" and status.model is not None:
            self.trained.emit(status.model)
        elif ended and status.stage in ("failed", "lost"):
            self.failed.emit(self.session.told)

    @property
    def relevance(self) -> tuple[Relevance, Selection] | None:
        """What the run measured of the auxiliary tasks, and its choice; None if it has not, or they were named."""
        path = None if self.run is None else self.run.folder / SCORES
        if path is None or not path.is_file():
            return None
        return _chosen(path, path.stat().st_mtime_ns)

    # --- the end --------------------------------------------------------------------------------------------

    def shutdown(self) -> bool:
        """Stop following and looking; a run goes on. Returns whether the thread has ended."""
        for timer in (self._again, self._poll):
            timer.stop()
        for name in _DATA:
            getattr(self.session.events, name).disconnect(self.look)
        for name in _CHOICES:
            getattr(self.session.events, name).disconnect(self.check)
        ended = self.worker.shutdown()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None
        return ended


@lru_cache(maxsize=4)
def _chosen(scores: Path, stamp: int) -> tuple[Relevance, Selection] | None:
    del stamp  # part of the key: it is asked for several times a second
    try:
        measured = Relevance.model_validate_json(scores.read_text(encoding="utf-8"))
        config = load_config(scores.parent / CONFIG)
    except (OSError, ValidationError, CeaseError):
        return None
    term = config.defence.auxiliary
    if term is None or term.tasks:
        return None
    return measured, select(measured, term.rule, term.count, floor=term.floor, costly=term.costly, seed=config.seed)
