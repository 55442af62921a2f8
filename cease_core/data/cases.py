"""Folders of scans and masks as lists of cases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan
from cease_core.scan import LabelArray, Scan


@dataclass(frozen=True)
class Case:
    """A scan and its reference mask on disk, named after the file without its suffixes."""

    name: str
    image: Path
    labels: Path


def case_name(path: Path) -> str:
    """File name without its suffixes: ``scd_15.nii.gz`` → ``scd_15``."""
    return path.name.split(".")[0]


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
    images = {case_name(p): p for p in sorted((folder / "images").iterdir()) if not p.name.startswith(".")}
    labels = {case_name(p): p for p in sorted(masks.iterdir()) if not p.name.startswith(".")}
    odd = sorted(images.keys() ^ labels.keys())
    if odd or not images:
        example = f", for example {odd[0]}" if odd else ""
        raise CeaseError(
            f"{folder}: {len(odd)} files have no partner in images/ and {masks.name}/{example}; "
            "name each mask like its scan."
        )
    return [Case(name, images[name], labels[name]) for name in images]


def load_case(case: Case) -> tuple[Scan, LabelArray]:
    """Read a case's scan and its mask (*spatial) on the scan's grid."""
    scan = read_scan(case.image)
    return scan, read_labels(case.labels, like=scan)


def split_cases(cases: Iterable[Case], validation: float) -> tuple[list[Case], list[Case]]:
    """Split into training and validation cases by a hash of the name.

    The side of a case depends on its name alone: adding cases or changing a seed moves none of the others.

    Parameters
    ----------
    validation
        Share that is put aside, in [0, 1).
    """
    ordered = sorted(cases, key=lambda c: hashlib.sha256(c.name.encode()).hexdigest())
    count = round(len(ordered) * validation)
    return sorted(ordered[count:], key=lambda c: c.name), sorted(ordered[:count], key=lambda c: c.name)
