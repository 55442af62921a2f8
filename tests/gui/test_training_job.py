"""A training run as a folder: what is written into it, what can be read from it, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_training import HEARTS, tiny

from cease_core.data import read_split
from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan
from cease_core.models.checkpoint import load_card
from cease_core.scan import Scan, Window
from cease_core.training import load_config
from napari_cease.jobs.process import CONTROL, LOG, Ended
from napari_cease.jobs.training import EVENTS, Job, Preview, Run, Status, Tail, find_runs, publish, read_preview
from napari_cease.jobs.training_process import train_run
from napari_cease.jobs.training_recipe import (
    Looked,
    Pair,
    create_run,
    draft,
    free_name,
    look,
    look_at_pairs,
    plan,
    warnings,
)
from napari_cease.training_session import TrainingSession

STEP = {"kind": "step", "epochs": 3, "batches": 4, "gradients": 1, "parts": {}}
BEGAN = {"kind": "began", "resumed": False, "choosing": False, "cases": {"training": 5, "validation": 1, "test": 0}}


def always(done: int, total: int) -> bool:
    return True


@pytest.fixture(scope="module")
def hearts() -> Looked:
    looked = look(HEARTS, always)
    assert looked is not None
    return looked


@pytest.fixture
def session(tmp_path: Path) -> TrainingSession:
    session = TrainingSession(library=tmp_path / "library")
    tiny(session, epochs=1, batch_size=8, patch=(16, 16))
    return session


@pytest.fixture
def run(hearts: Looked, session: TrainingSession) -> Run:
    recipe = draft(hearts, session.data, session.choices)
    return create_run(recipe, Job(session.library, threads=1, device="cpu", save_every=0))


# --- from choices to a folder -------------------------------------------------------------------------------


def test_a_run_is_a_folder_that_the_command_line_can_resume(run: Run, hearts: Looked) -> None:
    assert {"config.yaml", "split.json", "data.json", "job.json"} <= {p.name for p in run.folder.iterdir()}
    sides = read_split(run.folder / "split.json", hearts.dataset.cases)
    assert [len(side) for side in sides.sides.values()] == [5, 1, 0]
    config = load_config(run.folder / "config.yaml")
    assert config.defence.inner.steps == 2
    assert config.defence.inner.epsilon == pytest.approx(8 / 255)


def test_what_is_not_chosen_follows_from_the_data(hearts: Looked) -> None:
    session = TrainingSession(folder=HEARTS, preset="none", ndim=2)
    config = draft(hearts, session.data, session.choices).config
    assert (config.patch, config.batch_size, config.channels) == ((64, 64), 4, 1)
    assert config.title == "cardiac_mr_sunnybrook, none"


def test_few_patients_still_leave_one_to_validate_on(hearts: Looked, session: TrainingSession) -> None:
    session.validation = 0.05
    assert len(draft(hearts, session.data, session.choices).sides.validation) == 1


def test_a_test_share_that_leaves_nobody_is_refused(hearts: Looked, session: TrainingSession) -> None:
    session.test, session.validation = 0.6, 0.4
    with pytest.raises(CeaseError, match="leave nothing to train on"):
        draft(hearts, session.data, session.choices)


def test_the_plan_counts_what_a_run_would_cost(hearts: Looked, session: TrainingSession) -> None:
    rows = plan(draft(hearts, session.data, session.choices))
    assert rows["cases"] == "5 training, 1 validation, 0 test"
    assert rows["gradient computations"] == "4 an image and step, 160 an epoch, 160 in 1 epochs"


def test_a_made_name_is_counted_up_and_a_chosen_one_refused(run: Run, hearts: Looked, session: TrainingSession) -> None:
    again = free_name(draft(hearts, session.data, session.choices), session.library, chosen=False)
    assert (again.config.name, again.config.title) == ("cardiac_mr_sunnybrook-at-2", "cardiac_mr_sunnybrook, at (2)")
    named = draft(hearts, session.data, session.choices, "Cardiac_mr_sunnybrook AT")
    with pytest.raises(CeaseError, match="a run called cardiac_mr_sunnybrook-at in"):
        free_name(named, session.library, chosen=True)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path, session: TrainingSession) -> None:
    with pytest.raises(CeaseError, match=r"needs the folders images/ and labels/"):
        look(tmp_path, always)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.png").write_bytes(b"no scan")
    looked = look(tmp_path, always)
    assert looked is not None
    with pytest.raises(CeaseError, match=r"a\.png"):
        draft(looked, session.data, session.choices)


# --- labelled layers ----------------------------------------------------------------------------------------


def heart(name: str = "scd_15", *, of_file: bool = True) -> Pair:
    scan = read_scan(HEARTS / "images" / f"{name}.nii.gz")
    labels = read_labels(HEARTS / "labels" / f"{name}.nii.gz", like=scan)
    if not of_file:
        scan = Scan(scan.image, scan.affine, name="painted heart")
    return Pair(scan, labels, {1: "myocardium"})


def test_a_single_volume_is_cut_between_its_slices(tmp_path: Path, session: TrainingSession) -> None:
    pair = heart()
    looked = look_at_pairs([pair], tmp_path, always)
    assert looked is not None
    assert looked.sides is not None
    (first,), (last,) = looked.sides.training, looked.sides.validation
    parts = [read_scan(case.image) for case in (first, last)]
    assert np.array_equal(np.concatenate([p.image for p in parts], axis=1), pair.scan.image)
    assert parts[1].translate[0] == pytest.approx(
        pair.scan.translate[0] + len(parts[0].image[0]) * pair.scan.spacing[0]
    )
    assert all((read_labels(case.labels, like=p) > 0).any() for case, p in zip((first, last), parts, strict=True))
    recipe = draft(looked, session.data, session.choices)
    assert recipe.config.classes[0].name == "myocardium"
    assert recipe.config.name == "scd_15-at"
    assert "neighbours" in warnings(looked, recipe.sides)[-1]


def test_several_layers_are_cases_and_their_files_stay_as_they_are(tmp_path: Path, session: TrainingSession) -> None:
    looked = look_at_pairs([heart(), heart("scd_22"), heart("scd_26", of_file=False)], tmp_path, always)
    assert looked is not None
    assert [case.name for case in looked.dataset.cases] == ["painted-heart", "scd_15", "scd_22"]
    assert (tmp_path / "images" / "scd_22.nii.gz").read_bytes() == (HEARTS / "images" / "scd_22.nii.gz").read_bytes()
    assert len(draft(looked, session.data, session.choices).sides.validation) == 1


def test_pictures_keep_their_colours(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pairs = []
    for name in "ab":
        image = generator.integers(0, 256, (3, 24, 24)).astype(np.float32)
        scan = Scan(image, np.eye(4), name=name, unit="8-bit", length_unit="pixel", window=Window(0, 255), rgb=True)
        pairs.append(Pair(scan, (image[0] > 128).astype(np.int32), {}))
    looked = look_at_pairs(pairs, tmp_path, always)
    assert looked is not None
    assert [(f.channels, f.unit) for f in looked.facts] == [(3, "8-bit")] * 2
    assert np.array_equal(read_scan(tmp_path / "images" / "a.png").image, pairs[0].scan.image)


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    slice_ = heart()
    one = Pair(Scan(slice_.scan.image[:, 4], np.eye(4), name="one slice"), slice_.labels[4], {})
    with pytest.raises(CeaseError, match="one slice alone cannot be divided"):
        look_at_pairs([one], tmp_path, always)
    with pytest.raises(CeaseError, match="no labelled image is chosen"):
        look_at_pairs([], tmp_path, always)


# --- what the process does ----------------------------------------------------------------------------------


def test_a_training_leaves_a_model_in_the_library_and_tells_all_on_the_way(run: Run, session: TrainingSession) -> None:
    model = train_run(run.folder)
    assert model == session.library / "cardiac_mr_sunnybrook-at"
    assert load_card(model).data.validation == ("scd_15",)  # type: ignore[union-attr]
    assert {p.name for p in model.iterdir()} >= {"model.safetensors", "card.json", "history.csv", "config.yaml"}

    heard = session.hear(Tail(run.folder / EVENTS).read())
    assert heard == {"began", "step", "saved", "epoch", "preview", "finished"}
    assert session.cases == {"training": 5, "validation": 1, "test": 0}
    (row,) = session.history
    assert row.clean_dice == pytest.approx(session.metrics["validation_clean_dice"], abs=1e-4)
    assert set(row.parts) == {"segmentation clean", "segmentation adversarial"}
    assert session.rates[0][0] == 1

    preview = read_preview(run.folder)
    assert preview is not None
    assert (preview.case, preview.epoch) == ("scd_15", 1)
    assert preview.image.shape == (1, 64, 64)
    assert preview.labels.any()
    assert preview.dice[1] <= preview.dice[0]


def test_asked_to_pause_it_ends_at_a_saved_state_and_goes_on_from_there(run: Run, session: TrainingSession) -> None:
    run.pause()
    with pytest.raises(Ended) as ended:
        train_run(run.folder)
    assert ended.value.stage == "paused"
    session.hear(Tail(run.folder / EVENTS).read())
    assert session.saved == (0, 1)
    (run.folder / CONTROL).unlink()
    assert load_card(train_run(run.folder)).training["best_epoch"] == 1


def test_minutes_become_as_many_epochs_as_fit(hearts: Looked, session: TrainingSession) -> None:
    recipe = draft(hearts, session.data, session.choices)
    run = create_run(recipe, Job(session.library, threads=1, device="cpu", minutes=1e-3))
    train_run(run.folder)
    config = load_config(run.folder / "config.yaml")
    assert config.epochs == 1
    assert not (run.folder / "trial").exists()


def test_data_that_have_gone_are_told_of(run: Run) -> None:
    (run.folder / "data.json").write_text('{"folder": "/nowhere/hearts"}')
    with pytest.raises(CeaseError, match="no longer in /nowhere/hearts; put them back there, then resume"):
        train_run(run.folder)


def test_a_run_that_cannot_begin_says_why(run: Run, qtbot: Any) -> None:
    (run.folder / "job.json").write_text("{")
    run.start()
    qtbot.waitUntil(lambda: not run.status().alive, timeout=60_000)
    assert run.status().stage == "failed"
    assert run.status().sentence.endswith("job.json is missing or damaged; start a new run.")
    assert run.status().sentence in (run.folder / LOG).read_text()


def test_stopped_before_its_first_batch_it_ends_at_once(run: Run, qtbot: Any) -> None:
    run.start()
    qtbot.waitUntil(lambda: run.status().stage == "running", timeout=60_000)
    run.stop()
    qtbot.waitUntil(lambda: not run.status().alive, timeout=60_000)
    assert run.status().stage == "stopped"
    assert not any(line["kind"] == "step" for line in Tail(run.folder / EVENTS).read())


# --- what the folder tells ----------------------------------------------------------------------------------


def test_a_process_that_only_has_the_number_of_the_run_is_not_taken_for_it(run: Run) -> None:
    (run.folder / "run.json").write_text(json.dumps({"pid": os.getpid(), "stage": "running"}))
    assert run.status().stage == "lost"
    run.stop()
    assert run.status().stage == "stopped"


def test_what_a_process_said_before_it_vanished_is_quoted() -> None:
    session = TrainingSession()
    session.stand(Status("lost", "No space left on device."))
    assert session.told == (
        "The training process has vanished, before the first batch: No space left on device; nothing was saved yet, "
        "and Resume begins anew."
    )


def test_a_job_of_another_version_is_one_sentence(run: Run) -> None:
    (run.folder / "job.json").write_text('{"library": "x", "colour": "red"}')
    with pytest.raises(CeaseError, match=r"job\.json is missing or damaged; start a new run"):
        run.job()


def test_runs_are_found_newest_first(run: Run, hearts: Looked, session: TrainingSession) -> None:
    recipe = free_name(draft(hearts, session.data, session.choices), session.library, chosen=False)
    newer = create_run(recipe, Job(session.library))
    os.utime(run.folder / "job.json", (1, 1))
    assert find_runs(session.library) == [newer, run]


def test_there_is_nothing_to_keep_before_a_validation(run: Run, session: TrainingSession) -> None:
    with pytest.raises(CeaseError, match="has no model yet"):
        publish(run.folder, session.library, "x")


def test_lines_are_heard_when_they_are_complete_and_damaged_ones_left_out(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "events.jsonl")
    assert list(tail.read()) == []
    with (tmp_path / "events.jsonl").open("w") as file:
        file.write('{"kind": "a"}\n{"kind": "b", "x": 0.\n\n{"kind": "c"')
        file.flush()
        assert [line["kind"] for line in tail.read()] == ["a"]
        file.write("}\n")
        file.flush()
        assert [line["kind"] for line in tail.read()] == ["c"]


def test_epochs_that_are_told_again_after_a_break_replace_the_lost_ones() -> None:
    session = TrainingSession()
    epoch = {"kind": "epoch", "epochs": 3, "gradients": 1, "seconds": 4.0, "parts": {}}
    validated = {"clean_dice": 0.5, "robust_dice": None}
    session.hear(
        [
            BEGAN,
            *(STEP | {"epoch": 1, "batch": b, "loss": 1.0, "seconds": float(b)} for b in (1, 2, 4)),
            epoch | validated | {"epoch": 1, "loss": 1.0},
            STEP | {"epoch": 2, "batch": 1, "loss": 0.9, "seconds": 5.0},
            epoch | validated | {"epoch": 2, "loss": 0.9},
            BEGAN | {"resumed": True},
            STEP | {"epoch": 1, "batch": 3, "loss": 0.8, "seconds": 3.0},
            epoch | validated | {"epoch": 1, "loss": 0.7},
        ]
    )
    assert [(row.epoch, row.loss) for row in session.history] == [(1, 0.7)]
    assert [x for x, _ in session.losses] == [0.25, 0.5, 0.75]
    session.state = "running"
    session.hear([STEP | {"epoch": 2, "batch": 1, "loss": 0.8, "seconds": 5.0}])
    assert session.seconds_left == pytest.approx((5.0 - 3.0) / 2 * 7)


def test_a_preview_survives_its_file(tmp_path: Path) -> None:
    mask = np.eye(8, dtype=np.uint8)
    written = Preview("a", 3, 8 / 255, np.ones((1, 8, 8), np.float32), mask, mask, 0 * mask, (1.0, 0.25))
    written.write(tmp_path)
    found = read_preview(tmp_path)
    assert found is not None
    assert found[:3] == written[:3]
    assert found.dice == (1.0, 0.25)
    assert all(np.array_equal(a, b) for a, b in zip(found[3:7], written[3:7], strict=True))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no picture"])
def test_a_preview_that_is_damaged_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "preview.npz").write_bytes(content)
    assert read_preview(tmp_path) is None
