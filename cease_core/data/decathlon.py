"""The Medical Segmentation Decathlon: ``dataset.json`` lists the scans and masks (Antonelli et al., 2022)."""

from __future__ import annotations

from pathlib import Path

from cease_core.data.cases import Case, Dataset, case_name, with_classes
from cease_core.data.classmap import ClassMap
from cease_core.data.findings import Finding
from cease_core.data.manifest import MANIFEST, Manifest, inside, missing_files, read_classes, without_faults
from cease_core.errors import CeaseError

LAYOUT = "decathlon"


def read(folder: Path, manifest: Manifest, classes: ClassMap | None = None) -> tuple[Dataset, list[Finding]]:
    """The training cases that a ``dataset.json`` lists; several modalities are the volumes of one file.

    Returns
    -------
    Dataset
        The cases whose files are there.
    list of Finding
        Those that are listed twice or whose files are missing.

    Raises
    ------
    CeaseError
        If it lists none, or files outside the folder, or its classes cannot be used without ``classes``.
    """
    findings: list[Finding] = []
    cases: dict[str, Case] = {}
    for entry in manifest.training:
        image, labels = inside(folder, entry.image), inside(folder, entry.label)
        case = Case(case_name(image), image, labels, volumes_as_channels=len(manifest.modality) > 1)
        if cases.setdefault(case.name, case) is not case:
            findings.append(
                Finding("error", case.name, f"{MANIFEST} lists it twice; keep one entry for each case, or rename one.")
            )
    if not cases:
        raise CeaseError(f'{folder / MANIFEST} lists no cases; add them under "training", each with image and label.')
    ordered = [cases[name] for name in sorted(cases)]
    findings += missing_files(folder, ordered)
    names, classes = read_classes(manifest.labels, folder / MANIFEST, classes)
    kept = with_classes(without_faults(ordered, findings), classes)
    return Dataset(manifest.name or folder.resolve().name, LAYOUT, kept, names), findings
