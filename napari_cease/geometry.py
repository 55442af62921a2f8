"""Where a scan lies in napari, and how its intensities are handed over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cease_core.scan import Scan

AXIS_LABELS = {2: ("y", "x"), 3: ("z", "y", "x")}


def layer_geometry(scan: Scan) -> dict[str, Any]:
    """Keyword arguments that put a layer where the scan lies.

    Every layer of a scan (intensities, mask, perturbation) takes exactly these: napari drops the units
    of a viewer whose layers disagree. An oblique scan is shown in its own frame, since napari slices
    rotated layers without their rotation; the true affine stays in the scan.

    Parameters
    ----------
    scan
        The scan.

    Returns
    -------
    dict
        ``scale``, ``translate``, ``units`` and ``axis_labels``, one entry a spatial axis.
    """
    return {
        "scale": scan.spacing,
        "translate": scan.translate,
        "units": (scan.length_unit,) * scan.ndim,
        "axis_labels": AXIS_LABELS[scan.ndim],
    }


def display_array(image: NDArray[Any], scan: Scan) -> NDArray[Any]:
    """Intensities as a napari image layer takes them.

    Parameters
    ----------
    image
        Intensities in the scan's unit, shape ``(C, *spatial)``.
    scan
        The scan they belong to; says whether they are colours, and their window.

    Returns
    -------
    array
        ``(*spatial, 3)`` uint8 for colours, where the window becomes 0 to 255; otherwise the image
        as it is, without the channel axis if there is one channel.
    """
    if scan.rgb:
        scaled = (np.moveaxis(image, 0, -1) - scan.window.low) * (255.0 / scan.window.width)
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return image[0] if len(image) == 1 else image
