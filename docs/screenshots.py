"""Draw every picture of the README and the guide: ``make screenshots`` (or ``python docs/screenshots.py [PART …]``).

Where ``CEASE_PICTURES`` names a folder, the pictures go there and those of the documentation stay as they are.

Each picture is the whole napari window (or the list of a box), driven as a user would drive it. Parts are the demo
scenes (``polyp``, ``cardiac``, ``hippocampus``) and the docks (``explorer``, ``train``, ``audit``, ``models``), each
dock at 1280 × 800 in dark and in light, and at 2560 × 1440. Trainings and audits are real ones on sample scans, in a
library that is thrown away. On Linux the windows are drawn off-screen if Xvfb is installed, whatever display there is;
the report of an audit is drawn by Chromium, or left as it is where there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from qtpy.QtCore import QEventLoop, Qt, QTimer
from qtpy.QtWidgets import QApplication, QDockWidget

ROOT = Path(__file__).parents[1]
IMAGES = Path(os.environ.get("CEASE_PICTURES") or ROOT / "docs" / "images").absolute()
HEARTS = ROOT / "sample_data" / "cardiac_mr_sunnybrook"
SCREEN = "2560x1440x24"
SMALL, LARGE = (1280, 800), (2560, 1440)
MOST = 600_000
"""Bytes of a picture; one that has more gets a palette."""
REPORT_SIZE = (1280, 1170)
TASKS = ("inpainting", "sobel")
"""Auxiliary tasks of the shipped heart model: so short a training is too short to choose any."""
INSIDE = "CEASE_PICTURES_OFF_SCREEN"

Step = Callable[[Any, Any], None]


# --- scenes of the explorer -----------------------------------------------------------------------------------


def _level(level: int) -> Step:
    return lambda viewer, dock: dock.slider.setValue(level)


def _adversarial(viewer: Any, dock: Any) -> None:
    dock.perturbation.setChecked(False)
    dock.adversarial.setChecked(True)


def _perturbation(viewer: Any, dock: Any) -> None:
    dock.adversarial.setChecked(False)
    dock.perturbation.setChecked(True)
    dock.gain.setValue(6)


def _no_map(viewer: Any, dock: Any) -> None:
    dock.perturbation.setChecked(False)


def _overlay(viewer: Any, dock: Any) -> None:
    dock.split.setChecked(False)


def _volume(viewer: Any, dock: Any) -> None:
    dock.whole.click()


def _critical(viewer: Any, dock: Any) -> None:
    from napari.layers import Labels

    dock.perturbation.setChecked(False)
    dock.critical.setChecked(True)
    # The map's orange is close to the mask's and the reference's; at no opacity the panes keep their titles.
    for layer in viewer.layers:
        if isinstance(layer, Labels):
            layer.opacity = 0


def _goal(viewer: Any, dock: Any) -> None:
    """Make the mask grow, changing nothing but the inside of an ellipse drawn around it."""
    scan, index = dock.session.scan, dock.session.index
    rows, columns = dock.explorer.labels_layer.data[index].nonzero()
    top, bottom, left, right = rows.min() - 5, rows.max() + 5, columns.min() - 5, columns.max() + 5
    dock.region.value = viewer.add_shapes(
        [[(index, *corner) for corner in ((top, left), (top, right), (bottom, right), (bottom, left))]],
        shape_type="ellipse",
        name="Ellipse",
        face_color="transparent",
        edge_color="#56d4dd",
        edge_width=0.6,
        opacity=1,
        scale=scan.spacing,
        translate=scan.translate,
        units=dock.explorer.scan_layer.units,
    )
    dock.target.value = "grow"
    dock.goal.expand(animate=False)


def _open_attacks(viewer: Any, dock: Any) -> None:
    dock.attack.showPopup()


# scene → pictures in order; each takes its steps from where the last one ended.
SCENE_PICTURES: dict[str, list[tuple[str, list[Step]]]] = {
    "polyp": [
        ("polyp-clean", [_level(0)]),
        ("polyp-attacked", [_level(8), _no_map]),
        ("polyp-perturbation", [_perturbation]),
        ("polyp-adversarial", [_adversarial]),
        ("attack-choices", [_open_attacks]),
    ],
    "cardiac": [
        ("cardiac-slice", [_level(8)]),
        ("cardiac-volume", [_volume]),
        ("cardiac-critical", [_critical, _goal]),
    ],
    "hippocampus": [("hippocampus-volume", [_level(8)]), ("hippocampus-overlay", [_overlay])],
}


def draw_scene(scene: str) -> None:
    """The pictures of a demo scene."""
    from napari_cease.app import open_scene, wait_until_settled
    from napari_cease.scenes import SCENES

    viewer, dock = window("AttackExplorer")
    open_scene(viewer, dock, SCENES[scene])
    for name, steps in SCENE_PICTURES[scene]:
        for step in steps:
            step(viewer, dock)
        wait_until_settled(dock)
        popup = QApplication.activePopupWidget()
        path = IMAGES / f"{name}.png"
        if popup is None:
            keep(Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)), path)
        else:
            popup.grab().save(str(path))
            popup.close()
            keep(Image.open(path), path)
    close(viewer)


# --- docks ----------------------------------------------------------------------------------------------------


def draw_explorer() -> None:
    """Both classes of the hippocampus, a curve for each, and earlier runs."""
    from napari_cease.app import open_scene, wait_until_settled
    from napari_cease.scenes import SCENES

    viewer, dock = window("AttackExplorer")
    open_scene(viewer, dock, SCENES["hippocampus"])
    dock.perturbation.setChecked(False)
    for attack in ("fgsm", "noise", "pgd"):
        dock.session.choose_attack(attack)
        dock.slider.setValue(8)
        wait_until_settled(dock)
        wait(1)  # a run counts once nothing changes any more
    dock.curves.classes.setCurrentIndex(1)
    dock.history.fold.setChecked(True)
    shoot(viewer, "explorer", lambda: to_end(dock))
    close(viewer)


def draw_train() -> None:
    """A defence of the shipped undefended heart model, on a few sample scans, some epochs from its end."""
    from cease_core.models.library import SHIPPED

    viewer, dock = window("Train")
    viewer.open_sample("napari-cease", "cardiac")
    s = dock.session
    s.folder, s.start, s.title = HEARTS, SHIPPED / "cardiac-undefended", "Six hearts, CEASE"
    s.preset, s.tasks, s.test, s.ndim, s.patch, s.batch_size = "cease", TASKS, 0.3, 2, (64, 64), 4
    s.epochs, s.steps, s.validate_every = 16, 3, 1
    wait_until(lambda: dock.trainer.present is not None)
    dock.start.click()
    wait_until(lambda: len(s.history) >= 10 or not s.alive, 1800)
    shoot(viewer, "train", sizes=(SMALL,))
    wait_until(lambda: not s.alive, 900)
    if s.state != "finished":
        raise SystemExit(s.told)
    shoot(viewer, "train", sizes=(LARGE,))
    close(viewer)


def draw_audit() -> None:
    """A quick audit of both heart models, a row of it opened in the explorer, and its report."""
    from cease_core.models.library import SHIPPED
    from napari_cease.app import wait_until_settled
    from napari_cease.docks import explorer_of

    viewer, dock = window("Audit")
    run_audit(dock, (SHIPPED / "cardiac-undefended", SHIPPED / "cardiac-defended"))
    rows = dock.session.rows
    row = next(r for r in rows if r.attack == "pgd" and r.model == "cardiac-undefended" and r.epsilon > 7 / 255)
    dock.view.chosen.emit(row)
    wait_until_settled(explorer_of(viewer))
    front(dock)
    shoot(viewer, "audit", lambda: dock.verticalScrollBar().setValue(dock.verdict_part.y()))
    draw_report(dock.auditor.run.folder)
    close(viewer)


def draw_models() -> None:
    """The library by robustness, with the card of a model that was trained and audited here, and of a shipped one."""
    from cease_core.models.library import SHIPPED, user_library
    from napari_cease.app import wait_until_settled
    from napari_cease.docks import explorer_of

    if not list(user_library().glob("*/card.json")):
        draw_train()
    own = next(user_library().glob("*/card.json")).parent
    viewer, auditing = window("Audit")
    run_audit(auditing, (own,), steps=10, longer=20, restarts=1, queries=50)
    dock = front(next(d for d in viewer.window.dock_widgets.values() if type(d).__name__ == "Models"))
    auditing.auditor.let_go()
    viewer.open_sample("napari-cease", "cardiac")
    for folder in (SHIPPED / "cardiac-undefended", own):
        dock.choose(folder)
        dock.try_button.click()
    explorer = explorer_of(viewer)
    explorer.slider.setValue(8)
    wait_until_settled(explorer)
    dock.view.sortByColumn(1, Qt.SortOrder.DescendingOrder)
    front(dock)
    shoot(viewer, "models", sizes=(SMALL,))
    dock.choose(SHIPPED / "cardiac-defended")
    shoot(viewer, "models", sizes=(LARGE,))
    close(viewer)


def run_audit(dock: Any, models: tuple[Path, ...], **settings: Any) -> None:
    """Let the audit dock audit models on the sample hearts."""
    s = dock.session
    s.models, s.data = models, HEARTS
    if settings:
        s.tune(**settings)
    wait_until(lambda: dock.auditor.present is not None)
    dock.start.click()
    wait_until(lambda: s.folder is not None and not s.alive, 1800)
    if s.state != "finished":
        raise SystemExit(s.told)


def draw_report(audit: Path) -> None:
    """The first screens of an audit's report, as a reader sees them."""
    path = IMAGES / "audit-report.png"
    command = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if command is None:
        print(f"No Chromium is installed: {path.name} stays as it is.")
        return
    with tempfile.TemporaryDirectory() as scratch:
        script = ROOT / "benchmarks" / "report_browser.py"
        subprocess.run([sys.executable, script, audit, "--out", scratch, "--browser", command], check=False)
        keep(Image.open(Path(scratch) / f"{REPORT_SIZE[0]}-light.png").crop((0, 0, *REPORT_SIZE)), path)


