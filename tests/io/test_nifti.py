"""A NIfTI scan is shown the right way round, and what is written lies where the scan lies."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from cease_core.errors import CeaseError
from cease_core.io import CT_WINDOW, read_labels, read_scan, write_labels, write_scan

SHAPE = (5, 6, 7)
CODES = ["".join(letters) for order in permutations(("RL", "AP", "SI")) for letters in product(*order)]


def affine_of(codes: str = "RAS", spacing=(1.0, 1.1, 1.2), origin=(-10.0, 20.0, 5.0), degrees=0.0):
    """Affine of an array of SHAPE stored along ``codes``; spacing is that along x, y, z."""
    a = np.radians(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    base = np.eye(4)
    base[:3, :3] = turn @ np.diag(spacing)
    base[:3, 3] = origin
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(codes)))
    ras_shape = tuple(np.array(SHAPE)[change[:, 0].astype(int)])
    return base @ inv_ornt_aff(change, ras_shape)


def save(path: Path, array, affine, **codes) -> Path:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, codes.get("sform", 1))
    image.set_qform(affine, codes.get("qform", 1))
    nib.save(image, path)
    return path


def ramp(dtype=np.int16):
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def points(indices, affine):
    """World points of array indices, in an order that does not depend on the array's own."""
    world = nib.affines.apply_affine(affine, indices)
    return world[np.lexsort(np.round(world, 3).T)]


@pytest.mark.parametrize("codes", CODES)
def test_every_axis_order_is_shown_alike_and_written_back(tmp_path, codes):
    affine = affine_of(codes)
    assert "".join(nib.aff2axcodes(affine)) == codes
    path = save(tmp_path / "scan.nii.gz", ramp(), affine)
    scan = read_scan(path)

    assert nib.aff2axcodes(scan.affine) == ("S", "P", "L")
    for index in [(0, 0, 0), tuple(n - 1 for n in scan.shape), (1, 2, 3)]:
        world = scan.affine @ [*index, 1]
        stored = tuple(np.rint(np.linalg.inv(affine) @ world)[:3].astype(int))
        assert scan.image[(0, *index)] == ramp()[stored]

    labels = (scan.image[0] % 3).astype(np.int32)
    write_labels(labels, scan, tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    assert written.shape == SHAPE
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, nib.load(path).affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), ramp() % 3)
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.nii.gz", scan), labels)


def test_the_48_orders_are_all_there():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("degrees", [0.0, 17.0])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_nibabel_and_itk_find_the_mask_at_the_same_points(tmp_path, codes, degrees, suffix):
    affine = affine_of(codes, spacing=(0.8, 0.8, 3.0), degrees=degrees)
    scan = read_scan(save(tmp_path / "scan.nii.gz", ramp(), affine))
    truth = points(np.argwhere(ramp() % 7 == 1), affine)
    labels = (scan.image[0] % 7 == 1).astype(np.int32)

    path = tmp_path / f"mask{suffix}"
    write_labels(labels, scan, path)
    image = sitk.ReadImage(str(path))
    found = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1]
    itk = np.array([image.TransformIndexToPhysicalPoint([int(i) for i in index]) for index in found])
    np.testing.assert_allclose(points(itk * [-1, -1, 1], np.eye(4)), truth, atol=1e-3)
    if suffix.startswith(".nii"):
        again = nib.load(path)
        np.testing.assert_allclose(points(np.argwhere(again.dataobj), again.affine), truth, atol=1e-4)


@pytest.mark.parametrize(("sform", "qform"), [(2, 0), (0, 1), (4, 3), (0, 0)])
def test_both_form_codes_survive(tmp_path, sform, qform):
    path = save(tmp_path / "scan.nii", ramp(np.float32), affine_of("LAS", degrees=9), sform=sform, qform=qform)
    scan = read_scan(path)
    write_scan(scan.image + 0.25, scan, tmp_path / "again.nii")
    before, after = nib.load(path), nib.load(tmp_path / "again.nii")
    for key in ("sform_code", "qform_code", "srow_x", "quatern_b", "quatern_d", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(before.header[key], after.header[key])
    np.testing.assert_array_equal(before.affine, after.affine)
    np.testing.assert_array_equal(np.asarray(after.dataobj), ramp(np.float32) + 0.25)
    assert after.get_data_dtype() == np.float32


@pytest.mark.parametrize(
    ("spacing", "codes"),
    [((1, 1, 1), "SPL"), ((1, 1, 8), "SPL"), ((1, 8, 1), "PIL"), ((8, 1, 1), "RIP"), ((1, 1.4, 1), "SPL")],
)
def test_slices_run_along_the_clearly_largest_spacing(tmp_path, spacing, codes):
    scan = read_scan(save(tmp_path / "scan.nii", ramp(), affine_of("RAS", spacing=spacing)))
    assert "".join(nib.aff2axcodes(scan.affine)) == codes
    # All three turn the same way round, so a 3-D view never mirrors the patient.
    assert np.linalg.det(scan.affine[:3, :3]) < 0


def test_spacing_and_translation_are_those_of_the_array(tmp_path):
    scan = read_scan(save(tmp_path / "scan.nii", ramp(), affine_of("RAS", spacing=(0.5, 0.75, 3))))
    np.testing.assert_allclose(scan.spacing, (3, 0.75, 0.5))
    # First voxel: lowest slice (z 5), most anterior row (y 20 + 5 × .75), rightmost column (x −10 + 4 × .5).
    np.testing.assert_allclose(scan.translate, (5, -23.75, 8), atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 1, 1)])
