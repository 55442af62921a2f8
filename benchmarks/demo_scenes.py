"""What the shipped models do on the cases that the demo opens, and on the other held-out ones.

    python benchmarks/demo_scenes.py [--models DIR] [--level 8] [--steps 20] [--dry]

Every case of ``sample_data`` that belongs to a scene is attacked, on each of the scene's models, with PGD on each
of a few losses. No training saw any of these cases; the script stops if a model's card says otherwise. It writes
``benchmarks/results/demo_scenes.md`` and the summary in the README, and prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, ROOT, commit

from cease_core.attacks import LOSSES, PGD
from cease_core.attacks.on_scan import pose_on_scan
from cease_core.data import find_cases, load_case
from cease_core.evaluation import distortion
from cease_core.models import load_model, prepare
from cease_core.models.library import SHIPPED
from napari_cease.scenes import SCENES

RESULT = RESULTS / "demo_scenes.md"
SIDES = ("undefended", "defended")
# The strongest of all losses on one shipped model or another (docs/attacks.md).
PROBES = ("soft_dice", "dice_masked", "masked_ce", "cross_entropy", "lovasz")
Row = dict[str, Any]


def attack_scene(scene: str, models: Path, level: int, steps: int, losses: list[str]) -> list[Row]:
    """One row a case and model; a volume is attacked and judged as a whole."""
    rows = []
    shown = SCENES[scene].scan_path
    for side in SIDES:
        model = prepare(load_model(models / f"{scene}-{side}"))
        data = model.card.data
        for case in find_cases(shown.parent.parent):
            if data is None or case.name in (*data.train, *data.validation):
                raise SystemExit(f"{model.card.name} has seen {case.name}, or does not say what it has seen")
            scan, labels = load_case(case)
            subject = pose_on_scan(model, scan, labels)
            row: Row = {"scene": scene, "case": case.name, "shown": case.image == shown, "model": side}
            psnr = []
            for loss in losses:
                problem = subject.problem(loss)
                result = PGD(epsilon=level / 255, steps=steps, loss=loss).run(problem)
                row["clean"] = float(problem.look(torch.zeros_like(problem.images))[2])
                row[loss] = float(result.dice)
                psnr.append(distortion(problem.images, result.adversarial).psnr)
            row["worst"] = min(row[loss] for loss in losses)
            row["psnr"] = min(psnr)
            rows.append(row)
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    return rows


def mean(rows: list[Row], key: str) -> float:
    """Mean of a column."""
    return sum(r[key] for r in rows) / len(rows)


def provenance(level: int, steps: int) -> str:
    """Where the figures come from, in one line."""
    return (
        f"Dice at ε = {level}/255 of the window, ℓ∞, PGD with {steps} steps, seed 0. Made by "
        f"`python benchmarks/demo_scenes.py` on {time.strftime('%Y-%m-%d')}: {os.cpu_count()} CPU cores, torch "
        f"{torch.__version__}, commit {commit()}. No training saw these cases."
    )


def full_table(rows: list[Row], losses: list[str], source: str) -> str:
    """Every case, every loss."""
    head = ["scene", "case", "model", "clean", *losses, "worst / clean", "PSNR (dB)"]
    lines = [
        "# The demo scenes, case by case",
        "",
        source,
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for r in rows:
        name = f"**{r['case']}** (shown)" if r["shown"] else r["case"]
        cells = [r["scene"], name, r["model"], f"{r['clean']:.3f}", *(f"{r[x]:.3f}" for x in losses)]
        lines.append(
            "| " + " | ".join([*cells, f"{r['worst'] / max(r['clean'], 1e-9):.0%}", f"{r['psnr']:.1f}"]) + " |"
        )
    return "\n".join(lines) + "\n"


def summary(rows: list[Row], source: str) -> str:
    """The demo's case, and the mean over all held-out cases."""
    lines = [
        "| scene | model | shown case: clean → worst loss | all held-out cases: clean → worst loss | PSNR, lowest |",
        "|---|---|---|---|---|",
    ]
    for scene in dict.fromkeys(r["scene"] for r in rows):
        for side in SIDES:
            mine = [r for r in rows if r["scene"] == scene and r["model"] == side]
            shown = next(r for r in mine if r["shown"])
            lines.append(
                f"| {SCENES[scene].title} | {side} | {shown['clean']:.2f} → **{shown['worst']:.2f}** "
                f"| {mean(mine, 'clean'):.2f} → {mean(mine, 'worst'):.2f} (n = {len(mine)}) "
                f"| {min(r['psnr'] for r in mine):.1f} dB |"
            )
    return "\n".join([*lines, "", source]) + "\n"


def replace_block(path: Path, name: str, text: str) -> None:
    """Put ``text`` between the comments ``<!-- name -->`` and ``<!-- /name -->``."""
    content = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, rest = content.split(begin, 1)
    tail = rest.split(end, 1)[1]
    path.write_text(head + begin + text + end + tail, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=SHIPPED)
    parser.add_argument("--scene", choices=sorted(SCENES), action="append")
    parser.add_argument("--loss", choices=sorted(LOSSES), action="append")
    parser.add_argument("--level", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dry", action="store_true", help="write no file")
    args = parser.parse_args()
    losses = args.loss or list(PROBES)
    scenes = args.scene or list(SCENES)
    rows = [row for scene in scenes for row in attack_scene(scene, args.models, args.level, args.steps, losses)]
    if not args.dry:
        source = provenance(args.level, args.steps)
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(full_table(rows, losses, source), encoding="utf-8")
        replace_block(ROOT / "README.md", "demo-scenes", summary(rows, source))
    groups = {f"{s}-{m}": [r for r in rows if r["scene"] == s and r["model"] == m] for s in scenes for m in SIDES}
    print(json.dumps({k: {c: round(mean(v, c), 3) for c in ("clean", *losses, "worst")} for k, v in groups.items()}))


if __name__ == "__main__":
    main()
