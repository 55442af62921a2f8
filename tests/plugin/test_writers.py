"""Saving a layer puts it back onto its scan's grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from napari.layers import Image, Labels

from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan
from napari_cease.geometry import layer_geometry
from napari_cease.readers import read_layers
from napari_cease.writers import save_image, save_labels

SAMPLES = Path(__file__).parents[2] / "sample_data"
CARDIAC = SAMPLES / "cardiac_mr_sunnybrook/images/scd_15.nii.gz"


def save(layer, path):
    data, meta, kind = layer.as_layer_data_tuple()
    return {"labels": save_labels, "image": save_image}[kind](str(path), data, meta)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("knows_its_scan", [True, False])
def test_a_mask_is_written_where_it_was_drawn(tmp_path, suffix, knows_its_scan):
    scan = read_scan(CARDIAC)
    labels = (scan.image[0] > 200).astype(np.int32)
    metadata = {"cease": {"role": "labels", "scan": scan}} if knows_its_scan else {}
    layer = Labels(labels, metadata=metadata, **layer_geometry(scan))
    path = tmp_path / f"mask{suffix}"
    assert save(layer, path) == [str(path)]
    np.testing.assert_array_equal(read_labels(path, scan), labels)
    if suffix == ".nii" and knows_its_scan:
        np.testing.assert_array_equal(nib.load(path).affine, nib.load(CARDIAC).affine)


def test_a_png_mask(tmp_path):
    scan = read_scan(SAMPLES / "cxr_wikimedia/images/ARDSSevere.png")
    labels = (scan.image[0] > 90).astype(np.int32) * 3
    save(Labels(labels, metadata={"cease": {"scan": scan}}, **layer_geometry(scan)), tmp_path / "mask.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", scan), labels)


def test_a_bare_picture_layer_makes_a_mask_of_its_own(tmp_path):
    labels = np.arange(12).reshape(3, 4) % 5
    save(Labels(labels), tmp_path / "mask.nii.gz")
    written = read_scan(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(written.image[0], labels)


def test_intensities_keep_affine_and_values(tmp_path):
    ((data, options, _),) = read_layers(CARDIAC)
    save(Image(data + 0.5, **options), tmp_path / "adversarial.nii.gz")
    written = nib.load(tmp_path / "adversarial.nii.gz")
    np.testing.assert_array_equal(written.affine, nib.load(CARDIAC).affine)
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(nib.load(CARDIAC).dataobj) + 0.5)


def test_colours_go_channel_by_channel(tmp_path):
    ((data, options, _),) = read_layers(SAMPLES / "nuclei_histology/images/3bfa8b3b01fd24a2.png")
    save(Image(data, **options), tmp_path / "colours.nii.gz")
    scan = read_scan(tmp_path / "colours.nii.gz", volumes_as_channels=True)
    np.testing.assert_array_equal(np.moveaxis(scan.image, 0, -1), data)


def test_what_does_not_fit_is_said(tmp_path):
    scan = read_scan(CARDIAC)
    layer = Labels(np.zeros((3, 3), int), metadata={"cease": {"scan": scan}})
    with pytest.raises(CeaseError, match="choose the labels that belong to this scan"):
        save(layer, tmp_path / "mask.nii.gz")
    with pytest.raises(CeaseError, match="has 4 axes"):
        save(Image(np.zeros((2, 3, 4, 5)), name="film"), tmp_path / "film.nii.gz")
    assert not list(tmp_path.iterdir())
