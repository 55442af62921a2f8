"""Seconds from the command to a window that can be used.

    python benchmarks/startup.py [--scene polyp] [--models DIR] [--runs 3]

Each run is a process of its own that opens the demo's window. Clocks start when the process is started and stop
when the canvas has been composed with the scan, and with the first mask. The import times are those of fresh
processes too. Without a display the runs are started under xvfb-run, whose own start is not counted. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
IMPORTS = ("numpy", "torch", "monai.networks.nets", "napari.viewer", "pyqtgraph", "napari_cease.widgets.explore")


def one_run(scene: str, models: Path | None, started: float) -> dict[str, float]:
    """Open the demo in this process; ``started`` is the wall clock when it was launched."""
    marks = {"interpreter": time.time() - started}
    import napari.viewer  # noqa: F401  (napari itself imports nothing until it is asked)

    marks["napari imported"] = time.time() - started
    from qtpy.QtCore import QEventLoop, QTimer

    from napari_cease import app
    from napari_cease.scenes import SCENES

    viewer, dock = app.open_window()
    marks["window made"] = time.time() - started
    chosen = SCENES[scene]
    if models is not None:
        chosen = replace(chosen, undefended=str(models / chosen.undefended), defended=str(models / chosen.defended))
    drawn: list[float] = []
    dock.explorer.drawn.connect(lambda: drawn.append(time.time()) if dock.explorer.results.opened else None)
    loop = QEventLoop()

    def frame() -> None:
        if len(viewer.layers):
            marks.setdefault("scan painted", time.time() - started)
        if drawn:
            marks.setdefault("mask painted", time.time() - started)
            loop.quit()

    app.open_scene(viewer, dock, chosen)
    viewer.window._qt_viewer.canvas._scene_canvas.native.frameSwapped.connect(frame)
    QTimer.singleShot(120_000, loop.quit)
    loop.exec()
    viewer.close()
    return marks


def imports() -> dict[str, float]:
    """Seconds that each import adds, in the order of `IMPORTS`, in one fresh process."""
    code = (
        "import importlib, json, time\n"
        f"spent = {{}}\nfor name in {IMPORTS!r}:\n"
        "    start = time.perf_counter(); importlib.import_module(name)\n"
        "    spent[name] = round(time.perf_counter() - start, 2)\n"
        "print(json.dumps(spent))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    spent: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", default="polyp")
    parser.add_argument("--models", type=Path, help="folder with the scene's models, by default the shipped ones")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        started = float(os.environ["STARTED"])
        print(json.dumps(one_run(args.scene, args.models, started)))
        sys.stdout.flush()
        os._exit(0)
    from napari_cease import app

    if not app._has_display():
        command = ["xvfb-run", "-a", "-s", f"-screen 0 {app.SCREEN}", sys.executable, __file__, *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, check=False).returncode)
    spent = imports()
    runs = []
    for _ in range(args.runs):
        command = [sys.executable, __file__, "--one", *sys.argv[1:]]
        environment = os.environ | {"STARTED": repr(time.time())}
        said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(said.stdout.splitlines()[-1]))
    median = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    load = os.getloadavg()[0]
    print(f"seconds from the command, median of {args.runs} ({args.scene}, load {load:.1f} on {os.cpu_count()} cores)")
    for name, seconds in median.items():
        print(f"  {name:<34}{seconds:>7.2f}")
    print("imports, each after the ones above it")
    for name, seconds in spent.items():
        print(f"  {name:<34}{seconds:>7.2f}")
    print(json.dumps({"startup": median, "imports": spent, "load": round(load, 1), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
