"""The session refuses what does not fit, and tells of what changes."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cease_core.attacks import FGSM, PGD
from napari_cease.session import ExplorerSession
from napari_cease.units import LEVELS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("level", -1),
        ("level", LEVELS + 1),
        ("top", 0),
        ("parameters", {"steps": 0}),
        ("parameters", {"norm": "l7"}),
        ("parameters", {"wish": 1}),
        ("parameters", {"epsilon": 0.1}),
        ("target", "the moon"),
        ("region", "a path"),
        ("gain", 0),
        ("index", -1),
        ("attack", "magic"),
        ("scan", "a path"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_and_keeps_its_value(field, value):
    session = ExplorerSession()
    before = getattr(session, field)
    with pytest.raises(ValidationError):
        setattr(session, field, value)
    assert getattr(session, field) == before


def test_an_unknown_field_is_refused():
    with pytest.raises(ValidationError):
        ExplorerSession(epsilons=3)


def test_a_change_is_told_once_and_no_change_not_at_all():
    session, heard = ExplorerSession(), []
    session.events.level.connect(heard.append)
    session.level = 8
    session.level = 8
    assert heard == [8]


def test_epsilon_counts_in_255ths():
    assert ExplorerSession(level=51).epsilon == pytest.approx(0.2)


def test_the_attack_has_the_fields_values():
    session = ExplorerSession(level=8, parameters={"norm": "l2", "loss": "cross_entropy", "steps": 7})
    attack = session.make_attack()
    assert attack == PGD(epsilon=8 / 255, norm="l2", loss="cross_entropy", steps=7)
    session.attack = "fgsm"
    assert session.make_attack(0.5) == FGSM(epsilon=0.5, norm="l2", loss="cross_entropy")
