"""The models dock as a user meets it: look, sort, filter, try, import, export, rename, delete and take back."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QLineEdit
from safetensors.torch import load_file

from cease_core.models import find_model
from cease_core.models.foreign.drafts import Choices
from cease_core.models.library import SHIPPED
from cease_core.models.shelf import ROBUSTNESS, import_model
from napari_cease.widgets.model_card import card_html
from napari_cease.widgets.model_table import COLUMNS, MODEL, MODEL_MIME
from napari_cease.widgets.models import ModelsDock

WAIT = 30_000
ATTACKED = [column.title for column in COLUMNS].index("Attacked")


@pytest.fixture(autouse=True)
def shelf_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's library with one model, which an audit has looked at."""
    folder = tmp_path / "library"
    monkeypatch.setenv("CEASE_MODELS", str(folder))
    mine = folder / "mine"
    shutil.copytree(SHIPPED / "cardiac-defended", mine)
    card = json.loads((mine / "card.json").read_text())
    (mine / "card.json").write_text(json.dumps(card | {"name": "mine", "title": "My heart", "notes": "ε < <b>8</b>"}))
    audit = {"clean_dice": 0.7, "worst_dice": 0.3, "epsilon": 8 / 255, "asr_drop": 0.25, "verdict": "breaks"}
    (mine / ROBUSTNESS).write_text(json.dumps(audit))
    return folder


@pytest.fixture
def dock(windowless: Callable[..., Any]) -> Any:
    """The dock, as narrow as a dock may be, in a window without a canvas."""
    return windowless(ModelsDock, width=320)


@pytest.fixture
def infos() -> Iterator[list[str]]:
    """Sentences of the notifications that are no errors."""
    from napari.utils.notifications import NotificationSeverity, notification_manager

    said: list[str] = []

    def note(notification: Any) -> None:
        if notification.severity is NotificationSeverity.INFO:
            said.append(str(notification.message))

    notification_manager.notification_ready.connect(note)
    yield said
    notification_manager.notification_ready.disconnect(note)


def shown(dock: Any) -> list[Any]:
    """The models in the table, from top to bottom."""
    return [dock.sorted.index(row, 0).data(MODEL) for row in range(dock.sorted.rowCount())]


def titles(dock: Any) -> list[str]:
    return [model.card.title for model in shown(dock)]


def click_header(dock: Any, column: int) -> None:
    header = dock.view.horizontalHeader()
    x = header.sectionViewportPosition(column) + header.sectionSize(column) // 2
    QTest.mouseClick(header.viewport(), Qt.MouseButton.LeftButton, pos=QPoint(x, 5))


def click_row(dock: Any, title: str) -> None:
    rect = dock.view.visualRect(dock.sorted.index(titles(dock).index(title), 0))
    QTest.mouseClick(dock.view.viewport(), Qt.MouseButton.LeftButton, pos=rect.center())
    assert dock.chosen.card.title == title


def click(button: Any) -> None:
    assert button.isEnabled()
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)


def import_by_hand(dock: Any, qtbot: Any, source: Path) -> None:
    """Choose a file in the dialog, and wait for what comes of it."""
    dock.ask_open = lambda: source
    click(dock.import_button)
    assert not dock.import_button.isEnabled()
    assert dock.note.text() == f"Importing {source.name if source.suffix == '.zip' else source.parent.name}…"
    qtbot.waitUntil(lambda: dock.import_button.isEnabled(), timeout=WAIT)


# --- looking ---


def test_the_library_sorted_by_title_with_the_first_chosen(dock) -> None:
    assert titles(dock) == sorted(titles(dock), key=str.casefold)
    assert "My heart" in titles(dock)
    assert dock.chosen is shown(dock)[0]
    assert dock.chosen.card.title in dock.card.toPlainText()


def test_sorted_by_robustness_what_is_unknown_comes_last_either_way(dock) -> None:
    click_header(dock, ATTACKED)
    for ascending in (True, False):
        figures = [model.headline.worst_dice for model in shown(dock)]
        known = [figure for figure in figures if figure is not None]
        assert 1 < len(known) < len(figures)
        assert figures == sorted(known, reverse=not ascending) + [None] * (len(figures) - len(known))
        click_header(dock, ATTACKED)


