"""Writes ``docs/attacks.md`` from the attacks' own descriptions and the result files.

    python benchmarks/attacks_page.py

Figures come from ``benchmarks/results`` (``strength_*``, ``ladder``, ``attack_speed``, ``volume``); a file that is
missing leaves its section out. Nothing is measured here.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from provenance import RESULTS, ROOT
from strength import LEVELS, Row, by_attack, worst

from cease_core.attacks import ATTACKS, LOSSES
from cease_core.attacks.targets import TARGETS
from napari_cease.scenes import SCENES

PAGE = ROOT / "docs" / "attacks.md"
NORMS = {"linf": "ℓ∞", "l2": "ℓ2"}
GROUPS = ("quick", "strong", "minimal", "targeted", "frequency", "black box", "adaptive", "control")
Content = dict[str, Any]

INTRODUCTION = """\
# Attacks

*Written by `python benchmarks/attacks_page.py` from the attacks' own descriptions and from `benchmarks/results`.*

Every attack is a frozen value that is called on a batch, in 2-D and 3-D, for binary, multiclass and multilabel
models, within any bounds, and inside a region if one is given:

```python
from cease_core.attacks import PGD
from cease_core.attacks.targets import erase

result = PGD(epsilon=8 / 255, steps=20)(model, images, labels)
erased = PGD(epsilon=8 / 255)(model, images, labels, target=erase(labels), region=region)
```

ε is in fractions of the intensity window: for ℓ∞ the largest change of any value, for ℓ2 the root mean square.
The command line and the explorer take it in the scan's unit as well. The strongest perturbation met on the way is
kept case by case, and the model's answer to it is judged in float32. A callback hears every step and can stop the
attack, which then returns its best so far. On scans, the command line and the explorer attack models
[made elsewhere](bring-your-own.md) like our own.
"""


def load(name: str) -> Content | None:
    """A result file, if there is one."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def source(content: Content, script: str) -> str:
    """Where figures come from, in one line."""
    p = content["provenance"]
    threads = f"{p['threads']} of {p['cores']} cores" if p["threads"] != p["cores"] else f"{p['cores']} cores"
    made = f"`python benchmarks/{script}.py`, {p['date']}, commit {p['commit']}"
    # Files from before this entry are of models that were adversarially trained and nothing else.
    defences = sorted(set(p.get("defences", {"": "at"}).values()) - {"none"})
    return f"{made}, {p['cpu']}, {threads}, torch {p['torch']}; the defended models of then: {', '.join(defences)}."


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(r) + " |" for r in rows), ""]


def cost(rows: list[Row]) -> str:
    """Gradients and queries a case, as a range where cases or radii differ."""
    parts = []
    for key, one in (("gradients", "gradient"), ("queries", "query")):
        low, high = (round(f(r[key] for r in rows)) if rows else 0 for f in (min, max))
        if high <= (3 if key == "queries" else 0):
            continue  # the clean image and the last iterate are looked at by all
        number = f"{low}" if low == high else f"{low} to {high}"
        parts.append(f"{number} {one if high == 1 else key}")
    return ", ".join(parts) or "–"


def catalogue(measured: list[Content]) -> list[str]:
    """What there is, by group, with its cost."""
    spent: dict[str, list[Row]] = {}
    for row in measured:
        spent.setdefault(row["attack"].split(" · ")[0], []).append(row)
    lines = ["## The attacks", ""]
    rows = []
    by_group = sorted(ATTACKS.items(), key=lambda item: GROUPS.index(item[1].about.group))
    for name, kind in by_group:
        about = kind.about
        goals = "" if len(about.goals) == 2 else f" Only {about.goals[0]}."
        rows.append(
            [
                f"**{about.title}** `{name}`",
                about.group,
                about.definition + goals,
                about.source,
                ", ".join(NORMS[n] for n in about.norms),
                cost(spent.get(name, [])),
                about.when,
            ]
        )
    lines += table(["attack", "group", "what it does", "source", "norms", "cost by default", "when to use it"], rows)
    lines += [f"Losses: {', '.join(f'`{x}`' for x in LOSSES)}.", ""]
    lines += [f"Ready targets: {', '.join(f'`{x}`' for x in TARGETS)}; or any mask on the scan's grid.", ""]
    return lines


def strength_section(content: Content) -> list[str]:
    """Every attack on every model that was measured."""
    rows = content["rows"]
    models = list(dict.fromkeys(r["model"] for r in rows))
    tables = {m: by_attack(rows, m) for m in models}
    head = ["attack", *(f"{m.split('-')[1]} {level}/255" for m in models for level in LEVELS), "gradients", "queries"]
    last = LEVELS[-1]

    def strongest_first(name: str) -> float:
        return sum(float(np.mean(tables[m][name][last]["dice"])) for m in models)

    names = sorted(set.intersection(*(set(t) for t in tables.values())), key=strongest_first)
    lines = [["worst of all", *(f"{worst(tables[m], level):.3f}" for m in models for level in LEVELS), "", ""]]
    for name in names:
        cells = [f"{np.mean(tables[m][name][level]['dice']):.3f}" for m in models for level in LEVELS]
        row = tables[models[0]][name][last]
        lines.append([name, *cells, f"{row['gradients']:.0f}", f"{row['queries']:.0f}"])
    count = len(rows[0]["dice"])
    return [
        f"## How strong they are: {models[0].split('-')[0]}",
        "",
        f"Dice with the labels after the attack, mean over {count} held-out cases, each attack with its default "
        "parameters (targeted-only attacks: target *erase*); gradient evaluations and queries a case. Lower is "
        "stronger. *Worst of all* takes the lowest Dice of each case over all rows. Minimal-norm attacks stop once "
        "Dice is half the clean one: that is their aim, not a weakness.",
        "",
        *table(head, lines),
        source(content, "strength"),
        "",
    ]


