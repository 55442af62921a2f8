"""From a scan, a mask and a model to a problem that an attack can solve, and back onto the scan.

Which voxels are attacked together depends on the model: a 2-D model attacks one image, or every slice of a
volume; a 3-D model attacks the volume, or as much of it around a slice as fits one window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cease_core.attacks.losses import Loss
from cease_core.attacks.problem import Problem
from cease_core.attacks.targets import Target
from cease_core.data.classmap import ClassMap
from cease_core.errors import CeaseError
from cease_core.models.card import ModelCard
from cease_core.models.foreign.grid import Grid
from cease_core.models.foreign.model import ForeignModel
from cease_core.models.segmenter import ScanModel, Segmenter, predict_labels
from cease_core.models.windowed import Windowed
from cease_core.scan import FloatArray, LabelArray, Scan, Window, class_ids

Extent = Literal["slice", "volume"]

# Voxels that a 3-D model takes in one piece; larger volumes go through windows of this edge.
WINDOW_EDGE = 96
SLICES_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Subject:
    """What is under attack: part of a scan as a batch of one, its labels, and the model that judges it.

    Parameters
    ----------
    scan
        The whole scan.
    model
        Called on `images`; windows are already inside.
    window
        Maps intensities to [0, 1].
    images
        Window fractions, shape (1, C, *part).
    labels
        Class ids, shape (1, *part); a multilabel model's own mask keeps a channel a class, (1, K, *part).
    place
        The part of the scan's grid; an integer where a slice was taken.
    reference
        Where the labels come from.
    region
        Non-zero where the part may change, shape (1, 1, *part); None for everywhere.
    target
        The mask to reach, like ``labels``; None to leave the labels.
    """

    scan: Scan
    model: Segmenter
    window: Window
    images: Tensor
    labels: Tensor
    place: tuple[slice | int, ...]
    reference: Literal["labels", "clean mask"]
    region: Tensor | None = None
    target: Tensor | None = None

    def problem(self, loss: str | Loss, *, criterion: str = "dice") -> Problem:
        """The batch to attack, ascending ``loss``."""
        return Problem.pose(
            self.model,
            self.images,
            self.labels,
            loss,
            target=self.target,
            region=self.region,
            criterion=criterion,
        )

    def mask(self, logits: Tensor) -> LabelArray:
        """Class ids (*part) from logits (1, K, *part)."""
        return predict_labels(logits, self.model.mode)[0].cpu().numpy().astype(np.int32)

    def in_unit(self, perturbation: Tensor) -> FloatArray:
        """Perturbation (C, *part) in the scan's unit."""
        values: FloatArray = perturbation[0].cpu().numpy() * np.float32(self.window.width)
        return values

    def perturbed_scan(self, perturbation: Tensor) -> FloatArray:
        """Intensities (C, *spatial) of the whole scan with the part perturbed; all else is bit-identical."""
        image = self.scan.image.copy()
        image[(slice(None), *self.place)] += self.in_unit(perturbation)
        return image


def pose_on_scan(
    model: ScanModel,
    scan: Scan,
    labels: LabelArray | None = None,
    *,
    extent: Extent = "volume",
    index: int = 0,
    region: NDArray[np.generic] | None = None,
    target: LabelArray | Target | None = None,
    device: torch.device | str = "cpu",
) -> Subject:
    """Cut the part to attack out of a scan and map it to the model's window.

    Parameters
    ----------
    model
        Prepared model on ``device``.
    labels
        Reference mask (*spatial); without one the model's own clean mask is the reference.
    extent
        ``"volume"``: all of the scan. ``"slice"``: the slice ``index`` for a 2-D model; for a 3-D model
        the window around it (the whole volume where that fits one window).
    index
        Slice along the first array axis.
    region
        Non-zero where the scan may change (*spatial); None for everywhere.
    target
        Mask to reach (*spatial), or a function that makes it from the reference of the part
        (see `cease_core.attacks.targets`).

    Raises
    ------
    CeaseError
        If the scan, the labels, the region or the target do not fit the model.
    """
    model.check(scan)
    if labels is not None:
        check_classes(labels, model.card, scan)
    if target is not None and not callable(target):
        check_classes(target, model.card, scan, "target")
    window = model.card.window.resolve(scan)
    place = _place(model, scan, extent, index)
    part = scan.image[(slice(None), *place)] - np.float32(window.low)
    part /= np.float32(window.width)
    images = torch.from_numpy(np.ascontiguousarray(part)).unsqueeze(0).to(device)
    seen = in_windows(model, tuple(images.shape[2:]), scan)
    if labels is None:
        with torch.no_grad():
            # Attacks judge by full precision, so that is what the mask has to come from.
            logits = (getattr(seen, "exact", None) or seen)(images)
        # Ids cannot say that two structures overlap, and a model has to agree with itself.
        reference = (logits > 0).float() if model.mode == "multilabel" else predict_labels(logits, model.mode)
    else:
        cut = np.ascontiguousarray(labels[place])
        reference = torch.from_numpy(cut).long().unsqueeze(0).to(device)
    goal = None
    if callable(target):
        goal = target(reference)
    elif target is not None:
        goal = torch.from_numpy(np.ascontiguousarray(target[place])).long().unsqueeze(0).to(device)
    return Subject(
        scan,
        seen,
        window,
        images,
        reference,
        place,
        "clean mask" if labels is None else "labels",
        None if region is None else _cut_region(region, scan, place).to(device),
        goal,
    )


