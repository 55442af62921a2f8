"""Which of a run's checkpoints becomes the model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cease_core.attacks.gradient import PGD
from cease_core.attacks.on_scan import in_windows
from cease_core.attacks.problem import Problem
from cease_core.defences import Defence
from cease_core.models.checkpoint import load_model, read_heads, save_model
from cease_core.models.segmenter import SegmentationModel
from cease_core.training.batches import Sample, alike, stack

FOLDER = "candidates"
STEPS = 10


@dataclass(frozen=True)
class Candidate:
    """A checkpoint's validation: mean Dice, clean and under PGD-10 (NaN for undefended models)."""

    epoch: int
    clean: float
    robust: float

    @property
    def score(self) -> float:
        """What models are compared by."""
        return self.clean if math.isnan(self.robust) else self.robust

    def dominates(self, other: Candidate) -> bool:
        """At least as good on both counts."""
        return self.clean >= other.clean and self.score >= other.score


def choose(candidates: Sequence[Candidate], reference: float | None, drop: float) -> tuple[Candidate, bool]:
    """The best under attack among those that keep the clean Dice, and whether any does.

    Parameters
    ----------
    candidates
        At least one.
    reference
        Clean Dice of the undefended model on the same images; by default the best of the candidates.
    drop
        How much of it may be lost. Where all lose more, the best under attack is taken.
    """
    bar = (max(c.clean for c in candidates) if reference is None else reference) - drop
    keeping = [c for c in candidates if c.clean >= bar]
    # The earliest of equals.
    return max(keeping or candidates, key=lambda c: (c.score, -c.epoch)), bool(keeping)


class Candidates:
    """Checkpoints that no other dominates, each a folder on disk.

    A folder outlives its member until `sweep`: a run that is resumed from an older state still finds it.

    Parameters
    ----------
    out
        Folder of the run.
    reference, drop
        See `choose`.
    """

    def __init__(self, out: Path, reference: float | None, drop: float) -> None:
        self.folder, self.reference, self.drop = out / FOLDER, reference, drop
        self.members: list[Candidate] = []
        self.validations = 0
        self.chosen_at = 0

    def add(self, candidate: Candidate, model: SegmentationModel, heads: Mapping[str, Tensor] | None = None) -> bool:
        """Take in a candidate and write its model, and the heads of that moment; whether another is the best now."""
        self.validations += 1
        if any(m.dominates(candidate) for m in self.members):
            return False
        before = self.best if self.members else None
        save_model(model, self._place(candidate), heads=heads)
        self.members = [m for m in self.members if not candidate.dominates(m)] + [candidate]
        if self.best == before:
            return False
        self.chosen_at = self.validations
        return True

    @property
    def best(self) -> Candidate:
        return choose(self.members, self.reference, self.drop)[0]

    @property
    def keeps_clean(self) -> bool:
        """Whether the best one is within the allowed drop of the clean Dice."""
        return choose(self.members, self.reference, self.drop)[1]

    @property
    def stale(self) -> int:
        """Validations since the best model last changed."""
        return self.validations - self.chosen_at

    def load(self) -> SegmentationModel:
        """The best model."""
        return load_model(self._place(self.best))

    def heads(self) -> dict[str, Tensor] | None:
        """The best model's heads, if it has any."""
        return read_heads(self._place(self.best))

    def sweep(self) -> None:
        """Remove the folders of those that are no members."""
        known = {self._place(m) for m in self.members}
        for folder in self.folder.glob("epoch_*"):
            if folder not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Forget all, on disk too."""
        self.members = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "members": [asdict(m) for m in self.members],
            "validations": self.validations,
            "chosen_at": self.chosen_at,
            "reference": self.reference,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.members = [Candidate(**m) for m in state["members"]]
        self.validations, self.chosen_at = state["validations"], state["chosen_at"]
        self.reference = state["reference"]

    def _place(self, candidate: Candidate) -> Path:
        return self.folder / f"epoch_{candidate.epoch:05d}"


def validate(
    model: SegmentationModel, samples: Sequence[Sample], defence: Defence, device: torch.device, batch: int
) -> tuple[float, float]:
    """Mean Dice over images with foreground, clean and under PGD-10 at the training's ε (NaN without a defence)."""
    attack = PGD(epsilon=defence.inner.epsilon, steps=STEPS) if defence.attacks else None
    clean: list[Tensor] = []
    robust: list[Tensor] = []
    for indices in alike(samples, batch):
        part = stack([samples[i] for i in indices], ())
        seen = in_windows(model, tuple(part.images.shape[2:]))
        problem = Problem.pose(seen, part.images.to(device), part.labels.to(device), "dice_ce")
        clean.append(problem.clean().score.cpu())
        if attack is not None:
            robust.append(attack.run(problem).dice.cpu())
    return tuple(float(torch.cat(r).mean()) if r else math.nan for r in (clean, robust))  # type: ignore[return-value]


def worth_validating(samples: Sequence[Sample], most: int | None) -> list[Sample]:
    """Images with foreground, evenly thinned out to ``most``."""
    useful = [s for s in samples if s.labels.any()]
    if most is None or len(useful) <= most:
        return useful
    return [useful[i * len(useful) // most] for i in range(most)]
