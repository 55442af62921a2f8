"""``cease models`` and ``cease doctor``: tables for people, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cease_core.doctor import examine

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
    table = _table("name", "title", "dims", "channels", "classes", "defence", "metrics")
    for row in rows:
        metrics = "\n".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in row["metrics"].items())
        cells = (row["name"], row["title"], f"{row['ndim']}-D", str(row["channels"]))
        table.add_row(*(escape(c) for c in (*cells, ", ".join(row["classes"]), row["defence"], metrics)))
    _print(table)


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
    table = _table("name", "group", "what it does", "norms", "goals", "source")
    for row in rows:
        norms, goals = ", ".join(row["norms"]), ", ".join(row["goals"])
        cells = (row["name"], row["group"], row["definition"], norms, goals, row["source"])
        table.add_row(*(escape(c) for c in cells))
    _print(table)
    print(f"Losses (--loss): {', '.join(LOSSES)}")
    print(f"Targets (--target): {', '.join(TARGETS)}, or a file with the mask")


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
        table = _table("", "", "")
        table.show_header = False
        for finding in findings:
            mark = "[green]ok[/green]" if finding.ok else "[red]missing[/red]"
            table.add_row(mark, escape(finding.name), escape(finding.value))
        _print(table)
        # Outside the table, so that a command can be copied in one piece.
        for finding in findings:
            if not finding.ok:
                print(f"{finding.name}: {finding.remedy}")
    return 0 if all(finding.ok for finding in findings) else 1


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for header in headers:
        table.add_column(header, overflow="fold", no_wrap=header in ("name", "dims"))
    return table


def _print(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=PIPED_WIDTH)).print(table)
