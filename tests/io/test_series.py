"""One volume of a time series is chosen, named, and what is written for it is a single volume on the series' grid."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from cease_core.errors import CeaseError
from cease_core.io import frame_count, read_labels, read_scan, write_labels, write_scan

SHAPE, FRAMES = (6, 5, 4), 3
AFFINE = np.array([[-0.8, 0, 0, 9], [0, 0.8, 0, -4], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])


def series(shape=(*SHAPE, FRAMES)):
    return np.arange(np.prod(shape)).reshape(shape).astype(np.int16)


def nifti(path, array, affine=AFFINE, slope=None):
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    if slope:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return path


def itk(path, compressed=False):
    volumes = [sitk.GetImageFromArray(np.ascontiguousarray(series()[..., t].T)) for t in range(FRAMES)]
    joined = sitk.JoinSeries(volumes)
    joined.SetSpacing((0.8, 0.8, 2.5, 1.5))
    joined.SetOrigin((3.0, 4.0, 5.0, 0.0))
    sitk.WriteImage(joined, str(path), useCompression=compressed)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("frame", range(FRAMES))
def test_each_frame_is_the_volume_at_that_time(tmp_path, suffix, frame):
    path = tmp_path / f"bold{suffix}"
    nifti(path, series()) if suffix.startswith(".nii") else itk(path)
    assert frame_count(path) == FRAMES
    scan = read_scan(path, frame=frame)
    np.testing.assert_array_equal(scan.layout.to_file(scan.image[0]), series()[..., frame])
    assert scan.name == f"bold, frame {frame}"
    assert (scan.metadata["frame"], scan.metadata["frames"]) == (frame, FRAMES)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_compressed_series_gives_the_same_frame(tmp_path, suffix):
    scan = read_scan(itk(tmp_path / f"bold{suffix}", compressed=True), frame=2)
    np.testing.assert_array_equal(scan.layout.to_file(scan.image[0]), series()[..., 2])
    np.testing.assert_allclose(sorted(scan.spacing), (0.8, 0.8, 2.5))


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_without_a_frame_the_sentence_says_how_many_there_are_and_how_to_choose(tmp_path, suffix):
    path = tmp_path / f"bold{suffix}"
    nifti(path, series()) if suffix == ".nii.gz" else itk(path)
    with pytest.raises(CeaseError, match=r"series of 3 volumes; choose one with frame=0 to frame=2 \(--frame on the"):
        read_scan(path)
    for wrong in (-1, FRAMES):
        with pytest.raises(CeaseError, match=f"has frames 0 to 2, so there is no frame {wrong}"):
            read_scan(path, frame=wrong)


def test_a_single_volume_has_frame_0_alone(tmp_path):
    path = nifti(tmp_path / "scan.nii", series(SHAPE))
    assert frame_count(path) == 1
    assert read_scan(path, frame=0).name == "scan"
    with pytest.raises(CeaseError, match="holds a single volume, so there is no frame 1"):
        read_scan(path, frame=1)


def test_formats_without_series_refuse_a_frame(samples):
    picture = samples / "polyp_hyperkvasir/images/cju5es375cnzy0801nkq35ffs.jpg"
    assert frame_count(picture) == 1
    with pytest.raises(CeaseError, match="frames are chosen of NIfTI, NRRD, MetaImage and DICOM series alone"):
        read_scan(picture, frame=0)


@pytest.mark.parametrize("out", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_mask_of_a_frame_is_one_volume_on_the_grid_of_the_series(tmp_path, suffix, out):
    path = tmp_path / f"bold{suffix}"
    nifti(path, series()) if suffix == ".nii.gz" else itk(path)
    scan = read_scan(path, frame=1)
    labels = (scan.image[0] % 4).astype(np.int32)
    write_labels(labels, scan, tmp_path / f"mask{out}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"mask{out}", read_scan(path, frame=2)), labels)
    mask, whole = sitk.ReadImage(str(tmp_path / f"mask{out}")), sitk.ReadImage(str(path))
    assert mask.GetSize() == SHAPE
    for index in [(0, 0, 0), (5, 4, 3)]:
        np.testing.assert_allclose(
            mask.TransformIndexToPhysicalPoint(index), whole.TransformIndexToPhysicalPoint((*index, 1))[:3], atol=1e-5
        )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, series()[..., 1] % 4)


def test_an_attacked_frame_keeps_both_forms_of_the_affine(tmp_path):
    path = nifti(tmp_path / "bold.nii", series(), slope=(0.5, -3.0))
    scan = read_scan(path, frame=2)
    write_scan(scan.image, scan, tmp_path / "again.nii")
    before, after = nib.load(path), nib.load(tmp_path / "again.nii")
    assert after.shape == SHAPE
    np.testing.assert_array_equal(after.get_fdata(), before.get_fdata()[..., 2])
    np.testing.assert_array_equal(after.affine, before.affine)
    for key in ("sform_code", "qform_code"):
        assert after.header[key] == before.header[key]


@pytest.mark.parametrize("shape", [(6, 5, 1, 3), (6, 5, 4, 1, 3)])
def test_axes_of_length_one_do_not_hide_the_series(tmp_path, shape):
    path = nifti(tmp_path / "cine.nii.gz", series(shape))
    scan = read_scan(path, frame=2)
    assert frame_count(path) == 3
    assert scan.ndim == (2 if shape[2] == 1 else 3)
    np.testing.assert_array_equal(scan.layout.to_file(scan.image[0]), series(shape)[..., 2].squeeze())
    write_labels(np.ones(scan.shape), scan, tmp_path / "mask.nii.gz")
    assert nib.load(tmp_path / "mask.nii.gz").shape == shape[:3]


def test_a_chosen_frame_is_not_taken_for_channels(tmp_path):
    path = nifti(tmp_path / "scan.nii", series())
    assert read_scan(path, volumes_as_channels=True).channels == FRAMES
    assert read_scan(path, frame=1, volumes_as_channels=True).channels == 1