def test_one_slice_is_a_picture_and_keeps_its_own_shape(tmp_path, shape):
    array = np.arange(30, dtype=np.float32).reshape(shape)
    path = save(tmp_path / "slice.nii.gz", array, np.diag([1.0, 1, 2, 1]))
    scan = read_scan(path)
    assert scan.shape == (5, 6)
    assert scan.spacing == (1.0, 1.0)
    write_labels(scan.image[0].astype(int), scan, tmp_path / "mask.nii.gz")
    again = nib.load(tmp_path / "mask.nii.gz")
    assert again.shape == shape
    np.testing.assert_array_equal(again.affine, nib.load(path).affine)
    np.testing.assert_array_equal(np.asarray(again.dataobj), array)


def test_a_single_coronal_slice_stays_in_its_volume(tmp_path):
    scan = read_scan(save(tmp_path / "slice.nii", np.zeros((6, 1, 5), np.int16), np.eye(4)))
    assert scan.shape == (1, 5, 6)
    assert nib.aff2axcodes(scan.affine) == ("P", "I", "L")


def test_a_single_time_point_is_dropped_and_comes_back(tmp_path):
    path = save(tmp_path / "scan.nii.gz", ramp()[..., None], np.eye(4))
    scan = read_scan(path)
    assert scan.ndim == 3
    write_labels(np.ones(scan.shape), scan, tmp_path / "mask.nii.gz")
    assert nib.load(tmp_path / "mask.nii.gz").shape == (*SHAPE, 1)


def test_contrasts_of_one_examination_on_request(tmp_path):
    path = save(tmp_path / "scan.nii.gz", np.stack([ramp(), ramp() + 1], -1), affine_of("LPS"))
    with pytest.raises(CeaseError, match="series of 2 volumes"):
        read_scan(path)
    scan = read_scan(path, volumes_as_channels=True)
    np.testing.assert_array_equal(scan.image[1], scan.image[0] + 1)
    write_scan(scan.image, scan, tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "again.nii.gz").dataobj, nib.load(path).dataobj)
    write_labels(np.ones(scan.shape), scan, tmp_path / "mask.nii.gz")
    assert nib.load(tmp_path / "mask.nii.gz").shape == SHAPE


def test_metres_and_microns_become_millimetres(tmp_path):
    image = nib.Nifti1Image(ramp(), np.diag([5e2, 5e2, 1e3, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    np.testing.assert_allclose(scan.spacing, (1, 0.5, 0.5))
    write_labels(np.ones(scan.shape), scan, tmp_path / "mask.nii")
    again = nib.load(tmp_path / "mask.nii")
    np.testing.assert_array_equal(again.affine, image.affine)
    assert again.header.get_xyzt_units()[0] == "micron"


@pytest.mark.parametrize(
    ("low", "dtype", "unit"),
    [(-1024, np.int16, "HU"), (-1024, np.float32, "a.u."), (-100, np.int16, "a.u."), (0, np.uint8, "a.u.")],
)
def test_only_whole_numbers_far_below_zero_are_hounsfield_units(tmp_path, low, dtype, unit):
    array = ramp(dtype)
    array[0, 0, 0] = low
    scan = read_scan(save(tmp_path / "scan.nii", array, np.eye(4)))
    assert scan.unit == unit
    assert (scan.window == CT_WINDOW) == (unit == "HU")


def test_stored_slope_and_intercept_apply(tmp_path):
    image = nib.Nifti1Image(ramp(), np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    nib.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert scan.image.min() == -1024
    assert scan.image.max() == 2 * (ramp().max()) - 1024
    assert scan.unit == "HU"


@pytest.mark.parametrize(("top", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.uint32)])
def test_masks_take_the_smallest_type(tmp_path, top, dtype):
    scan = read_scan(save(tmp_path / "scan.nii", ramp(), np.eye(4)))
    labels = np.zeros(scan.shape, int)
    labels[1, 2, 3] = top
    write_labels(labels, scan, tmp_path / "mask.nii.gz")
    assert nib.load(tmp_path / "mask.nii.gz").get_data_dtype() == dtype
    assert read_labels(tmp_path / "mask.nii.gz", scan).max() == top


def test_a_mask_stored_in_another_orientation_fits(tmp_path):
    scan = read_scan(save(tmp_path / "scan.nii", ramp(), affine_of("RAS", degrees=12)))
    mask = nib.Nifti1Image((ramp() % 4).astype(np.uint8), affine_of("RAS", degrees=12))
    turned = mask.as_reoriented(ornt_transform(io_orientation(mask.affine), axcodes2ornt(("P", "S", "R"))))
    nib.save(turned, tmp_path / "mask.nii")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.nii", scan), scan.image[0] % 4)


@pytest.mark.parametrize(("shift", "fits"), [(0.005, True), (0.05, False)])
def test_a_hundredth_of_a_voxel_is_tolerated(tmp_path, shift, fits):
    scan = read_scan(save(tmp_path / "scan.nii", ramp(), np.eye(4)))
    moved = np.eye(4)
    moved[0, 3] = shift
    path = save(tmp_path / "mask.nii", (ramp() % 2).astype(np.uint8), moved)
    if fits:
        read_labels(path, scan)
    else:
        with pytest.raises(CeaseError, match=r"0\.05 voxels away from scan"):
            read_labels(path, scan)


@pytest.mark.parametrize("name", ["hippocampus_mri/images/hippocampus_001", "ct_body_totalseg/images/example_ct"])
def test_real_scans_come_back_bit_for_bit(samples, tmp_path, name):
    path = samples / f"{name}.nii.gz"
    scan = read_scan(path)
    write_scan(scan.image, scan, tmp_path / "again.nii")
    before, after = nib.load(path), nib.load(tmp_path / "again.nii")
    np.testing.assert_array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
    np.testing.assert_array_equal(before.affine, after.affine)
