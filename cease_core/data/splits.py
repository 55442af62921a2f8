"""Splits by patient: the sides depend on the patients' names alone, neither on their order nor on a seed.

Patients are ordered by a hash of their names; the first are put aside for the test, the next for validation.
A patient that is added therefore moves at most one other across each border.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cease_core.data.cases import Case, Side
from cease_core.data.manifest import read_json
from cease_core.errors import CeaseError, first_fault
from cease_core.io.files import write_text


@dataclass(frozen=True)
class Split:
    """Cases to train on, to choose a checkpoint by, and to report on; no patient is on two sides."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...] = ()

    @property
    def sides(self) -> dict[str, tuple[Case, ...]]:
        """The three sides by name."""
        return {"training": self.training, "validation": self.validation, "test": self.test}


def patient_of(name: str, pattern: str | None = None) -> str:
    r"""The patient that a case belongs to.

    Parameters
    ----------
    name
        Of the case.
    pattern
        Regular expression with one group, which is the patient: ``^(scd_\d+)`` finds ``scd_01`` in
        ``scd_01_slice_3``. Without one, each case is a patient.

    Raises
    ------
    CeaseError
        If the pattern is wrong or does not find a patient.

    Examples
    --------
    >>> patient_of("scd_01_slice_3", r"^(scd_\d+)")
    'scd_01'
    """
    if pattern is None:
        return name
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise CeaseError(f"the pattern {pattern!r} is no regular expression ({error}); correct it.") from error
    if compiled.groups != 1:
        raise CeaseError(
            f"the pattern {pattern!r} has {compiled.groups} groups; put the part that names the patient, "
            r"and nothing else, into parentheses, as in ^(\w+)_slice."
        )
    found = compiled.search(name)
    if not found or not found[1]:
        raise CeaseError(f"the pattern {pattern!r} finds no patient in the case {name}; widen it to fit every case.")
    return found[1]


def with_patients(cases: Iterable[Case], pattern: str | None) -> tuple[Case, ...]:
    """The cases with the patients that a pattern finds, or as they are without one; see `patient_of`."""
    if pattern is None:
        return tuple(cases)
    return tuple(replace(case, patient=patient_of(case.name, pattern)) for case in cases)


def split(cases: Iterable[Case], *, validation: float, test: float = 0.0, pattern: str | None = None) -> Split:
    """Put patients aside, first for the test, then for validation; a split that came with the cases is kept as it is.

    Parameters
    ----------
    validation, test
        Shares of all patients, each in [0, 1), together below 1; not looked at if the cases have sides.
    pattern
        How to find the patient in a case's name, see `patient_of`; by default `Case.patient`.

    Raises
    ------
    CeaseError
        If a share or the pattern is wrong, or a patient has cases on two given sides.
    """
    _check_shares(validation, test)
    cases = with_patients(cases, pattern)
    given = given_split(cases)
    if given is not None:
        return given
    order = _order(cases)
    held, aside = round(len(order) * test), round(len(order) * (test + validation))
    return _split(cases, set(order[held:aside]), set(order[:held]))


def folds(cases: Iterable[Case], count: int, fold: int, *, test: float = 0.0, pattern: str | None = None) -> Split:
    """One fold of a cross-validation by patient; every case that is not put aside is validated on in one fold.

    Parameters
    ----------
    count, fold
        Number of folds, at least 2, and which one, counted from 0.
    test
        Share of all patients that is put aside before, the same in each fold and as in `split`.
    pattern
        As in `split`.

    Raises
    ------
    CeaseError
        If a number or the pattern is wrong, there are fewer patients than folds, or the cases came with a split.
    """
    _check_shares(0.0, test)
    cases = with_patients(cases, pattern)
    if given_split(cases) is not None:
        raise CeaseError("the list of cases says which side each is on; leave out the folds, or its column split.")
    order = _order(cases)
    held = round(len(order) * test)
    rest = order[held:]
    if not 2 <= count <= len(rest):
        raise CeaseError(f"{count} folds do not fit {len(rest)} patients; choose from 2 up to the number of patients.")
    if not 0 <= fold < count:
        raise CeaseError(f"there is no fold {fold} of {count}; folds count from 0 to {count - 1}.")
    begin, end = (round(len(rest) * i / count) for i in (fold, fold + 1))
    return _split(cases, set(rest[begin:end]), set(order[:held]))


