"""Configs come from files, say what is wrong with them, and divide the cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from discs import disc_config
from pydantic import ValidationError

from cease_core.data import Case
from cease_core.errors import CeaseError
from cease_core.training import DataSource, load_config
from cease_core.training.config import parse_config


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("config.json", "{", "is not valid JSON"),
        ("config.yaml", "a: [", "is not valid YAML"),
        ("config.yaml", "- 1", "holds no entries; a training config is a mapping"),
        ("config.json", '{"name": 3}', r"name: Input should be a valid string; correct that entry"),
        ("config.json", None, "give the path of a training config"),
    ],
)
def test_configs_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(CeaseError, match=sentence):
        load_config(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rat": 1}, "c: learning_rat: there is no such entry; correct that entry."),
        ({"budget": 1}, "c: config: give either epochs or a budget of gradient computations; correct that entry."),
        (
            {"defence": {"preset": "at", "inner.ascent": "joint"}},
            "c: defence: the preset at cannot be changed so: defence: the inner attack ascends 'joint', but there is "
            "no contrastive term; correct that entry.",
        ),
    ],
)
def test_a_wrong_entry_is_told_in_a_sentence_of_ours(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CeaseError) as told:
        parse_config(disc_config().model_dump(mode="json") | changes, "c")
    assert str(told.value) == sentence


def test_a_config_comes_back_from_json(tmp_path: Path) -> None:
    config = disc_config(defence={"preset": "cease", "inner.steps": 3})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    again = load_config(tmp_path / "config.json")
    assert again == config
    assert again.digest == config.digest != disc_config(seed=1).digest


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 1, "budget": 1}, "either epochs or a budget"),
        ({"patch": (4, 4, 4)}, "patch has 3 sizes, but ndim is 2"),
        ({"seed": -1}, "seed"),
        ({"defence": "shield"}, "unknown preset 'shield'"),
        ({"defence": {"preset": "at", "inner.loss": "hinge"}}, "unknown loss 'hinge'"),
        ({"defence": {"preset": "free_at", "balance": "pcgrad"}}, "no gradient to reuse under pcgrad"),
        ({"precision": "fp8"}, "precision"),
        ({"colour": 1}, "colour"),
    ],
)
def test_entries_that_are_wrong(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        disc_config(**changes)


def cases() -> list[Case]:
    names = [f"p{p}_slice_{s}" for p in range(10) for s in range(3)]
    return [Case(n, Path(n), Path(n)) for n in names]


def test_cases_are_divided_by_patient() -> None:
    source = DataSource(name="d", validation=0.2, test=0.3, patients=r"^(p\d+)_")
    sides = source.split(cases())
    patients = {name: {c.patient for c in side} for name, side in sides.sides.items()}
    assert {name: len(p) for name, p in patients.items()} == {"training": 5, "validation": 2, "test": 3}
    assert len(set().union(*patients.values())) == 10


def test_each_patient_validates_in_one_fold() -> None:
    sources = [DataSource(name="d", test=0.2, patients=r"^(p\d+)_", folds=4, fold=f) for f in range(4)]
    sides = [s.split(cases()) for s in sources]
    validated = [c.name for s in sides for c in s.validation]
    assert len(validated) == len(set(validated)) == 24
    assert len({tuple(c.name for c in s.test) for s in sides}) == 1
    for s in sides:
        assert {c.patient for c in s.training}.isdisjoint(c.patient for c in (*s.validation, *s.test))


def test_a_run_from_before_later_entries_keeps_its_digest() -> None:
    # As computed before `reuse`, `still` and `own_pass` were there.
    config = disc_config(defence={"preset": "cease", "inner.steps": 2})
    assert config.digest == "ec3e09e491cc"
    changed = {"inner.reuse": True}, {"contrastive.still": ["augmented"]}, {"auxiliary.own_pass": False}
    digests = {disc_config(defence={"preset": "cease", "inner.steps": 2} | c).digest for c in changed}
    assert len(digests | {config.digest}) == 4
