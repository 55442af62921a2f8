"""Choosing a run's auxiliary tasks: warm up with all of them, measure on held-out training cases, select."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cease_core.data.splits import by_hash
from cease_core.defences import AuxiliaryTerm, Defence, Objective, SegmentationTerm
from cease_core.defences.terms.auxiliary import Auxiliary
from cease_core.errors import CeaseError
from cease_core.io.files import write_text
from cease_core.tasks import TASKS
from cease_core.tasks.gradients import NOISES, measure
from cease_core.tasks.relevance import Relevance, Selection, select, table
from cease_core.tasks.relevance_figure import similarity_figure
from cease_core.training.batches import Augmentation, Plan, Sample, batches, stack
from cease_core.training.build import build_model, epochs_of
from cease_core.training.config import TrainingConfig

WARM_UP = 0.1
HELD_OUT = 32
# Heads alone, which begin at random and move no encoder, learn enough in so short a time at a higher rate only.
HEADS_FASTER = 5.0
SCORES, TABLE, FIGURE = "relevance.json", "relevance.md", "relevance.svg"


@dataclass(frozen=True)
class Chosen:
    """What was measured and what was chosen; ``gradients`` is what it cost."""

    relevance: Relevance
    selection: Selection
    gradients: int

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.selection.chosen

    @property
    def report(self) -> str:
        """Every score and the verdicts, as Markdown."""
        return table(self.relevance, self.selection)

    @property
    def summary(self) -> dict[str, Any]:
        """For the model's card: the rule, the choice, and the reason for every task."""
        return self.selection.model_dump(mode="json")

    def write(self, folder: Path) -> None:
        """Scores, table and figure into a run's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / SCORES, self.relevance.model_dump_json(indent=1) + "\n")
        write_text(folder / TABLE, self.report)
        write_text(folder / FIGURE, similarity_figure(self.relevance, self.selection))


def choose_tasks(
    config: TrainingConfig,
    samples: Sequence[Sample],
    device: torch.device,
    *,
    warm_up: float = WARM_UP,
    callback: Callable[[int, int], object] | None = None,
) -> Chosen:
    """Measure all tasks that the model's dimensions allow and choose among them by the config's rule.

    The cases measured on are training cases of patients that the warm-up does not see. Where the training goes on from
    a trained model, only the heads warm up, on that model's features, which costs no gradient computation; else model
    and heads do together. The warmed-up weights are dropped: the training that follows starts as it would have without.

    Parameters
    ----------
    config
        With an auxiliary term.
    samples
        Training images, never test images.
    device
        Where to compute.
    warm_up
        Share of the config's length.
    callback
        Told of the batches of the warm-up done, and how many there are.

    Raises
    ------
    CeaseError
        If there are too few patients to hold some out, or a loss is not finite.
    """
    term = config.defence.auxiliary
    assert term is not None
    learning, held_out = _divide(samples)
    names = tuple(name for name, task in TASKS.items() if config.ndim in task.dims)
    defence = Defence(
        name="warm-up",
        terms=(SegmentationTerm(), AuxiliaryTerm(weight=1.0, tasks=names, clean=1, adversarial=0)),
    )
    objective = Objective(defence, build_model(config).to(device), config.patch).to(device)
    trained = config.start is not None
    plan = Plan(len(learning), config.batch_size, config.seed)
    whole = epochs_of(config, objective.gradients, plan.size * plan.batches)
    steps = max(1, round(warm_up * whole * plan.batches))
    learnt = list((objective.terms if trained else objective).parameters())
    rate = config.learning_rate * (HEADS_FASTER if trained else 1)
    optimiser = torch.optim.AdamW(learnt, rate, weight_decay=config.weight_decay)
    augmentation = Augmentation(config)
    objective.train()
    if trained:
        objective.model.eval().requires_grad_(False)
    epoch = done = 0
    while done < steps:
        for batch in batches(learning, plan, augmentation, epoch):
            there = replace(batch, images=batch.images.to(device), labels=batch.labels.to(device))
            loss = objective(there, None, done / steps).total
            if not torch.isfinite(loss):
                raise CeaseError(
                    f"choosing tasks, batch {done + 1} ({', '.join(dict.fromkeys(batch.names))}): the loss is "
                    f"{loss.item()}; lower the learning rate, or look for damaged images among these cases."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, config.clip)
            optimiser.step()
            done += 1
            if callback is not None:
                callback(done, steps)
            if done == steps:
                break
        epoch += 1
    objective.model.requires_grad_()
    heads = next(m for m in objective.terms if isinstance(m, Auxiliary)).heads
    seeds = plan.seeds(epoch, range(len(held_out)))
    patches = stack([augmentation(s, seed) for s, seed in zip(held_out, seeds, strict=True)], seeds)
    inner = config.defence.inner
    relevance = measure(
        objective.model,
        {name: heads[name] for name in names},  # type: ignore[misc]
        {name: TASKS[name] for name in names},
        patches.images.to(device),
        patches.labels.to(device),
        seeds,
        epsilon=inner.epsilon,
    )
    selection = select(
        relevance,
        term.rule,
        term.count,
        floor=term.floor,
        names=term.tasks,
        costly=term.costly,
        seed=config.seed,
    )
    # Measuring: the attack's steps, then a pass for segmentation, every task and every noise, on both views.
    measured = len(held_out) * (relevance.steps + 2 * (1 + len(names) + NOISES))
    warming = 0 if trained else steps * plan.size * objective.gradients
    return Chosen(relevance, selection, warming + measured)


def _divide(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Images to warm up with, and `HELD_OUT` images with foreground of other patients, a fourth of them at the most."""
    useful: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.labels.any():
            useful.setdefault(_patient(sample), []).append(sample)
    order = sorted(useful, key=by_hash)
    aside: dict[str, list[Sample]] = {}
    for patient in order[: len(order) // 4]:
        if sum(map(len, aside.values())) < HELD_OUT:
            aside[patient] = useful[patient]
    if not aside:
        raise CeaseError("choosing tasks needs at least four patients with foreground; add some, or name the tasks.")
    held_out = [sample for kept in aside.values() for sample in kept]
    return [s for s in samples if _patient(s) not in aside], held_out[:HELD_OUT]


def _patient(sample: Sample) -> str:
    return sample.patient or sample.case
