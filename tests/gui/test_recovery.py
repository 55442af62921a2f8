"""What a window shows survives a crash, goes into a file and comes back, and hostile files do no harm."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from napari.layers import Labels, Shapes
from qtpy.QtCore import QEventLoop, Qt, QTimer
from qtpy.QtWidgets import QApplication, QMessageBox

from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan, write_labels, write_scan
from cease_core.scan import Scan
from napari_cease import commands, recovery, saved_session, settings
from napari_cease.layers import is_mask, show_frame
from napari_cease.readers import open_scan, scan_layers
from napari_cease.recovery import DAMAGED, LOCK, find_left
from napari_cease.samples import labels_layer
from napari_cease.saved_session import ARRAY, DESCRIPTION, SUFFIX, Rebuilt, read_session, rebuild
from napari_cease.widgets.restore_bar import RestoreBar

WAIT = 10_000
MANIFEST = json.dumps({"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "tumour"}})
CORNERS = np.array([[0, 4.0, 5], [0, 4, 30], [0, 20, 30], [0, 20, 5]])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for records, written soon after every change."""
    monkeypatch.setenv("CEASE_SESSIONS", str(tmp_path / "sessions"))
    monkeypatch.setattr(recovery, "SOON", 30)
    return tmp_path / "sessions"


@pytest.fixture
def heart(volume: Any, tmp_path: Path) -> Path:
    """The small volume as a file."""
    scan, labels = volume
    write_scan(scan.image, scan, tmp_path / "heart.nii.gz")
    write_labels(labels, scan, tmp_path / "mask.nii.gz")
    return tmp_path / "heart.nii.gz"


@pytest.fixture
def working(docked: Any, heart: Path, show_layers: Any, models: Any, settled: Any) -> Any:
    """A window in the midst of work: a scan of a file, its mask, a drawn region, an attack at ε = 3/255."""
    viewer, dock = docked()
    scan = read_scan(heart)
    image, mask = show_layers(viewer, scan, read_labels(heart.with_name("mask.nii.gz"), like=scan))
    region = viewer.add_labels(np.zeros(mask.data.shape, np.int32), name="mine", scale=image.scale)
    region.translate = image.translate
    dock.session.top = 4
    dock.session.tune(norm="l2", steps=2)
    dock.choose(image, mask, **models("cardiac"))
    region.data[1, 8:24, 8:30] = 1
    region.data = region.data
    viewer.add_shapes([CORNERS], shape_type="polygon", name="drawn", edge_color="red", edge_width=3)
    dock.region.chosen.emit(region)
    dock.explorer.choose_target("erase")
    dock.session.level = 3
    dock.session.show_adversarial = True
    dock.session.side_by_side = False
    viewer.dims.set_current_step(0, 1)
    settled(dock)
    dock.explorer.panes.find("mask", "defended").opacity = 0.25
    dock.explorer.panes.find("perturbation", "undefended").visible = False
    image.contrast_limits = (300, 500)
    viewer.camera.center, viewer.camera.zoom = (0, 20.0, 31.0), 4.5
    return dock


def shown(dock: Any) -> dict[str, Any]:
    """All that is to come back."""
    s, e, viewer = dock.session, dock.explorer, dock.viewer
    panes = e.panes
    return {
        "scan": s.scan.name,
        "layers": [x.name for x in viewer.layers],
        "models": (s.undefended, s.defended),
        "attack": s.rule,
        "target": s.target,
        "region": s.region.inside.sum(),
        "figures": (s.top, s.level, s.index, s.gain),
        "shown": (s.show_perturbation, s.show_adversarial, s.show_critical, s.side_by_side),
        "roles": (e.scan_layer.name, e.labels_layer.name, e.region_layer.name),
        "limits": e.scan_layer.contrast_limits,
        "opacity": panes.find("mask", "defended").opacity,
        "visible": panes.find("perturbation", "undefended").visible,
        "camera": (tuple(viewer.camera.center), viewer.camera.zoom),
        "slice": viewer.dims.current_step[0],
        "boxes": (dock.scan.value.name, dock.labels.value.name, dock.attack.value, dock.slider.value()),
    }


def values(viewer: Any) -> dict[str, Any]:
    """Of the layers that were drawn or are masks."""
    kept = {x.name: x.data for x in viewer.layers if type(x) is Labels and is_mask(x)}
    drawn = {x.name: (x.data, x.shape_type, x.edge_width) for x in viewer.layers if type(x) is Shapes}
    return kept | drawn


