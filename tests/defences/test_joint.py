"""What a model was trained with comes back beside it, and an attack may go through all of it at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cease_core.attacks import PGD, MixedAttack, Problem
from cease_core.attacks.build import describe
from cease_core.attacks.features import Glance
from cease_core.data import find_cases
from cease_core.defences import Objective, preset
from cease_core.defences.joint import Heads, ProjectionTerm, joint_terms, load_heads, task_losses, trained_heads
from cease_core.errors import CeaseError
from cease_core.models import SegmentationModel, load_model, prepare, save_model
from cease_core.tasks import TASKS
from cease_core.training import TrainingConfig, train
from cease_core.training.batches import load_samples, stack
from cease_core.training.build import build_model
from cease_core.training.state import STATE

SAMPLES = Path(__file__).parents[2] / "sample_data" / "nuclei_histology"


@dataclass(frozen=True, eq=False)
class Trained:
    """A model of a few short epochs on histology, and two images that it has not seen."""

    config: TrainingConfig
    folder: Path
    images: Tensor
    labels: Tensor

    @property
    def model(self) -> SegmentationModel:
        return load_model(self.folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = TrainingConfig.model_validate(
        {
            "name": "nuclei",
            "title": "Nuclei",
            "data": {"name": "nuclei", "source": "sample", "licence": "CC0"},
            "defence": {
                "preset": "cease",
                "inner.steps": 1,
                "auxiliary.tasks": ["sobel", "rotation"],
                "contrastive.dense": 0,
            },
            "architecture_args": {"channels": [8, 16, 16]},
            "ndim": 2,
            "channels": 3,
            "classes": [{"id": 1, "name": "nucleus", "color": "#E69F00"}],
            "mode": "binary",
            "window": {"kind": "fixed", "low": 0, "high": 255},
            "downsample": 2,
            "patch": (32, 32),
            "epochs": 8,
            "batch_size": 2,
            "validate_every": 8,
            "learning_rate": 1e-2,
            "ema": 0.8,
        }
    )
    cases, folder = find_cases(SAMPLES), tmp_path_factory.mktemp("nuclei")
    list(train(config, cases[:6], cases[6:7], folder, device="cpu"))
    batch = stack(load_samples(cases[7:9], config.model_copy(update={"downsample": 1})), (0, 1))
    return Trained(config, folder, batch.images[..., :64, :64], batch.labels[..., :64, :64])


def heads_of(folder: Path, model: SegmentationModel) -> Heads:
    heads = load_heads(folder, model)
    assert heads is not None
    return heads


@pytest.fixture
def saved(make_model, tmp_path: Path) -> Callable[..., tuple[SegmentationModel, Objective, Heads]]:
    """A model with random weights and heads, after its way over the disk."""

    def save(tasks: tuple[str, ...], ndim: int = 2, shape: int = 16, downsample: int = 1, **changes: Any):
        bare = make_model(ndim=ndim).eval()
        defence = preset("multitask", {"auxiliary.tasks": tasks} | changes)
        training = {"defence": defence.model_dump(mode="json")}
        card = bare.card.model_copy(update={"training": training, "downsample": downsample})
        torch.manual_seed(0)
        objective = Objective(defence, SegmentationModel(card, bare.backbone), (shape,) * ndim).eval()
        kept = trained_heads(objective)
        assert kept is not None
        save_model(objective.model, tmp_path, heads=kept.state_dict())
        model = load_model(tmp_path)
        return model, objective, heads_of(tmp_path, model)

    return save


def glance(model: SegmentationModel, images: Tensor, adversarial: Tensor) -> Glance:
    return Glance(torch.arange(len(images)), adversarial, model.encode(adversarial), model.encode(images))


def test_heads_answer_as_they_did_in_training(trained: Trained) -> None:
    state = torch.load(trained.folder / STATE, weights_only=True)
    objective = Objective(trained.config.defence, build_model(trained.config), trained.config.patch).eval()
    kept = trained_heads(objective)
    assert kept is not None
    # Only the last moment was judged, so the averages at the end are the model's.
    for module, name in ((objective.model, "average"), (kept, "average_heads")):
        module.load_state_dict({k.removeprefix("module."): v for k, v in state[name].items() if k != "n_averaged"})
    heads, halved = heads_of(trained.folder, trained.model), torch.nn.functional.avg_pool2d(trained.images, 2)
    for task in ("sobel", "rotation"):
        there = kept["auxiliary"].heads[task](objective.model.encode(halved), (32, 32))
        here = heads.predict(task, trained.model.encode(trained.images), (32, 32))
        torch.testing.assert_close(here, there)
    assert torch.equal(kept["auxiliary"].means, heads.auxiliary.means)
    assert heads.contrastive is not None
    pooled = kept["projector"](objective.model.encode(halved)[-1].flatten(2).mean(dim=2))
    there = torch.nn.functional.normalize(pooled, dim=1)
    torch.testing.assert_close(heads.contrastive.project(trained.model.encode(trained.images)), there)


def test_the_joint_attack_raises_every_auxiliary_loss_more_than_the_plain_one(trained: Trained) -> None:
    model = prepare(trained.model)
    heads = heads_of(trained.folder, model)
    images, labels = trained.images, trained.labels
    clean = task_losses(heads, images, labels, images)
    plain, joint = (
        task_losses(heads, images, labels, attack(model, images, labels).adversarial)
        for attack in (
            PGD(steps=6, criterion="loss"),
            MixedAttack(steps=6, criterion="loss", terms=joint_terms(heads, images, labels, weight=4)),
        )
    )
    assert list(clean) == ["sobel", "rotation"]
    for task in clean:
        assert (joint[task] > plain[task]).all()
        assert (joint[task] > clean[task]).all()


def test_records_of_an_attack_name_its_terms(trained: Trained) -> None:
    heads = heads_of(trained.folder, trained.model)
    attack = MixedAttack(terms=joint_terms(heads, trained.images, trained.labels))
    assert describe(attack)["terms"] == ["task sobel", "task rotation", "projection"]


def test_terms_weigh_as_in_training(saved, make_batch) -> None:
    tasks = ("reconstruction", "boundary", "shape")
    model, objective, heads = saved(tasks, **{"auxiliary.weight": 0.6})
    batch = make_batch()
    means = torch.tensor([0.5, 2.0, 0.1])
    for auxiliary in (heads.auxiliary, trained_heads(objective)["auxiliary"]):
        auxiliary.means.copy_(means)
    with torch.no_grad():
        cost = objective(batch, None, 1.0)
        values = [t(glance(model, batch.images, batch.images)) for t in joint_terms(heads, batch.images, batch.labels)]
    for name, value in zip(tasks, values, strict=True):
        weight = cost.weights[f"task {name}"]
        assert weight == pytest.approx(0.2)
        torch.testing.assert_close(value.mean(), weight * cost.parts[f"task {name}"])
    doubled = joint_terms(heads, batch.images, batch.labels, weight=2)[0](glance(model, batch.images, batch.images))
    torch.testing.assert_close(doubled, 2 * values[0])


def test_targets_are_of_the_clean_image_whatever_is_attacked(saved, make_batch) -> None:
    model, _, heads = saved(("reconstruction",))
    batch = make_batch()
    attacked = batch.images + 0.1
    found = task_losses(heads, batch.images, batch.labels, attacked)["reconstruction"]
    picture = heads.predict("reconstruction", model.encode(attacked), (16, 16))
    torch.testing.assert_close(found, (picture - batch.images).abs().flatten(1).mean(dim=1))


@pytest.mark.parametrize("task", [n for n in TASKS if TASKS[n].presents])
def test_a_task_that_presents_another_image_is_attacked_through_it(saved, make_batch, task: str) -> None:
    _, _, heads = saved((task,))
    batch = make_batch()
    (term,) = joint_terms(heads, batch.images, batch.labels)
    adversarial = batch.images.clone().requires_grad_()
    silent = Glance(torch.arange(3), adversarial, [], [])  # the features of the image as it is play no part
    (slope,) = torch.autograd.grad(term(silent).sum(), adversarial)
    assert (slope.flatten(1).abs().sum(dim=1) > 0).all()


def test_projections_part_by_one_minus_their_cosine(trained: Trained) -> None:
    model, images = trained.model, trained.images
    term = joint_terms(heads_of(trained.folder, model), images, trained.labels)[-1]
    assert isinstance(term, ProjectionTerm)
    assert term.weight == pytest.approx(0.1 * 0.5)
    assert term(glance(model, images, images)).tolist() == pytest.approx([0, 0], abs=1e-6)
    crossed = glance(model, images, images.flip(0))
    assert term.heads.contrastive is not None
    first, second = term.heads.contrastive.project(model.encode(images))
    assert term(crossed).tolist() == pytest.approx([0.05 * (1 - float(first.detach() @ second.detach()))] * 2, abs=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_each_case_meets_its_own_target_in_whatever_part_of_a_batch_it_comes(saved, make_batch, ndim: int) -> None:
    model, _, heads = saved(tuple(n for n, t in TASKS.items() if ndim in t.dims), ndim)
    batch = make_batch(ndim=ndim)
    delta = 0.05 * torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0))

    def losses(images: Tensor, labels: Tensor, moved: Tensor, order: list[int] | None = None) -> Tensor:
        problem = Problem.pose(model, images, labels, "soft_dice")
        objective = MixedAttack(terms=joint_terms(heads, images, labels)).ascended(problem)
        return (problem if order is None else problem.part(torch.tensor(order))).look(moved, objective).loss

    whole = losses(batch.images, batch.labels, delta)
    order = [2, 0, 2]
    torch.testing.assert_close(losses(batch.images, batch.labels, delta[order], order), whole[order])
    alone = [losses(batch.images[[i]], batch.labels[[i]], delta[[i]]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-4, atol=1e-5)


def test_restarts_of_a_case_share_its_target(saved, make_batch) -> None:
    model, _, heads = saved(("rotation", "sobel"))
    batch = make_batch()
    terms = joint_terms(heads, batch.images, batch.labels)
    found = MixedAttack(steps=2, restarts=2, terms=terms)(model, batch.images, batch.labels)
    assert found.adversarial.shape == batch.images.shape


@pytest.mark.parametrize(("downsample", "size"), [(1, 16), (1, 13), (2, 17), (3, 22)])
def test_heads_see_what_the_network_sees(saved, downsample: int, size: int) -> None:
    model, _, heads = saved(("sobel",), downsample=downsample)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, size, 16, generator=generator)
    shown = heads.seen(images)
    for mine, its in zip(heads.model.encode(shown), model.encode(images), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
    labels = (images[:, 0] > 0.5).long()
    small = heads.seen_labels(labels)
    assert small.shape == (2, *shown.shape[2:])
    assert torch.equal(heads.seen_labels(labels.unsqueeze(1).float())[:, 0].long(), small)
    inside = labels[:, downsample // 2 :: downsample, downsample // 2 :: downsample]
    assert torch.equal(small[:, : inside.shape[1], : inside.shape[2]], inside)


def test_a_model_without_heads_has_none(trained: Trained, make_model, tmp_path: Path) -> None:
    assert trained_heads(Objective(preset("at"), make_model(), (16, 16))) is None
    for name in ("model.safetensors", "card.json"):
        shutil.copy(trained.folder / name, tmp_path)
    assert load_heads(tmp_path, trained.model) is None


def test_terms_of_another_batch_are_refused(saved, make_batch) -> None:
    model, _, heads = saved(("sobel",))
    few, more, larger = make_batch(2), make_batch(3), make_batch(2, size=20)
    attack = MixedAttack(steps=1, terms=joint_terms(heads, few.images, few.labels))
    for other in (more, larger):
        with pytest.raises(CeaseError, match="were made for another batch; make them of the images"):
            attack(model, other.images, other.labels)


def _changed(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Other tensors under the same name, as if they belonged to the model beside them."""
    path = folder / "heads.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


