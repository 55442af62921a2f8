"""The four docks in one napari window, as a user opens them and goes from one to the other."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cease_core.data import find_cases
from cease_core.models.library import SHIPPED
from napari_cease.audit_session import ChosenCase
from napari_cease.docks import Audit, Models, Train, compare, explorer_of, held_out, pair, show_case, try_model
from napari_cease.samples import SAMPLES

CARDIAC = SAMPLES["cardiac"].scan.parent.parent


@pytest.fixture
def viewer(make_napari_viewer: Any) -> Iterator[Any]:
    made = make_napari_viewer()
    yield made
    for dock in list(made.window.dock_widgets.values()):
        if hasattr(dock, "shutdown"):
            dock.shutdown()


@pytest.mark.parametrize(("name", "kind"), [("Train", Train), ("Audit", Audit), ("Models", Models)])
def test_each_is_in_the_plugins_menu_by_its_name(viewer: Any, name: str, kind: type) -> None:
    _, dock = viewer.window.add_plugin_dock_widget("napari-cease", name)
    assert isinstance(dock, kind)


def test_a_model_that_is_tried_opens_the_explorer_on_the_scan_that_is_there(viewer: Any, settled: Any) -> None:
    viewer.open_sample("napari-cease", "cardiac")
    _, shelf = viewer.window.add_plugin_dock_widget("napari-cease", "Models")
    shelf.tried.emit(SHIPPED / "cardiac-defended")
    shelf.tried.emit(SHIPPED / "cardiac-undefended")
    explorer = explorer_of(viewer)
    assert explorer.session.defended == SHIPPED / "cardiac-defended"
    assert explorer.session.undefended == SHIPPED / "cardiac-undefended"
    settled(explorer)


def test_without_a_scan_it_says_what_to_do(viewer: Any, errors: list[str]) -> None:
    _, shelf = viewer.window.add_plugin_dock_widget("napari-cease", "Models")
    shelf.tried.emit(SHIPPED / "cardiac-defended")
    assert errors == ["no scan is open; open one, or a sample from File, Open Sample, then try the model on it."]


def test_a_new_model_is_compared_on_a_case_that_it_never_saw(
    viewer: Any, settled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path))
    cases = find_cases(CARDIAC)
    folder = trained_on(tmp_path, [c.name for c in cases[:2]], [c.name for c in cases[2:3]])
    found = held_out(folder, pair_card(folder))
    assert found == (cases[3], False)
    compare(viewer, folder)
    explorer = explorer_of(viewer)
    assert explorer.session.scan.name.startswith(cases[3].name)
    assert explorer.session.defended == folder
    assert explorer.session.undefended == SHIPPED / "cardiac-undefended"
    assert explorer.session.level == 8
    settled(explorer)
    compare(viewer, folder)
    settled(explorer)
    assert sum(x.metadata.get("cease", {}).get("role") == "scan" for x in viewer.layers) == 1


def test_where_no_case_was_put_aside_it_is_said(tmp_path: Path) -> None:
    cases = find_cases(CARDIAC)
    folder = trained_on(tmp_path, [c.name for c in cases[:-1]], [cases[-1].name])
    assert held_out(folder, pair_card(folder)) == (cases[-1], True)


def test_a_row_of_an_audit_opens_its_case_attack_and_epsilon(viewer: Any, settled: Any) -> None:
    case = find_cases(CARDIAC)[1]
    chosen = ChosenCase(
        f"{case.name}[3]", "cardiac-defended", "pgd", 4 / 255, case.name, 3, SHIPPED / "cardiac-defended", CARDIAC,
        {"attack": "pgd", "steps": 7, "seed": 2, "random": True},
    )  # fmt: skip
    show_case(viewer, chosen)
    explorer = explorer_of(viewer)
    settled(explorer)
    assert explorer.session.scan.name.startswith(case.name)
    assert explorer.session.make_attack().steps == 7
    assert explorer.session.level == 4
    assert viewer.dims.current_step[0] == 3
    assert np.isfinite(explorer.explorer.results.curve("defended")[1]).any()


def test_models_stand_opposite_one_of_the_same_classes() -> None:
    for scene in ("polyp", "cardiac", "hippocampus"):
        folders = {side: SHIPPED / f"{scene}-{side}" for side in ("undefended", "defended")}
        for folder in folders.values():
            assert pair(folder, pair_card(folder)) == folders


def trained_on(library: Path, train: list[str], validation: list[str]) -> Path:
    """A model that says it was trained on some of the samples."""
    folder = library / "mine"
    shutil.copytree(SHIPPED / "cardiac-defended", folder)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card |= {"name": "mine", "data": card["data"] | {"train": train, "validation": validation}}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    (folder / "data.json").write_text(json.dumps({"folder": str(CARDIAC)}), encoding="utf-8")
    return folder


def pair_card(folder: Path) -> Any:
    from cease_core.models.checkpoint import load_card

    return load_card(folder)


def test_a_model_of_other_images_is_refused_in_a_sentence(viewer: Any, errors: list[str], qtbot: Any) -> None:
    viewer.open_sample("napari-cease", "cardiac")
    try_model(viewer, SHIPPED / "polyp-defended")
    qtbot.waitUntil(lambda: bool(errors))
    (error,) = errors
    assert "expects 3 channels, but scd_15 has 1" in error
