"""Ablations reduce to one another, what is counted is what is computed, and the model stays clean of it all."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from cease_core.defences import PRESETS, Batch, Cost, Objective, preset
from cease_core.defences.tap import Tap
from cease_core.defences.views import augmented
from cease_core.errors import CeaseError
from cease_core.models import SegmentationModel, save_model

STEPS = {"inner.steps": 2}


def build(name: str, changes: dict[str, Any], model: SegmentationModel, batch: Batch) -> Objective:
    return Objective(preset(name, changes), model, tuple(batch.images.shape[2:])).train()


def step(objective: Objective, batch: Batch, progress: float = 1.0) -> tuple[Tensor | None, Cost, list[Tensor]]:
    """Adversarial view, cost and the model's gradients of one training step."""
    opening = objective.opening(batch)
    adversarial = objective.attacked(batch, progress, opening) if objective.defence.attacks else None
    cost = objective(batch, adversarial, progress, opening)
    cost.total.backward()
    return adversarial, cost, [p.grad for p in objective.model.parameters()]


NO_CONTRAST = {"contrastive.weight": 0}
NO_TASKS = {"auxiliary.weight": 0}
NO_LIGHT = {"segmentation.augmented.weight": 0}
NO_ATTACK = {"segmentation.adversarial.weight": 0}


@pytest.mark.parametrize(
    ("name", "changes", "simpler", "share"),
    [
        ("cease", NO_CONTRAST | NO_TASKS | NO_LIGHT, "at", 1),
        ("contrastive_at", NO_CONTRAST | NO_LIGHT, "at", 1),
        ("multitask_at", NO_TASKS, "at", 1),
        ("cease", NO_TASKS, "contrastive_at", 1),
        ("contrastive", NO_CONTRAST, "augment", 1),
        ("augment", NO_LIGHT, "none", 1),
        ("multitask", NO_TASKS, "none", 1),
        ("at", NO_ATTACK, "none", 0.5),
        ("cease", NO_CONTRAST | NO_TASKS | NO_LIGHT | NO_ATTACK, "none", 0.5),
        ("trades", {"consistency.weight": 0}, "none", 1),
        ("vaft", {"frequency.weight": 0, "segmentation.adversarial.weight": 0}, "none", 1),
    ],
)
def test_without_its_parts_it_is_the_simpler_one(
    name: str, changes: dict[str, Any], simpler: str, share: float, make_model, make_batch
) -> None:
    batch, results = make_batch(), []
    steps = {k: v for k, v in STEPS.items() if name != "none"}
    for preset_name, preset_changes in ((name, steps | changes), (simpler, STEPS)):
        torch.manual_seed(0)  # of the projectors
        results.append(step(build(preset_name, preset_changes, make_model(), batch), batch))
    (adversarial, cost, gradients), (expected_adversarial, expected_cost, expected) = results
    assert (adversarial is None) == (expected_adversarial is None)
    assert adversarial is None or torch.equal(adversarial, expected_adversarial)
    assert torch.equal(cost.total, share * expected_cost.total)
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, share * other, atol=1e-7, rtol=0)


def test_a_term_without_weight_is_not_even_built(make_model, make_batch) -> None:
    objective = build("cease", STEPS | NO_CONTRAST | NO_TASKS, make_model(), make_batch())
    assert [type(t).__name__ for t in objective.terms] == ["Segmentation"] * 3
    assert not list(objective.terms.parameters())


@pytest.mark.parametrize("tasks", [("sobel", "edges"), ("rotation", "inpainting")])
@pytest.mark.parametrize("name", PRESETS)
def test_gradients_are_as_many_as_counted(
    name: str, tasks: tuple[str, ...], make_model, make_batch, tmp_path, monkeypatch
) -> None:
    changes: dict[str, Any] = {} if PRESETS[name].auxiliary is None else {"auxiliary.tasks": tasks}
    if name == "distillation":
        changes["distillation.teacher"] = str(save_model(make_model().eval(), tmp_path / "teacher"))
    model, batch = make_model(), make_batch(2)
    objective = build(name, changes, model, batch)
    seen, encode = [], model.backbone.encode

    def counted(images: Tensor) -> list[Tensor]:
        seen.extend(images if torch.is_grad_enabled() else [])
        return encode(images)

    monkeypatch.setattr(model.backbone, "encode", counted)
    step(objective, batch)
    assert objective.gradients == len(seen) / len(batch)