PARTS: dict[str, Callable[[], None]] = {
    **{scene: lambda scene=scene: draw_scene(scene) for scene in SCENE_PICTURES},  # type: ignore[misc]
    "explorer": draw_explorer,
    "train": draw_train,
    "audit": draw_audit,
    "models": draw_models,
}


# --- windows and files ----------------------------------------------------------------------------------------


def window(name: str) -> tuple[Any, Any]:
    """A window as the demo opens it, with one of the docks in front."""
    from napari_cease.app import open_other_docks, open_window

    viewer, _ = open_window()
    open_other_docks(viewer)
    dock = next(d for d in viewer.window.dock_widgets.values() if type(d).__name__ == name)
    return viewer, front(dock)


def front(dock: Any) -> Any:
    """Show a dock that lies behind others."""
    from napari_cease.docks import to_front

    to_front(dock)
    return dock


def shoot(
    viewer: Any,
    name: str,
    before: Callable[[], None] = lambda: None,
    sizes: tuple[tuple[int, int], ...] = (SMALL, LARGE),
) -> None:
    """The window in dark and light, and large."""
    for size in sizes:
        for theme in ("dark", "light") if size == SMALL else ("dark",):
            viewer.theme = theme
            viewer.window.resize(*size)
            widen(viewer, size[0] // 4)
            wait(0.5)
            viewer.reset_view()
            before()
            wait(0.5)
            drawn = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False))
            if drawn.size != size:
                raise SystemExit(f"The window of {name} is {drawn.size} and not {size}: something in it is too large.")
            keep(drawn, IMAGES / f"{name}-{theme if size == SMALL else 'large'}.png")


