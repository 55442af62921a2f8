"""Every preset trains every model, and is changed by dotted names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cease_core.defences import PRESETS, Defence, Objective, SegmentationTerm, preset
from cease_core.defences.config import AuxiliaryTerm, ContrastiveTerm, InnerAttack
from cease_core.defences.presets import NOTES
from cease_core.defences.terms.distillation import Distillation
from cease_core.errors import CeaseError
from cease_core.models import save_model

TASKS = ("sobel", "jigsaw")
SUBJECTS: dict[str, dict[str, Any]] = {
    "binary": {"architecture": "residual_unet", "ndim": 2, "classes": 1, "channels": (4, 8, 16)},
    "multiclass": {"architecture": "dynunet", "ndim": 2, "classes": 2, "channels": (4, 8, 16)},
    "volume": {"architecture": "segresnet", "ndim": 3, "classes": 1, "filters": 8, "levels": 3},
}


def changes_for(name: str, **others: Any) -> dict[str, Any]:
    """Few steps, and tasks where the preset chooses some."""
    tasks = {"auxiliary.tasks": TASKS} if PRESETS[name].auxiliary is not None else {}
    return {"inner.steps": min(2, PRESETS[name].inner.steps)} | tasks | others


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("name", PRESETS)
def test_it_trains_one_step(name: str, subject: str, make_model, make_batch, tmp_path) -> None:
    fields = SUBJECTS[subject]
    model = make_model(**fields)
    batch = make_batch(2, fields["ndim"], fields["classes"], 16)
    others = {}
    if name == "distillation":
        others = {"distillation.teacher": str(save_model(make_model(**fields, seed=1).eval(), tmp_path / "teacher"))}
    defence = preset(name, changes_for(name, **others))
    objective = Objective(defence, model, tuple(batch.images.shape[2:])).train()
    teachers = [t for m in objective.terms if isinstance(m, Distillation) for t in m._teacher]
    before = [{k: v.clone() for k, v in t.state_dict().items()} for t in teachers]
    opening = objective.opening(batch)
    adversarial = objective.attacked(batch, 1.0, opening) if defence.attacks else None
    cost = objective(batch, adversarial, 1.0, opening)
    assert torch.isfinite(cost.total)
    cost.total.backward()
    for parameter_name, parameter in objective.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} learns nothing"
        assert torch.isfinite(parameter.grad).all()
    for teacher, weights in zip(teachers, before, strict=True):
        assert all(torch.equal(value, weights[k]) for k, value in teacher.state_dict().items())
        assert all(p.grad is None for p in teacher.parameters())


def test_presets_are_those_of_the_method() -> None:
    ablations = {"none", "augment", "at", "contrastive", "multitask", "contrastive_at", "multitask_at", "cease"}
    ours = {"reuse_at", "cease_reuse"}
    rivals = {"trades", "mart", "fast_at", "free_at", "segpgd_at", "ddc_at", "vaft", "distillation"}
    assert set(PRESETS) == ablations | rivals | ours
    assert all(d.name == name for name, d in PRESETS.items())


def test_cease_has_the_weights_of_the_method() -> None:
    cease = PRESETS["cease"]
    weights = {(t.kind, getattr(t, "view", None)): t.weight for t in cease.terms}
    assert weights == {
        ("segmentation", "clean"): 0.5,
        ("segmentation", "adversarial"): 0.5,
        ("segmentation", "augmented"): 0.25,
        ("contrastive", None): 0.1,
        ("auxiliary", None): 0.3,
        ("consistency", None): 0,
    }
    assert cease.inner == InnerAttack(epsilon=8 / 255, steps=7, ascent="seg", ramp=0.2)
    assert not any(d.inner.reuse for name, d in PRESETS.items() if name not in ("reuse_at", "cease_reuse"))
    assert cease.inner.size(8 / 255) == pytest.approx(2.5 * 8 / 255 / 7)
    assert cease.inner.size(1 / 255) == pytest.approx(1 / 255)


def test_changes_by_dotted_name() -> None:
    changed = preset(
        "cease",
        {
            "inner.steps": 3,
            "balance": "pcgrad",
            "contrastive.weight": 0.2,
            "auxiliary.tasks": ["sobel"],
            "segmentation.augmented.weight": 0,
        },
    )
    assert (changed.inner.steps, changed.balance) == (3, "pcgrad")
    assert [t.weight for t in changed.terms] == [0.5, 0.5, 0, 0.2, 0.3, 0]
    assert changed.auxiliary is not None
    assert changed.auxiliary.tasks == ("sobel",)
    assert preset("none", {"segmentation.loss": "bce"}).terms[0] == SegmentationTerm(loss="bce")
    assert preset("cease") == PRESETS["cease"]


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("pgd", {}, r"^unknown preset 'pgd'; choose one of none, augment, .*\.$"),
        ("at", {"inner.radius": 1}, r"^at has no 'inner\.radius'; choose from epsilon, steps, .*\.$"),
        (
            "at",
            {"contrastive.weight": 1},
            r"^the preset at has no term 'contrastive'; it has inner, segmentation\.clean",
        ),
        ("at", {"segmentation.weight": 1}, r"more than one term 'segmentation'; say segmentation\.clean or "),
        ("at", {"segmentation.augmented.weight": 1}, r"has no term 'segmentation\.augmented'"),
        ("at", {"inner.steps": 0}, r"^the preset at cannot be changed so: inner\.steps: .*\.$"),
        (["at"], {}, r"^unknown preset \['at'\]; choose one of none, "),
        (
            "trades",
            {"inner": {"steps": 3}},
            r"^trades does not take inner as a whole; change its entries",
        ),
        ("at", {"inner.loss": "hinge"}, r"changed so: inner\.loss: unknown loss 'hinge'; choose one of "),
        ("at", {"inner.ascent": "joint"}, r"ascends 'joint', but there is no contrastive term"),
        ("at", {"replays": 2}, r"inner\.ascent 'free' together with replays"),
        ("free_at", {"balance": "pcgrad"}, r"no gradient to reuse under pcgrad"),
        ("at", {"inner.reuse": True, "segmentation.clean.weight": 0}, r"inner\.reuse needs a segmentation term"),
        ("trades", {"inner.reuse": True}, r"inner\.reuse needs .* inner\.ascent 'seg'"),
        ("at", {"inner.reuse": True, "balance": "uncertainty"}, r"inner\.reuse needs .* fixed balance"),
        ("contrastive", {"contrastive.still": ["clean", "augmented"]}, r"still names views of over, and not all"),
        ("reuse_at", {"inner.loss": "bce"}, r"clean view's segmentation loss and inner\.loss must be the same"),
        ("cease_reuse", {"auxiliary.clean": 1, "auxiliary.adversarial": 0}, r"need a share of the adversarial view"),
        ("none", {"segmentation.weight": 0}, r"every term has weight 0"),
        ("cease", {"auxiliary.tasks": ["sobel", "sobel"]}, r"unknown or repeated task"),
        ("cease", {"auxiliary.rule": "manual"}, r"the rule 'manual' needs tasks"),
        ("cease", {"auxiliary.clean": 0, "auxiliary.adversarial": 0}, r"clean and adversarial are both 0"),
        ("cease", {"contrastive.over": ["clean"]}, r"at least two different views"),
        ("multitask", {"segmentation.weight": 0}, r"auxiliary tasks alone teach no segmentation"),
    ],
)
def test_wrong_changes(name: Any, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence) as caught:
        preset(name, changes)
    assert "\n" not in str(caught.value)


def test_tasks_that_show_another_image_can_be_left_to_the_costly_ones() -> None:
    assert PRESETS["cease"].auxiliary.costly == frozenset()
    assert PRESETS["cease_reuse"].auxiliary.costly == {"inpainting", "rotation", "jigsaw"}


def test_a_term_may_not_stand_twice() -> None:
    with pytest.raises(ValidationError, match="stands twice"):
        Defence(name="twice", terms=(SegmentationTerm(), SegmentationTerm(weight=2)))


def test_views_are_those_that_terms_with_weight_read() -> None:
    views = {name: d.views for name, d in PRESETS.items()}
    assert views["none"] == views["multitask"] == views["distillation"] == ("clean",)
    assert views["augment"] == views["contrastive"] == ("clean", "augmented")
    assert views["fast_at"] == views["free_at"] == ("adversarial",)
    assert views["contrastive_at"] == views["cease"] == views["cease_reuse"] == ("clean", "adversarial", "augmented")
    two = ("clean", "adversarial")
    assert all(
        views[n] == two for n in ("at", "reuse_at", "trades", "mart", "segpgd_at", "ddc_at", "vaft", "multitask_at")
    )
    assert {n for n, d in PRESETS.items() if not d.attacks} == {
        "none", "augment", "contrastive", "multitask", "distillation",
    }  # fmt: skip


def test_auxiliary_tasks_alone_need_no_attack() -> None:
    defence = preset("multitask_at", {"segmentation.adversarial.weight": 0, "auxiliary.tasks": TASKS})
    assert not defence.attacks
    assert defence.views == ("clean",)


def test_tasks_are_filled_in_later() -> None:
    assert PRESETS["cease"].with_tasks(TASKS).auxiliary == AuxiliaryTerm(tasks=TASKS)
    none = PRESETS["cease"].with_tasks(())
    assert none.auxiliary is None
    assert [t.kind for t in none.active] == ["segmentation"] * 3 + ["contrastive"]


def test_tasks_must_be_chosen_and_fit(make_model) -> None:
    with pytest.raises(CeaseError, match=r"^the auxiliary tasks are not chosen yet; run the selection first"):
        Objective(PRESETS["cease"], make_model(), (16, 16))


def test_a_defence_comes_back_from_json() -> None:
    for defence in PRESETS.values():
        assert Defence.model_validate_json(defence.model_dump_json()) == defence


def test_steps_are_never_negative_numbers() -> None:
    for change in ({"epsilon": 0}, {"steps": 0}, {"step_size": 0}, {"ramp": 1.5}, {"ascent": "up"}):
        with pytest.raises(ValidationError):
            InnerAttack.model_validate(change)
    for temperature in (0, -1, math.nan):
        with pytest.raises(ValidationError):
            ContrastiveTerm(temperature=temperature)


def test_each_preset_has_a_note() -> None:
    assert [*NOTES] == [*PRESETS]
    assert all(note.does.endswith(".") for note in NOTES.values())
    assert [name for name, note in NOTES.items() if not note.source] == ["none", "augment"]
