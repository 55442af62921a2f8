"""Real models behind what hides their gradient: the audit has to doubt each of them, and to believe the honest ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cease_core.data import find_cases
from cease_core.defences.input_transforms import JPEG
from cease_core.evaluation.audit import Victim, audit, load_audit, tier
from cease_core.evaluation.checks import run_checks, verdict
from cease_core.models import SegmentationModel, find_model, load_model, prepare

DATA = Path(__file__).parents[2] / "sample_data" / "cardiac_mr_sunnybrook"
FEW = {"steps": 6, "longer": 12, "restarts": 1, "queries": 20, "epsilons": (8 / 255,)}

Change = Callable[[Tensor], Tensor]


class Behind(nn.Module):
    """A model behind a change of its input and of its logits."""

    def __init__(self, model: SegmentationModel, before: Change, after: Change) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after
        self.mode, self.card = model.mode, model.card
        self.check = model.check

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.model(self.before(images)))


def as_it_is(values: Tensor) -> Tensor:
    return values


def saturated(logits: Tensor) -> Tensor:
    return 1e4 * logits


def quantised(images: Tensor) -> Tensor:
    return (16 * images).round() / 16


def noisy(images: Tensor) -> Tensor:
    return images + 0.05 * torch.randn_like(images)


def through_jpeg(images: Tensor) -> Tensor:
    return JPEG().apply(images.detach(), torch.Generator())


def audited(
    name: str, folder: Path, before: Change = as_it_is, after: Change = as_it_is, *, cases: int = 5
) -> tuple[str, set[str]]:
    """Label of the verdict, and the names of the checks that decided."""
    model = prepare(load_model(find_model(name)))
    victim = Victim.in_memory("model", Behind(model, before, after), model.card)
    for _ in audit([victim], find_cases(DATA), folder, tier("quick", cases=cases, **FEW)):
        pass
    found = verdict(run_checks(load_audit(folder), "model"))
    return found.label, {c.name for c in found.deciding}


@pytest.mark.parametrize("name", ["cardiac-defended", "cardiac-undefended"])
def test_an_honest_model_is_credible_whether_it_holds_or_breaks(name: str, tmp_path: Path) -> None:
    assert audited(name, tmp_path) == ("credible", set())


@pytest.mark.parametrize(
    ("before", "after", "given_away_by"),
    [
        (as_it_is, saturated, {"not_saturated", "gradient_leads"}),
        (quantised, as_it_is, {"gradient_not_zero", "gradient_leads", "beats_noise"}),
        (noisy, as_it_is, {"repeats"}),
        (through_jpeg, as_it_is, {"gradient_reaches"}),
    ],
    ids=["saturated logits", "quantiser", "random noise", "jpeg"],
)
def test_a_masked_model_is_doubtful(before: Change, after: Change, given_away_by: set[str], tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        label, deciding = audited("cardiac-undefended", tmp_path, before, after, cases=3)
    assert label == "doubtful: gradient masking suspected"
    assert given_away_by <= deciding
