"""Pictures keep their pixels in place; masks keep their class ids."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan, write_labels, write_scan
from cease_core.scan import Window

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
def test_grey(tmp_path, suffix):
    Image.fromarray(GREY).save(tmp_path / f"grey{suffix}")
    scan = read_scan(tmp_path / f"grey{suffix}")
    np.testing.assert_array_equal(scan.image, GREY[None])
    assert (scan.unit, scan.length_unit, scan.window) == ("8-bit", "pixel", Window(0, 255))
    assert scan.spacing == (1.0, 1.0)
    assert scan.translate == (0.0, 0.0)
    assert not scan.rgb


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_colour_comes_channels_first(tmp_path, suffix):
    Image.fromarray(COLOUR).save(tmp_path / f"colour{suffix}")
    scan = read_scan(tmp_path / f"colour{suffix}")
    assert scan.rgb
    np.testing.assert_array_equal(scan.image, np.moveaxis(COLOUR, -1, 0))


def test_jpeg_is_decoded_as_pillow_does(samples):
    path = samples / "dermoscopy_isic2017/images/ISIC_0013085.jpg"
    scan = read_scan(path)
    np.testing.assert_array_equal(np.moveaxis(scan.image, 0, -1), np.asarray(Image.open(path)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path, mode):
    Image.fromarray(COLOUR).convert(mode).save(tmp_path / "alpha.png")
    scan = read_scan(tmp_path / "alpha.png")
    assert scan.channels == (3 if mode == "RGBA" else 1)


def test_a_palette_becomes_its_colours_in_a_scan_and_stays_ids_in_a_mask(tmp_path):
    picture = Image.fromarray((GREY % 3).astype(np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 200, 10, 20, 30, 40, 250])
    picture.save(tmp_path / "palette.png")
    scan = read_scan(tmp_path / "palette.png")
    assert scan.rgb
    assert set(np.unique(scan.image[0])) == {0, 200, 30}
    np.testing.assert_array_equal(read_labels(tmp_path / "palette.png", scan), GREY % 3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_has_its_own_window(tmp_path, suffix):
    deep = GREY.astype(np.uint16) * 100
    Image.fromarray(deep).save(tmp_path / f"deep{suffix}")
    scan = read_scan(tmp_path / f"deep{suffix}")
    np.testing.assert_array_equal(scan.image[0], deep)
    assert scan.unit == "a.u."
    assert scan.window.high > 255


@pytest.mark.parametrize("compression", [None, "zlib", "tiff_lzw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_stack_is_a_volume_in_pixels(tmp_path, compression, dtype):
    stack = np.arange(4 * 5 * 7, dtype=dtype).reshape(4, 5, 7)
    if compression == "tiff_lzw":
        pages = [Image.fromarray(page) for page in stack]
        pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:], compression=compression)
    else:
        tifffile.imwrite(tmp_path / "stack.tif", stack, compression=compression, photometric="minisblack")
    scan = read_scan(tmp_path / "stack.tif")
    np.testing.assert_array_equal(scan.image[0], stack)
    assert (scan.length_unit, scan.spacing) == ("pixel", (1.0, 1.0, 1.0))
    write_labels(stack % 3, scan, tmp_path / "mask.tif")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.tif", scan), stack % 3)


def test_imagej_knows_its_voxel_size_but_dpi_is_not_believed(tmp_path):
    stack = np.zeros((4, 5, 7), np.uint8)
    notes = {"axes": "ZYX", "unit": "micron", "spacing": 2.0}
    tifffile.imwrite(tmp_path / "ij.tif", stack, imagej=True, resolution=(4, 2), metadata=notes)
    scan = read_scan(tmp_path / "ij.tif")
    assert scan.length_unit == "mm"
    np.testing.assert_allclose(scan.spacing, (2e-3, 0.5e-3, 0.25e-3), rtol=1e-6)
    Image.fromarray(GREY).save(tmp_path / "camera.tif", dpi=(72, 72))
    assert read_scan(tmp_path / "camera.tif").length_unit == "pixel"


def test_tiff_channels_are_not_slices(tmp_path):
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((2, 5, 7), np.uint16), imagej=True, metadata={"axes": "CYX"})
    scan = read_scan(tmp_path / "c.tif")
    assert (scan.channels, scan.shape, scan.rgb) == (2, (5, 7), False)


def test_a_film_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "t.tif", np.zeros((9, 5, 7), np.uint8), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(CeaseError, match="film of 9 frames"):
        read_scan(tmp_path / "t.tif")


@pytest.mark.parametrize("white", [np.uint8(255), np.uint16(65535)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_black_and_white_becomes_zero_and_one(tmp_path, white, suffix):
    Image.fromarray(GREY).save(tmp_path / "scan.png")
    scan = read_scan(tmp_path / "scan.png")
    Image.fromarray((GREY > 90).astype(white.dtype) * white).save(tmp_path / f"mask{suffix}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"mask{suffix}", scan), GREY > 90)


def test_bilevel_and_colour_copies_of_a_mask(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "scan.png")
    scan = read_scan(tmp_path / "scan.png")
    mask = Image.fromarray((GREY > 90).astype(np.uint8) * 255)
    for mode in ("1", "RGB", "RGBA"):
        mask.convert(mode).save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", scan), GREY > 90)


def test_other_numbers_stay_class_ids(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "scan.png")
    scan = read_scan(tmp_path / "scan.png")
    ids = (GREY % 4).astype(np.uint8)
    ids[0, 0] = 255
    Image.fromarray(ids).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", scan), ids)


def test_a_binary_jpeg_mask_is_sharpened_and_a_graded_one_refused(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    Image.fromarray(ramp).save(tmp_path / "scan.png")
    scan = read_scan(tmp_path / "scan.png")
    square = np.zeros((64, 64), np.uint8)
    square[16:48, 16:48] = 255
    Image.fromarray(square).save(tmp_path / "mask.jpg", quality=90)
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.jpg", scan), square > 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.jpg")
    with pytest.raises(CeaseError, match="saved as JPEG"):
        read_labels(tmp_path / "ramp.jpg", scan)


@pytest.mark.parametrize("top", [1, 300])
def test_png_masks_round_trip(tmp_path, top):
    Image.fromarray(GREY).save(tmp_path / "scan.png")
    scan = read_scan(tmp_path / "scan.png")
    labels = (GREY % 2).astype(np.int32) * top
    write_labels(labels, scan, tmp_path / "mask.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", scan), labels)


def test_a_nifti_mask_of_a_picture_lies_over_it_in_itk(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "scan.png")
    scan = read_scan(tmp_path / "scan.png")
    write_labels((GREY > 90).astype(int), scan, tmp_path / "mask.nii.gz")
    assert nib.load(tmp_path / "mask.nii.gz").shape == (7, 5, 1)
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    picture = sitk.ReadImage(str(tmp_path / "scan.png"))
    for index in [(0, 0), (6, 4), (3, 1)]:
        where = picture.TransformIndexToPhysicalPoint(index)
        assert mask[mask.TransformPhysicalPointToIndex((*where, 0.0))] == (picture[index] > 90)
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.nii.gz", scan), GREY > 90)


def test_adversarial_pictures(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "scan.png")
    scan = read_scan(tmp_path / "scan.png")
    adversarial = np.clip(scan.image + 0.4, 0, 255).astype(np.float32)
    for suffix in (".tif", ".nii.gz"):
        write_scan(adversarial, scan, tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(read_scan_channels(tmp_path / f"a{suffix}"), adversarial)
    write_scan(adversarial, scan, tmp_path / "a.png")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.png").image, scan.image)
    with pytest.raises(CeaseError, match=r"PNG would clip .* choose \.tif"):
        write_scan(scan.image - adversarial, scan, tmp_path / "delta.png")


def read_scan_channels(path):
    return read_scan(path, volumes_as_channels=True).image


def test_voxel_sizes_survive_a_tiff(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((7, 5, 4), np.float32), np.diag([0.5, 0.25, 2, 1])), tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    write_scan(scan.image, scan, tmp_path / "scan.tif")
    np.testing.assert_allclose(read_scan(tmp_path / "scan.tif").spacing, scan.spacing, rtol=1e-6)
