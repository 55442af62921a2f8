"""The study's page: tables and tests from the rows that `study.py` has written, nothing else."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cease_core.evaluation import paired
from cease_core.evaluation.protocol import Paired

Row = dict[str, str]
WORST, HEADLINE, TOP = "worst", 8, 10
PARTS = (
    ("cease", "at", "all of CEASE"),
    ("cease_adv", "at", "all of CEASE, more weight on the adversarial view"),
    ("cease_reuse", "at", "all of CEASE, with the reused pass"),
    ("cease_reuse", "reuse_at", "contrastive term and tasks, given the reused pass"),
    ("reuse_at", "at_adv", "reused pass and two steps, given the weights"),
    ("at_adv", "at", "more weight on the adversarial view"),
    ("cease_adv", "at_adv", "contrastive term and tasks, given those weights"),
    ("cease_4x", "at_4x", "all of CEASE, four times the budget"),
    ("cease_adv_4x", "at_4x", "the same, more weight on the adversarial view"),
    ("augment_at", "at", "augmented view"),
    ("contrastive_at", "augment_at", "contrastive term, given the augmented view"),
    ("contrastive_at", "at", "contrastive term and augmented view"),
    ("multitask_at", "at", "auxiliary tasks"),
    ("cease", "contrastive_at", "auxiliary tasks, given the contrastive term"),
    ("cease", "multitask_at", "contrastive term and augmented view, given the tasks"),
    ("at", "none", "adversarial training"),
    ("augment", "none", "augmented view alone"),
    ("contrastive", "augment", "contrastive term alone"),
    ("multitask", "none", "auxiliary tasks alone"),
    ("cease", "trades", "CEASE against TRADES"),
    ("cease", "segpgd_at", "CEASE against SegPGD-AT"),
)


class Group(NamedTuple):
    """A data set and an architecture."""

    dataset: str
    architecture: str


class Study:
    """Rows of the table and Dice case by case."""

    def __init__(self, rows: Path, cases: Path) -> None:
        self.rows = read_rows(rows)
        self.cases = [json.loads(line) for line in cases.read_text(encoding="utf-8").splitlines()]

    @property
    def groups(self) -> list[Group]:
        return list(dict.fromkeys(Group(r["dataset"], r["architecture"]) for r in self.rows))

    def presets(self, group: Group) -> list[str]:
        mine = [r["preset"] for r in self.rows if (r["dataset"], r["architecture"]) == group]
        return list(dict.fromkeys(mine))

    def worst(self, group: Group, preset: str, level: int) -> list[Row]:
        """One row a seed."""
        return [
            r
            for r in self.rows
            if (r["dataset"], r["architecture"]) == group
            and (r["preset"], r["attack"], int(r["epsilon"])) == (preset, WORST, level)
        ]

    def by_file(self, group: Group, preset: str, level: int | None, seeds: set[int]) -> dict[str, float]:
        """Dice of each file, mean over images and seeds; clean without a level."""
        values: dict[str, list[float]] = defaultdict(list)
        for entry in self.cases:
            if (entry["dataset"], entry["architecture"]) != group or entry["preset"] != preset:
                continue
            if int(entry["seed"]) in seeds:
                dice = entry["clean"] if level is None else entry[WORST][str(level)]
                for name, value in zip(entry["names"], dice, strict=True):
                    values[name].append(value)
        return {name: float(np.mean(v)) for name, v in values.items()}

    def seeds(self, group: Group, preset: str) -> set[int]:
        return {int(r["seed"]) for r in self.worst(group, preset, HEADLINE)}

    def compare(self, group: Group, first: str, second: str, level: int | None) -> Paired | None:
        """First minus second on the seeds that both have; None without such."""
        shared = self.seeds(group, first) & self.seeds(group, second)
        if not shared:
            return None
        a, b = (self.by_file(group, preset, level, shared) for preset in (first, second))
        names = sorted(a)
        return paired([a[n] for n in names], [b[n] for n in names])


def page(study: Study, planned: int) -> str:
    """The whole page as Markdown; ``planned`` is how many models there will be at least."""
    parts = [_opening(study, planned), _headline(study)]
    parts += [_group(study, group) for group in study.groups]
    parts += [_contributions(study), _targets(study), _attacks(study)]
    return "\n\n".join(parts) + "\n"


def tuning(rows: Sequence[Row]) -> str:
    """What was tried on validation cases."""
    commits = ", ".join(f"`{c}`" for c in dict.fromkeys(r["commit"] for r in rows))
    intro = f"""## What was tried on validation cases

