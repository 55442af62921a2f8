"""Plain folders: ``images/`` and ``labels/`` (or ``masks/``), one mask for each scan, of the same name."""

from __future__ import annotations

from pathlib import Path

from cease_core.data.cases import Case, Dataset, case_name, with_classes
from cease_core.data.classmap import ClassMap
from cease_core.data.findings import Finding
from cease_core.data.manifest import read_classes, read_json, without_faults
from cease_core.errors import CeaseError

LAYOUT = "folders"
CLASSES = "classes.json"
"""Names of the classes by their ids, ``{"1": "liver", …}``, where there is one."""


def masks_of(folder: Path) -> Path | None:
    """The folder with the masks, if this is the layout."""
    if not (folder / "images").is_dir():
        return None
    return next((folder / n for n in ("labels", "masks") if (folder / n).is_dir()), None)


def read(folder: Path, masks: Path, classes: ClassMap | None = None) -> tuple[Dataset, list[Finding]]:
    """The cases of a plain folder, matched by name.

    Returns
    -------
    Dataset
        The cases that have one scan and one mask.
    list of Finding
        The others.

    Raises
    ------
    CeaseError
        If there are no files, or ``classes.json`` has another form.
    """
    findings: list[Finding] = []
    images, labels = (_by_name(place, findings) for place in (folder / "images", masks))
    if not images and not labels:
        raise CeaseError(f"{folder}: images/ and {masks.name}/ are empty; put one mask there for each scan.")
    for name in sorted(images.keys() ^ labels.keys()):
        has, lacks = ("images", masks.name) if name in images else (masks.name, "images")
        file = (images.get(name) or labels[name]).name
        findings.append(
            Finding(
                "error",
                name,
                f"{has}/{file} has no partner in {lacks}/; name each mask like its scan, or move the file away.",
            )
        )
    cases = [Case(name, images[name], labels[name]) for name in images if name in labels]
    names, classes = read_names(folder / CLASSES, classes)
    kept = with_classes(without_faults(cases, findings), classes)
    return Dataset(folder.resolve().name, LAYOUT, kept, names), findings


def read_names(path: Path, classes: ClassMap | None) -> tuple[dict[int, str], ClassMap | None]:
    """The names in a ``classes.json``, if there is one, and the map; see `cease_core.data.manifest.read_classes`.

    Raises
    ------
    CeaseError
        If it has another form.
    """
    if not path.is_file():
        return {}, classes
    names = read_json(path)
    if not isinstance(names, dict) or not all(isinstance(v, str | int) for v in names.values()):
        raise CeaseError(f'{path} does not name classes by their ids; write it as {{"1": "liver", "2": "spleen"}}.')
    return read_classes(names, path, classes)


def _by_name(folder: Path, findings: list[Finding]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        name = case_name(path)
        other = found.setdefault(name, path)
        if other is not path:
            message = f"{folder.name}/ holds both {other.name} and {path.name}; keep one file for each case."
            findings.append(Finding("error", name, message))
    return found
