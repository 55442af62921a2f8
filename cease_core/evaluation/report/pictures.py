"""Worst cases as pictures: a scan as PNG, masks as outlines over it."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import find_contours

from cease_core.evaluation.audit.store import Audit, picture_path

WIDEST = 400
"""Pixels: beyond this a picture is made smaller, so that a page of many stays small."""


@dataclass(frozen=True)
class Outline:
    """A class's outline as the ``d`` of an SVG path, in the picture's own units."""

    class_id: int
    path: str


@dataclass(frozen=True)
class Shot:
    """One model on one case, without an attack and in the worst case.

    Parameters
    ----------
    width, height
        Of all its pictures, in pixels of the width; anisotropic pixels are stretched to their true shape.
    scan, perturbation, perturbed
        Data URIs of PNG files.
    amplified
        By how much the perturbation is, around a middle grey.
    reference, clean, attacked
        Outlines.
    channel
        Which one is shown, counted from 1, and of how many; None where all are.
    """

    attack: str
    epsilon: float
    clean_dice: float
    dice: float
    width: float
    height: float
    scan: str
    perturbation: str
    perturbed: str
    amplified: int
    reference: tuple[Outline, ...]
    clean: tuple[Outline, ...]
    attacked: tuple[Outline, ...]
    channel: tuple[int, int] | None


def take(audit: Audit, model: str, case: str) -> Shot | None:
    """The picture of a case, where there is a readable one.

    Parameters
    ----------
    audit
        Whose folder holds it.
    model, case
        Names.
    """
    path = picture_path(audit.folder, model, case)
    kept = _read(path)
    if kept is None:
        return None
    image, perturbation = (np.asarray(kept[k], np.float32) for k in ("image", "perturbation"))
    masks = [np.asarray(kept[k]) for k in ("reference", "clean", "attacked")]
    amplified = max(1, math.floor(0.5 / max(float(kept["epsilon"]), 1e-6)))
    tall = _stretch(audit, case)
    rows, columns = masks[0].shape
    outlines = [_outlines(m, sorted(audit.classes), tall) for m in masks]
    return Shot(
        attack=str(kept["attack"]),
        epsilon=float(kept["epsilon"]),
        clean_dice=float(kept["clean_dice"]),
        dice=float(kept["dice"]),
        width=columns,
        height=rows * tall,
        scan=_uri(image, smooth=True),
        perturbation=_uri(0.5 + amplified * perturbation, smooth=False),
        perturbed=_uri(image + perturbation, smooth=True),
        amplified=amplified,
        reference=outlines[0],
        clean=outlines[1],
        attacked=outlines[2],
        channel=None if image.shape[0] in (1, 3) else (1, image.shape[0]),
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError, KeyError):
        return None


def _stretch(audit: Audit, case: str) -> float:
    """Height of a pixel over its width."""
    row = audit.cases[audit.cases["case"] == case]
    spacing = json.loads(row["spacing"].iloc[0]) if len(row) else [1.0, 1.0]
    return float(spacing[-2] / spacing[-1])


def _uri(image: NDArray[np.float32], *, smooth: bool) -> str:
    """A PNG of window fractions (C, H, W): grey, colours for three channels, else the first one."""
    grey = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    picture = Image.fromarray(np.moveaxis(grey, 0, -1) if grey.shape[0] == 3 else grey[0])
    if picture.width > WIDEST:
        size = WIDEST, max(1, round(picture.height * WIDEST / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _outlines(mask: NDArray[Any], classes: Sequence[int], tall: float) -> tuple[Outline, ...]:
    padded = np.pad(mask, 1)
    outlines = []
    for c in classes:
        rings = find_contours((padded == c).astype(np.float32), 0.5)
        path = "".join("M" + "L".join(f"{x - 0.5:.1f},{(y - 0.5) * tall:.1f}" for y, x in ring) + "Z" for ring in rings)
        if path:
            outlines.append(Outline(c, path))
    return tuple(outlines)