def bar_of(dock: Any) -> RestoreBar:
    return dock.findChild(RestoreBar)


def kept(qtbot: Any, dock: Any) -> None:
    with qtbot.waitSignal(dock.keeper.kept, timeout=WAIT):
        dock.keeper.keep()


# --- a crash -------------------------------------------------------------------------------------------------

CRASHING = """
import sys, time
from types import SimpleNamespace
import numpy as np
from qtpy.QtWidgets import QApplication, QMainWindow
app = QApplication([])
from napari.components import ViewerModel
from pydantic import PrivateAttr
class Windowless(ViewerModel):
    _window: object = PrivateAttr(None)
    window = property(lambda self: self._window)
from napari_cease import recovery
from napari_cease.widgets.explore import AttackExplorer
recovery.SOON = 30
viewer, main = Windowless(), QMainWindow()
viewer._window = SimpleNamespace(_qt_window=main)
dock = AttackExplorer(viewer)
from napari_cease.samples import SAMPLES, sample_layers
for data in sample_layers(SAMPLES["cardiac"]):
    viewer._add_layer_from_data(*data)
drawn = viewer.add_labels(np.zeros(viewer.layers[1].data.shape, np.uint8), name="painted")
viewer.layers[1].data_setitem((np.array([3, 3]), np.array([5, 6]), np.array([5, 6])), 1)
drawn.data_setitem((np.array([3]), np.array([9]), np.array([9])), 7)
dock.session.level = 8
end = time.monotonic() + 60
said = []
dock.keeper.kept.connect(lambda: said.append(1))
while time.monotonic() < end:
    app.processEvents()
    if said and not dock.keeper.busy and not dock.keeper._soon.isActive():
        print("kept", flush=True)
        time.sleep(60)
"""


def test_what_a_killed_process_has_shown_is_restored_in_the_next_one(
    place: Path, docked: Any, qtbot: Any, settled: Any
) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", CRASHING],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "kept\n"
    assert find_left(place) == (None, ()), "a window that is open is not offered"
    program.send_signal(signal.SIGKILL)
    program.wait(30)

    viewer, dock = docked()
    bar = bar_of(dock)
    assert not bar.isHidden()
    assert "scd_15, ε 8/255, 2 drawn layers, from " in bar.told.text()
    assert not viewer.layers, "nothing happens unasked"
    with qtbot.waitSignal(dock.keeper.restored, timeout=WAIT):
        bar.restore.click()
    assert bar.isHidden()
    assert [x.name for x in viewer.layers] == ["scd_15", "scd_15 labels", "painted"]
    assert viewer.layers["scd_15 labels"].data[3, 5, 5] == 1
    assert viewer.layers["painted"].data[3, 9, 9] == 7
    assert dock.session.level == 8
    assert dock.labels.value is viewer.layers["scd_15 labels"]
    kept(qtbot, dock)
    assert len(list(place.iterdir())) == 1, "the old record has gone once the new one is there"
    dock.shutdown()
    assert list(place.iterdir()) == []


def abandon(dock: Any, qtbot: Any) -> None:
    """Leave a record as a crash does."""
    kept(qtbot, dock)
    record, dock.keeper.record = dock.keeper.record, None
    dock.shutdown()
    record.let_go()


def test_all_that_was_chosen_and_drawn_comes_back(working: Any, docked: Any, qtbot: Any, settled: Any) -> None:
    before, drawn = shown(working), values(working.viewer)
    abandon(working, qtbot)
    _, dock = docked()
    with qtbot.waitSignal(dock.keeper.restored, timeout=WAIT):
        bar_of(dock).restore.click()
    settled(dock)
    assert shown(dock) == before
    np.testing.assert_equal(values(dock.viewer), drawn)
    assert dock.explorer.labels_layer.metadata["cease"]["scan"] is dock.session.scan


def test_discarded_it_is_gone(working: Any, docked: Any, qtbot: Any, place: Path) -> None:
    abandon(working, qtbot)
    _, dock = docked()
    bar_of(dock).discard.click()
    assert bar_of(dock).isHidden()
    assert list(place.iterdir()) == []


def test_neither_restored_nor_discarded_it_is_offered_again(working: Any, docked: Any, qtbot: Any) -> None:
    abandon(working, qtbot)
    for _ in range(2):
        _, dock = docked()
        assert not bar_of(dock).isHidden()
        dock.shutdown()


