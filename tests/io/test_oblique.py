"""Turned about three axes and anisotropic: what is read, shown and written keeps every voxel where it was."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from cease_core.io import read_labels, read_scan, write_labels, write_scan
from napari_cease.geometry import display_array, layer_geometry

SHAPE = (7, 6, 5)
SPACINGS = [(0.7, 0.7, 5.0), (3.0, 0.9, 1.1), (1.0, 1.0, 1.0)]
ANGLES = [(20, -35, 10), (-80, 15, 140), (44, 44, 44), (0, 0, 0)]


@pytest.fixture(params=[(s, a) for s in SPACINGS for a in ANGLES], ids=str)
def affine(request):
    spacing, angles = request.param
    placed = np.eye(4)
    placed[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    placed[:3, 3] = (-31.4, 27.2, 16.2)
    return placed


@pytest.fixture
def path(tmp_path, affine):
    image = nib.Nifti1Image(np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def corners(shape):
    return np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), -1).reshape(-1, len(shape))


def test_a_voxel_is_at_the_same_point_in_the_file_and_as_shown(path, affine):
    scan = read_scan(path)
    stored = np.asarray(nib.load(path).dataobj)
    for index in corners(scan.shape):
        world = scan.affine @ [*index, 1]
        there = np.rint(np.linalg.inv(affine) @ world)[:3].astype(int)
        np.testing.assert_allclose(affine @ [*there, 1], world, atol=1e-4)
        assert display_array(scan.image, scan)[tuple(index)] == stored[tuple(there)]


def test_a_layer_keeps_every_distance(path):
    scan = read_scan(path)
    geometry = layer_geometry(scan)
    shown = corners(scan.shape) * geometry["scale"] + geometry["translate"]
    true = nib.affines.apply_affine(scan.affine, corners(scan.shape))

    def distances(points):
        return np.linalg.norm(points[:, None] - points, axis=-1)

    np.testing.assert_allclose(distances(shown), distances(true), atol=1e-4)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_what_is_written_is_where_the_scan_is_for_other_readers(tmp_path, path, affine, suffix):
    scan = read_scan(path)
    labels = (scan.image[0] % 3).astype(np.int32)
    write_labels(labels, scan, tmp_path / f"mask{suffix}")
    write_scan(scan.image, scan, tmp_path / f"again{suffix}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"mask{suffix}", scan), labels)
    whole = np.asarray(nib.load(path).dataobj)
    for name, values in (("mask", whole % 3), ("again", whole)):
        image = sitk.ReadImage(str(tmp_path / f"{name}{suffix}"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, values)
        for index in corners(SHAPE):
            point = np.array(image.TransformIndexToPhysicalPoint([int(i) for i in index])) * [-1, -1, 1]
            np.testing.assert_allclose(point, nib.affines.apply_affine(affine, index), atol=1e-3)
    if suffix == ".nii":
        np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").affine, nib.load(path).affine)
