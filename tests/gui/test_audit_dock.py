"""The audit dock as a user meets it: choose, start, watch, cancel, kill, resume, look at a case, open the report."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication
from tiny_audit import CARDIAC, MODELS, TINY, whole

from cease_core.evaluation.audit import load_audit
from cease_core.evaluation.summary import summarise
from cease_core.models.shelf import load_robustness
from napari_cease.audit_session import JournalTail, audits_place
from napari_cease.jobs.auditing import AuditRun, Request, find_audits
from napari_cease.widgets.audit import AuditDock
from napari_cease.widgets.audit_table import COLUMNS

WAIT = 120_000
TABLE = ("table.csv", "probes.csv", "cases.csv")
MODEL, ATTACK, EPSILON, DICE, CASE = (
    [c.title for c in COLUMNS].index(title) for title in ("Model", "Attack", "ε", "Dice", "Case")
)  # fmt: skip


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an audit that was done in one go."""
    return whole(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's library that is empty; audits go beside it. No process outlives a test."""
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "models"


@pytest.fixture
def dock_again(windowless: Callable[..., AuditDock], library: Path) -> Iterator[Callable[[], AuditDock]]:
    """Opens the dock, as narrow as it may be, in a window without a canvas; again for another one."""
    yield lambda: windowless(AuditDock, width=330)
    for run in find_audits(audits_place()):
        run.kill()
        assert run.process() is None


@pytest.fixture
def dock(dock_again: Callable[[], AuditDock]) -> AuditDock:
    """The dock."""
    return dock_again()


def tick(dock: AuditDock, folder: Path, state: Qt.CheckState = Qt.CheckState.Checked) -> None:
    item_of(dock, folder).setCheckState(state)


def item_of(dock: AuditDock, folder: Path) -> Any:
    (found,) = [item for item in dock._items() if item.data(Qt.ItemDataRole.UserRole) == folder]
    return found


def type_into(line: Any, text: str) -> None:
    line.setFocus()
    line.clear()
    QTest.keyClicks(line, text)
    QTest.keyClick(line, Qt.Key.Key_Return)


def choose(dock: AuditDock, qtbot: Any, models: tuple[Path, ...] = MODELS) -> None:
    """Tick models, name the data and set as little effort as there can be."""
    for folder in models:
        tick(dock, folder)
    type_into(dock.data, str(CARDIAC))
    for name, value in TINY.items():
        dock.fields[name].setValue(value)
    qtbot.waitUntil(lambda: dock.auditor.present is not None, timeout=WAIT)


def click(button: Any) -> None:
    assert button.isEnabled()
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)


def wait_for(dock: AuditDock, qtbot: Any, state: str) -> None:
    qtbot.waitUntil(lambda: dock.session.state == state, timeout=WAIT)


def cells(dock: AuditDock, column: int) -> list[str]:
    model = dock.view.model()
    return [model.index(row, column).data() for row in range(model.rowCount())]


# --- the way through ---


def test_from_models_and_data_past_a_closed_window_a_cancel_and_a_kill_to_the_table_of_an_uninterrupted_audit(
    dock, dock_again, qtbot, done, library, errors
):
    mine = library / "mine"
    shutil.copytree(MODELS[0], mine)
    dock.offer_models()
    assert not dock.start.isEnabled()
    choose(dock, qtbot, (mine, MODELS[1]))
    assert dock.facts.text() == "6 cases; 2 will be audited."
    click(dock.start)
    qtbot.waitUntil(lambda: bool(dock.session.rows), timeout=WAIT)
    assert dock.session.alive
    assert dock.session.folder.parent == audits_place()
    assert not dock.models_part.inside.isEnabled()
    assert "jobs are done, about" in dock.told.text()
    assert dock.table.rowCount() == len(dock.session.rows)
    dock.shutdown()

    # The window is closed; another one finds the audit, which has gone on.
    again = dock_again()
    assert again.session.alive
    click(again.cancel)
    wait_for(again, qtbot, "stopped")
    kept = again.session.done
    assert 0 < kept < again.session.jobs
    assert again.told.text() == (
        f"Stopped: {kept} of {again.session.jobs} jobs are kept, and Resume goes on from there."
    )
    assert not errors

    click(again.resume)
    qtbot.waitUntil(lambda: again.session.done > kept, timeout=WAIT)
    again.auditor.run.kill()
    wait_for(again, qtbot, "failed")
    assert "has vanished: it was killed" in again.told.text()
    assert errors == [again.told.text()]
    assert load_audit(again.session.folder).finished == again.session.done

    click(again.resume)
    with qtbot.waitSignal(again.audited, timeout=WAIT) as told:
        wait_for(again, qtbot, "finished")
    assert told.args == [again.session.folder]
    jobs = again.session.jobs
    assert again.bar.text() == f"{jobs} of {jobs} jobs"
    for name in TABLE:
        assert (again.session.folder / name).read_bytes() == (done / name).read_bytes()
    # The headline went to the model of the user's own, and nowhere else.
    assert load_robustness(mine) is not None
    assert load_robustness(MODELS[1]) is None
    assert "Headline written to Cardiac MR, undefended" in again.told.text()


