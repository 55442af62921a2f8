"""Where a scan may change, as the user marks it: labels painted or shapes drawn in napari."""

from __future__ import annotations

import numpy as np
from napari.layers import Labels, Layer, Shapes
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from cease_core.errors import CeaseError
from cease_core.scan import Scan


def region_of_layer(layer: Labels | Shapes, scan: Scan) -> NDArray[np.bool_]:
    """Where the scan may change: the non-zero voxels of a labels layer, or the inside of shapes.

    Parameters
    ----------
    layer
        On the scan's grid, or moved against it; shapes of a 2-D layer hold for every slice of a volume.
    scan
        The scan.

    Returns
    -------
    array
        bool, shape of the scan.

    Raises
    ------
    CeaseError
        If nothing lies inside, if labels have another shape, or if a shape is not within one slice.
    """
    inside = _of_shapes(layer, scan) if isinstance(layer, Shapes) else _of_labels(layer, scan)
    if not inside.any():
        raise CeaseError(f"{layer.name} marks no voxel of {scan.name}; draw on it.")
    return inside


def _index_map(layer: Layer, scan: Scan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix and offset from a layer's data coordinates to indices of the scan, over its own spatial axes."""
    origin = np.asarray(layer.data_to_world(np.zeros(layer.ndim)), float)
    columns = [np.asarray(layer.data_to_world(unit), float) - origin for unit in np.eye(layer.ndim)]
    # napari lines axes up by the last one: axes that the layer lacks stay unset, further ones are dropped.
    shared = min(layer.ndim, scan.ndim)
    spacing, first = np.asarray(scan.spacing)[-shared:], np.asarray(scan.translate)[-shared:]
    matrix = np.stack(columns, axis=1)[-shared:] / spacing[:, None]
    return matrix, (origin[-shared:] - first) / spacing


def _of_labels(layer: Labels, scan: Scan) -> NDArray[np.bool_]:
    marked: NDArray[np.bool_] = np.asarray(layer.data) != 0
    if marked.shape != scan.shape:
        raise CeaseError(
            f"{layer.name}: the region has shape {marked.shape}, but {scan.name} has {scan.shape}; "
            "draw it on a labels layer of this scan."
        )
    matrix, offset = _index_map(layer, scan)
    if np.allclose(matrix, np.eye(scan.ndim), atol=1e-6) and np.allclose(offset, 0, atol=1e-3):
        return marked
    back = np.linalg.inv(matrix)
    moved = affine_transform(marked.astype(np.uint8), back, -back @ offset, output_shape=scan.shape, order=0)
    inside: NDArray[np.bool_] = moved != 0
    return inside


def _of_shapes(layer: Shapes, scan: Scan) -> NDArray[np.bool_]:
    matrix, offset = _index_map(layer, scan)
    inside = np.zeros(scan.shape, bool)
    planes: dict[tuple[int, int], list[tuple[NDArray[np.float64], str]]] = {}
    for vertices, kind in zip(layer.data, layer.shape_type, strict=True):
        points = np.asarray(vertices, float) @ matrix.T + offset
        axis = index = -1
        if points.shape[1] == 3:
            flat = [a for a in range(3) if np.ptp(points[:, a]) < 0.5]
            if not flat:
                raise CeaseError(f"{layer.name}: a shape spans several slices; draw each shape within one slice.")
            axis, index = flat[0], round(float(points[:, flat[0]].mean()))
            if not 0 <= index < scan.shape[axis]:
                continue
            points = np.delete(points, axis, axis=1)
        planes.setdefault((axis, index), []).append((points, kind))
    for (axis, index), shapes in planes.items():
        # The shapes of a 2-D layer hold for every slice.
        part = inside if axis < 0 else np.moveaxis(inside, axis, 0)[index]
        # On a layer in the scan's own indices, so that every kind of shape is filled as napari draws it.
        drawn = Shapes([points for points, _ in shapes], shape_type=[kind for _, kind in shapes])
        part |= drawn.to_masks(part.shape[-2:]).any(axis=0)
    return inside
