"""From the options of ``cease train`` and ``cease relevance`` to a config, and the cases of its three sides."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cease_core.cli.progress import make_progress
from cease_core.data import (
    Case,
    ClassMap,
    Dataset,
    Split,
    describe,
    folds,
    given_split,
    place_of,
    read_split,
    split,
    survey,
)
from cease_core.data.survey import Facts, Unreadable
from cease_core.defences import PRESETS
from cease_core.errors import CeaseError, first_fault
from cease_core.models.architectures import ARCHITECTURES
from cease_core.models.checkpoint import load_card
from cease_core.models.library import find_model
from cease_core.training import DataSource, TrainingConfig
from cease_core.training.config import parse_config, read_raw
from cease_core.training.propose import ARCHITECTURE, EPOCHS, VALIDATION, propose

DERIVED = "cease"
"""Preset of a run without a config."""

_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"

Raw = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What was asked for, as it was written; see ``cease train --help``."""

    config: Path | None = None
    data: Path | None = None
    preset: str | None = None
    model: str | None = None
    epochs: int | None = None
    budget: int | None = None
    changes: tuple[str, ...] = ()
    seed: int | None = None
    start: str | None = None
    precision: str | None = None
    device: str = "auto"
    validation: float | None = None
    test: float | None = None
    patients: str | None = None
    folds: int | None = None
    fold: int | None = None
    split: Path | None = None
    classes: str | None = None

    @property
    def describes(self) -> bool:
        """Whether anything is said of the config or the split, apart from where data and results are."""
        others = (self.config, self.split, *self._entries().values())
        return bool(self.changes) or any(v is not None for v in others)

    def entries(self) -> dict[str, Any]:
        """Config entries by dotted name that the options set, the plain options first.

        Raises
        ------
        CeaseError
            If two options exclude each other, or a name is unknown.
        """
        if self.epochs is not None and self.budget is not None:
            raise CeaseError("--epochs and --budget exclude each other; leave out one of them.")
        if self.folds is not None and self.validation is not None:
            raise CeaseError("--validation and --folds exclude each other; leave out one of them.")
        if self.folds is not None and self.fold is None:
            raise CeaseError(f"--folds {self.folds} needs --fold, from 0 to {self.folds - 1}.")
        if self.split is not None and any(
            v is not None for v in (self.validation, self.test, self.patients, self.folds, self.fold)
        ):
            raise CeaseError("--split decides on every case; leave out the options that make another split.")
        _check_known("preset", self.preset, PRESETS, "cease presets")
        _check_known("model", self.model, ARCHITECTURES, "cease train --help")
        found = {k: v for k, v in self._entries().items() if v is not None}
        return found | dict(_change(written) for written in self.changes)

    def _entries(self) -> dict[str, Any]:
        start = self.start
        if start is not None and Path(start).is_dir():
            start = str(Path(start).resolve())
        return {
            "defence": self.preset,
            "architecture": self.model,
            "epochs": self.epochs,
            "budget": self.budget,
            "seed": self.seed,
            "start": start,
            "precision": self.precision,
            "data.validation": self.validation,
            "data.test": self.test,
            "data.patients": self.patients,
            "data.folds": self.folds,
            "data.fold": self.fold,
            "data.map": self.classes,
        }


@dataclass(frozen=True, eq=False)
class Recipe:
    """A config with the cases that it is for.

    Parameters
    ----------
    raw
        The entries that make up the config; those left out have their defaults.
    config
        The whole.
    folder
        Of the data set, or the file of a list.
    dataset
        What is in it.
    sides
        The cases.
    facts
        Of training and validation cases, if they were looked at.
    """

    raw: Raw
    config: TrainingConfig
    folder: Path
    dataset: Dataset
    sides: Split
    facts: tuple[Facts, ...] = ()

    @property
    def written(self) -> str:
        """The config as YAML: every entry, the defence as a preset with its changes."""
        return as_yaml(self.config.model_dump(mode="json") | {"defence": self.raw.get("defence", "none")})

    @property
    def known(self) -> tuple[Case, ...]:
        """Cases that a training may look at."""
        return self.sides.training + self.sides.validation

    def surveyed(self) -> tuple[Facts, ...]:
        """Facts of these cases; reads them if that has not been done."""
        return self.facts or look_at(self.known)


