"""From the demo's window to a trained, compared and audited model, with the mouse alone.

Numbers that would be turned with the wheel are set on their boxes: with the defaults it would take half an hour.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QDockWidget, QTabBar
from tiny_audit import TINY
from tiny_training import HEARTS, SECONDS, tiny

from cease_core.evaluation.audit import load_audit
from cease_core.models.shelf import load_robustness
from napari_cease.app import open_other_docks, open_scene
from napari_cease.audit_session import audits_place
from napari_cease.docks import Audit, Models, Train, explorer_of
from napari_cease.jobs.auditing import find_audits
from napari_cease.jobs.training import find_runs
from napari_cease.scenes import SCENES


@pytest.fixture
def demo(make_napari_viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The window of ``napari-cease demo cardiac``, with an empty library."""
    library = tmp_path / "models"
    monkeypatch.setenv("CEASE_MODELS", str(library))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1400, 900)
    _, explorer = viewer.window.add_plugin_dock_widget("napari-cease", "Attack explorer", tabify=True)
    explorer.session.tune(steps=4)
    open_scene(viewer, explorer, SCENES["cardiac"])
    open_other_docks(viewer)
    yield viewer
    for dock in list(viewer.window.dock_widgets.values()):
        if hasattr(dock, "shutdown"):
            dock.shutdown()
    for run in (*find_runs(library), *find_audits(audits_place())):
        run.kill()


def test_train_compare_audit_and_look_at_the_worst(
    demo: Any, qtbot: Any, errors: list[str], settled: Callable[[Any], None]
) -> None:
    def until(condition: Callable[[], bool]) -> None:
        qtbot.waitUntil(condition, timeout=1000 * SECONDS)

    train = bring(demo, "Train", Train)
    train.ask_folder = lambda _: HEARTS
    click(train.form.browse)
    tiny(train.session, test=train.session.test)
    until(lambda: train.trainer.present is not None)
    click(train.start)
    until(lambda: train.session.state == "finished")
    model = train.session.model
    assert not errors

    click(train.compare_button)
    explorer = explorer_of(demo)
    assert explorer.isVisible()
    assert explorer.session.defended == model
    assert explorer.session.undefended.name == "cardiac-undefended"
    card = explorer.session.scan.name.split(".")[0]
    trained = train.trainer and {*_data(model).train, *_data(model).validation}
    assert card not in trained
    settled(explorer)

    shelf = bring(demo, "Models", Models)
    assert model in {m.folder for m in shelf.view.model().sourceModel().models}

    audit = bring(demo, "Audit", Audit)
    audit.ask_folder = lambda _: HEARTS
    for item in audit._items():
        if item.data(Qt.ItemDataRole.UserRole) == model:
            item.setCheckState(Qt.CheckState.Checked)
    click(audit.browse)
    for name, value in TINY.items():
        audit.fields[name].setValue(value)
    until(lambda: audit.auditor.present is not None)
    click(audit.start)
    until(lambda: audit.session.state == "finished")
    found = load_audit(audit.session.folder)
    assert found.complete
    assert not {name.split("[")[0] for name in found.facts["cases"]} & trained
    assert load_robustness(model) is not None
    assert not errors

    index = audit.view.model().index(0, 0)
    audit.view.activated.emit(index)
    until(lambda: explorer.isVisible())
    settled(explorer)
    assert not errors


def _data(model: Path) -> Any:
    from cease_core.models.checkpoint import load_card

    return load_card(model).data


def click(button: Any) -> None:
    assert button.isEnabled()
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)


def bring(viewer: Any, name: str, kind: type) -> Any:
    """Click on the tab of a dock."""
    (dock,) = [d for d in viewer.window.dock_widgets.values() if isinstance(d, kind)]
    wrapper = dock.parentWidget()
    while not isinstance(wrapper, QDockWidget):
        wrapper = wrapper.parentWidget()
    for bar in wrapper.window().findChildren(QTabBar):
        for tab in range(bar.count()):
            if bar.tabText(tab) == name:
                QTest.mouseClick(bar, Qt.MouseButton.LeftButton, pos=bar.tabRect(tab).center())
    assert dock.isVisible()
    return dock
