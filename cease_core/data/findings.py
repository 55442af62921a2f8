"""What is wrong with a data set, as findings of one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cease_core.errors import CeaseError

Severity = Literal["error", "warning"]

SHOWN = 10
"""Findings that a message lists before it only counts them."""


@dataclass(frozen=True)
class Finding:
    """Something to mend (an error) or to know (a warning).

    Parameters
    ----------
    severity
        With errors, the data set cannot be trained on, or the results would be wrong.
    case
        Name of the case, or the line of a list; empty if it concerns all of them.
    message
        One sentence: what it is and what to do.
    """

    severity: Severity
    case: str
    message: str

    def __str__(self) -> str:
        return f"{self.case}: {self.message}" if self.case else self.message


def refuse(place: Path, findings: Sequence[Finding]) -> None:
    """Raise a `CeaseError` with the findings, a line each, if there are any; after `SHOWN` of them they are counted."""
    if not findings:
        return
    if len(findings) == 1:
        raise CeaseError(f"{place}: {findings[0]}")
    lines = [f"{place} has {len(findings)} problems:", *(f"  {finding}" for finding in findings[:SHOWN])]
    if len(findings) > SHOWN:
        lines.append(f"  and {len(findings) - SHOWN} more")
    raise CeaseError("\n".join(lines))
