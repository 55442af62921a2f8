"""Folders of scans and masks as lists of cases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cease_core.errors import CeaseError
from cease_core.io import READABLE, read_labels, read_scan
from cease_core.io.files import stem
from cease_core.scan import LabelArray, Scan


@dataclass(frozen=True)
class Case:
    """A scan and its reference mask on disk, named after the file without its suffix."""

    name: str
    image: Path
    labels: Path


def case_name(path: Path) -> str:
    """File name without its suffix: ``scd_15.nii.gz`` → ``scd_15``, and ``1.2.840.nii`` → ``1.2.840``."""
    return stem(path, READABLE)


def find_cases(folder: str | Path) -> list[Case]:
    """Cases of a folder with ``images/`` and ``labels/`` (or ``masks/``), matched by name.

    Raises
    ------
    CeaseError
        If the folder has another shape, or scans and masks do not match one to one.
    """
    folder = Path(folder)
    masks = next((folder / n for n in ("labels", "masks") if (folder / n).is_dir()), None)
    if not (folder / "images").is_dir() or masks is None:
        raise CeaseError(f"{folder} needs the folders images/ and labels/ with one mask for each scan.")
    images, labels = _by_name(folder / "images"), _by_name(masks)
    if not images and not labels:
        raise CeaseError(f"{folder}: images/ and {masks.name}/ are empty; put one mask there for each scan.")
    odd = sorted(images.keys() ^ labels.keys())
    if odd:
        raise CeaseError(
            f"{folder}: {len(odd)} files have no partner in images/ and {masks.name}/, for example {odd[0]}; "
            "name each mask like its scan."
        )
    return [Case(name, images[name], labels[name]) for name in images]


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        other = found.setdefault(case_name(path), path)
        if other is not path:
            raise CeaseError(f"{folder} holds both {other.name} and {path.name}; keep one file for each case.")
    return found


def load_case(case: Case) -> tuple[Scan, LabelArray]:
    """Read a case's scan and its mask (*spatial) on the scan's grid."""
    scan = read_scan(case.image)
    return scan, read_labels(case.labels, like=scan)


def split_cases(cases: Iterable[Case], validation: float) -> tuple[list[Case], list[Case]]:
    """Split into training and validation cases by a hash of the name.

    The sides depend on the names alone, neither on their order nor on a seed, and each case that is added moves
    at most one other.

    Parameters
    ----------
    validation
        Share that is put aside, in [0, 1).
    """
    ordered = sorted(cases, key=lambda c: hashlib.sha256(c.name.encode()).hexdigest())
    count = round(len(ordered) * validation)
    return sorted(ordered[count:], key=lambda c: c.name), sorted(ordered[:count], key=lambda c: c.name)
