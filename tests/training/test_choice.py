"""The model of a run: best under attack among those that keep the clean Dice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from discs import disc_config

from cease_core.defences import preset
from cease_core.models import SegmentationModel
from cease_core.training.batches import Sample
from cease_core.training.build import build_model
from cease_core.training.choice import Candidate, Candidates, choose, validate, worth_validating


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return build_model(disc_config()).eval()


def named(*figures: tuple[float, float]) -> list[Candidate]:
    return [Candidate(i, *f) for i, f in enumerate(figures, start=1)]


@pytest.mark.parametrize(
    ("figures", "reference", "best", "keeps"),
    [
        pytest.param([(0.90, 0.30), (0.89, 0.50), (0.80, 0.70)], None, 2, True, id="the best of the run is the bar"),
        pytest.param([(0.90, 0.30), (0.89, 0.50), (0.80, 0.70)], 0.82, 3, True, id="a start's Dice is the bar"),
        pytest.param([(0.90, 0.30), (0.88, 0.50)], 0.90, 2, True, id="two points are allowed"),
        pytest.param([(0.90, 0.30), (0.85, 0.50)], 0.95, 2, False, id="none keeps it: the best under attack"),
        pytest.param([(0.90, 0.50), (0.90, 0.50)], None, 1, True, id="the earliest of equals"),
        pytest.param([(0.90, math.nan), (0.91, math.nan)], None, 2, True, id="undefended: the clean Dice"),
    ],
)
def test_choice(figures: list[tuple[float, float]], reference: float | None, best: int, keeps: bool) -> None:
    # The bar lies a rounding below, as 0.90 − 0.02 is not quite 0.88.
    chosen, kept = choose(named(*figures), reference, 0.02 + 1e-9)
    assert (chosen.epoch, kept) == (best, keeps)


def folders(place: Candidates) -> list[str]:
    return sorted(p.name for p in place.folder.iterdir())


def test_only_what_none_dominates_stays_on_disk(model: SegmentationModel, tmp_path: Path) -> None:
    kept = Candidates(tmp_path, None, 0.02)
    first, worse, other, better = named((0.8, 0.4), (0.7, 0.3), (0.9, 0.2), (0.85, 0.5))
    assert kept.add(first, model)
    assert not kept.add(worse, model)
    assert kept.add(other, model)
    kept.sweep()
    assert folders(kept) == ["epoch_00001", "epoch_00003"]
    assert not kept.add(better, model)  # it beats the first, but loses more than two points of the third
    # A run resumed from an older state may still need the first: it goes only after the new state is written.
    assert folders(kept) == ["epoch_00001", "epoch_00003", "epoch_00004"]
    kept.sweep()
    assert folders(kept) == ["epoch_00003", "epoch_00004"]
    assert (kept.best, kept.stale) == (other, 1)
    kept.clear()
    assert not kept.folder.exists()


def test_the_best_model_comes_with_the_heads_of_its_own_moment(model: SegmentationModel, tmp_path: Path) -> None:
    kept = Candidates(tmp_path, None, 0.02)
    best, worse, other = named((0.9, 0.4), (0.8, 0.3), (0.95, 0.2))
    for candidate in (best, worse, other):
        kept.add(candidate, model, {"number": torch.tensor([candidate.epoch])})
    assert kept.best == other
    assert kept.heads() == {"number": torch.tensor([3])}
    assert kept.add(Candidate(4, 0.94, 0.5), model)  # a model without heads
    assert kept.heads() is None


def test_candidates_come_back_from_a_state(model: SegmentationModel, tmp_path: Path) -> None:
    before = Candidates(tmp_path, 0.9, 0.02)
    for candidate in named((0.8, 0.4), (0.9, 0.2)):
        before.add(candidate, model)
    state = before.state()
    before.add(Candidate(3, 0.95, 0.9), model)
    after = Candidates(tmp_path, None, 0.02)
    after.restore(state)
    after.sweep()
    assert after.state() == state
    assert folders(after) == ["epoch_00001", "epoch_00002"]
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(after.load()(images), model(images))


def sample(filled: bool, size: int = 16, name: str = "a") -> Sample:
    labels = torch.zeros(1, size, size, dtype=torch.uint8)
    labels[:, 4:8, 4:8] = filled
    return Sample(name, torch.rand(1, size, size, generator=torch.Generator().manual_seed(size)), labels)


def test_images_without_a_structure_do_not_count_and_the_rest_is_thinned_evenly() -> None:
    samples = [sample(i % 2 == 0, name=str(i)) for i in range(20)]
    assert [s.case for s in worth_validating(samples, None)] == [str(i) for i in range(0, 20, 2)]
    assert [s.case for s in worth_validating(samples, 5)] == ["0", "4", "8", "12", "16"]
    assert [s.case for s in worth_validating(samples, 50)] == [str(i) for i in range(0, 20, 2)]


def test_validation_attacks_defended_models_only(model: SegmentationModel) -> None:
    samples = [sample(True), sample(True, 24), sample(True)]
    device = torch.device("cpu")
    clean, robust = validate(model, samples, preset("at"), device, 2)
    assert 0 <= robust <= clean <= 1
    undefended = validate(model, samples, preset("none"), device, 2)
    assert undefended[0] == clean
    assert math.isnan(undefended[1])
    assert validate(model, samples, preset("at"), device, 1) == pytest.approx((clean, robust), abs=1e-5)
