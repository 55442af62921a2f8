"""What works on a training run: ``python -m napari_cease.jobs.training_process RUN``.

It iterates the same generator as ``cease train`` and writes down what that yields. torch comes in only after the
run's folder says that somebody works on it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cease_core.errors import CeaseError
from cease_core.io.files import write_text
from napari_cease.jobs.process import Ended, work
from napari_cease.jobs.training import EVENTS, Job, Preview, Run, publish

if TYPE_CHECKING:
    from cease_core.data import Case, Split
    from cease_core.models import SegmentationModel
    from cease_core.training import CheckpointSaved, TrainingConfig
    from cease_core.training.batches import Sample
    from cease_core.training.events import Event

PREVIEW_SHARE = 0.05
"""Share of the training time that pictures of a validation case may take."""
SAVE_SHARE = 0.02
"""Share of the time that saving the state within an epoch may take."""
_SECONDS_A_PARAMETER = 8e-8
"""To write weights, their average and two moments of each to a slow disk: 16 bytes at 200 MB/s."""
_LEAST, _MOST = 0.2, 5.0
"""Seconds between two steps that are told; they grow with the run, so that its file stays small."""


def main(folder: str) -> int:
    """Work on the run in a folder until it ends; returns the exit code."""
    run = Path(folder)
    return work(run, "training", lambda: ("finished", {"model": str(train_run(run))}))


def train_run(folder: Path) -> Path:
    """Train, from the beginning or from the state saved last; returns the model's folder in the library.

    Raises
    ------
    CeaseError
        If the data, the config or the folder cannot be used.
    Ended
        If somebody has asked for it.
    """
    # Before what takes seconds to load.
    job = Job.read(folder)

    import torch

    from cease_core.data import read_split
    from cease_core.training import load_config, train
    from cease_core.training.state import STATE

    torch.set_num_threads(job.threads)
    sides = read_split(folder / "split.json", _dataset_cases(folder))
    config = load_config(folder / "config.yaml")
    resumed = (folder / STATE).is_file()
    journal = Journal(folder / EVENTS)
    choosing = config.defence.auxiliary is not None and not config.defence.auxiliary.tasks and not resumed
    journal.write(
        "began", resumed=resumed, choosing=choosing, cases={side: len(cases) for side, cases in sides.sides.items()}
    )
    if job.minutes is not None and not resumed:
        config = fitted(config, sides, folder, job)
    witness = Witness(config, sides, folder, job)
    save_every = job.save_every
    if save_every is None:
        save_every = max(5.0, witness.parameters * _SECONDS_A_PARAMETER / SAVE_SHARE)
    events = train(
        config, sides.training, sides.validation, folder, resume=True, device=job.device, save_every=save_every
    )
    return _follow(events, folder, job, config, journal, witness)


def _follow(
    events: Iterator[Event], folder: Path, job: Job, config: TrainingConfig, journal: Journal, witness: Witness
) -> Path:
    from cease_core.training import CheckpointSaved, EpochDone, Finished, StepDone, TasksChosen

    epochs = 0
    for event in events:
        if isinstance(event, StepDone):
            journal.step(asdict(event))
        elif isinstance(event, TasksChosen):
            journal.write("tasks", tasks=event.tasks)
        elif isinstance(event, EpochDone):
            epochs = event.epochs
            journal.write("epoch", **asdict(event))
        elif isinstance(event, CheckpointSaved):
            if event.batch == 0:
                witness.read(event)
                journal.write("saved", epoch=event.epoch, batch=0, learning_rate=witness.learning_rate)
                if witness.look(event.epoch, last=event.epoch == epochs):
                    journal.write("preview", epoch=event.epoch)
            else:
                journal.write("saved", epoch=event.epoch, batch=event.batch)
        elif isinstance(event, Finished):
            card = event.card
            model = publish(folder, job.library, config.name)
            journal.write(
                "finished",
                model=str(model),
                metrics=card.metrics,
                best_epoch=card.training.get("best_epoch"),
                stopped_early=event.stopped_early,
            )
            return model
        asked = Run(folder).asked
        if asked == "stop" or (asked == "pause" and isinstance(event, CheckpointSaved)):
            raise Ended("stopped" if asked == "stop" else "paused")
    raise CeaseError("the training ended without a model; start a new run.")


def _dataset_cases(folder: Path) -> list[Case]:
    from cease_core.data import find_cases
    from cease_core.data.manifest import read_json

    content = read_json(folder / "data.json")
    data = Path(str(content.get("folder", "") if isinstance(content, dict) else ""))
    if not data.exists():
        raise CeaseError(f"the data of this run are no longer in {data}; put them back there, then resume.")
    return find_cases(data)


def fitted(config: TrainingConfig, sides: Split, folder: Path, job: Job) -> TrainingConfig:
    """The config with as many epochs as take ``job.minutes``, by the time that a few steps take now; also on disk.

    Neither is the choice of tasks counted, nor are validations that come after those steps.
    """
    import shutil

    import yaml

    from cease_core.training import StepDone, train
    from cease_core.training.config import parse_config, read_raw

    assert job.minutes is not None
    trial = folder / "trial"
    short = config.model_copy(
        update={"defence": config.defence.with_some_tasks(config.ndim), "epochs": 10**6, "budget": None}
    )
    took: list[float] = []
    batches = 1
    last = began = time.monotonic()
    for event in train(short, sides.training, sides.validation, trial, device=job.device, save_every=math.inf):
        if Run(folder).asked:
            raise Ended("stopped")
        if isinstance(event, StepDone):
            # The first step allocates; the others are what a step costs.
            now = time.monotonic()
            took += [] if last == began else [now - last]
            last, batches = now, event.batches
            if len(took) >= 3 and now - began > 1:
                break
    shutil.rmtree(trial, ignore_errors=True)
    epochs = max(1, round(60 * job.minutes / (sorted(took)[len(took) // 2] * batches)))
    raw = {k: v for k, v in read_raw(folder / "config.yaml").items() if k != "budget"} | {"epochs": epochs}
    write_text(folder / "config.yaml", yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
    return parse_config(raw, "the run's config")


class Journal:
    """Events as JSON lines, each on disk as soon as it has happened."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a", encoding="utf-8")
            # What a killed process has left of a line must not swallow the next one.
            if self._file.tell():
                self._file.write("\n")
        except OSError as error:
            raise CeaseError(f"cannot write {path}: {error.strerror}; make room there, then resume.") from error
        self._began = self._told = time.monotonic()

    def step(self, figures: dict[str, Any]) -> None:
        """A batch; only so many are told."""
        now = time.monotonic()
        pause = min(_MOST, max(_LEAST, (now - self._began) / 1000))
        if now - self._told >= pause or figures["epoch"] == figures["batch"] == 1:
            self._told = now
            self.write("step", **figures)

    def write(self, kind: str, **figures: Any) -> None:
        """Any event. NaN, which JSON does not know, becomes null."""
        figures = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
        try:
            self._file.write(json.dumps({"kind": kind, **figures}) + "\n")
            self._file.flush()
        except OSError as error:
            raise CeaseError(
                f"cannot write {self._file.name}: {error.strerror}; make room there, then resume."
            ) from error


