"""Training as a generator: who iterates decides what is shown, and stops it by no longer asking."""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cease_core.attacks.gradient import PGD
from cease_core.attacks.losses import dice_ce, one_hot
from cease_core.attacks.norms import project, random_start, steepest
from cease_core.attacks.problem import Problem
from cease_core.data.cases import Case
from cease_core.errors import CeaseError
from cease_core.models.card import DataInfo, ModelCard
from cease_core.models.checkpoint import load_model, save_model
from cease_core.models.library import find_model
from cease_core.models.segmenter import SegmentationModel
from cease_core.training.batches import Sample, augmentation, batches, load_samples
from cease_core.training.config import AdversarialTraining, TrainingConfig

STATE = "training.pt"


@dataclass(frozen=True)
class EpochDone:
    """After each epoch; Dice values only after a validation (NaN otherwise)."""

    epoch: int
    epochs: int
    loss: float
    clean_dice: float
    robust_dice: float
    gradients: int
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The model with the best validation score is in ``folder``."""

    folder: Path
    card: ModelCard


Event = EpochDone | Finished


def train(
    config: TrainingConfig, train_cases: list[Case], validation_cases: list[Case], out: Path, *, resume: bool = False
) -> Iterator[Event]:
    """Train a model and keep the checkpoint that is best on the validation cases.

    Undefended models are chosen by clean Dice, defended ones by Dice under PGD-10 at the training radius.

    Parameters
    ----------
    out
        Folder that receives the model, and the state to resume from after every epoch.
    resume
        Continue from that state if there is one.

    Yields
    ------
    Event
        One `EpochDone` an epoch, then `Finished`.

    Raises
    ------
    CeaseError
        If the data do not fit the config, or the loss stops being finite.
    """
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    transform = augmentation(config)
    transform.set_random_state(seed=config.seed)
    samples = load_samples(train_cases, config)
    held_out = load_samples(validation_cases, config)
    if not samples or not any(s.labels.any() for s in held_out):
        raise CeaseError(
            "training needs an image to learn from and one with foreground to validate on; add cases or change "
            "data.validation."
        )
    card = _card(config, train_cases, validation_cases)
    # Samples are already at the working resolution.
    model = SegmentationModel(card.model_copy(update={"downsample": 1}))
    if config.start:
        try:
            model.backbone.load_state_dict(load_model(find_model(config.start)).backbone.state_dict())
        except RuntimeError as error:
            raise CeaseError(
                f"start: {config.start} has other layers than the config's {config.architecture}; choose a model of "
                "the same architecture, channels and classes."
            ) from error
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    optimiser = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    per_epoch = max(1, len(samples) // min(config.batch_size, len(samples)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.epochs * per_epoch, pct_start=0.1
    )
    best, first, gradients, seconds = -1.0, 0, 0, 0.0
    state_path = out / STATE
    if resume and state_path.is_file():
        try:
            state = torch.load(state_path, weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise CeaseError(f"{state_path} is damaged; start a new run in another folder.") from error
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        best, first, gradients, seconds = (state[k] for k in ("best", "epoch", "gradients", "seconds"))
        rng = np.random.default_rng((config.seed, first))
        torch.manual_seed(config.seed + first)
    for epoch in range(first, config.epochs):
        began = time.monotonic()
        model.train()
        losses: list[float] = []
        for images, masks in batches(samples, config, transform, rng):
            ramp = min(1.0, (epoch + 1) / max(1.0, 0.2 * config.epochs))
            loss, spent = _loss(model, images, masks, config.adversarial, ramp, seed=len(losses) + 1000 * epoch)
            if not torch.isfinite(loss):
                raise CeaseError(
                    f"the loss is {loss.item()} in epoch {epoch + 1}, batch {len(losses) + 1}; lower the learning rate."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            average.update_parameters(model)
            losses.append(loss.item())
            gradients += spent * len(images)
        clean = robust = float("nan")
        if (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs:
            candidate = copy.deepcopy(_inner(average)).eval().requires_grad_(False)
            if config.half_weights:
                candidate.half().float()
            clean, robust = _validate(candidate, held_out, config)
            score = robust if config.adversarial else clean
            if score > best:
                best = score
                metrics = {"validation_clean_dice": round(clean, 4)}
                if config.adversarial:
                    metrics["validation_robust_dice"] = round(robust, 4)
                training = config.model_dump(mode="json", exclude={"data", "classes"})
                training |= {"best_epoch": epoch + 1, "gradients": gradients, "seconds": round(seconds)}
                chosen = card.model_copy(update={"metrics": metrics, "training": training})
                save_model(SegmentationModel(chosen, candidate.backbone), out, half=config.half_weights)
        seconds += time.monotonic() - began
        _save_state(
            state_path,
            {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "best": best,
                "epoch": epoch + 1,
                "gradients": gradients,
                "seconds": seconds,
            },
        )
        yield EpochDone(epoch + 1, config.epochs, float(np.mean(losses)), clean, robust, gradients, seconds)
    yield Finished(out, load_model(out).card)


def _loss(
    model: SegmentationModel,
    images: Tensor,
    masks: Tensor,
    adversarial: AdversarialTraining | None,
    ramp: float,
    seed: int,
) -> tuple[Tensor, int]:
    target = one_hot(masks, model.mode, model.card.outputs)
    if adversarial is None:
        return dice_ce(model(images), target, model.mode).mean(), 1
    attacked = craft(model, images, masks, adversarial, adversarial.epsilon * ramp, seed)
    loss = (1 - adversarial.clean_weight) * dice_ce(model(attacked), target, model.mode).mean()
    if adversarial.clean_weight > 0:
        loss = loss + adversarial.clean_weight * dice_ce(model(images), target, model.mode).mean()
    return loss, adversarial.steps + 1 + (adversarial.clean_weight > 0)


def craft(
    model: SegmentationModel, images: Tensor, masks: Tensor, inner: AdversarialTraining, epsilon: float, seed: int
) -> Tensor:
    """Adversarial images (N, C, *spatial) for a training step, with batch norms in evaluation mode."""
    was_training = model.training
    model.eval()
    problem = Problem.pose(model, images, masks, inner.loss)
    # One start for all cases of a batch would let them share their luck: every case rolls it differently.
    start = random_start(images, epsilon, "linf", seed)
    delta = torch.stack([torch.roll(d, 7 * i, dims=-1) for i, d in enumerate(start)])
    step = max(1 / 255, 2.5 * epsilon / inner.steps)
    for _ in range(inner.steps):
        grad, *_ = problem.gradient(problem.clip(delta))
        delta = problem.clip(project(delta + step * steepest(grad, "linf"), epsilon, "linf"))
    model.train(was_training)
    return images + delta


def _validate(model: SegmentationModel, samples: list[Sample], config: TrainingConfig) -> tuple[float, float]:
    """Mean Dice over images with foreground, clean and under attack (NaN without a defence)."""
    attack = PGD(epsilon=config.adversarial.epsilon, steps=10) if config.adversarial else None
    clean, robust = [], []
    for sample in samples:
        if not sample.labels.any():
            continue
        images, masks = sample.image.unsqueeze(0), sample.labels.long()
        problem = Problem.pose(model, images, masks, "dice_ce")
        clean.append(problem.look(torch.zeros_like(problem.images))[2].item())
        if attack is not None:
            robust.append(attack.run(problem).dice.item())
    if not clean:
        return float("nan"), float("nan")
    return float(np.mean(clean)), float(np.mean(robust)) if robust else float("nan")


def _card(config: TrainingConfig, train_cases: list[Case], validation_cases: list[Case]) -> ModelCard:
    return ModelCard(
        name=config.name,
        title=config.title,
        architecture=config.architecture,
        architecture_args=config.architecture_args,
        ndim=config.ndim,
        channels=config.channels,
        classes=config.classes,
        mode=config.mode,
        window=config.window,
        downsample=config.downsample,
        defence="adversarial training" if config.adversarial else "none",
        scene=config.scene,
        data=DataInfo(
            name=config.data.name,
            source=config.data.source,
            licence=config.data.licence,
            train=tuple(c.name for c in train_cases),
            validation=tuple(c.name for c in validation_cases),
        ),
        licence=config.licence,
    )


def _inner(average: AveragedModel) -> SegmentationModel:
    module = average.module
    assert isinstance(module, SegmentationModel)
    return module


def _save_state(path: Path, state: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    os.replace(scratch, path)
