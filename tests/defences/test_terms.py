"""Each rival's loss, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.attacks.losses import dice_ce, one_hot
from cease_core.defences import Objective, preset
from cease_core.defences.config import AuxiliaryTerm, DistillationTerm
from cease_core.defences.terms.auxiliary import Auxiliary
from cease_core.defences.terms.consistency import Consistency, divergence
from cease_core.defences.terms.distillation import Distillation
from cease_core.defences.terms.divide import Divide
from cease_core.defences.terms.frequency import Frequency, spectrum
from cease_core.defences.terms.mart import Mart, boosted_cross_entropy
from cease_core.defences.views import Context, Look
from cease_core.errors import CeaseError
from cease_core.models import save_model
from cease_core.tasks import TASKS
from cease_core.tasks.base import Setting

log = math.log


def pixels(*values: tuple[float, ...]) -> Tensor:
    """Logits (1, K, 1, P): one tuple a pixel."""
    return torch.tensor(values).T[None, :, None, :].contiguous()


def chances(*values: tuple[float, ...]) -> Tensor:
    """Logits of which the softmax is given."""
    return pixels(*values).log()


def logit(p: float) -> float:
    return log(p / (1 - p))


def bernoulli(p: float, q: float) -> float:
    """KL(p ‖ q) of two coins."""
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))


def test_the_divergence_of_two_coins() -> None:
    clean, attacked = pixels((logit(0.8),)), pixels((logit(0.3),))
    assert divergence(clean, attacked, "binary").item() == pytest.approx(bernoulli(0.8, 0.3), abs=1e-6)
    assert divergence(clean, attacked, "multilabel").shape == (1, 1, 1, 1)
    two = divergence(chances((0.2, 0.8)), chances((0.7, 0.3)), "multiclass")
    assert two.item() == pytest.approx(bernoulli(0.8, 0.3), abs=1e-6)
    assert divergence(clean, clean, "binary").item() == 0


def test_the_divergence_of_three_answers() -> None:
    value = divergence(chances((0.5, 0.3, 0.2)), chances((0.2, 0.2, 0.6)), "multiclass")
    expected = 0.5 * log(0.5 / 0.2) + 0.3 * log(0.3 / 0.2) + 0.2 * log(0.2 / 0.6)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_consistency_is_the_mean_over_pixels_and_learns_from_both_sides(make_context) -> None:
    clean = pixels((logit(0.8),), (0.0,)).requires_grad_()
    attacked = pixels((logit(0.3),), (0.0,)).requires_grad_()
    context = make_context(torch.tensor([[[1, 0]]]), {"clean": clean, "adversarial": attacked})
    value = Consistency()(context)["consistency"]
    assert value.item() == pytest.approx(bernoulli(0.8, 0.3) / 2, abs=1e-6)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(value, (clean, attacked)))


@pytest.mark.parametrize(
    ("answer", "label", "expected"),
    [
        ((0.6, 0.3, 0.1), 0, -log(0.6) - log(1 - 0.3)),
        ((0.6, 0.3, 0.1), 1, -log(0.3) - log(1 - 0.6)),
        ((0.2, 0.1, 0.7), 1, -log(0.1) - log(1 - 0.7)),
        ((0.7, 0.3), 0, -2 * log(0.7)),
        ((0.7, 0.3), 1, -2 * log(0.3)),
    ],
)
def test_boosted_cross_entropy(answer: tuple[float, ...], label: int, expected: float) -> None:
    target = one_hot(torch.tensor([[[label]]]), "multiclass", len(answer))
    value = boosted_cross_entropy(chances(answer), target, "multiclass")
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_boosted_cross_entropy_of_a_sigmoid_is_that_of_two_answers() -> None:
    for label, chance in ((1, 0.3), (0, 0.7)):
        target = torch.full((1, 1, 1, 1), float(label))
        value = boosted_cross_entropy(pixels((logit(0.3),)), target, "binary")
        assert value.item() == pytest.approx(-2 * log(chance), abs=1e-5)


def test_boosted_cross_entropy_still_pulls_where_the_model_is_wrong_for_sure() -> None:
    logits = pixels((0.0, 60.0, 1.0)).requires_grad_()
    value = boosted_cross_entropy(logits, one_hot(torch.tensor([[[0]]]), "multiclass", 3), "multiclass")
    assert value.item() == pytest.approx(60 + 60 - log(1 + math.e), abs=1e-4)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert slope[0, 1].item() == pytest.approx(2, abs=1e-4)


def test_mart_adds_the_divergence_where_the_clean_answer_is_in_doubt(make_context) -> None:
    clean, attacked = chances((0.6, 0.3, 0.1), (0.1, 0.8, 0.1)), chances((0.3, 0.5, 0.2), (0.2, 0.7, 0.1))
    context = make_context(torch.tensor([[[0, 1]]]), {"clean": clean, "adversarial": attacked})
    boosted = [-log(0.3) - log(1 - 0.5), -log(0.7) - log(1 - 0.2)]
    kl = [
        0.6 * log(0.6 / 0.3) + 0.3 * log(0.3 / 0.5) + 0.1 * log(0.1 / 0.2),
        0.1 * log(0.1 / 0.2) + 0.8 * log(0.8 / 0.7),
    ]
    expected = sum(b + 5 * k * (1 - q) for b, k, q in zip(boosted, kl, (0.6, 0.8), strict=True)) / 2
    assert Mart(5.0)(context)["mart"].item() == pytest.approx(expected, abs=1e-5)


def test_the_spectrum_is_orthonormal() -> None:
    for shape in ((6, 10), (4, 5, 6)):
        logits = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
        assert spectrum(logits).square().sum().item() == pytest.approx(logits.square().sum().item(), rel=1e-5)
    flat = spectrum(torch.full((1, 1, 6, 10), 2.0))
    assert flat[0, 0, 0, 0].item() == pytest.approx(2 * math.sqrt(60), rel=1e-6)
    assert flat.abs().sum().item() == pytest.approx(2 * math.sqrt(60), rel=1e-5)


def test_frequency_compares_spectra_relative_to_the_clean_one(make_context) -> None:
    clean, attacked = torch.full((2, 1, 5, 7), 4.0), torch.full((2, 1, 5, 7), 1.0)
    context = make_context(torch.zeros(2, 5, 7, dtype=torch.long), {"clean": clean, "adversarial": attacked})
    assert Frequency()(context)["frequency"].item() == pytest.approx(3 / 4, abs=1e-5)


def test_divide_sends_each_pixel_to_the_branch_that_the_divider_names(make_context) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 8, 8), generator=generator)
    setting = Setting(2, 1, 2, "multiclass")
    term = Divide((4, 8), setting)
    answers, looks = {}, {}
    for view in ("clean", "adversarial"):
        answers[view] = torch.randn(2, 3, 8, 8, generator=generator)
        features = [torch.randn(2, w, s, s, generator=generator) for w, s in ((4, 8), (8, 4))]
        looks[view] = Look(torch.zeros(2, 1, 8, 8), features, answers[view], None)
    context = make_context(labels, answers, looks=looks)
    target, parts, mixed, kinds = context.target, [], {}, {}
    for view, look in looks.items():
        kinds[view] = term.divider(look.features, (8, 8))
        mixed[view] = torch.where(kinds[view] > 0, term.second(look.features, (8, 8)), look.logits)
        assert 0 < (kinds[view] > 0).float().mean() < 1
        parts.append(dice_ce(mixed[view], target, "multiclass").mean() / 2)
    turned = (mixed["clean"].argmax(1, keepdim=True) != mixed["adversarial"].argmax(1, keepdim=True)).float()
    assert 0 < turned.mean() < 1
    parts.append(F.binary_cross_entropy_with_logits(kinds["clean"], turned) / 2)
    parts.append(F.softplus(kinds["adversarial"]).mean() / 2)  # none of these pixels has the property
    assert term(context)["divide"].item() == pytest.approx(sum(parts).item(), abs=1e-5)


def test_divide_leaves_the_model_all_pixels_that_the_divider_does_not_claim(make_context) -> None:
    labels = torch.ones(1, 8, 8, dtype=torch.long)
    term = Divide((4, 8), Setting(2, 1, 1, "binary"))
    torch.nn.init.constant_(term.divider.leave.bias, -100.0)
    logits = {v: torch.zeros(1, 1, 8, 8, requires_grad=True) for v in ("clean", "adversarial")}
    features = [torch.randn(1, w, s, s) for w, s in ((4, 8), (8, 4))]
    looks = {v: Look(torch.zeros(1, 1, 8, 8), features, x, None) for v, x in logits.items()}
    term(make_context(labels, logits, looks=looks))["divide"].backward()
    assert all((x.grad != 0).all() for x in logits.values())


@pytest.fixture
def teacher(make_model, tmp_path) -> str:
    return str(save_model(make_model(seed=5).eval(), tmp_path / "teacher"))


def test_distillation_is_the_divergence_of_softened_answers(make_model, make_batch, teacher: str) -> None:
    batch, setting = make_batch(), Setting(2, 1, 1, "binary")
    student = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    term = Distillation(DistillationTerm(teacher=teacher, temperature=4.0), setting)
    looks = {"clean": Look(batch.images, [], student, None)}
    context = Context(batch, one_hot(batch.labels, "binary", 1), looks, make_model(), setting, 1.0)
    value = term(context)["distillation"]
    with torch.no_grad():
        p, q = (make_model(seed=5).eval()(batch.images) / 4).sigmoid(), (student / 4).sigmoid()
        expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean() * 16
    assert value.item() == pytest.approx(expected.item(), abs=1e-4)
    value.backward()
    assert student.grad is not None
    assert not list(term.parameters())
    assert not term.state_dict()


@pytest.mark.parametrize(
    "setting", [Setting(3, 1, 1, "binary"), Setting(2, 3, 1, "binary"), Setting(2, 1, 2, "multiclass")]
)
def test_a_teacher_of_something_else_is_refused(teacher: str, setting: Setting) -> None:
    with pytest.raises(CeaseError, match=r"^the teacher .* than the model; choose a teacher of the same scene\.$"):
        Distillation(DistillationTerm(teacher=teacher), setting)


def test_a_teacher_is_needed() -> None:
    with pytest.raises(CeaseError, match=r"^distillation needs a teacher; set distillation\.teacher"):
        Distillation(DistillationTerm(), Setting(2, 1, 1, "binary"))


@pytest.fixture
def two_tasks(make_model, make_batch) -> tuple[Auxiliary, Context]:
    """Two tasks on both views of a batch, the attacked one a shade brighter."""
    torch.manual_seed(0)
    model, batch, setting = make_model().eval(), make_batch(), Setting(2, 1, 1, "binary")
    term = Auxiliary(AuxiliaryTerm(tasks=("reconstruction", "shape")), model.backbone.widths, setting)
    looks = {}
    for view, images in (("clean", batch.images), ("adversarial", batch.images + 0.1)):
        looks[view] = Look(images, [f.detach() for f in model.encode(images)], model(images).detach(), None)
    return term, Context(batch, one_hot(batch.labels, "binary", 1), looks, model, setting, 1.0)


def raw_losses(term: Auxiliary, context: Context, view: str) -> list[float]:
    batch, look = context.batch, context.looks[view]
    none = torch.zeros(len(batch), 0)
    values = []
    for name in term.tasks:
        target = TASKS[name].target(batch.images, batch.labels, none, context.setting)
        prediction = term.heads[name](look.features, (16, 16))
        values.append(TASKS[name].loss(prediction, target).mean().item())
    return values


def test_each_task_weighs_alike_at_first(two_tasks) -> None:
    term, context = two_tasks
    assert {name: v.item() for name, v in term(context).items()} == pytest.approx(
        {"task reconstruction": 1.0, "task shape": 1.0}, abs=1e-6
    )


def test_targets_are_clean_and_the_views_share_evenly(two_tasks) -> None:
    term, context = two_tasks
    term(context)
    clean, attacked = raw_losses(term, context, "clean"), raw_losses(term, context, "adversarial")
    assert term.means.tolist() == pytest.approx([(c + a) / 2 for c, a in zip(clean, attacked, strict=True)], rel=1e-4)


def test_losses_are_divided_by_their_running_mean(two_tasks) -> None:
    term, context = two_tasks
    term(context)
    before = term.means.clone()
    clean_only = Context(context.batch, context.target, {"clean": context.looks["clean"]}, *_rest(context))
    values = term(clean_only)
    raw = torch.tensor(raw_losses(term, context, "clean"))
    torch.testing.assert_close(term.means, 0.95 * before + 0.05 * raw, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(torch.stack(list(values.values())).detach(), raw / term.means, rtol=1e-4, atol=1e-6)


def test_a_look_in_evaluation_mode_leaves_the_means(two_tasks) -> None:
    term, context = two_tasks
    term.eval()
    assert [v.item() for v in term(context).values()] == pytest.approx([1.0, 1.0])  # no mean yet
    assert term.means.tolist() == [0, 0]
    term.train()(context)
    before = term.means.clone()
    term.eval()(context)
    assert torch.equal(term.means, before)


def _rest(context: Context) -> tuple:
    return context.model, context.setting, context.progress, context.gather


def test_images_that_a_task_has_changed_leave_the_running_statistics_alone(make_model, make_batch) -> None:
    batch, statistics = make_batch(size=16), []
    for task in ("sobel", "inpainting"):
        torch.manual_seed(0)
        model = make_model()
        defence = preset("multitask", {"auxiliary.tasks": [task]})
        objective = Objective(defence, model, (16, 16)).train()
        before = {k: v.clone() for k, v in model.named_buffers()}
        objective(batch, None, 1.0).total.backward()
        moved = {k: v for k, v in model.named_buffers() if k.endswith(("running_mean", "running_var"))}
        assert all(not torch.equal(v, before[k]) for k, v in moved.items())
        statistics.append(moved)
    assert statistics[0]
    for name, value in statistics[0].items():
        assert torch.equal(value, statistics[1][name]), name
