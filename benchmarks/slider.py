"""How long after a tick of the ε slider the window shows it.

    python benchmarks/slider.py [--scene polyp --scene cardiac] [--models DIR] [--sweeps 3] [--tick 40]

Opens the demo's window and drags the slider handle through its range with mouse events, a tick every ``--tick``
milliseconds. The first sweep starts as soon as the clean masks are drawn, so that previews are needed; the others
start when every ε is known. A tick counts as shown when the canvas has been composed (``frameSwapped``) with the
masks of its ε or of a later one. Without a display the benchmark starts itself again under xvfb-run, where OpenGL
is drawn by the processor. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BEAT = 5
"""Milliseconds between heartbeats of the event loop."""


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


def measure(scene: str, models: Path | None, sweeps: int, tick: int) -> dict[str, Any]:
    """All phases of one scene."""
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
    rig = Rig(scene, models, stopwatch)
    top = rig.explorer.session.top
    there_and_back = [*range(1, top + 1), *range(top - 1, 0, -1)]
    rig.wait(lambda: len(rig.explorer.results.opened) == 2)
    rig.pause(500)
    results = [rig.drag("first sweep", there_and_back, tick)]
    rig.wait(lambda: rig.explorer.settled)
    rig.pause(500)
    results += [rig.drag(f"settled {i + 1}", there_and_back, tick) for i in range(sweeps)]
    rig.pause(300)
    results.append(rig.baseline())
    rig.viewer.close()
    return {sweep.title: sweep.figures() for sweep in results}


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
    args = parser.parse_args()
    from napari_cease import app

    if not app._has_display():
        command = ["xvfb-run", "-a", "-s", f"-screen 0 {app.SCREEN}", sys.executable, __file__, *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, check=False).returncode)
    before = os.getloadavg()
    scenes = {}
    for scene in args.scene or ["polyp", "cardiac"]:
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
