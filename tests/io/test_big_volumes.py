"""Large volumes are mapped or decoded piece by piece, and say the same as if they had been read at once."""

from __future__ import annotations

import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from cease_core import scan as scan_module
from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan, stored, write_labels, write_scan
from cease_core.models.card import WindowRule
from cease_core.scan import Scan, check_labels, class_ids, percentile_window

SHAPE = (7, 9, 11)
AFFINES = {
    "axial": np.diag([0.7, 0.7, 2, 1]),
    "flipped": np.diag([-0.7, -0.7, 2, 1]),
    "sagittal": np.array([[0, 0, 2, 0], [0.7, 0, 0, 0], [0, 0.7, 0, 0], [0, 0, 0, 1.0]]),
}


def values(shape=SHAPE, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(0, 300, shape).astype(dtype)


def nifti(path, array, affine=AFFINES["axial"]):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def itk(path, array, compressed=False):
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(array.T)), str(path), useCompression=compressed)
    return path


def in_file_order(scan):
    return scan.layout.to_file(scan.image[0])


def is_mapped(scan):
    array = scan.image
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


@pytest.fixture
def all_are_large(monkeypatch):
    """Every file counts as large, and every slab is a single slice."""
    monkeypatch.setattr(stored, "MAP_ABOVE", 0)
    monkeypatch.setattr(stored, "SLAB_BYTES", 1)


# --- mapped ---


@pytest.mark.parametrize("place", AFFINES)
@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_plain_float32_is_a_view_of_the_file(tmp_path, all_are_large, suffix, place):
    path = tmp_path / f"scan{suffix}"
    nifti(path, values(), AFFINES[place]) if suffix == ".nii" else itk(path, values())
    scan = read_scan(path)
    assert is_mapped(scan)
    assert not scan.image.flags.writeable
    np.testing.assert_array_equal(in_file_order(scan), values())
    write_labels((scan.image[0] > 0).astype(int), scan, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.nii.gz", scan), scan.image[0] > 0)


def test_small_files_are_read_so_that_others_may_change_them(tmp_path):
    scan = read_scan(nifti(tmp_path / "scan.nii", values()))
    assert not is_mapped(scan)
    assert scan.image.flags.writeable


def test_a_mapped_scan_survives_being_written_over_itself(tmp_path, all_are_large):
    path = nifti(tmp_path / "scan.nii", values())
    scan = read_scan(path)
    write_scan(scan.image + 1, scan, path)
    np.testing.assert_array_equal(in_file_order(scan), values())
    np.testing.assert_array_equal(in_file_order(read_scan(path)), values() + np.float32(1))


def test_a_frame_or_all_channels_of_a_mapped_series(tmp_path, all_are_large):
    path = nifti(tmp_path / "series.nii", values((*SHAPE, 3)))
    one, every = read_scan(path, frame=1), read_scan(path, volumes_as_channels=True)
    assert is_mapped(one)
    np.testing.assert_array_equal(in_file_order(one), values((*SHAPE, 3))[..., 1])
    for channel in range(3):
        np.testing.assert_array_equal(every.layout.to_file(every.image[channel]), values((*SHAPE, 3))[..., channel])


# --- decoded piece by piece ---


@pytest.mark.parametrize("place", AFFINES)
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u1", "<f8", ">f4", "<i4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slabs_of_a_nifti_make_the_whole(tmp_path, all_are_large, suffix, dtype, place):
    array = np.abs(values()).astype(dtype)
    image = nib.Nifti1Image(array, AFFINES[place])
    image.set_data_dtype(np.dtype(dtype))
    image.header.set_slope_inter(1.7, -3.3)
    nib.save(image, tmp_path / f"scan{suffix}")
    scan = read_scan(tmp_path / f"scan{suffix}")
    at_once = np.asarray(nib.load(tmp_path / f"scan{suffix}").dataobj, np.float32)
    np.testing.assert_array_equal(in_file_order(scan), at_once)
    assert scan.image.flags.c_contiguous
    assert scan.image.dtype == np.float32


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64, np.int32])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nhdr", ".mhd"])
def test_slabs_of_an_itk_file_make_the_whole(tmp_path, all_are_large, suffix, dtype, compressed):
    array = np.abs(values()).astype(dtype)
    scan = read_scan(itk(tmp_path / f"scan{suffix}", array, compressed))
    np.testing.assert_array_equal(in_file_order(scan), array.astype(np.float32))
    assert not is_mapped(scan)


