"""Why some published attacks are weaker here than plain PGD: each beside itself with one thing changed.

    python benchmarks/weaker.py [--scene cardiac] [--cases 6] [--dry]

Dice with the labels on held-out cases (of a volume the slice with the most foreground), mean, at 4/255 on the
undefended and at 8/255 on the defended model. Writes ``benchmarks/results/weaker.json``.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from provenance import write_result
from strength import measure, subjects

from cease_core.attacks import BIM, DAG, MIFGSM, PGD, Attack, CosPGD, FrequencyPGD, SegPGD
from cease_core.models import load_model, prepare
from cease_core.models.library import SHIPPED
from napari_cease.scenes import SCENES

LEVEL = {"undefended": 4, "defended": 8}
LARGE = 1 / 255


# As published, then with the one change, and what the change is.
PAIRS: tuple[tuple[str, Attack, str, Attack], ...] = (
    ("PGD, cross-entropy", PGD(loss="cross_entropy"), "the library's default loss", PGD()),
    ("SegPGD", SegPGD(), "plain PGD on its loss, cross-entropy", PGD(loss="cross_entropy")),
    ("CosPGD", CosPGD(), "plain PGD on its loss, cross-entropy", PGD(loss="cross_entropy")),
    ("BIM", BIM(), "steps of at least 1/255, as PGD's", BIM(step_size=LARGE)),
    ("MI-FGSM", MIFGSM(), "steps of at least 1/255 and no momentum", MIFGSM(step_size=LARGE, decay=0.0)),
    ("DAG", DAG(), "PGD on the margin of all pixels, foreground and background balanced", PGD(loss="margin")),
    ("Frequency PGD", FrequencyPGD(), "all frequencies", FrequencyPGD(band=(0.0, 1.0))),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=sorted(SCENES), default="cardiac")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--dry", action="store_true", help="write no file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for side, level in LEVEL.items():
        posed = subjects(args.scene, prepare(load_model(SHIPPED / f"{args.scene}-{side}")), args.cases, targeted=False)
        for name, attack, change, other in PAIRS:
            published, changed = (float(np.mean(measure(name, a, posed, level)["dice"])) for a in (attack, other))
            row = {"model": f"{args.scene}-{side}", "level": level, "attack": name, "change": change}
            rows.append(row | {"dice": round(published, 4), "dice_changed": round(changed, 4)})
            print(f"{side:11s} {level}/255 {name:20s} {published:.3f}   {change}: {changed:.3f}", flush=True)
    if not args.dry:
        write_result("weaker", {"cases": args.cases, "rows": rows})


if __name__ == "__main__":
    main()
