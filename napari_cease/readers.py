"""npe2 readers: a scan becomes one image layer, or one for each channel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cease_core.io import READABLE, holds_dicom, is_dicom, read_scan
from cease_core.scan import Scan
from napari_cease.geometry import display_array, layer_geometry

LayerData = tuple[Any, dict[str, Any], str]
PathLike = str | os.PathLike[str]


def get_reader(path: PathLike | Sequence[PathLike]) -> Callable[[Any], list[LayerData]] | None:
    """Return the function that reads ``path``, or None if it is not a scan.

    Parameters
    ----------
    path
        A file, a folder of DICOM slices, or several of these.
    """
    paths = _as_list(path)
    if paths and all(_readable(p) for p in paths):
        return read_layers
    return None


def read_layers(path: PathLike | Sequence[PathLike]) -> list[LayerData]:
    """Read scans into layer data.

    Parameters
    ----------
    path
        A file, a folder of DICOM slices, or several of these; slices of one folder are read once.

    Returns
    -------
    list of (data, keyword arguments, layer type)

    Raises
    ------
    CeaseError
        If a scan cannot be read; its sentence is shown as a notification.
    """
    layers: list[LayerData] = []
    seen: set[str] = set()
    for one in _as_list(path):
        scan = read_scan(one)
        series = scan.metadata.get("series_uid")
        if series is None or series not in seen:
            layers += scan_layers(scan)
        if series is not None:
            seen.add(series)
    return layers


def scan_layers(scan: Scan) -> list[LayerData]:
    """Layer data of a scan: one layer, or one for each channel unless they are colours."""
    if scan.rgb or scan.channels == 1:
        return [(display_array(scan.image, scan), _options(scan, scan.name), "image")]
    return [
        (channel, _options(scan, f"{scan.name} [{index}]", channel=index), "image")
        for index, channel in enumerate(scan.image)
    ]


def _options(scan: Scan, name: str, channel: int | None = None) -> dict[str, Any]:
    role: dict[str, Any] = {"role": "scan", "scan": scan}
    if channel is not None:
        role["channel"] = channel
    options = {
        "name": name,
        "rgb": scan.rgb,
        "metadata": {"cease": role, "affine": scan.affine},
        **layer_geometry(scan),
    }
    if not scan.rgb:
        options |= {"contrast_limits": tuple(scan.window), "colormap": "gray"}
    return options


def _as_list(path: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(path)] if isinstance(path, str | os.PathLike) else [Path(p) for p in path]


def _readable(path: Path) -> bool:
    if path.is_dir():
        return holds_dicom(path)
    return path.name.lower().endswith(READABLE) or is_dicom(path)
