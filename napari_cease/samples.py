"""Real scans with ground truth that come with the plugin: one representative case a data set.

The listing itself needs neither napari nor the files, so that other code can offer it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan
from cease_core.scan import LabelArray, Scan, class_ids
from napari_cease.geometry import layer_geometry
from napari_cease.readers import LayerData, scan_layers


@dataclass(frozen=True)
class Sample:
    """One case: where it lies below `sample_root`, and what its class ids mean.

    Parameters
    ----------
    key
        Identifier, also of the entry in napari's sample menu.
    title
        What the user reads.
    scan_file
        The scan, below `sample_root`; a folder for DICOM.
    labels_file
        The mask, below `sample_root`, if there is one.
    classes
        Name of each class id but the background, 0.
    """

    key: str
    title: str
    scan_file: str
    labels_file: str | None = None
    classes: dict[int, str] = field(default_factory=dict)

    @property
    def scan(self) -> Path:
        """Where the scan lies on this machine."""
        return sample_root() / self.scan_file

    @property
    def labels(self) -> Path | None:
        """Where the mask lies on this machine."""
        return sample_root() / self.labels_file if self.labels_file else None


def sample_root() -> Path:
    """Folder of the sample data, in an installed wheel or in a checkout.

    Raises
    ------
    CeaseError
        If it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "sample_data", package.parent / "sample_data"):
        if folder.is_dir():
            return folder
    raise CeaseError("The sample data is missing from this installation; install napari-cease again.")


_ALL = (
    Sample(
        "brain_mni152",
        "Brain T1 MR, average of many (grey and white matter)",
        "brain_mni152/t1.nii.gz",
        "brain_mni152/labels_gm1_wm2.nii.gz",
        {1: "grey matter", 2: "white matter"},
    ),
    Sample(
        "cardiac",
        "Cardiac MR, short axis (myocardium)",
        "cardiac_mr_sunnybrook/images/scd_15.nii.gz",
        "cardiac_mr_sunnybrook/labels/scd_15.nii.gz",
        {1: "left-ventricular myocardium"},
    ),
    Sample(
        "ct_body",
        "CT of the abdomen (10 organs)",
        "ct_body_totalseg/images/example_ct.nii.gz",
        "ct_body_totalseg/labels_10/example_ct.nii.gz",
        {
            1: "spleen",
            2: "right kidney",
            3: "left kidney",
            4: "gallbladder",
            5: "liver",
            6: "stomach",
            7: "aorta",
            8: "pancreas",
            9: "lungs",
            10: "vertebrae",
        },
    ),
    Sample(
        "cxr",
        "Chest radiograph (lungs, mediastinum, airways)",
        "cxr_wikimedia/images/X-ray_of_cyst_in_pneumocystis_pneumonia_1.png",
        "cxr_wikimedia/labels/X-ray_of_cyst_in_pneumocystis_pneumonia_1.png",
        {1: "left lung", 2: "right lung", 3: "cardiomediastinum", 4: "airways"},
    ),
    Sample(
        "dermoscopy",
        "Dermoscopy (lesion)",
        "dermoscopy_isic2017/images/ISIC_0012720.jpg",
        "dermoscopy_isic2017/labels/ISIC_0012720.png",
        {1: "lesion"},
    ),
    Sample("dicom_t1w", "Brain T1 MR as a DICOM series (no mask)", "dicom_t1w"),
    Sample(
        "fundus",
        "Fundus photograph (hard exudates)",
        "fundus_idrid/images/IDRiD_03.jpg",
        "fundus_idrid/labels/IDRiD_03.png",
        {1: "hard exudates"},
    ),
    Sample(
        "heart_mr",
        "Heart MR slice (chambers and great vessels)",
        "heart_mr_hvsmr2/images/10003_108.png",
        "heart_mr_hvsmr2/labels/10003_108.png",
        {
            1: "left ventricle",
            2: "right ventricle",
            3: "left atrium",
            4: "right atrium",
            5: "aorta",
            6: "pulmonary artery",
            7: "superior vena cava",
            8: "inferior vena cava",
        },
    ),
    Sample(
        "hippocampus",
        "Hippocampus T1 MR (anterior, posterior)",
        "hippocampus_mri/images/hippocampus_001.nii.gz",
        "hippocampus_mri/labels/hippocampus_001.nii.gz",
        {1: "anterior", 2: "posterior"},
    ),
    Sample(
        "nuclei",
        "Stained tissue (nuclei)",
        "nuclei_histology/images/3bfa8b3b01fd24a2.png",
        "nuclei_histology/masks/3bfa8b3b01fd24a2.png",
        {1: "nucleus"},
    ),
    Sample(
        "polyp",
        "Colonoscopy (polyp)",
        "polyp_hyperkvasir/images/cju5es375cnzy0801nkq35ffs.jpg",
        "polyp_hyperkvasir/labels/cju5es375cnzy0801nkq35ffs.png",
        {1: "polyp"},
    ),
)

