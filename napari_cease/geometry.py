"""Where a scan lies in napari, and how its intensities are handed over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cease_core.errors import CeaseError
from cease_core.scan import Scan, Window

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


def scan_of_layer(layer: Any) -> Scan:
    """The scan that an image layer shows.

    Parameters
    ----------
    layer
        An image layer: one that our readers made keeps its scan; any other is taken at its values,
        with its scale and units.

    Raises
    ------
    CeaseError
        If the layer is not a 2-D or 3-D image, or holds NaN or infinite values.
    """
    mark = layer.metadata.get("cease", {})
    if mark.get("role") == "scan" and "channel" not in mark:
        scan: Scan = mark["scan"]
        return scan
    data = np.asarray(layer.data)
    if layer.multiscale or data.ndim - int(layer.rgb) not in (2, 3):
        raise CeaseError(f"{layer.name}: choose a layer with a single 2-D or 3-D image; this one is {data.shape}.")
    image = np.moveaxis(data[..., :3], -1, 0) if layer.rgb else data[None]
    image = np.ascontiguousarray(image, np.float32)
    ndim = image.ndim - 1
    affine = np.eye(4)
    affine[:ndim, :ndim] = np.diag(layer.scale)
    affine[:ndim, 3] = layer.translate
    eight_bit = data.dtype == np.uint8
    unit = str(layer.units[-1])
    return Scan(
        image,
        affine,
        name=layer.name,
        unit="8-bit" if eight_bit else "a.u.",
        length_unit="mm" if unit in ("mm", "millimeter") else "pixel",
        window=Window(0.0, 255.0) if eight_bit and layer.rgb else None,  # type: ignore[arg-type]
        rgb=bool(layer.rgb),
    )
