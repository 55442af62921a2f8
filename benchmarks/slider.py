"""How long after a tick of the ε slider the window shows it.

    python benchmarks/slider.py [--scene polyp --scene cardiac] [--models DIR] [--sweeps 3] [--tick 40] [--training]

Opens the demo's window and drags the slider handle through its range with mouse events, a tick every ``--tick``
milliseconds. The first sweep starts as soon as the clean masks are drawn, so that previews are needed; the others
start when every ε is known. A tick counts as shown when the canvas has been composed (``frameSwapped``) with the
masks of its ε or of a later one. Without a display the benchmark starts itself again under xvfb-run, where OpenGL
is drawn by the processor. The last line is JSON.

With ``--training`` the same drags are made twice in one window: without a training, and while one that the train dock
has started, with the defaults of its form on the sample hearts, goes on in its process. The figures of both, and what
the training adds, go to ``benchmarks/results/slider_training.json``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BEAT = 5
"""Milliseconds between heartbeats of the event loop."""
HEARTS = ROOT / "sample_data" / "cardiac_mr_sunnybrook"
TARGET = 200
"""Milliseconds that the 95th percentile may reach while a training goes on."""


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile; NaN of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


@dataclass
class Stopwatch:
    """Longest and total time of some functions, nested calls counted in the outer one too."""

    spent: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def wrap(self, owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start, worked = time.perf_counter(), time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                spent = (1000 * (time.perf_counter() - start), 1000 * (time.thread_time() - worked))
                self.spent[f"{owner.__name__}.{name}"].append(spent)

        setattr(owner, name, timed)

    def longest(self, clock: int) -> tuple[str, float]:
        """The function with the longest call, by the wall (0) or by the processor's time on it (1)."""
        calls = ((name, max(spent[clock] for spent in all_)) for name, all_ in self.spent.items() if all_)
        return max(calls, key=lambda call: call[1], default=("none", 0.0))


@dataclass
class Sweep:
    """What one drag through the range showed, in milliseconds."""

    title: str
    shown: list[float] = field(default_factory=list)
    previews: int = 0
    last: float = float("nan")
    frames: int = 0
    seconds: float = 0.0
    stall: float = 0.0
    ours: tuple[str, float] = ("none", 0.0)
    ours_cpu: tuple[str, float] = ("none", 0.0)
    cpu: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {
            "ticks": len(self.shown),
            "p50": round(percentile(self.shown, 0.5), 1),
            "p95": round(percentile(self.shown, 0.95), 1),
            "last_tick": round(self.last, 1),
            "updates_per_s": round(self.frames / self.seconds, 1) if self.seconds else 0.0,
            "stall": round(self.stall, 1),
            "own_slot": round(self.ours[1], 1),
            "own_slot_name": self.ours[0],
            "own_slot_cpu": round(self.ours_cpu[1], 1),
            "cpu_per_update": round(self.cpu / self.frames, 1) if self.frames else 0.0,
            "previews": self.previews,
        }


