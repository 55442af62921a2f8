"""``cease models``, ``attacks``, ``presets``, ``tasks`` and ``doctor``: tables for people, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cease_core.doctor import examine

if TYPE_CHECKING:
    from cease_core.defences import Defence

PIPED_WIDTH = 200
"""Columns where the output is no terminal: rich would cut cells at 80."""


def list_models(as_json: bool) -> None:
    """Print every model that `cease attack` knows by name."""
    from cease_core.models.library import available_models, user_library

    rows: list[dict[str, Any]] = [
        {
            "name": card.name,
            "title": card.title,
            "ndim": card.ndim,
            "channels": card.channels,
            "classes": [c.name for c in card.classes],
            "defence": card.defence,
            "metrics": card.metrics,
            "folder": str(folder),
        }
        for folder, card in available_models().items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not rows:
        print(f"No models yet; train one with `cease train`, or put a model folder into {user_library()}.")
        return
    table = table_of("name", "title", "dims", "channels", "classes", "defence", "metrics")
    for row in rows:
        metrics = "\n".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in row["metrics"].items())
        cells = (row["name"], row["title"], f"{row['ndim']}-D", str(row["channels"]))
        table.add_row(*(escape(c) for c in (*cells, ", ".join(row["classes"]), row["defence"], metrics)))
    print_table(table)


def list_attacks(as_json: bool) -> None:
    """Print every attack that `cease attack` knows, its losses and targets."""
    from cease_core.attacks import ATTACKS, LOSSES
    from cease_core.attacks.build import parameters
    from cease_core.attacks.targets import TARGETS

    rows: list[dict[str, Any]] = [
        {"name": name, **asdict(kind.about), "parameters": sorted(parameters(kind))} for name, kind in ATTACKS.items()
    ]
    if as_json:
        print(json.dumps({"attacks": rows, "losses": [*LOSSES], "targets": [*TARGETS]}, indent=1, ensure_ascii=False))
        return
    table = table_of("name", "group", "what it does", "norms", "goals", "source")
    for row in rows:
        norms, goals = ", ".join(row["norms"]), ", ".join(row["goals"])
        cells = (row["name"], row["group"], row["definition"], norms, goals, row["source"])
        table.add_row(*(escape(c) for c in cells))
    print_table(table)
    print(f"Losses (--loss): {', '.join(LOSSES)}")
    print(f"Targets (--target): {', '.join(TARGETS)}, or a file with the mask")


def list_presets(as_json: bool) -> None:
    """Print every preset that `cease train` knows, with its terms and what it costs."""
    from cease_core.defences.presets import NOTES, PRESETS

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "does": NOTES[name].does,
            "terms": [{"term": _title(term), "weight": term.weight} for term in defence.active],
            "inner": _inner(defence) if defence.attacks else None,
            "gradients": _gradients(defence),
            "replays": defence.replays,
            "source": NOTES[name].source,
        }
        for name, defence in PRESETS.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = table_of("name", "what it does", "terms", "inner attack", "gradients", "source")
    for row in rows:
        terms = " + ".join(f"{term['weight']:g} {term['term']}" for term in row["terms"])
        cost = f"{row['gradients']}" + (f" × {row['replays']}" if row["replays"] > 1 else "")
        cells = (row["name"], row["does"], terms, row["inner"] or "none", cost, row["source"])
        table.add_row(*(escape(c) for c in cells))
    print_table(table)
    print(
        "Gradients: computations an image and step (× how often each batch is replayed). Auxiliary tasks that look at"
    )
    print("a changed image (`cease tasks`) add one on each view they see; choosing tasks comes before.")
    print("Change a value: --set defence.inner.steps=3")


def _title(term: Any) -> str:
    view = getattr(term, "view", None)
    return f"{term.kind} ({view})" if view else str(term.kind)


def _inner(defence: Defence) -> str:
    inner = defence.inner
    return f"{inner.ascent}, {inner.steps} {'step' if inner.steps == 1 else 'steps'}, {inner.epsilon * 255:.3g}/255"


def _gradients(defence: Defence) -> int:
    """Gradient computations an image and step, as counted by the objective itself on a small model."""
    from cease_core.defences import Objective, SegmentationTerm
    from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule

    # A teacher's answers cost no gradient, and there is no teacher here.
    terms = tuple(SegmentationTerm() if term.kind == "distillation" else term for term in defence.terms)
    card = ModelCard(
        name="small",
        title="small",
        architecture="unet",
        architecture_args={"channels": (2, 4, 8)},
        ndim=2,
        channels=1,
        classes=(ClassInfo(id=1, name="structure", color="#000000"),),
        mode="binary",
        window=WindowRule(kind="fixed", low=0, high=1),
    )
    whole = defence.model_copy(update={"terms": terms}).with_some_tasks(card.ndim)
    return Objective(whole, SegmentationModel(card), (16, 16)).gradients


def list_tasks(as_json: bool) -> None:
    """Print every auxiliary task that a training can have."""
    from cease_core.tasks import TASKS

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "title": task.title,
            "derived_from": task.derived_from,
            "dims": [*task.dims],
            "own_pass": task.presents,
            "source": task.source,
        }
        for name, task in TASKS.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = table_of("name", "title", "target from", "dims", "own pass", "source")
    for row in rows:
        dims, own = ", ".join(f"{n}-D" for n in row["dims"]), "yes" if row["own_pass"] else ""
        cells = (row["name"], row["title"], row["derived_from"], dims, own, row["source"])
        table.add_row(*(escape(c) for c in cells))
    print_table(table)
    print("Own pass: the encoder sees a changed image, one gradient computation more an image and view.")
    print("Which are chosen is up to the data: `cease relevance`, or --set 'defence.auxiliary.tasks=[hog, low_pass]'")


def list_findings(as_json: bool) -> int:
    """Print what this computer offers and lacks.

    Returns
    -------
    int
        Exit code: 1 if something needed is missing.
    """
    findings = examine()
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=1, ensure_ascii=False))
    else:
        table = table_of("", "", "")
        table.show_header = False
        for finding in findings:
            mark = "[green]ok[/green]" if finding.ok else "[red]missing[/red]"
            table.add_row(mark, escape(finding.name), escape(finding.value))
        print_table(table)
        # Outside the table, so that a command can be copied in one piece.
        for finding in findings:
            if not finding.ok:
                print(f"{finding.name}: {finding.remedy}")
    return 0 if all(finding.ok for finding in findings) else 1


def table_of(*headers: str) -> Table:
    """An empty table; names stay in one piece."""
    table = Table(box=box.SIMPLE_HEAD)
    for header in headers:
        table.add_column(header, overflow="fold", no_wrap=header in ("name", "dims"))
    return table


def print_table(table: Table) -> None:
    """Print it as wide as the terminal, or wide enough where there is none."""
    console = Console()
    (console if console.is_terminal else Console(width=PIPED_WIDTH)).print(table)