def widen(viewer: Any, width: int) -> None:
    """Drag the edge of the docks on the right."""
    from napari_cease.widgets.window import main_window

    main = main_window(viewer)
    docks = [
        d for d in main.findChildren(QDockWidget) if main.dockWidgetArea(d) == Qt.DockWidgetArea.RightDockWidgetArea
    ]
    main.resizeDocks(docks, [width] * len(docks), Qt.Orientation.Horizontal)


def to_end(area: Any) -> None:
    """Scroll to the end."""
    bar = area.verticalScrollBar()
    bar.setValue(bar.maximum())


def keep(drawn: Image.Image, path: Path) -> None:
    """Write a picture, small enough to be loaded with a page."""
    drawn = drawn.convert("RGB")
    drawn.save(path, optimize=True)
    if path.stat().st_size > MOST:
        drawn.quantize(256, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)
    print(f"{path.name}: {drawn.width} x {drawn.height}, {path.stat().st_size / 1000:.0f} kB", flush=True)


def wait(seconds: float) -> None:
    """Let the window go on for a while."""
    loop = QEventLoop()
    QTimer.singleShot(round(seconds * 1000), loop.quit)
    loop.exec()


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Let the window go on until something is true."""
    for _ in range(round(seconds / 0.1)):
        if true():
            return
        wait(0.1)
    raise SystemExit(f"This took longer than {seconds:.0f} s; try again on a faster or idle machine.")


def close(viewer: Any) -> None:
    """Close a window and end what its docks do."""
    for dock in list(viewer.window.dock_widgets.values()):
        if hasattr(dock, "shutdown"):
            dock.shutdown()
    viewer.close()


def main() -> None:
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := [part for part in wanted if part not in PARTS]:
        raise SystemExit(f"There is no part {', '.join(unknown)}; choose from {', '.join(PARTS)}.")
    if sys.platform == "linux" and not os.environ.get(INSIDE):
        if shutil.which("xvfb-run") is not None:
            command = ["xvfb-run", "-a", "-s", f"-screen 0 {SCREEN}", sys.executable, __file__, *wanted]
            raise SystemExit(subprocess.run(command, env=os.environ | {INSIDE: "1"}, check=False).returncode)
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise SystemExit("There is no display, and no virtual one either; install it: apt-get install xvfb xauth")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cease-pictures-") as scratch:
        # Neither models nor settings of the user are to be seen; napari looks for its own when it is imported.
        os.environ["CEASE_MODELS"] = str(Path(scratch) / "models")
        os.environ["CEASE_SESSIONS"] = str(Path(scratch) / "sessions")
        os.environ["NAPARI_CONFIG"] = str(Path(scratch) / "napari.yaml")
        from napari.settings import get_settings

        get_settings().application.gui_notification_level = "warning"
        for part in wanted:
            PARTS[part]()


if __name__ == "__main__":
    main()