# --- what was found ---


def test_a_finished_audit_shows_its_curves_verdicts_and_checks(dock, done):
    dock.open_audit(done)
    audit = load_audit(done)
    assert dock.session.state == "finished"
    assert dock.bar.text() == f"{audit.jobs} of {audit.jobs} jobs"
    assert dock.table.rowCount() == len(audit.rows)
    for model in summarise(audit).models:
        x, y = dock.curves.lines[model.title].getData()
        assert list(x) == pytest.approx([255 * p.epsilon for p in model.curve.points])
        assert list(y) == pytest.approx([p.dice for p in model.curve.points])
        assert model.title in dock.verdict.text()
        assert model.verdict.label in dock.verdict.text()
        for check in model.checks:
            assert check.title in dock.checks.text()


def test_the_table_is_sorted_and_filtered(dock, done):
    dock.open_audit(done)
    assert dock.session.state == "finished"
    known = load_audit(done).rows
    assert cells(dock, ATTACK) == list(known["attack"])
    assert set(cells(dock, MODEL)) == {"undefended", "defended"}
    assert dock.rows_note.text() == f"{len(known)} rows"

    dock.view.sortByColumn(DICE, Qt.SortOrder.AscendingOrder)
    falling = [float(text) for text in cells(dock, DICE)]
    assert falling == sorted(falling)
    dock.view.sortByColumn(EPSILON, Qt.SortOrder.DescendingOrder)
    assert cells(dock, EPSILON)[0] == "0.5"

    QTest.keyClicks(dock.filter, "pgd 8/255 undefended")
    chosen = known[(known["model"] == "cardiac-undefended") & (known["epsilon"] == 8 / 255)]
    chosen = chosen[chosen["attack"].str.contains("pgd")]
    assert sorted(cells(dock, ATTACK)) == sorted(chosen["attack"])
    assert dock.rows_note.text() == f"{len(chosen)} of {len(known)} rows"
    dock.filter.clear()
    assert dock.table.rowCount() == len(known)


def test_a_chosen_row_stays_chosen_when_rows_are_added_above(dock, done):
    dock.open_audit(done)
    rows = list(dock.session.rows)
    dock.table.show_rows(growing := rows[:4], dock.session.results.titles)
    dock.view.sortByColumn(DICE, Qt.SortOrder.AscendingOrder)
    dock.view.selectRow(2)
    chosen = dock.table.row(dock.view.currentIndex())
    growing += rows[4:]
    dock.table.show_rows(growing, dock.session.results.titles)
    assert dock.table.row(dock.view.currentIndex()) == chosen
    assert dock.table.row(dock.view.selectionModel().selectedRows()[0]) == chosen
    shown = [float(text) for text in cells(dock, DICE)]
    assert shown == sorted(shown)


def test_a_row_that_is_activated_tells_of_its_case(dock, done, qtbot):
    dock.open_audit(done)
    QTest.keyClicks(dock.filter, "fgsm")
    dock.view.selectRow(1)
    row = dock.table.row(dock.view.currentIndex())
    with qtbot.waitSignal(dock.case_chosen) as told:
        QTest.keyClick(dock.view, Qt.Key.Key_Return)
    (case,) = told.args
    assert (case.case, case.model, case.attack, case.epsilon) == (row.case, row.model, "fgsm", 8 / 255)
    with qtbot.waitSignal(dock.case_chosen):
        dock.view.doubleClicked.emit(dock.view.currentIndex())


def test_the_report_is_opened_in_the_browser(dock, done):
    opened = []
    dock.open_url = opened.append
    assert not dock.report.isVisibleTo(dock)
    dock.open_audit(done)
    click(dock.report)
    assert [Path(url.toLocalFile()) for url in opened] == [done / "report.html"]
    click(dock.new)
    assert dock.session.state == "idle"
    assert not dock.rows_part.isVisibleTo(dock)
    assert dock.models_part.isExpanded()