def test_the_filter_asks_for_all_words(dock, qtbot) -> None:
    qtbot.keyClicks(dock.filter, "myocardium cease")
    assert titles(dock) == ["Cardiac MR, defended by CEASE", "My heart"]
    qtbot.keyClicks(dock.filter, " breaks")
    assert titles(dock) == ["My heart"]
    assert dock.chosen.card.name == "mine"
    qtbot.keyClicks(dock.filter, " zebra")
    assert titles(dock) == []
    assert dock.card.toPlainText() == "No model has “myocardium cease breaks zebra” on its card."
    assert not dock.try_button.isEnabled()
    assert not dock.delete_button.isEnabled()
    dock.filter.clear()
    assert len(titles(dock)) > 2
    assert dock.chosen is not None


def test_a_card_in_words(dock) -> None:
    click_row(dock, "My heart")
    text = dock.card.toPlainText()
    for part in (
        "Dice, attacked 0.300 at ε = 8/255",
        "Broken by an attack: 25% of the cases",
        "Verdict of the audit: breaks",
        "■ myocardium",
        "Window from percentile 0.5 to 99.5 of the scan",
        "Sunnybrook Cardiac Data, licence CC0",
        "24 cases to learn from, 3 held out",
        "Defence cease",
        "✓ Inpainting: kept",
        "Not taken: ",
        "ε < <b>8</b>",
    ):
        assert part in text
    assert "#e69f00" in dock.card.toHtml().lower()  # the swatch
    click_row(dock, "Polyp endoscopy, defended by CEASE")
    assert "the training's own attack at ε = 8/255 of the window; an audit attacks harder" in dock.card.toPlainText()
    assert "Lost more than 0.02 of the clean Dice" in dock.card.toPlainText()


def test_a_card_keeps_silent_on_a_licence_and_a_source_that_nobody_has_noted(dock) -> None:
    card = dock.chosen.card
    data = card.data.model_copy(update={"name": "My scans", "source": "unknown", "licence": "unknown"})
    own = replace(dock.chosen, card=card.model_copy(update={"licence": "unknown", "data": data}))
    assert "My scans" in card_html(own)
    assert "unknown" not in card_html(own)


def test_nothing_is_clipped_in_a_narrow_dock_and_more_appears_in_a_wide_one(dock, qtbot) -> None:
    header, main = dock.view.horizontalHeader(), dock.window()
    for width, columns in ((320, 3), (1600, len(COLUMNS))):
        main.resize(width, 800)
        QApplication.processEvents()
        assert sum(not header.isSectionHidden(column) for column in range(len(COLUMNS))) == columns
        assert header.length() <= dock.view.viewport().width()
        for button in (dock.try_button, dock.import_button, dock.export_button, dock.rename_button, dock.delete_button):
            assert button.width() > button.fontMetrics().horizontalAdvance(button.text())
    index = dock.sorted.index(0, 0)
    assert index.data(Qt.ItemDataRole.ToolTipRole).startswith(titles(dock)[0])
    for column in range(len(COLUMNS)):
        assert dock.sorted.headerData(column, Qt.Orientation.Horizontal, Qt.ItemDataRole.ToolTipRole)


def test_a_model_that_appears_in_the_folder_appears_in_the_table(dock, shelf_folder, qtbot) -> None:
    click_row(dock, "My heart")
    with qtbot.waitSignal(dock.changed, timeout=WAIT):
        import_model(SHIPPED / "polyp-undefended", name="trained")
    assert "Polyp endoscopy, undefended (trained)" in titles(dock)
    assert dock.chosen.card.title == "My heart"
    with qtbot.waitSignal(dock.changed, timeout=WAIT):
        (shelf_folder / "mine" / ROBUSTNESS).unlink()
    assert not dock.chosen.headline.audited


# --- import and export ---