class Rig:
    """One demo window under measurement."""

    def __init__(self, scene: str, models: Path | None, stopwatch: Stopwatch) -> None:
        from qtpy.QtCore import Qt, QTimer

        from cease_core.models import find_model
        from napari_cease import app
        from napari_cease.scenes import SCENES

        chosen = SCENES[scene]
        if models is not None:
            chosen = replace(chosen, undefended=str(models / chosen.undefended), defended=str(models / chosen.defended))
        find_model(chosen.undefended)
        self.stopwatch = stopwatch
        self.viewer, self.dock = app.open_window()
        self.explorer = self.dock.explorer
        self.canvas = self.viewer.window._qt_viewer.canvas._scene_canvas.native
        self.beat = QTimer()
        self.beat.setTimerType(Qt.TimerType.PreciseTimer)
        self.beat.setInterval(BEAT)
        self.beat.timeout.connect(self._on_beat)
        self.sweep = Sweep("opening")
        self.pending: list[float] = []
        self.given: list[float] = []
        self.preview = False
        self.explorer.drawn.connect(self._on_drawn)
        self.canvas.frameSwapped.connect(self._on_frame)
        self.before = time.perf_counter()
        self.beat.start()
        app.open_scene(self.viewer, self.dock, chosen)

    # --- what is watched ---

    def _on_beat(self) -> None:
        now = time.perf_counter()
        self.sweep.stall = max(self.sweep.stall, 1000 * (now - self.before) - BEAT)
        self.before = now

    def _on_drawn(self) -> None:
        views = [self.explorer.view(side) for side in self.explorer.cards_chosen()]
        if all(view is not None for view in views):
            self.given += self.pending
            self.pending.clear()
            self.preview = any(view is not None and view.preview for view in views)

    def _on_frame(self) -> None:
        if not self.given:
            return
        now = time.perf_counter()
        self.sweep.frames += 1
        self.sweep.previews += self.preview
        self.sweep.shown += [1000 * (now - tick) for tick in self.given]
        self.sweep.last = 1000 * (now - self.given[-1])
        self.given.clear()

    # --- what is done ---

    def wait(self, until: Callable[[], bool], seconds: float = 300) -> None:
        from qtpy.QtCore import QEventLoop, QTimer

        loop, late = QEventLoop(), time.perf_counter() + seconds
        poll = QTimer()
        poll.setInterval(10)
        poll.timeout.connect(lambda: loop.quit() if until() or time.perf_counter() > late else None)
        poll.start()
        loop.exec()
        poll.stop()
        if not until():
            raise SystemExit(f"not finished after {seconds:.0f} s")

    def pause(self, milliseconds: int) -> None:
        end = time.perf_counter() + milliseconds / 1000
        self.wait(lambda: time.perf_counter() > end)

    def begin(self, title: str) -> None:
        self.sweep = Sweep(title)
        self.stopwatch.spent.clear()
        self.before, self.worked = time.perf_counter(), time.thread_time()

    def end(self) -> Sweep:
        self.sweep.cpu = 1000 * (time.thread_time() - self.worked)
        self.sweep.ours, self.sweep.ours_cpu = self.stopwatch.longest(0), self.stopwatch.longest(1)
        return self.sweep

    def drag(self, title: str, levels: list[int], tick: int) -> Sweep:
        """Drag the handle over ``levels`` and wait until the last one is shown."""
        from qtpy.QtCore import QEvent, QPointF, Qt
        from qtpy.QtGui import QMouseEvent
        from qtpy.QtWidgets import QApplication, QStyle, QStyleOptionSlider

        slider = self.dock.slider

        def centre(level: int) -> QPointF:
            option = QStyleOptionSlider()
            slider.initStyleOption(option)
            option.sliderPosition = level
            rect = slider.style().subControlRect(
                QStyle.ComplexControl.CC_Slider, option, QStyle.SubControl.SC_SliderHandle, slider
            )
            return QPointF(rect.center())

        def send(kind: Any, at: QPointF, button: Any, held: Any) -> None:
            where = QPointF(slider.mapToGlobal(at.toPoint()))
            QApplication.sendEvent(slider, QMouseEvent(kind, at, where, button, held, Qt.KeyboardModifier.NoModifier))

        left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        self.begin(title)
        send(QEvent.Type.MouseButtonPress, centre(slider.value()), left, left)
        start = time.perf_counter()
        for i, level in enumerate(levels):
            now = time.perf_counter()
            if slider.value() != level:
                self.pending.append(now)
            send(QEvent.Type.MouseMove, centre(level), none, left)
            assert slider.value() == level
            due = start + (i + 1) * tick / 1000
            self.wait(lambda due=due: time.perf_counter() >= due)
        self.sweep.seconds = time.perf_counter() - start
        send(QEvent.Type.MouseButtonRelease, centre(slider.value()), left, none)
        self.wait(lambda: not (self.pending or self.given), 60)
        return self.end()

    def baseline(self, rounds: int = 40) -> Sweep:
        """Napari alone: the same layers refreshed with other values, and nothing of ours in between."""
        self.begin("napari alone")
        layers = [
            self.explorer.panes.find(role, side)
            for side in self.explorer.cards_chosen()
            for role in ("mask", "perturbation")
        ]
        place = self.explorer.results.opened["undefended"].place
        start = time.perf_counter()
        for i in range(rounds):
            now = time.perf_counter()
            for layer in layers:
                layer.data[place] = (i % 2) * (1 if layer.data.ndim == len(place) else 120)
                layer.refresh(thumbnail=False, extent=False, highlight=False)
            self.given.append(now)
            self.wait(lambda: not self.given, 30)
        self.sweep.seconds = time.perf_counter() - start
        return self.end()


