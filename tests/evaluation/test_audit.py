"""The audit as its users meet it: real models, real scans, few steps."""

import csv
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cease_core.data import find_cases, load_case
from cease_core.errors import CeaseError
from cease_core.evaluation.audit import AuditFinished, JobDone, Planned, Settings, Victim, audit, load_audit, tier
from cease_core.evaluation.audit.store import CLEAN, PICTURES, picture_path
from cease_core.models import load_model
from cease_core.models.library import SHIPPED

SAMPLES = Path(__file__).parents[2] / "sample_data" / "cardiac_mr_sunnybrook"
MODELS = ("cardiac-undefended", "cardiac-defended")
SMALL = {"steps": 3, "longer": 4, "restarts": 1, "queries": 4, "epsilons": (2 / 255, 8 / 255)}
FILES = ("table.csv", "table.parquet", "probes.csv", "cases.csv")


def small(**changes):
    return tier("quick", **(SMALL | {"cases": 2} | changes))


def run(out, models=MODELS, cases=None, settings=None, **options):
    return list(audit(models, find_cases(SAMPLES) if cases is None else cases, out, settings or small(), **options))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted audit of two models on two cases."""
    folder = tmp_path_factory.mktemp("audit")
    events = run(folder)
    return folder, events


# --- what comes out ------------------------------------------------------------------------------------------


def test_every_job_has_its_event_and_then_it_is_finished(whole):
    _, events = whole
    plan, *jobs, last = events
    assert isinstance(plan, Planned)
    assert all(isinstance(e, JobDone) for e in jobs)
    assert [e.finished for e in jobs] == list(range(1, plan.jobs + 1))
    assert isinstance(last, AuditFinished)
    assert last.complete


def test_there_is_one_row_for_each_model_attack_epsilon_and_case(whole):
    audited = load_audit(whole[0])
    rows = audited.rows
    assert not rows.duplicated(["model", "attack", "epsilon", "case"]).any()
    trials = {t["name"]: t["epsilons"] for t in audited.facts["victims"][0]["trials"]}
    assert set(rows["attack"]) >= {CLEAN, *(n for n in trials if not n.startswith("transfer"))}
    mine = rows[(rows["model"] == MODELS[0]) & (rows["case"] == audited.facts["cases"][0])]
    assert mine.groupby("attack").size().to_dict() == {CLEAN: 1, **{n: len(e) for n, e in trials.items()}}


def test_each_model_is_a_source_of_transfers_for_the_other(whole):
    rows = load_audit(whole[0]).rows
    made_on = rows[rows["role"] == "transfer"].groupby("model")["attack"].unique()
    assert {m: list(a) for m, a in made_on.items()} == {
        MODELS[0]: [f"transfer-{MODELS[1]}"],
        MODELS[1]: [f"transfer-{MODELS[0]}"],
    }


def test_no_perturbation_exceeds_its_epsilon(whole):
    rows = load_audit(whole[0]).rows
    assert (rows["linf"] <= rows["epsilon"] + 1e-6).all()


def test_table_and_parquet_hold_the_same(whole):
    folder, _ = whole
    table = pd.read_csv(folder / "table.csv", keep_default_na=False, na_values=["", "nan"])
    parquet = pd.read_parquet(folder / "table.parquet")
    assert list(table) == list(parquet)
    figures = parquet.select_dtypes("number")
    pd.testing.assert_frame_equal(table[list(figures)], figures, check_dtype=False)


def test_the_picture_of_a_case_shows_its_strongest_attack(whole):
    folder, _ = whole
    audited = load_audit(folder)
    here = audited.rows[(audited.rows["epsilon"] == audited.report_epsilon) & (audited.rows["role"] != "huge")]
    lowest = here.groupby(["model", "case"])["dice"].min()
    pictures = sorted((folder / PICTURES).glob("*/*.npz"))
    assert len(pictures) == len(lowest)
    for path in pictures:
        with np.load(path, allow_pickle=False) as kept:
            model = path.parent.name
            assert float(kept["dice"]) in lowest[model].to_list()
            assert kept["image"].shape == kept["perturbation"].shape
            assert np.abs(kept["perturbation"]).max() <= audited.report_epsilon + 1e-3
            assert set(np.unique(kept["attacked"])) <= {0, 1}


def test_cases_that_a_model_has_seen_are_left_out(whole):
    folder, (plan, *_) = whole
    card = load_model(SHIPPED / MODELS[0]).card
    known = {*card.data.train, *card.data.validation}
    assert not known & {name.split("[")[0] for name in plan.cases}
    assert load_audit(folder).facts["seen"] == list(plan.seen)


def test_of_a_volume_the_slices_lie_evenly_among_those_with_a_structure(tmp_path):
    case, *_ = find_cases(SAMPLES)
    _, labels = load_case(case)
    there = np.flatnonzero(labels.any(axis=(1, 2)))
    quarters = [there[int(len(there) * part)] for part in (0.25, 0.75)]
    plan, *_ = run(tmp_path, ["cardiac-undefended"], [case], small(cases=1, slices=2))
    assert plan.cases == tuple(f"{case.name}[{index}]" for index in quarters)


# --- interrupted and gone on with ----------------------------------------------------------------------------


def test_stopped_and_gone_on_with_gives_the_same_files(whole, tmp_path):
    done = []
    with closing(audit(MODELS, find_cases(SAMPLES), tmp_path, small())) as events:
        for event in events:
            if isinstance(event, JobDone):
                done.append(event.key)
            if len(done) == 7:
                break
    again = run(tmp_path)
    assert again[0].finished == 7
    assert not {e.key for e in again if isinstance(e, JobDone)} & set(done)
    assert contents(tmp_path) == contents(whole[0])


def test_tables_of_an_unfinished_audit_are_there(tmp_path):
    with closing(audit(MODELS, find_cases(SAMPLES), tmp_path, small())) as events:
        for event in events:
            if isinstance(event, JobDone) and event.finished == 3:
                break
    audited = load_audit(tmp_path)
    assert (audited.finished, audited.complete) == (3, False)
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(audited.rows)


def test_killed_in_the_middle_and_gone_on_with_gives_the_same_files(whole, tmp_path):
    script = (
        "from cease_core.data import find_cases; from cease_core.evaluation.audit import audit, Settings\n"
        f"settings = Settings.model_validate_json({small().model_dump_json()!r})\n"
        f"for e in audit({MODELS!r}, find_cases({str(SAMPLES)!r}), {str(tmp_path)!r}, settings): pass"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    journal = tmp_path / "log.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and (not journal.exists() or journal.read_bytes().count(b"\n") < 5):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_bytes().count(b"\n")
    assert 5 <= kept < whole[1][0].jobs
    assert run(tmp_path)[0].finished in (kept, kept - 1)
    assert contents(tmp_path) == contents(whole[0])


@pytest.mark.parametrize("damage", ["cut", "flipped", "rubbish"])
def test_what_is_damaged_in_the_journal_is_done_again(whole, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    journal = folder / "log.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    if damage == "cut":
        lines[-1] = lines[-1][:40]
    elif damage == "flipped":
        lines[3] = lines[3].replace(b'"dice": 0', b'"dice": 1', 1)
    else:
        lines[3] = b"\x00\xff no line of a journal\n"
    journal.write_bytes(b"".join(lines))
    events = run(folder)
    assert len([e for e in events if isinstance(e, JobDone)]) == 1
    assert contents(folder) == contents(whole[0])


def test_a_finished_audit_does_nothing_more(whole):
    folder, events = whole
    again = run(folder)
    assert [type(e) for e in again] == [Planned, AuditFinished]
    assert again[0].finished == events[0].jobs


# --- refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"settings": small(steps=5)}, "other settings"),
        ({"models": MODELS[:1]}, "other models"),
        ({"sources": [SHIPPED / "polyp-undefended"]}, "other sources"),
    ],
)
def test_a_folder_with_another_audit_is_refused_and_stays_as_it_is(whole, changed, named):
    before = contents(whole[0])
    with pytest.raises(CeaseError, match=f"holds an audit with {named}"):
        run(whole[0], **changed)
    assert contents(whole[0]) == before


def test_two_audits_do_not_write_to_one_folder(tmp_path):
    with closing(audit(MODELS, find_cases(SAMPLES), tmp_path, small())) as first:
        next(first)
        with pytest.raises(CeaseError, match="another audit is writing"):
            run(tmp_path)


def planned(out, models=MODELS[:1], cases=None, settings=None, **options):
    """The plan alone: nothing is attacked."""
    cases = find_cases(SAMPLES) if cases is None else cases
    with closing(audit(models, cases, out, settings or small(cases=1), **options)) as events:
        return next(events)


@pytest.fixture
def model(tmp_path):
    """A model in a folder of its own, and a function that changes its card."""
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / MODELS[0], folder)

    def change(**entries):
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps(card | entries))

    return folder, change


@pytest.mark.parametrize("changed", ["window", "heads"])
def test_a_model_that_is_read_differently_is_another_one(model, tmp_path, changed):
    folder, change = model
    planned(tmp_path / "out", [folder])
    if changed == "window":
        change(window={"kind": "percentile", "low": 5.0, "high": 90.0})
    else:
        (folder / "heads.safetensors").write_bytes(b"other heads")
    with pytest.raises(CeaseError, match="holds an audit with other models"):
        planned(tmp_path / "out", [folder])


def test_a_card_with_a_figure_that_is_no_number_is_the_same_card_again(model, tmp_path):
    folder, change = model
    change(training={"loss": float("nan")})
    planned(tmp_path / "out", [folder])
    planned(tmp_path / "out", [folder])


def test_two_cases_that_changed_places_are_other_files(tmp_path):
    first, second, *_ = find_cases(SAMPLES)
    settings = small()
    planned(tmp_path, cases=[first, second], settings=settings)
    swapped = [
        type(first)(first.name, second.image, second.labels),
        type(first)(second.name, first.image, first.labels),
    ]
    with pytest.raises(CeaseError, match=r"holds an audit with other (cases|files)"):
        planned(tmp_path, cases=swapped, settings=settings)


def test_two_cases_of_one_name_are_refused(tmp_path):
    first, *_ = find_cases(SAMPLES)
    with pytest.raises(CeaseError, match="two cases are called"):
        planned(tmp_path, cases=[first, first], settings=small())


def test_a_name_that_cannot_be_written_leaves_its_case_out(tmp_path):
    first, second, *_ = find_cases(SAMPLES)
    odd = type(first)("scan \udcff", first.image, first.labels)
    plan = planned(tmp_path, cases=[odd, second], settings=small())
    assert "rename it" in plan.unusable["scan ?"]


def test_a_source_with_the_name_of_another_model_is_refused(model, tmp_path):
    folder, change = model
    change(notes="another one")
    with pytest.raises(CeaseError, match="two models are called"):
        planned(tmp_path / "out", MODELS[:1], sources=[folder])


def test_seen_cases_that_are_kept_are_written_down(tmp_path):
    card = load_model(SHIPPED / MODELS[0]).card
    case, *_ = find_cases(SAMPLES)
    planned(tmp_path, cases=[type(case)(card.data.train[0], case.image, case.labels)], keep_seen=True)
    assert load_audit(tmp_path).facts["kept"] == [card.data.train[0]]


def test_what_a_model_sees_in_parts_is_not_attacked_through_its_features(tmp_path):
    def trials(out, **changes):
        planned(tmp_path / out, settings=small(cases=1, joint=True, **changes))
        return {t["name"] for t in load_audit(tmp_path / out).facts["victims"][0]["trials"]}

    assert trials("slice") - trials("volume", slices=0) == {"joint"}


def test_another_version_that_goes_on_is_written_down(tmp_path):
    planned(tmp_path)
    facts = json.loads((tmp_path / "audit.json").read_text())
    facts["made"]["versions"]["torch"] = "0.0.1"
    (tmp_path / "audit.json").write_text(json.dumps(facts))
    for _ in range(2):
        planned(tmp_path)
    facts = load_audit(tmp_path).facts
    assert facts["made"]["versions"]["torch"] == "0.0.1"
    assert [made["versions"]["torch"] for made in facts["resumed"]] == [torch.__version__]


def test_a_file_is_no_folder_for_results(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    with pytest.raises(CeaseError, match="choose another"):
        planned(tmp_path / "file")
    with pytest.raises(CeaseError, match="choose another"):
        planned(tmp_path / "locked")


def test_every_picture_has_a_file_of_its_own(tmp_path):
    names = ["a b", "a_b", "a(b)", "...", "....", "é" * 200, "é" * 201, "../x", "plain"]
    paths = {picture_path(tmp_path, model, "case") for model in names}
    paths |= {picture_path(tmp_path, "model", case) for case in names}
    assert len(paths) == 2 * len(names)
    for model in names:
        path = picture_path(tmp_path, model, model)
        assert tmp_path / PICTURES in path.resolve().parents
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert picture_path(tmp_path, "plain", "scd_15") == tmp_path / PICTURES / "plain" / "scd_15.npz"


def test_no_cases_is_said(tmp_path):
    with pytest.raises(CeaseError, match="no case to audit on"):
        run(tmp_path, cases=[])


def test_cases_that_were_all_trained_on_are_refused_unless_kept(tmp_path):
    card = load_model(SHIPPED / MODELS[0]).card
    case, *_ = find_cases(SAMPLES)
    trained = [type(case)(card.data.train[0], case.image, case.labels)]
    with pytest.raises(CeaseError, match="--keep-seen"):
        run(tmp_path / "a", cases=trained)
    kept = run(tmp_path / "b", MODELS[:1], trained, small(cases=1), keep_seen=True)
    assert kept[0].cases


def test_two_models_of_one_name_or_of_other_classes_are_refused(tmp_path):
    with pytest.raises(CeaseError, match="two models are called"):
        run(tmp_path, [MODELS[0], MODELS[0]])
    with pytest.raises(CeaseError, match="segment different classes"):
        run(tmp_path, [MODELS[0], "polyp-undefended"])


def test_a_case_whose_labels_are_missing_is_left_out_with_the_reason(tmp_path):
    first, second, *_ = find_cases(SAMPLES)
    lost = type(second)("lost", second.image, tmp_path / "lost.nii.gz")
    plan = run(tmp_path / "out", MODELS[:1], [first, lost])[0]
    assert list(plan.unusable) == ["lost"]
    assert "lost.nii.gz" in plan.unusable["lost"]


def test_a_full_disk_is_said_and_nothing_is_lost(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    journal = folder / "log.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]))
    with limited(journal.stat().st_size + 50), pytest.raises(CeaseError, match="cannot keep results"):
        run(folder)
    assert journal.read_bytes() == b"".join(lines[:-2])
    run(folder)
    assert contents(folder) == contents(whole[0])


@contextmanager
def limited(size):
    """No file may grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- models in memory, and models that fail ------------------------------------------------------------------


