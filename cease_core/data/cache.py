"""Decoded scans on disk: reading them again maps memory instead of decoding files."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cease_core.errors import CeaseError
from cease_core.io.files import write_reason
from cease_core.scan import LabelArray, Layout, Scan, Window

_VERSION = 1
"""Of the entries' form; entries of another one are not used."""


@dataclass(frozen=True)
class Cached:
    """A folder of decoded cases, one entry for each set of files, replaced once a file changes.

    Parameters
    ----------
    folder
        Made if it is missing; it can be deleted at any time.
    """

    folder: Path

    def load(
        self, paths: Sequence[Path], decode: Callable[[], tuple[Scan, LabelArray]], read_as: str = ""
    ) -> tuple[Scan, LabelArray]:
        """The scan and mask of some files, decoded only if they are new, have changed, or their entry is damaged.

        Parameters
        ----------
        paths
            All files (or folders of slices) that the case is read from.
        decode
            Reads them; called only if needed.
        read_as
            What else decides on the arrays that come out: files that are read in two ways have two entries.

        Raises
        ------
        CeaseError
            If the cache cannot be written, and whatever ``decode`` raises.
        """
        owner = _digest([*(str(path.absolute()) for path in paths), *([read_as] if read_as else [])])
        entry = self.folder / f"{owner}-{_digest([_VERSION, *(_stamp(path) for path in paths)])}"
        with suppress(OSError, EOFError, ValueError, KeyError, TypeError):
            return _read(entry)
        scan, labels = decode()
        try:
            self._store(entry, owner, scan, labels)
        except OSError as error:
            raise CeaseError(f"{self.folder} cannot keep decoded scans: {write_reason(error)}.") from error
        return scan, labels

    def _store(self, entry: Path, owner: str, scan: Scan, labels: LabelArray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as made:
            part = Path(made) / "entry"
            part.mkdir()
            _write(part, scan, labels)
            for old in self.folder.glob(f"{owner}-*"):
                shutil.rmtree(old, ignore_errors=True)
            try:
                part.rename(entry)
            except OSError:
                if not entry.is_dir():  # where it is one, another process was faster
                    raise


def _digest(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def _stamp(path: Path) -> list[Any]:
    """What changes when a file does, or any slice in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return [[file.name, file.stat().st_mtime_ns, file.stat().st_size] for file in files]


def _write(entry: Path, scan: Scan, labels: LabelArray) -> None:
    np.save(entry / "image.npy", scan.image, allow_pickle=False)
    np.save(entry / "labels.npy", labels, allow_pickle=False)
    facts = {
        "affine": scan.affine.tolist(),
        "name": scan.name,
        "unit": scan.unit,
        "length_unit": scan.length_unit,
        "window": scan.window,
        "rgb": scan.rgb,
        "layout": [scan.layout.axes, scan.layout.flips],
        "path": None if scan.path is None else str(scan.path),
        "metadata": scan.metadata,
    }
    (entry / "scan.json").write_text(json.dumps(facts), encoding="utf-8")


def _read(entry: Path) -> tuple[Scan, LabelArray]:
    facts = json.loads((entry / "scan.json").read_text(encoding="utf-8"))
    axes, flips = facts["layout"]
    scan = Scan(
        **facts
        | {
            "image": _map(entry / "image.npy"),
            "affine": np.asarray(facts["affine"], float),
            "window": Window(*facts["window"]),
            "layout": Layout(tuple(axes), tuple(flips)),
            "path": None if facts["path"] is None else Path(facts["path"]),
        }
    )
    labels = _map(entry / "labels.npy")
    if labels.shape != scan.shape:
        raise ValueError(labels.shape)
    return scan, labels


def _map(path: Path) -> Any:
    # Copy on write: whoever changes the array changes neither the file nor what others read.
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
