"""A network that was made elsewhere comes into the library with the mouse: described, agreed to, tried, taken in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from qtpy.QtCore import Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QDialogButtonBox, QMessageBox
from torch import nn

from cease_core.models import WindowRule, open_model
from cease_core.models.foreign.drafts import Choices
from napari_cease.widgets.import_form import ImportForm
from napari_cease.widgets.models import ModelsDock

WAIT = 30_000


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "library"
    monkeypatch.setenv("CEASE_MODELS", str(folder))
    monkeypatch.setenv("CEASE_CONSENT", str(tmp_path / "home"))
    return folder


@pytest.fixture
def dock(windowless: Callable[..., Any]) -> Any:
    return windowless(ModelsDock, width=400)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A network with three channels of logits."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 3, 3, padding=1)).eval()
    torch.jit.script(network).save(str(tmp_path / "net.ts"))
    return tmp_path / "net.ts"


def whenever(kind: type, answer: Callable[[Any], None], qtbot: Any) -> QTimer:
    """Answers dialogs of a kind as they appear, as a person would, from beside the loop that they run."""
    timer = QTimer()

    def look() -> None:
        window = QApplication.activeModalWidget()
        if isinstance(window, kind):
            answer(window)

    timer.timeout.connect(look)
    timer.start(50)
    return timer


def press(form: ImportForm, which: QDialogButtonBox.StandardButton) -> None:
    QTest.mouseClick(form.buttons.button(which), Qt.MouseButton.LeftButton)


def test_described_agreed_to_and_taken_in(dock, program, library, qtbot, errors) -> None:
    told: list[str] = []

    def describe(form: ImportForm) -> None:
        told.append(form.fault.text())
        form.name.setText("liver-net")
        # First too few classes for the network's channels: the form comes back with the reason.
        form.classes.setText("liver" if len(told) == 1 else "liver, tumour")
        form.mode.setCurrentIndex(form.mode.findData("multiclass"))
        form.normalise.setCurrentIndex(form.normalise.findData("zscore"))
        press(form, QDialogButtonBox.StandardButton.Ok)

    def agree(box: QMessageBox) -> None:
        told.append("agreed")
        QTest.mouseClick(box.button(QMessageBox.StandardButton.Yes), Qt.MouseButton.LeftButton)

    timers = [whenever(ImportForm, describe, qtbot), whenever(QMessageBox, agree, qtbot)]
    dock.ask_open = lambda: program
    QTest.mouseClick(dock.import_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(
        lambda: (library / "liver-net" / "card.json").is_file() and dock.import_button.isEnabled(), timeout=WAIT
    )
    for timer in timers:
        timer.stop()
    assert errors == []
    assert told[1] == "agreed"
    assert "channels" in told[2]
    assert dock.chosen.card.name == "liver-net"
    assert "TorchScript program" in dock.card.toPlainText()
    assert [c.name for c in open_model(library / "liver-net").card.classes] == ["liver", "tumour"]


def test_no_is_the_answer_that_enter_gives(dock, program, library, qtbot) -> None:
    def describe(form: ImportForm) -> None:
        form.classes.setText("liver, tumour")
        form.mode.setCurrentIndex(form.mode.findData("multiclass"))
        form.normalise.setCurrentIndex(form.normalise.findData("zscore"))
        press(form, QDialogButtonBox.StandardButton.Ok)

    asked: list[str] = []

    def enter(box: QMessageBox) -> None:
        asked.append(box.text())
        QTest.keyClick(box, Qt.Key.Key_Return)

    timers = [whenever(ImportForm, describe, qtbot), whenever(QMessageBox, enter, qtbot)]
    dock.import_from(program)
    qtbot.waitUntil(lambda: bool(asked) and dock.import_button.isEnabled(), timeout=WAIT)
    for timer in timers:
        timer.stop()
    assert "Do you trust where net.ts is from?" in asked[0]
    assert not list(library.glob("*/card.json"))


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        ("window", "10", "two numbers"),
        ("window", "0, inf", "Window: write numbers"),
        ("window", "nan, 1", "Window: write numbers"),
        ("window", "240, -160", "the lower number first"),
        ("spacing", "1 mm", "numbers with commas"),
        ("spacing", "−1, 1, 1", "above 0, or 0 for an axis that stays"),
        ("name", "../../evil", "Name: write letters, digits"),
        ("classes", "liver, a, a", "a is there 2 times; give each class its own name"),
        ("arguments", "{", "write JSON"),
    ],
)
def test_what_cannot_be_understood_stays_open(field: str, text: str, sentence: str, qtbot, tmp_path) -> None:
    form = ImportForm(tmp_path / "net.pt", "weights", Choices())
    qtbot.addWidget(form)
    form.show()
    getattr(form, field).setText(text)
    press(form, QDialogButtonBox.StandardButton.Ok)
    assert form.isVisible()
    assert sentence in form.fault.text()


def test_what_is_said_goes_over_what_was_known(qtbot, tmp_path) -> None:
    form = ImportForm(tmp_path / "net.pt", "weights", Choices(orientation="RAS", classes=("spleen",)))
    qtbot.addWidget(form)
    form.window.setText("-160, 240")
    form.arguments.setText('{"channels": [16, 32]}')
    said = form.choices()
    assert (said.orientation, said.classes, said.args) == ("RAS", ("spleen",), {"channels": [16, 32]})
    assert said.window is not None
    assert (said.window.low, said.window.high) == (-160, 240)


def test_a_minus_may_be_the_sign_and_a_voxel_size_0(qtbot, tmp_path) -> None:
    form = ImportForm(tmp_path / "net.pt", "weights", Choices())
    qtbot.addWidget(form)
    form.window.setText("−160, 240")
    form.spacing.setText("0, 0.5, 0.5")
    said = form.choices()
    assert said.window is not None
    assert (said.window.low, said.window.high) == (-160, 240)
    assert said.spacing == (0, 0.5, 0.5)


def test_percentiles_that_are_known_stay_unless_a_window_is_said(qtbot, tmp_path) -> None:
    known = WindowRule(kind="percentile", low=2, high=98)
    form = ImportForm(tmp_path / "net.pt", "weights", Choices(window=known))
    qtbot.addWidget(form)
    assert form.window.placeholderText() == "percentiles 2 to 98 of each scan"
    assert form.choices().window == known
    form.window.setText("0, 1")
    assert form.choices().window == WindowRule(kind="fixed", low=0, high=1)
