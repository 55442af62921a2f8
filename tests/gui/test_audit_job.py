"""An audit's folder from the outside: its process, its journal as it grows, and what is left in the models' folders."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import numpy as np
import pytest
from tiny_audit import CARDIAC, MODELS, tiny, whole

from cease_core.data import find_cases
from cease_core.errors import CeaseError
from cease_core.evaluation.audit import load_audit, tier
from cease_core.evaluation.audit.store import Journal, keys_of
from cease_core.evaluation.summary import summarise
from cease_core.models.checkpoint import load_card
from cease_core.models.library import SHIPPED
from cease_core.models.shelf import load_robustness
from napari_cease.audit_session import AuditSession, JournalTail, Results, Row, chosen_case, explained, look, why_not
from napari_cease.jobs.auditing import FACTS, JOURNAL, AuditRun, Request, find_audits, write_headlines
from napari_cease.jobs.process import LOG

REQUEST = Request(MODELS, CARDIAC, tiny().model_dump(mode="json"))


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole audit."""
    return whole(tmp_path_factory.getbasetemp())


@pytest.fixture
def started() -> Iterator[Callable[[Path, Request], AuditRun]]:
    """Starts audits, and ends those that are still under way."""
    runs = []

    def start(folder: Path, request: Request) -> AuditRun:
        run = AuditRun.create(folder, request)
        run.start()
        runs.append(run)
        return run

    yield start
    for run in runs:
        run.kill()
        assert run.process() is None


def ended(run: AuditRun) -> None:
    until = time.monotonic() + 120
    while run.status().stage == "running" and time.monotonic() < until:
        time.sleep(0.05)


# --- the process ---


def test_what_cannot_be_audited_ends_the_process_with_one_sentence(tmp_path, started):
    (tmp_path / "data").mkdir()
    request = Request(MODELS, tmp_path / "data", REQUEST.settings)
    run = started(tmp_path / "out", request)
    assert run.process() is not None
    with pytest.raises(CeaseError, match="under way already"):
        run.start()
    ended(run)
    status = run.status()
    assert status.stage == "failed"
    assert "needs the folders images/ and labels/" in status.sentence
    assert (run.folder / LOG).read_text() == f"{status.sentence}\n"
    assert [found.folder for found in find_audits(tmp_path)] == [run.folder]


def test_a_folder_belongs_to_one_request(tmp_path, done):
    run = AuditRun.create(tmp_path / "out", REQUEST)
    assert run.request == REQUEST
    assert AuditRun.create(tmp_path / "out", REQUEST) == run
    other = Request(MODELS[:1], CARDIAC, REQUEST.settings)
    with pytest.raises(CeaseError, match="holds another audit"):
        AuditRun.create(tmp_path / "out", other)
    with pytest.raises(CeaseError, match="holds another audit"):
        AuditRun.create(done, REQUEST)
    (run.folder / "request.json").write_text('{"models": 3}')
    with pytest.raises(CeaseError, match=r"request\.json is damaged"):
        run.start()


def test_only_a_folder_with_an_audit_is_opened(tmp_path, done):
    with pytest.raises(CeaseError, match="holds no audit"):
        AuditRun.open(tmp_path)
    run = AuditRun.open(done)
    assert run.request is None
    assert run.status().stage == "stopped"
    with pytest.raises(CeaseError, match="written by the command line"):
        run.start()


def test_an_audit_of_the_command_line_is_under_way_while_it_holds_the_folder(done, tmp_path):
    (tmp_path / FACTS).write_bytes((done / FACTS).read_bytes())
    run = AuditRun.open(tmp_path)
    with filelock.FileLock(tmp_path / ".lock"):
        assert run.status().stage == "running"
    assert run.status().stage == "stopped"


