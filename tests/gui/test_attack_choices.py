"""Whatever attack the engine has can be chosen, set and run from the dock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from cease_core.attacks import ATTACKS, LOSSES, MIFGSM, PGD, About, Transfer
from cease_core.attacks.on_scan import pose_on_scan
from cease_core.models import load_model, prepare
from napari_cease.choices import GROUPS, editors, make, offered
from napari_cease.jobs.exploration import SIDES, Request, View, explore

WAIT = 30_000
BUDGET = {"steps": 2, "queries": 3, "draws": 1, "restarts": 1}


@dataclass(frozen=True, kw_only=True)
class Probe(PGD):
    """An attack that nobody has heard of.

    Parameters
    ----------
    zeal
        How hard it tries.
    """

    about: ClassVar[About] = About(
        title="Probe",
        group="control",
        definition="It does as it is told.",
        source="Nobody 2026",
        when="Never.",
        norms=("l2",),
        shown=("norm", "mood", "zeal", "thorough", "weight", "span"),
    )

    norm: Literal["linf", "l2"] = "l2"
    mood: Literal["calm", "very_cross"] = "calm"
    zeal: int = 3
    thorough: bool = False
    weight: float = 0.5
    span: tuple[float, float] = (0.0, 0.5)


@pytest.fixture
def probe(monkeypatch):
    monkeypatch.setitem(ATTACKS, "probe", Probe)
    editors.cache_clear()
    yield Probe
    editors.cache_clear()


def pick(dock, key):
    dock.attack.value = key
    assert dock.session.attack == key


# --- the box ---


def test_every_attack_is_offered_once_and_under_its_group(opened):
    _, dock, *_ = opened
    assert sorted(dock.attack.values) == sorted(ATTACKS)
    groups = offered(targeted=False, twins=True)
    assert dock.attack.headings == list(groups)
    for key, kind in ATTACKS.items():
        assert key in groups[GROUPS[kind.about.group]]


def test_headings_are_passed_over(opened):
    _, dock, *_ = opened
    box = dock.attack
    pick(dock, box.values[0])
    walked = [box.value]
    for _ in range(2 * len(ATTACKS)):
        QTest.keyClick(box, Qt.Key.Key_Down)
        if box.value != walked[-1]:
            walked.append(box.value)
    # Choosing one that needs a target narrows what comes after it to attacks that reach one.
    assert None not in walked
    assert walked[-1] == box.values[-1]
    assert len(walked) > len(box.headings)


def test_the_box_explains_what_is_chosen(opened):
    _, dock, *_ = opened
    for key in ("fgsm", "pgd"):
        pick(dock, key)
        about = ATTACKS[key].about
        assert all(part in dock.attack.toolTip() for part in (about.definition, about.when, about.source))


def test_a_new_attack_appears_with_an_editor_for_each_of_its_parameters(probe, opened, qtbot):
    _, dock, *_ = opened
    pick(dock, "probe")
    fields = dock.parameters.fields
    assert tuple(fields) == probe.about.shown
    assert fields["norm"].widget.values == ["l2"]
    assert fields["mood"].widget.values == ["calm", "very_cross"]
    assert {name: fields[name].value() for name in probe.about.shown[2:]} == {
        "zeal": 3,
        "thorough": False,
        "weight": 0.5,
        "span": (0.0, 0.5),
    }
    assert fields["zeal"].widget.toolTip() == "How hard it tries."
    fields["mood"].widget.value = "very_cross"
    fields["zeal"].widget.setValue(7)
    box = fields["thorough"].widget
    qtbot.waitUntil(lambda: box.isVisible() and box.height() < 60, timeout=WAIT)
    QTest.mouseClick(box, Qt.MouseButton.LeftButton, pos=QPoint(8, box.height() // 2))
    fields["weight"].widget.setValue(0.25)
    fields["span"].widget.ends[1].setValue(0.75)
    wanted = Probe(epsilon=0.0, mood="very_cross", zeal=7, thorough=True, weight=0.25, span=(0.0, 0.75))
    assert dock.session.rule == wanted


# --- the parameters ---


@pytest.mark.parametrize("key", ATTACKS)
def test_an_attack_shows_the_parameters_that_it_names_at_its_defaults(key):
    assert tuple(e.name for e in editors(key)) == ATTACKS[key].about.shown
    default = ATTACKS[key](epsilon=0.0)
    assert make(key, {}) == default
    by_name = {e.name: e for e in editors(key)}
    if "norm" in by_name:
        assert tuple(value for _, value in by_name["norm"].choices) == ATTACKS[key].about.norms
    if "loss" in by_name:
        assert [value for _, value in by_name["loss"].choices] == list(LOSSES)


def test_what_was_set_is_kept_where_it_is_shown_and_changes_nothing_where_it_is_hidden(opened):
    _, dock, *_ = opened
    dock.parameters.fields["steps"].widget.setValue(9)
    dock.parameters.fields["loss"].widget.value = "js"
    for key, kind in ATTACKS.items():
        rule, default = make(key, dock.session.parameters), kind()
        shown = kind.about.shown
        if "steps" in shown:
            assert rule.steps == 9
        assert rule.loss == ("js" if "loss" in shown else default.loss)
    pick(dock, "fgsm")
    assert "steps" not in dock.parameters.fields
    assert dock.top.native.isVisible()
    pick(dock, "pgd")
    assert dock.parameters.fields["steps"].value() == 9


def test_a_value_that_the_attack_refuses_is_taken_back_in_a_sentence(opened, qtbot, errors):
    _, dock, *_ = opened
    pick(dock, "frequency")
    ends = dock.parameters.fields["band"].widget.ends
    ends[0].setValue(0.9)
    qtbot.waitUntil(lambda: "band" in dock.note.text(), timeout=WAIT)
    assert [end.value() for end in ends] == [0.0, 0.25]
    ends[1].setValue(0.5)
    qtbot.waitUntil(lambda: "band" not in dock.note.text(), timeout=WAIT)
    assert dock.session.rule.band == (0.0, 0.5)
    assert errors == []


# --- running them ---


def test_every_attack_runs_at_every_epsilon_without_a_complaint(opened, settled, errors):
    _, dock, *_ = opened
    dock.session.tune(**BUDGET)
    dock.top.value = 2
    for key in ATTACKS:
        pick(dock, key)
        settled(dock)
        views = {k: v for k, v in dock.explorer.results.views.items() if not v.preview}
        assert set(views) == {(side, level) for side in SIDES for level in range(3)}, key
        for (_, level), view in views.items():
            if level and ATTACKS[key].about.group not in ("frequency", "minimal"):
                assert np.abs(view.perturbation).max() <= level / 255 + 1e-6, key
        dock.target.value = None
    assert errors == []


def test_a_slow_attack_shows_progress_answers_the_slider_and_can_be_cancelled(opened, settled, qtbot, errors):
    _, dock, *_ = opened
    heard = []
    dock.explorer.progressed.connect(lambda done, total: heard.append((done, total)))
    dock.session.tune(queries=100_000)
    pick(dock, "square")
    qtbot.waitUntil(lambda: len(heard) > 1 and bool(dock.explorer.results.opened), timeout=WAIT)
    dock.slider.setValue(3)
    qtbot.waitUntil(lambda: dock.explorer.view("defended") is not None, timeout=WAIT)
    assert dock.explorer.view("defended").preview
    assert all(0 < done <= total for done, total in heard)
    QTest.mouseClick(dock.cancel, Qt.MouseButton.LeftButton)
    settled(dock)
    assert errors == []


# --- transfer ---


def test_transfer_needs_two_models_of_the_same_classes(opened, settled, qtbot):
    _, dock, *_ = opened
    pick(dock, "transfer")
    settled(dock)
    dock.models["defended"].value = None
    assert dock.session.attack == "pgd"
    assert "transfer" not in dock.attack.values
    qtbot.waitUntil(lambda: "needs a second model" in dock.note.text(), timeout=WAIT)
    settled(dock)


def test_each_side_is_attacked_with_what_was_made_on_the_other(library, picture):
    scan, labels = picture
    models = {side: prepare(load_model(library / f"polyp-{side}")) for side in SIDES}
    epsilon = 6 / 255
    events = []
    request = Request(
        scan=scan,
        labels=labels,
        models={side: lambda side=side: models[side] for side in SIDES},
        attack=Transfer(inner=MIFGSM(steps=4), loss="soft_dice"),
        epsilons=(epsilon,),
        extent="slice",
        index=0,
    )
    explore(request, events.append, lambda: None, lambda: False)
    found = {e.side: e for e in events if isinstance(e, View) and not e.preview}
    for side, other in zip(SIDES, reversed(SIDES), strict=True):
        source = pose_on_scan(models[other], scan, labels).problem("soft_dice")
        made = MIFGSM(epsilon=epsilon, steps=4, loss="soft_dice").run(source)
        judged = pose_on_scan(models[side], scan, labels).problem("soft_dice")
        assert found[side].dice == pytest.approx(float(judged.look(made.perturbation).score))
        np.testing.assert_array_equal(found[side].perturbation, made.perturbation[0].numpy())