def put_aside(cases: Sequence[Case]) -> list[Case]:
    """The cases that a model is judged by: the test side where they came with a split, else all.

    Raises
    ------
    CeaseError
        As in `given_split`.
    """
    given = given_split(cases)
    return list(cases if given is None else given.test)


def given_split(cases: Iterable[Case]) -> Split | None:
    """The split that came with the cases, see `Case.side`; None unless every one has a side.

    Raises
    ------
    CeaseError
        If a patient has cases on two sides.
    """
    ordered = sorted(cases, key=lambda c: c.name)
    if not ordered or any(case.side is None for case in ordered):
        return None
    patients: dict[str, Side | None] = {}
    for case in ordered:
        if patients.setdefault(case.patient, case.side) != case.side:
            raise CeaseError(
                f"{case.patient} is on two sides of the split, {patients[case.patient]} and {case.side}; "
                "keep all cases of a patient on one side."
            )
    sides = {side: tuple(c for c in ordered if c.side == side) for side in ("training", "validation", "test")}
    return Split(**sides)


def split_cases(cases: Iterable[Case], validation: float) -> tuple[list[Case], list[Case]]:
    """Training and validation cases of `split`, without a test."""
    sides = split(cases, validation=validation)
    return list(sides.training), list(sides.validation)


class _SplitFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str = ""
    patients: str | None = None
    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()


def write_split(path: str | Path, sides: Split, *, dataset: str = "", pattern: str | None = None) -> None:
    """Write the names of the cases on each side, as JSON that `read_split` reads.

    Parameters
    ----------
    path
        New file; an existing one is replaced.
    sides
        The split.
    dataset
        Name of the data set, for the reader.
    pattern
        How patients were found, see `patient_of`.

    Raises
    ------
    CeaseError
        If the file cannot be written.
    """
    names = {side: tuple(case.name for case in cases) for side, cases in sides.sides.items()}
    content = _SplitFile(dataset=dataset, patients=pattern, **names)
    text = json.dumps(content.model_dump(), indent=1, ensure_ascii=False) + "\n"
    write_text(Path(path), text)


def read_split(path: str | Path, cases: Iterable[Case]) -> Split:
    """The split that a file describes; cases that it does not name are left out.

    Raises
    ------
    CeaseError
        If the file cannot be read, names cases that do not exist, or has a case or patient on two sides.
    """
    path = Path(path)
    try:
        content = _SplitFile.model_validate(read_json(path))
    except ValidationError as error:
        raise CeaseError(f"{path}: {first_fault(error, 'the whole file')}; correct that entry.") from error
    known = {case.name: case for case in cases}
    sides = {"training": content.training, "validation": content.validation, "test": content.test}
    missing = sorted({name for names in sides.values() for name in names} - known.keys())
    if missing:
        raise CeaseError(
            f"{path} names cases that the data set does not have ({len(missing)}, for example {missing[0]}); "
            "choose the split of this data set, or add the cases."
        )
    patients: dict[str, str] = {}
    found: dict[str, list[Case]] = {}
    for side, names in sides.items():
        found[side] = list(with_patients((known[name] for name in sorted(set(names))), content.patients))
        for case in found[side]:
            if patients.setdefault(case.patient, side) != side:
                raise CeaseError(
                    f"{path} has {case.patient} on two sides, {patients[case.patient]} and {side}; "
                    "keep all cases of a patient on one side."
                )
    return Split(**{side: tuple(kept) for side, kept in found.items()})


def _check_shares(validation: float, test: float) -> None:
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise CeaseError(f"{name} = {share} is no share; give a number from 0 to below 1.")
    if validation + test >= 1:
        raise CeaseError(
            f"validation = {validation} and test = {test} leave nothing to train on; let them sum to less than 1."
        )


def _order(cases: Iterable[Case]) -> list[str]:
    """All patients by the hash of their names."""
    return sorted({c.patient for c in cases}, key=by_hash)


def by_hash(name: str) -> str:
    """What patients are put in order by: it depends on the name alone."""
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def _split(cases: Iterable[Case], validation: set[str], test: set[str]) -> Split:
    ordered = sorted(cases, key=lambda c: c.name)
    return Split(
        training=tuple(c for c in ordered if c.patient not in validation | test),
        validation=tuple(c for c in ordered if c.patient in validation),
        test=tuple(c for c in ordered if c.patient in test),
    )
