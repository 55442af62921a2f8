"""The preferences are those that napari shows, and what they say is done; the menus do what they say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from napari import settings as napari_settings
from napari.settings import get_plugin_settings
from qtpy.QtWidgets import QComboBox, QListWidget, QMenu

from cease_core.io import read_labels
from cease_core.models.library import user_library
from napari_cease import commands, settings
from napari_cease.docks import explorer_of
from napari_cease.layers import LETTER, SMALLEST
from napari_cease.settings import SECTIONS, Preferences, device, place_library, preferences
from napari_cease.units import epsilon_text

WAIT = 20_000


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The plugin's settings as napari keeps them, in a file of the test."""
    monkeypatch.setattr(napari_settings, "_CFG_PATH", str(tmp_path / "settings.yaml"))
    monkeypatch.setenv("CEASE_SESSIONS", str(tmp_path / "sessions"))
    napari_settings._clear_plugin_settings_cache()
    yield get_plugin_settings("napari-cease")
    napari_settings._clear_plugin_settings_cache()


def test_without_a_choice_the_manifest_and_the_program_agree(own: Any) -> None:
    assert preferences() == Preferences()
    declared = {name: set(type(getattr(own, name)).model_fields) for name in SECTIONS}
    assert declared == {name: set(keys) for name, keys in SECTIONS.items()}
    assert {key for keys in SECTIONS.values() for key in keys} == set(asdict(Preferences()))


def test_a_choice_is_kept_in_naparis_file(own: Any, tmp_path: Path) -> None:
    own.explorer.epsilon_up_to = 32
    assert preferences().epsilon_up_to == 32
    assert "epsilon_up_to: 32" in (tmp_path / "napari-cease.yaml").read_text()


