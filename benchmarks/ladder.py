"""The ε ladder against an attack of its own at every ε.

    python benchmarks/ladder.py [--cases 6] [--scene cardiac …] [--dry]

Held-out cases (of a volume for a 2-D model: the slice with the most foreground) are attacked at ε = 1 … 16 /255
on the undefended and the defended model of each scene: by one ladder, and by an independent PGD-20 at every ε.
Both take the running minimum over ε, since a smaller perturbation is allowed at every larger radius. Prints
and writes, per model, gradient evaluations, the mean Dice over the grid, and the ε at which the ladder is
weakest beside PGD. PGD is run with a second seed as well: what two seeds differ by is no difference.
Writes ``benchmarks/results/ladder.json``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from provenance import write_result
from strength import SIDES, subjects

from cease_core.attacks import PGD, Problem, ladder
from cease_core.models import load_model, prepare
from cease_core.models.library import SHIPPED
from napari_cease.scenes import SCENES

EPSILONS = [level / 255 for level in range(1, 17)]
STEPS = 20


def descend(problem: Problem, seed: int) -> tuple[NDArray[np.float64], int]:
    """Dice at every ε, and gradient evaluations."""
    dice: dict[float, float] = {}
    spent = 0
    for rung in ladder(PGD(steps=STEPS, seed=seed), problem, EPSILONS):
        dice[rung.epsilon] = float(rung.result.dice)
        spent = max(spent, int(rung.result.gradients))
    return np.array([dice[e] for e in EPSILONS]), spent


def one_by_one(problem: Problem, seed: int) -> tuple[NDArray[np.float64], int]:
    """The same, from a new attack at every ε."""
    results = [PGD(epsilon=e, steps=STEPS, seed=seed).run(problem) for e in EPSILONS]
    dice = np.minimum.accumulate([float(r.dice) for r in results])
    return dice, sum(int(r.gradients) for r in results)


def compare(scene: str, side: str, cases: int) -> dict[str, Any]:
    """One line of the table."""
    model = prepare(load_model(SHIPPED / f"{scene}-{side}"))
    problems = [s.problem(PGD().loss) for s in subjects(scene, model, cases, targeted=False)]
    down = [descend(p, 0) for p in problems]
    alone = [[one_by_one(p, seed) for p in problems] for seed in (0, 1)]
    ours = np.mean([d for d, _ in down], axis=0)
    theirs, again = (np.mean([d for d, _ in runs], axis=0) for runs in alone)
    above = ours - theirs
    return {
        "model": f"{scene}-{side}",
        "cases": len(problems),
        "gradients": down[0][1],
        "gradients_alone": alone[0][0][1],
        "share": round(down[0][1] / alone[0][0][1], 3),
        "grid_mean": round(float(ours.mean()), 4),
        "grid_mean_alone": round(float(theirs.mean()), 4),
        "grid_mean_difference": round(float(above.mean()), 4),
        "worst_above": round(float(above.max()), 4),
        "worst_above_at": int(above.argmax()) + 1,
        "seeds_differ_by": round(float(np.abs(again - theirs).max()), 4),
        "dice": ours.round(4).tolist(),
        "dice_alone": theirs.round(4).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=sorted(SCENES), action="append")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--dry", action="store_true", help="write no file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for scene in args.scene or ["cardiac", "polyp", "hippocampus"]:
        for side in SIDES:
            rows.append(compare(scene, side, args.cases))
            print(json.dumps({k: v for k, v in rows[-1].items() if not isinstance(v, list)}), flush=True)
    passed = all(r["share"] <= 1 / 3 and r["grid_mean_difference"] <= 0.005 and r["worst_above"] <= 0.02 for r in rows)
    print("targets (1/3 of the gradients, grid mean + .005, no ε above by .02):", "reached" if passed else "missed")
    if not args.dry:
        write_result("ladder", {"attack": f"PGD-{STEPS}, {PGD().loss}, linf", "targets_reached": passed, "rows": rows})


if __name__ == "__main__":
    main()