def watched() -> Stopwatch:
    """A stopwatch on what of ours a tick may call."""
    from napari_cease import explorer, layers
    from napari_cease.widgets import curve, explore

    stopwatch = Stopwatch()
    for owner, names in (
        (explorer.Explorer, ("draw", "_on_event", "_on_level", "_on_finished", "_tell_now", "explore", "_relayout")),
        (explore.AttackExplorer, ("_on_refreshed", "_on_level", "_on_progress", "_on_busy")),
        (layers.Panes, ("show", "open")),
        (curve.DiceCurve, ("_on_click",)),
    ):
        for name in names:
            stopwatch.wrap(owner, name)
    return stopwatch


def drags(rig: Rig, sweeps: int, tick: int) -> list[Sweep]:
    """There and back as soon as the clean masks are drawn, then as often as wanted with every ε known."""
    top = rig.explorer.session.top
    there_and_back = [*range(1, top + 1), *range(top - 1, 0, -1)]
    rig.wait(lambda: len(rig.explorer.results.opened) == 2)
    rig.pause(500)
    results = [rig.drag("first sweep", there_and_back, tick)]
    rig.wait(lambda: rig.explorer.settled)
    rig.pause(500)
    return results + [rig.drag(f"settled {i + 1}", there_and_back, tick) for i in range(sweeps)]


def measure(scene: str, models: Path | None, sweeps: int, tick: int) -> dict[str, Any]:
    """All phases of one scene."""
    rig = Rig(scene, models, watched())
    results = drags(rig, sweeps, tick)
    rig.pause(300)
    results.append(rig.baseline())
    rig.viewer.close()
    return {sweep.title: sweep.figures() for sweep in results}


# --- while a training goes on ---------------------------------------------------------------------------------


def measure_training(scene: str, models: Path | None, sweeps: int, tick: int) -> dict[str, Any]:
    """The drags of one scene without a training and with one, and what that was."""
    from napari_cease.app import open_other_docks

    rig = Rig(scene, models, watched())
    open_other_docks(rig.viewer)
    # Twice, since the first time also compiles shaders and loads libraries.
    drags(rig, 0, tick)
    anew(rig)
    alone = drags(rig, sweeps, tick)
    dock = next(d for d in rig.viewer.window.dock_widgets.values() if type(d).__name__ == "Train")
    rig.begin("the training begins")
    with training(rig, dock) as told:
        begins = rig.end()
        anew(rig)
        before = dock.session.progress
        began = time.perf_counter()
        beside = drags(rig, sweeps, tick)
        took = time.perf_counter() - began
        if not dock.session.alive:
            raise SystemExit(f"the training did not last: {dock.session.told}")
        told["steps_per_s"] = round((dock.session.progress.done - before.done) / took, 2)
    rig.viewer.close()
    pooled = {name: pool(found) for name, found in (("alone", alone), ("training", beside))}
    return {
        "alone": {sweep.title: sweep.figures() for sweep in alone},
        "training": {sweep.title: sweep.figures() for sweep in (begins, *beside)},
        "pooled": pooled,
        "ratio": {key: round(pooled["training"][key] / pooled["alone"][key], 2) for key in pooled["alone"]},
        "run": told,
    }


def anew(rig: Rig) -> None:
    """Let the explorer forget what it knows: another random start, and ε back at 0."""
    session = rig.explorer.session
    rig.wait(lambda: rig.explorer.settled)
    session.level = 0
    session.tune(seed=session.parameters.get("seed", 0) + 1)
    rig.wait(lambda: not rig.explorer.settled)


def pool(sweeps: list[Sweep]) -> dict[str, float]:
    """All ticks of some drags together, and the longest stall of any."""
    shown = [tick for sweep in sweeps for tick in sweep.shown]
    return {
        "p50": round(percentile(shown, 0.5), 1),
        "p95": round(percentile(shown, 0.95), 1),
        "stall": round(max(sweep.stall for sweep in sweeps), 1),
    }


