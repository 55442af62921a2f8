"""From what was chosen to a run that can start: the data looked at, the config made, the folder written. No Qt here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from cease_core.cli.recipe import Recipe, changed
from cease_core.cli.train import CONFIG, DATA, SPLIT, plan_of
from cease_core.data import Dataset, Finding, Split, check, describe, survey, write_split
from cease_core.data.layouts import place_of
from cease_core.data.survey import Facts, Unreadable
from cease_core.errors import CeaseError, first_fault
from cease_core.io import READABLE, write_labels, write_scan
from cease_core.io.files import match_suffix, write_text
from cease_core.models.card import ModelCard
from cease_core.models.checkpoint import load_card
from cease_core.models.library import find_model
from cease_core.scan import LabelArray, Scan
from cease_core.training import DataSource
from cease_core.training.config import parse_config
from cease_core.training.propose import propose, slug
from napari_cease.jobs.training import RUNS, Job, Run

VALIDATED = 5
"""Of a single labelled volume, one in so many labelled slices validates."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A scan with its mask on its grid, and the names of the classes that are known."""

    scan: Scan
    labels: LabelArray
    classes: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class Looked:
    """A data set once every case has been read.

    Parameters
    ----------
    folder, dataset
        Where it is, and what its layout tells.
    seen
        What each case is like, or why it cannot be read.
    sides
        Who trains and who validates, where that does not follow from the patients' names.
    """

    folder: Path
    dataset: Dataset
    seen: tuple[Facts | Unreadable, ...]
    sides: Split | None = None

    @property
    def facts(self) -> tuple[Facts, ...]:
        """Of the cases that can be read."""
        return tuple(s for s in self.seen if isinstance(s, Facts))


Told = Callable[[int, int], bool]
"""Told of the cases read, and how many there are; false ends the reading."""


def look(folder: str | Path, told: Told) -> Looked | None:
    """Read every case of a data set; None if ``told`` ended it.

    Raises
    ------
    CeaseError
        If the folder holds no data set.
    """
    dataset = describe(folder)
    if not dataset.cases:
        raise CeaseError(f"{folder} holds no cases; put scans into images/ and their masks into labels/.")
    seen: list[Facts | Unreadable] = []
    for one in survey(dataset.cases):
        seen.append(one)
        if not told(len(seen), len(dataset.cases)):
            return None
    return Looked(place_of(folder), dataset, tuple(seen))


# --- labelled layers ----------------------------------------------------------------------------------------


def look_at_pairs(pairs: Sequence[Pair], folder: Path, told: Told) -> Looked | None:
    """Write scans and masks as a data set and read it back.

    A single volume is cut in two between slices: the last of its labelled slices validate, the others train.

    Parameters
    ----------
    folder
        Empty; receives ``images/``, ``labels/`` and ``classes.json``.

    Raises
    ------
    CeaseError
        If there is nothing to divide, or the files cannot be written.
    """
    if not pairs:
        raise CeaseError("no labelled image is chosen; tick one, or paint a labels layer over an image.")
    halves = len(pairs) == 1
    if halves:
        pairs = _cut(pairs[0])
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    names = _names([pair.scan.name for pair in pairs])
    for name, pair in zip(names, pairs, strict=True):
        _write_pair(name, pair, folder)
    classes = {i: title for pair in pairs for i, title in pair.classes.items()}
    if classes and all({*np.unique(p.labels).tolist()} - {0} <= classes.keys() for p in pairs):
        write_text(folder / "classes.json", json.dumps({str(i): classes[i] for i in sorted(classes)}))
    looked = look(folder, told)
    if looked is None:
        return None
    title = pairs[0].scan.name.removesuffix(_PARTS[0]) if halves else "labelled layers"
    cases = {case.name: case for case in looked.dataset.cases}
    sides = Split((cases[names[0]],), (cases[names[1]],)) if halves else None
    return replace(looked, dataset=replace(looked.dataset, name=title), sides=sides)


_PARTS = (" training", " validation")


