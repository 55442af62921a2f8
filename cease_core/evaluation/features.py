"""What a model makes of single pixels of a scan, clean, attacked and augmented, and a flat picture of it.

The feature is the one that the contrastive defence compares pixels by: the decoder's, at a quarter of the working
resolution. The projector behind it is dropped after training, so it is taken as it is, at unit length, and models
that were trained without that defence can be looked at in the same way.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cease_core.defences.tap import Tap
from cease_core.defences.terms.contrastive import draw_anchors
from cease_core.defences.views import augmented
from cease_core.errors import CeaseError
from cease_core.models.segmenter import ScanModel, SegmentationModel, predict_labels

PER_CLASS = 48
"""Pixels a class: as many as a small plot can show apart."""
LEAST_PIXELS = 5
"""Pixels of a class below which its centre and spread mean nothing: it is drawn, but no figure counts it."""

Points = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Plane:
    """A linear map from features (P, D) to the plane (P, 2).

    Parameters
    ----------
    centre
        Maps to the origin (D,).
    axes
        Orthonormal (D, 2).
    explained
        Share of the features' variance that lies in the plane, in [0, 1]; NaN if they do not vary.
    """

    centre: Tensor
    axes: Tensor
    explained: float

    def __call__(self, rows: Tensor) -> Points:
        points: Points = ((rows - self.centre) @ self.axes).numpy()
        return points


@dataclass(frozen=True, eq=False)
class FeaturePicture:
    """The same pixels in three views, and figures that do not depend on how they are drawn.

    Parameters
    ----------
    classes
        Class id of each pixel (P,).
    clean, adversarial, augmented
        Where each lies in the plane (P, 2); lengths are those of unit vectors.
    explained
        Share of the clean features' variance that lies in the plane, in [0, 1].
    cosine
        Mean cosine between the clean and the adversarial feature of a pixel, in [−1, 1].
    separation
        Of the classes, clean and adversarial, at least 0 (see `separation`).
    recognised
        Share of pixels at their own class's place, clean and adversarial, in [0, 1] (see `recognised`).

    Attributes
    ----------
    left_out
        Ids of the classes with fewer than `LEAST_PIXELS` pixels, which `separation` and `recognised` do not count.
    """

    classes: NDArray[np.int64]
    clean: Points
    adversarial: Points
    augmented: Points
    explained: float
    cosine: float
    separation: tuple[float, float]
    recognised: tuple[float, float]

    @property
    def left_out(self) -> tuple[int, ...]:
        ids, pixels = np.unique(self.classes, return_counts=True)
        return tuple(ids[pixels < LEAST_PIXELS].tolist())


class FeatureProbe:
    """Some pixels of one image in a model's feature space.

    As many of each class, drawn once, so that they can be followed while ε changes; and one plane for all views, that
    in which the clean features vary most.

    Parameters
    ----------
    model
        On the device to compute on. Its weights are shared; it may be used elsewhere at the same time.
    images
        One clean image in window fractions, shape (1, C, *spatial).
    labels
        Its class ids (1, *spatial), or a channel a class (1, K, *spatial).
    per_class
        At most so many pixels of each class.
    seed
        Of the draw of the pixels, and of the augmentation.

    Raises
    ------
    CeaseError
        If the model has no such feature.

    Attributes
    ----------
    classes
        Class id of each pixel (P,).
    clean, augmented
        Unit vectors (P, D) of the image as it is, and under another light as in the defence's training.
    plane
        From features to the picture.
    """

    def __init__(
        self, model: ScanModel, images: Tensor, labels: Tensor, *, per_class: int = PER_CLASS, seed: int = 0
    ) -> None:
        self._model = _own_hooks(model)
        self._factor = model.card.downsample
        self._images = images.to(next(self._model.parameters()).device)
        small = self._shrunk(self._images)
        try:
            self._tap = Tap(self._model, tuple(small.shape[2:]))
        except CeaseError as error:
            raise CeaseError(
                f"{model.card.title} has no decoder feature to compare pixels by; choose a model with more levels."
            ) from error
        clean = self._features(small)
        ids = labels if labels.ndim == small.ndim - 1 else predict_labels(labels - 0.5, "multilabel")
        grid = self._on_grid(ids.cpu(), tuple(clean.shape[2:]))
        within = (grid >= 0).nonzero().flatten()
        anyone = torch.zeros_like(within, dtype=torch.bool)
        drawn = draw_anchors(grid[within], anyone, per_class, torch.Generator().manual_seed(seed))
        self._at = within[drawn]
        self.classes = grid[self._at]
        self.clean = self._rows(clean)
        self.augmented = self._rows(self._features(augmented(small, (seed,))))
        self.plane = principal_plane(self.clean)

    def attacked(self, perturbation: Tensor) -> Tensor:
        """Unit vectors (P, D) of the same pixels under a perturbation (1, C, *spatial) in window fractions."""
        return self._rows(self._features(self._shrunk(self._images + perturbation.to(self._images))))

    def picture(self, perturbation: Tensor) -> FeaturePicture:
        """All views side by side under a perturbation (1, C, *spatial) in window fractions."""
        moved = self.attacked(perturbation)
        return FeaturePicture(
            self.classes.numpy(),
            self.plane(self.clean),
            self.plane(moved),
            self.plane(self.augmented),
            self.plane.explained,
            mean_cosine(self.clean, moved),
            (separation(self.clean, self.classes), separation(moved, self.classes)),
            (recognised(self.clean, self.classes, self.clean), recognised(moved, self.classes, self.clean)),
        )

    def _shrunk(self, images: Tensor) -> Tensor:
        """Images at the working resolution, padded as the model pads them."""
        padded = F.pad(images, self._padding(tuple(images.shape[2:])), mode="replicate")
        pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
        return pool(padded, self._factor) if self._factor > 1 else padded

    def _padding(self, shape: tuple[int, ...]) -> list[int]:
        step = self._model.backbone.multiple * self._factor
        return [v for size in reversed(shape) for v in (0, -size % step)]

    @torch.no_grad()
    def _features(self, small: Tensor) -> Tensor:
        with self._tap.open(self._model) as caught:
            self._model(small)
        return F.normalize(caught[0].float(), dim=1)

    def _rows(self, features: Tensor) -> Tensor:
        return features[0].flatten(1).T[self._at.to(features.device)].cpu()

    def _on_grid(self, ids: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Class ids on the features' grid, flattened; −1 where that lies in the padding."""
        whole = F.pad(ids.unsqueeze(1).float(), self._padding(tuple(ids.shape[1:])), value=-1)
        return F.interpolate(whole, size=grid, mode="nearest-exact").long().flatten()


