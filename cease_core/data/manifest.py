"""``dataset.json``, as the Medical Segmentation Decathlon and nnU-Net write it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cease_core.errors import CeaseError, first_fault

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


def class_names(labels: Labels, path: Path) -> dict[int, str]:
    """Name of each foreground id, ascending, whichever way round ``labels`` is written.

    Raises
    ------
    CeaseError
        If a class is a region of several ids or to be ignored, has no id, or shares it.
    """
    names: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, list):
            raise CeaseError(
                f"{path}: labels: {key!r} is a region of the ids {value}, which is not supported; "
                "write masks in which each class has one id of its own."
            )
        number, name = (key, value) if isinstance(value, str) and key.isdecimal() else (value, key)
        if not str(number).isdecimal():
            raise CeaseError(f"{path}: labels: {name!r} has no id; give each class a whole number from 0 up.")
        if name == "ignore":
            raise CeaseError(
                f"{path}: labels: voxels to be ignored (id {number}) are not supported; give them a class in the masks."
            )
        if names.setdefault(int(number), name) != name:
            raise CeaseError(
                f"{path}: labels: {names[int(number)]!r} and {name!r} share the id {number}; give each its own."
            )
    return {i: names[i] for i in sorted(names) if i != 0}


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
            f"{folder / MANIFEST} lists {entry}, which lies outside its folder; list files within the folder only."
        )
    return folder / place


def require_files(folder: Path, paths: list[Path]) -> None:
    """Refuse a ``dataset.json`` that promises files which are not there."""
    missing = [p for p in paths if not os.path.isfile(p)]
    if missing:
        raise CeaseError(
            f"{folder}: {len(missing)} of the {len(paths)} files that {MANIFEST} promises are missing, for example "
            f"{missing[0].relative_to(folder).as_posix()}; copy them there, or correct {MANIFEST}."
        )
