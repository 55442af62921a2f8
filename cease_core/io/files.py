"""What every format shares about files: checks before reading, one sentence on failure, safe writing."""

from __future__ import annotations

import errno
import math
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cease_core.errors import CeaseError

MAX_BYTES = 8 * 2**30
"""Largest scan that is opened, as float32: beyond it a desktop swaps instead of answering."""

_DEFLATE_RATIO = 1032
"""No deflate stream expands further (RFC 1951), so a smaller file cannot hold what its header claims."""

_REASONS = {
    errno.ENOENT: "its folder does not exist; create it, or choose another one",
    errno.ENOTDIR: "its folder is not a folder; choose another one",
    errno.EACCES: "writing there is not permitted; choose another folder",
    errno.EPERM: "writing there is not permitted; choose another folder",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EISDIR: "a folder of that name exists; choose another name",
    errno.ENOSPC: "the disk is full; free some space, or choose another disk",
    errno.EDQUOT: "your disk quota is used up; free some space, or choose another disk",
    errno.EFBIG: "the file would be larger than is allowed there; choose another disk",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
}


def match_suffix(path: Path, suffixes: Sequence[str]) -> str | None:
    """The longest of ``suffixes`` (``".nii.gz"``) that the file's name ends in, ignoring case."""
    name = path.name.lower()
    matches = [s for s in suffixes if name.endswith(s)]
    return max(matches, key=len) if matches else None


def stem(path: Path, suffixes: Sequence[str]) -> str:
    """The file's name without its suffix, double ones included."""
    suffix = match_suffix(path, suffixes)
    return path.name[: -len(suffix)] if suffix else path.name


def check_size(name: str, shape: Sequence[int]) -> None:
    """Refuse what a header claims, before anything is allocated.

    Raises
    ------
    CeaseError
        If ``shape`` is empty, or larger than `MAX_BYTES` as float32.
    """
    if not shape or min(shape) <= 0:
        raise CeaseError(f"{name}: the image is empty (shape {tuple(shape)}); open another file.")
    size = 4 * math.prod(int(n) for n in shape)
    if size > MAX_BYTES:
        raise CeaseError(
            f"{name}: shape {tuple(int(n) for n in shape)} would take {size / 2**30:.1f} GiB of memory, more "
            f"than the {MAX_BYTES / 2**30:.0f} GiB allowed; crop or downsample it and open it again."
        )


def check_holds(path: Path, size: int, *, compressed: bool) -> None:
    """Refuse a file too short for the ``size`` bytes of voxels that its header claims."""
    if path.stat().st_size * (_DEFLATE_RATIO if compressed else 1) < size:
        raise CeaseError(
            f"{path.name} is cut short: its header promises {size} bytes of voxels that the file cannot hold; "
            "copy or download it again."
        )


def check_frame(name: str, frame: int | None, frames: int) -> tuple[int, int]:
    """First and last (exclusive) volume to read of a file that holds ``frames``.

    Raises
    ------
    CeaseError
        If there are several and none is chosen, or if there is no such frame.
    """
    if frame is None and frames > 1:
        raise CeaseError(
            f"{name} is a series of {frames} volumes; choose one with frame=0 to frame={frames - 1} "
            "(--frame on the command line), or save the one you want as a file of its own."
        )
    chosen = frame or 0
    if not 0 <= chosen < frames:
        held = f"has frames 0 to {frames - 1}" if frames > 1 else "holds a single volume"
        raise CeaseError(f"{name} {held}, so there is no frame {chosen}; choose another one, or leave it out.")
    return chosen, chosen + 1


def frame_name(name: str, frame: int) -> str:
    """Name of one volume of a series."""
    return f"{name}, frame {frame}"


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into one sentence.

    Decoders of several libraries raise anything from ``EOFError`` to ``struct.error`` there, hence the
    wide net; keep the block to the decoder's own calls. The cause stays attached for developers.
    """
    try:
        yield
    except CeaseError:
        raise
    except PermissionError as error:
        raise CeaseError(
            f"{path.name} may not be read by you; change its permissions, or open another file."
        ) from error
    except MemoryError as error:
        raise CeaseError(f"{path.name} does not fit into memory; close other programs, or crop the scan.") from error
    except Exception as error:
        raise CeaseError(
            f"{path.name} could not be read as {kind}: the file is damaged, cut short or of another format; "
            "copy or export it again."
        ) from error


def write_atomically(path: Path, suffix: str, write: Callable[[Path], None]) -> None:
    """Write a file beside its place and move it there once it is complete.

    Whatever lay at ``path`` survives a full disk or a crash.

    Parameters
    ----------
    path
        Where the file shall lie.
    suffix
        Its suffix, which the temporary name ends in too: the libraries choose the format by it.
    write
        Called with the temporary path.

    Raises
    ------
    CeaseError
        If the folder is missing, not writable, or the disk full.
    """
    part = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        part.touch()  # an OSError of our own says more than the libraries' later ones
        write(part)
        os.replace(part, path)
    except CeaseError:
        raise
    except Exception as error:
        raise CeaseError(f"{path.name} was not written: {write_reason(error)}.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece; `CeaseError` if that fails."""

    def write(part: Path) -> None:
        part.write_text(text, encoding="utf-8")

    write_atomically(path, path.suffix, write)


def write_reason(error: Exception) -> str:
    """Why writing failed and what to do, as the second half of a sentence."""
    code = error.errno if isinstance(error, OSError) else None
    return _REASONS.get(
        code or 0, "the disk may be full or the values do not fit this format; choose another place or format"
    )