def test_two_windows_keep_records_of_their_own_and_one_offers_what_was_left(
    working: Any, docked: Any, qtbot: Any, place: Path
) -> None:
    abandon(working, qtbot)
    (_, first), (_, second) = docked(), docked()
    assert [bar_of(dock).isHidden() for dock in (first, second)] == [False, True]
    for dock in (first, second):
        dock.viewer.add_labels(np.ones((5, 5), int))
        kept(qtbot, dock)
    assert len({dock.keeper.record.folder for dock in (first, second)} | {first.keeper.left.record.folder}) == 3
    first.shutdown()
    assert second.keeper.record.folder.is_dir()


def test_a_window_that_closes_leaves_nothing(docked: Any, place: Path, qtbot: Any) -> None:
    viewer, dock = docked()
    viewer.add_labels(np.ones((5, 5), int))
    kept(qtbot, dock)
    assert list(place.glob(f"*/{DESCRIPTION}"))
    dock.window().close()
    assert list(place.iterdir()) == []


def asks_back(window: Any, *, closes: bool) -> None:
    """Let a window ask whether it shall close, as napari's does: events go on meanwhile."""

    def asked(event: Any) -> None:
        loop = QEventLoop()
        QTimer.singleShot(50, loop.quit)
        loop.exec_()
        event.setAccepted(closes)

    window.closeEvent = asked


def test_a_window_that_asks_before_it_closes_leaves_nothing(docked: Any, place: Path, qtbot: Any) -> None:
    viewer, dock = docked()
    viewer.add_labels(np.ones((5, 5), int))
    kept(qtbot, dock)
    asks_back(dock.window(), closes=True)
    dock.window().close()
    assert list(place.iterdir()) == []


def test_a_window_that_stays_keeps_its_record_though_it_is_hidden_later(docked: Any, place: Path, qtbot: Any) -> None:
    viewer, dock = docked()
    viewer.add_labels(np.ones((5, 5), int))
    kept(qtbot, dock)
    asks_back(dock.window(), closes=False)
    dock.window().close()
    qtbot.mouseClick(dock.slider, Qt.MouseButton.LeftButton)
    dock.window().hide()
    assert len(list(place.glob(f"*/{DESCRIPTION}"))) == 1
    dock.window().show()
    asks_back(dock.window(), closes=True)
    dock.window().close()
    assert list(place.iterdir()) == []


def test_sessions_that_are_being_saved_are_written_before_the_window_has_closed(
    docked: Any, tmp_path: Path, errors: list[str]
) -> None:
    viewer, dock = docked()
    viewer.add_labels(np.eye(900, dtype=int), name="mine")
    files = [tmp_path / f"{i}.cease" for i in range(4)]
    for file in (*files, tmp_path / "nowhere" / "a.cease"):
        dock.keeper.save_as(file)
    dock.window().close()
    assert [read_session(file).session.layers[0].name for file in files] == ["mine"] * 4
    assert errors == ["a.cease was not written: its folder does not exist; create it, or choose another one."]


# --- what is written, and when ---------------------------------------------------------------------------------


def test_a_change_is_on_disk_soon_and_values_are_written_once(docked: Any, qtbot: Any, place: Path) -> None:
    viewer, dock = docked()
    layer = viewer.add_labels(np.ones((5, 5), int))
    qtbot.waitUntil(lambda: len(list(place.glob(f"*/*{ARRAY}"))) == 1, timeout=WAIT)
    kept(qtbot, dock)
    (first,) = place.glob(f"*/*{ARRAY}")
    stamp = first.stat().st_mtime_ns
    dock.session.level = 5
    kept(qtbot, dock)
    assert [(p, p.stat().st_mtime_ns) for p in place.glob(f"*/*{ARRAY}")] == [(first, stamp)]
    layer.data_setitem((np.array([1]), np.array([1])), 3)
    qtbot.waitUntil(lambda: first not in place.glob(f"*/*{ARRAY}"), timeout=WAIT)
    (folder,) = place.iterdir()
    (again,) = rebuild(read_session(folder)).layers
    assert again is not None
    assert again[0][1, 1] == 3
    layer.undo()
    qtbot.waitUntil(lambda: rebuild(read_session(folder)).layers[0][0][1, 1] == 1, timeout=WAIT)


