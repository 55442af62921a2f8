"""Which layout a folder has: plain folders, the Medical Segmentation Decathlon's, or nnU-Net's."""

from __future__ import annotations

from pathlib import Path

from cease_core.data import decathlon, folders, nnunet
from cease_core.data.cases import Case, Dataset
from cease_core.data.manifest import MANIFEST, read_manifest
from cease_core.errors import CeaseError


def describe(path: str | Path) -> Dataset:
    """The data set in a folder, in whichever layout it is.

    Parameters
    ----------
    path
        A folder with ``images/`` and ``labels/`` (or ``masks/``), or with a ``dataset.json``; or that file.

    Raises
    ------
    CeaseError
        If the folder has none of the layouts, or files are missing, damaged or outside of it.
    """
    folder = Path(path).expanduser()
    if folder.name == MANIFEST:
        folder = folder.parent
    masks = folders.masks_of(folder)
    if masks is not None:
        return folders.read(folder, masks)
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        layout = nnunet if nnunet.matches(folder, manifest) else decathlon
        return layout.read(folder, manifest)
    raise CeaseError(
        f"{folder} needs the folders images/ and labels/ with one mask for each scan, "
        f"or a {MANIFEST} as in the Medical Segmentation Decathlon or nnU-Net."
    )


def find_cases(folder: str | Path) -> list[Case]:
    """Cases of a data set in any layout, in the order of their names.

    Raises
    ------
    CeaseError
        As in `describe`.
    """
    return list(describe(folder).cases)
