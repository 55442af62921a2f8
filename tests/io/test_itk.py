"""NRRD and MetaImage lie where ITK says, and are written back onto their own grid."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan, write_labels, write_scan

SIZE = (6, 5, 4)


def image(dtype=np.int16, direction=None, vector=False):
    array = np.arange(np.prod(SIZE)).reshape(SIZE[::-1]).astype(dtype)
    made = sitk.GetImageFromArray(np.stack([array, array + 1], -1) if vector else array, isVector=vector)
    made.SetSpacing((0.5, 0.75, 2.0))
    made.SetOrigin((10.0, -20.0, 30.0))
    a = np.radians(10)
    turn = [np.cos(a), -np.sin(a), 0, np.sin(a), np.cos(a), 0, 0, 0, 1]
    made.SetDirection(direction or [float(v) for v in turn])
    return made


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_a_scan_lies_where_itk_puts_it(tmp_path, suffix):
    source = image()
    sitk.WriteImage(source, str(tmp_path / f"scan{suffix}"))
    scan = read_scan(tmp_path / f"scan{suffix}")
    assert scan.file_shape == SIZE
    assert nib.aff2axcodes(scan.affine) == ("S", "P", "L")
    for index in [(0, 0, 0), (3, 2, 1), (5, 4, 3)]:
        expected = np.array(source.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose((scan.file_affine @ [*index, 1])[:3], expected, atol=1e-6)
        assert scan.layout.to_file(scan.image[0])[index] == source[index]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_masks_come_back_onto_the_same_grid(tmp_path, suffix):
    source = image(direction=[0.0, 0, 1, 1, 0, 0, 0, -1, 0])
    sitk.WriteImage(source, str(tmp_path / "scan.nrrd"))
    scan = read_scan(tmp_path / "scan.nrrd")
    labels = (scan.image[0] % 5).astype(np.int32)
    write_labels(labels, scan, tmp_path / f"mask{suffix}")
    mask = sitk.ReadImage(str(tmp_path / f"mask{suffix}"))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == SIZE
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, get)(), getattr(source, get)(), atol=1e-9)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(source) % 5)
    np.testing.assert_array_equal(read_labels(tmp_path / f"mask{suffix}", scan), labels)


def test_a_nifti_mask_of_an_nrrd_scan_lies_over_it(tmp_path):
    source = image()
    sitk.WriteImage(source, str(tmp_path / "scan.nrrd"))
    scan = read_scan(tmp_path / "scan.nrrd")
    write_labels((scan.image[0] % 2).astype(int), scan, tmp_path / "mask.nii.gz")
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    np.testing.assert_allclose(mask.GetOrigin(), source.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(mask.GetDirection(), source.GetDirection(), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(source) % 2)
    read_labels(tmp_path / "mask.nii.gz", scan)


def test_channels_survive(tmp_path):
    sitk.WriteImage(image(np.float32, vector=True), str(tmp_path / "scan.mha"))
    scan = read_scan(tmp_path / "scan.mha")
    assert scan.channels == 2
    np.testing.assert_array_equal(scan.image[1], scan.image[0] + 1)
    write_scan(scan.image, scan, tmp_path / "again.mha")
    again = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "again.mha")))
    np.testing.assert_array_equal(again, sitk.GetArrayFromImage(image(np.float32, vector=True)))
    with pytest.raises(CeaseError, match="a mask has one channel"):
        read_labels(tmp_path / "scan.mha", scan)


@pytest.mark.parametrize("size", [(7, 3), (7, 3, 1)])
def test_a_slice_keeps_its_number_of_axes(tmp_path, size):
    array = np.arange(21, dtype=np.uint8).reshape(size[::-1])
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "slice.nrrd"))
    scan = read_scan(tmp_path / "slice.nrrd")
    np.testing.assert_array_equal(scan.image[0], array.reshape(3, 7))
    write_labels(scan.image[0].astype(int), scan, tmp_path / "mask.nrrd")
    assert sitk.ReadImage(str(tmp_path / "mask.nrrd")).GetSize() == size


def test_ct_is_guessed_from_air(tmp_path):
    sitk.WriteImage(image() - 1024, str(tmp_path / "ct.nrrd"))
    assert read_scan(tmp_path / "ct.nrrd").unit == "HU"