@pytest.mark.parametrize("stage", ["running", "stopped", "failed"])
def test_an_audit_that_a_command_line_goes_on_with_is_under_way(done, tmp_path, stage):
    (tmp_path / FACTS).write_bytes((done / FACTS).read_bytes())
    (tmp_path / "run.json").write_text(json.dumps({"pid": 1, "created": 0.0, "stage": stage}))
    run = AuditRun.open(tmp_path)
    with filelock.FileLock(tmp_path / ".lock"):
        assert run.status().stage == "running"
    assert run.status().stage == ("failed" if stage == "running" else stage)


# --- what it tells ---


def rows_of(folder):
    audit = load_audit(folder)
    return audit, [(r.model, r.attack, r.epsilon, r.case, r.dice) for r in audit.rows.itertuples()]


@pytest.mark.parametrize("limit", [100, 5_000, 10**6])
def test_the_journal_is_read_as_it_grows_and_nothing_twice(done, tmp_path, limit):
    whole_text = (done / JOURNAL).read_bytes()
    growing = tmp_path / JOURNAL
    results, tail = Results(json.loads((done / FACTS).read_text())), JournalTail(growing)
    assert tail.read(limit) == []
    for cut in np.linspace(0, len(whole_text), 7).astype(int):
        growing.write_bytes(whole_text[:cut])
        results.add(tail.read(limit))
        while tail.more:
            results.add(tail.read(limit))
    assert growing.read_bytes() == whole_text
    audit, rows = rows_of(done)
    assert [row[:5] for row in results.rows] == rows
    assert results.done == results.jobs == audit.finished
    clean = audit.rows[audit.rows["attack"] == "clean"].set_index(["model", "case"])["dice"]
    assert all(row.clean == clean[row.model, row.case] for row in results.rows)


def test_a_damaged_line_is_left_out(done, tmp_path):
    lines = (done / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:2], lines[2][:-20] + b"\n", *lines[3:]]))
    assert len(JournalTail(tmp_path / JOURNAL).read()) == len(lines) - 1


def test_the_live_curve_is_the_reports(done):
    results = Results(json.loads((done / FACTS).read_text()))
    results.add(Journal(done / JOURNAL).read(keys_of(results.facts)))
    for model in summarise(load_audit(done)).models:
        wanted = [(p.epsilon, p.dice) for p in model.curve.points]
        np.testing.assert_allclose(results.curve(model.name), wanted)


