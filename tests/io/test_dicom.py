"""A DICOM series is one upright, even stack, or it is refused with the figures."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from cease_core.errors import CeaseError
from cease_core.io import CT_WINDOW, holds_dicom, read_scan, write_labels
from cease_core.io.dicom import is_dicom

STEP = 0.66667


def move(dataset, millimetres):
    """Shift a slice along the stack."""
    plane = np.array(dataset.ImageOrientationPatient, float)
    normal = np.cross(plane[:3], plane[3:])
    position = np.array(dataset.ImagePositionPatient, float) + millimetres * normal
    dataset.ImagePositionPatient = [f"{v:.10g}" for v in position]


def test_the_sample_series(samples):
    folder = samples / "dicom_t1w"
    scan = read_scan(folder)
    assert scan.shape == (14, 384, 274)
    assert scan.name == "anat-T1w"
    assert (scan.unit, scan.length_unit) == ("a.u.", "mm")
    np.testing.assert_allclose(scan.spacing, (0.666667, 0.666667, 0.699988), rtol=1e-5)
    assert nib.aff2axcodes(scan.affine) == ("S", "P", "L")
    first = pydicom.dcmread(folder / "N2D_0241.dcm")
    np.testing.assert_array_equal(scan.image[0, 0], first.pixel_array)


def test_one_slice_stands_for_its_series(samples):
    folder = samples / "dicom_t1w"
    by_file = read_scan(folder / "N2D_0245.dcm")
    np.testing.assert_array_equal(by_file.image, read_scan(folder).image)


def test_a_slice_without_a_suffix_is_recognised(derive):
    folder = derive(lambda index, dataset: True, count=3)
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(""))
    assert read_scan(next(folder.iterdir())).shape == (3, 384, 274)


def test_the_affine_is_that_of_itk(samples):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(samples / "dicom_t1w")))
    image = reader.Execute()
    scan = read_scan(samples / "dicom_t1w")
    assert scan.file_shape == image.GetSize()
    for index in [(0, 0, 0), (273, 383, 13), (10, 200, 5)]:
        expected = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose((scan.file_affine @ [*index, 1])[:3], expected, atol=1e-3)


def test_a_mask_overlays_the_series_in_other_programs(samples, tmp_path):
    scan = read_scan(samples / "dicom_t1w")
    labels = (scan.image[0] > 60).astype(int)
    write_labels(labels, scan, tmp_path / "mask.nii.gz")
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(samples / "dicom_t1w")))
    series = reader.Execute()
    overlaid = sitk.Resample(mask, series, sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(overlaid) > 0, sitk.GetArrayFromImage(series) > 60)


def test_file_names_do_not_order_the_slices(samples, tmp_path):
    sources = sorted((samples / "dicom_t1w").glob("*.dcm"))[:4]
    for name, source in zip("dbca", sources, strict=True):
        shutil.copy(source, tmp_path / f"{name}.dcm")
    scan = read_scan(tmp_path)
    np.testing.assert_array_equal(scan.image, read_scan(samples / "dicom_t1w").image[:, :4])
    np.testing.assert_allclose(scan.spacing[0], STEP, rtol=1e-3)


def test_other_files_in_the_folder_do_not_matter(derive):
    folder = derive(lambda index, dataset: True, count=3)
    (folder / "LICENSE").write_text("free")
    (folder / "empty").touch()
    assert read_scan(folder).shape[0] == 3


def test_ct_is_in_hounsfield_units(derive):
    def to_ct(index, dataset):
        dataset.Modality = "CT"
        dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "2"
        return True

    folder = derive(to_ct, count=3)
    scan = read_scan(folder)
    assert (scan.unit, scan.window) == ("HU", CT_WINDOW)
    raw = pydicom.dcmread(sorted(folder.iterdir())[0]).pixel_array
    np.testing.assert_array_equal(scan.image[0, 0], 2.0 * raw - 1024)


def test_each_slice_has_its_own_slope(derive):
    def rescale(index, dataset):
        dataset.RescaleSlope = str(0.5 + index)
        return True

    folder = derive(rescale, count=3)
    scan = read_scan(folder)
    for index, path in enumerate(sorted(folder.iterdir())):
        raw = pydicom.dcmread(path).pixel_array
        np.testing.assert_allclose(scan.image[0, index], raw * (0.5 + index), rtol=1e-6)


def test_two_series_are_named(derive):
    def second(index, dataset):
        dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.2.1143.2"
        dataset.SeriesNumber, dataset.SeriesDescription = "402", "localiser"
        return index < 5

    derive(lambda index, dataset: True)
    folder = derive(second)
    with pytest.raises(CeaseError) as caught:
        read_scan(folder)
    for part in ("401", "402", "anat-T1w", "localiser", "14 slices", "5 slices", "open one file of the series"):
        assert part in str(caught.value)

    one = next(folder.glob("402_*.dcm"))
    assert read_scan(one).shape[0] == 5
    uid = str(pydicom.dcmread(one).SeriesInstanceUID)
    assert read_scan(folder, series_uid=uid).shape[0] == 5
    with pytest.raises(CeaseError, match=r"no images of series 1\.2\.3"):
        read_scan(folder, series_uid="1.2.3")


def test_a_missing_slice(derive):
    folder = derive(lambda index, dataset: index not in (4, 5, 9))
    with pytest.raises(CeaseError, match=r"3 slice\(s\) missing between .* mm.*\(the others are 0\.67 mm apart"):
        read_scan(folder)


def test_uneven_slices(derive):
    def shift(index, dataset):
        move(dataset, 0.3 if index == 7 else 0.0)
        return True

    with pytest.raises(CeaseError, match=r"unevenly spaced, from 0\.37 to 0\.97 mm"):
        read_scan(derive(shift))


def test_positions_rounded_by_the_scanner_are_even(derive):
    def rounded(index, dataset):
        dataset.ImagePositionPatient = [f"{float(v):.2f}" for v in dataset.ImagePositionPatient]
        return True

    assert read_scan(derive(rounded)).shape[0] == 14


def test_a_tilted_gantry(derive):
    def tilt(index, dataset):
        plane = np.array(dataset.ImageOrientationPatient, float)
        shear = index * STEP * np.tan(np.radians(12)) * plane[3:]
        position = np.array(dataset.ImagePositionPatient, float) + shear
        dataset.ImagePositionPatient = [f"{v:.10g}" for v in position]
        return True

    with pytest.raises(CeaseError, match=r"tilted by 1[12]\.\d°"):
        read_scan(derive(tilt))


def test_two_time_points(derive):
    def repeat(index, dataset):
        move(dataset, -STEP * (index % 2))
        return True

    with pytest.raises(CeaseError, match="7 of 14 slices lie where another one does"):
        read_scan(derive(repeat))


def test_mixed_sizes(derive):
    def crop(index, dataset):
        if index == 2:
            dataset.PixelData = dataset.pixel_array[:100].tobytes()
            dataset.Rows = 100
        return True

    with pytest.raises(CeaseError, match="different sizes"):
        read_scan(derive(crop, count=4))


def test_mixed_directions(derive):
    def turn(index, dataset):
        if index == 2:
            dataset.ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]
        return True

    with pytest.raises(CeaseError, match="another pixel spacing or direction"):
        read_scan(derive(turn, count=4))


def test_one_image_is_a_picture_in_its_place(derive, tmp_path):
    folder = derive(lambda index, dataset: True, count=1)
    scan = read_scan(folder)
    assert scan.shape == (384, 274)
    write_labels((scan.image[0] > 60).astype(int), scan, tmp_path / "mask.nii.gz")
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == (274, 384, 1)
    position = np.array(pydicom.dcmread(next(folder.iterdir())).ImagePositionPatient, float)
    np.testing.assert_allclose(mask.affine[:3, 3], position * [-1, -1, 1], atol=1e-4)


def test_a_radiograph_has_no_position_and_may_be_inverted(derive):
    def radiograph(index, dataset):
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
        dataset.Modality, dataset.PhotometricInterpretation = "DX", "MONOCHROME1"
        return True

    folder = derive(radiograph, count=1)
    scan = read_scan(folder)
    raw = pydicom.dcmread(next(folder.iterdir())).pixel_array.astype(float)
    np.testing.assert_array_equal(scan.image[0], raw.max() - raw)
    np.testing.assert_allclose(scan.spacing, (0.666667, 0.699988), rtol=1e-5)
    with pytest.raises(CeaseError, match="do not say where they lie"):
        read_scan(derive(radiograph, folder="two", count=2))


@pytest.mark.parametrize(("attribute", "value"), [("NumberOfFrames", "20"), ("SamplesPerPixel", 3)])
def test_more_pixels_announced_than_there_are(derive, attribute, value):
    def change(index, dataset):
        setattr(dataset, attribute, value)
        return True

    with pytest.raises(CeaseError, match=r"is cut short: its header promises \d+ bytes"):
        read_scan(derive(change, count=1))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("Rows", None), ("ImagePositionPatient", ["1", "2"]),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"]), ("PixelSpacing", ["0", "0"]),
    ],
)  # fmt: skip
def test_a_header_that_makes_no_sense(derive, attribute, value):
    def change(index, dataset):
        setattr(dataset, attribute, value)
        return True

    with pytest.raises(CeaseError, match=r"could not be read as DICOM|no DICOM images|at right angles"):
        read_scan(derive(change, count=2))


def test_a_single_picture_in_colour(derive):
    def colours(index, dataset):
        grey = (dataset.pixel_array >> 4).astype(np.uint8)
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.PixelData = np.stack([grey, grey // 2, grey // 4], axis=-1).tobytes()
        return True

    folder = derive(colours, count=1)
    scan = read_scan(folder)
    assert (scan.rgb, scan.shape, scan.unit) == (True, (384, 274), "8-bit")
    np.testing.assert_array_equal(np.moveaxis(scan.image, 0, -1), pydicom.dcmread(next(folder.iterdir())).pixel_array)
    with pytest.raises(CeaseError, match="3 of its 3 files hold several frames or colours"):
        read_scan(derive(colours, folder="three", count=3))


def test_a_slice_cut_short(derive):
    folder = derive(lambda index, dataset: True, count=3)
    cut = sorted(folder.iterdir())[1]
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(CeaseError, match=f"{cut.name} could not be read as DICOM"):
        read_scan(folder)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("no scan")
    assert not holds_dicom(tmp_path)
    assert not is_dicom(tmp_path / "notes.txt")
    with pytest.raises(CeaseError, match="holds no DICOM images itself"):
        read_scan(tmp_path)


def test_an_element_longer_than_its_file(derive):
    folder = derive(lambda index, dataset: True, count=1)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\x00") + 4  # implicit value representation: the length follows the tag
    path.write_bytes(content[:at] + (0xFFFFFF00).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(CeaseError, match="could not be read as DICOM"):
        read_scan(path)