def test_what_is_exported_is_imported_again_with_the_same_weights(dock, tmp_path, qtbot, infos) -> None:
    click_row(dock, "My heart")
    proposals = []
    dock.ask_save = lambda proposed: proposals.append(proposed.name) or tmp_path / "heart.zip"
    click(dock.export_button)
    qtbot.waitUntil(lambda: dock.export_button.isEnabled(), timeout=WAIT)
    assert proposals == ["mine.zip"]
    asked = []
    dock.ask_name = lambda sentence, free: asked.append((sentence, free)) or free
    import_by_hand(dock, qtbot, tmp_path / "heart.zip")
    qtbot.waitUntil(lambda: dock.import_button.isEnabled() and dock.chosen.card.name == "mine-2", timeout=WAIT)
    (question,) = asked
    assert question == (
        "there is already a model called 'mine'; choose another name, such as 'mine-2'.",
        "mine-2",
    )
    a, b = (load_file(find_model(name) / "model.safetensors") for name in ("mine", "mine-2"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert dock.chosen.headline.verdict == "breaks"
    assert infos == [f"Exported to {tmp_path / 'heart.zip'}.", "Imported My heart (mine-2)."]


def test_no_other_name_no_import(dock, qtbot, errors, shelf_folder) -> None:
    dock.ask_name = lambda sentence, free: None
    import_by_hand(dock, qtbot, SHIPPED / "polyp-defended" / "model.safetensors")
    assert [p.name for p in shelf_folder.iterdir()] == ["mine"]
    assert not errors
    dock.ask_open = dock.ask_save = lambda *_: None
    click(dock.import_button)
    click(dock.export_button)
    assert dock.import_button.isEnabled()


def _truncated(folder: Path) -> Path:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return weights


def _pickled(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weights": [0.0] * 10**6}))
    return folder / "model.safetensors"


def _escaping(folder: Path) -> Path:
    path = folder.parent / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
        archive.writestr("../escaped.txt", "x")
    return path


def _other_classes(folder: Path) -> Path:
    card = json.loads((folder / "card.json").read_text())
    card["classes"].append({"id": 2, "name": "blood", "color": "#56B4E9"})
    (folder / "card.json").write_text(json.dumps(card | {"mode": "multiclass"}))
    return folder / "card.json"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_truncated, "is damaged"),
        (_pickled, "is damaged"),
        (_escaping, "is not safe to open"),
        (_other_classes, "the card and the weights belong to different models"),
    ],
)
def test_a_bad_model_is_one_sentence_and_no_trace(
    dock, shelf_folder, tmp_path, qtbot, errors, spoil: Callable[[Path], Path], sentence: str
) -> None:
    source = tmp_path / "bad"
    shutil.copytree(SHIPPED / "cardiac-undefended", source)
    before = titles(dock)
    import_by_hand(dock, qtbot, spoil(source))
    (said,) = errors
    assert sentence in said
    assert "\n" not in said
    assert titles(dock) == before
    assert [p.name for p in shelf_folder.iterdir()] == ["mine"]


def test_a_file_dropped_on_the_dock_is_imported(dock, tmp_path, qtbot) -> None:
    source = tmp_path / "other"
    shutil.copytree(SHIPPED / "cardiac-undefended", source)
    card = json.loads((source / "card.json").read_text())
    (source / "card.json").write_text(json.dumps(card | {"name": "other", "title": "Other"}))
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(source))])
    _drop(dock, mime)
    qtbot.waitUntil(lambda: dock.chosen.card.title == "Other", timeout=WAIT)


def test_closing_the_dock_while_a_model_comes_in(dock, shelf_folder) -> None:
    dock.import_from(SHIPPED / "hippocampus-defended", Choices(name="late"))
    dock.shutdown()
    assert not [t for t in threading.enumerate() if t.name == "cease-worker"]
    late = [p for p in shelf_folder.iterdir() if p.name != "mine"]
    assert [p.name for p in late] in ([], ["late"])
    for folder in late:
        assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model.safetensors"]


# --- rename, delete, undo ---


