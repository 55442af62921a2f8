"""Every sample opens with its mask on it, and its classes have names."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_cease import samples
from napari_cease.samples import SAMPLES, sample_root

LARGE = {"brain_mni152"}


def test_the_listing_needs_no_napari():
    code = (
        "import sys; import napari_cease.samples as s; s.SAMPLES; "
        "sys.exit(any(m in sys.modules for m in ('napari', 'qtpy', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("key", SAMPLES)
def test_a_sample_opens(key):
    sample = SAMPLES[key]
    layers = getattr(samples, key)()
    kinds = [kind for _, _, kind in layers]
    assert kinds == (["image", "labels"] if sample.labels else ["image"])
    if key in LARGE:
        return  # as layers, the smaller ones show the same
    viewer = ViewerModel()
    for data in layers:
        viewer._add_layer_from_data(*data)
    assert all(layer.units == viewer.layers[0].units for layer in viewer.layers)


@pytest.mark.parametrize("key", [k for k, s in SAMPLES.items() if s.labels_file])
def test_the_mask_lies_on_the_image_and_its_classes_have_names(key):
    (_, image, _), (mask, labels, _) = getattr(samples, key)()
    for part in ("scale", "translate", "units", "axis_labels"):
        assert labels[part] == image[part]
    role = labels["metadata"]["cease"]
    assert role["role"] == "labels"
    # Two voxels of outline would hide a structure of a few.
    assert role["contour"] == (2 if max(mask.shape[-2:]) >= 128 else 1)
    assert role["scan"] is image["metadata"]["cease"]["scan"]
    assert mask.dtype == np.int32
    assert mask.shape == role["scan"].shape
    present = set(np.unique(mask).tolist()) - {0}
    assert present
    assert present <= set(role["classes"])


@pytest.mark.parametrize(
    ("key", "file"),
    [("ct_body", "ct_body_totalseg/classes_10.json"), ("heart_mr", "heart_mr_hvsmr2/classes.json")],
)
def test_class_ids_agree_with_the_data_set(key, file):
    ids = json.loads((sample_root() / file).read_text())
    assert {int(i) for i in ids} == set(SAMPLES[key].classes)


def test_a_licence_lies_beside_every_sample():
    for sample in SAMPLES.values():
        folder = sample_root() / sample.scan_file.split("/")[0]
        assert list(folder.glob("LICENSE*"))
