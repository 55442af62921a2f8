"""A training config for a data set that nobody has written one for: what its own shapes, masks and units suggest."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from cease_core.data.cases import Dataset
from cease_core.data.classmap import ClassMap
from cease_core.data.survey import Facts
from cease_core.errors import CeaseError
from cease_core.models.architectures import build
from cease_core.models.card import PALETTE, ModelCard

EPOCHS = 50
VALIDATION = 0.2
"""Share of the patients: larger than a config's default, as unknown data sets may be small."""
ARCHITECTURE = "residual_unet"
THIN = 8
"""Volumes with fewer slices are trained on slice by slice."""
CAPS = {2: 256, 3: 96}
"""Longest edge of a patch, by dimensions."""
_BATCH_VOXELS = 2**20
"""What a batch holds at most, where that leaves at least two patches: a few GB while training."""
_BATCHES = 8
"""An epoch has at least so many, where that leaves two images a batch: else few images would mean few steps."""
_SOFT_TISSUE = (-160.0, 240.0)


def propose(
    dataset: Dataset, facts: Sequence[Facts], *, given: Mapping[str, Any], start: ModelCard | None = None
) -> dict[str, Any]:
    """Entries of a `TrainingConfig` that follow from the data, all but its defence, its data and its length.

    The window of pictures is 0 to 255, that of CT a soft tissue window, any other the 0.5th to 99.5th percentile of
    each scan; values outside stay as they are. Large pictures are averaged down until their longer edge has fewer
    than 512 pixels. Patches are as large as the median image, up to `CAPS`, in multiples of what the architecture
    halves; where they show less than half of it, every other one is centred on a structure.

    Parameters
    ----------
    dataset
        For its name and the names of its classes.
    facts
        Of its training and validation cases.
    given
        Entries that were chosen already; of these, ``ndim``, ``architecture``, ``architecture_args`` and
        ``downsample`` have a bearing on others.
    start
        Card of the model to start from: it decides on everything that its layers and its window fix.

    Raises
    ------
    CeaseError
        If the cases do not fit together, or their masks are empty or count classes with gaps.
    """
    fixed = _seen(dataset, facts, given) if start is None else _inherited(start, facts)
    whole = {**fixed, **{k: v for k, v in given.items() if k in ("architecture", "architecture_args", "ndim")}}
    ndim = whole["ndim"]
    shape = [round(median(sizes)) for sizes in zip(*(f.shape[-ndim:] for f in facts), strict=True)]
    downsample = given.get("downsample", start.downsample if start is not None else _downsample(shape))
    shape = [math.ceil(size / downsample) for size in shape]
    backbone = build(whole["architecture"], ndim, whole["channels"], 1, whole["architecture_args"])
    patch = [_edge(size, backbone.multiple, CAPS[ndim]) for size in shape]
    voxels = math.prod(patch)
    images = sum(f.shape[0] if f.ndim > ndim else 1 for f in facts)
    most = min(16, _BATCH_VOXELS // voxels, images // _BATCHES)
    return {
        "name": slug(dataset.name),
        "title": dataset.name,
        **fixed,
        "downsample": downsample,
        "patch": patch,
        "foreground": 0.5 if voxels < math.prod(shape) / 2 else 0.0,
        "batch_size": max(2, 2 ** int(math.log2(max(1, most)))),
    }


def slug(name: str) -> str:
    """A name that a model's card accepts.

    Examples
    --------
    >>> slug("My data (2024)")
    'my-data-2024'
    """
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "model"


def _seen(dataset: Dataset, facts: Sequence[Facts], given: Mapping[str, Any]) -> dict[str, Any]:
    dims, channels = {f.ndim for f in facts}, {f.channels for f in facts}
    if len(dims) > 1 and given.get("ndim") != 2:
        raise CeaseError("the data set mixes pictures and volumes; add --set ndim=2 to train on slices.")
    if len(channels) > 1:
        raise CeaseError(
            f"the images have {' or '.join(str(c) for c in sorted(channels))} channels; train on images of one kind."
        )
    if given.get("ndim") == 3 and 2 in dims:
        raise CeaseError("ndim = 3 needs volumes, but there are pictures here; leave out ndim.")
    thin = median(f.shape[0] for f in facts) < THIN if dims == {3} else False
    classes = _classes(dataset, facts)
    return {
        "architecture": ARCHITECTURE,
        "architecture_args": {},
        "ndim": 2 if thin else max(dims),
        "channels": channels.pop(),
        "classes": classes,
        "mode": "binary" if len(classes) == 1 else "multiclass",
        "window": _window({f.unit for f in facts}),
    }


def _inherited(card: ModelCard, facts: Sequence[Facts]) -> dict[str, Any]:
    if any(f.ndim < card.ndim for f in facts):
        raise CeaseError(f"{card.name} segments volumes, but there are pictures here; start from a 2-D model.")
    keys = {"architecture", "architecture_args", "ndim", "channels", "classes", "mode", "window"}
    return card.model_dump(mode="json", include=keys)


def _classes(dataset: Dataset, facts: Sequence[Facts]) -> list[dict[str, Any]]:
    found = {i for f in facts for i in f.voxels if i > 0}
    names = {i: dataset.classes.get(i, f"class {i}") for i in sorted(found | dataset.classes.keys())}
    if not found:
        raise CeaseError("the masks of these cases are empty; a model needs some structure to learn.")
    if list(names) != list(range(1, len(names) + 1)):
        listed = ", ".join(str(i) for i in names)
        raise CeaseError(
            f"the masks hold the class ids {listed}; number the classes 1, 2, … without gaps, "
            f"or map them, as with --classes {ClassMap.in_order(names)}."
        )
    return [{"id": i, "name": name, "color": PALETTE[(i - 1) % len(PALETTE)]} for i, name in names.items()]


def _window(units: set[str]) -> dict[str, Any]:
    fixed = {frozenset({"8-bit"}): (0.0, 255.0), frozenset({"HU"}): _SOFT_TISSUE}.get(frozenset(units))
    if fixed is not None:
        return {"kind": "fixed", "low": fixed[0], "high": fixed[1]}
    return {"kind": "percentile", "low": 0.5, "high": 99.5}


def _downsample(shape: Sequence[int]) -> int:
    """Averaging a volume would lose thin slices; a picture of twice the size shows the same."""
    return 1 if len(shape) == 3 else max(1, 2 ** int(math.log2(max(shape) / CAPS[2])))


def _edge(size: int, multiple: int, cap: int) -> int:
    """Two multiples at least: at one, the coarsest level has a single voxel, which instance norms refuse."""
    return max(2 * multiple, min(size, cap) // multiple * multiple)
