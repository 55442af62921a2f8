"""Whether a model that was made elsewhere works here: asked once, on a scan that is made for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from cease_core.errors import CeaseError, one_line
from cease_core.models.foreign.grid import Grid
from cease_core.models.foreign.model import ForeignModel
from cease_core.models.prepare import prepare
from cease_core.models.segmenter import NO_GRADIENT
from cease_core.scan import Scan

SHAPES = {2: (72, 56), 3: (40, 36, 28)}
"""Of the scan, in voxels; its edges differ, so that exchanged axes show."""

COARSER = 1.25
"""Voxels of the scan are this much larger than the network's, so that it is resampled."""


def try_model(model: ForeignModel) -> None:
    """Run a model, its gradient and its preparation for attacks once.

    Parameters
    ----------
    model
        In evaluation mode, on the CPU.

    Raises
    ------
    CeaseError
        If it fails, answers with anything but finite logits of the card's classes, differs when it is asked again,
        or no gradient reaches the scan.
    """
    scan = made_scan(model)
    title = model.card.title
    with _asking(title):
        seen = model.on(scan)
        window = model.card.window.resolve(scan)
    images = torch.from_numpy((scan.image - np.float32(window.low)) / np.float32(window.width))[None].requires_grad_()
    with _asking(title), torch.enable_grad():
        logits = seen(images)
    if logits.shape != (1, model.card.outputs, *scan.shape):
        raise CeaseError(f"{title} answers with shape {tuple(logits.shape)}; check its axes and window.")
    if not logits.isfinite().all():
        raise CeaseError(f"{title} answers with values that are no numbers; export the model again.")
    if not logits.requires_grad:
        raise CeaseError(f"{title}: {NO_GRADIENT}")
    with _asking(title):
        (gradient,) = torch.autograd.grad(logits.square().sum(), images, allow_unused=True)
    if gradient is None:
        raise CeaseError(f"{title}: {NO_GRADIENT}")
    if not gradient.isfinite().all():
        raise CeaseError(f"{title} has gradients that are no numbers; export the model again in float32.")
    if not gradient.any():
        raise CeaseError(f"{title} answers every image alike, so it segments nothing; check its window and weights.")
    with _asking(title), torch.no_grad():
        again = seen(images.detach())
    if not torch.allclose(again, logits.detach(), rtol=1e-3, atol=1e-3):
        raise CeaseError(
            f"{title} answers the same scan differently from call to call; switch its dropout off and export it again."
        )
    with _asking(title):
        prepare(model)


def made_scan(model: ForeignModel) -> Scan:
    """A scan with something to see, of voxels somewhat larger than the network's."""
    card = model.card
    shape = SHAPES[card.ndim]
    generator = np.random.default_rng(0)
    away = sum(np.square((np.indices(shape)[a] - n / 3) / (n / 4)) for a, n in enumerate(shape))
    values = 0.25 + 0.5 * (away < 1) + 0.1 * generator.standard_normal((card.channels, *shape))
    rule = card.window
    low, width = (rule.low, rule.high - rule.low) if rule.kind == "fixed" else (0.0, 100.0)
    image = np.asarray(low + width * values.clip(0, 1), np.float32)
    scan = Scan(image, np.eye(4), name="trial")
    sizes = np.ones(4)
    for axis, size in zip(Grid.of(model.foreign, scan, card.ndim).turn.axes, model.foreign.spacing, strict=False):
        sizes[axis] = COARSER * size or 1.0
    return replace(scan, affine=np.diag(sizes))


@contextmanager
def _asking(title: str) -> Iterator[None]:
    """One sentence for whatever a foreign network raises on an image."""
    try:
        yield
    except CeaseError:
        raise
    except MemoryError as error:
        raise CeaseError(f"{title} does not fit into memory; choose a smaller window.") from error
    except Exception as error:
        raise CeaseError(
            f"{title} fails on an image of the kind that its card describes ({one_line(error)}); correct channels, "
            "dimensions or window, or import another model."
        ) from error