def resolve(request: RunRequest) -> Recipe:
    """The config and the cases that the options ask for.

    Raises
    ------
    CeaseError
        If options exclude each other, an entry is wrong, the data cannot be used, or a side stays empty.
    """
    if request.data is None:
        raise CeaseError("--data is missing; give the folder with the scans and masks.")
    changes = request.entries()
    if request.config is not None:
        raw = changed(read_raw(request.config), changes)
        config = parse_config(raw, str(request.config))
        _check_fold(request, config.data)
        folder, dataset = find_data(request.data, config.data.folder, config.data.map)
        _check_given(request, dataset)
        return Recipe(raw, config, folder, dataset, _sides(dataset, config.data, request.split))
    written = changes.get("data.map")
    folder, dataset = find_data(request.data, "", None if written is None else ClassMap.read(written))
    _check_given(request, dataset)
    data: Raw = {"name": dataset.name, "folder": folder.name, "validation": VALIDATION}
    data = changed({"data": data}, {k: v for k, v in changes.items() if k.split(".")[0] == "data"})["data"]
    source = _source(data)
    _check_fold(request, source)
    sides = _sides(dataset, source, request.split)
    facts = look_at(sides.training + sides.validation)
    given = changed({}, {k: v for k, v in changes.items() if k.split(".")[0] != "defence"})
    card = load_card(find_model(given["start"])) if "start" in given else None
    if card is not None and given.get("architecture", card.architecture) != card.architecture:
        raise CeaseError(f"{given['start']} is a {card.architecture}; leave out --model, or start from another model.")
    proposal = propose(dataset, facts, given=given, start=card)
    raw = changed({**proposal, "data": data, "defence": DERIVED, "epochs": EPOCHS}, changes)
    defence = raw["defence"] if isinstance(raw["defence"], str) else raw["defence"].get("preset", "own")
    if "name" not in given:
        raw["name"] = f"{raw['name']}-{defence.replace('_', '-')}"
    if "title" not in given:
        raw["title"] = f"{raw['title']}, {defence}"
    return Recipe(raw, parse_config(raw, "these options"), folder, dataset, sides, facts)


def look_at(cases: Sequence[Case]) -> tuple[Facts, ...]:
    """Read every case once.

    Raises
    ------
    CeaseError
        If one cannot be read.
    """
    found: list[Facts] = []
    with make_progress(live=None if is_main() else False) as progress:
        task = progress.add_task("looking at the data", total=len(cases), note="")
        for fact in survey(cases):
            if isinstance(fact, Unreadable):
                raise CeaseError(fact.reason)
            found.append(fact)
            progress.update(task, completed=len(found), note=fact.case.name)
    return tuple(found)


def find_data(data: Path, folder: str, classes: ClassMap | None = None) -> tuple[Path, Dataset]:
    """The data set in ``data``, or the ``folder`` or list below it that a config names, and its absolute path.

    Raises
    ------
    CeaseError
        If there is none.
    """
    inner = data / folder
    if folder and inner.exists() and not (data / "images").is_dir():
        data = inner
    return place_of(data), describe(data, classes)


