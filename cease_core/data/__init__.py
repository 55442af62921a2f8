"""Cases: scans with their reference masks, checked, and split so that no patient is on two sides."""

from cease_core.data.cache import Cached
from cease_core.data.cases import Case, Dataset, load_case, read_mask, with_classes
from cease_core.data.checks import check
from cease_core.data.classmap import ClassMap
from cease_core.data.findings import Finding
from cease_core.data.layouts import describe, find_cases, inspect, place_of
from cease_core.data.splits import (
    Split,
    folds,
    given_split,
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
    "ClassMap",
    "Dataset",
    "Finding",
    "Split",
    "check",
    "describe",
    "find_cases",
    "folds",
    "given_split",
    "inspect",
    "load_case",
    "patient_of",
    "place_of",
    "read_mask",
    "read_split",
    "split",
    "split_cases",
    "survey",
    "with_classes",
    "with_patients",
    "write_split",
]