def test_changes_on_end_are_written_together(docked: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "SOON", 200)
    viewer, dock = docked()
    written: list[float] = []
    dock.keeper.kept.connect(lambda: written.append(time.monotonic()))
    viewer.add_labels(np.ones((5, 5), int))
    end = time.monotonic() + 1
    while time.monotonic() < end:
        viewer.camera.zoom *= 1.001
        qtbot.wait(5)
    assert 2 <= len(written) <= 5, "while they last, and not once for each"


def test_who_does_not_want_it_has_nothing_written(
    docked: Any, qtbot: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "preferences", lambda: settings.Preferences(keep_session=False))
    viewer, _ = docked()
    viewer.add_labels(np.ones((5, 5), int))
    qtbot.wait(200)
    assert not place.exists()


def test_who_does_not_want_it_any_more_has_nothing_left(
    docked: Any, qtbot: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Callable[..., None]] = []
    monkeypatch.setattr(recovery, "on_change", lambda slot, follow=True: told.append(slot))
    viewer, dock = docked()
    viewer.add_labels(np.ones((5, 5), int))
    kept(qtbot, dock)
    monkeypatch.setattr(recovery, "preferences", lambda: settings.Preferences(keep_session=False))
    told[0]()
    qtbot.waitUntil(lambda: list(place.iterdir()) == [], timeout=WAIT)


def test_nobody_else_can_read_a_record(docked: Any, qtbot: Any, place: Path) -> None:
    viewer, dock = docked()
    viewer.add_labels(np.ones((5, 5), int))
    kept(qtbot, dock)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (place, dock.keeper.record.folder)] == [0o700, 0o700]


def test_records_lie_in_the_users_folder_wherever_the_models_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CEASE_SESSIONS")
    monkeypatch.setenv("CEASE_MODELS", "/shared/models")
    assert recovery.sessions_place() == Path.home() / ".napari-cease" / "sessions"


