"""Intensities as a network wants them: fitted to one scan, then the same few operations for every voxel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cease_core.models.foreign.spec import Clip, Percentiles, Scale, Standardise, Step

Numbers = NDArray[np.float64]

ZERO = 1e-5
"""What counts as zero, as a share of the window's width: mapping to window fractions and back rounds."""


@dataclass(frozen=True, eq=False)
class Stage:
    """``value * factor + offset``, for each channel, then limits.

    Parameters
    ----------
    factor, offset
        Shape (C,).
    low, high
        Limits, shape (C,); infinite for none.
    nothing
        Values no larger than this are air, and become 0; below 0 there is no air.
    """

    factor: Numbers
    offset: Numbers
    low: Numbers
    high: Numbers
    nothing: float = -1.0

    @property
    def limited(self) -> bool:
        """Whether there are limits."""
        return bool(np.isfinite(self.low).any() or np.isfinite(self.high).any())

    def __call__(self, values: Tensor) -> Tensor:
        """Apply it to values (N, C, *spatial)."""
        shape = (-1, *(1,) * (values.ndim - 2))
        factor, offset, low, high = (
            torch.from_numpy(n).to(values.dtype).to(values.device).view(shape)
            for n in (self.factor, self.offset, self.low, self.high)
        )
        out = values * factor + offset
        if self.nothing >= 0:
            out = torch.where(values.abs() <= self.nothing, torch.zeros_like(out), out)
        return out.clamp(low, high) if self.limited else out


def fit(
    steps: Sequence[Step], image: NDArray[np.float32], *, low: float = 0.0, width: float = 1.0
) -> tuple[Stage, ...]:
    """From window fractions to the network's input, with the figures of one scan.

    Parameters
    ----------
    steps
        As the network's card has them.
    image
        Intensities (C, *spatial) of the whole scan.
    low, width
        Of the window that fractions refer to.
    """
    channels = len(image)
    stages = [_stage(channels, factor=width, offset=low)]
    values = np.asarray(image, np.float64) if depends(steps) else None
    zero = ZERO * width
    for step in steps:
        for stage in _fitted(step, channels, values, zero):
            if values is not None:
                values = _apply(stage, values)
            stages.append(stage)
            zero *= float(np.abs(stage.factor).max())  # in the unit that values have by now
    return tuple(_merged(stages))


def depends(steps: Sequence[Step]) -> bool:
    """Whether figures of the whole scan are needed."""
    return any(isinstance(step, Standardise | Percentiles) for step in steps)


def _fitted(step: Step, channels: int, values: Numbers | None, zero: float) -> Iterator[Stage]:
    if isinstance(step, Clip):
        yield _stage(
            channels,
            low=-np.inf if step.low is None else step.low,
            high=np.inf if step.high is None else step.high,
        )
    elif isinstance(step, Scale):
        yield _stage(channels, factor=step.factor, offset=step.offset)
    elif isinstance(step, Standardise):
        assert values is not None
        mean, deviation = _moments(step, values, zero)
        nothing = zero if step.only_there else -1.0
        yield replace(_stage(channels, factor=1 / deviation, offset=-mean / deviation), nothing=nothing)
    else:
        assert values is not None
        axes = tuple(range(1, values.ndim)) if step.channelwise else None
        start, end = np.percentile(values, (step.lower, step.upper), axis=axes)
        factor = (step.high - step.low) / np.where(end > start, end - start, 1.0)
        limits = (min(step.low, step.high), max(step.low, step.high)) if step.clip else (-np.inf, np.inf)
        yield _stage(channels, factor=factor, offset=step.low - start * factor, low=limits[0], high=limits[1])


def _moments(step: Standardise, values: Numbers, zero: float) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation (C,); a channel without spread is only centred."""
    there: NDArray[np.bool_] = np.asarray(np.abs(values) > zero)
    if step.over == "box":
        box: tuple[Any, ...] = (slice(None), *_box(there.any(axis=0)))
        values = values[box]
    groups = list(values) if step.channelwise else [values]
    if step.over == "nonzero":
        chosen = list(there) if step.channelwise else [there]
        groups = [g[t] if t.any() else g for g, t in zip(groups, chosen, strict=True)]
    mean = np.array([g.mean() for g in groups])
    deviation = np.array([g.std() for g in groups])
    return mean, np.where(deviation > 0, deviation, 1.0)


def _box(mask: Any) -> tuple[slice, ...]:
    if not mask.any():
        return (slice(None),) * mask.ndim
    return tuple(slice(int(at.min()), int(at.max()) + 1) for at in np.nonzero(mask))


def _stage(
    channels: int,
    factor: float | Sequence[float] | Numbers = 1.0,
    offset: float | Sequence[float] | Numbers = 0.0,
    low: float = -np.inf,
    high: float = np.inf,
) -> Stage:
    def each(number: float | Sequence[float] | Numbers) -> Numbers:
        return np.broadcast_to(np.asarray(number, np.float64), channels).copy()

    return Stage(each(factor), each(offset), each(low), each(high))


def _apply(stage: Stage, values: Numbers) -> Numbers:
    return stage(torch.from_numpy(values)[None])[0].numpy()


def _merged(stages: Sequence[Stage]) -> Iterator[Stage]:
    """Stages in as few as possible: one multiplication rounds once."""
    whole = stages[0]
    for stage in stages[1:]:
        if whole.limited or whole.nothing >= 0 or stage.nothing >= 0:
            yield whole
            whole = stage
        else:
            whole = replace(
                stage, factor=whole.factor * stage.factor, offset=whole.offset * stage.factor + stage.offset
            )
    yield whole