def _cut(pair: Pair) -> list[Pair]:
    scan, labels = pair.scan, pair.labels
    marked = np.flatnonzero(labels.reshape(len(labels), -1).any(axis=1)) if scan.ndim == 3 else np.empty(0)
    if len(marked) < 2:
        raise CeaseError(
            f"{scan.name} alone cannot be divided into images to train on and images to validate on; label a second "
            "image (or slice), or choose a folder."
        )
    at = int(marked[-max(1, round(len(marked) / VALIDATED))])
    parts = []
    for title, (first, last) in zip(_PARTS, ((0, at), (at, len(labels))), strict=True):
        affine = scan.affine.copy()
        affine[:3, 3] += affine[:3, 0] * first
        part = Scan(
            np.ascontiguousarray(scan.image[:, first:last]),
            affine,
            name=scan.name + title,
            unit=scan.unit,
            length_unit=scan.length_unit,
            window=scan.window,
        )
        parts.append(Pair(part, np.ascontiguousarray(labels[first:last]), pair.classes))
    return parts


def _names(titles: Sequence[str]) -> list[str]:
    """A file name for each title."""
    names: list[str] = []
    for title in titles:
        name = first = slug(title)
        count = 1
        while name in names:
            count += 1
            name = f"{first}-{count}"
        names.append(name)
    return names


def _write_pair(name: str, pair: Pair, folder: Path) -> None:
    scan = pair.scan
    suffix = match_suffix(scan.path, READABLE) if scan.path is not None and scan.path.is_file() else None
    if scan.path is not None and suffix is not None and suffix not in (".dcm", ".dicom", ".ima"):
        # The file itself: its unit and its grid are then beyond doubt.
        shutil.copyfile(scan.path, folder / "images" / f"{name}{suffix}")
    elif scan.ndim == 2 and scan.unit == "8-bit":
        write_scan(scan.image, scan, folder / "images" / f"{name}.png")
    else:
        write_scan(scan.image, scan, folder / "images" / f"{name}.nii.gz")
    picture = scan.ndim == 2 and scan.length_unit == "pixel"
    write_labels(pair.labels, scan, folder / "labels" / f"{name}{'.png' if picture else '.nii.gz'}")


# --- the config ---------------------------------------------------------------------------------------------


def draft(looked: Looked, source: Mapping[str, Any], choices: Mapping[str, Any], title: str = "") -> Recipe:
    """Config and sides for a data set.

    Parameters
    ----------
    source
        Entries of the config's ``data``: ``validation``, ``test``, ``patients``.
    choices
        Other entries by dotted name, ``defence`` and the length among them.
    title
        Of the model; by default that of the data set with the defence.

    Raises
    ------
    CeaseError
        If cases, choices and model do not fit together.
    """
    for one in looked.seen:
        if isinstance(one, Unreadable):
            raise CeaseError(one.reason)
    data = {"name": looked.dataset.name, "folder": looked.folder.name, **source}
    sides = _sides(looked, data)
    findings = check(looked.dataset, looked.seen, sides)
    if faults := [f for f in findings if f.severity == "error"]:
        raise CeaseError(_sentence(faults[0]))
    known = {case.name for case in sides.training + sides.validation}
    facts = tuple(f for f in looked.facts if f.case.name in known)
    given = changed({}, {k: v for k, v in choices.items() if k.partition(".")[0] != "defence"})
    start: ModelCard | None = load_card(find_model(given["start"])) if "start" in given else None
    proposal = propose(looked.dataset, facts, given=given, start=start)
    raw = changed({**proposal, "data": data}, choices)
    defence = raw["defence"] if isinstance(raw["defence"], str) else raw["defence"]["preset"]
    raw["title"] = title or f"{raw['title']}, {defence}"
    raw["name"] = slug(title) if title else f"{raw['name']}-{defence.replace('_', '-')}"
    return Recipe(raw, parse_config(raw, "these choices"), looked.folder, looked.dataset, sides, facts)


