"""``cease train``: a training config and a folder of cases to a model, with progress."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path

from cease_core.cli.outputs import prepare_folder, write_text
from cease_core.cli.progress import INTERRUPTED, make_progress
from cease_core.data import find_cases, split_cases
from cease_core.data.cases import Case
from cease_core.errors import CeaseError
from cease_core.training import EpochDone, TrainingConfig, load_config, train
from cease_core.training.trainer import STATE

CONFIG = "config.json"


def run_training(config_path: Path, data: Path, out: Path, *, resume: bool) -> int:
    """Train, showing every epoch on stderr.

    Parameters
    ----------
    config_path
        Training config.
    data
        Folder with ``images/`` and ``labels/``, or its parent.
    out
        Receives the model, the state to resume from, and the config.
    resume
        Continue from that state.

    Returns
    -------
    int
        Exit code: 0, or 130 if Ctrl-C stopped the run.

    Raises
    ------
    CeaseError
        If config, data or folder cannot be used.
    """
    config = load_config(config_path)
    training, validation = _cases(config, data)
    _check_folder(config, out, resume)
    again = shlex.join(["cease", "train", str(config_path), "--data", str(data), "--out", str(out), "--resume"])
    epoch = 0
    try:
        with make_progress() as progress:
            task = progress.add_task(config.name, total=config.epochs, note=f"reading {len(training)} cases")
            for event in train(config, training, validation, out, resume=resume):
                if not isinstance(event, EpochDone):
                    continue
                epoch = event.epoch
                progress.update(task, completed=epoch, total=event.epochs, note=describe(event))
                if progress.disable:  # a log file gets a line an epoch instead of a bar
                    print(f"epoch {epoch}/{event.epochs}: {describe(event)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        saved = (out / STATE).is_file()
        print(
            f"Stopped; all finished epochs are saved. Continue with: {again}"
            if saved
            else f"Stopped before the first epoch was finished. Start again with: {again.removesuffix(' --resume')}",
            file=sys.stderr,
        )
        return INTERRUPTED
    print(f"The best model is in {out}; try it with: {shlex.join(['cease', 'attack', 'SCAN', '--model', str(out)])} …")
    return 0


def describe(event: EpochDone) -> str:
    """Loss and, after a validation, Dice of one epoch.

    Examples
    --------
    >>> describe(EpochDone(1, 5, 0.25, 0.9, float("nan"), 10, 2.0))
    'loss 0.250, clean Dice 0.900'
    """
    figures = (("loss", event.loss), ("clean Dice", event.clean_dice), ("robust Dice", event.robust_dice))
    return ", ".join(f"{name} {value:.3f}" for name, value in figures if not math.isnan(value))


def _cases(config: TrainingConfig, data: Path) -> tuple[list[Case], list[Case]]:
    inner = data / config.data.folder
    folder = inner if inner.is_dir() and not (data / "images").is_dir() else data
    training, validation = split_cases(find_cases(folder), config.data.validation)
    if not training or not validation:
        raise CeaseError(
            f"{folder}: {len(training) + len(validation)} cases with validation = {config.data.validation} leave "
            f"{len(training)} to train and {len(validation)} to validate; add cases or change data.validation."
        )
    return training, validation


def _check_folder(config: TrainingConfig, out: Path, resume: bool) -> None:
    """Refuse to overwrite a run, or to resume one that is missing or another; keep the config beside it."""
    started = (out / STATE).is_file()
    if resume and not started:
        raise CeaseError(f"{out} holds no {STATE} to resume from; leave out --resume to start a new run.")
    if started and not resume:
        raise CeaseError(f"{out} already holds a training run; continue it with --resume, or choose another --out.")
    prepare_folder(out)
    kept = out / CONFIG
    if resume and kept.is_file():
        before, now = load_config(kept).model_dump(), config.model_dump()
        changed = sorted(key for key in now if before[key] != now[key])
        if changed:
            raise CeaseError(
                f"the run in {out} was started with another config ({', '.join(changed)} differ); "
                f"resume it with {kept}, or choose another --out."
            )
    write_text(kept, config.model_dump_json(indent=1) + "\n")