def test_every_check_has_a_sign_and_a_word_beside_its_colour(dock, done):
    dock.open_audit(done)
    checks = [check for model in summarise(load_audit(done)).models for check in model.checks]
    text = dock.checks.text()
    for status, sign, word in (("pass", "✓", "passed"), ("fail", "✗", "failed"), ("not run", "○", "not run")):
        count = sum(check.status == status for check in checks)
        assert text.count(sign) == text.count(f"<b>{word}</b>") == count
    assert all(check.figure.replace("<", "&lt;") in text for check in checks)


# --- what cannot be ---


def test_models_of_other_classes_cannot_join(dock):
    heart, polyp = MODELS[0], MODELS[0].with_name("polyp-undefended")
    assert item_of(dock, polyp).flags() & Qt.ItemFlag.ItemIsEnabled
    tick(dock, heart)
    assert not item_of(dock, polyp).flags() & Qt.ItemFlag.ItemIsEnabled
    assert "segment different classes" in item_of(dock, polyp).toolTip()
    assert item_of(dock, MODELS[1]).flags() & Qt.ItemFlag.ItemIsEnabled
    assert "4 models cannot join" in dock.models_note.text()
    tick(dock, heart, Qt.CheckState.Unchecked)
    assert item_of(dock, polyp).flags() & Qt.ItemFlag.ItemIsEnabled


def test_a_folder_without_cases_is_one_sentence_and_no_start(dock, qtbot, tmp_path, errors):
    tick(dock, MODELS[0])
    dock.ask_folder = lambda _: tmp_path
    click(dock.browse)
    qtbot.waitUntil(lambda: bool(dock.auditor.fault), timeout=WAIT)
    assert dock.data.text() == str(tmp_path)
    assert dock.facts.text().count("needs the folders images/ and labels/") == 1
    assert not dock.start.isEnabled()
    type_into(dock.data, str(CARDIAC))
    qtbot.waitUntil(lambda: dock.auditor.present is not None, timeout=WAIT)
    assert dock.start.isEnabled()
    assert not errors


def test_a_list_of_cases_is_a_data_set_too(dock, qtbot, tmp_path, errors):
    table = tmp_path / "hearts.csv"
    names = sorted(p.name for p in (CARDIAC / "images").iterdir())[:2]
    table.write_text("\n".join(["image,labels", *(f"{CARDIAC}/images/{n},{CARDIAC}/labels/{n}" for n in names)]))
    tick(dock, MODELS[0])
    dock.keep_seen.click()
    dock.ask_file = lambda _: None
    click(dock.browse_list)
    assert dock.session.data is None
    dock.ask_file = lambda _: table
    click(dock.browse_list)
    qtbot.waitUntil(lambda: dock.auditor.present is not None, timeout=WAIT)
    assert dock.data.text() == str(table)
    assert dock.facts.text().startswith("2 cases; 2 will be audited")
    assert dock.start.isEnabled()
    assert not errors


def test_settings_that_do_not_fit_are_said_and_taken_back(dock, errors):
    type_into(dock.levels, "2, four")
    assert "such as 2, 4, 8, 10" in errors.pop()
    type_into(dock.levels, "2, 400")
    assert "epsilons" in errors.pop()
    assert dock.levels.text() == "2, 4, 8, 10"
    type_into(dock.levels, "1, 4")
    assert dock.report_at.currentText() == "4/255"
    assert dock.more_part.title == "More settings: 2 changed"
    dock.tiers["full"].click()
    assert dock.more_part.title == "More settings"
    assert dock.fields["cases"].text() == "all"
    assert not errors


def test_a_folder_that_holds_no_audit_or_another_one_is_said(dock, qtbot, tmp_path, done, errors):
    dock.open_audit(tmp_path)
    assert "holds no audit" in errors.pop()
    choose(dock, qtbot)
    type_into(dock.out, str(done))
    click(dock.start)
    assert "holds another audit" in errors.pop()
    assert dock.session.state == "idle"


def test_an_audit_that_ends_before_it_is_looked_at_is_still_told_of(dock, qtbot, tmp_path, errors, monkeypatch):
    start = AuditRun.start

    def start_and_see_its_end(run):
        start(run)
        qtbot.waitUntil(lambda: run.status().stage != "running", timeout=WAIT)

    monkeypatch.setattr(AuditRun, "start", start_and_see_its_end)
    run = AuditRun.create(tmp_path / "out", Request(MODELS, tmp_path / "gone", {}))
    dock.open_audit(run.folder)
    click(dock.resume)
    (sentence,) = errors
    assert str(tmp_path / "gone") in sentence
    assert sentence.endswith("Nothing was computed yet; Resume goes on from there.")


