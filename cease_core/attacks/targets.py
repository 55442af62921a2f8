"""Masks for an attack to reach, made from the mask that it shall replace.

A target maker takes labels as `Problem.pose` does, class ids (N, *spatial) or, for multilabel models, one
channel a class (N, K, *spatial, floating point), and returns a mask of the same form. What depends on the mask
is decided for each case on its own. Bind parameters with `functools.partial`.

Examples
--------
>>> from functools import partial
>>> tumour_everywhere = partial(fill, label=2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cease_core.errors import CeaseError

Target = Callable[[Tensor], Tensor]


def erase(labels: Tensor) -> Tensor:
    """Nothing but background."""
    return torch.zeros_like(labels)


def fill(labels: Tensor, *, label: int | None = None) -> Tensor:
    """One class in every pixel, and no other.

    Parameters
    ----------
    labels
        See the module.
    label
        Class id; by default the most common structure of each case, the first where there is none.

    Raises
    ------
    CeaseError
        If there is no such class.
    """
    if label is not None:
        _check(label, labels, first=1)
    chosen = [label or _most_common(case, 1)[0] for case in labels.split(1)]
    filled = torch.zeros_like(labels)
    for case, one in zip(filled, chosen, strict=True):
        if _has_channels(labels):
            case[one - 1] = 1
        else:
            case[...] = one
    return filled


def grow(labels: Tensor, *, by: int | None = None) -> Tensor:
    """Every structure larger, over background only; of two that meet there, the one of higher id takes the pixel.

    Parameters
    ----------
    labels
        See the module.
    by
        Pixels in every direction, along the axes and between them; by default a twentieth of the shortest axis.

    Raises
    ------
    CeaseError
        If ``by`` is below 1.
    """
    spatial = _spatial(labels)
    by = max(1, min(spatial) // 20) if by is None else by
    if by < 1:
        raise CeaseError(f"a mask cannot grow by {by} pixels; give at least 1.")
    grown = (labels if _has_channels(labels) else labels.unsqueeze(1)).float()
    pool = F.max_pool2d if len(spatial) == 2 else F.max_pool3d
    for axis in range(len(spatial)):
        # Axis by axis: a cube of pixels at once costs their number cubed.
        edge = [2 * by + 1 if i == axis else 1 for i in range(len(spatial))]
        grown = pool(grown, edge, stride=1, padding=[e // 2 for e in edge])
    if _has_channels(labels):
        return grown.to(labels.dtype)
    return torch.where(labels > 0, labels, grown[:, 0].to(labels.dtype))


def shift(labels: Tensor, *, offset: Sequence[int] | None = None) -> Tensor:
    """The mask moved; what leaves the grid is lost, and background enters.

    Parameters
    ----------
    labels
        See the module.
    offset
        Pixels along each spatial axis; by default a fifth of its extent, towards the side where the mask of
        the case has more room.

    Raises
    ------
    CeaseError
        If there is not one number for each spatial axis.
    """
    spatial = _spatial(labels)
    if offset is not None and len(offset) != len(spatial):
        raise CeaseError(f"the offset {tuple(offset)} does not fit {len(spatial)} axes; give one number for each.")
    moved = torch.zeros_like(labels)
    for old, new in zip(labels, moved, strict=True):
        by = _roomier(old, spatial) if offset is None else offset
        # Both windows are empty where the offset is larger than the grid.
        source = tuple(slice(max(0, -o), max(0, s - max(0, o))) for o, s in zip(by, spatial, strict=True))
        goal = tuple(slice(max(0, o), max(0, s - max(0, -o))) for o, s in zip(by, spatial, strict=True))
        new[(..., *goal)] = old[(..., *source)]
    return moved


def swap(labels: Tensor, *, first: int | None = None, second: int | None = None, classes: int | None = None) -> Tensor:
    """Two classes exchanged; 0 is the background.

    Parameters
    ----------
    labels
        See the module.
    first, second
        Class ids; by default the two most common structures of each case, absent ones last. With a single
        structure, it and the background.
    classes
        Structures that the model knows; class ids alone say only which are there. Masks with one channel a
        class say it themselves.

    Raises
    ------
    CeaseError
        If a class is not known, if only one of two is given, if both are the same, or if neither is in the mask.
    """
    if (first is None) != (second is None):
        raise CeaseError("swapping needs two classes; give first and second, or neither.")
    if first is None or second is None:
        pairs = [_common_pair(case, classes) for case in labels.split(1)]
    else:
        for one in (first, second):
            _check(one, labels, first=0, classes=classes)
        if first == second:
            raise CeaseError(f"class {first} cannot be swapped with itself; give two different classes.")
        there = _present(labels)
        if not {first, second} & set(there):
            raise CeaseError(f"the mask holds neither class {first} nor class {second}; choose among {_listed(there)}.")
        pairs = [(first, second)] * len(labels)
    return torch.cat([_swapped(case, *pair) for case, pair in zip(labels.split(1), pairs, strict=True)])


def own(mask: Tensor) -> Target:
    """A mask of your own, whatever the labels are.

    Parameters
    ----------
    mask
        Class ids (*spatial) for every case, or (N, *spatial); or one channel a class, floating point,
        (K, *spatial) or (N, K, *spatial).

    Returns
    -------
    Target
        It raises a `CeaseError` where the mask does not fit the labels.
    """

    def given(labels: Tensor) -> Tensor:
        spatial = _spatial(labels)
        shape = (*mask.shape[: -len(spatial)][-1:], *spatial) if mask.is_floating_point() else spatial
        fits = mask.shape[-len(shape) :] == shape and mask.ndim in (len(shape), len(shape) + 1)
        if not fits or (mask.ndim > len(shape) and len(mask) not in (1, len(labels))):
            raise CeaseError(
                f"the target mask has shape {tuple(mask.shape)}, the labels {tuple(labels.shape)}; "
                "choose a mask of this scan."
            )
        cases = mask if mask.ndim > len(shape) else mask.unsqueeze(0)
        cases = cases if mask.is_floating_point() else cases.long()
        return cases.to(labels.device).expand(len(labels), *cases.shape[1:]).clone()

    return given


class Choice(NamedTuple):
    """A target to choose: its title, and what makes it."""

    title: str
    make: Target


TARGETS: dict[str, Choice] = {
    "erase": Choice("erase", erase),
    "fill": Choice("fill", fill),
    "grow": Choice("grow", grow),
    "shift": Choice("shift", shift),
    "swap": Choice("swap classes", swap),
}


def _has_channels(labels: Tensor) -> bool:
    return labels.is_floating_point()


def _spatial(labels: Tensor) -> tuple[int, ...]:
    return tuple(labels.shape[2 if _has_channels(labels) else 1 :])


def _counts(labels: Tensor) -> dict[int, int]:
    """Pixels of each structure; of every one that there is a channel for, of every one present among ids."""
    if _has_channels(labels):
        each = (labels > 0.5).transpose(0, 1).flatten(1).sum(dim=1).tolist()
        return dict(enumerate(each, start=1))
    ids, each = labels[labels > 0].unique(return_counts=True)
    return dict(zip(ids.tolist(), each.tolist(), strict=True))


def _present(labels: Tensor) -> list[int]:
    """Ids in the mask, background first."""
    anything = (labels > 0.5).any(dim=1) if _has_channels(labels) else labels > 0
    return ([] if anything.all() else [0]) + sorted(c for c, count in _counts(labels).items() if count)


def _most_common(labels: Tensor, known: int) -> list[int]:
    """Structures by size, those absent last; at least ``known`` of them."""
    counts = dict.fromkeys(range(1, known + 1), 0) | _counts(labels)
    return sorted(counts, key=lambda c: (-counts[c], c))


def _common_pair(labels: Tensor, classes: int | None) -> tuple[int, int]:
    order = _most_common(labels, classes or 1)
    return (order[0], order[1]) if len(order) > 1 else (0, order[0])


def _check(label: int, labels: Tensor, *, first: int, classes: int | None = None) -> None:
    known = labels.shape[1] if _has_channels(labels) else classes
    if label >= first and (known is None or label <= known):
        return
    # What ids leave open is checked against the model, when the attack is posed.
    there = _listed(list(range(first, known + 1)) if known else [c for c in _present(labels) if c >= first])
    raise CeaseError(f"class {label} is unknown here; choose {f'among {there}' if there else f'{first} or above'}.")


def _listed(classes: list[int]) -> str:
    return ", ".join(map(str, classes))


def _swapped(labels: Tensor, first: int, second: int) -> Tensor:
    if not _has_channels(labels):
        return torch.where(labels == first, second, torch.where(labels == second, first, labels)).to(labels.dtype)
    swapped = labels.clone()
    if first and second:
        swapped[:, [first - 1, second - 1]] = labels[:, [second - 1, first - 1]]
    else:
        # Background is where no structure is; other structures stay.
        swapped[:, first + second - 1] = (labels <= 0.5).all(dim=1).to(labels.dtype)
    return swapped


def _roomier(case: Tensor, spatial: tuple[int, ...]) -> list[int]:
    """A fifth along each axis, signed."""
    there = (case > 0.5).any(dim=0) if _has_channels(case) else case > 0
    offset = []
    for axis, extent in enumerate(spatial):
        by = max(1, extent // 5)
        line = there.movedim(axis, 0).flatten(1).any(dim=1).nonzero()[:, 0]
        before, after = (int(line[0]), extent - 1 - int(line[-1])) if len(line) else (0, 0)
        offset.append(by if after >= before else -by)
    return offset
