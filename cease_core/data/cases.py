"""Cases on disk, and how their scans and masks are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cease_core.data.cache import Cached
from cease_core.data.classmap import ClassMap
from cease_core.errors import CeaseError
from cease_core.io import READABLE, read_labels, read_scan
from cease_core.io.files import stem
from cease_core.scan import LabelArray, Scan

_GRID_TOLERANCE = 1e-2
"""How far, in voxels, the channels of one case may lie from each other: as far as a mask from its scan."""

Side = Literal["training", "validation", "test"]


@dataclass(frozen=True)
class Case:
    """A scan and its reference mask on disk.

    Parameters
    ----------
    name
        After the file without its suffix; unique within a data set.
    image, labels
        The scan and its mask.
    patient
        Cases of one patient stay on one side of every split; by default the case's name.
    further
        Files of the second and further channels, on the grid of ``image``.
    volumes_as_channels
        Whether a fourth axis of ``image`` holds channels, not time points.
    side
        Of the split that came with the data set; None if it came with none.
    classes
        What the ids in the file of the mask mean; None if they are the classes.
    """

    name: str
    image: Path
    labels: Path
    patient: str = ""
    further: tuple[Path, ...] = ()
    volumes_as_channels: bool = False
    side: Side | None = None
    classes: ClassMap | None = None

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.name)


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder or a list, and what its layout tells about them.

    Parameters
    ----------
    name
        As the layout gives it, else that of the folder or the list.
    layout
        ``"folders"``, ``"decathlon"``, ``"nnunet"`` or ``"list"``.
    cases
        In the order of their names.
    classes
        Name of each foreground class id; empty where the layout tells none.
    """

    name: str
    layout: str
    cases: tuple[Case, ...]
    classes: dict[int, str] = field(default_factory=dict)


def case_name(path: Path) -> str:
    """File name without its suffix: ``scd_15.nii.gz`` → ``scd_15``, and ``1.2.840.nii`` → ``1.2.840``."""
    return stem(path, READABLE)


def load_case(case: Case, cache: Cached | None = None) -> tuple[Scan, LabelArray]:
    """Read a case's scan and its mask.

    Parameters
    ----------
    case
        The case; channels from several files are stacked.
    cache
        Where decoded arrays are kept; without one, the files are decoded.

    Returns
    -------
    Scan, LabelArray
        The image (C, *spatial) with its place, and the mask (*spatial) on the scan's grid, in classes.

    Raises
    ------
    CeaseError
        If a file cannot be read, mask and channels do not share one grid, or the mask holds ids without a class.
    """
    if cache is None:
        return _decode(case)
    read_as = "" if case.classes is None else str(case.classes)
    return cache.load((case.image, *case.further, case.labels), lambda: _decode(case), read_as)


def read_mask(path: str | os.PathLike[str], like: Scan, classes: ClassMap | None = None) -> LabelArray:
    """Read a mask in the classes of a model.

    Parameters
    ----------
    path, like
        As in `cease_core.io.read_labels`.
    classes
        What the ids in the file mean; they are taken as they are stored, 255 for white in a picture, too.
        Without a map they are the classes, and white is 1.

    Raises
    ------
    CeaseError
        As `cease_core.io.read_labels` does, and for ids that the map leaves out.
    """
    if classes is None:
        return read_labels(path, like=like)
    return classes.apply(read_labels(path, like=like, as_stored=True), os.path.basename(path))


def with_classes(cases: Iterable[Case], classes: ClassMap | None) -> tuple[Case, ...]:
    """The cases with a class map in place of their own, or as they are without one."""
    if classes is None:
        return tuple(cases)
    return tuple(replace(case, classes=classes) for case in cases)


def _decode(case: Case) -> tuple[Scan, LabelArray]:
    scan = read_scan(case.image, volumes_as_channels=case.volumes_as_channels)
    if case.further:
        scan = _stack(case, [scan, *(read_scan(path) for path in case.further)])
    return scan, read_mask(case.labels, scan, case.classes)


def _stack(case: Case, scans: Sequence[Scan]) -> Scan:
    first = scans[0]
    for path, other in zip(case.further, scans[1:], strict=True):
        if other.shape != first.shape or _distance(other, first) > _GRID_TOLERANCE:
            raise CeaseError(
                f"{path.name} does not lie on the grid of {case.image.name} (shape {other.file_shape} against "
                f"{first.file_shape}); resample the channels of a case onto one grid."
            )
    return replace(
        first,
        image=np.concatenate([s.image for s in scans]),
        name=case.name,
        unit=first.unit if {s.unit for s in scans} == {first.unit} else "a.u.",
        window=None if len({s.window for s in scans}) > 1 else first.window,  # type: ignore[arg-type]
        rgb=False,
    )


def _distance(scan: Scan, other: Scan) -> float:
    """How far, in voxels, two scans of one shape lie apart, at most."""
    difference = np.linalg.inv(other.affine) @ scan.affine - np.eye(4)
    extent = np.array([*scan.shape, *(0,) * (3 - scan.ndim), 1])
    return float((np.abs(difference) @ extent)[:3].max())
