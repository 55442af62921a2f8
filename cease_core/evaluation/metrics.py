"""How alike two masks are, and how large a perturbation is.

A class that both masks lack is right: Dice, IoU and NSD 1, HD95 0. A class that one of them lacks is as wrong as can
be: Dice, IoU and NSD 0, and HD95 the image's diagonal, which no distance in it reaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import get_mask_edges, get_surface_distance
from monai.metrics.regression import SSIMMetric
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.scan import LabelArray

TOLERANCE = 2.0
"""How far apart two surfaces may be and still count as agreeing, in the unit of the spacing."""


@dataclass(frozen=True)
class Surface:
    """How far the surface of one class lies from the reference's.

    Parameters
    ----------
    hd95
        In the unit of the spacing: the larger of two 95th percentiles, one of the distances from each voxel on the
        mask's surface to the reference's surface, one of those the other way.
    nsd
        Normalised surface Dice (Nikolov et al. 2021, doi 10.2196/26151): share of both surfaces' voxels no farther
        from the other surface than the tolerance, in [0, 1].
    """

    hd95: float
    nsd: float


@dataclass(frozen=True)
class MaskScores:
    """How alike a mask and its reference are.

    Parameters
    ----------
    dice, iou
        Means over the foreground classes, in [0, 1].
    hd95_mm
        Mean over the foreground classes of `Surface.hd95`; in pixels for a picture without millimetres.
    nsd
        Mean over the foreground classes of `Surface.nsd`.
    mean_iou
        Mean over the background, id 0, and the foreground classes: what MedIS judges by.
    dice_per_class
        By id.
    """

    dice: float
    iou: float
    hd95_mm: float
    nsd: float
    mean_iou: float
    dice_per_class: dict[int, float]


def scores(
    mask: LabelArray,
    reference: LabelArray,
    classes: Sequence[int],
    spacing: Sequence[float],
    tolerance: float = TOLERANCE,
) -> MaskScores:
    """Compare a mask with its reference in every way at once.

    Parameters
    ----------
    mask, reference
        Class ids on the same grid, two or three axes.
    classes
        Foreground ids to report; voxels of other ids belong to no class and to no background.
    spacing
        Distance of neighbours along each axis, in millimetres, or 1 for pixels.
    tolerance
        Of the surface Dice, in the spacing's unit.

    Raises
    ------
    CeaseError
        If the masks' shapes differ or the spacing does not fit them.
    """
    surfaces = surface_per_class(mask, reference, classes, spacing, tolerance).values()
    dice = dice_per_class(mask, reference, classes)
    iou = iou_per_class(mask, reference, (0, *classes))
    return MaskScores(
        dice=float(np.mean(list(dice.values()))),
        iou=float(np.mean([iou[c] for c in classes])),
        hd95_mm=float(np.mean([s.hd95 for s in surfaces])),
        nsd=float(np.mean([s.nsd for s in surfaces])),
        mean_iou=float(np.mean(list(iou.values()))),
        dice_per_class=dice,
    )


def dice_per_class(mask: LabelArray, reference: LabelArray, classes: Sequence[int]) -> dict[int, float]:
    """Dice coefficient of each class; 1 where both masks lack it.

    Parameters
    ----------
    mask, reference
        Class ids on the same grid.
    classes
        Ids to report.
    """
    found = {}
    for c in classes:
        both, total = _overlap(mask, reference, c)
        found[c] = 2 * both / total if total else 1.0
    return found


def iou_per_class(mask: LabelArray, reference: LabelArray, classes: Sequence[int]) -> dict[int, float]:
    """Intersection over union of each class; 1 where both masks lack it.

    Parameters
    ----------
    mask, reference
        Class ids on the same grid.
    classes
        Ids to report.
    """
    found = {}
    for c in classes:
        both, total = _overlap(mask, reference, c)
        found[c] = both / (total - both) if total else 1.0
    return found


def surface_per_class(
    mask: LabelArray,
    reference: LabelArray,
    classes: Sequence[int],
    spacing: Sequence[float],
    tolerance: float = TOLERANCE,
) -> dict[int, Surface]:
    """Distances between the surfaces of each class, by MONAI.

    A voxel is on the surface if a face neighbour is outside of the class, or outside of the image. An axis of length
    1 is left out, since all of a volume one slice deep would be surface.

    Parameters
    ----------
    mask, reference
        Class ids on the same grid.
    classes
        Foreground ids to report.
    spacing
        Distance of neighbours along each axis.
    tolerance
        In the spacing's unit.

    Raises
    ------
    CeaseError
        If the masks' shapes differ or the spacing does not fit them.
    """
    _check(mask, reference, spacing)
    kept = [axis for axis, size in enumerate(mask.shape) if size > 1] or [0]
    flat, truth = (np.squeeze(m, tuple(set(range(m.ndim)) - set(kept))) for m in (mask, reference))
    steps = [float(spacing[axis]) for axis in kept]
    diagonal = math.hypot(*(size * step for size, step in zip(flat.shape, steps, strict=True)))
    boxes = [find_objects(m, max_label=max(classes, default=0)) for m in (flat, truth)]
    found = {}
    for c in classes:
        one, other = (b[c - 1] for b in boxes)
        if one is None or other is None:
            found[c] = Surface(0.0, 1.0) if one is other else Surface(diagonal, 0.0)
        else:
            box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
            found[c] = _surface(flat[box] == c, truth[box] == c, steps, tolerance)
    return found


def flipped(clean_mask: LabelArray, attacked_mask: LabelArray, reference: LabelArray) -> float:
    """Share of the pixels right on the clean scan, background included, that are wrong now.

    Parameters
    ----------
    clean_mask, attacked_mask, reference
        Class ids on the same grid.

    Returns
    -------
    float
        In [0, 1]; NaN if no pixel was right.
    """
    right = clean_mask == reference
    return float(np.mean(attacked_mask[right] != reference[right])) if right.any() else math.nan


def _overlap(mask: LabelArray, reference: LabelArray, c: int) -> tuple[int, int]:
    """Voxels of a class in both masks, and in one plus in the other."""
    a, b = mask == c, reference == c
    return int(np.count_nonzero(a & b)), int(np.count_nonzero(a)) + int(np.count_nonzero(b))


def _surface(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: list[float], tolerance: float) -> Surface:
    """Of two masks that are not empty."""
    # `compute_hausdorff_distance` and `compute_surface_dice` each find these distances anew, which takes all the time.
    edges: Any = get_mask_edges(a, b, crop=False)
    there, back = (get_surface_distance(x, y, spacing=spacing) for x, y in (edges, edges[::-1]))
    near = np.count_nonzero(there <= tolerance) + np.count_nonzero(back <= tolerance)
    return Surface(
        hd95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        nsd=near / (len(there) + len(back)),
    )


def _check(mask: LabelArray, reference: LabelArray, spacing: Sequence[float]) -> None:
    if mask.shape != reference.shape:
        raise CeaseError(
            f"the mask has shape {mask.shape} and its reference {reference.shape}; compare masks on the same grid."
        )
    if len(spacing) != mask.ndim or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise CeaseError(
            f"the spacing {tuple(spacing)} does not fit a mask of shape {mask.shape}; give one length above 0 for each "
            "axis."
        )


@dataclass(frozen=True)
class Distortion:
    """Size of a perturbation in window fractions; PSNR (dB) and SSIM take the window as the data range.

    SSIM of a volume is the mean over its slices.
    """

    linf: float
    rms: float
    psnr: float
    ssim: float


def distortion(clean: Tensor, adversarial: Tensor, *, structure: bool = True) -> Distortion:
    """Measure a perturbation.

    Parameters
    ----------
    clean, adversarial
        Window fractions, shape (N, C, *spatial) with two or three spatial axes.
    structure
        Whether SSIM is measured, which takes longer than most models; otherwise it is NaN.

    Returns
    -------
    Distortion
        PSNR is infinite and SSIM 1 for identical images.
    """
    delta = (adversarial - clean).float()
    rms = float(delta.square().mean().sqrt())
    psnr = math.inf if rms == 0 else -20 * math.log10(rms)
    ssim = _ssim(clean.float(), adversarial.float()) if structure else math.nan
    return Distortion(float(delta.abs().max()), rms, psnr, ssim)


def _ssim(clean: Tensor, adversarial: Tensor) -> float:
    # Volumes are compared slice by slice: that is what is looked at, and a cubic window costs a hundred times more.
    if clean.ndim == 5:
        clean, adversarial = (t.transpose(1, 2).flatten(0, 1) for t in (clean, adversarial))
    edge = min(11, *clean.shape[2:])
    metric = SSIMMetric(spatial_dims=2, data_range=1.0, win_size=edge - 1 + edge % 2)
    with torch.no_grad():
        return float(metric(adversarial, clean).mean())
