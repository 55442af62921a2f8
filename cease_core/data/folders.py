"""Plain folders: ``images/`` and ``labels/`` (or ``masks/``), one mask for each scan, of the same name."""

from __future__ import annotations

from pathlib import Path

from cease_core.data.cases import Case, Dataset, case_name
from cease_core.data.manifest import class_names, read_json
from cease_core.errors import CeaseError

LAYOUT = "folders"
CLASSES = "classes.json"
"""Names of the classes by their ids, ``{"1": "liver", …}``, where there is one."""


def masks_of(folder: Path) -> Path | None:
    """The folder with the masks, if this is the layout."""
    if not (folder / "images").is_dir():
        return None
    return next((folder / n for n in ("labels", "masks") if (folder / n).is_dir()), None)


def read(folder: Path, masks: Path) -> Dataset:
    """The cases of a plain folder, matched by name.

    Raises
    ------
    CeaseError
        If scans and masks do not match one to one, or ``classes.json`` has another form.
    """
    images, labels = _by_name(folder / "images"), _by_name(masks)
    if not images and not labels:
        raise CeaseError(f"{folder}: images/ and {masks.name}/ are empty; put one mask there for each scan.")
    odd = sorted(images.keys() ^ labels.keys())
    if odd:
        raise CeaseError(
            f"{folder}: {len(odd)} files have no partner in images/ and {masks.name}/, for example {odd[0]}; "
            "name each mask like its scan."
        )
    cases = tuple(Case(name, images[name], labels[name]) for name in images)
    return Dataset(folder.resolve().name, LAYOUT, cases, _classes(folder / CLASSES))


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        other = found.setdefault(case_name(path), path)
        if other is not path:
            raise CeaseError(f"{folder} holds both {other.name} and {path.name}; keep one file for each case.")
    return found


def _classes(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    names = read_json(path)
    if not isinstance(names, dict) or not all(isinstance(v, str | int) for v in names.values()):
        raise CeaseError(f'{path} does not name classes by their ids; write it as {{"1": "liver", "2": "spleen"}}.')
    return class_names(names, path)