def test_no_start_is_left_to_come_without_data_or_beside_an_audit(dock, qtbot, done, errors):
    for interrupt in (lambda: type_into(dock.data, ""), lambda: dock.open_audit(done)):
        choose(dock, qtbot)
        dock.keep_seen.toggle()
        assert dock.auditor.looking
        click(dock.start)
        interrupt()
        type_into(dock.data, "")
        choose(dock, qtbot)
        assert not find_audits(audits_place())
    assert not errors


def test_an_audit_with_a_long_journal_is_under_way_while_it_is_read(dock, done, tmp_path, monkeypatch):
    monkeypatch.setattr(JournalTail.read, "__defaults__", (1000,))
    shutil.copytree(done, tmp_path / "long")
    with filelock.FileLock(tmp_path / "long" / ".lock"):
        dock.open_audit(tmp_path / "long")
        assert 0 < dock.session.done < dock.session.jobs
        assert dock.session.alive
        assert not dock.start.isEnabled()


def test_facts_that_are_damaged_are_one_sentence(dock, tmp_path, errors):
    (tmp_path / "audit.json").write_text('{"victims": [{}]}')
    dock.open_audit(tmp_path)
    (sentence,) = errors
    assert sentence.startswith(f"{tmp_path / 'audit.json'} cannot be read")
    assert dock.session.state == "idle"


def test_names_are_shown_as_they_are(dock, done, qtbot, tmp_path, library):
    tick(dock, MODELS[0])
    dock.session.data = tmp_path / "<i>R&D</i>"
    qtbot.waitUntil(lambda: bool(dock.auditor.fault), timeout=WAIT)
    assert "&lt;i&gt;R&amp;D&lt;/i&gt;" in dock.facts.text()
    for label in (dock.told, dock.remarks, dock.note, dock.rows_note):
        assert label.textFormat() == Qt.TextFormat.PlainText
    shutil.copytree(done, audits_place() / "R&D")
    dock._fill_menu()
    assert dock.open_menu.actions()[0].text().startswith("R&&D (")


# --- its manners ---


def test_nothing_is_wider_than_the_narrowest_dock(dock, done):
    for part in dock.parts:
        part.open(True)
    assert dock.widget().minimumSizeHint().width() <= 320
    dock.open_audit(done)
    assert dock.widget().minimumSizeHint().width() <= 320 - dock.verticalScrollBar().sizeHint().width()
    shown = sum(dock.view.columnWidth(column) for column in (MODEL, ATTACK, EPSILON, DICE, CASE))
    assert shown <= dock.view.viewport().width()


def test_a_wide_table_shows_all_words_and_fills_its_room(dock, done):
    dock.open_audit(done)
    dock.window().resize(1400, 900)
    QApplication.processEvents()
    view = dock.view
    for row in dock.session.rows:
        needed = view.fontMetrics().horizontalAdvance(dock.table.text(row, ATTACK))
        assert needed < view.columnWidth(ATTACK)
    assert view.horizontalHeader().length() == view.viewport().width()


def test_curves_have_the_intervals_of_the_report(dock, done):
    dock.open_audit(done)
    for model in dock.session.summary.models:
        band = dock.curves.bands[dock.session.results.titles[model.name]]
        low, high = (curve.getData()[1] for curve in band.curves)
        assert [*zip(low, high, strict=True)] == [(point.low, point.high) for point in model.curve.points]
    assert "95 % interval" in dock.curves.legend.text()
    dock.auditor.let_go()
    assert not dock.curves.bands


def test_every_control_has_a_tip_and_takes_the_keyboard(dock):
    controls = [dock.models, dock.data, dock.browse, dock.keep_seen, *dock.tiers.values(), *dock.fields.values()]
    controls += [dock.levels, dock.report_at, dock.joint, dock.headline, dock.out, dock.browse_out]
    controls += [dock.start, dock.cancel, dock.resume, dock.new, dock.report, dock.open_button, dock.filter, dock.view]
    for control in controls:
        assert control.toolTip()
        assert control.focusPolicy() & Qt.FocusPolicy.TabFocus


def test_a_dock_that_is_removed_leaves_nothing_behind(dock, done):
    dock.open_audit(done)
    dock.parent().close()
    dock.setParent(None)
    assert not [t for t in threading.enumerate() if t.name == "cease-worker"]
    assert not dock.auditor._poll.isActive()


def test_the_menu_lists_audits(dock, done, library):
    shutil.copytree(done, audits_place() / "hearts")
    dock._fill_menu()
    first = dock.open_menu.actions()[0]
    assert first.text().startswith("hearts")
    first.trigger()
    assert dock.session.folder == AuditRun.open(audits_place() / "hearts").folder
    assert dock.session.state == "finished"