Variants of presets at one budget, by `python benchmarks/study.py tune`, most of them in search of `cease_reuse`. Dice
on the validation cases, clean and under PGD-10 at 8/255, of the checkpoint that is kept. One seed each, so differences
of a hundredth or two say little. Code: {commits}."""
    head = (
        "data set",
        "variant",
        "preset, changed",
        "clean",
        "under attack",
        "epochs",
        "gradients",
        "seconds",
        "tasks",
    )
    lines = [
        (
            r["dataset"],
            r["variant"],
            " ".join(filter(None, (f"`{r['preset']}`", f"with {r['changes']}" if r["changes"] else ""))),
            _dice(r["clean_dice"]),
            _dice(r["robust_dice"]) if r["robust_dice"] else "",
            r["epochs"],
            r["gradients"],
            r["seconds"],
            r["tasks"].replace("+", " and "),
        )
        for r in sorted(rows, key=lambda r: (r["dataset"], float(r["robust_dice"] or 0)))
    ]
    return intro + "\n\n" + _table(head, lines)


def _opening(study: Study, planned: int) -> str:
    commits = ", ".join(f"`{c}`" for c in dict.fromkeys(r["commit"] for r in study.rows))
    cpus = ", ".join(dict.fromkeys(r["cpu"] for r in study.rows))
    runs = len({(r["dataset"], r["architecture"], r["preset"], r["seed"]) for r in study.rows})
    return f"""# The study

Which defence holds, and which part of CEASE does it. **{runs} of at least {planned} models so far**, each trained and
attacked by `python benchmarks/study.py run --data DIR`; the page is written by `python benchmarks/study.py page` from
`benchmarks/results/study.csv` and `study_cases.jsonl`. Code: {commits}. Hardware: {cpus}, one thread a run.

**How to read it.** For each data set and seed one undefended model is trained; every preset, `none` among them, goes
on from it for the *same number of gradient computations*: a pass forward and backward for one image, those of the
inner attack and of the selection of tasks included. So a defence that costs more sees fewer images. Inner attack:
three steps at 8/255, two of them for `reuse_at` and `cease_reuse`, the first of which also trains on the clean view.
`at_adv` is `at` with their weights, 0.3 for the clean view and 0.7 for the adversarial one. Sizes are reduced so that
a run takes minutes on one CPU core: images of about 64 × 64 (volumes of about 18 × 25 × 18), a residual U-Net.
*Worst* is, for each image, the lowest Dice over three attacks: SEA (18 members, 12 steps each, see
[attacks](attacks.md)), PGD-40 on soft Dice, and the adaptive attack on mask and features together; each goes through
the ε ladder. ε is in 1/255 of the intensity window, ℓ∞. ASR is the share of the images with a clean Dice of at least
½ whose Dice falls to half of it or lower. D is the mean of the smallest ε that does so, 10 where none does. AUC is
the area under Dice over ε from 0 to 10. *Seconds* are those on the clock of a machine that other runs share, pauses
included; *gradients* are what counts.

The checkpoint is the one that is best under attack on validation cases, whatever its clean Dice. (Rows from before
`6a43929`, but for `at_adv`, `reuse_at`, `cease_reuse` and `_4x`, were to lose at most two points of clean Dice where
any candidate kept that; it changed none of the choices that are left here.) In rows from before `9878736` choosing
tasks cost a tenth of the budget, since it warmed up the whole model with them: `cease` on cardiac, `cease_4x`,
`cease_adv`, `cease_adv_4x` and `multitask_at` have that handicap. Arms that end in `_4x` have four times the budget.
Test cases were put aside by a hash of the file's name: a patient's volume for cardiac and hippocampus, a picture
elsewhere, where the data do not say which pictures are of one patient. No training, tuning, selection of tasks or
choice of a checkpoint read them."""


PLAIN = "plain adversarial training"
HEADLINES = (
    ("cease", "at", "CEASE", PLAIN),
    (
        "cease_reuse",
        "at",
        "With an attack that shares its first pass with the clean view, and more weight on the adversarial one, CEASE",
        PLAIN,
    ),
    (
        "cease_reuse",
        "reuse_at",
        "How much of that is the attack's doing: CEASE",
        "adversarial training with the same attack and the same weights",
    ),
    (
        "cease_adv_4x",
        "at_4x",
        "With four times the budget and more weight on the adversarial view (0.7 against 0.3 for the clean one), CEASE",
        PLAIN,
    ),
)
"""An arm, the one it is compared with at equal gradient computations, how the sentence begins, and the other's name."""


def _headline(study: Study) -> str:
    parts = ["## CEASE against plain adversarial training"]
    parts.append(
        "Difference in worst Dice and in clean Dice, 95 % interval by bootstrap over files, Wilcoxon's signed-rank "
        "test, no correction for many tests."
    )
    for headline in HEADLINES:
        parts += _compared(study, *headline)
    return "\n\n".join(parts)


def _compared(study: Study, arm: str, rival: str, begins: str, against: str) -> tuple[str, str]:
    lines, better, worse = [], 0, 0
    for group in study.groups:
        robust, clean = (study.compare(group, arm, rival, level) for level in (HEADLINE, None))
        if robust is None or clean is None:
            continue
        better += robust.p < 0.05 and robust.mean > 0
        worse += robust.p < 0.05 and robust.mean < 0
        seeds = study.seeds(group, arm) & study.seeds(group, rival)
        figures = _difference(robust), _p(robust), _difference(clean), _p(clean)
        lines.append((group.dataset, group.architecture, len(seeds), robust.cases, *figures))
    said = (
        f"{begins} is above {against} at {HEADLINE}/255 with p < .05 on {better} of {len(lines)} "
        f"data sets, and below it with p < .05 on {worse} (`{arm}` − `{rival}`):"
    )
    head = ("data set", "architecture", "seeds", "files", f"worst Dice at {HEADLINE}/255", "p", "clean Dice", "p")
    return said, _table(head, lines)