SAMPLES: dict[str, Sample] = {sample.key: sample for sample in _ALL}
"""The cases by key, in the order of the menu."""


def labels_layer(labels: LabelArray, scan: Scan, classes: dict[int, str] | None = None) -> LayerData:
    """Layer data of a reference mask.

    Parameters
    ----------
    labels
        Class ids, shape ``scan.shape``.
    scan
        The scan they belong to.
    classes
        Name of each class id but the background, where they are known.

    Returns
    -------
    (data, keyword arguments, layer type)
        ``metadata["cease"]`` holds the role, the scan, the class names, and the contour width at which
        a reference reads best: a layer's constructor takes no contour, so whoever adds it sets that.
    """
    contour = 2 if max(scan.shape[-2:]) >= 128 else 1  # two voxels would hide a structure of a few
    role = {"role": "labels", "scan": scan, "classes": dict(classes or {}), "contour": contour}
    options: dict[str, Any] = {
        "name": f"{scan.name} labels",
        "colormap": class_colours(sorted({*(classes or {}), *class_ids(labels)} - {0})),
        "metadata": {"cease": role, "affine": scan.affine},
        **layer_geometry(scan),
    }
    return labels, options, "labels"


def class_colours(classes: Iterable[int]) -> Any:
    """The palette of model cards as a napari label colormap, so that a class looks the same everywhere."""
    from napari.utils.colormaps import DirectLabelColormap

    from cease_core.models.card import PALETTE

    colours: dict[int | None, str] = {c: PALETTE[(c - 1) % len(PALETTE)] for c in classes}
    return DirectLabelColormap(color_dict={None: "transparent", 0: "transparent", **colours})


def sample_layers(sample: Sample) -> list[LayerData]:
    """Layer data of a sample: its image, and its mask if it has one.

    Parameters
    ----------
    sample
        One of `SAMPLES`.

    Returns
    -------
    list of (data, keyword arguments, layer type)

    Raises
    ------
    CeaseError
        If the sample data is not installed, or damaged.
    """
    scan = read_scan(sample.scan)
    layers = scan_layers(scan)
    if sample.labels is not None:
        layers.append(labels_layer(read_labels(sample.labels, scan), scan, sample.classes))
    return layers


# One function a sample, since a manifest names functions without arguments.


def brain_mni152() -> list[LayerData]:
    return sample_layers(SAMPLES["brain_mni152"])


def cardiac() -> list[LayerData]:
    return sample_layers(SAMPLES["cardiac"])


def ct_body() -> list[LayerData]:
    return sample_layers(SAMPLES["ct_body"])


def cxr() -> list[LayerData]:
    return sample_layers(SAMPLES["cxr"])


def dermoscopy() -> list[LayerData]:
    return sample_layers(SAMPLES["dermoscopy"])


def dicom_t1w() -> list[LayerData]:
    return sample_layers(SAMPLES["dicom_t1w"])


def fundus() -> list[LayerData]:
    return sample_layers(SAMPLES["fundus"])


def heart_mr() -> list[LayerData]:
    return sample_layers(SAMPLES["heart_mr"])


def hippocampus() -> list[LayerData]:
    return sample_layers(SAMPLES["hippocampus"])


def nuclei() -> list[LayerData]:
    return sample_layers(SAMPLES["nuclei"])


def polyp() -> list[LayerData]:
    return sample_layers(SAMPLES["polyp"])