def in_windows(model: ScanModel, shape: tuple[int, ...], scan: Scan | None = None) -> Segmenter:
    """The model for an image or volume of ``shape``: as it is, slice by slice, or window by window.

    Parameters
    ----------
    scan
        Of which the image is a part; a model that was made elsewhere has a grid and windows of its own on it.
    """
    if isinstance(model, ForeignModel) and scan is not None:
        bound = model.on(scan)
        return bound if len(shape) == model.card.ndim else _slice_by_slice(bound, shape)
    if len(shape) > model.card.ndim:
        return _slice_by_slice(model, shape)
    if model.card.ndim == 3 and max(shape) > WINDOW_EDGE:
        return Windowed(model, (WINDOW_EDGE,) * 3, overlap=0.5, batch=1)
    return model


def _slice_by_slice(model: Segmenter, shape: tuple[int, ...]) -> Segmenter:
    return Windowed(model, (1, shape[1], shape[2]), overlap=0, batch=SLICES_AT_ONCE, planar=True)


def _cut_region(region: NDArray[np.generic], scan: Scan, place: tuple[slice | int, ...]) -> Tensor:
    if region.shape != scan.shape:
        raise CeaseError(
            f"the region has shape {region.shape}, but {scan.name} has {scan.shape}; draw it on this scan."
        )
    if not region.any():
        raise CeaseError("the region is empty, so nothing may change; draw it over some voxels.")
    cut = np.ascontiguousarray(region[place] != 0)
    if not cut.any():
        raise CeaseError("the region does not reach this slice; go to a slice that it covers, or draw it here.")
    return torch.from_numpy(cut)[None, None]


def check_classes(labels: LabelArray, card: ModelCard, scan: Scan, name: str = "labels") -> None:
    """Raise a `CeaseError` if a mask does not fit the scan or holds classes that the model does not know."""
    if labels.shape != scan.shape:
        raise CeaseError(
            f"the {name} have shape {labels.shape}, but {scan.name} has {scan.shape}; choose the {name} of this scan."
        )
    held = class_ids(labels)
    unknown = sorted(held - {0, *(c.id for c in card.classes)})
    if unknown:
        known = ", ".join(f"{c.id} {c.name}" for c in card.classes)
        ids = ", ".join(str(u) for u in unknown[:5])
        likely = ClassMap.proposed(held, len(card.classes))
        remedy = (
            f"say with --classes which class each id becomes, as in --classes {unknown[0]}=0 to drop it"
            if likely is None
            else f"if these are the same classes in another numbering, add --classes {likely}"
        )
        raise CeaseError(
            f"the {name} hold the unknown class {ids}, but {card.title} knows 0 background, {known}; "
            f"{remedy}, or choose {name} with the model's classes, or none."
        )


def _place(model: ScanModel, scan: Scan, extent: Extent, index: int) -> tuple[slice | int, ...]:
    whole = tuple(slice(0, s) for s in scan.shape)
    if scan.ndim == 2 or extent == "volume":
        return whole
    if not 0 <= index < scan.shape[0]:
        raise CeaseError(f"slice {index} does not exist; {scan.name} has slices 0 to {scan.shape[0] - 1}.")
    if model.card.ndim == 2:
        return (index, *whole[1:])
    depth = min(_depth(model, scan), scan.shape[0])
    first = min(max(0, index - depth // 2), scan.shape[0] - depth)
    return (slice(first, first + depth), *whole[1:])


def _depth(model: ScanModel, scan: Scan) -> int:
    """Slices of a scan that fill one window of a 3-D model."""
    if not isinstance(model, ForeignModel):
        return WINDOW_EDGE
    if model.foreign.size:
        return scan.shape[0]
    grid = Grid.of(model.foreign, scan, 3)
    return grid.reach(0, model.window[grid.turn.axes.index(0)])
