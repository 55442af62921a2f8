"""npe2 writers: masks and intensities go back onto the grid of the file that the scan came from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cease_core.errors import CeaseError
from cease_core.io import write_labels, write_scan
from cease_core.scan import Affine, Scan


def save_labels(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write one labels layer.

    Parameters
    ----------
    path
        New file: ``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha`` or ``.png``; ``.dcm`` for a scan that came from DICOM.
    data
        Class ids, shape ``(*spatial)``.
    meta
        The layer's attributes. With a scan under ``metadata["cease"]`` the mask is written onto that
        scan's own grid; otherwise its scale and translation are taken for an axial scan's.

    Returns
    -------
    list of str
        The path that was written.

    Raises
    ------
    CeaseError
        If the mask does not fit its scan, or cannot be written there.
    """
    labels = np.asarray(data)
    names = _class_names(meta)
    write_labels(labels, _scan(labels.shape, meta), path, classes=names, colours=_class_colours(names, meta))
    return [path]


def save_image(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write one image layer as float32 NIfTI.

    Parameters
    ----------
    path
        New file: ``.nii.gz`` or ``.nii``.
    data
        Intensities ``(*spatial)``, with the colours last if the layer is an RGB one.
    meta
        The layer's attributes, see `save_labels`.

    Returns
    -------
    list of str
        The path that was written.

    Raises
    ------
    CeaseError
        If the image does not fit its scan, or cannot be written there.
    """
    image = np.asarray(data)
    image = np.moveaxis(image, -1, 0) if meta.get("rgb") else image[np.newaxis]
    write_scan(image, _scan(image.shape[1:], meta), path)
    return [path]


def _class_names(meta: dict[str, Any]) -> dict[int, str]:
    """Names of the classes, as a reference layer and the explorer's masks keep them."""
    known: dict[int, str] = (meta.get("metadata") or {}).get("cease", {}).get("classes") or {}
    features = meta.get("features")
    if not known and features is not None and {"index", "class"} <= set(features):
        known = {int(i): str(name) for i, name in zip(features["index"], features["class"], strict=True)}
    return {i: name for i, name in known.items() if i > 0}


def _class_colours(classes: Iterable[int], meta: dict[str, Any]) -> dict[int, str]:
    """Colours of these classes in the layer, ``"#RRGGBB"``."""
    if (colormap := meta.get("colormap")) is None:
        return {}
    rgb = {i: np.rint(255 * np.asarray(colormap.map(i))[:3]).astype(int) for i in classes}
    return {i: "#{:02X}{:02X}{:02X}".format(*values) for i, values in rgb.items()}


def _scan(shape: tuple[int, ...], meta: dict[str, Any]) -> Scan:
    scan = (meta.get("metadata") or {}).get("cease", {}).get("scan")
    if isinstance(scan, Scan):
        return scan
    if len(shape) not in (2, 3):
        raise CeaseError(
            f"{meta.get('name', 'The layer')} has {len(shape)} axes; "
            "extract one volume or slice (two or three axes) and save that."
        )
    units = {str(unit) for unit in meta.get("units") or ()}
    return Scan(
        image=np.zeros((1, *shape), np.float32),
        affine=_axial_affine(meta.get("scale"), meta.get("translate"), len(shape)),
        name=str(meta.get("name", "layer")),
        length_unit="mm" if units <= {"mm", "millimeter"} and units else "pixel",
    )


def _axial_affine(scale: Any, translate: Any, ndim: int) -> Affine:
    """Where an axial scan with this scale and translation lies: slices to S, rows to P, columns to L."""
    directions = np.eye(4)
    directions[:3, :3] = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]])
    if ndim == 2:
        directions = directions[:, [1, 2, 0, 3]]
    steps = np.ones(3)
    origin = np.zeros(3)
    if scale is not None:
        steps[:ndim] = np.asarray(scale, float)[-ndim:]
    if translate is not None:
        origin[:ndim] = np.asarray(translate, float)[-ndim:]
    affine = directions.copy()
    affine[:3, :3] = directions[:3, :3] * steps
    affine[:3, 3] = directions[:3, :3] @ origin
    return affine
