"""Cases: scans with their reference masks, checked, and split so that no patient is on two sides."""

from cease_core.data.cache import Cached
from cease_core.data.cases import Case, Dataset, load_case
from cease_core.data.checks import Finding, check
from cease_core.data.layouts import describe, find_cases
from cease_core.data.splits import (
    Split,
    folds,
    patient_of,
    read_split,
    split,
    split_cases,
    with_patients,
    write_split,
)
from cease_core.data.survey import survey

__all__ = [
    "Cached",
    "Case",
    "Dataset",
    "Finding",
    "Split",
    "check",
    "describe",
    "find_cases",
    "folds",
    "load_case",
    "patient_of",
    "read_split",
    "split",
    "split_cases",
    "survey",
    "with_patients",
    "write_split",
]