def test_gradients_of_some_presets(make_model, make_batch) -> None:
    batch = make_batch(1)
    counts = {n: build(n, {}, make_model(), batch).gradients for n in ("none", "at", "free_at", "fast_at", "trades")}
    assert counts == {"none": 1, "at": 9, "free_at": 1, "fast_at": 2, "trades": 9}
    tasks = {"auxiliary.tasks": ("rotation", "sobel")}
    assert build("cease", tasks, make_model(), batch).gradients == 7 + 3 + 2


REUSE = {"inner.reuse": True}


@pytest.mark.parametrize(("name", "changes"), [("at", {}), ("contrastive_at", NO_CONTRAST), ("multitask_at", NO_TASKS)])
def test_a_reused_pass_trains_as_one_of_its_own_would(
    name: str, changes: dict[str, Any], make_model, make_batch
) -> None:
    # Batch norms would see other batches: the clean view is then looked at alone.
    args = {"channels": (4, 8), "norm": "instance"}
    batch, reusing = make_batch(), build(name, STEPS | REUSE | changes, make_model(**args), make_batch())
    adversarial, cost, gradients = step(reusing, batch)
    usual = build(name, STEPS | changes, make_model(**args), batch)
    expected = usual(batch, adversarial, 1.0)
    expected.total.backward()
    assert cost.parts.keys() == expected.parts.keys()
    torch.testing.assert_close(cost.total, expected.total)
    for mine, other in zip(gradients, usual.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other.grad, atol=1e-6, rtol=1e-4)


def test_a_reused_pass_saves_one(make_model, make_batch) -> None:
    batch = make_batch(1)
    tasks = {"auxiliary.tasks": ("sobel",)}
    for name, changes in (("at", {}), ("cease", tasks)):
        usual, reusing = (build(name, changes | more, make_model(), batch).gradients for more in ({}, REUSE))
        assert reusing == usual - 1


def test_other_terms_see_the_values_of_a_reused_pass_alone(make_model, make_batch) -> None:
    batch = make_batch()
    objective = build("cease", STEPS | REUSE | {"auxiliary.tasks": ("sobel",)}, make_model(), batch)
    opening = objective.opening(batch)
    assert opening is not None
    look = opening.look
    assert not any(t.requires_grad for t in (*look.features, look.logits, look.dense))
    cost = objective(batch, objective.attacked(batch, 1.0, opening), 1.0, opening)
    assert not cost.parts["segmentation clean"].requires_grad
    assert cost.parts["contrastive"].requires_grad


def test_a_reused_pass_is_scaled_like_the_rest(make_model, make_batch) -> None:
    gradients = []
    for factor in (1.0, 64.0):
        objective = build("at", STEPS | REUSE, make_model(), make_batch())
        objective.opening(make_batch(), lambda loss, factor=factor: factor * loss)
        gradients.append([p.grad / factor for p in objective.model.parameters()])
    for once, scaled in zip(*gradients, strict=True):
        torch.testing.assert_close(once, scaled)


def test_a_still_view_is_drawn_to_and_costs_no_gradient(make_model, make_batch) -> None:
    batch, tasks = make_batch(2), {"auxiliary.tasks": ("sobel",)}
    still = {"contrastive.still": ("augmented",), "segmentation.augmented.weight": 0}
    moving, held = (build("cease", STEPS | tasks | c, make_model(), batch) for c in ({}, still))
    assert held.gradients == moving.gradients - 1
    before = {k: v.clone() for k, v in held.model.state_dict().items() if "running" in k}
    assert before
    context: list[Any] = []
    held.terms[-2].register_forward_hook(lambda module, args, out: context.extend(args))
    adversarial, cost, _ = step(held, batch)
    assert cost.parts["contrastive"].requires_grad
    assert not context[0].looks["augmented"].features[-1].requires_grad
    assert torch.equal(context[0].looks["augmented"].images, augmented(batch.images, batch.seeds))
    # Its statistics are none of the model's: as without the view.
    without = build("at", STEPS, make_model(), batch)
    without(batch, adversarial, 1.0)
    for key, value in without.model.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(held.model.state_dict()[key], value)


