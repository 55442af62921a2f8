"""The Medical Segmentation Decathlon: ``dataset.json`` lists the scans and masks (Antonelli et al., 2022)."""

from __future__ import annotations

from pathlib import Path

from cease_core.data.cases import Case, Dataset, case_name
from cease_core.data.manifest import MANIFEST, Manifest, class_names, inside, require_files
from cease_core.errors import CeaseError

LAYOUT = "decathlon"


def read(folder: Path, manifest: Manifest) -> Dataset:
    """The training cases that a ``dataset.json`` lists; several modalities are the volumes of one file.

    Raises
    ------
    CeaseError
        If it lists none or one twice, or files that are missing or outside the folder.
    """
    cases: dict[str, Case] = {}
    for entry in manifest.training:
        image, labels = inside(folder, entry.image), inside(folder, entry.label)
        case = Case(case_name(image), image, labels, volumes_as_channels=len(manifest.modality) > 1)
        if cases.setdefault(case.name, case) is not case:
            raise CeaseError(f"{folder / MANIFEST} lists {case.name} twice; keep one entry for each case.")
    if not cases:
        raise CeaseError(f'{folder / MANIFEST} lists no cases; add them under "training", each with image and label.')
    require_files(folder, [path for case in cases.values() for path in (case.image, case.labels)])
    ordered = tuple(cases[name] for name in sorted(cases))
    classes = class_names(manifest.labels, folder / MANIFEST)
    return Dataset(manifest.name or folder.resolve().name, LAYOUT, ordered, classes)
