"""Raw data of nnU-Net 1 and 2 (Isensee et al., 2021): a file for each channel, ``imagesTr/CASE_0000.nii.gz``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cease_core.data.cases import Case, Dataset, with_classes
from cease_core.data.classmap import ClassMap
from cease_core.data.findings import Finding
from cease_core.data.manifest import MANIFEST, Manifest, inside, missing_files, read_classes, without_faults
from cease_core.errors import CeaseError
from cease_core.io import READABLE, picture

LAYOUT = "nnunet"
IMAGES, LABELS = "imagesTr", "labelsTr"
FIRST_VERSION_ENDING = ".nii.gz"
"""Of all files in version 1, whose ``dataset.json`` does not say it."""


def matches(folder: Path, manifest: Manifest) -> bool:
    """Whether a ``dataset.json`` is nnU-Net's and not the Decathlon's, from which version 1 differs on disk alone."""
    if manifest.channel_names or manifest.file_ending:
        return True
    listed = next((inside(folder, entry.image) for entry in manifest.training), None)
    return (
        listed is not None
        and not os.path.isfile(listed)
        and os.path.isfile(_channel(folder, listed.name.removesuffix(FIRST_VERSION_ENDING), 0, FIRST_VERSION_ENDING))
    )


def read(folder: Path, manifest: Manifest, classes: ClassMap | None = None) -> tuple[Dataset, list[Finding]]:
    """The training cases, each with the files of all its channels.

    Returns
    -------
    Dataset
        The cases whose files are there.
    list of Finding
        Those of which a channel or the mask is missing.

    Raises
    ------
    CeaseError
        If folders are missing, the files' ending cannot be read, or the classes cannot be used without ``classes``.
    """
    ending = manifest.file_ending or FIRST_VERSION_ENDING
    if ending.lower() not in READABLE:
        raise CeaseError(
            f"{folder / MANIFEST}: file_ending {ending!r} cannot be read; convert the files to one of "
            f"{', '.join(READABLE)}."
        )
    findings: list[Finding] = []
    if manifest.training:
        labels = _listed(folder, manifest, ending)
    else:
        labels, alone = _found(folder, ending)
        findings += [
            Finding(
                "error", name, f"the scan has no mask in {LABELS}; add {name}{ending} there, or move the scan away."
            )
            for name in alone
        ]
    channels = max(len(manifest.channel_names or manifest.modality), 1)
    cases = [_case(folder, name, labels[name], channels, ending) for name in sorted(labels)]
    findings += missing_files(folder, cases)
    names, classes = read_classes(manifest.labels, folder / MANIFEST, classes)
    kept = with_classes(without_faults(cases, findings), classes)
    return Dataset(manifest.name or folder.resolve().name, LAYOUT, kept, names), findings


def _channel(folder: Path, name: str, channel: int, ending: str) -> Path:
    return folder / IMAGES / f"{name}_{channel:04d}{ending}"


def _case(folder: Path, name: str, labels: Path, channels: int, ending: str) -> Case:
    first, *further = (_channel(folder, name, c, ending) for c in range(channels))
    if further and ending.lower() in picture.SUFFIXES and not os.path.isfile(further[0]):
        further = []  # a colour picture may keep its channels in one file
    return Case(name, first, labels, further=tuple(further))


def _listed(folder: Path, manifest: Manifest, ending: str) -> dict[str, Path]:
    paths = (inside(folder, entry.label) for entry in manifest.training)
    return {path.name.removesuffix(ending): path for path in paths}


def _found(folder: Path, ending: str) -> tuple[dict[str, Path], list[str]]:
    """The masks by case, and the scans without a mask."""
    for name in (IMAGES, LABELS):
        if not (folder / name).is_dir():
            raise CeaseError(f"{folder} has no folder {name}; put the training scans and masks where nnU-Net has them.")
    labels = {p.name.removesuffix(ending): p for p in _files(folder / LABELS, ending)}
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(ending))
    scans = {match[1] for p in _files(folder / IMAGES, ending) if (match := pattern.fullmatch(p.name))}
    if not labels and not scans:
        raise CeaseError(f"{folder}: {IMAGES} and {LABELS} hold no {ending} files; correct file_ending in {MANIFEST}.")
    return labels, sorted(scans - labels.keys())


def _files(folder: Path, ending: str) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.name.endswith(ending) and not p.name.startswith(".")]
