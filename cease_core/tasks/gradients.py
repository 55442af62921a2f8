"""How auxiliary tasks pull on a model: their gradients beside segmentation's, on clean and attacked images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cease_core.attacks.gradient import PGD
from cease_core.attacks.losses import dice_ce, one_hot
from cease_core.errors import CeaseError
from cease_core.models.segmenter import SegmentationModel
from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.heads import DenseHead
from cease_core.tasks.relevance import Relevance, Score

NOISES = 4
"""Noise targets, each with a head of its own: one random head alone may by chance look where the decoder looks."""


@dataclass(frozen=True, kw_only=True)
class PureNoise(Task):
    """A target that nothing in the image tells about: white Gaussian noise, told apart by ``stream``.

    All that training can teach a head about it is to answer its median everywhere. The loss takes that as learnt: it
    subtracts from a head's answer the answer itself, but not its gradient, so that a head with random weights serves
    and the residual has a random sign at every pixel. (Where the head's own answer stays in, the residual leans to
    one side, and an even pull on the whole picture is no noise: it scores higher than a trained head.) What the input
    gradient still shares with segmentation's comes from the encoder, through which both pass.
    """

    title: ClassVar[str] = "Pure noise"

    stream: int = 0

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise (1, *spatial)."""
        return torch.randn((self.stream + 1, *shape[1:]), generator=generator)[-1:]

    def target(self, images: Tensor, labels: Tensor, draws: Tensor, setting: Setting) -> Tensor:
        """The noise (N, 1, *spatial)."""
        return draws

    def head(self, widths: tuple[int, ...], setting: Setting) -> Head:
        """From the coarsest features, as for a reconstruction."""
        return DenseHead(widths, setting.ndim, 1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """L1 (N,), with the gradient in ``prediction`` of a head that answers 0."""
        return (prediction - prediction.detach() - target).abs().flatten(1).mean(dim=1)

    def constant(self, targets: Tensor) -> Tensor:
        """Zero, the noise's median (1, 1, *spatial)."""
        return torch.zeros_like(targets[:1])


def measure(
    model: SegmentationModel,
    heads: Mapping[str, Head],
    tasks: Mapping[str, Task],
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    epsilon: float = 8 / 255,
    steps: int = 3,
    batch: int = 8,
) -> Relevance:
    """Measure how candidate tasks relate to segmentation, on clean images and under PGD on the segmentation loss.

    Give it held-out **training** cases, never test cases: what is chosen by them is part of the training. Model and
    heads are best warmed up together before; a head with random weights says nothing about its task.

    Every gradient is in the original image: for a task that presents a changed one, through that change. A gradient
    that vanishes has cosine 0 with all others. c_θ compares the gradients of a whole batch, so it depends a little on
    ``batch``, and so does which case is compared with which other for the chance level; nothing else does. The
    noise floor is the mean over `NOISES` random heads with `PureNoise` targets.

    Parameters
    ----------
    model
        Measured in evaluation mode; its mode, weights and gradients are as before afterwards.
    heads, tasks
        By the same names; the model's encoder serves them all.
    images
        Clean, window fractions, shape (N, C, *spatial).
    labels
        Class ids (N, *spatial).
    seeds
        One a case, for `Task.draw`.
    epsilon, steps
        Of the attack, ℓ∞, in window fractions.
    batch
        Cases at once.

    Raises
    ------
    CeaseError
        If heads, seeds or labels do not fit, a task is not made for the model's dimensions, or a loss is not finite.
    """
    _check(model, heads, tasks, images, seeds, batch)
    card, labels = model.card, labels.to(images.device)
    setting = Setting.of(card)
    noises: dict[str, Task] = {f"{PureNoise.title} {i}": PureNoise(stream=i) for i in range(NOISES)}
    pool = {**tasks, **noises}
    with _as_deployed(model, heads), torch.enable_grad():
        everyone = {**heads, **_noise_heads(model, images[:1], noises, setting)}
        shared = _shared(model, images[:1])
        attack = PGD(epsilon=epsilon, steps=steps, loss="dice_ce", criterion="loss")
        draws = {name: _draws(task, images, seeds) for name, task in pool.items()}
        targets = {name: task.target(images, labels, draws[name], setting).detach() for name, task in pool.items()}
        inputs: list[list[Tensor]] = [[], []]
        strangers: list[Tensor] = []
        weights: list[list[Tensor]] = [[], []]
        losses: list[Tensor] = []
        for part in (slice(i, i + batch) for i in range(0, len(images), batch)):
            truth = one_hot(labels[part], model.mode, card.outputs)
            attacked = attack(model, images[part], labels[part]).adversarial
            for view, seen in enumerate((images[part], attacked)):
                pulls = _Pulls(model, shared, seen)
                pulls.segmentation(truth)
                for name, task in pool.items():
                    pulls.task(name, task, everyone[name], draws[name][part], targets[name][part])
                units = torch.stack(pulls.inputs, dim=1)
                inputs[view].append(_cosines(units))
                if len(units) > 1:
                    # Segmentation's gradient of the next case: whatever is alike then is no relation.
                    strangers.append((units * units[:, :1].roll(1, dims=0)).sum(dim=-1))
                # Once a case, so that a smaller last batch counts for less.
                weights[view].append(_cosines(torch.stack(pulls.weights)).expand(len(seen), -1, -1))
                if view == 0:
                    losses.append(torch.stack(pulls.losses[1:]))
    unlearnt = {name: _of_constant(task, targets[name]) for name, task in tasks.items()}
    clean, under = (torch.cat(c).abs().mean(dim=0).cpu() for c in inputs)
    both = (clean + under) / 2
    chance = torch.cat(strangers).abs().mean(dim=0).cpu() if strangers else torch.zeros(1 + len(pool))
    c_theta = torch.cat([torch.cat(c) for c in weights]).mean(dim=0)[0].cpu()
    loss = torch.cat(losses, dim=1).mean(dim=1).cpu()
    scores = {
        name: Score(
            title=task.title,
            derived_from=task.derived_from,
            c_in=both[0, i].item(),
            c_in_clean=clean[0, i].item(),
            c_in_attacked=under[0, i].item(),
            chance=chance[i].item(),
            c_theta=c_theta[i].item(),
            learnable=_gain(loss[i - 1].item(), unlearnt[name]),
        )
        for i, (name, task) in enumerate(tasks.items(), start=1)
    }
    return Relevance(
        scores=scores,
        pairwise={
            a: {b: 1.0 if a == b else both[i, j].item() for j, b in enumerate(tasks, start=1)}
            for i, a in enumerate(tasks, start=1)
        },
        noise_floor=both[0, 1 + len(tasks) :].mean().item(),
        cases=len(images),
        epsilon=epsilon,
        steps=steps,
    )


class _Pulls:
    """Losses and gradients of segmentation and tasks on one view of a batch, in the order they are asked for."""

    def __init__(self, model: SegmentationModel, shared: list[nn.Parameter], images: Tensor) -> None:
        self.model, self.shared = model, shared
        self.images = images.detach().requires_grad_()
        self.shape = tuple(images.shape[2:])
        self.features = model.encode(self.images)
        self.losses: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.weights: list[Tensor] = []

    def segmentation(self, truth: Tensor) -> None:
        logits = self.model.decode(self.features, self.shape)
        self._add("segmentation", dice_ce(logits, truth, self.model.mode))

    def task(self, name: str, task: Task, head: Head, draws: Tensor, target: Tensor) -> None:
        features = self.model.encode(task.present(self.images, draws)) if task.presents else self.features
        self._add(name, task.loss(head(features, self.shape), target))

    def _add(self, name: str, loss: Tensor) -> None:
        if not torch.isfinite(loss).all():
            raise CeaseError(f"the loss of {name} is not finite on a held-out case; lower the learning rate.")
        # Cases do not see each other in evaluation mode, so the sum's input gradient is each case's own.
        image, *rest = torch.autograd.grad(
            loss.sum(), [self.images, *self.shared], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        self.losses.append(loss.detach())
        self.inputs.append(_unit(image.flatten(1)))
        self.weights.append(_unit(torch.cat([w.flatten() for w in rest])))


def _unit(vectors: Tensor) -> Tensor:
    """Vectors (…, D) at length 1; zero stays zero."""
    tiny = torch.finfo(vectors.dtype).tiny
    # By the largest entry first: squares of a confident model's gradients would underflow.
    scaled = vectors / vectors.abs().amax(dim=-1, keepdim=True).clamp_min(tiny)
    return scaled / scaled.norm(dim=-1, keepdim=True).clamp_min(tiny)


def _cosines(units: Tensor) -> Tensor:
    """Cosines (…, T, T) of unit vectors (…, T, D)."""
    return units @ units.mT


@contextmanager
def _as_deployed(model: SegmentationModel, heads: Mapping[str, Head]) -> Iterator[None]:
    """Evaluation mode, weights with gradients; afterwards everything as before."""
    modules = [m for top in (model, *heads.values()) for m in top.modules()]
    training = [m.training for m in modules]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for module in modules:
            module.training = False
        model.requires_grad_(True)
        yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was
        for parameter, was in wanted:
            parameter.requires_grad_(was)


def _shared(model: SegmentationModel, image: Tensor) -> list[nn.Parameter]:
    """The encoder's weights: those that its features depend on."""
    parameters = list(model.parameters())
    reached = torch.stack([f.sum() for f in model.encode(image)]).sum()
    gradients = torch.autograd.grad(reached, parameters, allow_unused=True)
    return [p for p, g in zip(parameters, gradients, strict=True) if g is not None]


def _noise_heads(
    model: SegmentationModel, image: Tensor, noises: Mapping[str, Task], setting: Setting
) -> dict[str, Head]:
    with torch.no_grad():
        widths = tuple(f.shape[1] for f in model.encode(image))
    heads = {}
    for seed, (name, noise) in enumerate(noises.items()):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            heads[name] = noise.head(widths, setting).to(image.device).eval()
    return heads


def _draws(task: Task, images: Tensor, seeds: Sequence[int]) -> Tensor:
    shape = tuple(images.shape[1:])
    return torch.stack([task.draw(shape, torch.Generator().manual_seed(seed)) for seed in seeds]).to(images.device)


def _of_constant(task: Task, targets: Tensor) -> float:
    """Mean loss of the best prediction that does not look at the image."""
    prediction = task.constant(targets)
    return task.loss(prediction.expand(len(targets), *prediction.shape[1:]), targets).mean().item()


def _gain(loss: float, unlearnt: float) -> float:
    """Share of a constant's loss that was learnt away; 0 where a constant leaves nothing to learn."""
    return 1 - loss / unlearnt if unlearnt > 0 else 0.0


def _check(
    model: SegmentationModel,
    heads: Mapping[str, Head],
    tasks: Mapping[str, Task],
    images: Tensor,
    seeds: Sequence[int],
    batch: int,
) -> None:
    if not tasks or set(heads) != set(tasks):
        raise CeaseError(
            f"the tasks are {', '.join(tasks) or 'none'}, the heads {', '.join(heads) or 'none'}; "
            "give at least one task, and one head for each by the same name."
        )
    if not len(images) or len(seeds) != len(images):
        raise CeaseError(f"there are {len(images)} images and {len(seeds)} seeds; give images, and a seed for each.")
    if batch < 1:
        raise CeaseError(f"batch is {batch}; give at least 1.")
    for name, task in tasks.items():
        if model.card.ndim not in task.dims:
            raise CeaseError(f"task {name!r} is not made for {model.card.ndim}-D images; leave it out.")
