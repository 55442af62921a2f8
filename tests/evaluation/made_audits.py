"""Audits whose figures can be worked out by hand, written into a folder as a real one is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cease_core.evaluation.audit.store import (
    CASES,
    CLEAN,
    JOURNAL,
    Audit,
    Entry,
    Journal,
    load_audit,
    picture_path,
    write_facts,
    write_tables,
)

EPSILONS = tuple(level / 255 for level in (2, 4, 8, 10))
REPORT = 8 / 255

TRIALS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "noise": ("control", (REPORT,)),
    "fgsm": ("one_step", (REPORT,)),
    "pgd": ("white_box", EPSILONS),
    "sea": ("white_box", EPSILONS),
    "pgd-longer": ("longer", (REPORT,)),
    "restart-1": ("restart", (REPORT,)),
    "square": ("black_box", (REPORT,)),
    "huge": ("huge", (0.5,)),
}
STRENGTH = {"noise": 0.02, "fgsm": 0.6, "square": 0.5, "sea": 0.9}
"""Of what PGD takes from the Dice at one ε; PGD, longer and restarted take all of it."""


@dataclass(frozen=True)
class Made:
    """A model whose Dice falls in proportion to ε.

    Parameters
    ----------
    clean
        Dice of each case without an attack.
    fall
        What PGD takes at 1/255.
    failing
        Cases that the model fails on.
    """

    clean: Sequence[float]
    fall: float
    title: str = "A made model"
    defence: str = "none"
    failing: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def make_audit(
    folder: Path,
    models: Mapping[str, Made],
    *,
    per_patient: int = 1,
    done: float = 1.0,
    class_names: Sequence[str] = ("core", "rim"),
    pictures: bool = False,
    case_names: Sequence[str] | None = None,
) -> Audit:
    """Write an audit of ``models``, of which the share ``done`` is finished, and read it back."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(models.values())).clean)
    cases = list(case_names or (f"case{i}" for i in range(count)))
    patients = [f"patient{i // per_patient}" for i in range(count)]
    facts = _facts(models, cases, class_names)
    write_facts(folder, facts)
    pd.DataFrame([_case(c, p, i) for i, (c, p) in enumerate(zip(cases, patients, strict=True))]).to_csv(
        folder / f"{CASES}.csv", index=False
    )
    jobs = [(name, trial, i) for i in range(count) for name in models for trial in (CLEAN, *TRIALS)]
    journal = Journal(folder / JOURNAL)
    for name, trial, i in jobs[: round(done * len(jobs))]:
        made = models[name]
        role, epsilons = ("clean", (0.0,)) if trial == CLEAN else TRIALS[trial]
        where = {"model": name, "attack": trial, "role": role, "case": cases[i], "patient": patients[i]}
        if cases[i] in made.failing:
            rows = ({**where, "epsilon": epsilons[-1], "lesions": "[]", "error": "the model failed on this case."},)
        else:
            rows = tuple({**where, **_row(made, i, trial, e, len(class_names))} for e in epsilons)
        probe = {
            "reached": True,
            "zero_gradient": 0.0,
            "repeats": True,
            "rise": 1.0,
            "saturated": 0.0,
            "logit_scale": 4.0,
        }
        fits = trial == CLEAN and cases[i] not in made.failing
        journal.append(Entry((name, trial, cases[i]), rows, probe if fits else None))
        if pictures and trial == "pgd" and cases[i] not in made.failing:
            _picture(picture_path(folder, name, cases[i]), made.clean[i], made.fall, i, len(class_names))
    journal.close()
    write_tables(folder, journal, facts)
    return load_audit(folder)


def dice(clean: float, fall: float, trial: str, epsilon: float) -> float:
    """Dice of a case under a trial."""
    return max(0.0, clean - fall * STRENGTH.get(trial, 1.0) * epsilon * 255)


