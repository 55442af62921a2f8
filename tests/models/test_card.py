"""A card says what a model expects, and refuses what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from cease_core.errors import CeaseError
from cease_core.models import ClassInfo, ModelCard, WindowRule
from cease_core.models.card import PALETTE, same_classes
from cease_core.scan import Scan, Window

TWO = (ClassInfo(id=1, name="left", color="#E69F00"), ClassInfo(id=2, name="right", color="#56B4E9"))
RAMP = Scan(np.arange(1001, dtype=np.float32).reshape(1, 7, 143), np.eye(4))


@pytest.mark.parametrize(("mode", "classes", "outputs"), [("binary", 1, 1), ("multiclass", 2, 3), ("multilabel", 2, 2)])
def test_outputs(make_card, mode: str, classes: int, outputs: int) -> None:
    assert make_card(mode=mode, classes=TWO[:classes]).outputs == outputs


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": TWO}, "a binary model has exactly one"),
        ({"classes": ()}, "at least 1 item"),
        ({"classes": TWO[::-1], "mode": "multiclass"}, "ids must be 1, 2, … in order"),
        ({"classes": TWO[1:]}, "ids must be 1, 2, … in order"),
        ({"name": "../up"}, "name"),
        ({"name": ""}, "name"),
        ({"ndim": 4}, "ndim"),
        ({"channels": 0}, "channels"),
        ({"downsample": 0}, "downsample"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_what_cannot_be(make_card, changes: dict, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        make_card(**changes)


@pytest.mark.parametrize("color", ["E69F00", "#E69F0", "orange", "#E69F00FF"])
def test_colours_are_six_digits(color: str) -> None:
    with pytest.raises(ValidationError):
        ClassInfo(id=1, name="x", color=color)


def test_background_is_no_class() -> None:
    with pytest.raises(ValidationError):
        ClassInfo(id=0, name="background", color="#000000")


def test_the_palette_is_one_of_colours() -> None:
    assert len({ClassInfo(id=1, name="x", color=c).color for c in PALETTE}) == len(PALETTE)


def test_json_round_trip(make_card) -> None:
    card = make_card(mode="multilabel", classes=TWO, spacing=(1.0, 0.5), metrics={"dice": 0.25}, notes="ε")
    again = ModelCard.model_validate_json(card.model_dump_json())
    assert again.model_dump(mode="json") == card.model_dump(mode="json")


def test_cards_do_not_change(make_card) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_card().title = "other"


def test_fixed_window() -> None:
    assert WindowRule(kind="fixed", low=-150, high=250).resolve(RAMP) == Window(-150, 250)


def test_percentile_window() -> None:
    assert WindowRule(kind="percentile", low=10, high=90).resolve(RAMP) == pytest.approx((100, 900))


def test_percentiles_that_coincide_give_the_full_range() -> None:
    image = np.zeros((1, 10, 10), np.float32)
    image[0, 0, 0] = 5
    assert WindowRule(kind="percentile", low=2, high=98).resolve(Scan(image, np.eye(4))) == Window(0, 5)


@pytest.mark.parametrize("kind", ["fixed", "percentile"])
def test_a_constant_scan_has_no_window(kind: str) -> None:
    flat = Scan(np.full((1, 4, 4), 3, np.float32), np.eye(4), name="flat")
    with pytest.raises(
        CeaseError, match=r"^flat: every voxel has the same value; open an image that shows something\.$"
    ):
        WindowRule(kind=kind, low=0, high=1).resolve(flat)


def test_a_window_has_a_width() -> None:
    with pytest.raises(ValidationError, match="high must be above low"):
        WindowRule(kind="fixed", low=1, high=1)


@pytest.mark.parametrize(
    ("theirs", "same"),
    [
        (("myocardium",), True),
        (("class 1",), True),
        (("polyp",), False),
        (("class 2",), False),
        (("myocardium", "blood"), False),
    ],
)
def test_a_numbered_class_fits_any_name_and_a_name_only_itself(make_card, theirs: tuple[str, ...], same: bool) -> None:
    def card(*names: str) -> ModelCard:
        classes = tuple(ClassInfo(id=i, name=name, color="#E69F00") for i, name in enumerate(names, start=1))
        return make_card(mode="multiclass", classes=classes)

    assert same_classes(card("myocardium"), card(*theirs)) is same
    assert same_classes(card(*theirs), card("myocardium")) is same
