"""How strong every attack is on shipped models, and what it costs.

    python benchmarks/strength.py [--scene cardiac] [--cases 6] [--attack sea …] [--dry]

Every attack of the library, with its default parameters, and PGD on every loss, attack held-out cases of a
scene (of a volume the slice with the most foreground) at 2, 4 and 8 /255, on the undefended and on the
defended model. Rows are Dice with the labels after the attack, mean over the cases, with gradient evaluations and
queries a case. ``worst`` is the lowest Dice of each case over all other rows. Writes
``benchmarks/results/strength_SCENE.json``; rows that are there already, from the same commit, are not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from provenance import RESULTS, commit, write_result

from cease_core.attacks import ATTACKS, LOSSES, PGD, Attack, Transfer
from cease_core.attacks.build import describe
from cease_core.attacks.on_scan import Subject, pose_on_scan
from cease_core.attacks.targets import erase
from cease_core.data import find_cases, load_case
from cease_core.models import SegmentationModel, load_model, prepare
from cease_core.models.library import SHIPPED
from napari_cease.scenes import SCENES

SIDES = ("undefended", "defended")
LEVELS = (2, 4, 8)
Row = dict[str, Any]


def attacks() -> dict[str, Attack]:
    """Name → attack; PGD once for every loss."""
    found = {name: kind() for name, kind in ATTACKS.items() if name != "pgd"}
    return found | {f"pgd · {loss}": PGD(loss=loss) for loss in LOSSES}


def subjects(scene: str, model: SegmentationModel, count: int, *, targeted: bool) -> list[Subject]:
    """The first cases of a scene that have any foreground, none of them seen in training."""
    posed = []
    for case in find_cases(SCENES[scene].scan_path.parent.parent):
        data = model.card.data
        if data is None or case.name in (*data.train, *data.validation):
            raise SystemExit(f"{model.card.name} has seen {case.name}, or does not say what it has seen")
        scan, labels = load_case(case)
        index = int(np.argmax([np.count_nonzero(s) for s in labels])) if scan.ndim == 3 else 0
        extent = "slice" if model.card.ndim == 2 else "volume"
        if labels.any() and len(posed) < count:
            posed.append(
                pose_on_scan(model, scan, labels, extent=extent, index=index, target=erase if targeted else None)
            )
    return posed


def measure(name: str, attack: Attack, posed: list[Subject], level: int) -> Row:
    """One attack at one ε on all cases, one after the other."""
    began = time.process_time()
    results = []
    for subject in posed:
        made = replace(attack, epsilon=level / 255)
        results.append(made.run(subject.problem(made.loss, criterion=made.criterion)))
    goals = [float(r.target_dice) for r in results if r.target_dice is not None]
    return {
        "attack": name,
        "level": level,
        "dice": [round(float(r.dice), 4) for r in results],
        "target_dice": round(float(np.mean(goals)), 4) if goals else None,
        "gradients": float(np.mean([int(r.gradients) for r in results])),
        "queries": float(np.mean([int(r.queries) for r in results])),
        "cpu_seconds": round((time.process_time() - began) / len(posed), 2),
        "settings": {k: v for k, v in describe(made).items() if k not in ("epsilon", "seed")},
    }


def known_rows(scene: str) -> list[Row]:
    """What an earlier run of this commit has left."""
    path = RESULTS / f"strength_{scene}.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["rows"] if content["provenance"]["commit"] == commit() else []


def by_attack(rows: list[Row], model: str) -> dict[str, dict[int, Row]]:
    """Attack → level → row, of one model."""
    table: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row["model"] == model:
            table.setdefault(row["attack"], {})[row["level"]] = row
    return table


def worst(table: dict[str, dict[int, Row]], level: int) -> float:
    """Mean over cases of the lowest Dice that any attack left."""
    return float(np.min([rows[level]["dice"] for rows in table.values() if level in rows], axis=0).mean())


def summary(rows: list[Row]) -> str:
    """A table for the terminal, strongest first."""
    lines = []
    for model in dict.fromkeys(r["model"] for r in rows):
        table = by_attack(rows, model)
        lines.append(f"\n{model}: Dice at ε, gradients + queries a case")
        lines.append(f"  {'worst of all':24s}" + "".join(f"{worst(table, level):8.3f}" for level in LEVELS))
        for name, levels in sorted(table.items(), key=lambda item: float(np.mean(item[1][LEVELS[-1]]["dice"]))):
            figures = "".join(f"{np.mean(levels[level]['dice']):8.3f}" for level in LEVELS)
            last = levels[LEVELS[-1]]
            lines.append(f"  {name:24s}{figures}{last['gradients']:8.0f} +{last['queries']:5.0f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=sorted(SCENES), action="append")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--attack", action="append", help="only these")
    parser.add_argument("--side", choices=SIDES, action="append")
    parser.add_argument("--dry", action="store_true", help="write no file, reuse no rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {n: a for n, a in attacks().items() if not args.attack or n in args.attack}
    for scene in args.scene or ["cardiac", "polyp"]:
        rows = [] if args.dry else known_rows(scene)
        done = {(r["model"], r["attack"], r["level"]) for r in rows}
        models = {side: prepare(load_model(SHIPPED / f"{scene}-{side}")) for side in SIDES}
        for side, name in product(args.side or SIDES, chosen):
            attack = chosen[name]
            if isinstance(attack, Transfer):
                attack = replace(attack, source=models[SIDES[1 - SIDES.index(side)]])
            targeted = "untargeted" not in attack.about.goals
            missing = [level for level in LEVELS if (f"{scene}-{side}", name, level) not in done]
            posed = subjects(scene, models[side], args.cases, targeted=targeted) if missing else []
            for level in missing:
                row = {"model": f"{scene}-{side}", **measure(name, attack, posed, level)}
                rows.append(row)
                print(row["model"], name, level, f"{np.mean(row['dice']):.3f}", row["gradients"], flush=True)
                if not args.dry:
                    write_result(f"strength_{scene}", {"levels": LEVELS, "rows": rows})
        print(summary(rows))


if __name__ == "__main__":
    main()
