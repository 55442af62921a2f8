"""What the shipped models do on the cases that the demo opens, and on the other held-out ones.

    python benchmarks/demo_scenes.py [--models DIR] [--level 8] [--steps 20]

Every case of ``sample_data`` that belongs to a scene is attacked, on each of the scene's models, with PGD on each
loss; the table shows Dice. No training saw any of these cases. The last line is JSON, and the table is
written to ``benchmarks/results/demo_scenes.md`` unless ``--dry``.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path

import torch

from cease_core.attacks import LOSSES, PGD
from cease_core.attacks.on_scan import pose_on_scan
from cease_core.data import find_cases, load_case
from cease_core.evaluation import distortion
from cease_core.models import load_model, prepare
from cease_core.models.library import SHIPPED

ROOT = Path(__file__).parent.parent
SCENES = {
    "polyp": "polyp_hyperkvasir",
    "cardiac": "cardiac_mr_sunnybrook",
    "hippocampus": "hippocampus_mri",
}


def rows(scene: str, models: Path, level: int, steps: int, losses: list[str], cases: int | None) -> list[dict]:
    """One row a case and model."""
    table = []
    for side in ("undefended", "defended"):
        folder = models / f"{scene}-{side}"
        if not folder.is_dir():
            continue
        model = prepare(load_model(folder))
        for case in find_cases(ROOT / "sample_data" / SCENES[scene])[:cases]:
            assert model.card.data is not None
            assert case.name not in {*model.card.data.train, *model.card.data.validation}, case.name
            scan, labels = load_case(case)
            subject = pose_on_scan(model, scan, labels, extent="volume")
            row = {"scene": scene, "case": case.name, "model": side}
            for loss in losses:
                problem = subject.problem(loss)
                row["clean"] = float(problem.look(torch.zeros_like(problem.images))[2])
                result = PGD(epsilon=level / 255, steps=steps, loss=loss).run(problem)
                row[loss] = float(result.dice)
                row["psnr"] = distortion(problem.images, result.adversarial).psnr
            row["worst"] = min(row[loss] for loss in losses)
            table.append(row)
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    return table


def markdown(table: list[dict], losses: list[str], level: int, steps: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    head = ["scene", "case", "model", "clean", *losses, "worst / clean", "PSNR (dB)"]
    lines = [
        f"# Demo scenes: Dice at ε = {level}/255, PGD-{steps}, ℓ∞",
        "",
        f"Made by `python benchmarks/demo_scenes.py` on {time.strftime('%Y-%m-%d')}, {platform.processor() or 'CPU'}, "
        f"torch {torch.__version__}, seed 0, commit {commit.stdout.strip() or 'unknown'}. "
        "No training saw these cases.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for r in table:
        keep = r["worst"] / r["clean"] if r["clean"] else float("nan")
        values = [r["scene"], r["case"], r["model"], f"{r['clean']:.3f}", *(f"{r[x]:.3f}" for x in losses)]
        lines.append("| " + " | ".join([*values, f"{keep:.0%}", f"{r['psnr']:.1f}"]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=SHIPPED)
    parser.add_argument("--scene", choices=sorted(SCENES), action="append")
    parser.add_argument("--loss", choices=sorted(LOSSES), action="append")
    parser.add_argument("--level", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--dry", action="store_true", help="write no file")
    args = parser.parse_args()
    losses = args.loss or list(LOSSES)
    table = [
        row
        for scene in args.scene or SCENES
        for row in rows(scene, args.models, args.level, args.steps, losses, args.cases)
    ]
    if not args.dry:
        (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
        target = ROOT / "benchmarks" / "results" / "demo_scenes.md"
        target.write_text(markdown(table, losses, args.level, args.steps), encoding="utf-8")
    means = {}
    for scene in SCENES:
        for side in ("undefended", "defended"):
            mine = [r for r in table if r["scene"] == scene and r["model"] == side]
            if mine:
                means[f"{scene}-{side}"] = {
                    k: round(sum(r[k] for r in mine) / len(mine), 3) for k in ("clean", *losses, "worst")
                }
    print(json.dumps(means))


if __name__ == "__main__":
    main()
