"""A defence at work: views are made, the model looks at all of them at once, terms are added up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cease_core.attacks.losses import LOSSES, one_hot
from cease_core.attacks.losses.pixelwise import surprise
from cease_core.attacks.problem import Problem, limits, within
from cease_core.attacks.vafa import VAFA
from cease_core.attacks.weighted import SegPGD
from cease_core.defences import inner
from cease_core.defences.config import AuxiliaryTerm, ContrastiveTerm, Defence, View
from cease_core.defences.inner import Ascended
from cease_core.defences.tap import Tap
from cease_core.defences.terms import TASK, TermModule, build_term
from cease_core.defences.terms.consistency import divergence
from cease_core.defences.terms.contrastive import Contrastive
from cease_core.defences.views import Batch, Context, Look, augmented, unmoved
from cease_core.errors import CeaseError
from cease_core.models.card import Mode
from cease_core.models.segmenter import SegmentationModel
from cease_core.tasks import TASKS
from cease_core.tasks.base import Setting


@dataclass(frozen=True, eq=False)
class Cost:
    """What a batch costs: its parts by name, the weight of each, and the learnt log variance of each group."""

    parts: dict[str, Tensor]
    weights: dict[str, float]
    doubts: Tensor | None = None

    @property
    def groups(self) -> list[Tensor]:
        """Weighted sums: that of all that is no auxiliary task, then each task."""
        main = [name for name in self.parts if not name.startswith(TASK)]
        tasks = [[name] for name in self.parts if name.startswith(TASK)]
        return [torch.stack([self.weights[n] * self.parts[n] for n in names]).sum() for names in (main, *tasks)]

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        if self.doubts is None:
            return torch.stack(self.groups).sum()
        # Kendall et al. 2018, arXiv 1705.07115: L / σ² + log σ, with s = log σ² learnt.
        return ((-self.doubts).exp() * torch.stack(self.groups) + self.doubts / 2).sum()


@dataclass(frozen=True, eq=False)
class Opening:
    """The clean view that an inner attack begins at: what the model made of it, cut off, and the loss's gradient."""

    look: Look
    gradient: Tensor


