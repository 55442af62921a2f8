"""The features behind the masks that the explorer shows, off the GUI thread and without Qt.

Nothing is attacked here: a perturbation that is known already goes through the model once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import center_of_mass

from cease_core.attacks.on_scan import WINDOW_EDGE
from cease_core.errors import CeaseError
from cease_core.evaluation.features import FeaturePicture, FeatureProbe
from cease_core.models.segmenter import ScanModel
from cease_core.scan import LabelArray, Scan
from napari_cease.jobs.exploration import Opened, Side, View


@dataclass(frozen=True, eq=False)
class FeatureRequest:
    """One model's features at one ε.

    Parameters
    ----------
    model
        Loads the model; called on the worker's thread.
    labels
        The reference (*spatial); None for the model's own clean mask.
    index
        The slice that is looked at, along the scan's first axis.
    opened, view
        What the explorer has found.
    """

    model: Callable[[], ScanModel]
    scan: Scan
    labels: LabelArray | None
    index: int
    opened: Opened
    view: View

    def same_image(self, other: FeatureRequest | None) -> bool:
        """Whether both are about the same clean image and pixels."""
        return other is not None and self.opened is other.opened and self.index == other.index

    def same(self, other: FeatureRequest | None) -> bool:
        """Whether both have the same answer."""
        return other is not None and self.same_image(other) and self.view is other.view


@dataclass(frozen=True, eq=False)
class FeaturesFound:
    """The answer to a request: a picture, or a sentence that says why there is none."""

    request: FeatureRequest
    picture: FeaturePicture | None
    sentence: str = ""

    @property
    def side(self) -> Side:
        """Of which model."""
        return self.request.view.side


class FeatureGallery:
    """Answers requests and keeps what it needs of each side's clean image; to be used on one thread."""

    def __init__(self) -> None:
        self._kept: dict[Side, tuple[FeatureRequest, FeatureProbe]] = {}

    def show(
        self, requests: Sequence[FeatureRequest], emit: Callable[[FeaturesFound], None], stopped: Callable[[], bool]
    ) -> None:
        """Answer each request in turn."""
        for request in requests:
            if stopped():
                return
            try:
                emit(FeaturesFound(request, self._picture(request)))
            except CeaseError as error:
                emit(FeaturesFound(request, None, str(error)))

    def _picture(self, request: FeatureRequest) -> FeaturePicture:
        side = request.view.side
        model = request.model()
        piece = piece_of(request.opened, model.card.ndim, request.index)
        kept, probe = self._kept.get(side, (None, None))
        if probe is None or not request.same_image(kept):
            self._kept.pop(side, None)
            opened, window = request.opened, request.opened.window
            labels = opened.mask if request.labels is None else request.labels[opened.place]
            image = (
                request.scan.image[(slice(None), *opened.place)][(slice(None), *piece)] - window.low
            ) / window.width
            probe = FeatureProbe(model, _batch(image), torch.from_numpy(labels[piece].astype(np.int64))[None])
            self._kept[side] = request, probe
        return probe.picture(_batch(request.view.perturbation[(slice(None), *piece)]))


def piece_of(opened: Opened, ndim: int, index: int) -> tuple[int | slice, ...]:
    """What of an attacked part a model of ``ndim`` dimensions sees at a time, counted from where the part begins.

    All of it; or the slice ``index`` of the scan, for a 2-D model on a volume; or, where a volume goes through a 3-D
    model in windows, as much of it around that slice, and around the middle of the structures, as fits one.
    """
    shape = opened.mask.shape
    if len(shape) < 3:
        return (slice(None),) * len(shape)
    first = opened.place[0]
    depth = index - (first.start or 0 if isinstance(first, slice) else first)
    if ndim == 2:
        return (depth, slice(None), slice(None))
    middle = center_of_mass(opened.mask > 0) if opened.mask.any() else tuple(s / 2 for s in shape)
    return tuple(_around(centre, size) for centre, size in zip((depth, *middle[1:]), shape, strict=True))


def _around(centre: float, size: int) -> slice:
    first = min(max(0, round(centre) - WINDOW_EDGE // 2), max(0, size - WINDOW_EDGE))
    return slice(first, min(first + WINDOW_EDGE, size))


def _batch(image: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
