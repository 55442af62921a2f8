"""Figure, numbers and animation, as files and on the clipboard."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image
from qtpy.QtCore import Qt
from qtpy.QtGui import QImage
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from cease_core.errors import CeaseError
from cease_core.models import find_model
from napari_cease import export
from napari_cease.export import PACE, REST, Curve, numbers, with_suffix, write_animation
from napari_cease.jobs.exploration import SIDES
from napari_cease.layers import COLOURS
from napari_cease.widgets.figure import legend_rows
from napari_cease.widgets.saving import NOTHING, draw_caption

WAIT = 30_000


def rows(path):
    """The CSV's facts and its table."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    head = [line for line in lines if line.startswith("# ")]
    facts = dict(line[2:].rstrip("\n").split(": ", 1) for line in head)
    return facts, list(csv.DictReader(io.StringIO("".join(lines[len(head) :]))))


def saved(qtbot, dock):
    qtbot.waitUntil(lambda: not dock.save.recorder.running, timeout=WAIT)


@pytest.fixture
def filmed(opened):
    """The small picture under attack, where the canvas is as bright as ε."""
    _, dock, *_ = opened
    dock.save.recorder.grab = lambda: np.full((60, 90, 4), 10 * dock.session.level, np.uint8)
    return dock


# --- numbers ---


def test_numbers_are_those_of_the_curve_with_the_attacks_settings(opened, tmp_path):
    _, dock, *_ = opened
    dock.save.save_numbers(tmp_path / "dice")
    facts, table = rows(tmp_path / "dice.csv")
    assert facts["scan"] == "picture"
    assert facts["unit"] == "grey levels"
    assert facts["attack"] == "PGD"
    assert "steps = 4" in facts["settings"]
    assert facts["undefended"] == "Polyp, undefended (test)"
    assert len(table) == 2 * 17
    for side in SIDES:
        mine = [row for row in table if row["side"] == side]
        levels, dice = dock.curve.lines[side].getData()
        assert [int(row["epsilon_255"]) for row in mine] == list(levels)
        assert [float(row["dice"]) for row in mine] == pytest.approx(list(dice), abs=1e-6)
        assert [float(row["epsilon"]) for row in mine] == pytest.approx(levels / 255, rel=1e-5)
        assert [float(row["epsilon_unit"]) for row in mine] == pytest.approx(levels)


def test_a_title_with_a_comma_or_a_new_line_stays_in_its_place():
    text = numbers([Curve("defended", "a, b", "c", (0,), (1.0,), "#000000")], {"scan": "two\nlines"}, {"defended": 2.0})
    assert text.splitlines()[0] == "# scan: two lines"
    assert text.splitlines()[2] == 'defended,"a, b",c,0,0,0,1.000000'


# --- figure ---


def test_a_figure_as_svg_and_as_png_shows_both_curves(opened, tmp_path):
    _, dock, *_ = opened
    dock.save.save_figure(tmp_path / "curve.svg")
    drawing = (tmp_path / "curve.svg").read_text(encoding="utf-8").lower()
    dock.save.save_figure(tmp_path / "curve")
    pixels = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB")).reshape(-1, 3)
    for colour in COLOURS.values():
        assert colour.lower() in drawing
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(axis=1).sum() > 100
    assert "polyp, undefended (test)" in drawing


def test_a_long_legend_takes_more_rows_and_names_each_class_once():
    curves = [
        Curve(side, "CT", f"organ number {i}", (0, 1), (1.0, 0.5), "#E69F00") for side in SIDES for i in range(10)
    ]
    rows = legend_rows(curves, 600)
    assert len(rows) > 2
    entries = [entry for row in rows for entry in row]
    assert len(entries) == 12
    assert entries[-1].endswith("defended")


def test_the_figure_is_copied(opened):
    _, dock, *_ = opened
    QApplication.clipboard().clear()
    next(a for a in dock.save.menu().actions() if a.text() == "Copy figure").trigger()
    image = QApplication.clipboard().image()
    assert isinstance(image, QImage)
    assert image.width() == 1440


# --- animation ---