def _own_hooks(model: ScanModel) -> SegmentationModel:
    """A model that takes images at its working resolution and shares its weights with another, but no hook."""
    if not isinstance(model, SegmentationModel):
        raise CeaseError(
            f"{model.card.title} does not show its features, as it was built elsewhere; choose a model trained here."
        )
    # The other may be under attack at the same time, and those passes must not be taken for ours.
    shared = {id(t): t for t in chain(model.backbone.parameters(), model.backbone.buffers())}
    twin = SegmentationModel(model.card.model_copy(update={"downsample": 1}), copy.deepcopy(model.backbone, shared))
    return twin.eval()


def principal_plane(rows: Tensor) -> Plane:
    """The plane in which features (P, D) vary most (PCA); the largest entry of each axis is positive."""
    centre = rows.mean(dim=0)
    _, spread, directions = torch.linalg.svd((rows - centre).double(), full_matrices=False)
    first = directions[:2].T.to(rows)
    largest = first.gather(0, first.abs().argmax(dim=0, keepdim=True))
    # A single pixel has one direction, which is none.
    axes = rows.new_zeros(rows.shape[1], 2)
    axes[:, : first.shape[1]] = first * largest.sign()
    variance = spread.square()
    return Plane(centre, axes, float(variance[:2].sum() / variance.sum()))


def mean_cosine(rows: Tensor, others: Tensor) -> float:
    """Mean cosine between features (P, D) of the same pixels."""
    return float(F.cosine_similarity(rows, others, dim=1).mean())


def separation(rows: Tensor, classes: Tensor) -> float:
    """Spread between classes over the spread within: how far apart the classes of features (P, D) lie.

    Mean squared distance of the classes' centres from the centre of these, over the mean over classes of the mean
    squared distance of a class's pixels from its centre: each class counts alike, whatever its size, if it has
    `LEAST_PIXELS` of them. NaN where fewer than two classes do, and where no class has any spread.
    """
    members = _members(classes)
    if len(members) < 2:
        return float("nan")
    centres = _centres(rows, members)
    between = (centres - centres.mean(dim=0)).square().sum(dim=1).mean()
    within = torch.stack([(rows[m] - c).square().sum(dim=1).mean() for m, c in zip(members, centres, strict=True)])
    # What rounding leaves of equal features is no spread.
    if within.mean() <= torch.finfo(rows.dtype).eps * between:
        return float("nan")
    return float(between / within.mean())


def recognised(rows: Tensor, classes: Tensor, clean: Tensor) -> float:
    """Share of features (P, D) that lie nearer to the centre of their class's ``clean`` ones than to another's.

    A pixel has no part in the centre that it is compared with: it would draw its own class's to itself, and features
    that know nothing of the classes would seem to. The mean over classes of each class's share, of those with
    `LEAST_PIXELS` or more; NaN where fewer than two have as many.
    """
    members = _members(classes)
    if len(members) < 2:
        return float("nan")
    centres = _centres(clean, members)
    shares = []
    for i, mine in enumerate(members):
        pixels = int(mine.sum())
        own = (centres[i] * pixels - clean[mine]) / (pixels - 1)
        others = torch.cat([centres[:i], centres[i + 1 :]])
        nearest = (rows[mine].unsqueeze(1) - others).norm(dim=2).amin(dim=1)
        shares.append(((rows[mine] - own).norm(dim=1) < nearest).float().mean())
    return float(torch.stack(shares).mean())


def _members(classes: Tensor) -> list[Tensor]:
    """Who belongs (P,) to each class of enough pixels, in the order of ids."""
    return [m for c in classes.unique() if (m := classes == c).sum() >= LEAST_PIXELS]


def _centres(rows: Tensor, members: list[Tensor]) -> Tensor:
    """The mean of each class (K, D)."""
    return torch.stack([rows[m].mean(dim=0) for m in members])