def test_a_still_view_that_another_term_reads_is_not_drawn_all_the_same(make_model, make_batch) -> None:
    changes = STEPS | {"auxiliary.tasks": ("sobel",), "contrastive.still": ("augmented",)}
    objective = build("cease", changes, make_model(), make_batch())
    assert objective.defence.still == frozenset()
    context: list[Any] = []
    objective.terms[-2].register_forward_hook(lambda module, args, out: context.extend(args))
    step(objective, make_batch())
    # Anew, since the step has used up its own graph.
    leaves = {view: look.features[-1].detach().requires_grad_() for view, look in context[0].looks.items()}
    for view, leaf in leaves.items():
        context[0].looks[view].features[-1] = leaf
    objective.terms[-2]._instance(context[0]).backward()
    assert {view for view, leaf in leaves.items() if leaf.grad is not None} == {"clean", "adversarial"}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_all_weights_learn_from_the_attacked_view(precision: torch.dtype, make_model, make_batch) -> None:
    batch = make_batch()
    objective = build("cease_reuse", {"auxiliary.tasks": ("sobel",)}, make_model(), batch)
    opening = objective.opening(batch)
    adversarial = objective.attacked(batch, 1.0, opening)
    objective.zero_grad()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        total = objective(batch, adversarial, 1.0, opening).total
    total.backward()
    for name, parameter in objective.model.named_parameters():
        assert parameter.grad is not None, name


def test_without_reuse_there_is_no_opening(make_model, make_batch) -> None:
    assert build("at", STEPS, make_model(), make_batch()).opening(make_batch()) is None


def test_the_total_is_the_weighted_sum_of_the_parts(make_model, make_batch) -> None:
    batch = make_batch()
    cost = step(build("cease", STEPS | {"auxiliary.tasks": ("sobel", "shape")}, make_model(), batch), batch)[1]
    weights = {
        "segmentation clean": 0.5,
        "segmentation adversarial": 0.5,
        "segmentation augmented": 0.25,
        "contrastive": 0.1,
        "task sobel": 0.15,
        "task shape": 0.15,
    }
    assert cost.weights == pytest.approx(weights)
    expected = sum(weights[name] * value.item() for name, value in cost.parts.items())
    assert cost.total.item() == pytest.approx(expected, rel=1e-6)
    main, sobel, shape = (g.item() for g in cost.groups)
    assert (sobel, shape) == pytest.approx((0.15, 0.15))
    assert main == pytest.approx(expected - 0.3, rel=1e-5)


def test_uncertainty_weighs_by_learnt_variances() -> None:
    parts = {"segmentation clean": torch.tensor(2.0), "task sobel": torch.tensor(3.0)}
    doubts = torch.tensor([0.0, 1.0], requires_grad=True)
    total = Cost(parts, {"segmentation clean": 1.0, "task sobel": 0.5}, doubts).total
    assert total.item() == pytest.approx(2 + 1.5 / torch.e + 0.5)
    total.backward()
    assert doubts.grad.tolist() == pytest.approx([-2 + 0.5, -1.5 / torch.e + 0.5])


def test_uncertainty_starts_from_the_fixed_weights(make_model, make_batch) -> None:
    batch, costs = make_batch(), []
    for balance in ("fixed", "uncertainty"):
        torch.manual_seed(0)
        objective = build("multitask", {"auxiliary.tasks": ("sobel",), "balance": balance}, make_model(), batch)
        costs.append(step(objective, batch)[1].total.item())
    assert costs[1] == pytest.approx(costs[0], rel=1e-6)
    assert objective.doubts.grad.abs().sum() > 0


def test_the_model_can_be_copied_and_saved_at_any_time(make_model, make_batch) -> None:
    model, batch = make_model(), make_batch()
    objective = build("contrastive_at", STEPS, model, batch)
    for _ in range(2):
        adversarial = objective.attacked(batch, 1.0)
        cost = objective(batch, adversarial, 1.0)
        for duplicate in (copy.deepcopy(model), pickled(model)):
            assert all(torch.equal(a, b) for a, b in zip(duplicate.parameters(), model.parameters(), strict=True))
            assert not any(m._forward_hooks for m in duplicate.modules())
            assert duplicate(batch.images).shape == (3, 1, 16, 16)
        cost.total.backward()


