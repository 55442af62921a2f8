"""Models are found by name or by folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from cease_core.errors import CeaseError
from cease_core.models import available_models, find_model, load_model, save_model
from cease_core.models.library import user_library


@pytest.fixture
def library(make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's library with two models, a broken one and a stray file."""
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path))
    for name in ("zebra", "antelope"):
        save_model(make_model(name=name), tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("nothing")
    return tmp_path


def own(library: Path) -> list[str]:
    return [card.name for folder, card in available_models().items() if folder.parent == library]


def test_the_users_own_models_in_order_of_name(library: Path) -> None:
    assert own(library) == ["antelope", "zebra"]


def test_by_name_and_by_folder(library: Path) -> None:
    assert find_model("zebra") == library / "zebra"
    assert find_model(library / "antelope") == library / "antelope"
    assert load_model(find_model("zebra")).card.name == "zebra"


def test_a_model_is_found_by_its_cards_name(library: Path, make_model) -> None:
    save_model(make_model(name="okapi"), library / "folder")
    assert find_model("okapi") == library / "folder"


def test_a_folder_without_a_model_does_not_stand_in_a_names_way(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundles" / "zebra").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "bundles")
    assert find_model("zebra") == library / "zebra"


def test_unknown_names_come_with_those_that_exist(library: Path) -> None:
    with pytest.raises(CeaseError, match=r"no model called 'okapi'; .*antelope, zebra"):
        find_model("okapi")


def test_no_library_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path / "none"))
    assert own(tmp_path / "none") == []
    with pytest.raises(CeaseError, match="no model called"):
        find_model("okapi")


def test_where_the_users_library_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CEASE_MODELS", "")
    assert user_library() == tmp_path / ".napari-cease" / "models"
