"""What the explorer found, for others: curves as numbers, and the sweep through ε as an animation. No Qt here."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cease_core.errors import CeaseError
from cease_core.io.files import match_suffix, write_atomically
from napari_cease.jobs.exploration import Side
from napari_cease.units import LEVELS

WIDEST = 960
"""Pixels across an animation."""
PACE, REST = 120, 900
"""Milliseconds that a frame is shown, and the first and the middle one."""

Frame = NDArray[np.uint8]
Told = Callable[[int, int], None]
Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Curve:
    """Dice(ε) of one model.

    Parameters
    ----------
    model
        The model's title.
    of
        The class; empty for the mean over all classes.
    levels, dice
        ε in 1/255, and Dice there.
    colour
        As ``#rrggbb``.
    """

    side: Side
    model: str
    of: str
    levels: tuple[int, ...]
    dice: tuple[float, ...]
    colour: str


# --- numbers ------------------------------------------------------------------------------------------------


def numbers(curves: Sequence[Curve], facts: Mapping[str, str], widths: Mapping[Side, float]) -> str:
    """Curves as CSV, a row for each model, class and ε, after a line ``# name: value`` for each fact.

    Parameters
    ----------
    facts
        What the numbers hold for, such as scan and attack.
    widths
        Each model's window in the scan's unit.
    """
    text = io.StringIO(newline="")
    for name, value in facts.items():
        text.write(f"# {name}: {' '.join(value.split())}\n")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("side", "model", "class", "epsilon", "epsilon_255", "epsilon_unit", "dice"))
    for curve in curves:
        for level, dice in zip(curve.levels, curve.dice, strict=True):
            epsilon = level / LEVELS
            in_unit = epsilon * widths[curve.side]
            row = (curve.side, curve.model, curve.of or "mean", f"{epsilon:.6g}", level, f"{in_unit:.6g}")
            table.writerow((*row, f"{dice:.6f}"))
    return text.getvalue()


# --- animation ----------------------------------------------------------------------------------------------


def animation_suffixes() -> tuple[str, ...]:
    """Formats that can be written: GIF, and MP4 where imageio-ffmpeg is installed."""
    return (".gif", ".mp4") if find_spec("imageio_ffmpeg") else (".gif",)


def with_suffix(path: Path, allowed: Sequence[str]) -> Path:
    """The path, with the first allowed suffix if it has none.

    Raises
    ------
    CeaseError
        If the path has another suffix.
    """
    if not path.suffix:
        return path.with_name(path.name + allowed[0])
    if match_suffix(path, allowed) is None:
        raise CeaseError(f"{path.name} cannot be written; choose a name that ends in {' or '.join(allowed)}.")
    return path


def fitted_width(width: int) -> int:
    """Pixels across the animation of a canvas; even, as video wants it."""
    return min(width, WIDEST) // 2 * 2


def write_animation(
    path: Path, pictures: Sequence[Frame], captions: Sequence[Frame], told: Told, stopped: Stopped
) -> None:
    """Write the sweep from the first picture to the last and back; nothing is written if it is stopped.

    Parameters
    ----------
    path
        Ends in one of `animation_suffixes`.
    pictures
        Canvas at each ε, uint8, shape (height, width, 3), all alike.
    captions
        Strip under each picture, as wide as `fitted_width` says.
    told
        Called with how many frames are done, and of how many.
    stopped
        Asked between frames.

    Raises
    ------
    CeaseError
        If the file cannot be written.
    """
    height, width = pictures[0].shape[:2]
    across = fitted_width(width)
    down = round(height * across / width)
    down += (down + captions[0].shape[0]) % 2
    frames = []
    for done, (picture, caption) in enumerate(zip(pictures, captions, strict=True), start=1):
        if stopped():
            return
        scaled = np.asarray(Image.fromarray(picture).resize((across, down), Image.Resampling.LANCZOS))
        frames.append(Image.fromarray(np.vstack((scaled, caption))))
        told(done, len(pictures))
    suffix = path.suffix.lower()
    if suffix == ".gif":
        # A palette for each ε, found once for the way up and the way down.
        frames = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    write_atomically(path, suffix, lambda part: _WRITE[suffix](part, [*frames, *frames[-2:0:-1]], len(frames) - 1))


def _write_gif(path: Path, frames: list[Image.Image], middle: int) -> None:
    shown = [REST if i in (0, middle) else PACE for i in range(len(frames))]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=shown, loop=0)


def _write_mp4(path: Path, frames: list[Image.Image], middle: int) -> None:
    video = import_module("imageio_ffmpeg").write_frames(str(path), frames[0].size, fps=1000 / PACE, macro_block_size=2)
    video.send(None)
    for i, frame in enumerate(frames):
        for _ in range(round(REST / PACE) if i in (0, middle) else 1):
            video.send(frame.tobytes())
    video.close()


_WRITE: dict[str, Callable[[Path, list[Image.Image], int], None]] = {".gif": _write_gif, ".mp4": _write_mp4}