def pickled(model: SegmentationModel) -> SegmentationModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        ("unet", {"channels": (4, 8, 16, 16)}),
        ("attention_unet", {"channels": (4, 8, 16, 16)}),
        ("segresnet", {"filters": 8, "levels": 4}),
        ("dynunet", {"channels": (4, 8, 16, 16)}),
        ("unet_plus_plus", {"channels": (4, 4, 8, 8, 16)}),
    ],
)
def test_the_tap_finds_a_quarter_of_the_grid_in_the_decoder(architecture: str, args: dict, make_model) -> None:
    model = make_model(architecture, **args)
    tap = Tap(model, (32, 32))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    images = torch.rand(2, 1, 32, 32)
    features = model.encode(images)
    with tap.open(model) as caught:
        model.decode(features, (32, 32))
    assert caught[-1].shape == (2, tap.width, 8, 8)
    assert caught[-1].requires_grad


def test_the_tap_takes_the_nearest_grid_where_there_is_no_quarter(make_model) -> None:
    model = make_model("segresnet", filters=8, levels=2)
    tap = Tap(model, (16, 16))
    with tap.open(model) as caught:
        model(torch.rand(1, 1, 16, 16))
    assert caught[-1].shape == (1, tap.width, 8, 8)


def test_a_decoder_without_features_has_no_dense_part(make_model, make_batch) -> None:
    model, batch = make_model(channels=(4, 8)), make_batch()
    with pytest.raises(CeaseError, match=r"^unet has no decoder feature .*; set contrastive\.dense to 0, or give"):
        build("contrastive_at", {}, model, batch)
    assert torch.isfinite(step(build("contrastive_at", STEPS | {"contrastive.dense": 0}, model, batch), batch)[1].total)


def test_the_tap_knows_its_layer_by_name(make_model) -> None:
    """So it follows where layers are exchanged, as for batch norms over several processes."""
    model = make_model()
    tap, other = Tap(model, (16, 16)), copy.deepcopy(model)
    with tap.open(other) as caught:
        model(torch.rand(1, 1, 16, 16))
        assert not caught
        other(torch.rand(1, 1, 16, 16))
        assert len(caught) == 1


def test_images_that_the_model_pads(make_model, make_batch) -> None:
    batch = make_batch(2, size=14)
    cost = step(build("contrastive_at", STEPS, make_model(), batch), batch)[1]
    assert torch.isfinite(cost.total)


@pytest.mark.parametrize("name", ["cease", "mart", "ddc_at", "vaft", "contrastive"])
@pytest.mark.parametrize("fill", [0, 1])
def test_one_case_without_an_edge_in_its_mask(name: str, fill: int, make_model, make_batch) -> None:
    batch = make_batch(1)
    batch = Batch(batch.images, torch.full_like(batch.labels, fill), batch.seeds)
    changes = {"auxiliary.tasks": ("boundary", "jigsaw")} if name == "cease" else {}
    cost, gradients = step(build(name, STEPS | changes, make_model(), batch), batch)[1:]
    assert torch.isfinite(cost.total)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_a_look_in_evaluation_mode_changes_nothing(make_model, make_batch) -> None:
    batch = make_batch()
    objective = build("cease", STEPS | {"auxiliary.tasks": ("sobel",)}, make_model(), batch).eval()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    for _ in range(2):
        with torch.no_grad():
            cost = objective(batch, objective.attacked(batch, 1.0), 1.0)
    assert torch.isfinite(cost.total)
    assert not objective.model.training
    assert all(torch.equal(value, before[k]) for k, value in objective.state_dict().items())


def test_the_augmented_view_keeps_the_geometry_and_follows_from_the_seed(make_batch) -> None:
    for ndim in (2, 3):
        images = make_batch(2, ndim).images
        changed = augmented(images, (1, 2))
        assert type(changed) is Tensor
        assert changed.shape == images.shape
        assert torch.equal(augmented(images[[1, 0]], (2, 1)), changed[[1, 0]])
        assert not torch.equal(augmented(images, (3, 4)), changed)
    square = torch.zeros(1, 1, 16, 16)
    square[..., 4:12, 4:12] = 1
    for seed in range(8):
        light = augmented(square, (seed,))[0, 0]
        assert light[5:11, 5:11].mean() > light[:3].mean() + 0.1