def _sides(looked: Looked, data: Mapping[str, Any]) -> Split:
    if looked.sides is not None:
        return looked.sides
    try:
        source = DataSource.model_validate(data)
    except ValidationError as error:
        raise CeaseError(f"these choices: data.{first_fault(error, 'all')}; correct that entry.") from error
    sides = source.split(looked.dataset.cases)
    patients = {case.patient for case in sides.training + sides.validation + sides.test}
    if not sides.validation and source.validation > 0 and len(patients) > 1:
        # So few patients that the share rounds to none: one has to do.
        one = source.model_copy(update={"validation": 1 / len(patients)})
        sides = one.split(looked.dataset.cases)
    if not sides.training or not sides.validation:
        raise CeaseError(
            f"{len(looked.dataset.cases)} cases of {len(patients)} patients leave {len(sides.training)} cases to train "
            f"on and {len(sides.validation)} to validate on; add cases or change the shares."
        )
    return sides


def _sentence(finding: Finding) -> str:
    return f"{finding.case}: {finding.message}" if finding.case else finding.message


def warnings(looked: Looked, sides: Split) -> list[str]:
    """What to know about a data set before training on it, a sentence each."""
    dataset = replace(looked.dataset, cases=tuple(case for side in sides.sides.values() for case in side))
    told = [_sentence(f) for f in check(dataset, looked.seen, sides) if f.severity == "warning"]
    if looked.sides is not None:
        told.append(
            "The slices that validate are neighbours of those that train, so the Dice that is shown is flattering; "
            "judge the model on another patient."
        )
    return told


def plan(recipe: Recipe) -> dict[str, str]:
    """What a run would cost, by name: cases, images, parameters, gradient computations.

    Raises
    ------
    CeaseError
        If the model or the defence cannot be built.
    """
    rows = [re.split(r"\s{2,}", line, maxsplit=1) for line in plan_of(recipe).splitlines()]
    return {row[0]: row[1] for row in rows}


# --- the folder ---------------------------------------------------------------------------------------------


def free_name(recipe: Recipe, library: Path, *, chosen: bool) -> Recipe:
    """The recipe under a name that is free in a library: a chosen one has to be, another one is counted up.

    Raises
    ------
    CeaseError
        If a chosen name is taken.
    """
    name = first = recipe.config.name
    count = 1
    while name == RUNS or (library / name / "card.json").exists() or (library / RUNS / name).exists():
        if name == RUNS:
            raise CeaseError(f"the name {name} is the folder of the runs; choose another name.")
        if chosen:
            kind = "run" if (library / RUNS / name).exists() else "model"
            raise CeaseError(f"there is a {kind} called {name} in {library} already; choose another name.")
        count += 1
        name = f"{first}-{count}"
    if count == 1:
        return recipe
    names = {"name": name, "title": f"{recipe.config.title} ({count})"}
    return replace(recipe, raw=recipe.raw | names, config=recipe.config.model_copy(update=names))


def create_run(recipe: Recipe, job: Job, *, copy_data: bool = False) -> Run:
    """Write the folder of a run, which then can start.

    Parameters
    ----------
    copy_data
        Whether the data set goes into the run's folder: where its own is not meant to last.

    Raises
    ------
    CeaseError
        If the folder exists or cannot be written.
    """
    folder = (job.library / RUNS / recipe.config.name).resolve()
    try:
        folder.mkdir(parents=True)
        data = recipe.folder
        if copy_data:
            data = folder / "data"
            shutil.copytree(recipe.folder, data)
    except OSError as error:
        raise CeaseError(f"cannot make the folder {folder}: {error.strerror}; choose another name or place.") from error
    write_text(folder / CONFIG, recipe.written)
    write_split(folder / SPLIT, recipe.sides, dataset=recipe.dataset.name, pattern=recipe.config.data.patients)
    write_text(folder / DATA, json.dumps({"folder": str(data)}, ensure_ascii=False) + "\n")
    job.write(folder)
    return Run(folder)