def test_f2_renames_and_ctrl_z_takes_it_back(dock, qtbot) -> None:
    click_row(dock, "My heart")
    QTest.keyClick(dock.view, Qt.Key.Key_F2)
    (editor,) = dock.view.viewport().findChildren(QLineEdit)
    qtbot.keyClicks(editor, "A heart")
    with qtbot.waitSignal(dock.changed, timeout=WAIT):
        QTest.keyClick(editor, Qt.Key.Key_Return)
    assert titles(dock)[0] == "A heart"
    assert dock.chosen.card.title == "A heart"
    assert dock.chosen.card.name == "mine"
    assert dock.note.text() == "Renamed My heart to A heart."
    QTest.keyClick(dock.view, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert dock.chosen.card.title == "My heart"
    assert not dock.undo_button.isVisible()


def test_a_title_that_is_taken(dock, qtbot, errors) -> None:
    dock.rename(find_model("mine"), "Cardiac MR, undefended")
    assert errors == [
        "there is already a model called 'Cardiac MR, undefended'; "
        "choose another name, such as 'Cardiac MR, undefended 2'."
    ]
    assert "My heart" in titles(dock)
    assert not dock.undo_button.isVisible()


def test_del_deletes_and_undo_brings_it_back(dock, shelf_folder) -> None:
    click_row(dock, "My heart")
    model, row = dock.chosen, titles(dock).index("My heart")
    QTest.keyClick(dock.view, Qt.Key.Key_Delete)
    assert "My heart" not in titles(dock)
    assert not (shelf_folder / "mine").exists()
    assert dock.chosen is shown(dock)[row]  # the next one
    assert dock.note.text() == "Deleted My heart."
    click(dock.undo_button)
    assert dock.chosen == model
    assert (shelf_folder / "mine" / "model.safetensors").is_file()
    assert not dock.undo_button.isVisible()


def test_changes_are_taken_back_one_by_one(dock, qtbot) -> None:
    dock.rename(find_model("mine"), "Heart")
    qtbot.waitUntil(lambda: "Heart" in titles(dock), timeout=WAIT)
    click_row(dock, "Heart")
    click(dock.delete_button)
    for title in ("Heart", "My heart"):
        dock.delete_button.setFocus()
        QTest.keyClick(dock.delete_button, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
        assert dock.chosen.card.title == title
    QTest.keyClick(dock.view, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)  # nothing is left to undo
    assert dock.chosen.card.title == "My heart"


def test_shipped_models_stay(dock, errors, infos) -> None:
    click_row(dock, "Cardiac MR, undefended")
    assert not dock.rename_button.isEnabled()
    assert not dock.delete_button.isEnabled()
    assert dock.delete_button.toolTip() == "This model came with the program and cannot be changed"
    QTest.keyClick(dock.view, Qt.Key.Key_Delete)
    QTest.keyClick(dock.view, Qt.Key.Key_F2)
    assert errors == ["cardiac-undefended came with the program and cannot be deleted; choose a model of your own."]
    assert infos == ["This model came with the program and cannot be changed."]
    assert "Cardiac MR, undefended" in titles(dock)


# --- trying ---


def test_enter_tries_the_model_on_the_scan(dock, picture, volume, show_layers, qtbot, errors, infos) -> None:
    click_row(dock, "Polyp endoscopy, undefended")
    tried: list[Path] = []
    dock.tried.connect(tried.append)
    click(dock.try_button)
    assert infos == ["Open a scan first (File › Open File, or File › Open Sample › napari-cease)."]
    image, _ = show_layers(dock.viewer, *volume)
    QTest.keyClick(dock.view, Qt.Key.Key_Return)
    assert errors == [
        "Polyp endoscopy, undefended takes 2-D images, and volumes slice by slice; three channels (colour), but "
        f"{image.name} is 3-D with 1 channel; choose another model or scan."
    ]
    assert not tried
    image, _ = show_layers(dock.viewer, *picture)
    dock.viewer.layers.selection.active = image
    QTest.keyClick(dock.view, Qt.Key.Key_Return)
    assert tried == [SHIPPED / "polyp-undefended"]


def test_in_a_napari_window_a_row_is_dragged_onto_the_canvas(make_napari_viewer, picture, show_layers, qtbot) -> None:
    viewer = make_napari_viewer(show=True)
    dock = ModelsDock(viewer)
    viewer.window.add_dock_widget(dock, name="Models", area="right")
    show_layers(viewer, *picture)
    index = dock.sorted.index(titles(dock).index("Polyp endoscopy, defended by CEASE"), 0)
    mime = dock.sorted.mimeData([index])
    assert bytes(mime.data(MODEL_MIME)).decode() == str(SHIPPED / "polyp-defended")
    assert not mime.hasUrls()  # which napari would open
    layers = len(viewer.layers)
    with qtbot.waitSignal(dock.tried, timeout=WAIT) as tried:
        _drop(viewer.window._qt_viewer.canvas.native, mime)
    assert tried.args == [SHIPPED / "polyp-defended"]
    assert len(viewer.layers) == layers
    # napari has meanings of its own for some of the keys.
    click_row(dock, "My heart")
    QTest.keyClick(dock.view, Qt.Key.Key_Delete)
    assert "My heart" not in titles(dock)
    QTest.keyClick(dock.view, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert dock.chosen.card.title == "My heart"
    viewer.window.remove_dock_widget(dock)
    assert dock._closed


def _drop(widget: Any, mime: QMimeData) -> None:
    """Drag something over a widget and let it go there."""
    how = (Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
    for event in (QDragEnterEvent(QPoint(5, 5), *how), QDropEvent(QPointF(5, 5), *how)):
        QApplication.sendEvent(widget, event)
        assert event.isAccepted()
