"""The console script ``napari-cease``: napari with a scan and the attack explorer already open.

Typer commands stay thin; everything heavy is imported when a window is really needed, so that ``--help`` and a
wrong argument answer at once.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cease_core.errors import CeaseError
from napari_cease.scenes import DEMO_LEVEL, SCENES, Scene

SCREEN = "1600x1000x24"
WINDOW = (1560, 940)
OTHER_DOCKS = ("Train", "Audit", "Models")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="How little does it take to break this mask, and does a defence really help?",
)


def main() -> None:
    """Run the command line; a `CeaseError` becomes its sentence and exit code 2."""
    try:
        app(standalone_mode=True)
    except CeaseError as error:
        typer.echo(str(error), err=True)
        raise SystemExit(2) from None


@app.command()
def demo(
    scene: Annotated[str, typer.Argument(help=f"One of: {', '.join(SCENES)}.")] = "polyp",
    picture: Annotated[Path, typer.Option(help="Where the picture goes when there is no display.")] = Path(
        "napari-cease-demo.png"
    ),
) -> None:
    """Open a sample scan with an undefended and a defended model.

    Without a display the window is drawn off-screen, the slider driven to 8/255, and the picture written.
    """
    if scene not in SCENES:
        raise CeaseError(f"there is no scene {scene!r}; choose one of {', '.join(SCENES)}.")
    if not _has_display():
        _relaunch_off_screen(["demo", scene, "--picture", str(picture)])
        return
    viewer, explorer = open_window()
    open_scene(viewer, explorer, SCENES[scene])
    explorer.slider.setValue(DEMO_LEVEL)
    open_other_docks(viewer)
    if os.environ.get(OFF_SCREEN):
        write_picture(viewer, explorer, picture)
        typer.echo(f"No display: the window was drawn off-screen; the picture is {picture.resolve()}")
        return
    _run()


@app.command("open")
def open_scan(
    scan: Annotated[Path, typer.Argument(help="A scan, or a folder of DICOM slices.")],
    labels: Annotated[Path | None, typer.Option(help="Reference mask on the scan's grid.")] = None,
    model: Annotated[str | None, typer.Option(help="Undefended model: a name or a folder.")] = None,
    defended: Annotated[str | None, typer.Option(help="Defended model: a name or a folder.")] = None,
    frame: Annotated[int | None, typer.Option(help="Volume of a time series, counted from 0.")] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Interpolate a tilted or uneven DICOM series onto an even grid.")
    ] = False,
) -> None:
    """Open a scan of your own in the attack explorer."""
    from cease_core.io import read_labels, read_scan
    from cease_core.models import find_model, open_model

    # Everything that can be wrong is found out before a window appears.
    image = read_scan(scan, frame=frame, resample=resample)
    mask = None if labels is None else read_labels(labels, like=image)
    folders = [None if name is None else find_model(name) for name in (model, defended)]
    for folder in folders:
        if folder is not None:
            open_model(folder).check(image)
    if not _has_display():
        raise CeaseError("there is no display to open a window on; log in with a desktop, or run it under xvfb-run -a.")
    viewer, explorer = open_window()
    show_scan(viewer, explorer, image, mask, *folders)
    open_other_docks(viewer)
    _run()


# --- windows ------------------------------------------------------------------------------------------------

OFF_SCREEN = "NAPARI_CEASE_OFF_SCREEN"


def _has_display() -> bool:
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _relaunch_off_screen(arguments: list[str]) -> None:
    if shutil.which("xvfb-run") is None:
        raise CeaseError("there is no display, and no virtual one either; install it with: apt-get install xvfb xauth")
    command = ["xvfb-run", "-a", "-s", f"-screen 0 {SCREEN}", sys.executable, "-m", "napari_cease.app", *arguments]
    environment = os.environ | {OFF_SCREEN: "1"}
    raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


def open_window() -> tuple[Any, Any]:
    import napari
    import torch

    # One core stays free for the window, or the slider stutters while an attack runs.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    viewer = napari.Viewer(title="napari-cease", show=True)
    viewer.window.resize(*WINDOW)
    return viewer, _open_dock(viewer, "Attack explorer")


def open_other_docks(viewer: Any) -> None:
    """Lay the docks that train, audit and keep models behind the explorer, as tabs."""
    from napari_cease.docks import explorer_of

    for name in OTHER_DOCKS:
        _open_dock(viewer, name)
    explorer_of(viewer)


def _open_dock(viewer: Any, name: str) -> Any:
    wrapper, dock = viewer.window.add_plugin_dock_widget("napari-cease", name, tabify=True)
    # Four tabs have no room for the plugin's name.
    wrapper.setWindowTitle(name)
    return dock


def _run() -> None:
    import napari

    napari.run()


def show_scan(viewer: Any, explorer: Any, scan: Any, labels: Any, undefended: Any, defended: Any) -> None:
    """Add a scan and its mask as layers and choose them, and the models, in the explorer."""
    from napari_cease.readers import scan_layers
    from napari_cease.samples import labels_layer

    layers = [viewer._add_layer_from_data(*data)[0] for data in scan_layers(scan)]
    mask = None
    if labels is not None:
        mask = viewer._add_layer_from_data(*labels_layer(labels, scan))[0]
    explorer.choose(layers[0], mask, undefended, defended)


def open_scene(viewer: Any, explorer: Any, scene: Scene) -> None:
    """Show a demo scene: its held-out case, reference, models, and the slice that says most."""
    from cease_core.io import read_labels, read_scan
    from cease_core.models import find_model

    scan = read_scan(scene.scan_path)
    labels = read_labels(scene.labels_path, like=scan)
    show_scan(viewer, explorer, scan, labels, find_model(scene.undefended), find_model(scene.defended))
    if scan.ndim == 3:
        # The slice with the largest structure.
        viewer.dims.set_current_step(0, int((labels > 0).sum(axis=(1, 2)).argmax()))


def write_picture(viewer: Any, explorer: Any, path: Path, seconds: float = 180.0) -> None:
    """Wait until the attack at the present ε is done and drawn, then save the whole window."""
    wait_until_settled(explorer, seconds)
    viewer.screenshot(str(path), canvas_only=False, flash=False)


def wait_until_settled(explorer: Any, seconds: float = 180.0) -> None:
    """Run the event loop until the ladder is complete and the window painted.

    Raises
    ------
    CeaseError
        If that takes longer than ``seconds``.
    """
    from qtpy.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    poll = QTimer()
    poll.setInterval(50)
    poll.timeout.connect(lambda: loop.quit() if explorer.explorer.settled else None)
    late = QTimer()
    late.setSingleShot(True)
    late.timeout.connect(lambda: loop.exit(1))
    poll.start()
    late.start(int(seconds * 1000))
    if loop.exec() != 0:
        raise CeaseError(f"the attack was not finished after {seconds:.0f} s; try again on a faster or idle machine.")
    QTimer.singleShot(300, loop.quit)
    loop.exec()


if __name__ == "__main__":
    main()
