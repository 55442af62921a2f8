"""``cease train``: a data set, and a config or a preset, to a model; with progress, and resumed after a stop."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from cease_core.cli.attack import choose_device
from cease_core.cli.outputs import prepare_folder
from cease_core.cli.progress import INTERRUPTED
from cease_core.cli.recipe import Recipe, RunRequest, as_yaml, find_data, is_main, resolve
from cease_core.cli.train_progress import TrainingProgress
from cease_core.data import read_split, write_split
from cease_core.data.manifest import read_json
from cease_core.defences import Objective
from cease_core.errors import CeaseError
from cease_core.io.files import write_text
from cease_core.models.card import ModelCard
from cease_core.tasks import TASKS
from cease_core.training import CheckpointSaved, Finished, TrainingConfig, load_config, train
from cease_core.training.batches import Plan
from cease_core.training.build import build_model, epochs_of
from cease_core.training.config import read_raw
from cease_core.training.selection import TABLE
from cease_core.training.state import STATE

CONFIG, DATA, SPLIT = "config.yaml", "data.json", "split.json"
"""What is kept in a run's folder for a resume: the config, where the data are, and which case is on which side."""

_HEADER = (
    "# Every entry of a training run. Edit a copy and start another one with: cease train COPY --data DIR --out OTHER\n"
)


def run_training(request: RunRequest, out: Path | None, *, resume: bool, dry_run: bool) -> int:
    """Train, showing the progress on stderr, and say at the end what came out.

    Parameters
    ----------
    request
        Config, data and options.
    out
        Receives the model, the state to resume from, config and split; not needed for a dry run.
    resume
        Continue the run in ``out``.
    dry_run
        Print the config (stdout) and what the run would cost (stderr) instead.

    Returns
    -------
    int
        Exit code: 0, or 130 if Ctrl-C stopped the run.

    Raises
    ------
    CeaseError
        If config, data or folder cannot be used.
    """
    if out is None and (resume or not dry_run):
        raise CeaseError("--out is missing; give a folder for the model, or look at the plan with --dry-run.")
    recipe = _resumed(request, out) if resume and out is not None else resolve(request)
    if dry_run:
        plan = plan_of(recipe)
        print(recipe.written, end="")
        print(plan, file=sys.stderr)
        return 0
    assert out is not None
    device = None if request.device == "auto" else str(choose_device(request.device))
    if is_main():
        _keep(recipe, out, resume)
        if request.config is None and not resume:
            print(as_yaml(recipe.raw), file=sys.stderr, end="")
            print(f"This config was made from the data; {out / CONFIG} has every entry.", file=sys.stderr)
    return _train(recipe, out, resume, device)


def _train(recipe: Recipe, out: Path, resume: bool, device: str | None) -> int:
    config, sides = recipe.config, recipe.sides
    waiting = f"reading {len(recipe.known)} cases"
    auxiliary = config.defence.auxiliary
    if auxiliary is not None and not auxiliary.tasks and not (resume and (out / STATE).is_file()):
        waiting += ", then choosing auxiliary tasks by their relevance"
    saved: CheckpointSaved | None = None
    finished: Finished | None = None
    events = train(config, sides.training, sides.validation, out, resume=resume, device=device)
    try:
        with TrainingProgress(config.name, waiting, speaks=is_main()) as progress:
            for event in events:
                progress.show(event)
                if isinstance(event, CheckpointSaved):
                    saved = event
                elif isinstance(event, Finished):
                    finished = event
    except KeyboardInterrupt:
        if is_main():
            print(_stopped(saved, out, device), file=sys.stderr)
        return INTERRUPTED
    if is_main() and finished is not None:
        print(_report(finished, recipe))
    return 0


def plan_of(recipe: Recipe) -> str:
    """What a run would cost, line by line: images, parameters, gradient computations.

    Raises
    ------
    CeaseError
        If the model or the defence cannot be built, or a case cannot be read.
    """
    config = recipe.config
    counts = {side: len(cases) for side, cases in recipe.sides.sides.items()}
    training = {case.name for case in recipe.sides.training}
    facts = [f for f in recipe.surveyed() if f.case.name in training]
    images = sum(f.shape[0] if f.ndim > config.ndim else 1 for f in facts)
    objective = Objective(config.defence.with_some_tasks(config.ndim), build_model(config), config.patch)
    plan = Plan(images, config.batch_size, config.seed)
    seen = plan.size * plan.batches
    epochs = epochs_of(config, objective.gradients, seen)
    an_epoch = objective.gradients * seen * config.defence.replays
    model = sum(p.numel() for p in objective.model.parameters())
    further = sum(p.numel() for p in objective.parameters()) - model
    rows = {
        "cases": ", ".join(f"{count} {side}" for side, count in counts.items()),
        "images": f"{images} to train on, {plan.size} a batch, batches an epoch: {plan.batches}",
        "parameters": f"{model:,}" + (f", and {further:,} that are dropped after the training" if further else ""),
        "gradient computations": f"{objective.gradients} an image and step, {an_epoch:,} an epoch, "
        f"{epochs * an_epoch:,} in {epochs} epochs",
    }
    auxiliary = config.defence.auxiliary
    if auxiliary is not None and not auxiliary.tasks:
        own = ", ".join(name for name, task in TASKS.items() if task.presents and config.ndim in task.dims)
        rows["auxiliary tasks"] = "chosen first, which costs extra"
        if auxiliary.own_pass:
            rows["auxiliary tasks"] += f"; {own} would need a pass of its own on each view they see"
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _keep(recipe: Recipe, out: Path, resume: bool) -> None:
    """Refuse to overwrite a run; keep what a resume needs."""
    if resume:
        return
    if (out / STATE).is_file():
        raise CeaseError(f"{out} already holds a training run; continue it with --resume, or choose another --out.")
    prepare_folder(out)
    write_text(out / CONFIG, _HEADER + recipe.written)
    write_split(out / SPLIT, recipe.sides, dataset=recipe.dataset.name, pattern=recipe.config.data.patients)
    write_text(out / DATA, json.dumps({"folder": str(recipe.folder)}, ensure_ascii=False) + "\n")