def test_time_left_counts_each_trial_by_what_it_took(done):
    facts = json.loads((done / FACTS).read_text())
    entries = list(Journal(done / JOURNAL).read(keys_of(facts)))
    half = Results(facts)
    assert half.seconds_left is None
    half.add(entries[: len(entries) // 2])
    # The first case is done on both models; the second one takes as long again.
    assert half.seconds_left == pytest.approx(sum(e.seconds for e in entries[: len(entries) // 2]))
    half.add(entries)
    assert half.seconds_left == 0


def test_models_of_one_title_are_told_apart_by_their_names(done):
    facts = json.loads((done / FACTS).read_text())
    for victim in facts["victims"]:
        victim["title"] = "Heart"
    assert list(Results(facts).titles.values()) == ["Heart (cardiac-undefended)", "Heart (cardiac-defended)"]


def test_a_failed_row_is_a_row_without_figures(done):
    facts = json.loads((done / FACTS).read_text())
    (first, *_) = Journal(done / JOURNAL).read(keys_of(facts))
    failed = {k: v for k, v in first.rows[0].items() if k in ("model", "attack", "role", "epsilon", "case")}
    results = Results(facts)
    results.add([type(first)(first.key, (failed | {"error": "it failed."},))])
    (row,) = results.rows
    assert math.isnan(row.dice)
    assert row.error == "it failed."
    assert results.curve(row.model) == []


def test_a_row_says_what_it_takes_to_look_at_it(done):
    facts = json.loads((done / FACTS).read_text())
    row = Row("cardiac-defended", "pgd", 8 / 255, facts["cases"][0], 0.5, 0.8, 30.0, "")
    case = chosen_case(row, facts, done, REQUEST)
    assert case.case == f"{case.name}[{case.index}]"
    assert case.name in {c.name for c in find_cases(case.data)}
    assert case.model_folder == MODELS[1]
    assert (case.settings["attack"], case.settings["steps"]) == ("pgd", 3)
    assert chosen_case(row, facts, done, None).data is None


# --- the choices ---


def test_cases_seen_in_training_are_counted(tmp_path):
    names = [case.name for case in find_cases(CARDIAC)]
    model = tmp_path / "model"
    shutil.copytree(MODELS[0], model)

    def trained_on(seen):
        card = json.loads((MODELS[0] / "card.json").read_text())
        card["data"] |= {"train": seen, "validation": []}
        (model / "card.json").write_text(json.dumps(card))

    trained_on(names[:2])
    found = look([model], CARDIAC, tier("quick"), keep_seen=False)
    assert (found.cases, found.seen, found.taken) == (len(names), 2, len(names) - 2)
    assert look([model], CARDIAC, tier("quick"), keep_seen=True).taken == len(names)
    assert look([model], CARDIAC, tiny(), keep_seen=False).taken == 2
    trained_on(names)
    with pytest.raises(CeaseError, match="were used to train"):
        look([model], CARDIAC, tier("quick"), keep_seen=False)


def test_models_of_other_classes_or_the_same_name_say_why_they_do_not_fit(tmp_path):
    cards = {name: (SHIPPED / name, load_card(SHIPPED / name)) for name in ("cardiac-defended", "polyp-defended")}
    heart, polyp = cards.values()
    assert why_not(*heart, []) == why_not(*heart, [heart]) == ""
    assert "segment different classes" in why_not(*polyp, [heart])
    assert "two models are called cardiac-defended" in why_not(tmp_path, heart[1], [heart])


def test_settings_are_a_tier_with_changes():
    session = AuditSession()
    session.tune(steps=5, epsilons=(4 / 255, 2 / 255))
    assert session.settings.steps == 5
    assert session.settings.epsilons == (2 / 255, 4 / 255)
    assert session.settings.report_epsilon == 4 / 255
    with pytest.raises(CeaseError, match="steps"):
        session.tune(steps=0)
    assert session.settings.steps == 5
    session.tune(steps=tier("quick").steps)
    assert "steps" not in session.changes
    session.choose_tier("full")
    assert session.settings == tier("full")
    with pytest.raises(CeaseError, match="tick one"):
        session.request()


def test_a_tier_is_explained_by_its_own_settings():
    quick, full = explained(tier("quick")), explained(tier("full"))
    assert quick.startswith("PGD-20 at ε from 2 to 10/255")
    assert "up to 12 cases" in quick
    assert "SEA-40" in full
    assert "all cases" in full
    assert "at ε = 8/255" in explained(tier("quick", epsilons=(8 / 255,)))


# --- the headline ---


def test_the_headline_goes_to_the_users_own_models_alone(done, tmp_path, monkeypatch):
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path))
    mine, other = tmp_path / "mine", tmp_path / "other"
    shutil.copytree(MODELS[0], mine)
    shutil.copytree(MODELS[1], other)
    with (other / "model.safetensors").open("ab") as weights:
        weights.write(b" ")
    titles = write_headlines(done)
    assert titles == [load_card(mine).title]
    found, model = load_robustness(mine), summarise(load_audit(done)).models[0]
    assert found is not None
    assert found.worst_dice == pytest.approx(model.headline.worst_dice.mean)
    assert found.verdict == model.verdict.label
    assert set(json.loads((mine / "robustness.json").read_text())) == {
        "clean_dice", "worst_dice", "epsilon", "asr_drop", "verdict",
    }  # fmt: skip
    assert load_robustness(other) is None
    assert load_robustness(MODELS[0]) is None
