"""``cease relevance``: how auxiliary tasks relate to segmentation on a data set, and which a rule would choose."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from cease_core.cli.attack import choose_device
from cease_core.cli.listings import print_table, table_of
from cease_core.cli.outputs import prepare_folder
from cease_core.cli.progress import INTERRUPTED, make_progress
from cease_core.cli.recipe import RunRequest, as_yaml, changed, resolve
from cease_core.data.manifest import read_json
from cease_core.errors import CeaseError
from cease_core.tasks.relevance import Relevance, Rule, Selection, select
from cease_core.training.batches import load_samples
from cease_core.training.config import parse_config
from cease_core.training.selection import FIGURE, SCORES, TABLE, Chosen, choose_tasks

COUNT = 2
RULES = tuple(rule for rule in get_args(Rule) if rule != "manual")
"""Rules that need no names."""


def run_relevance(request: RunRequest, out: Path, *, rule: str | None, count: int | None, warm_up: float | None) -> int:
    """Measure the tasks, or take the scores that ``out`` holds; choose, write and print.

    Parameters
    ----------
    request
        Config, data and options of the training that the tasks are for; nothing, to choose again from ``out``.
    out
        Receives the scores, their table and a figure.
    rule, count
        How to choose, and how many; by default those of the config.
    warm_up
        Share of the training that the tasks are warmed up for.

    Returns
    -------
    int
        Exit code: 0, or 130 if Ctrl-C stopped it (nothing is written then).

    Raises
    ------
    CeaseError
        If an option, the data or the folder cannot be used.
    """
    if rule is not None and rule not in RULES:
        raise CeaseError(f"unknown rule {rule!r}; choose one of {', '.join(RULES)}.")
    if warm_up is not None and not 0 < warm_up <= 1:
        raise CeaseError(f"--warm-up is {warm_up:g}; give a share of the training, above 0 and up to 1.")
    scores = out / SCORES
    if request.data is None and request.config is None:
        if not scores.is_file():
            raise CeaseError(f"{out} holds no scores to choose from; add --data to measure them.")
        if replace(request, seed=None).describes or warm_up is not None:
            raise CeaseError(f"{out} holds scores already; choose from them with --rule, --count and --seed alone.")
        relevance = _load(scores)
        seed = request.seed or 0
        chosen = Chosen(relevance, select(relevance, _rule(rule or "weak"), count or COUNT, seed=seed), 0)
    else:
        if scores.is_file():
            again = shlex.join(["cease", "relevance", "--out", str(out), "--rule", rule or "weak"])
            raise CeaseError(f"{out} already holds scores; choose from them with `{again}`, or give another --out.")
        measured = _measure(request, out, rule, count, warm_up)
        if measured is None:
            print("Stopped; nothing was written.", file=sys.stderr)
            return INTERRUPTED
        chosen = measured
    chosen.write(out)
    _print(chosen.relevance, chosen.selection)
    print(f"Scores, table and figure: {', '.join(str(out / name) for name in (SCORES, TABLE, FIGURE))}")
    if chosen.tasks:
        print(f"Train with them: --set {shlex.quote('defence.auxiliary.tasks=[' + ', '.join(chosen.tasks) + ']')}")
    return 0


def _measure(
    request: RunRequest, out: Path, rule: str | None, count: int | None, warm_up: float | None
) -> Chosen | None:
    """The scores of a data set; None after Ctrl-C."""
    recipe = resolve(request)
    raw = recipe.raw
    if recipe.config.defence.auxiliary is None:
        raw = changed(raw, {"defence": "cease"})
    options = {"defence.auxiliary.rule": rule, "defence.auxiliary.count": count}
    raw = changed(raw, {name: value for name, value in options.items() if value is not None})
    config = parse_config(raw, str(request.config or "these options"))
    device = choose_device(request.device)
    prepare_folder(out)
    if request.config is None:
        print(as_yaml(raw), file=sys.stderr, end="")
    try:
        with make_progress() as progress:
            task = progress.add_task("relevance", total=None, note=f"reading {len(recipe.sides.training)} cases")
            samples = load_samples(recipe.sides.training, config)

            def show(done: int, total: int) -> None:
                note = "warming up all tasks" if done < total else "measuring gradients"
                progress.update(task, completed=done, total=total, note=note)

            extra = {} if warm_up is None else {"warm_up": warm_up}
            return choose_tasks(config, samples, device, callback=show, **extra)
    except KeyboardInterrupt:
        return None


def _load(path: Path) -> Relevance:
    content = read_json(path)
    try:
        return Relevance.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise CeaseError(f"{path} holds no scores as `cease relevance` writes them; measure them anew.") from error


def _rule(name: str) -> Rule:
    found: Rule = next(rule for rule in get_args(Rule) if rule == name)
    return found


def _print(relevance: Relevance, selection: Selection) -> None:
    table = table_of("name", "c_in", "c_theta", "u", "target from", "verdict")
    for name in relevance.weakest_first:
        score = relevance.scores[name]
        style = "bold" if name in selection.chosen else ""
        figures = (f"{v:.3f}" for v in (score.c_in, score.c_theta, score.learnable))
        table.add_row(name, *figures, score.derived_from, escape(selection.reasons[name]), style=style)
    print_table(table)
    Console(highlight=False).print(
        f"{escape(selection.summary)} Measured on {relevance.cases} held-out training cases, clean and under "
        f"PGD-{relevance.steps} at {relevance.epsilon * 255:.3g}/255; pure noise scores {relevance.noise_floor:.3f}.",
        soft_wrap=True,
    )
