"""Which layout a data set has: plain folders, the Medical Segmentation Decathlon's, nnU-Net's, or a list in a file."""

from __future__ import annotations

from pathlib import Path

from cease_core.data import decathlon, folders, lists, nnunet
from cease_core.data.cases import Case, Dataset
from cease_core.data.classmap import ClassMap
from cease_core.data.findings import Finding, refuse
from cease_core.data.manifest import MANIFEST, read_manifest
from cease_core.errors import CeaseError


def inspect(path: str | Path, classes: ClassMap | None = None) -> tuple[Dataset, list[Finding]]:
    """The usable part of a data set, in whichever layout it is, and what is wrong with the rest.

    Parameters
    ----------
    path
        A folder with ``images/`` and ``labels/`` (or ``masks/``), or with a ``dataset.json``; or that file; or a list
        of cases (``.csv``, ``.tsv``, ``.jsonl``).
    classes
        What the ids in the masks mean; it takes the place of what the data set says of them.

    Returns
    -------
    Dataset
        The cases whose files are all there; nothing has been read of these.
    list of Finding
        All cases that are incomplete, or lines of a list that cannot be used.

    Raises
    ------
    CeaseError
        If the folder has none of the layouts, or is damaged in a way that leaves no case.
    """
    place = Path(path).expanduser()
    if lists.matches(place):
        return lists.read(place, classes)
    folder = place.parent if place.name == MANIFEST else place
    masks = folders.masks_of(folder)
    if masks is not None:
        return folders.read(folder, masks, classes)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        layout = nnunet if nnunet.matches(folder, manifest) else decathlon
        return layout.read(folder, manifest, classes)
    raise CeaseError(
        f"{folder} needs the folders images/ and labels/ with one mask for each scan, "
        f"or a {MANIFEST} as in the Medical Segmentation Decathlon or nnU-Net; a list of cases ends in "
        f"{', '.join(lists.SUFFIXES)}."
    )


def describe(path: str | Path, classes: ClassMap | None = None) -> Dataset:
    """The data set in a folder or a list, if all of it is there.

    Parameters
    ----------
    path, classes
        As in `inspect`.

    Raises
    ------
    CeaseError
        As in `inspect`, and if any case is incomplete; all of them are listed, a line each.
    """
    dataset, findings = inspect(path, classes)
    refuse(Path(path), findings)
    return dataset


def place_of(path: str | Path) -> Path:
    """Where a data set is found again from anywhere: the absolute path of its folder, or of a list."""
    place = Path(path).expanduser().resolve()
    return place.parent if place.name == MANIFEST else place


def find_cases(path: str | Path, classes: ClassMap | None = None) -> list[Case]:
    """Cases of a data set in any layout, in the order of their names.

    Raises
    ------
    CeaseError
        As in `describe`.
    """
    return list(describe(path, classes).cases)