class FailsOn(nn.Module):
    """Raises on the case whose first value it knows."""

    def __init__(self, model, value):
        super().__init__()
        self.model, self.mode, self.value = model, model.mode, value

    def forward(self, images):
        if images.shape[0] == 1 and torch.isclose(images.flatten()[0], torch.tensor(self.value)):
            raise RuntimeError("a layer gave up")
        return self.model(images)


def test_a_model_that_fails_on_one_case_is_recorded_and_the_rest_goes_on(tmp_path):
    model = load_model(SHIPPED / MODELS[0])
    seen = []
    model.register_forward_hook(lambda _, args, __: seen.append(args[0].detach().flatten()[0].item()))
    run(tmp_path / "a", [Victim.in_memory("whole", model, model.card)])
    victim = Victim.in_memory("fails", FailsOn(load_model(SHIPPED / MODELS[0]), seen[0]), model.card)
    events = run(tmp_path / "b", [victim])
    assert events[-1].complete
    rows = load_audit(tmp_path / "b").rows
    failed = rows[rows["error"] != ""]
    assert failed["case"].nunique() == 1
    assert failed["dice"].isna().all()
    assert failed["error"].str.contains("a layer gave up").all()
    assert (rows[rows["case"] != failed["case"].iloc[0]]["error"] == "").all()


