"""The explorer without its dock: listens to the session, runs the attacks, and lays out the results.

Results are kept for every slice that was looked at, so a slider tick whose ε is known draws at once; one that
is not yet known is answered by the worker with a preview. What the worker says is drawn when the event loop is
free, several events at a time, and nothing is drawn twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer, Shapes
from qtpy.QtCore import QObject, QTimer, Signal

from cease_core.attacks.targets import TARGETS
from cease_core.errors import CeaseError
from cease_core.models import ModelCard, open_model, prepare
from cease_core.models.checkpoint import load_card, weights_file
from cease_core.models.segmenter import ScanModel
from cease_core.scan import Scan, check_labels
from napari_cease.choices import alike
from napari_cease.geometry import scan_of_layer
from napari_cease.history import Choices
from napari_cease.jobs.exploration import (
    SIDES,
    Opened,
    Progress,
    Request,
    Side,
    View,
    attack_volume,
    explore,
)
from napari_cease.jobs.worker import Worker
from napari_cease.layers import TITLES, Panes, edits
from napari_cease.regions import region_of_layer
from napari_cease.results import NOTHING, Results, Settings, all_known
from napari_cease.session import ExplorerSession, Reference, Region
from napari_cease.settings import device, preferences
from napari_cease.units import LEVELS, epsilon_words

KEPT_BYTES = 512 * 2**20
"""Memory for the results of slices and settings that were looked at before; the oldest give way."""


@lru_cache(maxsize=8)
def _prepared(folder: Path, stamp: float, where: torch.device) -> ScanModel:
    del stamp  # part of the key: a model that was trained again is loaded again
    return prepare(open_model(folder), where)


def _loader(folder: Path, where: torch.device) -> Callable[[], ScanModel]:
    def load() -> ScanModel:
        weights = weights_file(folder, load_card(folder))
        # Missing weights have no time; loading them then says what is wrong.
        return _prepared(folder, weights.stat().st_mtime if weights.is_file() else 0.0, where)

    return load


class Explorer(QObject):
    """Joins a session to a viewer.

    Parameters
    ----------
    viewer
        Where the layers live.
    session
        What to show; listened to, and written when the viewer's slice changes.
    """

    refreshed = Signal()
    """The figures of the present ε, or the curve, have changed."""
    progressed = Signal(int, int)
    drawn = Signal()
    """The panes were given the newest results."""
    failed = Signal(str)
    busy = Signal(bool)
    restored = Signal()
    """Earlier choices were made again."""

    def __init__(self, viewer: ViewerModel, session: ExplorerSession, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.session = session
        self.panes = Panes(viewer)
        self.worker = Worker(self)
        self.worker.said.connect(self._on_event)
        self.worker.failed.connect(self._on_failed)
        self.worker.finished.connect(self._on_finished)
        self.scan_layer: Image | None = None
        self.labels_layer: Labels | None = None
        self.region_layer: Labels | Shapes | None = None
        self.target_layer: Labels | None = None
        self.remarks: dict[str, str] = {}
        """What the user should know about the choices, a sentence for each."""
        self._known: OrderedDict[Settings, Results] = OrderedDict()
        self._volumes: dict[tuple[Settings, int], Results] = {}
        self._running: Settings | None = None
        self._volume_running: tuple[Settings, int] | None = None
        self._refused: Settings | None = None
        self._cancelled = False
        self._wanted: int | None = None
        self._draw = _single_shot(self, self.draw)
        # A repaint composes the whole window with its canvas: figures and progress come ten times a second.
        self._tell = _single_shot(self, self._tell_now, 100)
        self._progress: Progress | None = None
        # The grid's panes get their size on the next paint; fitting the view before that uses the old one.
        self._fit = _single_shot(self, viewer.reset_view, 80)
        # Typing in a field or scrolling through slices should not start an attack for every value on the way.
        self._restart = _single_shot(self, self.explore, 60)
        self._reread = _single_shot(self, self._on_edited, 300)
        self._redraw = _single_shot(self, self._on_redrawn, 300)
        self._timers = (self._restart, self._draw, self._tell, self._fit, self._reread, self._redraw)
        events = session.events
        for name in ("attack", "parameters", "target", "region", "top"):
            getattr(events, name).connect(self._explore_soon)
        for name in ("gain", "index"):
            getattr(events, name).connect(self._draw_soon)
        for name in ("show_perturbation", "show_adversarial"):
            getattr(events, name).connect(self._on_shown)
        events.index.connect(self._explore_soon)
        events.level.connect(self._on_level)
        for name in ("undefended", "defended"):
            getattr(events, name).connect(self._relayout)
        events.side_by_side.connect(self._on_split)
        events.show_critical.connect(self._on_critical)
        viewer.dims.events.current_step.connect(self._on_step)
        viewer.canvas.events.size.connect(self._draw_soon)

    # --- choosing -------------------------------------------------------------------------------------------

    def choose(
        self,
        scan_layer: Image | None,
        labels_layer: Labels | None,
        models: dict[Side, Path | None] | None = None,
    ) -> None:
        """Explore the scan of a layer, judged by a labels layer (None: the model's own clean mask).

        Parameters
        ----------
        models
            Model folders to choose at the same time; if left out, models that do not take the scan are let go of.

        Raises
        ------
        CeaseError
            If the layers or cards cannot be used; then nothing changes.
        """
        if scan_layer is None:
            self.stop()
            self._watch(None, None)
            with self.session.events.blocked():
                self._let_go()
            self.session.scan = self.session.reference = None
            self.panes.close()
            return
        # All that can be wrong with the choice is found out before anything changes.
        scan = scan_of_layer(scan_layer)
        reference = None
        if labels_layer is not None:
            reference = Reference(labels_layer.name, check_labels(labels_layer.data, scan, labels_layer.name))
        s = self.session
        folders: dict[Side, Path | None] = {side: getattr(s, side) for side in SIDES} | (models or {})
        cards = {side: load_card(folder) for side, folder in folders.items() if folder is not None}
        misfits = [] if models is not None else [side for side, card in cards.items() if not takes(card, scan)]
        folders |= dict.fromkeys(misfits)

        before = (s.scan, self.scan_layer, self.labels_layer, s.undefended, s.defended)
        fits = s.scan is not None and s.scan.shape == scan.shape
        # Silently: the panes are laid out once, below.
        with s.events.blocked():
            for side, folder in folders.items():
                setattr(s, side, folder)
        if scan is not s.scan or reference is not None or s.reference is not None:
            self._known.clear()
            self._volumes.clear()
            self._running = self._volume_running = None
        self._refused = None
        self._watch(scan_layer, labels_layer)
        if not fits:
            self._let_go()
        moved = fits and scan is not s.scan
        s.reference = reference
        s.scan = scan
        s.index = self._step()
        if moved:
            self._on_redrawn()
        if before == (scan, scan_layer, labels_layer, s.undefended, s.defended):
            self.explore()
            return
        self._relayout()
        if not fits:
            self._fit.start()
        if misfits:
            self.failed.emit(
                f"{cards[misfits[0]].title} does not take images such as {scan.name}; choose a model made for them."
            )

    def choose_region(self, layer: Labels | Shapes | None) -> None:
        """Let the scan change only where a layer marks it; None for everywhere.

        A layer that marks nothing, or does not fit, is remarked upon and waited for; until it does, the region
        stays as it was.
        """
        self.region_layer = self._rewatch(self.region_layer, layer, self._on_marked)
        self._read_region()

    def choose_target(self, target: str | Labels | None) -> None:
        """Reach a mask: a key of `TARGETS`, or the mask of a layer; None to leave the mask.

        A layer that does not fit is remarked upon and waited for; until it does, the target stays as it was.
        """
        layer = target if isinstance(target, Labels) else None
        self.target_layer = self._rewatch(self.target_layer, layer, self._on_marked)
        if layer is not None:
            self._read_target()
        else:
            self._set_target(target)

    def choose_attack(self, key: str) -> None:
        """Choose an attack; one that needs a mask to reach gets one."""
        self.remark("attack", self.session.choose_attack(key))

    def choices(self) -> Choices:
        """What is chosen, to be chosen again by `restore`."""
        s = self.session
        return Choices(
            scan=self.scan_layer,
            labels=self.labels_layer,
            undefended=s.undefended,
            defended=s.defended,
            attack=s.attack,
            parameters=dict(s.parameters),
            target=s.target if isinstance(s.target, str) else self.target_layer,
            region=self.region_layer,
            top=s.top,
            level=s.level,
            index=s.index,
        )

    def restore(self, choices: Choices) -> None:
        """Choose again what was chosen; what is still known about it is not computed anew.

        Raises
        ------
        CeaseError
            If a layer or a model cannot be used any more.
        """
        s = self.session
        models: dict[Side, Path | None] = {"undefended": choices.undefended, "defended": choices.defended}
        # What cannot be used is found out before anything changes.
        for chosen in filter(None, models.values()):
            load_card(chosen)
        if (choices.scan, choices.labels) != (self.scan_layer, self.labels_layer):
            self.choose(choices.scan, choices.labels, models)
        if s.scan is None:
            return
        s.top = choices.top
        s.attack, s.parameters = choices.attack, dict(choices.parameters)
        self.choose_region(choices.region)
        layer = choices.target if isinstance(choices.target, Labels) else None
        self.target_layer = self._rewatch(self.target_layer, layer, self._on_marked)
        if isinstance(choices.target, Labels):
            self._read_target()
        else:
            s.target = choices.target
            self.remark("target", "")
        self.remark("attack", "")
        if any(folder != getattr(s, side) for side, folder in models.items()):
            with s.events.blocked():
                for side, folder in models.items():
                    setattr(s, side, folder)
            self._relayout()
        if s.scan.ndim == 3 and choices.index != s.index:
            axis = self.viewer.dims.ndim - 3
            self.viewer.dims.set_point(axis, s.scan.translate[0] + choices.index * s.scan.spacing[0])
        s.level = min(choices.level, s.top)
        self.explore()
        self.restored.emit()

    def hold_view(self) -> None:
        """Leave the camera where somebody is about to put it."""
        self._fit.stop()

    def _read_region(self) -> None:
        s, layer = self.session, self.region_layer
        region, remark = None, ""
        if layer is not None and s.scan is not None:
            try:
                inside = region_of_layer(layer, s.scan)
            except CeaseError as error:
                now = f"the region is still {s.region.name}" if s.region is not None else "everything may change"
                region, remark = s.region, f"{error} Until then {now}."
            else:
                same = s.region is not None and np.array_equal(s.region.inside, inside)
                region = s.region if same else Region(layer.name, inside)
        self.remark("region", remark)
        s.region = region
        self._forget_masks()

    def _read_target(self, *, keep: bool = True) -> None:
        s, layer = self.session, self.target_layer
        if layer is None or s.scan is None:
            return
        try:
            mask = check_labels(layer.data, s.scan, layer.name)
            for card in self.cards().values():
                known = {0, *(c.id for c in card.classes)}
                if unknown := set(np.unique(mask).tolist()) - known:
                    raise CeaseError(
                        f"{layer.name} holds class {min(unknown)}, which {card.title} does not know; "
                        "choose a mask with the model's classes."
                    )
        except CeaseError as error:
            if not keep:
                s.target = None
            now = f"the target is still “{s.target_name}”" if s.target is not None else "there is no target"
            self.remark("target", f"{error} Until then {now}.")
            return
        old = s.target
        same = isinstance(old, Reference) and np.array_equal(old.labels, mask)
        self._set_target(old if same else Reference(layer.name, mask))

    def _set_target(self, target: str | Reference | None) -> None:
        # What this says about the attack outdates what was said before.
        self.remarks.pop("attack", None)
        self.remark("target", self.session.choose_target(target))
        self._forget_masks()

    def _forget_masks(self) -> None:
        """Let go of results for masks that were edited or given up since: they cannot be chosen again."""
        s = self.session

        def gone(key: Settings) -> bool:
            region = key.region is not None and key.region is not s.region
            return region or (isinstance(key.target, Reference) and key.target is not s.target)

        for key in [k for k in self._known if gone(k)]:
            del self._known[key]
        for volume in [v for v in self._volumes if gone(v[0])]:
            del self._volumes[volume]

    def remark(self, about: str, sentence: str) -> None:
        """Say something about a choice, in place of what was said before; an empty sentence takes it back."""
        self.remarks.pop(about, None)
        if sentence:
            self.remarks[about] = sentence
        self._tell_soon()

    def _let_go(self) -> None:
        """Another scan has other layers to mark it."""
        self.region_layer = self._rewatch(self.region_layer, None, self._on_marked)
        if self.target_layer is not None:
            self.target_layer = self._rewatch(self.target_layer, None, self._on_marked)
            self.session.target = None
        self.session.region = None
        self.remarks.clear()

    def _watch(self, scan_layer: Image | None, labels_layer: Labels | None) -> None:
        """Notice edits of the layers in use."""
        self.scan_layer = self._rewatch(self.scan_layer, scan_layer, self._on_edit)
        self.labels_layer = self._rewatch(self.labels_layer, labels_layer, self._on_edit)

    @staticmethod
    def _rewatch(old: Layer | None, new: Any, slot: Callable[[Any], None]) -> Any:
        for event in edits(old) if old is not None else ():
            event.disconnect(slot)
        for event in edits(new) if new is not None else ():
            event.connect(slot)
        return new

    def _on_edit(self, _: Any = None) -> None:
        self._reread.start()

    def _on_edited(self) -> None:
        try:
            self.choose(self.scan_layer, self.labels_layer)
        except CeaseError as error:
            self.failed.emit(str(error))

    def _on_marked(self, _: Any = None) -> None:
        self._redraw.start()

    def _on_redrawn(self) -> None:
        self._read_region()
        self._read_target()

    def cards(self) -> dict[Side, ModelCard]:
        """Cards of the chosen models."""
        chosen: dict[Side, Path | None] = {"undefended": self.session.undefended, "defended": self.session.defended}
        return {side: load_card(folder) for side, folder in chosen.items() if folder is not None}

    def _on_split(self) -> None:
        self._relayout()
        self._fit.start()

    def _relayout(self) -> None:
        if self.session.scan is None or self.scan_layer is None:
            return
        try:
            self.panes.open(
                self.session.scan,
                self.scan_layer,
                self.labels_layer,
                self.cards(),
                split=self.session.side_by_side,
            )
        except CeaseError as error:
            self.failed.emit(str(error))
            return
        self._on_shown()
        self._on_critical()
        if not self.twins:
            self.remark("attack", self.session.lose_source())
        # Other models may not know the classes of the mask to reach.
        self._read_target(keep=False)
        if self.cards_chosen():
            self.explore()
        else:
            self.stop()

    @property
    def twins(self) -> bool:
        """Whether what is made on one side's model can be shown to the other's."""
        try:
            return alike(self.cards().values())
        except CeaseError:
            return False

    def _on_critical(self) -> None:
        if self.session.scan is None:
            return
        self.panes.set_critical(self.session.show_critical, self.cards_chosen())
        self._draw_critical()

    def _on_shown(self) -> None:
        self.panes.set_visible("perturbation", self.session.show_perturbation)
        self.panes.set_visible("adversarial", self.session.show_adversarial)

    # --- computing ------------------------------------------------------------------------------------------

    @property
    def key(self) -> Settings:
        """What the present results depend on, besides ε."""
        s = self.session
        return Settings(s.undefended, s.defended, s.rule, s.target, s.region, s.top, s.index)

    @property
    def results(self) -> Results:
        """What is known at the present settings."""
        return self._known.get(self.key, NOTHING)

    def view(self, side: Side) -> View | None:
        """The result at the present ε: of the whole volume if it was attacked, else of the slice."""
        return self._shown(side)[0]

    @property
    def running(self) -> bool:
        """Whether an attack runs."""
        return self._running is not None or self._volume_running is not None

    @property
    def settled(self) -> bool:
        """Whether nothing runs, waits or remains to be drawn."""
        waiting = any(timer.isActive() for timer in self._timers)
        return not self.running and not waiting

    def explore(self) -> None:
        """Start (or go on) attacking the present slice at every ε."""
        s, key = self.session, self.key
        if s.scan is None or not self.cards_chosen() or self._refused == key.whole or key == self._running:
            return
        if self._volume_running is not None and self._volume_running[0] == key.whole:
            # Looking at another slice must not end what may have run for minutes.
            self._on_level()
            return
        self._cancelled = False
        results = self._known.pop(key, None) or Results()
        self._known[key] = results
        self._forget()
        self._volume_running = None
        if not results.complete:
            results.views = {k: v for k, v in results.views.items() if not v.preview}
            request = self._request(tuple(level / LEVELS for level in range(1, s.top + 1)), whole=False)
            self._wanted = None
            self._running = key
            self.worker.submit(lambda emit, stopped: explore(request, emit, self._wants, stopped))
            self.busy.emit(True)
        else:
            self._running = None
            self.worker.submit(lambda emit, stopped: None)
        self._on_level()

    def _forget(self) -> None:
        held = sum(results.nbytes for results in self._known.values())
        while held > KEPT_BYTES and len(self._known) > 1:
            held -= self._known.popitem(last=False)[1].nbytes

    def attack_volume(self) -> None:
        """Attack the whole scan at the present ε, in the background."""
        s = self.session
        if s.scan is None or s.level == 0 or not self.cards_chosen():
            return
        key = (self.key.whole, s.level)
        self._cancelled = False
        while self._volumes and sum(results.nbytes for results in self._volumes.values()) > KEPT_BYTES:
            del self._volumes[next(iter(self._volumes))]
        self._volumes.pop(key, None)
        self._volumes[key] = Results()
        self._volume_running, self._running = key, None
        request = self._request((), whole=True)
        self.worker.submit(lambda emit, stopped: attack_volume(request, emit, stopped))
        self.busy.emit(True)

    def cancel(self) -> None:
        """Stop what is running and keep the best so far."""
        self._cancelled = True
        self.worker.cancel()

    def stop(self) -> None:
        """Stop what is running and drop what it would still say."""
        self._running = self._volume_running = None
        self.worker.submit(lambda emit, stopped: None)
        self.busy.emit(False)

    def close(self) -> bool:
        """End the thread and remove our layers; returns whether the thread has ended."""
        self.viewer.dims.events.current_step.disconnect(self._on_step)
        self.viewer.canvas.events.size.disconnect(self._draw_soon)
        for timer in self._timers:
            timer.stop()
        self._watch(None, None)
        self.region_layer = self._rewatch(self.region_layer, None, self._on_marked)
        self.target_layer = self._rewatch(self.target_layer, None, self._on_marked)
        ended = self.worker.shutdown()
        self.panes.release()
        return ended

    def _request(self, epsilons: tuple[float, ...], *, whole: bool) -> Request:
        s = self.session
        assert s.scan is not None
        return Request(
            scan=s.scan,
            labels=s.reference.labels if s.reference else None,
            models=self.loaders(),
            attack=s.make_attack(),
            epsilons=epsilons,
            extent="volume" if whole else "slice",
            index=s.index,
            device=device(),
            target=TARGETS[s.target].make if isinstance(s.target, str) else s.target.labels if s.target else None,
            region=s.region.inside if s.region else None,
        )

    def loaders(self) -> dict[Side, Callable[[], ScanModel]]:
        """What loads each chosen model, for any thread: prepared, on the preferred device, and kept."""
        where = device()
        folders: dict[Side, Path | None] = {"undefended": self.session.undefended, "defended": self.session.defended}
        return {side: _loader(folder, where) for side, folder in folders.items() if folder is not None}

    def _wants(self) -> float | None:
        level = self._wanted
        return None if level is None else level / LEVELS

    def _on_event(self, generation: int, event: object) -> None:
        if generation != self.worker.generation:
            return
        results = None
        if self._running is not None:
            results = self._known.get(self._running)
        elif self._volume_running is not None:
            results = self._volumes.get(self._volume_running)
        if results is None:
            return
        if isinstance(event, Opened):
            results.opened[event.side] = event
            results.learn(event.unchanged(0.0, self.session.scan.channels if self.session.scan else 1))
        elif isinstance(event, Progress):
            self._progress = event
            self._tell_soon()
            return
        elif isinstance(event, View):
            results.learn(event)
            if round(event.epsilon * LEVELS) != self.session.level:
                self._tell_soon()
                return
        self._draw.start()

    def _on_failed(self, generation: int, sentence: str) -> None:
        if generation == self.worker.generation:
            # What failed, whatever has been chosen since. A volume says nothing of its slices: they go on.
            if self._running is not None:
                self._refused = self._running.whole
            self._running = None
            self.failed.emit(sentence)

    def _on_finished(self, generation: int) -> None:
        if generation != self.worker.generation:
            return
        if self._running is not None and self._running in self._known:
            self._known[self._running].complete = all_known(self._running, self._known[self._running])
        resume = self._volume_running is not None and not self._cancelled
        self._running = self._volume_running = None
        if resume:
            # The present slice's other ε, which gave way to the volume.
            self.explore()
        if self._running is None:
            self.busy.emit(False)
        self._draw.start()

    def _tell_soon(self) -> None:
        if not self._tell.isActive():
            self._tell.start()

    def _tell_now(self) -> None:
        if self._progress is not None and (self._running or self._volume_running):
            self.progressed.emit(self._progress.done, self._progress.total)
        self._progress = None
        self._draw_critical()
        self.refreshed.emit()

    # --- drawing --------------------------------------------------------------------------------------------

    def _on_level(self) -> None:
        level = self.session.level
        views = [self.results.views.get((side, level)) for side in self.cards_chosen()]
        known = all(view is not None and not view.preview for view in views)
        self._wanted = None if known or level == 0 else level
        # At once, so that the slider's own repaint and the canvas's are one; a timer would come between them.
        self.draw()
        if self._wanted is not None and not self.running and not self.results.complete:
            # Cancelled before it came to this ε.
            self.explore()

    def cards_chosen(self) -> list[Side]:
        """Sides that have a model."""
        return [side for side in SIDES if getattr(self.session, side) is not None]

    def _shown(self, side: Side) -> tuple[View | None, Opened | None]:
        s = self.session
        whole = self._volumes.get((self.key.whole, s.level))
        if whole is not None and (side, s.level) in whole.views:
            return whole.views[(side, s.level)], whole.opened[side]
        results = self.results
        return results.views.get((side, s.level)), results.opened.get(side)

    def opened(self, side: Side) -> Opened | None:
        """The clean answer that the present result is compared with."""
        return self._shown(side)[1]

    def draw(self) -> None:
        """Give the panes what is known at the present ε; what is not known yet keeps the last picture."""
        self._draw.stop()
        s = self.session
        for side in self.cards_chosen():
            view, opened = self._shown(side)
            if view is None or opened is None:
                continue
            self.panes.show(view, opened, limit=2 * s.top / LEVELS / s.gain, title=self.title(side, view))
        self._draw_critical()
        self.refreshed.emit()
        self.drawn.emit()

    def _draw_critical(self) -> None:
        if not self.session.show_critical:
            return
        for side, opened in self.results.opened.items():
            levels = self.results.critical_levels(side)
            if levels is not None:
                self.panes.show_critical(side, opened, levels, self.session.top)

    def title(self, side: Side, view: View) -> str:
        """Name of the mask layer: what it is, at which ε, and how good it is."""
        mark = " (preview)" if view.preview else ""
        # Half the canvas is narrow: with a target, the overlap with that is what counts.
        good = f"Dice {view.dice:.2f}" if view.target_dice is None else f"target {view.target_dice:.2f}"
        opened, scan = self.opened(side), self.session.scan
        width, unit = None, ""
        if opened is not None and scan is not None and preferences().epsilon_unit == "intensity":
            width, unit = opened.window.width, scan.unit
        strength = f"ε {epsilon_words(self.session.level, width, unit)}"
        # Where there is little room, ε is left to the dock.
        titles = (f"{TITLES[side]} · {strength} · {good}{mark}", f"{TITLES[side]} · {good}{mark}")
        short = f"{TITLES[side]} · {good}{' …' if view.preview else ''}"
        return next((title for title in titles if len(title) <= self.panes.letters), short)

    # --- the viewer's slice ---------------------------------------------------------------------------------

    def _step(self) -> int:
        """Index of the slice shown, along the scan's first axis; other layers may start elsewhere in the world."""
        scan, dims = self.session.scan, self.viewer.dims
        axis = dims.ndim - 3
        if scan is None or scan.ndim == 2 or axis < 0:
            return 0
        index: int = round((dims.point[axis] - scan.translate[0]) / scan.spacing[0])
        return min(max(index, 0), scan.shape[0] - 1)

    def _on_step(self) -> None:
        if self.session.scan is not None:
            self.session.index = self._step()

    def _explore_soon(self) -> None:
        self._restart.start()

    def _draw_soon(self, _: Any = None) -> None:
        self._draw.start()


def takes(card: ModelCard, scan: Scan) -> bool:
    """Whether a model is made for such scans."""
    return card.channels == scan.channels and card.ndim <= scan.ndim


def _single_shot(parent: QObject, slot: Callable[[], None], milliseconds: int = 0) -> QTimer:
    timer = QTimer(parent)
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.timeout.connect(slot)
    return timer
