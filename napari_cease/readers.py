"""npe2 readers: a scan becomes one image layer, or one for each channel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cease_core.errors import CeaseError
from cease_core.io import (
    READABLE,
    frame_count,
    holds_dicom,
    is_dicom,
    is_segmentation,
    label_names,
    read_labels,
    read_own_labels,
    read_scan,
)
from cease_core.scan import Scan, percentile_window
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
        A file, a folder of DICOM slices, or several of these; slices of one folder are read once. A DICOM
        segmentation becomes a labels layer on the grid of a scan that is read with it or already open, or on its own.

    Returns
    -------
    list of (data, keyword arguments, layer type)
        Of a time series the first frame, which a notification says.

    Raises
    ------
    CeaseError
        If a scan cannot be read; its sentence is shown as a notification.
    """
    layers: list[LayerData] = []
    seen: set[tuple[object, ...] | None] = set()
    paths = _as_list(path)
    masks = [one for one in paths if is_segmentation(one)]
    for one in paths:
        if one in masks:
            continue
        scan = open_scan(one)
        if "frames" in scan.metadata:
            _tell_of_frames(scan)
        series = _series(one, scan)
        if series is None or series not in seen:
            layers += scan_layers(scan)
        seen.add(series)
    scans = [options["metadata"]["cease"]["scan"] for _, options, _ in layers] + _shown_scans()
    return layers + [_mask_layer(one, scans) for one in masks]


def _series(path: Path, scan: Scan) -> tuple[object, ...] | None:
    """What tells a series of DICOM slices from any other; None for another file."""
    files, numbers = (tuple(scan.metadata.get(key, ())) for key in ("files", "frame_numbers"))
    if not files:
        return None
    folder = (path if path.is_dir() else path.parent).resolve()
    return folder, scan.metadata.get("series_uid"), files, numbers


def _mask_layer(path: Path, scans: Iterable[Scan]) -> LayerData:
    """A DICOM segmentation on the grid of the first scan that it fits, else on its own."""
    from napari_cease.samples import labels_layer

    found = None
    for scan in scans:
        with suppress(CeaseError):
            found = read_labels(path, like=scan), scan
            break
    labels, scan = found or read_own_labels(path)
    data, options, kind = labels_layer(labels, scan, label_names(path))
    return data, options | {"name": path.stem}, kind


def _shown_scans() -> list[Scan]:
    from napari import current_viewer

    viewer = current_viewer()
    marks = [layer.metadata.get("cease", {}) for layer in viewer.layers] if viewer else []
    return [mark["scan"] for mark in marks if mark.get("role") == "scan"]


def open_scan(path: Path, frame: int | None = None) -> Scan:
    """Read a scan to be shown.

    Parameters
    ----------
    path
        Of several volumes in one file, the first is taken for a time series; all are taken as channels where a
        ``dataset.json`` beside the file, or one folder up, lists as many modalities.
    frame
        Which volume of a series to take instead, from 0.

    Raises
    ------
    CeaseError
        If it cannot be read.
    """
    frames = frame_count(path)
    if frames == 1:
        return read_scan(path)
    if frame is None and _are_contrasts(path, frames):
        return read_scan(path, volumes_as_channels=True)
    return read_scan(path, frame=frame or 0)


def _are_contrasts(path: Path, volumes: int) -> bool:
    from cease_core.data.manifest import MANIFEST, read_manifest

    for folder in path.absolute().parents[:2]:
        if (folder / MANIFEST).is_file():
            with suppress(CeaseError):
                return len(read_manifest(folder).modality) == volumes
    return False


def _tell_of_frames(scan: Scan) -> None:
    from napari.utils.notifications import show_info

    frames = scan.metadata["frames"]
    show_info(
        f"{scan.path.name if scan.path else scan.name} is a series of {frames} volumes; this is frame 0. "
        f"The attack explorer shows the others, 1 to {frames - 1}, with the field “Frame” below “Scan”."
    )


def scan_layers(scan: Scan) -> list[LayerData]:
    """Layer data of a scan: one layer; of channels that are no colours one for each, of which the first is shown."""
    if scan.rgb or scan.channels == 1:
        return [(display_array(scan.image, scan), _options(scan, scan.name), "image")]
    # One above the other, and the lower ones out of sight: in grey, the uppermost alone would be seen anyway.
    return [
        (channel, _options(scan, f"{scan.name} [{index}]", channel=index) | {"visible": index == 0}, "image")
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
        # The contrasts of one examination differ in scale; each is shown in a window of its own.
        window = scan.window if channel is None else percentile_window(scan.image[channel : channel + 1])
        options |= {"contrast_limits": tuple(window), "colormap": "gray"}
    return options


def _as_list(path: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(path)] if isinstance(path, str | os.PathLike) else [Path(p) for p in path]


def _readable(path: Path) -> bool:
    if path.is_dir():
        return holds_dicom(path)
    return path.name.lower().endswith(READABLE) or is_dicom(path)
