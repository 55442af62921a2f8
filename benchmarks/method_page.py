"""What the demo's defended models tell about the method: the relevance of tasks, and how their training went.

    python benchmarks/method_page.py [--runs DIR]

With ``--runs``, the folder in which the recipes were trained, it keeps each run's ``relevance.json`` and
``history.csv`` in ``benchmarks/results/training``. From these it draws the figures of ``docs/method.md`` and writes
its tables.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

from provenance import RESULTS, ROOT

from cease_core.models.checkpoint import load_card
from cease_core.models.library import SHIPPED
from cease_core.tasks.relevance import Relevance, Selection, table
from cease_core.tasks.relevance_figure import similarity_figure

KEPT = RESULTS / "training"
PAGE, IMAGES = ROOT / "docs" / "method.md", ROOT / "docs" / "images"
SCENES = ("polyp", "cardiac", "hippocampus")
BEGIN, END = "<!-- relevance -->", "<!-- /relevance -->"
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 280, 56, 44
CLEAN, ROBUST = "#0072B2", "#D55E00"


def keep(runs: Path) -> None:
    """Copy what runs wrote beside their models."""
    for scene in SCENES:
        (KEPT / scene).mkdir(parents=True, exist_ok=True)
        for name in ("relevance.json", "history.csv"):
            shutil.copyfile(runs / f"{scene}-defended" / name, KEPT / scene / name)


def curve(scene: str) -> str:
    """Validation Dice over gradient computations as SVG, clean and under PGD-10."""
    with (KEPT / scene / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["clean_dice"]]
    points = [(int(r["gradients"]), float(r["clean_dice"]), float(r["robust_dice"])) for r in rows]
    most = max(gradients for gradients, _, _ in points)
    across, up = WIDTH - LEFT - 150, HEIGHT - BOTTOM - 20

    def place(gradients: float, dice: float) -> str:
        return f"{LEFT + across * gradients / most:.1f},{20 + up * (1 - dice):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for tenths in (0, 2, 4, 6, 8, 10):
        y = 20 + up * (1 - tenths / 10)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + across}" y1="{y}" y2="{y}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tenths / 10:.1f}</text>')
    for share in (0, 0.5, 1):
        x = LEFT + across * share
        parts.append(f'<text x="{x}" y="{HEIGHT - 26}" text-anchor="middle">{most * share / 1000:.0f}k</text>')
    parts.append(f'<text x="{LEFT + across / 2}" y="{HEIGHT - 8}" text-anchor="middle">gradient computations</text>')
    parts.append(f'<text x="{LEFT - 36}" y="12">validation Dice</text>')
    for colour, name, column in ((CLEAN, "clean", 1), (ROBUST, "under PGD-10", 2)):
        line = " ".join(place(point[0], point[column]) for point in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = place(points[-1][0], points[-1][column]).split(",")
        parts.append(f'<text x="{float(x) + 8:.1f}" y="{float(y) + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Read the command line, draw, and write the page's part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder of the runs, to keep their figures")
    chosen = parser.parse_args()
    if chosen.runs is not None:
        keep(chosen.runs)
    parts = ["*From the trainings of the three shipped models, written by `python benchmarks/method_page.py`.*"]
    for scene in SCENES:
        relevance = Relevance.model_validate_json((KEPT / scene / "relevance.json").read_text(encoding="utf-8"))
        card = load_card(SHIPPED / f"{scene}-defended")
        selection = Selection.model_validate(card.training["selection"])
        (IMAGES / f"relevance-{scene}.svg").write_text(similarity_figure(relevance, selection), encoding="utf-8")
        (IMAGES / f"training-{scene}.svg").write_text(curve(scene), encoding="utf-8")
        parts += [
            f"**{card.title}**",
            table(relevance, selection).strip(),
            f"![Input-gradient similarity of tasks, {scene}](images/relevance-{scene}.svg)",
            f"![Validation Dice while training, {scene}](images/training-{scene}.svg)",
        ]
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n\n".join(parts) + "\n" + END + after, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