class Objective(nn.Module):
    """The model under training together with everything that is dropped after it.

    Parameters
    ----------
    defence
        What to minimise; its auxiliary tasks must be chosen.
    model
        At the working resolution.
    shape
        Spatial shape of the training images.

    Raises
    ------
    CeaseError
        If auxiliary tasks are not chosen yet, or not defined for the model's dimensions.
    """

    free: Tensor

    def __init__(self, defence: Defence, model: SegmentationModel, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.defence, self.model = defence, model
        card = model.card
        self.setting = Setting.of(card)
        if defence.auxiliary is not None:
            _check_tasks(defence.auxiliary, card.ndim)
        dense = any(isinstance(t, ContrastiveTerm) and t.dense > 0 for t in defence.active)
        self._tap = Tap(model, shape) if dense else None
        dense_width = self._tap.width if self._tap is not None else 0
        self.terms = nn.ModuleList(
            build_term(t, model.backbone.widths, dense_width, self.setting) for t in defence.active
        )
        count = 1 + (len(defence.auxiliary.tasks) if defence.auxiliary is not None else 0)
        self.doubts = nn.Parameter(torch.zeros(count)) if defence.balance == "uncertainty" else None
        # The perturbation of Free adversarial training lives on from batch to batch.
        self.register_buffer("free", torch.zeros(0))
        # Each process has cases of its own: its perturbation is not to be overwritten by the first one's.
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, ["free"])

    @property
    def gradients(self) -> int:
        """Gradient computations an image and step: passes through the encoder that are gone through backwards.

        Those of the inner attack, one for each view, and one for each task and view that shows the encoder another
        image. What is asked without a gradient does not count: the clean answer that an inner attack flees from
        (``consistency``, ``contrastive``, ``joint``), the first and last look of ``frequency``, a teacher's answer.
        """
        views = len(self.defence.views) - len(self.defence.still) - (self.defence.opening is not None)
        steps = 0
        if self.defence.attacks and self.defence.inner.ascent != "free":
            steps = self.defence.inner.steps
        auxiliary = self.defence.auxiliary
        seen = 0 if auxiliary is None else len(self.defence.read_by(auxiliary) & frozenset(self.defence.views))
        return steps + views + sum(term.passes(seen) for term in self._modules_of())

    def epsilon(self, progress: float) -> float:
        """Radius of the inner attack when a share ``progress`` of the training is done."""
        ramp = self.defence.inner.ramp
        return self.defence.inner.epsilon * (1.0 if ramp == 0 else min(1.0, progress / ramp))

    def opening(self, batch: Batch, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> Opening | None:
        """Go backwards through the clean view's share of the loss, where the inner attack reuses that.

        The parameters' gradients are left in place, those of ``scale(loss)``.
        """
        term = self.defence.opening
        if term is None:
            return None
        images = batch.images.detach().clone().requires_grad_()
        look = self._look(images)
        target = one_hot(batch.labels, self.model.mode, self.model.card.outputs)
        loss = LOSSES[term.loss](look.logits, target, self.model.mode).mean()
        with torch.autocast(loss.device.type, enabled=False):
            scale(term.weight * loss).backward()
        assert images.grad is not None
        # In fp16 the scaler leaves a step out whose gradients are not finite.
        return Opening(look.detach(), images.grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))

    def attacked(self, batch: Batch, progress: float, opening: Opening | None = None) -> Tensor:
        """The adversarial view (N, C, *spatial), crafted with batch norms in evaluation mode but for an opening."""
        config, epsilon = self.defence.inner, self.epsilon(progress)
        if config.ascent == "free":
            if self.free.shape != batch.images.shape:
                self.free = torch.zeros_like(batch.images)
            self.free = self.free.clamp(-epsilon, epsilon)
            return (batch.images + within(self.free, batch.images, *limits(batch.images))).requires_grad_()
        was_training = self.model.training
        self.model.eval()
        try:
            if config.ascent == "frequency":
                attack = VAFA(epsilon=epsilon, steps=config.steps, loss=config.loss)
                with torch.no_grad():
                    problem = Problem.pose(self.model, batch.images, batch.labels, config.loss)
                    return attack.run(problem).adversarial
            first = None if opening is None else opening.gradient
            return inner.craft(batch.images, self._ascended(batch), config, epsilon, batch.seeds, first)
        finally:
            self.model.train(was_training)

    def forward(
        self, batch: Batch, adversarial: Tensor | None, progress: float, opening: Opening | None = None
    ) -> Cost:
        """What a batch costs, given its adversarial view where the defence reads one, and its opening likewise."""
        looks: dict[View, Look] = {} if opening is None else {"clean": opening.look}
        # In a fixed order: dropout draws in it.
        still = [view for view in self.defence.views if view in self.defence.still]
        moving = [view for view in self.defence.views if view not in looks and view not in still]
        seen = {view: self._view(view, batch, adversarial) for view in moving}
        # One pass for all views: they share batch statistics, and a GPU is busier.
        stacked = torch.cat(list(seen.values()))
        together = self._look(stacked)
        for i, view in enumerate(seen):
            looks[view] = together.part(slice(i * len(batch), (i + 1) * len(batch)))
        # Afterwards: up to torch 2.10 autocast would hand the weights it has cast here, without a gradient, to all.
        for view in still:
            with torch.no_grad(), unmoved(self.model):
                looks[view] = self._look(self._view(view, batch, adversarial))
        context = Context(
            batch=batch,
            target=one_hot(batch.labels, self.model.mode, self.model.card.outputs),
            looks=looks,
            model=self.model,
            setting=self.setting,
            progress=progress,
            gather=gathered,
        )
        parts: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for term, module in zip(self.defence.active, self._modules_of(), strict=True):
            values = module(context)
            parts |= values
            weights |= dict.fromkeys(values, term.weight / len(values))
        return Cost(parts, weights, self.doubts)

    def climb(self, adversarial: Tensor, progress: float) -> None:
        """The step of Free adversarial training: along the gradient that the training step left on its input."""
        assert adversarial.grad is not None
        epsilon = self.epsilon(progress)
        step = self.defence.inner.step_size or epsilon
        # In fp16 the scaler leaves a step out whose gradients are not finite; so does the perturbation.
        along = adversarial.grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).sign()
        self.free = (self.free + step * along).clamp(-epsilon, epsilon)

    def _look(self, images: Tensor) -> Look:
        features, shape = self.model.encode(images), tuple(images.shape[2:])
        if self._tap is None:
            return Look(images, features, self.model.decode(features, shape), None)
        with self._tap.open(self.model) as caught:
            logits = self.model.decode(features, shape)
        return Look(images, features, logits, caught[-1])

    def _view(self, view: View, batch: Batch, adversarial: Tensor | None) -> Tensor:
        if view == "clean":
            return batch.images
        if view == "augmented":
            return augmented(batch.images, batch.seeds)
        assert adversarial is not None
        return adversarial

    def _ascended(self, batch: Batch) -> Ascended:
        config, model = self.defence.inner, self.model
        shape = tuple(batch.images.shape[2:])
        target = one_hot(batch.labels, model.mode, model.card.outputs)
        loss = LOSSES[config.loss]
        if config.ascent == "consistency":
            with torch.no_grad():
                clean = model(batch.images)
            return lambda x, _: divergence(clean, model(x), model.mode).flatten(1).mean(dim=1)
        if config.ascent == "segpgd":
            return lambda x, step: _segpgd(model(x), target, model.mode, step / config.steps)
        if config.ascent == "seg":
            return lambda x, _: loss(model(x), target, model.mode)
        projector = next(m for m in self._modules_of() if isinstance(m, Contrastive))
        with torch.no_grad():
            there = projector.project(model.encode(batch.images))
        alone = config.ascent == "contrastive"

        def ascended(images: Tensor, step: int) -> Tensor:
            features = model.encode(images)
            away = 1 - (projector.project(features) * there).sum(dim=1)
            return away if alone else away + loss(model.decode(features, shape), target, model.mode)

        return ascended

    def _modules_of(self) -> list[TermModule]:
        return [m for m in self.terms if isinstance(m, TermModule)]


def gathered(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks; gradients flow to the own ones, times their number.

    Each process knows the derivative by its own rows alone, and what is averaged afterwards is to be the sum.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    world = dist.get_world_size()
    everyone = [torch.zeros_like(rows) for _ in range(world)]
    dist.all_gather(everyone, rows.detach().contiguous())
    if rows.requires_grad:
        own = rows.view_as(rows)
        own.register_hook(lambda gradient: gradient * world)
        everyone[dist.get_rank()] = own
    return torch.cat(everyone)


def _segpgd(logits: Tensor, target: Tensor, mode: Mode, progress: float) -> Tensor:
    """Cross-entropy with the weights of `SegPGD`; ``progress`` is the share of the steps taken."""
    weight = SegPGD().weight(logits, target, mode, progress, targeted=False)
    return (weight * surprise(logits, target, mode)).flatten(1).mean(dim=1)


def _check_tasks(term: AuxiliaryTerm, ndim: int) -> None:
    if not term.tasks:
        raise CeaseError("the auxiliary tasks are not chosen yet; run the selection first, or name them.")
    odd = [name for name in term.tasks if ndim not in TASKS[name].dims]
    if odd:
        raise CeaseError(f"the task {odd[0]} is not defined in {ndim}-D; choose another.")