def _resumed(request: RunRequest, out: Path) -> Recipe:
    """What a run was started with, as it is kept in its folder.

    Other options may be repeated, not changed; only the data may have moved.
    """
    kept = out / CONFIG
    if not kept.is_file():
        raise CeaseError(f"{out} holds no run to resume; leave out --resume to start one.")
    config = load_config(kept)
    if request.data is None:
        content = read_json(out / DATA)
        folder = Path(str(content.get("folder", "") if isinstance(content, dict) else ""))
        if not folder.exists():
            raise CeaseError(f"the data of the run in {out} are no longer in {folder}; say with --data where they are.")
        request = replace(request, data=folder)
    if request.describes:
        _check_same(config, resolve(request).config, out)
    assert request.data is not None
    folder, dataset = find_data(request.data, config.data.folder, config.data.map)
    return Recipe(read_raw(kept), config, folder, dataset, read_split(out / SPLIT, dataset.cases))


def _check_same(before: TrainingConfig, now: TrainingConfig, out: Path) -> None:
    old, new = before.model_dump(), now.model_dump()
    changed = sorted(key for key in new if old[key] != new[key])
    if changed:
        raise CeaseError(
            f"the run in {out} was started with another config ({', '.join(changed)} differ); "
            "resume it with --out and --resume alone, or choose another --out."
        )


def _stopped(saved: CheckpointSaved | None, out: Path, device: str | None) -> str:
    """What is left of a stopped run, and the command that goes on."""
    words = ["cease", "train", "--out", str(out), "--resume", *(["--device", device] if device else [])]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        words = ["accelerate", "launch", "-m", "cease_core.cli", *words[1:]]
    if saved is not None:
        place = f"batch {saved.batch} of epoch {saved.epoch + 1}" if saved.batch else f"the end of epoch {saved.epoch}"
        state = f"Stopped; {saved.path} holds everything up to {place}."
    elif (out / STATE).is_file():
        state = f"Stopped; {out / STATE} is as it was before."
    else:
        state = "Stopped before anything was saved."
    return f"{state}\nContinue with: {shlex.join(words)}"


def _report(finished: Finished, recipe: Recipe) -> str:
    """Where the model is, how good, why this one, and what to do with it."""
    card, out, config = finished.card, finished.folder, recipe.config
    clean, robust = (card.metrics.get(f"validation_{kind}_dice", math.nan) for kind in ("clean", "robust"))
    attacked = not math.isnan(robust)
    told = f"Dice {clean:.3f}"
    if attacked:
        told += f", {robust:.3f} under PGD-10 at {config.defence.inner.epsilon * 255:.3g}/255"
    count = len(recipe.sides.validation)
    lines = [f"The model is in {out}: {told} on {count} validation {'case' if count == 1 else 'cases'}."]
    lines.append(f"Chosen: epoch {card.training['best_epoch']}, {_reason(card, config, attacked)}.")
    if finished.stopped_early:
        lines.append(f"Stopped early: {config.patience} validations in a row brought no better model.")
    chosen = card.training.get("selection", {}).get("chosen")
    if chosen is not None:
        lines.append(f"Auxiliary tasks: {', '.join(chosen) or 'none was fit'}; all scores are in {out / TABLE}.")
    case = (recipe.sides.test or recipe.sides.validation)[0]
    command = ["cease", "attack", case.image, "--labels", case.labels, "--model", out, "--out", out / "attack"]
    if case.further:
        command = ["cease", "attack", "SCAN", "--model", out, "--out", out / "attack"]
    elif case.classes is not None:
        command += ["--classes", case.classes]
    lines.append(f"Attack it: {shlex.join(str(word) for word in command)}")
    return "\n".join(lines)


def _reason(card: ModelCard, config: TrainingConfig, attacked: bool) -> str:
    if not attacked:
        return "the best Dice of all validations"
    bar = "the starting model" if config.start else "the best of the run"
    if card.training.get("keeps_clean_dice"):
        return f"the best under attack of those whose clean Dice is within {config.clean_drop:g} of {bar}"
    return f"the best under attack, as none kept its clean Dice within {config.clean_drop:g} of {bar}"
