"""What one pass over a data set's files tells: about each case, and about all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cease_core.data.cache import Cached
from cease_core.data.cases import Case, Dataset, load_case
from cease_core.errors import CeaseError
from cease_core.scan import FloatArray

Number = TypeVar("Number", int, float)

PERCENTILES = (0.5, 50.0, 99.5)

_SAMPLED = 2048
"""Voxels drawn from each case for the percentiles: enough for their third digit, and every case counts alike."""


@dataclass(frozen=True)
class Unreadable:
    """A case that cannot be used, and the sentence that says why."""

    case: Case
    reason: str


@dataclass(frozen=True, eq=False)
class Facts:
    """What is kept of a case once its arrays are let go.

    Parameters
    ----------
    case
        The case.
    channels, shape, spacing
        Of the image; voxel size along each axis in ``length_unit``.
    unit, length_unit
        As in `cease_core.scan.Scan`.
    constant
        Whether all voxels of the image are equal.
    digest
        Of the image's shape and intensities: equal for equal images.
    voxels
        Number of voxels of each class id that the mask holds, 0 included.
    sample
        Intensities of voxels drawn at random, shape (C, n).
    """

    case: Case
    channels: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: str
    length_unit: str
    constant: bool
    digest: str
    voxels: dict[int, int]
    sample: FloatArray

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.shape)


@dataclass(frozen=True)
class ClassSummary:
    """How much there is of a class: its share of all voxels, and how many cases hold it."""

    id: int
    name: str
    share: float
    cases: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A data set in figures; those of readable cases, apart from the first four.

    Parameters
    ----------
    ndim, channels, units
        All that occur, ascending.
    shape
        Smallest and largest size along each axis; empty if 2-D and 3-D images are mixed.
    spacing
        Smallest and largest voxel size along each axis in ``length_unit``; empty as above, or for mixed units.
    percentiles
        `PERCENTILES` of each channel over all cases, each counting alike; empty if the number of channels varies.
    classes
        Background first.
    maps
        What the ids in the files become (`cease_core.data.ClassMap` as text), all that occur; empty where they are the
        classes.
    """

    name: str
    layout: str
    cases: int
    patients: int
    unreadable: int
    ndim: tuple[int, ...]
    channels: tuple[int, ...]
    units: tuple[str, ...]
    length_unit: str | None
    shape: tuple[tuple[int, int], ...]
    spacing: tuple[tuple[float, float], ...]
    percentiles: tuple[tuple[float, ...], ...]
    classes: tuple[ClassSummary, ...]
    maps: tuple[str, ...] = ()


def survey(cases: Iterable[Case], cache: Cached | None = None) -> Iterator[Facts | Unreadable]:
    """Read the cases one after another."""
    for case in cases:
        try:
            yield _facts(case, cache)
        except CeaseError as error:
            yield Unreadable(case, str(error))


def summarise(dataset: Dataset, surveyed: Sequence[Facts | Unreadable]) -> Summary:
    """The figures of a data set from those of its cases."""
    facts = [f for f in surveyed if isinstance(f, Facts)]
    dims, channels = {f.ndim for f in facts}, {f.channels for f in facts}
    lengths = {f.length_unit for f in facts}
    alike = len(dims) == 1 and len(lengths) == 1
    return Summary(
        name=dataset.name,
        layout=dataset.layout,
        cases=len(surveyed),
        patients=len({f.case.patient for f in surveyed}),
        unreadable=len(surveyed) - len(facts),
        ndim=tuple(sorted(dims)),
        channels=tuple(sorted(channels)),
        units=tuple(sorted({f.unit for f in facts})),
        length_unit=facts[0].length_unit if len(lengths) == 1 else None,
        shape=_ranges([f.shape for f in facts]) if len(dims) == 1 else (),
        spacing=_ranges([f.spacing for f in facts]) if alike else (),
        percentiles=_percentiles([f.sample for f in facts]) if len(channels) == 1 else (),
        classes=_classes(dataset.classes, facts),
        maps=tuple(sorted({str(f.case.classes) for f in surveyed if f.case.classes is not None})),
    )


def _facts(case: Case, cache: Cached | None) -> Facts:
    scan, labels = load_case(case, cache)
    image = scan.image.reshape(scan.channels, -1)
    ids, counts = np.unique(labels, return_counts=True)
    return Facts(
        case=case,
        channels=scan.channels,
        shape=scan.shape,
        spacing=scan.spacing,
        unit=scan.unit,
        length_unit=scan.length_unit,
        constant=bool(image.min() == image.max()),
        digest=hashlib.blake2b(repr(scan.image.shape).encode() + scan.image.tobytes()).hexdigest(),
        voxels={int(i): int(n) for i, n in zip(ids, counts, strict=True)},
        sample=image[:, np.random.default_rng(0).integers(0, image.shape[1], _SAMPLED)],
    )


def _ranges(rows: Sequence[tuple[Number, ...]]) -> tuple[tuple[Number, Number], ...]:
    return tuple((min(column), max(column)) for column in zip(*rows, strict=True))


def _percentiles(samples: Sequence[FloatArray]) -> tuple[tuple[float, ...], ...]:
    pooled = np.concatenate(samples, axis=1)
    return tuple(tuple(float(v) for v in np.percentile(channel, PERCENTILES)) for channel in pooled)


def _classes(names: dict[int, str], facts: Sequence[Facts]) -> tuple[ClassSummary, ...]:
    ids = sorted({0, *names, *(i for f in facts for i in f.voxels)})
    voxels = sum(n for f in facts for n in f.voxels.values())
    return tuple(
        ClassSummary(
            id=i,
            name=names.get(i, "background" if i == 0 else ""),
            share=sum(f.voxels.get(i, 0) for f in facts) / max(voxels, 1),
            cases=sum(i in f.voxels for f in facts),
        )
        for i in ids
    )
