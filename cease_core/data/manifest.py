"""``dataset.json``, as the Medical Segmentation Decathlon and nnU-Net write it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cease_core.data.cases import Case
from cease_core.data.classmap import LARGEST, ClassMap, listed
from cease_core.data.findings import Finding
from cease_core.errors import CeaseError, first_fault, one_line

MANIFEST = "dataset.json"

Labels = dict[str, str | int | list[int]]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)

    image: str
    label: str


class Manifest(BaseModel):
    """What is used of a ``dataset.json``; whatever else it tells is left aside.

    Parameters
    ----------
    labels
        Id to name (Decathlon, nnU-Net 1) or name to id (nnU-Net 2).
    modality, channel_names
        Name of each channel, the former in the Decathlon and nnU-Net 1, the latter in nnU-Net 2.
    file_ending
        Of all scans and masks (nnU-Net 2).
    training
        Scans and masks, as paths within the folder (Decathlon, nnU-Net 1).
    """

    model_config = ConfigDict(frozen=True)

    name: str = ""
    labels: Labels = {}
    modality: dict[str, str] = {}
    channel_names: dict[str, str] = {}
    file_ending: str = ""
    training: tuple[_Entry, ...] = ()


def read_manifest(folder: Path) -> Manifest:
    """Read the ``dataset.json`` of a folder.

    Raises
    ------
    CeaseError
        If it cannot be read, is no JSON, or an entry has another form.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        raise CeaseError(f"{path}: {first_fault(error, 'the whole file')}; correct that entry.") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds; `CeaseError` if it cannot be read or is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CeaseError(f"cannot read {path}: {error.strerror}; give the path of a readable file.") from error
    except (ValueError, RecursionError) as error:
        raise CeaseError(f"{path} is not valid JSON ({error}); copy or write it again.") from error


def read_classes(labels: Labels, path: Path, classes: ClassMap | None = None) -> tuple[dict[int, str], ClassMap | None]:
    """Names of the foreground classes, whichever way round ``labels`` is written, and what the ids in the masks mean.

    Parameters
    ----------
    labels
        Names and ids; a name of several ids is a region of nnU-Net 2.
    path
        Where they stand, for the message.
    classes
        The user's own map, which decides on regions and voxels to be ignored, too.

    Returns
    -------
    dict of int to str
        Ascending, without the background.
    ClassMap or None
        ``classes``, or the one that regions without an overlap make.

    Raises
    ------
    CeaseError
        If a name has no id or shares it; without ``classes`` also if regions overlap or voxels are to be ignored.
    """
    named = _ids_by_name(labels, path)
    if classes is not None:
        return classes.names(named), classes
    foreground = {name: ids - {0} for name, ids in named.items() if ids != {0}}
    every = sorted(i for ids in foreground.values() for i in ids)
    if "ignore" in foreground:
        kept = ClassMap.in_order(set(every) - foreground["ignore"]).pairs
        dropping = ClassMap(tuple(sorted((*kept, *((i, 0) for i in foreground["ignore"])))))
        raise CeaseError(
            f"{path}: labels: voxels to be ignored ({listed(sorted(foreground['ignore']))}) are not supported; make "
            f"them background with --classes {dropping}, or give them a class in the masks."
        )
    shared = sorted({i for i in every if every.count(i) > 1})
    if shared:
        first = max(foreground, key=lambda name: len(foreground[name]))
        example = ",".join(f"{i}={int(i in foreground[first])}" for i in sorted(set(every)))
        raise CeaseError(
            f"{path}: labels: the regions share {listed(shared)}, but a voxel can have one class only; say with "
            f"--classes which class each id becomes, as in --classes {example} for {first!r} alone."
        )
    if all(len(ids) == 1 for ids in foreground.values()):
        return dict(sorted((min(ids), name) for name, ids in foreground.items())), None
    pairs = [(i, number) for number, ids in enumerate(foreground.values(), start=1) for i in ids]
    return dict(enumerate(foreground, start=1)), ClassMap(tuple(sorted(pairs)))


def _ids_by_name(labels: Labels, path: Path) -> dict[str, frozenset[int]]:
    """The ids of each name; those of a name with several are a region, and only regions may share them."""
    named: dict[str, frozenset[int]] = {}
    single: dict[int, str] = {}
    for key, value in labels.items():
        number, name = (key, value) if isinstance(value, str) and key.isdecimal() else (value, key)
        if isinstance(number, list):
            if not number or min(number) < 0 or max(number) > LARGEST:
                raise CeaseError(f"{path}: labels: the region {name!r} has no ids; list whole numbers from 0 up.")
            named[name] = frozenset(number)
            continue
        if not re.fullmatch(r"[0-9]{1,10}", str(number)) or int(number) > LARGEST:
            raise CeaseError(f"{path}: labels: {name!r} has no id; give each class a whole number from 0 up.")
        if single.setdefault(int(number), name) != name:
            raise CeaseError(
                f"{path}: labels: {single[int(number)]!r} and {name!r} share the id {number}; give each its own."
            )
        named[name] = frozenset({int(number)})
    return named


def inside(folder: Path, entry: str) -> Path:
    """The file within ``folder`` that an entry of its ``dataset.json`` names.

    Raises
    ------
    CeaseError
        If the entry leads out of the folder.
    """
    # By the letters of the path: links that the owner of the folder made to another disk stay allowed.
    place = Path(os.path.normpath(entry))
    if place.is_absolute() or ".." in place.parts:
        raise CeaseError(
            f"{folder / MANIFEST} lists {one_line(entry)}, which lies outside its folder; list files within the folder "
            "only."
        )
    return folder / place


def missing_files(folder: Path, cases: Iterable[Case]) -> Iterator[Finding]:
    """The files that a ``dataset.json`` promises and that are not there, a finding for each case."""
    for case in cases:
        missing = [p for p in (case.image, *case.further, case.labels) if not os.path.isfile(p)]
        if missing:
            names = " and ".join(p.relative_to(folder).as_posix() for p in missing)
            yield Finding(
                "error",
                case.name,
                f"{names} {'is missing; copy it' if len(missing) == 1 else 'are missing; copy them'} there, or correct "
                f"{MANIFEST}.",
            )


def without_faults(cases: Iterable[Case], findings: Iterable[Finding]) -> tuple[Case, ...]:
    """The cases that no finding names."""
    named = {finding.case for finding in findings}
    return tuple(case for case in cases if case.name not in named)
