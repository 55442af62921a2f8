"""Training as a generator: who iterates decides what is shown, and stops it by no longer asking."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cease_core.data.cases import Case
from cease_core.defences import PRESETS, Batch, Cost, Defence, Objective
from cease_core.defences.joint import trained_heads
from cease_core.defences.objective import Opening, gathered
from cease_core.errors import CeaseError
from cease_core.models.card import ModelCard
from cease_core.models.checkpoint import load_card, save_model
from cease_core.models.segmenter import SegmentationModel
from cease_core.training.balance import pcgrad
from cease_core.training.batches import Augmentation, Plan, Sample, batches, load_samples
from cease_core.training.build import build_model, card_of, epochs_of
from cease_core.training.choice import Candidate, Candidates, validate, worth_validating
from cease_core.training.config import TrainingConfig
from cease_core.training.events import CheckpointSaved, EpochDone, Event, Finished, StepDone, TasksChosen
from cease_core.training.history import History
from cease_core.training.process import Process, this_process
from cease_core.training.selection import Chosen, choose_tasks
from cease_core.training.state import STATE, load_state, save_state

SAVE_EVERY = 600.0
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    config: TrainingConfig,
    train_cases: Sequence[Case],
    validation_cases: Sequence[Case],
    out: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    save_every: float = SAVE_EVERY,
) -> Iterator[Event]:
    """Train a model and keep the checkpoint that `cease_core.training.choice` prefers on the validation cases.

    Several processes share each batch evenly; all of them yield the same events. What a step computes is then what
    one process would compute, but for batch norms on a CPU and the dense contrastive part: these see the images of
    their own process only.

    Parameters
    ----------
    config
        Everything that decides the outcome.
    train_cases, validation_cases
        No patient of one side may be on the other.
    out
        Folder that receives the model, the history, and the state to resume from after every epoch.
    resume
        Continue from that state if there is one: bit for bit on a CPU.
    device
        By default the best there is.
    save_every
        Seconds after which the state is saved in the middle of an epoch, too; 0 for each batch.

    Yields
    ------
    Event
        `TasksChosen` if the defence has tasks to choose; for each epoch its `StepDone`, an `EpochDone` and a
        `CheckpointSaved`; then `Finished`.

    Raises
    ------
    CeaseError
        If the data do not fit the config, the loss stops being finite, or the folder cannot be written.
    """
    began = time.monotonic()
    process = this_process(device)
    if config.precision == "fp16" and process.device.type != "cuda":
        raise CeaseError("precision fp16 needs a CUDA GPU; set precision to bf16 or fp32.")
    if process.world > 1 and config.defence.balance == "pcgrad":
        raise CeaseError("pcgrad works in one process only; set defence.balance to fixed or uncertainty.")
    history = History(out, tensorboard=config.tensorboard and process.main)
    samples, held_out = load_samples(train_cases, config), load_samples(validation_cases, config)
    held_out = worth_validating(held_out, config.validation_images)
    if not samples or not held_out:
        raise CeaseError(
            "training needs an image to learn from and one with foreground to validate on; add cases or change "
            "data.validation."
        )
    plan = Plan(len(samples), config.batch_size, config.seed, process.rank, process.world)
    if plan.size == 0:
        raise CeaseError(
            f"{process.world} processes cannot share batches of {min(config.batch_size, len(samples))} images; start "
            "fewer, raise batch_size, or add cases."
        )
    origin = _origin(config, train_cases, validation_cases, plan)
    state = process.once(lambda: _begin(out, origin, resume))
    defence, selection, spent = config.defence, None, 0
    if state is not None:
        defence, selection, spent = Defence.model_validate(state["defence"]), state["selection"], state["spent"]
    elif defence.auxiliary is not None and not defence.auxiliary.tasks:
        # By every process, so that none waits; the main one's choice counts, as GPUs may differ in the last digits.
        mine = choose_tasks(config, samples, process.device)
        chosen = process.once(lambda: _written(mine, out))
        defence, selection, spent = defence.with_tasks(chosen.tasks), chosen.summary, chosen.gradients
        yield TasksChosen(chosen.tasks, chosen.report)
    run = _Run(config, defence, samples, held_out, plan, process, out, history, spent)
    run.card = card_of(config, defence, train_cases, validation_cases, selection)
    run.origin, run.selection, run.began = origin, selection, began
    if state is not None:
        run.restore(state)
    else:
        run.candidates.reference = process.once(run.clean_dice_at_start)
        if selection is not None:
            yield run.save()
    yield from run.epochs_left(save_every)
    yield Finished(out, process.once(lambda: load_card(out)), run.stopped)


def _origin(
    config: TrainingConfig, train_cases: Sequence[Case], validation_cases: Sequence[Case], plan: Plan
) -> dict[str, str]:
    """What a run that is resumed must have in common with the one that was started."""
    names = [[case.name for case in side] for side in (train_cases, validation_cases)]
    return {
        "config": config.digest,
        "set of cases": hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12],
        "number of processes": f"batches of {plan.size} of {plan.samples}",
    }


def _begin(out: Path, origin: dict[str, str], resume: bool) -> dict[str, Any] | None:
    """The state to go on from, or a folder in which nothing of another run is left that would mislead."""
    if resume and (out / STATE).is_file():
        return load_state(out / STATE, origin)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / STATE).unlink(missing_ok=True)
    except OSError as error:
        raise CeaseError(f"cannot write to {out}: {error.strerror}; choose another folder.") from error
    Candidates(out, None, 0).clear()
    return None


def _written(chosen: Chosen, out: Path) -> Chosen:
    chosen.write(out)
    return chosen


class _Run:
    """A run under way; all it knows is in `state`."""

    card: ModelCard
    origin: dict[str, str]
    selection: dict[str, Any] | None
    began: float

    def __init__(
        self,
        config: TrainingConfig,
        defence: Defence,
        samples: list[Sample],
        held_out: list[Sample],
        plan: Plan,
        process: Process,
        out: Path,
        history: History,
        spent: int,
    ) -> None:
        self.config, self.defence, self.samples, self.held_out = config, defence, samples, held_out
        self.plan, self.process, self.out, self.history = plan, process, out, history
        self.spent = self.gradients = spent
        self.augmentation = Augmentation(config)
        model = process.fit(build_model(config).to(process.device))
        assert isinstance(model, SegmentationModel)
        self.objective = Objective(defence, model, config.patch).to(process.device)
        self.joined = process.join(self.objective)
        self.average = _averaged(model, config.ema)
        # What reads the features of an averaged encoder has to be averaged along with it.
        self.heads = trained_heads(self.objective)
        self.average_heads = None if self.heads is None else _averaged(self.heads, config.ema)
        self.epochs = epochs_of(config, self.objective.gradients, plan.size * plan.batches, spent)
        self.optimiser = torch.optim.AdamW(
            self.objective.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = _schedule(self.optimiser, config, self.epochs * plan.batches * defence.replays)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=config.precision == "fp16")
        self.candidates = Candidates(out, None, config.clean_drop)
        self.epoch = self.batch = 0
        self.before = 0.0
        self.sums: dict[str, float] = {}
        self.stopped = False

    @property
    def seconds(self) -> float:
        """Training time, that of an interrupted run included."""
        return self.before + time.monotonic() - self.began

    def epochs_left(self, save_every: float) -> Iterator[Event]:
        saved = time.monotonic()
        while self.epoch < self.epochs and not self.stopped:
            self.objective.train()
            for batch in batches(self.samples, self.plan, self.augmentation, self.epoch, self.batch):
                yield self._step(batch)
                if self.batch < self.plan.batches and self._passed(saved, save_every):
                    yield self.save()
                    saved = time.monotonic()
            yield self._close_epoch()
            yield self.save()
            saved = time.monotonic()
        self.process.once(self.candidates.clear)

    def _passed(self, since: float, seconds: float) -> bool:
        """Whether so much time has passed, by the main process's clock: processes that disagree wait for ever."""
        return self.process.once(lambda: time.monotonic() - since >= seconds)

    def _step(self, batch: Batch) -> StepDone:
        device = self.process.device
        number = self.epoch * self.plan.batches + self.batch
        # Dropout, if the architecture has any, is the only thing that draws from the global generator.
        torch.manual_seed(self._seed(number))
        batch = replace(batch, images=batch.images.to(device), labels=batch.labels.to(device))
        progress = (number + 1) / (self.epochs * self.plan.batches)
        figures: dict[str, float] = {}
        for _ in range(self.defence.replays):
            self.optimiser.zero_grad(set_to_none=True)
            with self._autocast():
                opening = self.objective.opening(batch, self.scaler.scale)
            adversarial = self._attacked(batch, progress, opening)
            with self._autocast():
                cost: Cost = self.joined(batch, adversarial, progress, opening)
                total = cost.total
            names, values = ("", *cost.parts), (total, *cost.parts.values())
            figures = dict(zip(names, self.process.mean([v.item() for v in values]), strict=True))
            self._check(figures[""], "the loss")
            self._descend(cost, total, number)
            if self.defence.inner.ascent == "free" and adversarial is not None:
                self.objective.climb(adversarial, progress)
            self.average.update_parameters(self.objective.model)
            if self.heads is not None and self.average_heads is not None:
                self.average_heads.update_parameters(self.heads)
            self.gradients += self.objective.gradients * self.plan.size
        self.batch += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        loss = figures.pop("")
        return StepDone(
            self.epoch + 1, self.epochs, self.batch, self.plan.batches, loss, figures, self.gradients, self.seconds
        )

    def _seed(self, number: int) -> int:
        """For all that one batch draws in this process: the same on every machine."""
        words = np.random.SeedSequence((self.config.seed, number, self.process.rank)).generate_state(1, np.uint64)
        return int(words[0]) % 2**63

    def _autocast(self) -> torch.autocast:
        precision = self.config.precision
        return torch.autocast(self.process.device.type, _PRECISIONS.get(precision), enabled=precision != "fp32")

    def _attacked(self, batch: Batch, progress: float, opening: Opening | None) -> Tensor | None:
        if not self.defence.attacks:
            return None
        try:
            with torch.autocast(self.process.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                return self.objective.attacked(batch, progress, opening)
        except CeaseError as error:
            raise CeaseError(f"{self._where()}: {error}") from error

    def _check(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise CeaseError(
                f"{self._where()}: {what} is {value}; lower the learning rate, or look for damaged images among these "
                "cases."
            )

    def _where(self) -> str:
        names = dict.fromkeys(self.samples[i].case for i in self.plan.whole(self.epoch, self.batch))
        return f"epoch {self.epoch + 1}, batch {self.batch + 1} ({', '.join(names)})"

    def _descend(self, cost: Cost, total: Tensor, number: int) -> None:
        parameters = [p for p in self.objective.parameters() if p.requires_grad]
        if self.defence.balance == "pcgrad":
            pcgrad([self.scaler.scale(group) for group in cost.groups], parameters, self._seed(number))
        else:
            self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
        if not self.scaler.is_enabled():  # a scaler leaves such a step out, and scales less from then on
            self._check(norm.item(), "the gradient's norm")
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.schedule.step()

    @property
    def _grown(self) -> bool:
        """Whether the inner attack has its full radius; before, a defended model holds against little."""
        return not self.defence.attacks or self.epoch >= self.defence.inner.ramp * self.epochs

    def _close_epoch(self) -> EpochDone:
        self.epoch, self.batch = self.epoch + 1, 0
        clean = robust = math.nan
        due = self.epoch % self.config.validate_every == 0 and self._grown
        if due or self.epoch == self.epochs:
            clean, robust, self.stopped = self.process.once(self._validate)
        means = {name: value / self.plan.batches for name, value in self.sums.items()}
        self.sums = {}
        event = EpochDone(self.epoch, self.epochs, means.pop(""), clean, robust, self.gradients, self.seconds, means)
        self.process.once(lambda: self.history.add(event))
        return event

    def _validate(self) -> tuple[float, float, bool]:
        """Dice of the averaged weights, clean and under attack, and whether patience has run out."""
        candidate = copy.deepcopy(_inner(self.average)).eval().requires_grad_(False)
        if self.config.half_weights:
            # On the model itself: buffers that count batches are integers and stay so.
            candidate.half().float()
        clean, robust = self._dice(candidate, self.defence)
        heads = None if self.average_heads is None else self.average_heads.module.state_dict()
        better = self.candidates.add(Candidate(self.epoch, clean, robust), candidate, heads)
        patience = self.config.patience
        stopped = patience is not None and self.candidates.stale >= patience
        # At the end in any case: the card then tells the cost of the whole run.
        if better or stopped or self.epoch == self.epochs:
            self._store()
        return clean, robust, stopped

    def _store(self) -> None:
        best = self.candidates.best
        metrics = {"validation_clean_dice": round(best.clean, 4)}
        if self.defence.attacks:
            metrics["validation_robust_dice"] = round(best.robust, 4)
        training = self.card.training | {
            "best_epoch": best.epoch,
            "keeps_clean_dice": self.candidates.keeps_clean,
            "gradients": self.gradients,
            "seconds": round(self.seconds),
        }
        card = self.card.model_copy(update={"metrics": metrics, "training": training})
        model = SegmentationModel(card, self.candidates.load().backbone)
        save_model(model, self.out, half=self.config.half_weights, heads=self.candidates.heads())

    def clean_dice_at_start(self) -> float | None:
        """Clean Dice of the starting model, for a defended model to keep; None without one."""
        if self.config.start is None or not self.defence.attacks:
            return None
        model = copy.deepcopy(self.objective.model).eval().requires_grad_(False)
        return self._dice(model, PRESETS["none"])[0]

    def _dice(self, model: SegmentationModel, defence: Defence) -> tuple[float, float]:
        return validate(model, self.held_out, defence, self.process.device, self.config.batch_size)

    def save(self) -> CheckpointSaved:
        """Write the state; only then do models that it does not name any more go."""
        path, state = self.out / STATE, self.state()
        self.process.once(lambda: save_state(path, state))
        self.process.once(self.candidates.sweep)
        return CheckpointSaved(path, self.epoch, self.batch)

    def state(self) -> dict[str, Any]:
        """All that a run that goes on from here needs; every process must ask for it."""
        objective = self.objective.state_dict()
        objective["free"] = gathered(self.objective.free)
        return {
            "origin": self.origin,
            "defence": self.defence.model_dump(mode="json"),
            "selection": self.selection,
            "spent": self.spent,
            "objective": objective,
            "average": self.average.state_dict(),
            "average_heads": None if self.average_heads is None else self.average_heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "candidates": self.candidates.state(),
            "history": self.history.rows,
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": self.sums,
            "gradients": self.gradients,
            "seconds": self.seconds,
            "stopped": self.stopped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        free = self.process.share(state["objective"]["free"])
        self.objective.free = free.to(self.process.device)
        self.objective.load_state_dict(state["objective"] | {"free": free})
        for part in ("average", "optimiser", "schedule", "scaler"):
            getattr(self, part).load_state_dict(state[part])
        # Older states know of no heads: their average then begins here.
        if self.average_heads is not None and state.get("average_heads") is not None:
            self.average_heads.load_state_dict(state["average_heads"])
        self.candidates.restore(state["candidates"])
        self.process.once(self.candidates.sweep)
        self.history.rows = state["history"]
        self.epoch, self.batch, self.sums = state["epoch"], state["batch"], state["sums"]
        self.gradients, self.before, self.stopped = state["gradients"], state["seconds"], state["stopped"]
        self.process.once(self.history.write)


def _schedule(
    optimiser: torch.optim.Optimizer, config: TrainingConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    # A tenth is for warming up, which must be more than one step.
    if config.schedule == "constant" or steps <= 10:
        return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps, pct_start=0.1)


def _averaged(module: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _inner(average: AveragedModel) -> SegmentationModel:
    module = average.module
    assert isinstance(module, SegmentationModel)
    return module