class Witness:
    """Looks at the state that was saved: the learning rate, and one validation image under attack."""

    def __init__(self, config: TrainingConfig, sides: Split, folder: Path, job: Job) -> None:
        import torch

        from cease_core.models import best_device
        from cease_core.training.build import build_model

        self.config, self.folder = config, folder
        self.device = torch.device(job.device) if job.device else best_device()
        self.model: SegmentationModel = build_model(config).eval().requires_grad_(False)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.sample = _telling(sides, config)
        self._state: dict[str, Any] = {}
        self._began = time.monotonic()
        self._spent = 0.0

    def read(self, saved: CheckpointSaved) -> None:
        """Take in a state."""
        from cease_core.training.state import load_state

        self._state = load_state(saved.path, {})

    @property
    def learning_rate(self) -> float:
        """What the next step will take."""
        return float(self._state["optimiser"]["param_groups"][0]["lr"])

    def look(self, epoch: int, *, last: bool) -> bool:
        """Attack the image with the averaged weights and keep the picture; false where that would cost too much."""
        began = time.monotonic()
        if not last and self._spent > PREVIEW_SHARE * (began - self._began):
            return False
        weights = {k.removeprefix("module."): v for k, v in self._state["average"].items() if k.startswith("module.")}
        self.model.load_state_dict(weights)
        self._picture(epoch).write(self.folder)
        self._spent += time.monotonic() - began
        return True

    def _picture(self, epoch: int) -> Preview:
        from cease_core.attacks import PGD
        from cease_core.attacks.on_scan import in_windows
        from cease_core.attacks.problem import Problem
        from cease_core.models.segmenter import predict_labels

        sample, epsilon = self.sample, self.config.defence.inner.epsilon
        model = self.model.to(self.device)
        image, labels = sample.image[None].to(self.device), sample.labels.long().to(self.device)
        problem = Problem.pose(in_windows(model, tuple(image.shape[2:])), image, labels, "dice_ce")
        clean = problem.clean()
        result = PGD(epsilon=epsilon, steps=10).run(problem)
        masks = [predict_labels(x, model.mode)[0].cpu().numpy().astype(np.uint8) for x in (clean.logits, result.logits)]
        model.cpu()
        reference = sample.labels[0].numpy().astype(np.uint8)
        # Of a volume, the slice that shows most of the structures.
        at: tuple[Any, ...] = () if reference.ndim == 2 else (int((reference > 0).sum(axis=(1, 2)).argmax()),)
        return Preview(
            sample.case,
            epoch,
            epsilon,
            sample.image.numpy()[(slice(None), *at)].astype(np.float32),
            reference[at],
            masks[0][at],
            masks[1][at],
            (float(clean.score), float(result.dice)),
        )


def _telling(sides: Split, config: TrainingConfig) -> Sample:
    """The image of the first validation case with foreground that shows most of it; a volume is cut to a patch."""
    from dataclasses import replace

    from cease_core.training.batches import load_samples

    for case in sides.validation:
        samples = load_samples([case], config)
        best = max(samples, key=lambda s: int((s.labels > 0).sum()))
        if not best.labels.any():
            continue
        if config.ndim == 2:
            return best
        found = best.labels[0].nonzero()
        middle = ((found.amin(0) + found.amax(0)) // 2).tolist()
        place = []
        for centre, edge, size in zip(middle, config.patch, best.labels.shape[1:], strict=True):
            first = min(max(0, centre - edge // 2), max(0, size - edge))
            place.append(slice(first, first + min(edge, size)))
        cut = (slice(None), *place)
        return replace(best, image=best.image[cut].contiguous(), labels=best.labels[cut].contiguous())
    raise CeaseError("no validation case has foreground; add cases or change the share for validation.")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
