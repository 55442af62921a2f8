"""Attacks on a multitask model through all that it was trained with: its auxiliary heads and its projector.

A model is used without them. An attack may use them nevertheless: a defence that was trained by several losses has
to be attacked through all of them at once, or its robustness may be that of a loss which nobody ascended (Tramèr et
al. 2020, arXiv 2002.08347). `load_heads` finds them beside a model, `joint_terms` makes further terms of
`cease_core.attacks.MixedAttack` of them:

    heads = load_heads(folder, model)
    if heads is not None:
        MixedAttack(terms=joint_terms(heads, images, labels))(model, images, labels)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from cease_core.attacks.features import CaseTerm, Glance, Term
from cease_core.defences.config import ContrastiveTerm, Defence
from cease_core.defences.input_transforms import case_codes, generator
from cease_core.defences.objective import Objective
from cease_core.defences.terms.auxiliary import TASK, Auxiliary
from cease_core.defences.terms.contrastive import Contrastive
from cease_core.errors import CeaseError
from cease_core.models.architectures import Features
from cease_core.models.checkpoint import HEADS, load_card, read_heads
from cease_core.models.segmenter import SegmentationModel
from cease_core.tasks import TASKS
from cease_core.tasks.base import Head, Setting, Task

_TASKS, _PROJECTOR = "auxiliary", "projector"


def trained_heads(objective: Objective) -> nn.ModuleDict | None:
    """The parts of an objective that `load_heads` restores, shared with it; None if there are none.

    That is the auxiliary heads, with the running means of their losses, and the projector of pooled features. The
    projector of decoder features is none: what it learnt is between pixels of several scans.
    """
    modules = list(objective.terms)
    auxiliary = next((m for m in modules if isinstance(m, Auxiliary)), None)
    contrastive = next((m for m in modules if isinstance(m, Contrastive) and m.term.instance > 0), None)
    return _together(auxiliary, contrastive)


def _together(auxiliary: Auxiliary | None, contrastive: Contrastive | None) -> nn.ModuleDict | None:
    parts: dict[str, nn.Module] = {}
    if auxiliary is not None:
        parts[_TASKS] = auxiliary
    if contrastive is not None:
        parts[_PROJECTOR] = contrastive.globally
    return nn.ModuleDict(parts) if parts else None


@dataclass(frozen=True, eq=False)
class Heads:
    """What a model was trained with besides its segmentation head, frozen.

    Parameters
    ----------
    model
        That they belong to, at its working resolution: it takes what `seen` returns.
    downsample
        How many times coarser that is than the images.
    auxiliary
        Heads of the auxiliary tasks, and the running means of their losses; None without tasks.
    contrastive
        Whose projector of pooled features was trained; None without one.
    """

    model: SegmentationModel
    downsample: int
    auxiliary: Auxiliary | None
    contrastive: Contrastive | None

    @property
    def tasks(self) -> dict[str, Task]:
        """The auxiliary tasks, by name."""
        return {} if self.auxiliary is None else self.auxiliary.tasks

    def predict(self, task: str, features: Features, shape: tuple[int, ...]) -> Tensor:
        """A head's answer to the encoder's ``features`` of images whose spatial shape in `seen` is ``shape``."""
        assert self.auxiliary is not None
        head: Head = self.auxiliary.heads[task]  # type: ignore[assignment]
        return head(features, shape)

    def seen(self, images: Tensor) -> Tensor:
        """Images (N, C, *spatial) as the network sees them: padded and averaged, in window fractions."""
        k = self.downsample
        x = self._padded(images)
        if k == 1:
            return x
        return F.avg_pool2d(x, k) if self.model.card.ndim == 2 else F.avg_pool3d(x, k)

    def seen_labels(self, labels: Tensor) -> Tensor:
        """Class ids (N, *spatial), or one channel a class, on the grid of `seen`: those in the middle of each block."""
        ids = labels.ndim == self.model.card.ndim + 1
        x = self._padded((labels.unsqueeze(1) if ids else labels).float())
        k = self.downsample
        middle: tuple[Any, ...] = (..., *(slice(k // 2, None, k) for _ in range(self.model.card.ndim)))
        x = x[middle]
        return x[:, 0].long() if ids else x

    def _padded(self, x: Tensor) -> Tensor:
        step = self.model.backbone.multiple * self.downsample
        pad = [(-size) % step for size in x.shape[2:]]
        return F.pad(x, [v for p in reversed(pad) for v in (0, p)], mode="replicate") if any(pad) else x


def load_heads(folder: str | Path, model: SegmentationModel) -> Heads | None:
    """The heads that lie beside a model; None if it has none: trained without, or handed on without.

    Parameters
    ----------
    folder
        The model's.
    model
        From that folder, as it was loaded or `cease_core.models.prepare`-d; the heads go where it is, and share its
        encoder.

    Raises
    ------
    CeaseError
        If the file is damaged, belongs to other weights, or does not fit the card; if the folder is another model's.
    """
    tensors = read_heads(folder)
    if tensors is None:
        return None
    path, card = Path(folder) / HEADS, model.card
    if load_card(folder).model_dump(mode="json") != card.model_dump(mode="json"):
        raise CeaseError(
            f"{folder} holds another model than {card.title}; load the model and its heads from one folder."
        )
    try:
        defence = Defence.model_validate(card.training["defence"])
    except (KeyError, ValidationError) as error:
        raise CeaseError(
            f"the card beside {path} does not say what the heads were trained for; copy the whole model folder again, "
            "or delete the heads."
        ) from error
    auxiliary, contrastive = _untrained(defence, model.backbone.widths, Setting.of(card))
    modules = _together(auxiliary, contrastive)
    expected = {} if modules is None else modules.state_dict()
    odd = sorted(expected.keys() ^ tensors.keys())
    odd += [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    if modules is None or odd:
        what = f"tensor {odd[0]!r}" if odd else "there are no tensors"
        raise CeaseError(
            f"{path} does not fit the card's defence ({what}); copy the whole model folder again, or delete it."
        )
    modules.load_state_dict(tensors)
    modules.to(next(model.parameters()).device).eval().requires_grad_(False)
    working = SegmentationModel(card.model_copy(update={"downsample": 1}), model.backbone)
    return Heads(working, card.downsample, auxiliary, contrastive)


def _untrained(
    defence: Defence, widths: tuple[int, ...], setting: Setting
) -> tuple[Auxiliary | None, Contrastive | None]:
    auxiliary = None if defence.auxiliary is None else Auxiliary(defence.auxiliary, widths, setting)
    term = next((t for t in defence.active if isinstance(t, ContrastiveTerm) and t.instance > 0), None)
    if term is None:
        return auxiliary, None
    return auxiliary, Contrastive(term.model_copy(update={"dense": 0.0}), widths, 0, setting.ndim)


@dataclass(frozen=True, eq=False)
class TaskTerm(CaseTerm):
    """The loss of an auxiliary task, between its head's answer to the attacked image and what is right for the clean.

    A task that presents another image, turned, shuffled or with squares hidden, is attacked through that: the
    encoder is shown the attacked image after the same change, which costs a pass of its own at each step.

    Parameters
    ----------
    name
        Of the term: the task's, after ``"task "`` as in training.
    heads, task
        Whose head it is, and which.
    weight
        The loss is multiplied by it.
    shape
        Of the images (C, *spatial).
    targets, draws
        What is right and what was drawn, a row for each case.
    """

    name: str
    heads: Heads
    task: str
    weight: float
    shape: tuple[int, ...]
    targets: Tensor
    draws: Tensor

    def __call__(self, glance: Glance, /) -> Tensor:
        return self.weight * self.loss(glance.cases, glance.images, glance.moved)

    def loss(self, cases: Tensor, images: Tensor, features: Features) -> Tensor:
        """The task's loss (N,), as it is, for images (N, C, *spatial) of these cases and the encoder's features."""
        if images.shape[1:] != self.shape or int(cases.max()) >= len(self.targets):
            raise CeaseError("the joint terms were made for another batch; make them of the images that are attacked.")
        task, rows = self.heads.tasks[self.task], cases.to(self.targets.device)
        shown = self.heads.seen(images)
        if task.presents:
            features = self.heads.model.encode(task.present(shown, self.draws[rows]))
        prediction = self.heads.predict(self.task, features, tuple(shown.shape[2:]))
        return task.loss(prediction, self.targets[rows])


@dataclass(frozen=True, eq=False)
class ProjectionTerm(CaseTerm):
    """One minus the cosine between the projections of the attacked and of the clean image, which contrast joins.

    As RoCL ascends it in training (Kim, Tack & Hwang 2020, arXiv 2006.07589).

    Parameters
    ----------
    name
        Of the term.
    heads
        Whose projector it is.
    weight
        The distance is multiplied by it.
    """

    name: str
    heads: Heads
    weight: float

    def __call__(self, glance: Glance, /) -> Tensor:
        contrastive = self.heads.contrastive
        assert contrastive is not None
        there, here = contrastive.project(glance.clean), contrastive.project(glance.moved)
        return self.weight * (1 - (there * here).sum(dim=1))


def joint_terms(
    heads: Heads, images: Tensor, labels: Tensor, *, weight: float = 1.0, seed: int = 0
) -> tuple[Term, ...]:
    """Terms for `cease_core.attacks.MixedAttack`: what the heads lose, and how far the projection moves.

    Each weighs as it did in training: tasks share the weight of their part, each loss over its running mean; the
    projection has that of the contrast between scans.

    Parameters
    ----------
    heads
        Of the model that is attacked. Where input transforms are wrapped around that, tasks that present another
        image look past them.
    images
        The clean images, window fractions, shape (N, C, *spatial): the whole batch that the attack will be called
        on. Targets come from them, whatever is attacked.
    labels
        Class ids (N, *spatial); for multilabel also one channel a class, floating point.
    weight
        Factor on the weights of the training.
    seed
        Of what tasks draw, together with the image: the same turn, order or squares in whatever batch it comes.

    Returns
    -------
    tuple of Term
        One a task, then that of the projection.
    """
    terms: list[Term] = list(_task_terms(heads, images, labels, weight, seed))
    if heads.contrastive is not None:
        config = heads.contrastive.term
        terms.append(ProjectionTerm("projection", heads, weight * config.weight * config.instance))
    return tuple(terms)


@torch.no_grad()
def task_losses(
    heads: Heads, images: Tensor, labels: Tensor, adversarial: Tensor, *, seed: int = 0
) -> dict[str, Tensor]:
    """The loss (N,) of each auxiliary task, by name, for attacked images; for the clean ones, give them twice.

    Parameters
    ----------
    heads, images, labels, seed
        As for `joint_terms`.
    adversarial
        Attacked images, shape of ``images``.
    """
    cases = torch.arange(len(images), device=images.device)
    features = heads.model.encode(heads.seen(adversarial))
    terms = _task_terms(heads, images, labels, 1.0, seed)
    return {term.task: term.loss(cases, adversarial, features) for term in terms}


@torch.no_grad()
def _task_terms(heads: Heads, images: Tensor, labels: Tensor, weight: float, seed: int) -> list[TaskTerm]:
    if heads.auxiliary is None:
        return []
    images = images.detach().float()
    clean, mask = heads.seen(images), heads.seen_labels(labels.to(images.device))
    setting, codes, cpu = Setting.of(heads.model.card), case_codes(images), torch.device("cpu")
    share = weight * heads.auxiliary.term.weight / len(heads.tasks)
    terms = []
    for (name, task), mean in zip(heads.tasks.items(), heads.auxiliary.means.tolist(), strict=True):
        number = list(TASKS).index(name)
        drawn = [task.draw(tuple(clean.shape[1:]), generator(cpu, seed, code, number)) for code in codes]
        draws = torch.stack(drawn).to(images.device)
        targets = task.target(clean, mask, draws, setting)
        # Some loss may have been 0 throughout.
        terms.append(
            TaskTerm(TASK + name, heads, name, share / max(mean, 1e-6), tuple(images.shape[1:]), targets, draws)
        )
    return terms