def _row(made: Made, i: int, trial: str, epsilon: float, classes: int) -> dict[str, Any]:
    clean = made.clean[i]
    value = dice(clean, made.fall, trial, epsilon)
    share = value / clean if clean else 0.0
    iou = value / (2 - value)
    attacked = trial != CLEAN
    return {
        "epsilon": epsilon,
        "dice": value,
        "iou": iou,
        "hd95_mm": 2 + 20 * (1 - value),
        "nsd": value,
        "mean_iou": (iou + 0.95) / 2,
        "flipped": 0.1 * (1 - share),
        "ece": 0.02 + 0.2 * (1 - share),
        "nll": 0.1 + (1 - share),
        "brier": 0.03 + 0.2 * (1 - share),
        "linf": epsilon,
        "rms": 0.9 * epsilon,
        "psnr": -20 * np.log10(0.9 * epsilon) if attacked else float("inf"),
        "ssim": 1 - epsilon,
        "gradients": {"noise": 0, "square": 0, CLEAN: 0}.get(trial, 20),
        "queries": 200 if trial == "square" else 0,
        **{f"dice_{c}": value for c in range(1, classes + 1)},
        "lesions": json.dumps([round(share, 6), 1.0 if share > 0.5 else 0.0]),
        "error": "",
    }


def _case(case: str, patient: str, i: int) -> dict[str, Any]:
    return {
        "case": case,
        "patient": patient,
        "slice": -1,
        "ndim": 2,
        "shape": "[96, 96]",
        "spacing": "[1.5, 1.5]",
        "unit": "mm",
        "foreground": 400,
        "lesions": json.dumps([300.0 + 10 * i, 20.0 + i]),
        "sha256": f"{i:064x}",
    }


def _facts(models: Mapping[str, Made], cases: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
    trials = [
        {
            "name": name,
            "role": role,
            "title": name.upper(),
            "settings": {"steps": 20, "seed": 0},
            "epsilons": list(epsilons),
            "source": None,
        }
        for name, (role, epsilons) in TRIALS.items()
    ]
    return {
        "settings": {
            "tier": "quick",
            "epsilons": list(EPSILONS),
            "report_epsilon": REPORT,
            "steps": 20,
            "seed": 0,
            "tolerance": 2.0,
        },
        "victims": [
            {
                "name": name,
                "title": made.title,
                "folder": name,
                "defence": made.defence,
                "weights": "ab" * 32,
                "architecture": "unet",
                "training": {},
                "notes": "",
                "data": None,
                "relevance": None,
                "trials": trials,
                **made.facts,
            }
            for name, made in models.items()
        ],
        "sources": [],
        "classes": list(range(1, len(class_names) + 1)),
        "class_names": [
            {"id": i, "name": name, "color": ("#E69F00", "#56B4E9")[i - 1]} for i, name in enumerate(class_names, 1)
        ],
        "cases": list(cases),
        "data": "cd" * 32,
        "seen": [],
        "kept": [],
        "unusable": {},
        "made": {
            "date": "2026-01-02",
            "device": "cpu",
            "processor": "a processor",
            "cores": 2,
            "accelerator": None,
            "system": "a system",
            "versions": {"python": "3.11", "napari-cease": "0.1.0", "torch": "2.13.0"},
        },
    }


def _picture(path: Path, clean_dice: float, fall: float, seed: int, classes: int) -> None:
    """A bright disc with a ring in it, and masks that lose the more of it, the lower their Dice."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:96, :96]
    away = np.hypot(rows - 46 - seed, columns - 50 + 2 * seed)
    tissue = 0.25 + 0.1 * np.sin(rows / 9) * np.cos(columns / 7) + 0.03 * generator.standard_normal((96, 96))
    image = tissue + 0.45 * (away < 20) - 0.15 * (away < 9)

    def mask(radius: float, shift: float) -> np.ndarray:
        moved = np.hypot(rows - 46 - seed - shift, columns - 50 + 2 * seed)
        found = (moved < radius).astype(np.uint8)
        if classes > 1:
            found[moved < radius / 2.2] = 2
        return found

    attacked_dice = dice(clean_dice, fall, "pgd", REPORT)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        image=image[None].astype(np.float16),
        perturbation=(REPORT * generator.choice([-1, 1], (1, 96, 96))).astype(np.float16),
        reference=mask(20, 0),
        clean=mask(19, 1),
        attacked=mask(20 * attacked_dice, 6 * (1 - attacked_dice)),
        epsilon=REPORT,
        dice=attacked_dice,
        clean_dice=clean_dice,
        attack="pgd",
    )
