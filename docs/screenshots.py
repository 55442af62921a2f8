"""Draw every picture of the README and the docs: ``make screenshots`` (or ``python docs/screenshots.py``).

Each picture is the whole napari window on a demo scene (or the list of a box), driven as a user would drive it, after
the attack has settled. Without a display the windows are drawn off-screen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari.layers import Labels

IMAGES = Path(__file__).parent / "images"
SCREEN = "1600x1000x24"

Step = Callable[[Any, Any], None]


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
PICTURES: dict[str, list[tuple[str, list[Step]]]] = {
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


def main() -> None:
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        if shutil.which("xvfb-run") is None:
            raise SystemExit("There is no display, and no virtual one either; install it: apt-get install xvfb xauth")
        command = ["xvfb-run", "-a", "-s", f"-screen 0 {SCREEN}", sys.executable, __file__, *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, check=False).returncode)

    from qtpy.QtWidgets import QApplication

    from napari_cease.app import open_scene, open_window, wait_until_settled
    from napari_cease.scenes import SCENES

    IMAGES.mkdir(exist_ok=True)
    for scene in sys.argv[1:] or PICTURES:
        viewer, dock = open_window()
        open_scene(viewer, dock, SCENES[scene])
        for name, steps in PICTURES[scene]:
            for step in steps:
                step(viewer, dock)
            wait_until_settled(dock)
            path = IMAGES / f"{name}.png"
            popup = QApplication.activePopupWidget()
            if popup is None:
                viewer.screenshot(str(path), canvas_only=False, flash=False)
            else:
                popup.grab().save(str(path))
                popup.close()
            print(path)
        dock.shutdown()
        viewer.close()


if __name__ == "__main__":
    main()
