"""What an unknown network takes and gives, found by asking it about random images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.models.card import Mode
from cease_core.models.foreign.spec import Activation

DIVISORS = (1, 2, 4, 8, 16, 32, 64)
"""What networks want edges to be multiples of: they halve an image up to six times."""

SIZES = {
    2: (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 288, 320, 352, 384, 448, 480, 512),
    3: (32, 48, 64, 80, 96, 112, 128, 160),
}
"""Edges of squares and cubes that networks of fixed size are made for."""

CHANNELS = (1, 3, 4, 2)

_SMALLEST = 24
_DEEP, _MANY = 8, 1000
_SLACK = 1e-4


@dataclass(frozen=True)
class Takes:
    """The images that a network takes.

    Parameters
    ----------
    ndim, channels
        Spatial dimensions and channels.
    size
        A size that it takes.
    divisor
        What edges must be multiples of.
    fixed
        Whether it takes ``size`` alone.
    """

    ndim: int
    channels: int
    size: tuple[int, ...]
    divisor: int = 1
    fixed: bool = False


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor of a network's answer that may be logits: the way to it, and its values (1, K, *spatial)."""

    way: tuple[int | str, ...]
    values: Tensor

    @property
    def channels(self) -> int:
        """Its channels."""
        return int(self.values.shape[1])

    @property
    def voxels(self) -> int:
        """Its pixels or voxels."""
        return int(self.values[0, 0].numel())


def find_takes(
    network: nn.Module,
    *,
    ndim: int | None = None,
    channels: int | None = None,
    size: tuple[int, ...] = (),
    fixed: bool = False,
) -> Takes | None:
    """The images that a network takes; None if it took none that were tried.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    ndim, channels, size
        What is known of them already.
    fixed
        Whether ``size`` is known to be the only one.
    """
    pairs = _pairs(network, len(size) or ndim, channels)
    if not fixed:
        for d, c in pairs:
            for divisor in DIVISORS:
                if entries(network, (1, c, *_odd(d, divisor))):
                    return Takes(d, c, size or _odd(d, divisor), divisor)
    for d, c in pairs:
        for shape in [size] if size else [(n,) * d for n in SIZES[d]]:
            if entries(network, (1, c, *shape)):
                return Takes(d, c, shape, fixed=True)
    return None


def entries(network: nn.Module, shape: Sequence[int], *, scale: float = 1.0) -> list[Entry]:
    """What of a network's answer to a random image of ``shape`` may be logits, the largest first; empty if it fails."""
    images = scale * torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            answer = network(images)
    except Exception:  # programs raise anything on an image that they are not made for
        return []
    found = [Entry(way, leaf) for way, leaf in _leaves(answer) if _is_map(leaf, images)]
    return sorted(found, key=lambda entry: -entry.voxels)


def choose_entry(
    found: Sequence[Entry],
    expected: int,
    title: str,
    *,
    way: tuple[int | str, ...] | None = None,
    outputs: Sequence[int] = (),
) -> Entry:
    """The entry that holds the logits.

    Parameters
    ----------
    found
        Of `entries`.
    expected
        Channels that the classes make.
    way, outputs
        What the user says of the entry and its channels.

    Raises
    ------
    CeaseError
        If none or several fit.
    """
    if way is not None:
        chosen = [entry for entry in found if entry.way == way]
        if not chosen:
            raise CeaseError(f"{title} has no output {list(way)}; choose among {_listing(found)}.")
        return chosen[0]
    least = max(outputs, default=-1) + 1
    fitting = [entry for entry in found if (entry.channels >= least if outputs else entry.channels == expected)]
    if not fitting:
        raise CeaseError(
            f"{title} answers with {_listing(found)}, but its classes and mode make {expected} channels; "
            "correct classes or mode."
        )
    finest = [entry for entry in fitting if entry.voxels == fitting[0].voxels]
    if len(finest) > 1:
        raise CeaseError(
            f"{title} answers with {_listing(finest)}, and any of these may be meant; say which one, for example "
            f"output={list(finest[0].way)}."
        )
    return finest[0]


def guess_activation(values: Sequence[Tensor], mode: Mode, title: str) -> tuple[Activation, str]:
    """What a network seems to have done to its logits, and the sentence that says so.

    Parameters
    ----------
    values
        Its answers (N, K, *spatial) to very different images.

    Raises
    ------
    CeaseError
        If they look like probabilities, but not like those that ``mode`` needs.
    """
    flat = torch.cat([v.float().flatten(2) for v in values], dim=2)
    if flat.min() < -_SLACK or flat.max() > 1 + _SLACK:
        return "none", ""
    several = flat.shape[1] > 1
    whole = several and bool(((flat.sum(1) - 1).abs() <= _SLACK).all())
    if mode == "multiclass" and whole:
        return "softmax", "Its answers lie between 0 and 1 and add up to 1 over the classes, so a softmax is undone."
    if mode != "multiclass" and not whole:
        return "sigmoid", "Its answers lie between 0 and 1, so a sigmoid is undone."
    raise CeaseError(
        f"{title} answers with values between 0 and 1 that {'add' if whole else 'do not add'} up to 1, which does not "
        f"go with the mode {mode}; correct the mode, or say activation=none, sigmoid or softmax."
    )


def _pairs(network: nn.Module, ndim: int | None, channels: int | None) -> list[tuple[int, int]]:
    """Dimensions and channels to try, those of the first kernel before others."""
    kernels = [tuple(p.shape) for p in network.parameters() if p.ndim in (4, 5)]
    likely = [(len(kernel) - 2, int(kernel[1])) for kernel in kernels[:1]]
    dimensions = {len(kernel) - 2 for kernel in kernels} or {2, 3}
    others = [(d, c) for c in ((channels,) if channels else CHANNELS) for d in sorted(dimensions)]
    pairs = [(d, c) for d, c in (*likely, *others) if ndim in (None, d) and channels in (None, c)]
    return list(dict.fromkeys(pairs))


def _odd(ndim: int, divisor: int) -> tuple[int, ...]:
    """Different edges that are multiples of ``divisor`` but not of twice as much."""
    first = next(n for n in range(1, 2 * _SMALLEST, 2) if n * divisor >= _SMALLEST)
    return tuple((first + 2 * i) * divisor for i in range(ndim))


def _is_map(leaf: Tensor, images: Tensor) -> bool:
    """Whether a tensor has values for every pixel, or for every block of pixels."""
    if not leaf.is_floating_point() or leaf.ndim != images.ndim or len(leaf) != len(images) or not leaf.numel():
        return False
    return all(n % m == 0 or m % n == 0 for n, m in zip(images.shape[2:], leaf.shape[2:], strict=True))


def _leaves(answer: Any, way: tuple[int | str, ...] = ()) -> Iterator[tuple[tuple[int | str, ...], Tensor]]:
    if isinstance(answer, Tensor):
        yield way, answer
    elif len(way) < _DEEP and isinstance(answer, Mapping | list | tuple) and len(answer) <= _MANY:
        inner = answer.items() if isinstance(answer, Mapping) else enumerate(answer)
        for key, value in inner:
            if isinstance(key, int | str):
                yield from _leaves(value, (*way, key))


def _listing(found: Sequence[Entry]) -> str:
    """``[0] (2 channels) and ['seg'] (4 channels)``."""
    names = [f"{list(entry.way) if entry.way else 'one map'} ({entry.channels} channels)" for entry in found[:6]]
    return " and ".join(names) or "no map of floating-point values"