def test_an_animation_goes_up_and_back_and_the_window_stays_as_it_was(filmed, tmp_path, qtbot):
    dock, heard = filmed, []
    dock.slider.setValue(5)
    dock.save.recorder.progressed.connect(lambda done, total: heard.append((done, total)))
    dock.save.save_animation(tmp_path / "sweep")
    assert dock.cancel.isEnabled()
    saved(qtbot, dock)
    assert dock.session.level == 5
    assert not dock.cancel.isEnabled()
    assert heard == [(done, 34) for done in range(1, 35)]
    film = Image.open(tmp_path / "sweep.gif")
    assert film.n_frames == 32
    assert film.info["loop"] == 0
    seen, shown = [], []
    for i in range(film.n_frames):
        film.seek(i)
        seen.append(film.convert("RGB").getpixel((40, 20))[0] // 10)
        shown.append(film.info["duration"])
    assert seen == [*range(17), *range(15, 0, -1)]
    assert shown == [REST, *[PACE] * 15, REST, *[PACE] * 15]
    # The strip under the canvas.
    assert film.size[1] > 60


def test_cancelled_it_writes_nothing_and_goes_back(filmed, tmp_path, qtbot):
    dock = filmed
    dock.slider.setValue(3)
    dock.save.save_animation(tmp_path / "sweep.gif")
    qtbot.waitUntil(lambda: dock.session.level == 8, timeout=WAIT)
    QTest.mouseClick(dock.cancel, Qt.MouseButton.LeftButton)
    assert not dock.save.recorder.running
    assert not dock.cancel.isEnabled()
    assert dock.session.level == 3
    assert list(tmp_path.iterdir()) == []


def test_a_choice_meanwhile_ends_it_with_a_sentence(filmed, tmp_path, qtbot, errors):
    dock = filmed
    dock.save.save_animation(tmp_path / "sweep.gif")
    qtbot.waitUntil(lambda: dock.session.level == 4, timeout=WAIT)
    QTest.keyClick(dock.slider, Qt.Key.Key_Right)
    assert not dock.save.recorder.running
    assert dock.session.level == 5
    assert len(errors) == 1
    assert "something else was chosen" in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_closing_the_dock_ends_it(filmed, tmp_path, qtbot):
    dock = filmed
    dock.save.save_animation(tmp_path / "sweep.gif")
    qtbot.waitUntil(lambda: dock.session.level == 4, timeout=WAIT)
    dock.shutdown()
    assert not dock.save.recorder.running
    assert list(tmp_path.iterdir()) == []


def test_stopped_between_two_frames_nothing_is_written(tmp_path):
    told = []
    pictures = [np.zeros((4, 8, 3), np.uint8)] * 3
    write_animation(tmp_path / "a.gif", pictures, pictures, lambda *done: told.append(done), lambda: len(told) == 2)
    assert told == [(1, 3), (2, 3)]
    assert list(tmp_path.iterdir()) == []


def test_a_wide_canvas_becomes_no_wider_than_a_page(tmp_path):
    picture = np.zeros((500, 1501, 3), np.uint8)
    width = export.fitted_width(1501)
    caption = draw_caption("ε = 1/255", {"undefended": "Dice 0.5"}, width)
    write_animation(tmp_path / "a.gif", [picture] * 2, [caption] * 2, lambda *_: None, lambda: False)
    assert Image.open(tmp_path / "a.gif").size[0] == width == 960


def test_the_caption_names_each_model_in_its_colour():
    strip = draw_caption("ε = 8/255", {"undefended": "Dice 0.31", "defended": "Dice 0.80"}, 700)
    assert strip.shape[1:] == (700, 3)
    for colour in COLOURS.values():
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (strip == rgb).all(axis=2).any()


# --- what goes wrong ---


@pytest.mark.parametrize("what", ["save_numbers", "save_figure", "save_animation"])
def test_without_a_model_there_is_nothing_to_save(docked, picture, show_layers, tmp_path, errors, what):
    viewer, dock = docked()
    show_layers(viewer, *picture)
    getattr(dock.save, what)(tmp_path / "file")
    assert errors == [NOTHING]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["save_numbers", "save_figure", "save_animation"])
def test_a_folder_that_does_not_exist_is_a_sentence(filmed, tmp_path, qtbot, errors, what):
    getattr(filmed.save, what)(tmp_path / "nowhere" / "file")
    qtbot.waitUntil(lambda: bool(errors), timeout=WAIT)
    assert len(errors) == 1
    assert "was not written: its folder does not exist" in errors[0]
    assert not filmed.cancel.isEnabled()


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(CeaseError, match=r"ends in \.png or \.svg"):
        with_suffix(tmp_path / "curve.bmp", (".png", ".svg"))


# --- classes ---


def test_models_of_several_classes_get_a_curve_for_each(docked, settled, tmp_path):
    from napari_cease.samples import hippocampus

    viewer, dock = docked()
    dock.session.attack, dock.session.top = "fgsm", 3
    image, mask = [viewer._add_layer_from_data(*data)[0] for data in hippocampus()]
    dock.choose(image, mask, find_model("hippocampus-undefended"), find_model("hippocampus-defended"))
    settled(dock)
    assert not dock.curves.classes.isHidden()
    assert dock.curve.class_lines == []
    dock.curves.classes.setCurrentIndex(1)
    assert [line.isVisible() for line in dock.curve.lines.values()] == [False, False]
    assert len(dock.curve.class_lines) == 4
    mean = dock.curve.lines["undefended"].getData()[1]
    first, second = (line.getData()[1] for line in dock.curve.class_lines[:2])
    np.testing.assert_allclose((first + second) / 2, mean, rtol=1e-5)
    pens = [line.opts["pen"] for line in dock.curve.class_lines]
    assert [pen.style() for pen in pens] == [Qt.PenStyle.SolidLine] * 2 + [Qt.PenStyle.DashLine] * 2
    assert pens[0].color() == pens[2].color() != pens[1].color()
    assert "anterior" in dock.curves.legend.text()
    dock.save.save_numbers(tmp_path / "dice.csv")
    _, table = rows(tmp_path / "dice.csv")
    assert [row["class"] for row in table[::4]] == ["mean", "mean", "anterior", "posterior", "anterior", "posterior"]
    dock.save.save_figure(tmp_path / "curve.svg")
    drawing = (tmp_path / "curve.svg").read_text(encoding="utf-8")
    assert all(word in drawing for word in ("anterior", "posterior", "undefended", "defended"))
    dock.curves.classes.setCurrentIndex(0)
    assert dock.curve.class_lines == []
    assert dock.curves.legend.isHidden()


def test_models_of_one_class_are_offered_no_choice(opened):
    _, dock, *_ = opened
    assert dock.curves.classes.isHidden()
    assert not dock.curves.split
