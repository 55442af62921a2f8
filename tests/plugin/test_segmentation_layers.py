"""A DICOM segmentation is opened where its scan lies, and a labels layer is saved as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from napari.components import ViewerModel
from napari.layers import Labels

from cease_core.io import read_labels, read_scan, write_labels
from napari_cease.geometry import layer_geometry
from napari_cease.readers import get_reader
from napari_cease.samples import labels_layer
from napari_cease.writers import save_labels

SERIES = Path(__file__).parents[2] / "sample_data/dicom_t1w"


@pytest.fixture(scope="module")
def scan():
    return read_scan(SERIES)


@pytest.fixture(scope="module")
def mask(scan):
    """Two classes, in the middle of the stack alone."""
    labels = np.zeros(scan.shape, np.int32)
    labels[4:9, 100:200, 80:160] = 2
    labels[5:8, 120:180, 100:140] = 7
    return labels


@pytest.fixture(scope="module")
def segmentation(scan, mask, tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "tumour.dcm"
    write_labels(mask, scan, path, classes={2: "oedema", 7: "core"})
    return path


def read(path):
    reader = get_reader(path)
    assert reader is not None
    return reader(path)


@pytest.fixture
def viewer(monkeypatch):
    model = ViewerModel()
    monkeypatch.setattr("napari.current_viewer", lambda: model)
    return model


def test_it_lies_on_the_scan_that_is_open(viewer, scan, mask, segmentation):
    for layer in read(SERIES):
        viewer._add_layer_from_data(*layer)
    ((data, options, kind),) = read(segmentation)
    assert (kind, options["name"]) == ("labels", "tumour")
    np.testing.assert_array_equal(data, mask)
    assert options["metadata"]["cease"]["classes"] == {2: "oedema", 7: "core"}
    (layer,) = viewer._add_layer_from_data(data, options, kind)
    np.testing.assert_array_equal(layer.extent.world, viewer.layers[0].extent.world)


def test_it_lies_on_the_scan_that_is_dropped_with_it(viewer, mask, segmentation):
    (_, _, first), (data, _, second) = read([str(segmentation), str(SERIES)])
    assert (first, second) == ("image", "labels")
    np.testing.assert_array_equal(data, mask)


def test_alone_it_lies_where_it_should(viewer, scan, mask, segmentation):
    ((data, options, kind),) = read(segmentation)
    (alone,) = viewer._add_layer_from_data(data, options, kind)
    whole = Labels(mask, **layer_geometry(scan))
    np.testing.assert_array_equal(data, mask[4:9])  # empty slices are not in the file
    shift = np.array([4, 0, 0])
    for voxel in np.argwhere(data == 7)[[0, -1]]:
        np.testing.assert_allclose(alone.data_to_world(voxel), whole.data_to_world(voxel + shift), atol=1e-3)


def test_a_labels_layer_of_a_dicom_scan_is_saved_as_one(tmp_path, scan, mask):
    data, options, _ = labels_layer(mask, scan, {2: "oedema", 7: "core"})
    layer = Labels(data, **options)
    path = str(tmp_path / "mask.dcm")
    assert save_labels(path, *layer.as_layer_data_tuple()[:2]) == [path]
    np.testing.assert_array_equal(read_labels(path, scan), mask)
    described = pydicom.dcmread(path).SegmentSequence
    assert [s.SegmentLabel for s in described] == ["oedema", "core"]
    assert all("RecommendedDisplayCIELabValue" in s for s in described)


def test_a_layer_without_names_is_saved_too(tmp_path, scan, mask):
    layer = Labels(mask, metadata={"cease": {"scan": scan}}, **layer_geometry(scan))
    save_labels(str(tmp_path / "mask.dcm"), *layer.as_layer_data_tuple()[:2])
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.dcm", scan), mask)