@pytest.mark.parametrize(
    ("section", "name", "value"), [("explorer", "epsilon_unit", "parsec"), ("computing", "device", "abacus")]
)
def test_what_there_is_not_cannot_be_chosen(own: Any, section: str, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        setattr(getattr(own, section), name, value)


def test_a_new_explorer_begins_as_preferred(own: Any, docked: Any) -> None:
    own.explorer.epsilon_up_to, own.explorer.steps = 24, 7
    from napari_cease.session import ExplorerSession

    _, dock = docked()
    assert dock.slider.maximum() == 24
    assert dock.top.value == 24
    assert ExplorerSession(parameters={"steps": preferences().steps}).make_attack().steps == 7


def test_epsilon_is_read_in_the_scans_unit_where_that_is_preferred(own: Any, opened: Any) -> None:
    viewer, dock, _, _ = opened
    dock.session.level = 8
    assert dock.epsilon_text.text() == "ε = 8/255  =  8.0 grey levels"
    own.explorer.epsilon_unit = "intensity"
    assert dock.epsilon_text.text() == "ε = 8.0 grey levels  =  8/255"
    viewer.canvas.size = (600, 900)
    assert "ε 8.0 grey levels" in dock.explorer.title("defended", dock.explorer.view("defended"))


def test_a_narrow_pane_has_a_title_that_fits(opened: Any) -> None:
    viewer, dock, _, _ = opened
    dock.session.level = 8
    for width, title in ((900, "Undefended · ε 8/255 · Dice "), (420, "Undefended · Dice ")):
        viewer.canvas.size = (600, width)
        dock.explorer.draw()
        mask = dock.explorer.panes.find("mask", "undefended")
        assert mask.name.startswith(title)
        assert LETTER * mask.name_overlay.font_size * len(mask.name) <= width / 2
        assert mask.name_overlay.font_size >= SMALLEST


def test_epsilon_is_clean_in_any_unit() -> None:
    assert epsilon_text(0, 255.0, "8-bit", intensity_first=True) == "ε = 0 (clean)"


def test_the_device_is_what_is_preferred_if_it_is_there(own: Any) -> None:
    own.computing.device = "cpu"
    assert device() == torch.device("cpu")
    own.computing.device = "cuda"
    assert device().type == ("cuda" if torch.cuda.is_available() else settings.best_device().type)


def test_models_lie_where_it_is_preferred_unless_the_environment_says_where(
    own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = os.environ["CEASE_MODELS"]
    own.computing.models = str(tmp_path / "mine")
    place_library()
    assert str(user_library()) == given
    monkeypatch.delenv("CEASE_MODELS")
    place_library()
    assert user_library() == tmp_path / "mine"
    own.computing.models = ""
    place_library()
    assert user_library() == Path.home() / ".napari-cease" / "models"


# --- in a napari window --------------------------------------------------------------------------------------


@pytest.fixture
def viewer(make_napari_viewer: Any) -> Iterator[Any]:
    made = make_napari_viewer()
    yield made
    for dock in list(made.window.dock_widgets.values()):
        if hasattr(dock, "shutdown"):
            dock.shutdown()


def entries(menu: QMenu) -> dict[str, Any]:
    """Our entries of a menu as it opens, by the names on the way to each."""
    menu.aboutToShow.emit()
    found = {}
    for action in menu.actions():
        inside = action.menu()
        if inside is not None:
            found |= {f"{action.text()} › {name}": entry for name, entry in entries(inside).items()}
        elif "(napari-cease)" in action.text():
            found[action.text().removesuffix(" (napari-cease)")] = action
    return found


ATTACK = "Segment › Attack this scan"
REGION = "Annotate › Use as the region that an attack may change"
MASK = "Data › Save mask onto its scan's grid…"
SAVE, OPEN = "IO Utilities › Save attack session…", "IO Utilities › Open attack session…"


def test_napari_shows_the_entries_and_offers_what_suits_the_selected_layer(viewer: Any) -> None:
    image, labels = viewer.add_image(np.eye(8)), viewer.add_labels(np.eye(8, dtype=int))
    shapes = viewer.add_shapes(name="drawn")
    for layer, wanted in ((image, {ATTACK}), (labels, {REGION, MASK}), (shapes, {REGION})):
        viewer.layers.selection = {layer}
        shown = entries(viewer.window.layers_menu)
        assert set(shown) == {ATTACK, REGION, MASK}
        assert {name for name, action in shown.items() if action.isEnabled()} == wanted
    assert set(entries(viewer.window.file_menu)) == {SAVE, OPEN}


def test_the_entries_do_what_they_say(
    viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str]
) -> None:
    viewer.open_sample("napari-cease", "polyp")
    scan, mask = viewer.layers
    viewer.add_image(np.zeros((8, 8)), name="another")

    def choose(layer: Any, entry: str) -> None:
        if layer is not None:
            viewer.layers.selection = {layer}
        menu = viewer.window.layers_menu if layer is not None else viewer.window.file_menu
        entries(menu)[entry].trigger()

    choose(scan, ATTACK)
    explorer = explorer_of(viewer)
    assert explorer.scan.value is scan
    drawn = viewer.add_shapes([[[9, 9], [9, 90], [90, 90], [90, 9]]], shape_type="polygon", name="drawn")
    drawn.scale = scan.scale
    choose(drawn, REGION)
    assert explorer.session.region.name == "drawn"

    proposed: list[Path] = []

    def answer(path: Path) -> Callable[..., Path]:
        return lambda _viewer, _question, first, *_: proposed.append(first) or path

    monkeypatch.setattr(commands, "ask_where", answer(tmp_path / "mask.nii.gz"))
    choose(mask, MASK)
    assert proposed[0].name == f"{scan.name}_mask.nii.gz"
    assert np.array_equal(read_labels(tmp_path / "mask.nii.gz", like=scan.metadata["cease"]["scan"]), mask.data)

    monkeypatch.setattr(commands, "ask_where", answer(tmp_path / "mine"))
    with qtbot.waitSignal(explorer.keeper.saved, timeout=WAIT):
        choose(None, SAVE)
    monkeypatch.setattr(commands, "ask_which", lambda *_: tmp_path / "mine.cease")
    before = len(viewer.layers)
    with qtbot.waitSignal(explorer.keeper.restored, timeout=WAIT):
        choose(None, OPEN)
    assert len(viewer.layers) > before
    assert explorer.scan.value is not scan
    assert errors == []


def test_what_cannot_be_done_is_a_sentence(
    viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: list[str]
) -> None:
    (tmp_path / "a.cease").write_text("nothing")
    monkeypatch.setattr(commands, "ask_which", lambda *_: tmp_path / "a.cease")
    for act in (commands.attack_layer, commands.use_as_region, commands.save_mask, commands.open_session):
        act()
    viewer.add_shapes(name="drawn")
    commands.use_as_region()
    assert errors == [
        "no such layer is selected; select an image layer in the list first.",
        "no such layer is selected; select a labels or shapes layer in the list first.",
        "no such layer is selected; select a labels layer in the list first.",
        "a.cease is damaged or no session at all; choose another one.",
        "no scan is chosen in the explorer; choose one, then use the layer as its region.",
    ]


def test_naparis_preferences_have_our_page_and_set_what_we_read(viewer: Any, qtbot: Any) -> None:
    from napari._qt.dialogs.preferences_dialog import PreferencesDialog

    dialog = PreferencesDialog(parent=viewer.window._qt_window)
    qtbot.addWidget(dialog)
    pages = dialog.findChild(QListWidget)
    assert pages is not None
    (row,) = (i for i in range(pages.count()) if pages.item(i).text() == "napari-cease")
    page = dialog._stack.widget(row)
    boxes = {tuple(box.itemText(i) for i in range(box.count())): box for box in page.findChildren(QComboBox)}
    boxes[settings.DEVICES].setCurrentText("cpu")
    assert preferences().device == "cpu"
    boxes[settings.UNITS].setCurrentText("intensity")
    assert preferences().epsilon_unit == "intensity"


def test_scans_of_ours_are_not_attacked_again(viewer: Any, errors: list[str]) -> None:
    viewer.open_sample("napari-cease", "polyp")
    explorer_of(viewer)
    layer = viewer.add_image(np.eye(8), name="changed", metadata={"cease": {"role": "adversarial", "side": None}})
    viewer.layers.selection = {layer}
    commands.attack_layer()
    assert errors == ["changed is made by the explorer; select the scan that it belongs to."]