def weaker_section(content: Content) -> list[str]:
    """Published attacks beside themselves with one thing changed."""
    models = list(dict.fromkeys((r["model"], r["level"]) for r in content["rows"]))
    pairs: dict[tuple[str, str], list[str]] = {}
    for r in content["rows"]:
        pairs.setdefault((r["attack"], r["change"]), []).append(f"{r['dice']:.3f} → {r['dice_changed']:.3f}")
    return [
        "## Why some published attacks are weaker than PGD here",
        "",
        "Dice before and after one change. SegPGD and CosPGD are as strong as PGD on the cross-entropy that they "
        "weight: the loss is what costs, not the weights. BIM and MI-FGSM reach the ball's edge only where the "
        "gradient never turns, since their steps add up to no more than ε. DAG drops the pixels that it has won, and "
        "the background outvotes the structure in its sum. A band of frequencies is a smaller set than the ball. "
        "MedIS, which is not in the table, takes steps of 1/255 from the clean image, at most as many as fit into ε.",
        "",
        *table(
            ["attack", "one change", *(f"{model} {level}/255" for model, level in models)],
            [[attack, change, *figures] for (attack, change), figures in pairs.items()],
        ),
        source(content, "weaker"),
        "",
    ]


def ladder_section(content: Content) -> list[str]:
    """The ladder beside independent attacks."""
    rows = [
        [
            r["model"],
            str(r["cases"]),
            f"{r['gradients']} / {r['gradients_alone']} ({r['share']:.0%})",
            f"{r['grid_mean']:.3f} / {r['grid_mean_alone']:.3f}",
            f"{r['worst_above']:+.3f} at {r['worst_above_at']}/255",
            f"{r['seeds_differ_by']:.3f}",
        ]
        for r in content["rows"]
    ]
    head = ["model", "cases", "gradients", "mean Dice over 16 ε", "weakest ε", "two seeds of PGD differ by up to"]
    verdict = "Every target is reached" if content["targets_reached"] else "Not every target is reached"
    return [
        "## The ε ladder",
        "",
        "One descent from 16/255 to 1/255, against an independent PGD-20 at every ε (ladder / independent).",
        "",
        *table(head, rows),
        "Targets: at most a third of the gradients, grid mean at most .005 higher, no ε higher by more than .02. "
        f"{verdict}.",
        "",
        source(content, "ladder"),
        "",
    ]


def speed_section(content: Content) -> list[str]:
    """PGD beside the same attack in other libraries."""
    rows = [
        [
            r["name"],
            f"{r['cpu_s']:.2f}",
            f"{r['wall_s']:.2f}",
            "–" if r["of_torchattacks"] is None else f"{r['of_torchattacks']:.2f}",
            f"{r['dice']:.3f}",
        ]
        for r in content["rows"]
    ]
    shape = " × ".join(str(n) for n in content["images"])
    return [
        "## Beside other libraries",
        "",
        f"PGD-{content['steps']} on cross-entropy, the same MONAI U-Net, images {shape}, one thread, median of "
        f"{len(content['seeds'])} interleaved rounds; clean Dice {content['clean_dice']:.3f}.",
        "",
        *table(["", "CPU s", "wall s", "CPU × torchattacks", "Dice after"], rows),
        source(content, "attack_speed"),
        "",
    ]


def volume_section(content: Content) -> list[str]:
    """Memory and time of exact gradients through overlapping windows."""
    large, small = content["large"], content["small"]
    return [
        "## Volumes",
        "",
        f"A gradient of a {content['edge']}³ volume through {content['window']}³ windows, overlap ½, takes "
        f"{large['blend']['growth_mib']:.0f} MiB, {content['of_allowed']:.0%} of 1.3 × one window's backward pass "
        f"({large['window']['growth_mib']:.0f} MiB) plus three volumes of {content['volume_mib']:.0f} MiB; with the "
        f"loss and the score of an attack's step {large['step']['growth_mib']:.0f} MiB, "
        f"{large['step']['growth_mib'] / content['allowed_mib']:.0%} of it. At "
        f"{small['edge']}³, where the whole graph still fits, it takes {content['time_ratio']:.2f} × the CPU time of "
        f"the whole graph, and {np.mean([r['growth_mib'] for r in small['blend']]):.0f} instead of "
        f"{np.mean([r['growth_mib'] for r in small['graph']]):.0f} MiB.",
        "",
        source(content, "volume"),
        "",
    ]


def main() -> None:
    strength = [c for c in (load(f"strength_{scene}") for scene in SCENES) if c is not None]
    rows = [row for content in strength for row in content["rows"]]
    lines = [INTRODUCTION, *catalogue(rows)]
    for content in strength:
        lines += strength_section(content)
    for name, section in (
        ("weaker", weaker_section),
        ("ladder", ladder_section),
        ("attack_speed", speed_section),
        ("volume", volume_section),
    ):
        if content := load(name):
            lines += section(content)
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
