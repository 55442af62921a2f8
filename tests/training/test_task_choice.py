"""Tasks are chosen once, by training cases alone, and the reasons are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from discs import disc_config

from cease_core.errors import CeaseError
from cease_core.models import load_model
from cease_core.tasks import TASKS
from cease_core.tasks.gradients import NOISES
from cease_core.tasks.relevance import Relevance
from cease_core.training import Event, StepDone, TasksChosen, TrainingConfig, train
from cease_core.training.batches import Sample, load_samples
from cease_core.training.selection import HELD_OUT, _divide, choose_tasks
from cease_core.training.state import STATE


def go(config: TrainingConfig, sides: Any, out: Path) -> list[Event]:
    return list(train(config, *sides, out, device="cpu"))


def choosing(rule: str, **changes: Any) -> TrainingConfig:
    return disc_config(defence={"preset": "multitask", "auxiliary.rule": rule}, **changes)


@pytest.fixture(scope="module")
def chosen(sides, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], Path]:
    out = tmp_path_factory.mktemp("chosen")
    return go(choosing("all"), sides, out), out


def test_the_choice_comes_first_and_is_written_down(chosen) -> None:
    events, out = chosen
    told = events[0]
    assert isinstance(told, TasksChosen)
    relevance = Relevance.model_validate_json((out / "relevance.json").read_text())
    assert set(told.tasks) == relevance.scores.keys() == {name for name, task in TASKS.items() if 2 in task.dims}
    assert (out / "relevance.md").read_text() == told.report
    assert (out / "relevance.svg").read_text().lstrip().startswith(("<svg", "<?xml"))


def test_the_card_and_the_state_hold_it(chosen) -> None:
    events, out = chosen
    told = events[0]
    assert isinstance(told, TasksChosen)
    training = load_model(out).card.training
    assert tuple(training["selection"]["chosen"]) == told.tasks
    (term,) = (t for t in training["defence"]["terms"] if t["kind"] == "auxiliary")
    assert tuple(term["tasks"]) == told.tasks
    state = torch.load(out / STATE, weights_only=True)
    assert json.loads(json.dumps(state["selection"])) == training["selection"]


def test_its_cost_counts(sides, chosen) -> None:
    events, out = chosen
    spent = torch.load(out / STATE, weights_only=True)["spent"]
    steps = [e for e in events if isinstance(e, StepDone)]
    each = (steps[1].gradients - steps[0].gradients) // 4
    assert spent > 0
    assert [s.gradients for s in steps] == [spent + each * 4 * (i + 1) for i in range(len(steps))]


def test_a_budget_pays_for_it(sides, tmp_path: Path) -> None:
    config = choosing("all", budget=600, validate_every=99)
    *_, last = (e for e in go(config, sides, tmp_path) if isinstance(e, StepDone))
    epoch = 8 * (1 + sum(task.presents for task in TASKS.values()))
    assert 600 - epoch < last.gradients <= 600


def test_the_training_itself_starts_as_it_would_have_without(sides, chosen, tmp_path: Path) -> None:
    events, _ = chosen
    told = events[0]
    assert isinstance(told, TasksChosen)
    config = disc_config(defence={"preset": "multitask", "auxiliary.tasks": told.tasks})
    named = go(config, sides, tmp_path)
    losses = [[e.loss for e in run if isinstance(e, StepDone)] for run in (events, named)]
    assert losses[0] == losses[1]


def test_validation_cases_have_no_say(sides, chosen, tmp_path: Path) -> None:
    training, validation = sides
    _, out = chosen
    run = train(choosing("all"), training, validation[:1], tmp_path, device="cpu")
    assert isinstance(next(run), TasksChosen)
    assert (tmp_path / "relevance.json").read_bytes() == (out / "relevance.json").read_bytes()


def test_on_a_trained_model_only_the_heads_warm_up_and_that_costs_nothing(sides, tmp_path: Path) -> None:
    go(disc_config(), sides, tmp_path)
    config = choosing("all", start=str(tmp_path))
    samples = load_samples(sides[0], config)
    short, long = (choose_tasks(config, samples, torch.device("cpu"), warm_up=share) for share in (0.1, 1.0))
    assert short.gradients == long.gradients
    # What is left is measuring: an attack of three steps, then every target and segmentation on both views.
    assert short.gradients == short.relevance.cases * (3 + 2 * (1 + len(short.relevance.scores) + NOISES))
    learnt = [sum(score.learnable for score in chosen.relevance.scores.values()) for chosen in (short, long)]
    assert learnt[1] > learnt[0]
    assert choose_tasks(choosing("all"), samples, torch.device("cpu")).gradients > short.gradients


def test_the_same_choice_every_time(sides, chosen) -> None:
    _, out = chosen
    config = choosing("all")
    again = choose_tasks(config, load_samples(sides[0], config), torch.device("cpu"))
    assert again.relevance.model_dump_json(indent=1) + "\n" == (out / "relevance.json").read_text()


def test_where_no_task_is_fit_the_term_goes(sides, tmp_path: Path) -> None:
    # After a handful of steps no task is learnt well enough for the rule.
    events = go(choosing("weak"), sides, tmp_path)
    assert isinstance(events[0], TasksChosen)
    assert events[0].tasks == ()
    training = load_model(tmp_path).card.training
    assert training["selection"]["chosen"] == []
    assert [t["kind"] for t in training["defence"]["terms"]] == ["segmentation"]


def drawn(patients: int, each: int, *, filled: bool = True) -> list[Sample]:
    labels = torch.full((1, 4, 4), int(filled))
    return [
        Sample(f"{p}_{i}", torch.zeros(1, 4, 4), labels, patient=f"p{p}") for p in range(patients) for i in range(each)
    ]


def test_no_patient_is_on_both_sides_of_the_choice() -> None:
    samples = drawn(12, 3)
    learning, held_out = _divide(samples)
    assert {s.patient for s in learning}.isdisjoint({s.patient for s in held_out})
    assert (len(learning), len(held_out)) == (27, 9)
    assert {s.case for s in _divide(samples[::-1])[1]} == {s.case for s in held_out}


def test_no_more_images_than_needed_are_held_out() -> None:
    learning, held_out = _divide(drawn(400, 1))
    assert (len(learning), len(held_out)) == (400 - HELD_OUT, HELD_OUT)


def test_patients_without_a_structure_are_not_measured_on() -> None:
    empty = [Sample("e" + s.case, s.image, s.labels, "e" + s.patient) for s in drawn(40, 1, filled=False)]
    learning, held_out = _divide(empty + drawn(4, 1))
    assert (len(learning), len(held_out)) == (43, 1)
    assert held_out[0].labels.any()


def test_too_few_patients(sides, tmp_path: Path) -> None:
    training, validation = sides
    with pytest.raises(CeaseError, match=r"^choosing tasks needs at least four patients with foreground; add some"):
        go(choosing("all"), (training[:3], validation), tmp_path)


def test_a_warm_up_that_is_not_finite_names_its_cases(sides, tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match=r"^choosing tasks, batch \d+ \(disc_.*: the loss is (nan|inf)"):
        go(choosing("all", learning_rate=1e30, epochs=50), sides, tmp_path)
