"""PNG, JPEG, BMP (Pillow) and TIFF (tifffile where Pillow cannot: stacks and deep pixels)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cease_core.errors import CeaseError
from cease_core.io import files
from cease_core.io.stored import LPS_TO_RAS, StoredImage
from cease_core.scan import Layout, Scan, Window

_TIFF = (".tif", ".tiff")
_JPEG = (".jpg", ".jpeg")
SUFFIXES = (".png", *_JPEG, ".bmp", *_TIFF)
WRITABLE = (".png", *_TIFF)

_PLAIN = 1
_DEFLATED = (8, 32946, 32773)
"""How a TIFF's pages are packed, by its tag 259: Adobe's and the older Deflate, and PackBits, which packs less."""

_EIGHT_BIT = Window(0.0, 255.0)
_MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "micron": 1e-3, "um": 1e-3, "µm": 1e-3, "\\u00B5m": 1e-3}

_DEEP_GREY = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}

_JPEG_BLUR = 32
"""How far JPEG may push the two values of a binary mask from 0 and 255."""


class _Pixels(NamedTuple):
    """Decoded picture: ``(C, *spatial)`` with rows before columns."""

    array: NDArray[Any]
    rgb: bool
    spacing: tuple[float, ...] | None = None


def load(path: Path, *, labels: bool = False, as_stored: bool = False) -> StoredImage:
    """Read a picture or a TIFF stack.

    Parameters
    ----------
    path
        The file. Its EXIF rotation is not applied: masks are drawn on the pixels as stored.
    labels
        Read class ids: palette entries stay indices, ``{0, 255}`` becomes ``{0, 1}``.
    as_stored
        Leave 255 in class ids.

    Raises
    ------
    CeaseError
        If it is damaged, too large, a film, or (for labels) a colour picture or a blurred JPEG.
    """
    pixels = _load_tiff(path, labels) if files.match_suffix(path, _TIFF) else _load_pillow(path, labels)
    array = pixels.array
    if array.dtype.kind not in "iufb":
        raise CeaseError(f"{path.name} holds complex numbers; save their magnitude and open that.")
    if labels:
        array = _class_ids(array, path, as_stored)
    spatial = array.shape[1:]
    eight_bit = array.dtype == np.uint8 and not labels
    spacing = pixels.spacing or (1.0,) * len(spatial)
    affine = LPS_TO_RAS @ np.diag([*spacing[::-1], *[1.0] * (3 - len(spacing)), 1.0])
    with np.errstate(over="ignore"):
        image = np.asarray(array, np.float32)
    n = len(spatial)
    return StoredImage(
        array=np.stack([channel.T for channel in image]),
        affine=affine,
        name=files.stem(path, SUFFIXES),
        path=path,
        unit="8-bit" if eight_bit else "a.u.",
        length_unit="mm" if pixels.spacing else "pixel",
        window=_EIGHT_BIT if eight_bit else None,
        rgb=pixels.rgb,
        placed=False,
        layout=Layout(tuple(range(n))[::-1], (False,) * n),
        metadata={"format": "picture"},
    )


def save(array: NDArray[Any], scan: Scan, path: Path, suffix: str) -> None:
    """Write ``(C, *spatial)`` in display order.

    PNG takes one slice: a mask, or 8-bit intensities, rounded to whole grey levels. TIFF takes
    stacks and floating-point intensities too.
    """
    if suffix in _TIFF:
        _save_tiff(array, scan, path, suffix)
    elif suffix == ".png":
        _save_png(array, scan, path)
    else:
        raise CeaseError(f"{path.name} was not written: {suffix} loses values; choose .png, .tif or .nii.gz.")


def _load_pillow(path: Path, labels: bool) -> _Pixels:
    with files.reading(path, "a picture"), Image.open(path) as picture:
        files.check_size(path.name, (len(picture.getbands()), *picture.size[::-1]))
        if picture.format == "PNG":
            files.check_holds(path, math.prod(picture.size) // 8, compressed=True)  # at least one bit a pixel
        picture.load()
        return _from_pillow(picture, labels)


def _from_pillow(picture: Image.Image, labels: bool) -> _Pixels:
    mode = picture.mode
    if mode == "P" and labels:
        return _Pixels(np.asarray(picture)[np.newaxis], rgb=False)
    if mode in _DEEP_GREY:
        return _Pixels(np.asarray(picture)[np.newaxis], rgb=False)
    if mode in ("1", "L", "LA", "La"):
        return _Pixels(np.asarray(picture.convert("L"))[np.newaxis], rgb=False)
    channels = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
    if (mode in ("P", "PA") or labels) and (channels == channels[0]).all():
        return _Pixels(channels[:1], rgb=False)  # a grey palette, or a mask saved as colours
    return _Pixels(channels, rgb=True)


def _load_tiff(path: Path, labels: bool) -> _Pixels:
    with files.reading(path, "TIFF"), _complete(path), tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        files.check_size(path.name, series.shape)
        packing = int(series.keyframe.compression)
        if packing in (_PLAIN, *_DEFLATED):  # the limits of others are too high to say anything
            files.check_holds(path, series.nbytes, compressed=packing != _PLAIN)
        if len(series.pages) == 1 and series.dtype in (np.uint8, np.bool_) and "S" not in series.axes[:-1]:
            return _load_pillow(path, labels)  # it knows palettes, inverted greys and every compression
        axes, shape = series.axes, series.shape
        try:
            array = series.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            array = _decode_pages(path).reshape(shape)  # LZW and its like
        spacing = _spacing(tiff)
    return _arrange(array, axes, spacing, path)


def _arrange(array: NDArray[Any], axes: str, spacing: tuple[float, ...] | None, path: Path) -> _Pixels:
    """Bring a TIFF array of any axis order into ``(C, [z,] y, x)``."""
    if len(axes) != array.ndim:
        raise CeaseError(f"{path.name} has {array.ndim} axes but names {len(axes)}; export it again.")
    keep = [a for a, n in enumerate(array.shape) if n > 1 or axes[a] in "YX"]
    array = array.reshape([array.shape[a] for a in keep])
    axes = "".join(axes[a] for a in keep)
    if "T" in axes:
        raise CeaseError(
            f"{path.name} is a film of {array.shape[axes.index('T')]} frames; save the frame you want and open that."
        )
    colour = "S" if "S" in axes else "C" if "C" in axes else ""
    rest = axes.replace(colour, "") if colour else axes
    if len(rest) not in (2, 3) or not rest.endswith("YX"):
        raise CeaseError(f"{path.name} has axes {axes}; save one picture or one stack of slices and open that.")
    array = np.moveaxis(array, axes.index(colour), 0) if colour else array[np.newaxis]
    if colour == "S" and len(array) in (2, 4):
        array = array[:-1]  # alpha
    return _Pixels(array, rgb=colour == "S" and len(array) == 3, spacing=spacing[-len(rest) :] if spacing else None)


def _decode_pages(path: Path) -> NDArray[Any]:
    with Image.open(path) as picture:
        pages = []
        for page in range(getattr(picture, "n_frames", 1)):
            picture.seek(page)
            pages.append(np.asarray(picture))
    return np.stack(pages)


def _spacing(tiff: tifffile.TiffFile) -> tuple[float, ...] | None:
    """Voxel size (z, y, x) in mm as ImageJ wrote it.

    Plain resolution tags are not trusted: cameras and printers fill them with 72 or 300 dpi.
    """
    notes = tiff.imagej_metadata or {}
    scale = _MILLIMETRES.get(str(notes.get("unit", "")).lower())
    tags = tiff.pages.first.tags
    if scale is None or "XResolution" not in tags or "YResolution" not in tags:
        return None
    per_unit = [tags[key].value for key in ("YResolution", "XResolution")]
    if any(not over or not under for over, under in per_unit):
        return None
    steps = [float(notes.get("spacing", 1.0)), *(under / over for over, under in per_unit)]
    return tuple(scale * s for s in steps) if min(steps) > 0 else None


@contextmanager
def _complete(path: Path) -> Iterator[None]:
    """Refuse a TIFF whose pages end early: tifffile only logs it, and returns those it has."""
    handler = BufferingHandler(capacity=10_000)
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if any("invalid page offset" in record.getMessage() for record in handler.buffer):
        raise CeaseError(f"{path.name} is cut short: pages of the stack are missing; copy it again.")


def _class_ids(array: NDArray[Any], path: Path, as_stored: bool) -> NDArray[Any]:
    if len(array) > 1:
        raise CeaseError(f"{path.name} is a colour picture, not a mask; save its class ids as grey values.")
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if files.match_suffix(path, _JPEG) and array.max() > 1:
        if ((array > _JPEG_BLUR) & (array < 255 - _JPEG_BLUR)).mean() > 0.01:
            raise CeaseError(
                f"{path.name} is a mask saved as JPEG, which blurs class ids into each other; save it as PNG."
            )
        return np.where(array > 127, 255 if as_stored else 1, 0).astype(np.uint8)
    white = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(array.dtype)
    if white and not as_stored and array.max() == white and np.isin(array, (0, white)).all():
        return (array > 0).astype(np.uint8)
    return array


def _save_png(array: NDArray[Any], scan: Scan, path: Path) -> None:
    if scan.ndim != 2:
        raise CeaseError(f"{path.name} was not written: PNG holds one slice; choose .nii.gz or .tif for a volume.")
    integer = array.dtype.kind == "u"
    if not integer:
        if scan.unit != "8-bit" or array.min() < 0 or array.max() > 255:
            raise CeaseError(
                f"{path.name} was not written: PNG would clip or round these intensities; choose .tif or .nii.gz."
            )
        array = np.rint(array).astype(np.uint8)
    if len(array) not in (1, 3) or array.dtype.itemsize > 2:
        raise CeaseError(
            f"{path.name} was not written: PNG holds one or three channels of at most 65535; choose .nii.gz."
        )
    picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(array, 0, -1) if len(array) == 3 else array[0]))
    files.write_atomically(path, ".png", lambda part: picture.save(part, "PNG"))


def _save_tiff(array: NDArray[Any], scan: Scan, path: Path, suffix: str) -> None:
    if array.dtype.kind == "u" and array.dtype.itemsize > 2:
        raise CeaseError(f"{path.name} was not written: TIFF stacks hold class ids up to 65535; choose .nii.gz.")
    if scan.rgb and scan.ndim == 2 and len(array) == 3:
        colours = np.ascontiguousarray(np.moveaxis(array, 0, -1))
        _write_tiff(path, suffix, colours, photometric="rgb")
        return
    # ImageJ's flavour of TIFF: the one whose voxel size other programs read.
    stored = array if scan.ndim == 2 else np.moveaxis(array, 0, 1)
    metadata: dict[str, Any] = {"axes": "CYX" if scan.ndim == 2 else "ZCYX"}
    resolution = None
    if scan.length_unit == "mm":
        metadata["unit"] = "mm"
        if scan.ndim == 3:
            metadata["spacing"] = scan.spacing[0]
        resolution = (1 / scan.spacing[-1], 1 / scan.spacing[-2])
    _write_tiff(path, suffix, stored, imagej=True, resolution=resolution, metadata=metadata)


def _write_tiff(path: Path, suffix: str, array: NDArray[Any], **options: Any) -> None:
    def write(part: Path) -> None:
        tifffile.imwrite(part, np.ascontiguousarray(array), **options)

    files.write_atomically(path, suffix, write)
