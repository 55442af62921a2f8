"""What people read of an audit: a page, its figures as JSON, and a section for model cards."""

from __future__ import annotations

from pathlib import Path

from cease_core.evaluation.audit.store import load_audit
from cease_core.evaluation.report.card import card_section
from cease_core.evaluation.report.page import page
from cease_core.evaluation.summary import summarise
from cease_core.io.files import write_text

__all__ = ["FIGURES", "card_section", "page", "write_report"]

PAGE, FIGURES, CARD = "report.html", "report.json", "robustness.md"


def write_report(folder: str | Path) -> Path:
    """Write ``report.html``, ``report.json`` and ``robustness.md`` beside an audit's table.

    The page holds everything it shows and asks no network for anything.

    Parameters
    ----------
    folder
        Of an audit, finished or not.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    CeaseError
        If the folder holds no audit, or cannot be written.
    """
    audit = load_audit(folder)
    summary = summarise(audit)
    write_text(audit.folder / FIGURES, summary.model_dump_json(indent=1) + "\n")
    write_text(audit.folder / CARD, "\n".join(card_section(audit, summary, m) for m in summary.models))
    write_text(audit.folder / PAGE, page(audit, summary))
    return audit.folder / PAGE