def _group(study: Study, group: Group) -> str:
    head = (
        "preset",
        "seeds",
        "clean",
        "2",
        "4",
        "8",
        "10",
        "ASR at 8",
        "ASR at 10",
        "D",
        "AUC",
        "certified",
        "gradients",
        "seconds",
        "tasks",
    )
    lines = []
    for preset in study.presets(group):
        levels = {level: study.worst(group, preset, level) for level in (2, 4, 8, 10)}
        rows = levels[TOP]
        lines.append(
            (
                f"`{preset}`",
                len(rows),
                _spread(rows, "clean_dice"),
                *(_spread(levels[level], "robust_dice") for level in (2, 4, 8, 10)),
                _percent(_mean(levels[HEADLINE], "asr_drop")),
                _percent(_mean(rows, "asr_drop")),
                _number(_mean(rows, "d_censored")),
                _dice(_mean(rows, "auc")),
                _percent(_mean(rows, "certified")),
                f"{_mean(rows, 'gradients'):,.0f}".replace(",", " "),
                f"{_mean(rows, 'seconds'):.0f}",
                ", ".join(dict.fromkeys(r["tasks"].replace("+", " and ") for r in rows if r["tasks"])),
            )
        )
    first = study.worst(group, study.presets(group)[0], TOP)[0]
    text = f"{first['cases']} test images. Mean over seeds, and the range where there are several."
    return "\n\n".join([f"## {group.dataset}, {group.architecture}", text, _table(head, lines)])


def _contributions(study: Study) -> str:
    lines = []
    for first, second, what in PARTS:
        cells = []
        for group in study.groups:
            result = study.compare(group, first, second, HEADLINE)
            cells.append("" if result is None else f"{_difference(result)}, p {_p(result)}")
        lines.append((what, f"`{first}` − `{second}`", *cells))
    head = ("part", "comparison", *(f"{g.dataset}" for g in study.groups))
    intro = (
        f"Difference in worst-case Dice at {HEADLINE}/255 at equal gradient computations, paired as above; no "
        "correction for many tests."
    )
    return "\n\n".join(["## What each part contributes", intro, _table(head, lines)])


def _targets(study: Study) -> str:
    lines = []
    for group, preset in itertools.product(study.groups, ("cease", "cease_reuse")):
        none, cease = (study.worst(group, name, TOP) for name in ("none", preset))
        clean = study.compare(group, preset, "none", None)
        if none and cease and clean is not None:
            shares = (_percent(_mean(rows, "asr_drop")) for rows in (none, cease))
            lines.append((group.dataset, f"`{preset}`", *shares, f"{_difference(clean)}, p {_p(clean)}"))
    head = ("data set", "preset", f"ASR of `none` at {TOP}/255", f"its ASR at {TOP}/255", "clean Dice, minus `none`")
    intro = "The paper's abstract claims a success rate of 0 % and a gain in clean accuracy. Here, at reduced size:"
    return "\n\n".join(["## The paper's claims", intro, _table(head, lines)])


def _attacks(study: Study) -> str:
    rows = [r for r in study.rows if int(r["epsilon"]) == HEADLINE]
    names = list(dict.fromkeys(r["attack"] for r in rows))
    lines = []
    for group in study.groups:
        mine = [r for r in rows if (r["dataset"], r["architecture"]) == group]
        each = (_dice(_mean([r for r in mine if r["attack"] == name], "robust_dice")) for name in names)
        lines.append((group.dataset, *each))
    intro = f"Mean Dice at {HEADLINE}/255 over all models of a data set, under each attack and the worst of each image."
    return "\n\n".join(["## The attacks", intro, _table(("data set", *names), lines)])


def _mean(rows: Iterable[Row], column: str) -> float:
    values = [float(r[column]) for r in rows]
    return float(np.mean(values)) if values else math.nan


def _spread(rows: Sequence[Row], column: str) -> str:
    values = [float(r[column]) for r in rows]
    text = _dice(float(np.mean(values)))
    return text if len(values) < 2 else f"{text} ({_dice(min(values))}–{_dice(max(values))})"


def _dice(value: float | str) -> str:
    return f"{float(value):.3f}".replace("0.", ".", 1)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"


def _percent(value: float | str) -> str:
    return "" if math.isnan(float(value)) else f"{100 * float(value):.0f} %"


def _difference(result: Paired) -> str:
    return f"{_signed(result.mean)} [{_signed(result.low)}, {_signed(result.high)}]"


def _signed(value: float) -> str:
    return f"{'−' if round(value, 3) < 0 else '+'}{abs(value):.3f}".replace("0.", ".", 1)


def _p(result: Paired) -> str:
    return "<.001" if result.p < 0.001 else f"{result.p:.3f}".replace("0.", ".", 1)


def _table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    rows = [head, ["---"] * len(head), *([str(cell) for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Rows of a table, none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
