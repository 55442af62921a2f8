"""Scans become layers that lie where they should; napari's own model is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from napari.components import ViewerModel
from napari.utils.notifications import notification_manager
from PIL import Image

from cease_core.errors import CeaseError
from napari_cease.geometry import scan_of_layer
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


def test_two_folders_whose_slices_have_the_same_names_are_two_series(tmp_path):
    slices = sorted((SAMPLES / "dicom_t1w").glob("*.dcm"))
    for folder, chosen in (("pat1", slices[:3]), ("pat2", slices[3:6])):
        (tmp_path / folder).mkdir()
        for number, path in enumerate(chosen):
            shutil.copy(path, tmp_path / folder / f"IM{number:04}.dcm")
    layers = read([tmp_path / "pat1", tmp_path / "pat2"])
    assert len(layers) == 2
    assert not np.array_equal(layers[0][0], layers[1][0])
    # A slice, and a link to the folder, are of the series that is there already.
    (tmp_path / "link").symlink_to(tmp_path / "pat1")
    assert len(read([tmp_path / "pat1", tmp_path / "pat1" / "IM0001.dcm", tmp_path / "link"])) == 1


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
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), path)
    with pytest.raises(CeaseError, match="holds complex numbers"):
        read(path)


@pytest.fixture
def said():
    """Sentences of the notifications."""
    sentences = []

    def note(notification):
        sentences.append(str(notification.message))

    notification_manager.notification_ready.connect(note)
    yield sentences
    notification_manager.notification_ready.disconnect(note)


def four_volumes(path):
    array = np.arange(3 * 4 * 5 * 4, dtype=np.float32).reshape(3, 4, 5, 4) * [1, 10, 100, 1000]
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([1.0, 1, 3, 1])), path)
    return array


def test_a_time_series_opens_at_its_first_frame_and_says_so(tmp_path, said):
    array = four_volumes(tmp_path / "bold.nii.gz")
    ((data, options, _),) = read(tmp_path / "bold.nii.gz")
    scan = options["metadata"]["cease"]["scan"]
    np.testing.assert_array_equal(scan.layout.to_file(data), array[..., 0])
    assert options["name"] == "bold, frame 0"
    (sentence,) = said
    assert "bold.nii.gz is a series of 4 volumes; this is frame 0" in sentence
    assert "1 to 3" in sentence


@pytest.mark.parametrize("folder", ["imagesTr", "."])
def test_the_contrasts_of_one_examination_are_layers_of_which_the_first_is_shown(tmp_path, said, folder):
    names = {str(i): name for i, name in enumerate(("FLAIR", "T1w", "t1gd", "T2w"))}
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": names}))
    (tmp_path / folder).mkdir(exist_ok=True)
    array = four_volumes(tmp_path / folder / "brain.nii.gz")
    layers = read(tmp_path / folder / "brain.nii.gz")
    assert not said
    viewer = ViewerModel()
    for data in layers:
        viewer._add_layer_from_data(*data)
    assert [layer.visible for layer in viewer.layers] == [True, False, False, False]
    for channel, layer in enumerate(viewer.layers):
        scan = layer.metadata["cease"]["scan"]
        np.testing.assert_array_equal(scan.layout.to_file(layer.data), array[..., channel])
        low, high = layer.contrast_limits
        assert layer.data.min() <= low < high <= layer.data.max()
    # What is chosen in a dock is the contrast that the layer shows.
    assert scan_of_layer(viewer.layers[2]).channels == 1


def test_a_dataset_of_another_number_of_modalities_does_not_make_channels(tmp_path, said):
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MR"}}))
    four_volumes(tmp_path / "bold.nii.gz")
    assert len(read(tmp_path / "bold.nii.gz")) == len(said) == 1


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