def is_main() -> bool:
    """Whether this process is the one of several (``accelerate launch``) that speaks and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def as_yaml(entries: Mapping[str, Any]) -> str:
    """Entries in their order, short lists on one line."""
    return yaml.safe_dump(dict(entries), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def changed(raw: Raw, changes: Mapping[str, Any]) -> Raw:
    """Entries with others put in by dotted name; ``defence.`` names are those of `cease_core.defences.preset`.

    Raises
    ------
    CeaseError
        If a name leads into an entry that has no parts.

    Examples
    --------
    >>> changed({"defence": "at", "epochs": 9}, {"defence.inner.steps": 3, "budget": 1000})
    {'defence': {'preset': 'at', 'inner.steps': 3}, 'budget': 1000}
    """
    raw = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if first == "defence" and rest:
            raw["defence"] = _with_defence(raw.get("defence", "none"), rest, value)
            continue
        if name == "architecture" and value != raw.get(name, ARCHITECTURE):
            raw.pop("architecture_args", None)
        _put(raw, name, value)
        # Of the two lengths the one named last holds.
        if name in ("epochs", "budget"):
            raw.pop("budget" if name == "epochs" else "epochs", None)
    return raw


def _with_defence(defence: Any, name: str, value: Any) -> Raw:
    defence = {"preset": defence} if isinstance(defence, str) else dict(defence)
    if "preset" in defence:
        return defence | {name: value}
    if name.partition(".")[0] not in ("inner", "balance", "replays"):
        raise CeaseError(f"the config spells its defence out; change {name} there, or choose a --preset.")
    _put(defence, name, value)
    return defence


def _put(raw: Raw, name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        inner = raw.get(part, {})
        if not isinstance(inner, dict):
            raise CeaseError(f"--set {name}: {part} has no parts; set it as a whole.")
        # A copy: what is inside belongs to whoever called.
        raw[part] = dict(inner)
        raw = raw[part]
    raw[last] = value


def _change(written: str) -> tuple[str, Any]:
    """Name and value of ``KEY=VALUE``; the value is YAML, and numbers may be fractions.

    Examples
    --------
    >>> _change("defence.inner.epsilon=4/255"), _change("patch=[64, 64]"), _change("learning_rate=1e-3")
    (('defence.inner.epsilon', 0.01568627450980392), ('patch', [64, 64]), ('learning_rate', 0.001))
    """
    name, equals, text = written.partition("=")
    name = name.strip()
    if not equals or not all(name.split(".")):
        raise CeaseError(f"--set {written} is no KEY=VALUE; write it like --set learning_rate=1e-3.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CeaseError(f"--set {written}: the value is not valid YAML; quote it.") from error
    return name, _number(value) if isinstance(value, str) else value


def _number(text: str) -> float | str:
    # YAML takes 1e-3 for a word.
    if re.fullmatch(_NUMBER, text, re.IGNORECASE):
        return float(text)
    above, slash, below = text.partition("/")
    if slash and all(re.fullmatch(_NUMBER, part, re.IGNORECASE) for part in (above, below)) and float(below):
        return float(above) / float(below)
    return text


def _sides(dataset: Dataset, source: DataSource, file: Path | None) -> Split:
    if file is not None:
        sides, how = read_split(file, dataset.cases), str(file)
    elif source.folds is not None:
        sides = folds(dataset.cases, source.folds, source.fold, test=source.test, pattern=source.patients)
        how = f"folds = {source.folds}"
    elif given_split(dataset.cases) is not None:
        sides, how = source.split(dataset.cases), "the split of their list"
    else:
        sides = split(dataset.cases, validation=source.validation, test=source.test, pattern=source.patients)
        how = f"validation = {source.validation}"
    if not sides.training or not sides.validation:
        raise CeaseError(
            f"{dataset.name}: {len(dataset.cases)} cases with {how} leave {len(sides.training)} to train and "
            f"{len(sides.validation)} to validate; add cases or change the share for validation."
        )
    return sides


def _check_given(request: RunRequest, dataset: Dataset) -> None:
    """Refuse shares for cases whose list says which side each is on."""
    if request.split is None and given_split(dataset.cases) is not None:
        for option, value in (("validation", request.validation), ("test", request.test), ("folds", request.folds)):
            if value is not None:
                raise CeaseError(
                    f"the list {dataset.name} says which side each case is on; leave out --{option}, "
                    "or its column split."
                )


def _check_fold(request: RunRequest, source: DataSource) -> None:
    if request.fold is not None and source.folds is None:
        raise CeaseError("--fold needs --folds, the number of folds.")


def _source(data: Raw) -> DataSource:
    try:
        return DataSource.model_validate(data)
    except ValidationError as error:
        raise CeaseError(f"these options: data.{first_fault(error, 'all')}; correct that entry.") from error


def _check_known(option: str, name: str | None, known: Mapping[str, Any], where: str) -> None:
    if name is not None and name not in known:
        raise CeaseError(f"--{option} {name} is unknown; choose one of {', '.join(known)} (see `{where}`).")
