"""An audit of the shipped cardiac models that takes seconds."""

from __future__ import annotations

from pathlib import Path

from cease_core.data import find_cases
from cease_core.evaluation.audit import Settings, audit, load_audit, tier
from cease_core.evaluation.report import write_report
from cease_core.models.library import SHIPPED

CARDIAC = Path(__file__).parents[2] / "sample_data" / "cardiac_mr_sunnybrook"
MODELS = (SHIPPED / "cardiac-undefended", SHIPPED / "cardiac-defended")
TINY = {"cases": 2, "steps": 3, "longer": 4, "restarts": 1, "queries": 4}


def tiny() -> Settings:
    """The quick tier on two cases, with as little effort as there can be."""
    return tier("quick", **TINY)


def whole(place: Path) -> Path:
    """The audit done in one go, in this process; its folder. Done once for each ``place``."""
    folder = place / "whole-audit"
    if not (folder / "report.json").exists():
        for _ in audit(MODELS, find_cases(CARDIAC), folder, tiny()):
            pass
        write_report(folder)
    assert load_audit(folder).complete
    return folder