FOREIGN: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a head missing": lambda t: t.pop("auxiliary.heads.sobel.leave.bias"),
    "a head too many": lambda t: t.update({"auxiliary.heads.hog.leave.bias": torch.zeros(1)}),
    "another width": lambda t: t.update({"auxiliary.heads.sobel.leave.bias": torch.zeros(2)}),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_heads_of_something_else_are_one_sentence(trained: Trained, tmp_path: Path, change: Any) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "copy")
    _changed(folder, change)
    with pytest.raises(CeaseError, match=r"does not fit the card's defence \(tensor .*; copy the whole .*\.$"):
        load_heads(folder, trained.model)


def test_heads_of_another_model_are_refused(trained: Trained, make_model) -> None:
    with pytest.raises(CeaseError, match=r"holds another model than Tiny; load the model and its heads from one"):
        load_heads(trained.folder, make_model())


def test_a_card_that_does_not_know_its_defence_is_one_sentence(trained: Trained, tmp_path: Path) -> None:
    model = trained.model
    silent = SegmentationModel(model.card.model_copy(update={"training": {}}), model.backbone)
    save_model(silent, tmp_path, heads=load_file(trained.folder / "heads.safetensors"))
    with pytest.raises(CeaseError, match=r"does not say what the heads were trained for; copy .*\.$"):
        load_heads(tmp_path, load_model(tmp_path))
