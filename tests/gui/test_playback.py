"""Play: one sweep through what is known, given up at whatever the user does."""

from __future__ import annotations

import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from napari_cease.widgets import playback
from napari_cease.widgets.playback import there_and_back

WAIT = 30_000


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(playback, "PACE", 15)


def play(dock):
    QTest.mouseClick(dock.play, Qt.MouseButton.LeftButton)


def finished(qtbot, dock):
    qtbot.waitUntil(lambda: not dock.play.playing, timeout=WAIT)


def test_a_sweep_goes_up_and_comes_back():
    assert there_and_back(3) == [0, 1, 2, 3, 2, 1, 0]


def test_playing_shows_every_epsilon_there_and_back_and_computes_nothing(opened, qtbot):
    _, dock, *_ = opened
    heard, titles = [], []
    dock.session.events.level.connect(heard.append)
    dock.explorer.drawn.connect(lambda: titles.append(dock.explorer.panes.find("mask", "undefended").name))
    assert dock.play.text() == "▶"
    play(dock)
    assert dock.play.text() == "❚❚"
    finished(qtbot, dock)
    assert heard == there_and_back(16)[1:]
    assert [t.split(" · ")[1] for t in titles] == [f"ε {level}/255" for level in heard]
    assert dock.play.text() == "▶"
    assert dock.explorer.settled


def test_it_waits_until_every_epsilon_is_known(docked, picture, show_layers, choose, qtbot):
    viewer, dock = docked()
    dock.session.tune(steps=60)
    show_layers(viewer, *picture)
    choose(dock, "polyp")
    play(dock)
    heard = []
    dock.session.events.level.connect(lambda level: heard.append((level, dock.explorer.results.complete)))
    finished(qtbot, dock)
    assert [level for level, _ in heard] == there_and_back(16)[1:]
    assert all(complete for _, complete in heard)


def test_after_a_cancelled_attack_it_asks_for_what_is_missing(opened, qtbot, settled):
    _, dock, *_ = opened
    dock.session.tune(steps=300)
    qtbot.waitUntil(lambda: dock.explorer._running is not None and bool(dock.explorer.results.opened), timeout=WAIT)
    QTest.mouseClick(dock.cancel, Qt.MouseButton.LeftButton)
    settled(dock)
    play(dock)
    assert dock.explorer._running is not None
    QTest.mouseClick(dock.cancel, Qt.MouseButton.LeftButton)
    finished(qtbot, dock)
    assert dock.session.level == 0


def test_paused_it_stays_and_goes_on_from_there(opened, qtbot):
    _, dock, *_ = opened
    heard = []
    dock.session.events.level.connect(heard.append)
    play(dock)
    qtbot.waitUntil(lambda: len(heard) > 3, timeout=WAIT)
    play(dock)
    paused = len(heard)
    qtbot.wait(60)
    assert len(heard) == paused < len(there_and_back(16)) - 1
    play(dock)
    finished(qtbot, dock)
    assert heard == there_and_back(16)[1:]


@pytest.mark.parametrize(
    "action",
    [
        lambda dock: QTest.keyClick(dock.slider, Qt.Key.Key_Right),
        lambda dock: QTest.mouseClick(dock.readout, Qt.MouseButton.LeftButton, pos=QPoint(3, 3)),
        lambda dock: dock.session.tune(steps=3),
        lambda dock: setattr(dock.session, "level", 9),
        lambda dock: dock.shutdown(),
    ],
    ids=["key", "click", "attack", "program", "close"],
)
def test_any_action_stops_it_at_once(opened, qtbot, action):
    _, dock, *_ = opened
    play(dock)
    qtbot.waitUntil(lambda: dock.session.level == 2, timeout=WAIT)
    action(dock)
    assert not dock.play.playing
    at = dock.session.level
    qtbot.wait(60)
    assert dock.session.level == at
