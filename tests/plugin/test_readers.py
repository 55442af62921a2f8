"""Scans become layers that lie where they should; napari's own model is asked."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from napari.components import ViewerModel
from PIL import Image

from cease_core.errors import CeaseError
from napari_cease.readers import get_reader

SAMPLES = Path(__file__).parents[2] / "sample_data"


def read(path):
    reader = get_reader(path)
    assert reader is not None
    return reader(path)


def test_a_volume():
    ((data, options, kind),) = read(str(SAMPLES / "cardiac_mr_sunnybrook/images/scd_15.nii.gz"))
    assert kind == "image"
    assert data.shape == (10, 64, 64)
    assert options["axis_labels"] == ("z", "y", "x")
    assert options["units"] == ("mm",) * 3
    np.testing.assert_allclose(options["scale"], (8, 1.2891, 1.2891), rtol=1e-4)
    scan = options["metadata"]["cease"]["scan"]
    assert options["metadata"]["cease"]["role"] == "scan"
    assert options["contrast_limits"] == tuple(scan.window)
    np.testing.assert_array_equal(options["metadata"]["affine"], scan.affine)

    (layer,) = ViewerModel()._add_layer_from_data(data, options, kind)
    np.testing.assert_allclose(layer.data_to_world((0, 0, 0)), scan.translate)
    assert [str(u) for u in layer.units] == ["millimeter"] * 3


def test_a_colour_picture_is_shown_channel_last():
    path = SAMPLES / "polyp_hyperkvasir/images/cju1ewnoh5z030855vpex9uzt.jpg"
    ((data, options, _),) = read(path)
    assert options["rgb"]
    assert options["units"] == ("pixel", "pixel")
    np.testing.assert_array_equal(data, np.asarray(Image.open(path)))
    (layer,) = ViewerModel()._add_layer_from_data(data, options, "image")
    assert layer.rgb
    assert layer.ndim == 2


def test_each_channel_is_a_layer(tmp_path):
    array = np.arange(3 * 4 * 5 * 2, dtype=np.float32).reshape(3, 4, 5, 2)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "two.nrrd"))
    layers = read(tmp_path / "two.nrrd")
    assert [options["name"] for _, options, _ in layers] == ["two [0]", "two [1]"]
    assert [options["metadata"]["cease"]["channel"] for _, options, _ in layers] == [0, 1]
    viewer = ViewerModel()
    for data in layers:
        viewer._add_layer_from_data(*data)
    np.testing.assert_array_equal(viewer.layers[1].data, viewer.layers[0].data + 1)


def test_a_folder_of_dicom_and_its_slices_are_one_series():
    folder = SAMPLES / "dicom_t1w"
    ((data, options, _),) = read(folder)
    assert data.shape == (14, 384, 274)
    assert options["name"] == "anat-T1w"
    assert len(read(sorted(folder.glob("*.dcm"))[:2])) == 1


def test_several_files_are_several_layers():
    paths = sorted((SAMPLES / "hippocampus_mri/images").glob("*.nii.gz"))[:2]
    assert len(read([str(p) for p in paths])) == 2


@pytest.mark.parametrize("name", ["notes.txt", "folder"])
def test_other_things_are_left_to_other_plugins(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("no scan")
    assert get_reader(tmp_path / name) is None
    assert get_reader([]) is None


def test_a_bad_file_says_one_sentence(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 9), np.float32), np.eye(4)), path)
    with pytest.raises(CeaseError, match="series of 9 volumes"):
        read(path)


def test_layers_of_one_scan_share_units_and_scale():
    viewer = ViewerModel()
    ((data, options, kind),) = read(SAMPLES / "hippocampus_mri/images/hippocampus_001.nii.gz")
    viewer._add_layer_from_data(data, options, kind)
    geometry = {k: options[k] for k in ("scale", "translate", "units", "axis_labels")}
    viewer.add_labels(np.ones(data.shape, np.uint8), **geometry)
    first, second = viewer.layers
    np.testing.assert_array_equal(first.extent.world, second.extent.world)
    assert first.units == second.units
    assert viewer.dims.axis_labels == ("z", "y", "x")
