"""Models that threshold brightness, small scans, and a viewer with the dock in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from napari.components import ViewerModel
from pydantic import PrivateAttr
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget, QMainWindow

from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule, save_model
from cease_core.models.card import PALETTE
from cease_core.scan import LabelArray, Scan, Window
from napari_cease.jobs.exploration import SIDES

FIXED = WindowRule(kind="fixed", low=0, high=255)


def threshold_model(name: str, title: str, *, channels: int = 3, gain: float = 6.0, window: WindowRule = FIXED) -> Any:
    """A U-Net with hand-set weights: bright pixels are the class, so brightness near the threshold is attackable."""
    card = ModelCard(
        name=name,
        title=title,
        architecture="unet",
        architecture_args={"channels": (2, 2)},
        ndim=2,
        channels=channels,
        classes=(ClassInfo(id=1, name="bright", color=PALETTE[0]),),
        mode="binary",
        window=window,
    )
    model = SegmentationModel(card)
    state = {k: torch.zeros_like(v) for k, v in model.backbone.state_dict().items()}
    for key in state:
        if key.endswith("running_var") or ".N.weight" in key:
            state[key] += 1
    state["net.model.0.conv.weight"][0] = 1 / (9 * channels)
    # Linear interpolation, which a transposed convolution can do.
    ramp = torch.tensor([0.5, 1.0, 0.5])
    state["net.model.2.0.conv.weight" if "net.model.2.0.conv.weight" in state else "net.model.2.conv.weight"][0, 0] = (
        gain * ramp[:, None] * ramp
    )
    model.backbone.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with models for pictures and for volumes; the defended ones differ in gain alone."""
    folder = tmp_path_factory.mktemp("models")
    percentile = WindowRule(kind="percentile", low=0.5, high=99.5)
    for side, gain in (("undefended", 6.0), ("defended", 2.0)):
        for scene, options in {"polyp": {}, "cardiac": {"channels": 1, "window": percentile}}.items():
            model = threshold_model(f"{scene}-{side}", f"{scene.title()}, {side} (test)", gain=gain, **options)
            save_model(model, folder / model.card.name)
    return folder