def test_where_nothing_can_be_written_it_is_said_once(
    docked: Any, qtbot: Any, errors: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CEASE_SESSIONS", str(tmp_path / "file"))
    viewer, dock = docked()
    viewer.add_labels(np.ones((5, 5), int))
    dock.keeper.keep()
    dock.keeper.keep()
    assert len(errors) == 1
    assert "cannot be restored after a crash" in errors[0]


# --- what is damaged or missing ----------------------------------------------------------------------------------


def test_a_damaged_record_is_one_sentence_and_stays_on_disk(
    working: Any, docked: Any, qtbot: Any, place: Path, errors: list[str]
) -> None:
    abandon(working, qtbot)
    (folder,) = place.iterdir()
    (folder / DESCRIPTION).write_text((folder / DESCRIPTION).read_text()[:300])
    before = {p.name for p in folder.glob(f"*{ARRAY}")}
    _, dock = docked()
    (sentence,) = errors
    assert str(folder) in sentence
    assert bar_of(dock).isHidden()
    assert {p.name for p in folder.iterdir()} >= before | {DAMAGED}
    dock.shutdown()
    docked()
    assert len(errors) == 1, "it is spoken of once"


def test_without_its_scan_the_drawn_layers_come_back_and_the_record_stays(
    working: Any, docked: Any, qtbot: Any, place: Path, errors: list[str], heart: Path
) -> None:
    drawn = values(working.viewer)
    abandon(working, qtbot)
    heart.unlink()
    _, dock = docked()
    with qtbot.waitSignal(dock.keeper.restored, timeout=WAIT):
        bar_of(dock).restore.click()
    assert "heart.nii.gz" in errors[0]
    assert errors[1:] == [
        "heart labels came back without the scan that it was drawn on; compare its place before you use it."
    ]
    np.testing.assert_equal(values(dock.viewer), drawn)
    assert len(list(place.glob(f"*/{DAMAGED}"))) == 1


def test_without_its_models_alone_all_layers_come_back_and_the_record_goes(
    docked: Any, qtbot: Any, place: Path, errors: list[str]
) -> None:
    viewer, dock = docked()
    dock.choose(viewer.add_image(np.eye(9, dtype=np.float32)), None)
    abandon(dock, qtbot)
    (folder,) = place.iterdir()
    text = json.loads((folder / DESCRIPTION).read_text())
    text["choices"] |= {"undefended": "/nowhere/model", "parameters": {"steps": 10**9}}
    (folder / DESCRIPTION).write_text(json.dumps(text))
    _, dock = docked()
    with qtbot.waitSignal(dock.keeper.restored, timeout=WAIT):
        bar_of(dock).restore.click()
    kept(qtbot, dock)
    assert errors == [
        "the model model is no longer in /nowhere; choose another one.",
        "the attack had 1000000000 steps; it has 1000 now, set more by hand.",
    ]
    assert dock.session.parameters["steps"] == 1000
    assert not folder.exists()


def test_what_was_put_aside_goes_after_thirty_days(place: Path) -> None:
    for name, days in (("old", 31), ("new", 29)):
        record = place / name
        record.mkdir(parents=True)
        for file in (LOCK, DAMAGED):
            (record / file).touch()
        then = time.time() - days * 24 * 3600
        os.utime(record / DAMAGED, (then, then))
    assert find_left(place) == (None, ())
    assert [p.name for p in place.iterdir()] == ["new"]


def test_a_restore_that_fails_is_offered_again(
    docked: Any, qtbot: Any, errors: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer, dock = docked()
    viewer.add_labels(np.eye(9, dtype=int), name="mine")
    abandon(dock, qtbot)
    _, dock = docked()
    bar = bar_of(dock)

    def fail(*_: Any) -> None:
        raise AttributeError("unforeseen")

    for place in ("rebuild", "show_again"):
        with monkeypatch.context() as patch:
            patch.setattr(recovery, place, fail)
            bar.restore.click()
            qtbot.waitUntil(bar.restore.isEnabled, timeout=WAIT)
    assert len(errors) == 2
    assert not dock.viewer.layers
    with qtbot.waitSignal(dock.keeper.restored, timeout=WAIT):
        bar.restore.click()
    assert [x.name for x in dock.viewer.layers] == ["mine"]
    assert bar.isHidden()


def test_an_error_that_nobody_foresaw_costs_one_layer(
    plain_file: Path, docked: Any, qtbot: Any, errors: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AttributeError("unforeseen")

    monkeypatch.setattr(saved_session, "open_scan", fail)
    viewer, dock = docked()
    with qtbot.waitSignal(dock.keeper.restored, timeout=WAIT):
        dock.keeper.open_file(plain_file)
    assert errors == ["heart could not be restored (AttributeError); everything else was."]
    assert [x.name for x in viewer.layers] == ["mine"]


def test_a_window_that_cannot_be_described_says_so(docked: Any, errors: list[str], tmp_path: Path) -> None:
    viewer, dock = docked()
    viewer.add_labels(np.eye(9, dtype=int)).metadata["cease"] = {"classes": {1: object()}}
    dock.keeper.save_as(tmp_path / "a.cease")
    (sentence,) = errors
    assert sentence.startswith("the session was not kept or saved")
    assert not (tmp_path / "a.cease").exists()


def test_values_that_are_damaged_leave_the_rest_whole(
    working: Any, docked: Any, qtbot: Any, place: Path, errors: list[str]
) -> None:
    abandon(working, qtbot)
    (folder,) = place.iterdir()
    saved = read_session(folder).session
    (array,) = (x.array for x in saved.layers if x.name == "mine")
    (folder / str(array)).write_bytes(b"\x1f\x8b damaged")
    _, dock = docked()
    with qtbot.waitSignal(dock.keeper.restored, timeout=WAIT):
        bar_of(dock).restore.click()
    assert errors == ["mine is damaged in the session; everything else was restored."]
    assert dock.session.level == 3


# --- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def session_file(working: Any, qtbot: Any, tmp_path: Path) -> Path:
    with qtbot.waitSignal(working.keeper.saved, timeout=WAIT):
        working.keeper.save_as(tmp_path / f"heart{SUFFIX}")
    return tmp_path / f"heart{SUFFIX}"


@pytest.fixture
def plain_file(docked: Any, heart: Path, show_layers: Any, qtbot: Any, tmp_path: Path) -> Path:
    """Of a window with a scan and a layer of one's own, where nothing is attacked."""
    viewer, dock = docked()
    show_layers(viewer, read_scan(heart))
    viewer.add_labels(np.eye(9, dtype=int), name="mine")
    viewer.camera.zoom = 4.5
    with qtbot.waitSignal(dock.keeper.saved, timeout=WAIT):
        dock.keeper.save_as(tmp_path / "plain.cease")
    return tmp_path / "plain.cease"


def test_a_session_saved_as_a_file_opens_in_another_window(
    working: Any, session_file: Path, docked: Any, qtbot: Any, settled: Any
) -> None:
    _, dock = docked()
    with qtbot.waitSignal(dock.keeper.restored, timeout=WAIT):
        dock.keeper.open_file(session_file)
    settled(dock)
    assert shown(dock) == shown(working)
    np.testing.assert_equal(values(dock.viewer), values(working.viewer))


def test_channels_colours_and_images_without_a_file_come_back(
    docked: Any, qtbot: Any, tmp_path: Path, picture: Any, show_layers: Any
) -> None:
    rng = np.random.default_rng(0)
    viewer, dock = docked()
    show_layers(viewer, *picture)
    grey = viewer.add_image(rng.normal(size=(20, 30)).astype(np.float32), name="noise", scale=(2, 3), translate=(1, -1))
    grey.contrast_limits = (-1, 1)
    with qtbot.waitSignal(dock.keeper.saved, timeout=WAIT):
        dock.keeper.save_as(tmp_path / "a.cease")
    again, other = docked()
    with qtbot.waitSignal(other.keeper.restored, timeout=WAIT):
        other.keeper.open_file(tmp_path / "a.cease")
    for name in ("picture", "picture labels", "noise"):
        one, two = viewer.layers[name], again.layers[name]
        np.testing.assert_array_equal(one.data, two.data)
        assert (tuple(one.scale), tuple(one.translate)) == (tuple(two.scale), tuple(two.translate))
    assert again.layers["noise"].contrast_limits == [-1, 1]
    assert again.layers["picture"].rgb


def test_one_channel_of_several_comes_back_as_that_channel(tmp_path: Path, docked: Any, qtbot: Any) -> None:
    image = np.stack([np.full((6, 8), i * 50, np.uint8) for i in range(3)])
    scan = Scan(image.astype(np.float32), np.eye(4), name="stack", path=tmp_path / "stack.tif", length_unit="pixel")
    write_scan(scan.image, scan, scan.path)
    channels = scan_layers(read_scan(scan.path))
    viewer, dock = docked()
    for data in channels:
        viewer._add_layer_from_data(*data)
    with qtbot.waitSignal(dock.keeper.saved, timeout=WAIT):
        dock.keeper.save_as(tmp_path / "a.cease")
    rebuilt = rebuild(read_session(tmp_path / "a.cease"))
    assert [layer[0].tolist() for layer in rebuilt.layers if layer] == [c[0].tolist() for c in channels]


def saved_and_read(viewer: Any, dock: Any, qtbot: Any, path: Path) -> Rebuilt:
    with qtbot.waitSignal(dock.keeper.saved, timeout=WAIT):
        dock.keeper.save_as(path)
    return rebuild(read_session(path))


def test_a_mask_below_a_series_comes_back_on_the_frame_that_is_shown(tmp_path: Path, docked: Any, qtbot: Any) -> None:
    frames = np.arange(4 * 5 * 6 * 3, dtype=np.float32).reshape(4, 5, 6, 3)
    nib.save(nib.Nifti1Image(frames, np.diag([2.0, 3, 4, 1])), tmp_path / "cine.nii.gz")
    first, third = (open_scan(tmp_path / "cine.nii.gz", frame) for frame in (0, 2))
    mask = (first.image[0] > 100).astype(np.int32)
    viewer, dock = docked()
    viewer._add_layer_from_data(*labels_layer(mask, first))
    (image,) = viewer._add_layer_from_data(*scan_layers(first)[0])
    show_frame(image, third)
    rebuilt = saved_and_read(viewer, dock, qtbot, tmp_path / "a.cease")
    assert rebuilt.faults == ()
    labels, shown = rebuilt.layers
    assert labels is not None
    assert shown is not None
    np.testing.assert_array_equal(shown[0], third.image[0])
    np.testing.assert_array_equal(labels[0], mask)
    assert labels[1]["metadata"]["cease"]["scan"] is shown[1]["metadata"]["cease"]["scan"]


def test_contrasts_in_one_file_come_back_as_channels(tmp_path: Path, docked: Any, qtbot: Any) -> None:
    contrasts = np.arange(4 * 5 * 6 * 2, dtype=np.float32).reshape(4, 5, 6, 2)
    (tmp_path / "imagesTr").mkdir()
    nib.save(nib.Nifti1Image(contrasts, np.eye(4)), tmp_path / "imagesTr" / "brain.nii.gz")
    (tmp_path / "dataset.json").write_text(MANIFEST)
    channels = scan_layers(open_scan(tmp_path / "imagesTr" / "brain.nii.gz"))
    viewer, dock = docked()
    for data in channels:
        viewer._add_layer_from_data(*data)
    rebuilt = saved_and_read(viewer, dock, qtbot, tmp_path / "a.cease")
    assert rebuilt.faults == ()
    assert [layer[0].tolist() for layer in rebuilt.layers if layer] == [c[0].tolist() for c in channels]
    assert len(channels) == 2


def test_a_mask_whose_scan_is_not_shown_keeps_its_grid(heart: Path, docked: Any, qtbot: Any, tmp_path: Path) -> None:
    scan = read_scan(heart)
    viewer, dock = docked()
    viewer._add_layer_from_data(*labels_layer(np.ones(scan.shape, np.int32), scan))
    (labels,) = saved_and_read(viewer, dock, qtbot, tmp_path / "a.cease").layers
    assert labels is not None
    np.testing.assert_array_equal(labels[1]["metadata"]["affine"], scan.affine)


def test_a_mask_whose_scan_has_changed_comes_back_where_it_was_and_says_so(
    heart: Path, docked: Any, qtbot: Any, tmp_path: Path, show_layers: Any
) -> None:
    scan = read_scan(heart)
    viewer, dock = docked()
    _, mask = show_layers(viewer, scan, np.ones(scan.shape, np.int32))
    with qtbot.waitSignal(dock.keeper.saved, timeout=WAIT):
        dock.keeper.save_as(tmp_path / "a.cease")
    other = Scan(scan.image[:, :3], scan.affine, name="heart")
    write_scan(other.image, other, heart)
    rebuilt = rebuild(read_session(tmp_path / "a.cease"))
    assert rebuilt.faults == (
        "heart labels came back without the scan that it was drawn on; compare its place before you use it.",
    )
    _, labels = rebuilt.layers
    assert labels is not None
    assert labels[1]["translate"] == tuple(mask.translate)


def packed(header: dict[str, Any] | None = None, array: Any = None, *, pickled: bool = False) -> bytes:
    """Values as a session holds them, with a header of one's own."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb") as file:
        if header is None:
            np.lib.format.write_array(file, array, allow_pickle=pickled)
        else:
            np.lib.format.write_array_header_1_0(file, header)
    return out.getvalue()


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("echo hacked > hacked",)


HUGE = {"descr": "<i4", "fortran_order": False, "shape": (50_000, 50_000, 50_000)}
NEGATIVE = {"descr": "<i4", "fortran_order": False, "shape": (-5, 5)}


@pytest.mark.parametrize(
    "content",
    [
        packed(array=np.array([Evil()], dtype=object), pickled=True),
        packed(HUGE),
        packed(NEGATIVE),
        packed(array=np.zeros(5)),
        packed(array=np.full((3, 3), 2**31, np.int64)),
        packed(array=np.full((3, 3), -(2**31) - 1, np.int64)),
        packed(array=np.array([["a", "b"]])),
        packed(array=np.ones((3, 3), np.int32))[:30],
        b"",
    ],
    ids=["pickle", "huge", "negative", "numbers", "large id", "small id", "text", "short", "empty"],
)
def test_hostile_values_cost_their_layer_and_nothing_else(
    plain_file: Path, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = read_session(plain_file).session
    (array,) = (str(x.array) for x in saved.layers if x.name == "mine")
    forged = rewritten(plain_file, {array: content})
    rebuilt = rebuild(read_session(forged))
    assert rebuilt.faults == ("mine is damaged in the session; everything else was restored.",)
    assert sum(layer is None for layer in rebuilt.layers) == 1
    assert not (tmp_path / "hacked").exists()


def test_the_memory_of_all_values_together_is_bounded(
    docked: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer, dock = docked()
    for name in "abc":
        viewer.add_labels(np.ones((50, 50), np.uint8), name=name)
    monkeypatch.setattr(saved_session, "MAX_VALUES", 2 * 4 * 2500)
    rebuilt = saved_and_read(viewer, dock, qtbot, tmp_path / "a.cease")
    assert [layer is None for layer in rebuilt.layers] == [False, False, True]
    (sentence,) = rebuilt.faults
    assert sentence.startswith("c was left out")


def rewritten(source: Path, contents: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    target = source.with_name("forged.cease")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", how) as new:
        for name in old.namelist():
            new.writestr(name, contents.get(name, old.read(name)))
    return target


def changed(text: bytes, **values: Any) -> bytes:
    return json.dumps(json.loads(text) | values).encode()


def twice(text: bytes) -> bytes:
    layers = json.loads(text)["layers"]
    return changed(text, layers=[*layers, layers[-1]])


def crowded(text: bytes) -> bytes:
    return changed(text, layers=[{"kind": "shapes", "name": "s"}] * 201)


DAMAGES: dict[str, Callable[[Path, bytes], Path]] = {
    "no zip": lambda p, _: SimpleNamespace(p=p.write_bytes(b"hello" * 100)) and p,
    "nothing in it": lambda p, _: SimpleNamespace(p=zipfile.ZipFile(p, "w").close()) and p,
    "cut short": lambda p, _: SimpleNamespace(p=p.write_bytes(p.read_bytes()[:-200])) and p,
    "packed twice": lambda p, _: rewritten(p, {}, zipfile.ZIP_DEFLATED),
    "of a later version": lambda p, text: rewritten(p, {DESCRIPTION: changed(text, version=2)}),
    "with more in it": lambda p, text: rewritten(p, {DESCRIPTION: changed(text, run="rm")}),
    "too large": lambda p, text: rewritten(p, {DESCRIPTION: text + b" " * 2**24}),
    "nested": lambda p, _: rewritten(p, {DESCRIPTION: b"[" * 100_000}),
    "no numbers": lambda p, text: rewritten(p, {DESCRIPTION: text.replace(b'"zoom":4.5', b'"zoom":NaN')}),
    "the same values twice": lambda p, text: rewritten(p, {DESCRIPTION: twice(text)}),
    "too many layers": lambda p, text: rewritten(p, {DESCRIPTION: crowded(text)}),
    "another folder": lambda p, text: rewritten(p, {DESCRIPTION: text.replace(b'"array":"', b'"array":"../')}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_is_no_session_is_refused_in_a_sentence(
    plain_file: Path, damage: Callable[[Path, bytes], Path]
) -> None:
    with zipfile.ZipFile(plain_file) as file:
        text = file.read(DESCRIPTION)
    with pytest.raises(CeaseError, match=r"choose another one\.$") as refused:
        read_session(damage(plain_file, text))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_session_that_asks_for_what_there_is_not_opens_with_what_there_is(
    session_file: Path, docked: Any, qtbot: Any, errors: list[str]
) -> None:
    with zipfile.ZipFile(session_file) as file:
        text = json.loads(file.read(DESCRIPTION))
    text["choices"] |= {"attack": "magic", "undefended": "/nowhere/model", "labels": 99, "region": 0}
    _, dock = docked()
    with qtbot.waitSignal(dock.keeper.restored, timeout=WAIT):
        dock.keeper.open_file(rewritten(session_file, {DESCRIPTION: json.dumps(text).encode()}))
    assert errors[0] == "the model model is no longer in /nowhere; choose another one."
    assert "unknown attack 'magic'" in errors[1]
    assert dock.session.scan is not None


@pytest.mark.parametrize("agreed", [True, False])
def test_a_file_that_the_dialog_did_not_ask_about_is_asked_about(
    docked: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agreed: bool
) -> None:
    viewer, dock = docked()
    viewer.add_labels(np.eye(9, dtype=int))
    (tmp_path / "mine.cease").write_text("precious")
    monkeypatch.setattr(commands, "_viewer", lambda: viewer)
    monkeypatch.setattr(commands, "explorer_of", lambda _: dock)
    monkeypatch.setattr(commands, "ask_where", lambda *_: tmp_path / "mine")
    asked: list[str] = []

    def answer() -> None:
        box = QApplication.activeModalWidget()
        asked.append(box.text())
        button = QMessageBox.StandardButton.Yes if agreed else QMessageBox.StandardButton.No
        box.button(button).click()

    QTimer.singleShot(100, answer)
    commands.save_session()
    qtbot.waitUntil(lambda: not dock.keeper.busy, timeout=WAIT)
    assert asked == ["mine.cease already exists. Replace it?"]
    assert ((tmp_path / "mine.cease").read_bytes() != b"precious") is agreed


@pytest.fixture(autouse=True)
def _nothing_is_held(place: Path) -> Iterator[None]:
    """After each test the docks have closed; what is still on disk, nobody holds."""
    yield
    left, _ = find_left(place)
    if left is not None:
        left.record.let_go()
