"""The study: which defence holds, which part of CEASE does it, at equal gradient computations.

    python benchmarks/study.py run --data DIR [--only dataset=polyp preset=cease,at seed=0] [--minutes 60]
    python benchmarks/study.py tune --data DIR --arm "lighter:cease:auxiliary.weight=0.1" [--only dataset=polyp]
    python benchmarks/study.py page

``run`` trains what is missing from ``benchmarks/results/study.csv``, one model after the other, attacks it and
appends its rows, so that it can be stopped at any time and grows over several sittings; several processes may run
side by side. ``tune`` trains variants of presets likewise and writes down their Dice on the validation cases.
``page`` writes ``docs/study.md`` from the rows.

For each data set and seed an undefended model is trained first. Every preset, ``none`` among them, goes on from it
for the same budget of gradient computations, the selection of tasks included. Test cases are put aside by a hash of
the file's name before anything else (a file is a patient's volume, or a picture of a patient that is not named); no
training, selection, tuning or checkpoint choice reads them. Images are
attacked at the model's working resolution, where a perturbation of ε per pixel is one of ε per pixel of the
original, too.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from provenance import RESULTS, ROOT, commit, provenance
from study_page import Study, page, read_rows, tuning

from cease_core.attacks import PGD, SEA, Attack, ladder
from cease_core.attacks.features import MixedAttack
from cease_core.attacks.problem import Problem
from cease_core.data import Case, find_cases
from cease_core.data.splits import Split, split
from cease_core.defences import PRESETS, Objective
from cease_core.defences.smoothing import certify
from cease_core.evaluation import asr_drop, curve_area, d_censored
from cease_core.evaluation.protocol import eligible
from cease_core.models import SegmentationModel, load_model, prepare
from cease_core.models.card import PALETTE, ModelCard
from cease_core.training import TasksChosen, TrainingConfig, train
from cease_core.training.batches import alike, load_samples, stack
from cease_core.training.build import build_model, epochs_of
from cease_core.training.choice import worth_validating

ROWS, CASES = RESULTS / "study.csv", RESULTS / "study_cases.jsonl"
TUNING = RESULTS / "study_tuning.csv"
MODELS, TRIED = ROOT / "runs" / "study", ROOT / "runs" / "tuning"
# Asked before rows are added to a tracked file, which would make the tree look changed.
COMMIT = commit()
DONE = "done"
VALIDATIONS = 6
AT_ONCE = 16
PAGE = ROOT / "docs" / "study.md"
LEVELS = (2, 4, 8, 10)
ATTACKS: dict[str, Attack] = {
    "sea": SEA(steps=12),
    "pgd": PGD(steps=40, loss="soft_dice"),
    "adaptive": MixedAttack(steps=20),
}
WORST = "worst"
KEY = ("dataset", "architecture", "preset", "seed")
COLUMNS = (
    "dataset", "architecture", "preset", "seed", "epsilon", "attack", "clean_dice", "robust_dice", "asr_drop",
    "d_censored", "auc", "certified", "cases", "eligible", "gradients", "seconds", "epochs", "tasks", "cpu", "commit",
)  # fmt: skip

TUNING_COLUMNS = (
    "dataset", "architecture", "variant", "seed", "preset", "changes", "clean_dice", "robust_dice", "gradients",
    "seconds", "epochs", "tasks", "cpu", "commit",
)  # fmt: skip

# Alike for every arm: an inner attack of three steps, and a contrastive term that a CPU can afford.
STUDY = {"inner.steps": 3, "contrastive.anchors": 32, "contrastive.keys": 1024}


@dataclass(frozen=True)
class Dataset:
    """A folder of cases and how to train on it.

    Parameters
    ----------
    start, budget
        Gradient computations of the undefended start, and of each preset after it.
    test, validation
        Shares of the patients.
    most
        Upper bound on the cases, where more would only take longer to read.
    images
        Test images that are attacked, evenly taken from all with foreground.
    """

    folder: str
    config: dict[str, Any]
    start: int
    budget: int
    test: float = 0.25
    validation: float = 0.1
    most: int | None = None
    images: int = 32

    def sides(self, data: Path) -> Split:
        """Training, validation and test cases."""
        whole = split(find_cases(data / self.folder), validation=self.validation, test=self.test)
        count = sum(len(side) for side in whole.sides.values())
        if self.most is None or count <= self.most:
            return whole
        return Split(*(_thin(side, self.most * len(side) // count) for side in whole.sides.values()))


def _thin(cases: tuple[Case, ...], count: int) -> tuple[Case, ...]:
    return tuple(cases[i * len(cases) // count] for i in range(count))


def _classes(*names: str) -> list[dict[str, Any]]:
    return [{"id": i, "name": name, "color": PALETTE[i - 1]} for i, name in enumerate(names, start=1)]


_PICTURE = {
    "ndim": 2, "channels": 3, "mode": "binary", "window": {"kind": "fixed", "low": 0, "high": 255},
    "patch": [64, 64], "mirror": [0, 1], "quarter_turns": True,
}  # fmt: skip
_MR = {"channels": 1, "window": {"kind": "percentile", "low": 0.5, "high": 99.5}}

DATASETS = {
    "polyp": Dataset(
        "polyp_hyperkvasir", _PICTURE | {"classes": _classes("polyp"), "downsample": 4}, start=30_000, budget=30_000
    ),
    "cardiac": Dataset(
        "cardiac_mr_sunnybrook",
        _MR
        | {"ndim": 2, "mode": "binary", "classes": _classes("myocardium"), "patch": [64, 64]}
        | {"mirror": [0, 1], "quarter_turns": True},
        start=20_000,
        budget=30_000,
        validation=0.15,
    ),
    "nuclei": Dataset(
        "nuclei_histology",
        _PICTURE | {"classes": _classes("nucleus"), "downsample": 2},
        start=10_000,
        budget=30_000,
        validation=0.15,
        images=12,
    ),
    "dermoscopy": Dataset(
        "dermoscopy_isic2017_train256",
        _PICTURE | {"classes": _classes("lesion"), "downsample": 4},
        start=20_000,
        budget=30_000,
        most=600,
    ),
    "hippocampus": Dataset(
        "hippocampus_mri",
        _MR
        | {"ndim": 3, "mode": "multiclass", "classes": _classes("anterior", "posterior"), "downsample": 2}
        | {"patch": [20, 28, 20], "mirror": [2], "batch_size": 8, "architecture_args": {"channels": [16, 32, 64]}},
        start=6_000,
        budget=16_000,
    ),
}


@dataclass(frozen=True)
class Arm:
    """A preset with changes, under a name.

    Parameters
    ----------
    times
        How many times the data set's budget it gets.
    tried
        Whether it is a variant that is looked at on validation cases alone.
    """

    name: str
    preset: str
    changes: dict[str, Any] = field(default_factory=dict)
    times: int = 1
    tried: bool = False

    def defence(self) -> dict[str, Any]:
        """For a config; changes of the study that the preset has no place for are left out."""
        kinds = {term.kind for term in PRESETS[self.preset].terms} | {"inner"}
        fixed = {key: value for key, value in STUDY.items() if key.split(".")[0] in kinds}
        # Those whose number of steps is what they are.
        if self.preset in ("fast_at", "free_at") or PRESETS[self.preset].inner.reuse:
            fixed.pop("inner.steps")
        return {"preset": self.preset, **fixed, **self.changes}


MOSTLY_ATTACKED = {"segmentation.clean.weight": 0.3, "segmentation.adversarial.weight": 0.7}
CORE = (
    *(Arm(name, name) for name in ("none", "at", "cease", "contrastive_at", "multitask_at")),
    # What the augmented view alone does for adversarial training.
    Arm("augment_at", "contrastive_at", {"contrastive.weight": 0}),
    Arm("cease_adv", "cease", MOSTLY_ATTACKED),
    Arm("at_adv", "at", MOSTLY_ATTACKED),
    Arm("reuse_at", "reuse_at"),
    Arm("cease_reuse", "cease_reuse"),
    Arm("cease_reuse_own_pass", "cease_reuse", {"auxiliary.own_pass": True}),
    *(Arm(name, name) for name in ("trades", "segpgd_at", "augment", "contrastive", "multitask")),
)
"""In the order in which they are run: what the claim rests on first."""

LONGER = tuple(
    replace(arm, name=f"{arm.name}_4x", times=4)
    for arm in CORE
    if arm.name in ("at", "cease", "cease_adv", "at_adv", "reuse_at", "cease_reuse")
)
"""Whether the budget decides who is ahead."""


@dataclass(frozen=True)
class Job:
    """One model to train and attack."""

    dataset: str
    arm: Arm
    seed: int
    architecture: str = "residual_unet"

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.dataset, self.architecture, self.arm.name, str(self.seed)

    @property
    def folder(self) -> Path:
        return (TRIED if self.arm.tried else MODELS) / "-".join(self.key)

    @property
    def start(self) -> Job:
        """The undefended model that it goes on from."""
        return Job(self.dataset, Arm("start", "none"), self.seed, self.architecture)

    def config(self) -> TrainingConfig:
        """Of its training."""
        dataset, begins = DATASETS[self.dataset], self.arm.name == "start"
        raw = {
            "name": "-".join(self.key),
            "title": f"{self.dataset}, {self.arm.name}",
            "data": {"name": self.dataset, "folder": dataset.folder},
            "architecture": self.architecture,
            "defence": self.arm.defence(),
            "budget": dataset.start if begins else self.arm.times * dataset.budget,
            # The best under attack, whatever it costs: with a bound on that, a model far from trained may be chosen.
            "clean_drop": 1.0,
            "learning_rate": 2e-3 if begins else 1e-3,
            "ema": 0.99,
            "validate_every": 10_000,
            "validation_images": 32,
            "start": None if begins else str(self.start.folder),
            "seed": self.seed,
        }
        return TrainingConfig.model_validate(raw | dataset.config)


def fit(job: Job, sides: Split) -> None:
    """Train a model unless it is there; an interrupted training goes on."""
    if (job.folder / DONE).is_file():
        return
    if job.arm.name != "start":
        with alone(job.start.folder):
            fit(job.start, sides)
    config = job.config()
    config = config.model_copy(update={"validate_every": max(1, _epochs(config, sides) // VALIDATIONS)})
    for event in train(config, sides.training, sides.validation, job.folder, resume=True):
        if isinstance(event, TasksChosen):
            print(event.report, flush=True)
    (job.folder / DONE).touch()


def _epochs(config: TrainingConfig, sides: Split) -> int:
    """How many the budget allows, about: the choice of tasks is not counted."""
    defence = config.defence.with_some_tasks(config.ndim)
    cost = Objective(defence, build_model(config), config.patch).gradients
    return epochs_of(config, cost, len(load_samples(sides.training, config)), 0)


def attack(job: Job, cases: Sequence[Case]) -> tuple[list[str], np.ndarray, dict[str, np.ndarray], float]:
    """Names of the images, clean Dice (images,), Dice under each attack (levels, images), and the certified share."""
    model = load_model(job.folder)
    model = SegmentationModel(model.card.model_copy(update={"downsample": 1}), model.backbone).eval()
    fast = prepare(model)
    samples = worth_validating(load_samples(cases, job.config()), DATASETS[job.dataset].images)
    names = [s.case for s in samples]
    clean = np.zeros(len(samples))
    found = {name: np.ones((len(LEVELS), len(samples))) for name in ATTACKS}
    certified = []
    for indices in alike(samples, AT_ONCE):
        batch = stack([samples[i] for i in indices], ())
        images, labels = batch.images, batch.labels
        for name, chosen in ATTACKS.items():
            problem = Problem.pose(fast, images, labels, chosen.loss)
            clean[indices] = problem.clean().score.numpy()
            for rung in ladder(chosen, problem, [level / 255 for level in LEVELS]):
                row = LEVELS.index(round(rung.epsilon * 255))
                found[name][row, indices] = rung.result.dice.numpy()
        certificate = certify(fast, images[:4], n=100, seed=0)
        certified += certificate.certified_share(labels[:4]).tolist()
    found[WORST] = np.minimum.reduce(list(found.values()))
    return names, clean, found, float(np.mean(certified))


def rows_of(
    job: Job, names: list[str], clean: np.ndarray, found: dict[str, np.ndarray], certified: float
) -> list[dict[str, Any]]:
    """Rows of the table, one an attack and level."""
    card = load_model(job.folder).card
    rows = []
    for (name, dice), (row, level) in itertools.product(found.items(), enumerate(LEVELS)):
        rows.append(
            {
                "dataset": job.dataset,
                "architecture": job.architecture,
                "preset": job.arm.name,
                "seed": job.seed,
                "epsilon": level,
                "attack": name,
                "clean_dice": round(float(clean.mean()), 4),
                "robust_dice": round(float(dice[row].mean()), 4),
                "asr_drop": round(asr_drop(clean, dice[row]), 4),
                "d_censored": round(d_censored(clean, dice, LEVELS), 3),
                "auc": round(curve_area(clean, dice, LEVELS), 4),
                "certified": round(certified, 4),
                "cases": len(names),
                "eligible": int(eligible(clean).sum()),
                **effort(card),
            }
        )
    return rows


def effort(card: ModelCard) -> dict[str, Any]:
    """What a training cost, which tasks it chose, and where it ran, as columns of a table."""
    auxiliary = next((t for t in card.training["defence"]["terms"] if t["kind"] == "auxiliary"), None)
    return {
        "gradients": card.training["gradients"],
        "seconds": card.training["seconds"],
        "epochs": card.training["best_epoch"],
        "tasks": "+".join(auxiliary["tasks"]) if auxiliary else "",
        "cpu": provenance()["cpu"],
        "commit": COMMIT,
    }


def append(rows: Sequence[dict[str, Any]], table: Path, columns: Sequence[str]) -> None:
    """Add rows to a table."""
    RESULTS.mkdir(exist_ok=True)
    new = not table.is_file()
    with table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


@contextmanager
def alone(place: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that belongs to a place; whether it was free is told when it is not waited for."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def jobs(only: dict[str, list[str]], arms: Sequence[Arm]) -> list[Job]:
    """All runs in the order of what they tell: seeds last, then presets, data sets in turn."""

    def wanted(field_name: str, value: str) -> bool:
        return field_name not in only or value in only[field_name]

    seeds = [int(s) for s in only.get("seed", ["0", "1"])]
    architectures = only.get("architecture", ["residual_unet"])
    return [
        Job(dataset, arm, seed, architecture)
        for seed, architecture, arm, dataset in itertools.product(seeds, architectures, arms, DATASETS)
        if wanted("dataset", dataset) and wanted("preset", arm.name)
    ]


def work(todo: Sequence[Job], data: Path, minutes: float) -> None:
    """Train and attack what has no rows yet, until the time is over."""
    began = time.monotonic()
    for job in todo:
        if time.monotonic() - began > 60 * minutes:
            return
        with alone(job.folder, wait=False) as mine:
            if not mine or job.key in {tuple(r[c] for c in KEY) for r in read_rows(ROWS)}:
                continue
            sides = DATASETS[job.dataset].sides(data)
            since = time.monotonic()
            fit(job, sides)
            trained = time.monotonic() - since
            names, clean, found, certified = attack(job, sides.test)
            rows = rows_of(job, names, clean, found, certified)
            levels = {str(level): found[WORST][i].round(4).tolist() for i, level in enumerate(LEVELS)}
            cases = dict(zip(KEY, job.key, strict=True)) | {"names": names, "clean": clean.round(4).tolist()}
            # Other processes add rows, too.
            with alone(MODELS / "rows"), CASES.open("a", encoding="utf-8") as file:
                append(rows, ROWS, COLUMNS)
                file.write(json.dumps(cases | {WORST: levels}) + "\n")
            worst = {r["epsilon"]: r["robust_dice"] for r in rows if r["attack"] == WORST}
            took = f"{trained:.0f} s training, {time.monotonic() - since - trained:.0f} s attacks"
            print(*job.key, f"clean {rows[0]['clean_dice']}", worst, rows[0]["tasks"], took, flush=True)


def tune(todo: Sequence[Job], data: Path) -> None:
    """Train variants and write down what their own validation, under PGD-10, says of the checkpoint they keep."""
    for job in todo:
        with alone(job.folder, wait=False) as mine:
            known = {(r["dataset"], r["architecture"], r["variant"], r["seed"]) for r in read_rows(TUNING)}
            if not mine or job.key in known:
                continue
            fit(job, DATASETS[job.dataset].sides(data))
            card = load_model(job.folder).card
            row = (
                dict(zip(("dataset", "architecture", "variant", "seed"), job.key, strict=True))
                | {
                    "preset": job.arm.preset,
                    "changes": "; ".join(f"{key} {json.dumps(value)}" for key, value in job.arm.changes.items()),
                    "clean_dice": card.metrics["validation_clean_dice"],
                    "robust_dice": card.metrics.get("validation_robust_dice", ""),
                }
                | effort(card)
            )
            with alone(MODELS / "rows"):
                append([row], TUNING, TUNING_COLUMNS)
            print(*job.key, f"clean {row['clean_dice']} robust {row['robust_dice']}", row["tasks"], flush=True)


def write_page() -> None:
    """``docs/study.md`` from the rows there are."""
    text = page(Study(ROWS, CASES), planned=len(jobs({}, CORE)))
    if tried := read_rows(TUNING):
        text += f"\n{tuning(tried)}\n"
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def parse_arm(text: str) -> Arm:
    """``name:preset:key=value;key=value`` with values in YAML."""
    name, chosen, *rest = text.split(":", 2)
    pairs = (pair.split("=", 1) for pair in rest[0].split(";") if pair) if rest else ()
    return Arm(name, chosen, {key: yaml.safe_load(value) for key, value in pairs}, tried=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["run", "tune", "page"])
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--only", nargs="*", default=[], help="such as dataset=polyp,nuclei preset=at seed=0,1,2")
    parser.add_argument("--arm", nargs="*", default=[], help="for tune: name:preset:key=value;key=value")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further run after so long")
    chosen = parser.parse_args()
    if chosen.what == "page":
        write_page()
        return
    if chosen.data is None:
        parser.error("--data is missing: the folder of the data sets")
    arms = [*CORE, *LONGER] if chosen.what == "run" else [parse_arm(a) for a in chosen.arm]
    only = {key: values.split(",") for key, _, values in (o.partition("=") for o in chosen.only)}
    if chosen.what == "tune":
        tune(jobs(only, arms), chosen.data)
    else:
        work(jobs(only, arms), chosen.data, chosen.minutes)


if __name__ == "__main__":
    main()
