"""The files of a MONAI bundle, in its folder or in a zip of it: read in bounds, and never written outside."""

from __future__ import annotations

import stat
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from cease_core.errors import CeaseError
from cease_core.io.files import reading
from cease_core.models.foreign.pickles import LIMIT, check_entries

_CHUNK = 2**20


class BundleFiles(ABC):
    """The files of a bundle by their names within it, such as ``configs/metadata.json``."""

    names: tuple[str, ...]

    @abstractmethod
    def read(self, name: str, limit: int) -> bytes:
        """A small file; `CeaseError` if it has more than ``limit`` bytes."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """Where a large file lies while the bundle is open."""


@contextmanager
def opened(source: Path) -> Iterator[BundleFiles]:
    """Open a bundle's folder or zip.

    Raises
    ------
    CeaseError
        If it is damaged or unsafe, or holds no bundle or several.
    """
    if source.is_dir():
        yield _Folder(source)
        return
    with reading(source, "a zip archive"):
        archive = zipfile.ZipFile(source)
    with archive, tempfile.TemporaryDirectory() as scratch:
        yield _Zip(source, archive, Path(scratch))


class _Folder(BundleFiles):
    def __init__(self, root: Path) -> None:
        self.root = root
        wanted = [root / place for place in ("configs", "models", "docs", ".")]
        with reading(root, "a folder"):
            files = [p for folder in wanted if folder.is_dir() for p in sorted(folder.iterdir()) if p.is_file()]
        self.names = tuple(p.relative_to(root).as_posix() for p in files)

    def read(self, name: str, limit: int) -> bytes:
        with reading(self.root / name, "a file"), (self.root / name).open("rb") as stream:
            return _limited(stream, name, limit)

    def path(self, name: str) -> Path:
        return self.root / name


class _Zip(BundleFiles):
    def __init__(self, source: Path, archive: zipfile.ZipFile, scratch: Path) -> None:
        self.source, self.archive, self.scratch = source, archive, scratch
        check_entries(source, archive)
        members = [m for m in archive.infolist() if m.filename and not m.is_dir()]
        for member in members:
            if stat.S_ISLNK(member.external_attr >> 16):
                raise CeaseError(f"{source.name}: the entry {member.filename!r} is a link; make a zip of the files.")
        roots = sorted({str(p.parents[1]) for m in members if (p := PurePosixPath(m.filename)).match("configs/*.*")})
        roots = [r for r in roots if "__MACOSX" not in r]
        if len(roots) != 1:
            what = "several bundles; make a zip of each" if roots else "no configs folder; choose a zip of a bundle"
            raise CeaseError(f"{source.name} holds {what} and import that.")
        within = "" if roots[0] == "." else f"{roots[0]}/"
        self.members = {m.filename.removeprefix(within): m for m in members if m.filename.startswith(within)}
        self.names = tuple(self.members)

    def read(self, name: str, limit: int) -> bytes:
        with reading(self.source, "a zip archive"), self.archive.open(self.members[name]) as stream:
            return _limited(stream, name, limit)

    def path(self, name: str) -> Path:
        target = self.scratch / PurePosixPath(name).name
        left = LIMIT
        with (
            reading(self.source, "a zip archive"),
            self.archive.open(self.members[name]) as stream,
            target.open("xb") as out,
        ):
            while chunk := stream.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise CeaseError(f"{self.source.name}: {name} is larger than it says; download it again.")
                out.write(chunk)
        return target


def _limited(stream: IO[bytes], name: str, limit: int) -> bytes:
    text: bytes = stream.read(limit + 1)
    if len(text) > limit:
        raise CeaseError(
            f"{name} is larger than {limit / 2**20:.0f} MiB, which none of its kind is; choose another bundle."
        )
    return text
