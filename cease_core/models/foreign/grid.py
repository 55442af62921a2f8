"""From a scan's display grid to a network's and back, by operations that a gradient passes through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from torch import Tensor

from cease_core.models.foreign.spec import Foreign
from cease_core.scan import Layout, Scan


@dataclass(frozen=True)
class Grid:
    """Where a network's voxels lie in a part of a scan.

    Parameters
    ----------
    turn
        The network's axis *j* is axis ``turn.axes[j]`` of the part, turned round where ``turn.flips[j]``.
    zoom
        Samples of the network per voxel of the scan, along the network's axes.
    centred
        Whether the centres of the first voxels lie on each other, rather than the edges of the images.
    """

    turn: Layout
    zoom: tuple[float, ...]
    centred: bool = False

    @classmethod
    def identity(cls, ndim: int) -> Grid:
        """The scan's own grid."""
        return cls(Layout.identity(ndim), (1.0,) * ndim)

    @classmethod
    def of(cls, foreign: Foreign, scan: Scan, ndim: int) -> Grid:
        """The grid of a network with ``ndim`` axes on a scan; a 2-D one sees display slices."""
        axes, flips = _turn(foreign.orientation, scan)
        first = scan.ndim - ndim
        kept = [(a - first, f) for a, f in zip(axes, flips, strict=True) if first <= a < scan.ndim]
        if len(foreign.transpose) == ndim:
            kept = [kept[t] for t in foreign.transpose]
        turn = Layout(tuple(a for a, _ in kept), tuple(f for _, f in kept))
        zoom = [1.0] * ndim
        if foreign.size:
            zoom = [n / scan.shape[first + a] for n, a in zip(foreign.size, turn.axes, strict=True)]
        elif scan.length_unit == "mm":
            own = [scan.spacing[first + a] for a in turn.axes]
            for j, size in enumerate(foreign.spacing):
                if size > 0:
                    zoom[j] = own[j] / size
        return cls(turn, tuple(zoom), foreign.align == "centres")

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Spatial shape of the network's image of a part of ``shape``."""
        turned = [shape[a] for a in self.turn.axes]
        if self.centred:
            return tuple(round((n - 1) * z + 1) for n, z in zip(turned, self.zoom, strict=True))
        return tuple(max(1, round(n * z)) for n, z in zip(turned, self.zoom, strict=True))

    def reach(self, axis: int, size: int) -> int:
        """How many voxels of a part along its ``axis`` make at least ``size`` samples of the network."""
        zoom = self.zoom[self.turn.axes.index(axis)]
        return math.ceil((size - 1) / zoom) + 1 if self.centred else math.ceil(size / zoom)

    def enter(self, images: Tensor) -> Tensor:
        """Images (N, C, *part) on the network's grid."""
        turned = images.permute(0, 1, *(2 + a for a in self.turn.axes)).flip(self._flipped)
        steps = [1 / z for z in self.zoom] if self.centred else None
        return resample(turned, self.sizes(images.shape[2:]), steps)

    def leave(self, logits: Tensor, shape: Sequence[int]) -> Tensor:
        """Logits (N, K, *grid) on a part of ``shape``."""
        turned = resample(logits, [shape[a] for a in self.turn.axes], self.zoom if self.centred else None)
        return turned.flip(self._flipped).permute(0, 1, *(2 + int(a) for a in np.argsort(self.turn.axes)))

    def whole(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """A scan's intensities (C, *spatial) on the network's grid; slice by slice for a network of fewer axes."""
        values = torch.from_numpy(np.ascontiguousarray(image))
        if values.ndim - 1 == len(self.zoom):
            return self.enter(values[None])[0].numpy()
        return self.enter(values.transpose(0, 1)).transpose(0, 1).numpy()

    @property
    def _flipped(self) -> list[int]:
        return [2 + j for j, f in enumerate(self.turn.flips) if f]


def resample(values: Tensor, shape: Sequence[int], steps: Sequence[float] | None = None) -> Tensor:
    """Linear interpolation, axis by axis.

    Parameters
    ----------
    values
        Shape (N, C, *spatial).
    shape
        Wanted spatial shape.
    steps
        Distance of the new samples in old ones along each axis, where the first ones coincide; None to lay the edges
        of both images on each other. Beyond the last sample the last one goes on.
    """
    # What shrinks comes first, so that nothing on the way is larger than both ends.
    for axis in sorted(range(len(shape)), key=lambda a: shape[a] / values.shape[2 + a]):
        old, size = values.shape[2 + axis], shape[axis]
        if old == size and (steps is None or steps[axis] == 1):
            continue
        at = torch.arange(size, dtype=torch.float64)  # on the CPU: Apple's MPS knows no float64
        at = (at + 0.5) * (old / size) - 0.5 if steps is None else at * steps[axis]
        at = at.clamp(0, old - 1)
        before = at.floor().long()
        after = (before + 1).clamp_max(old - 1)
        weight = (at - before).to(values.dtype).to(values.device).view(-1, *(1,) * (len(shape) - 1 - axis))
        before, after = before.to(values.device), after.to(values.device)
        low, high = values.index_select(2 + axis, before), values.index_select(2 + axis, after)
        values = low + (high - low) * weight
    return values


def _turn(orientation: str, scan: Scan) -> tuple[list[int], list[bool]]:
    """Which display axis each axis of a network is, and whether it runs against it.

    Letters order three axes, so that of a single image comes with its normal, as axis 2.
    """
    if orientation == "display":
        return list(range(scan.ndim)), [False] * scan.ndim
    if orientation in ("xyz", "zyx"):
        axes = [int(a) for a in np.argsort(scan.layout.axes)]
        axes = axes if orientation == "xyz" else axes[::-1]
        return axes, [scan.layout.flips[a] for a in axes]
    # Row i: where axis i of the display goes, and in which sense.
    moves = ornt_transform(io_orientation(scan.affine), axcodes2ornt(tuple(orientation)))
    axes = [int(a) for a in np.argsort(moves[:, 0])]
    return axes, [bool(moves[a, 1] < 0) for a in axes]
