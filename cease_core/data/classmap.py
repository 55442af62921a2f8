"""Which class of a model each id in a mask file stands for: ``1=1,2=1,4=2``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.scan import LabelArray

OTHERS = "*"
"""Stands for every id that is not listed, apart from 0."""

LARGEST = 2**31 - 1
"""Masks hold 32-bit ids."""

_TABLE = 2**16
"""Ids up to here are looked up in a table of that length."""
_PROPOSED = 8
"""More ids than this are not mapped by a guess."""


@dataclass(frozen=True)
class ClassMap:
    """The class of each id that mask files hold; several ids may become one class.

    Parameters
    ----------
    pairs
        Ids in the files and the classes that they become, ascending by id; class 0 is the background. An id that is
        not listed is an error where it occurs, apart from 0, which stays 0.
    others
        Class of all ids that are not listed; None to refuse them.
    """

    pairs: tuple[tuple[int, int], ...]
    others: int | None = None

    @classmethod
    def read(cls, written: Any, origin: str = "--classes") -> ClassMap:
        """A map as it is written in an option, a list or a config.

        Parameters
        ----------
        written
            ``"1=1,2=1,4=2"`` (with ``*=0`` for all other ids), or a mapping of ids to classes.
        origin
            Where it stands, for the message.

        Raises
        ------
        CeaseError
            If it has another form, is empty, or gives an id two classes.

        Examples
        --------
        >>> str(ClassMap.read("4=2, 1=1, 2=1"))
        '1=1,2=1,4=2'
        >>> str(ClassMap.read({255: 1, "*": 0}))
        '255=1,*=0'
        """
        if isinstance(written, cls):
            return written
        if isinstance(written, Mapping):
            parts = [f"{source}={target}" for source, target in written.items()]
        elif isinstance(written, str):
            parts = [part for part in re.split(r"[,;\s]+", re.sub(r"\s*=\s*", "=", written)) if part]
        else:
            parts = []
        found: dict[str, int] = {}
        for part in parts:
            match = re.fullmatch(r"(\*|[0-9]{1,10})=([0-9]{1,10})", part)
            if match is None or any(int(n) > LARGEST for n in match.groups() if n != OTHERS):
                raise CeaseError(
                    f"{origin}: {part!r} is not understood; write id=class, as in 1=1,2=1,4=2 or 255=1,*=0."
                )
            source, target = match[1] if match[1] == OTHERS else str(int(match[1])), int(match[2])
            if found.setdefault(source, target) != target:
                raise CeaseError(
                    f"{origin}: {source} becomes both {found[source]} and {target}; give each id one class."
                )
        if not found:
            raise CeaseError(f"{origin}: {written!r} maps nothing; write id=class, as in 1=1,2=1,4=2.")
        others = found.pop(OTHERS, None)
        return cls(tuple(sorted((int(source), target) for source, target in found.items())), others)

    @classmethod
    def in_order(cls, ids: Iterable[int]) -> ClassMap:
        """The classes 1, 2, … for some ids, ascending.

        Examples
        --------
        >>> str(ClassMap.in_order([4, 0, 2]))
        '2=1,4=2'
        """
        return cls(tuple((source, target) for target, source in enumerate(sorted(set(ids) - {0}), start=1)))

    @classmethod
    def proposed(cls, ids: Iterable[int], classes: int) -> ClassMap | None:
        """What ids most likely mean to a model of so many classes, in the order of both; None if that is a guess.

        Examples
        --------
        >>> str(ClassMap.proposed([0, 255], 1)), str(ClassMap.proposed([1, 2, 4], 3))
        ('255=1', '1=1,2=2,4=3')
        >>> ClassMap.proposed([1, 2, 4], 2)
        """
        foreground = set(ids) - {0}
        return cls.in_order(foreground) if 0 < len(foreground) == classes <= _PROPOSED else None

    def __str__(self) -> str:
        others = [] if self.others is None else [f"{OTHERS}={self.others}"]
        return ",".join([*(f"{source}={target}" for source, target in self.pairs), *others])

    def apply(self, labels: LabelArray, name: str = "the mask") -> LabelArray:
        """Turn the ids of a file into classes.

        Parameters
        ----------
        labels
            Ids from 0, any shape.
        name
            What they are called in the message.

        Returns
        -------
        LabelArray
            Classes, int32, of the same shape.

        Raises
        ------
        CeaseError
            If there are ids that have no class.
        """
        top = int(labels.max(initial=0))
        ids: Iterable[int] = range(top + 1)
        places: NDArray[np.integer[Any]] = labels
        if top >= _TABLE:
            found, places = np.unique(labels, return_inverse=True)
            ids, places = found.tolist(), places.reshape(labels.shape)
        known = {0: 0} | dict(self.pairs)
        missing = -1 if self.others is None else self.others
        table = np.array([known.get(i, missing) for i in ids], np.int32)
        classes: LabelArray = table[places]
        if self.others is None and classes.size and int(classes.min()) < 0:
            unknown = np.unique(labels[classes < 0]).tolist()
            raise CeaseError(
                f"{name} holds {listed(unknown)}, which the class map {self} leaves out; add "
                f"{','.join(f'{i}=0' for i in unknown[:3])}{',…' if len(unknown) > 3 else ''} to drop "
                f"{'it' if len(unknown) == 1 else 'them'}, or say which class is meant."
            )
        return classes

    def names(self, known: Mapping[str, frozenset[int]]) -> dict[int, str]:
        """Name of each class that comes out, from the names of what goes in.

        Parameters
        ----------
        known
            Ids that each name stands for.

        Returns
        -------
        dict of int to str
            Ascending, without the background; empty if nothing is known by name.

        Examples
        --------
        >>> ClassMap.read("1=1,2=1,4=2").names({"core": frozenset({1}), "oedema": frozenset({2})})
        {1: 'core + oedema', 2: 'class 2'}
        """
        listed_ids = {source for source, _ in self.pairs}
        targets = sorted({target for _, target in self.pairs} | {self.others or 0})
        found: dict[int, str] = {}
        for target in targets:
            if target == 0:
                continue
            sources = frozenset(s for s, t in self.pairs if t == target)
            same = [name for name, ids in known.items() if ids == sources]
            parts = [name for name, ids in known.items() if len(ids) == 1 and ids <= sources]
            # Names that count as the model does, not as the files.
            own = [name for name, ids in known.items() if ids == {target} and target not in listed_ids]
            found[target] = (same or [" + ".join(parts)])[0] or (own[0] if own else "")
        if not any(found.values()):
            return {}
        return {i: name or f"class {i}" for i, name in found.items()}


def listed(ids: Iterable[int], most: int = 8) -> str:
    """``the ids 1, 2, 3``, cut after ``most``."""
    every = list(ids)
    word = "the id" if len(every) == 1 else "the ids"
    return f"{word} {', '.join(str(i) for i in every[:most])}" + (", …" if len(every) > most else "")