@pytest.mark.parametrize("head", ["endian: big", "ElementByteOrderMSB = True"])
def test_the_order_of_bytes_is_the_headers(tmp_path, all_are_large, head):
    path = itk(tmp_path / ("scan.nrrd" if "endian" in head else "scan.mha"), values())
    text, blank = (b"\n\n", 2) if "endian" in head else (b"LOCAL\n", 6)
    content = path.read_bytes()
    end = content.index(text) + blank
    swapped = content[:end].replace(b"endian: little", b"endian: big").replace(b"MSB = False", b"MSB = True")
    path.write_bytes(swapped + np.frombuffer(content[end:], "<f4").astype(">f4").tobytes())
    np.testing.assert_array_equal(in_file_order(read_scan(path)), values())


def test_a_detached_or_padded_header_is_left_to_itk(tmp_path, all_are_large):
    scan = read_scan(itk(tmp_path / "scan.mhd", values()))
    assert not is_mapped(scan)
    np.testing.assert_array_equal(in_file_order(scan), values())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha"])
def test_opening_holds_little_more_than_the_result(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(stored, "SLAB_BYTES", 2**18)
    array = values((96, 96, 160), np.int16)
    path = nifti(tmp_path / f"ct{suffix}", array) if suffix != ".mha" else itk(tmp_path / f"ct{suffix}", array)
    tracemalloc.start()
    scan = read_scan(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.25 * scan.image.nbytes


# --- passes over the whole ---


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_single_bad_voxel_is_found_and_counted(bad):
    image = values((2, *SHAPE))
    image[1, 2, 3, 4] = image[0, 6, 8, 10] = bad
    with pytest.raises(CeaseError, match="2 voxels are NaN or infinite"):
        Scan(image, np.eye(4))


def test_extremes_are_those_of_all_channels():
    image = values((2, *SHAPE))
    assert Scan(image, np.eye(4)).extremes == (image.min(), image.max())
    picture = values((3, 5, 6))
    assert Scan(picture, np.eye(4)).extremes == (picture.min(), picture.max())


def test_a_constant_scan_has_no_window():
    scan = Scan(np.full((1, 4, 5, 6), 7, np.float32), np.eye(4))
    with pytest.raises(CeaseError, match="every voxel has the same value"):
        WindowRule(kind="percentile", low=1, high=99).resolve(scan)


def test_percentiles_of_a_small_scan_are_exact():
    image = values((1, *SHAPE))
    assert percentile_window(image, 2, 98) == tuple(np.percentile(image, (2, 98)))


@pytest.mark.parametrize("columns", [60, 61, 64])
def test_percentiles_of_a_large_scan_are_those_of_an_even_sample(monkeypatch, columns):
    image = values((1, 40, 50, columns))
    image[..., 0] = 5000  # a border that a step in time with the rows would see always or never
    monkeypatch.setattr(scan_module, "SAMPLED_ABOVE", image.size // 3)
    sample = scan_module._sample(image)
    assert image.size // 8 < sample.size <= image.size // 3
    assert (sample == 5000).mean() == pytest.approx(1 / columns, rel=0.05)
    low, high = percentile_window(image, 1, 90)
    ranks = [(image <= value).mean() for value in (low, high)]
    np.testing.assert_allclose(ranks, (0.01, 0.90), atol=0.004)
    assert percentile_window(image, 1, 90) == (low, high)
    # The same values whichever way they lie in memory.
    turned = np.asfortranarray(image)
    np.testing.assert_array_equal(scan_module._sample(turned), sample)


# --- masks ---


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64, bool])
def test_masks_of_any_type_become_ids_of_their_own(dtype):
    scan = Scan(values((1, *SHAPE)), np.eye(4))
    given = (scan.image[0] > 0).astype(dtype)
    ids = check_labels(given, scan)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, given)
    assert not np.shares_memory(ids, given)


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, np.inf, 2.0**31])
def test_what_is_no_id_is_refused_wherever_it_lies(bad):
    scan = Scan(values((1, *SHAPE)), np.eye(4))
    given = np.zeros(SHAPE)
    given[-1, -1, -1] = bad
    with pytest.raises(CeaseError, match="whole numbers from 0 up"):
        check_labels(given, scan)


@pytest.mark.parametrize("ids", [{0}, {0, 1, 7}, {3}, {0, 65536}, {0, 2**20}])
def test_ids_are_found_without_sorting(ids):
    mask = np.random.default_rng(0).choice(sorted(ids), SHAPE).astype(np.int32)
    assert class_ids(mask) == set(np.unique(mask).tolist()) == ids