@pytest.fixture(autouse=True)
def _own_library(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEASE_MODELS", str(library))
    monkeypatch.setenv("CEASE_SESSIONS", str(tmp_path / "own sessions"))


@pytest.fixture
def picture() -> tuple[Scan, LabelArray]:
    """A colour picture, 48 × 64: a bright disc on a ramp that crosses the models' threshold."""
    y, x = np.mgrid[:48, :64]
    grey = 90 + x + 60 * ((y - 24) ** 2 + (x - 24) ** 2 < 150)
    image = np.stack([grey, grey - 4, grey + 4]).astype(np.float32).clip(0, 255)
    labels = (grey > 128).astype(np.int32)
    return Scan(
        image, np.eye(4), name="picture", unit="8-bit", length_unit="pixel", window=Window(0, 255), rgb=True
    ), labels


@pytest.fixture
def volume() -> tuple[Scan, LabelArray]:
    """A volume of 5 slices, 32 × 40, with an anisotropic voxel that does not start at the origin."""
    z, y, x = np.mgrid[:5, :32, :40]
    image = (200 + 10 * x + 5 * z + 3 * y).astype(np.float32)
    affine = np.diag([8.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = (40, -10, 5)
    labels = (image > np.median(image)).astype(np.int32)
    return Scan(image[None], affine, name="volume"), labels


def worker_threads() -> list[threading.Thread]:
    """The docks' threads that are alive."""
    return [t for t in threading.enumerate() if t.name.startswith("cease-")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in worker_threads():
        thread.join(10)
    assert not worker_threads()


@pytest.fixture(autouse=True)
def _no_widget_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a napari window that was closed: its fixture looks, and fails where something is."""
    monkeypatch.setenv("NAPARI_STRICT_QT", "raise")


Show = Callable[[tuple[Scan, LabelArray | None]], tuple[Any, Any]]


@pytest.fixture
def show_layers() -> Show:
    """Adds a scan, and its mask, to a viewer as our readers do."""

    def show(viewer: Any, scan: Scan, labels: LabelArray | None = None) -> tuple[Any, Any]:
        from napari_cease.readers import scan_layers
        from napari_cease.samples import labels_layer

        (image,) = [viewer._add_layer_from_data(*data)[0] for data in scan_layers(scan)]
        mask = None
        if labels is not None:
            mask = viewer._add_layer_from_data(*labels_layer(labels, scan, {1: "bright"}))[0]
        return image, mask

    return show  # type: ignore[return-value]


class Windowless(ViewerModel):
    """napari's viewer model in a bare main window: everything but the canvas, in a hundredth of the time."""

    _window: Any = PrivateAttr(None)

    @property
    def window(self) -> Any:
        return self._window


@pytest.fixture
def windowless(qtbot: Any) -> Iterator[Callable[..., Any]]:
    """Opens a dock, given its class, in a window without a canvas of this width; it is shut down at the end, twice."""
    made = []

    def show(kind: Callable[[Any], Any], width: int = 500) -> Any:
        viewer = Windowless()
        main = QMainWindow()
        qtbot.addWidget(main)
        viewer._window = SimpleNamespace(_qt_window=main)
        dock = kind(viewer)
        holder = QDockWidget(main)
        holder.setWidget(dock)
        main.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, holder)
        main.resize(width, 900)
        main.show()
        made.append(dock)
        return dock

    yield show
    for dock in made:
        dock.shutdown()
        dock.shutdown()


Docked = Callable[..., tuple[Any, Any]]


@pytest.fixture
def docked(windowless: Callable[..., Any]) -> Docked:
    """A viewer without a canvas, with the explorer docked in its window."""

    def make() -> tuple[Any, Any]:
        from napari_cease.widgets.explore import AttackExplorer

        dock = windowless(AttackExplorer)
        dock.session.tune(steps=4)
        return dock.viewer, dock

    return make


@pytest.fixture
def dock_in(make_napari_viewer: Any) -> Iterator[Docked]:
    """A napari window with the explorer docked in it."""
    made = []

    def make(show: bool = False) -> tuple[Any, Any]:
        from napari_cease.widgets.explore import AttackExplorer

        viewer = make_napari_viewer(show=show)
        if show:
            viewer.window.resize(1100, 800)
        dock = AttackExplorer(viewer)
        dock.session.tune(steps=4)
        viewer.window.add_dock_widget(dock, name="Attack explorer", area="right")
        made.append(dock)
        return viewer, dock

    yield make
    for dock in made:
        if hasattr(dock.viewer.window, "_qt_window"):  # not closed by the test
            dock.shutdown()


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """Sentences of the error notifications."""
    from napari.utils.notifications import NotificationSeverity, notification_manager

    said: list[str] = []

    def note(notification: Any) -> None:
        if notification.severity is NotificationSeverity.ERROR:
            said.append(str(notification.message))

    notification_manager.notification_ready.connect(note)
    yield said
    notification_manager.notification_ready.disconnect(note)


WAIT = 30_000


@pytest.fixture
def settled(qtbot: Any) -> Callable[[Any], None]:
    """Waits until a dock has nothing more to do."""

    def wait(dock: Any) -> None:
        qtbot.waitUntil(lambda: dock.explorer.settled and bool(dock.explorer.results.opened), timeout=WAIT)

    return wait


@pytest.fixture
def models(library: Path) -> Callable[[str], dict[Any, Path]]:
    """Folders of the two models of a scene."""
    return lambda scene: {side: library / f"{scene}-{side}" for side in SIDES}


@pytest.fixture
def choose(models: Any) -> Callable[[Any, str], None]:
    """Choose models in the boxes."""

    def pick(dock: Any, scene: str) -> None:
        for side, folder in models(scene).items():
            dock.models[side].value = folder

    return pick


@pytest.fixture
def opened(docked: Docked, picture: Any, show_layers: Any, choose: Any, settled: Any) -> tuple[Any, Any, Any, Any]:
    """A window with the small picture under attack at every ε."""
    viewer, dock = docked()
    image, mask = show_layers(viewer, *picture)
    choose(dock, "polyp")
    settled(dock)
    return viewer, dock, image, mask


@pytest.fixture
def opened_volume(
    docked: Docked, volume: Any, show_layers: Any, choose: Any, settled: Any
) -> tuple[Any, Any, Any, Any]:
    """A window with a slice of the small volume under attack at every ε."""
    viewer, dock = docked()
    image, mask = show_layers(viewer, *volume)
    choose(dock, "cardiac")
    settled(dock)
    return viewer, dock, image, mask