@contextmanager
def training(rig: Rig, dock: Any) -> Iterator[dict[str, Any]]:
    """A real training on the sample hearts under way, from its second epoch on; ended when the block is left."""
    session = dock.session
    session.preset, session.folder, session.epochs = "at", HEARTS, 10**6
    rig.wait(lambda: dock.trainer.present is not None)
    dock.start.click()
    try:
        rig.wait(lambda: len(session.history) > 0 or not session.alive)
        if not session.alive:
            raise SystemExit(session.told)
        config = dock.trainer.present.recipe.config if dock.trainer.present else None
        process = dock.trainer.run._detached.find()
        yield {
            "network": session.architecture,
            "patch": list(config.patch) if config else None,
            "batch": config.batch_size if config else None,
            "threads": dock.trainer.run.job().threads,
            "nice": process.nice() if process is not None else None,
        }
    finally:
        # Before the window closes, which would ask what becomes of a training.
        dock.stop.click()
        rig.wait(lambda: not session.alive)


def training_table(found: dict[str, dict[str, Any]]) -> str:
    """The pooled figures for a reader."""
    lines = [f"{'':<12}{'':<12}{'p50':>8}{'p95':>8}{'stall':>8}"]
    for scene, of_scene in found.items():
        for name, figures in (*of_scene["pooled"].items(), ("ratio", of_scene["ratio"])):
            lines.append(f"{scene:<12}{name:<12}" + "".join(f"{figures[key]:>8}" for key in ("p50", "p95", "stall")))
    return "\n".join(lines)


def main_training(scenes: list[str], models: Path | None, sweeps: int, tick: int) -> None:
    """Measure, tell, and keep the figures."""
    from provenance import write_result

    before = os.getloadavg()[0]
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="cease-slider-") as scratch:
        os.environ["CEASE_MODELS"] = str(Path(scratch) / "models")
        for scene in scenes:
            found[scene] = measure_training(scene, models, sweeps, tick)
    print(training_table(found))
    worst = max(of_scene["pooled"]["training"]["p95"] for of_scene in found.values())
    print(f"p95 while a training goes on: {worst} ms; {'under' if worst < TARGET else 'NOT under'} {TARGET} ms")
    load = {"before": round(before, 1), "after": round(os.getloadavg()[0], 1)}
    path = write_result("slider_training", {"target_ms": TARGET, "tick_ms": tick, "load": load, "scenes": found})
    print(path.relative_to(ROOT))


def table(scene: str, phases: dict[str, dict[str, Any]]) -> str:
    """The figures for a reader."""
    columns = ("p50", "p95", "last", "upd/s", "cpu/upd", "stall", "ours", "ours cpu")
    head = f"{scene:<14}" + "".join(f"{column:>9}" for column in columns) + "  longest of ours"
    lines = [head, "-" * len(head)]
    keys = ("p50", "p95", "last_tick", "updates_per_s", "cpu_per_update", "stall", "own_slot", "own_slot_cpu")
    for title, f in phases.items():
        lines.append(f"{title:<14}" + "".join(f"{f[key]:>9}" for key in keys) + f"  {f['own_slot_name']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", action="append", help="polyp, cardiac or hippocampus; may be repeated")
    parser.add_argument("--models", type=Path, help="folder with the scene's models, by default the shipped ones")
    parser.add_argument("--sweeps", type=int, default=3, help="drags after everything is known")
    parser.add_argument("--tick", type=int, default=40, help="milliseconds between ticks")
    parser.add_argument("--training", action="store_true", help="the same while a training goes on, and without")
    args = parser.parse_args()
    from napari_cease import app

    if not app._has_display():
        command = ["xvfb-run", "-a", "-s", f"-screen 0 {app.SCREEN}", sys.executable, __file__, *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, check=False).returncode)
    chosen = args.scene or ["polyp", "cardiac"]
    if args.training:
        main_training(chosen, args.models, args.sweeps, args.tick)
        return
    before = os.getloadavg()
    scenes = {}
    for scene in chosen:
        scenes[scene] = measure(scene, args.models, args.sweeps, args.tick)
        print(table(scene, scenes[scene]), end="\n\n", flush=True)
    after = os.getloadavg()
    print("ms; p50 and p95 from tick to composed frame, last: the last tick's; stall: longest gap of the event loop;")
    print("ours: longest single call into napari_cease, with the napari calls it makes; cpu: time that the processor")
    print("really worked on the GUI thread, which other programs on the machine do not change.")
    load = statistics.fmean((before[0], after[0]))
    print(f"load average {before[0]:.1f} before, {after[0]:.1f} after, on {os.cpu_count()} cores")
    print(json.dumps({"scenes": scenes, "load": round(load, 1), "cores": os.cpu_count(), "tick_ms": args.tick}))


if __name__ == "__main__":
    main()