class Two(nn.Module):
    """Gives a tuple, as some models do."""

    def __init__(self, model):
        super().__init__()
        self.model, self.mode = model, model.mode

    def forward(self, images):
        return self.model(images), images


def test_a_model_that_gives_something_else_is_recorded_without_stack_frames(tmp_path, capfd, caplog):
    model = load_model(SHIPPED / MODELS[0])
    events = run(tmp_path, [Victim.in_memory("two", Two(model), model.card)], settings=small(cases=1))
    assert events[-1].complete
    assert load_audit(tmp_path).rows["error"].str.contains("the model failed on this case").all()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "Traceback" not in capfd.readouterr().err


def test_a_model_in_memory_gives_the_figures_of_its_folder(whole, tmp_path):
    model = load_model(SHIPPED / MODELS[0])
    run(tmp_path, [Victim.in_memory(MODELS[0], model, model.card)])
    mine, theirs = (load_audit(f).rows for f in (tmp_path, whole[0]))
    clean = [f[(f["attack"] == CLEAN) & (f["model"] == MODELS[0])]["dice"].to_numpy() for f in (mine, theirs)]
    np.testing.assert_allclose(*clean, atol=1e-3)


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epsilons": (8 / 255, 2 / 255)}, "epsilons"),
        ({"report_epsilon": 3 / 255}, "report_epsilon"),
        ({"cases": 0}, "cases"),
        ({"banana": 1}, "banana"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, named):
    with pytest.raises(CeaseError, match=named):
        tier("quick", **change)


def test_higher_tiers_try_everything_that_lower_ones_do():
    quick, standard, full = (tier(t) for t in ("quick", "standard", "full"))
    assert set(quick.epsilons) <= set(standard.epsilons) == set(full.epsilons)
    for name in ("steps", "longer", "restarts", "queries", "sea_steps", "joint"):
        assert getattr(quick, name) <= getattr(standard, name) <= getattr(full, name)


def test_an_unknown_tier_names_the_known_ones():
    with pytest.raises(CeaseError, match="quick, standard, full"):
        tier("endless")


def test_settings_survive_json():
    settings = small()
    assert Settings.model_validate(json.loads(settings.model_dump_json())) == settings
    assert os.linesep not in settings.model_dump_json()
