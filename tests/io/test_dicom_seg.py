"""A mask written as DICOM segmentation comes back the same, and lies at the same place for other readers."""

from __future__ import annotations

import shutil

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tiny_dicom as tiny
from pydicom.uid import DigitalXRayImageStorageForPresentation

from cease_core.errors import CeaseError
from cease_core.io import is_segmentation, label_names, read_labels, read_own_labels, read_scan, write_labels

NOISE = tiny.noise()
WHERE = tiny.positions(len(NOISE))


@pytest.fixture(params=["slices", "frames"])
def series(request, tmp_path):
    """The same oblique scan as one file a slice, and as one file."""
    if request.param == "slices":
        return tiny.slices(tmp_path / "series", NOISE, WHERE)
    return tiny.frames(tmp_path / "series" / "e.dcm", NOISE, WHERE)


def drawn(scan, ids=(1, 2, 3)):
    """A mask with something of every class, and nothing in the first and the last slice."""
    mask = np.zeros(scan.shape, int)
    for k, i in enumerate(ids):
        mask[1:-1, 2 + 2 * k : 4 + 2 * k, 1:-2] = i
    mask[3, 2, 2:5] = 0
    return mask


def segments(path):
    return {int(s.SegmentNumber): s for s in pydicom.dcmread(path).SegmentSequence}


@pytest.mark.parametrize("ids", [(1, 2, 3), (7,), (2, 40, 700)], ids=str)
def test_a_mask_comes_back(series, tmp_path, ids):
    scan = read_scan(series)
    mask = drawn(scan, ids)
    write_labels(mask, scan, tmp_path / "mask.dcm")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.dcm", scan), mask)


def test_the_sample_series(samples, tmp_path):
    scan = read_scan(samples / "dicom_t1w")
    mask = np.digitize(scan.image[0], [40, 70])
    write_labels(mask, scan, tmp_path / "mask.dcm")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.dcm", scan), mask)


def test_an_empty_mask(series, tmp_path):
    scan = read_scan(series)
    write_labels(np.zeros(scan.shape, int), scan, tmp_path / "mask.dcm")
    assert not read_labels(tmp_path / "mask.dcm", scan).any()


def test_a_single_slice(tmp_path):
    scan = read_scan(tiny.slices(tmp_path / "slice", NOISE[:1], WHERE[:1]))
    mask = (scan.image[0] > 0).astype(int)
    write_labels(mask, scan, tmp_path / "mask.dcm")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.dcm", scan), mask)
    found, own = read_own_labels(tmp_path / "mask.dcm")
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_allclose(own.affine[:, [0, 1, 3]], scan.affine[:, [0, 1, 3]], atol=1e-5)


def test_a_radiograph_has_no_place(tmp_path):
    def radiograph(index, header):
        del header.ImagePositionPatient, header.ImageOrientationPatient, header.FrameOfReferenceUID
        header.SOPClassUID = DigitalXRayImageStorageForPresentation

    scan = read_scan(tiny.slices(tmp_path / "dx", NOISE[:1], WHERE[:1], modality="MR", change=radiograph))
    mask = (scan.image[0] > 0).astype(int)
    write_labels(mask, scan, tmp_path / "mask.dcm")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.dcm", scan), mask)
    np.testing.assert_array_equal(read_own_labels(tmp_path / "mask.dcm")[0], mask)

    smaller = read_scan(tiny.slices(tmp_path / "small", NOISE[:1, 1:], WHERE[:1], modality="MR", change=radiograph))
    with pytest.raises(CeaseError, match="the mask has 12×10 pixels and no place"):
        read_labels(tmp_path / "mask.dcm", smaller)


def test_highdicom_finds_the_mask_at_its_place(series, tmp_path):
    scan = read_scan(series)
    mask = drawn(scan)
    write_labels(mask, scan, tmp_path / "mask.dcm")
    volume = hd.seg.segread(tmp_path / "mask.dcm").get_volume(combine_segments=True)
    # From a voxel of the scan to millimetres (LPS), and on to a voxel of highdicom's volume.
    voxels = np.argwhere(mask > 0)
    world = np.diag([-1, -1, 1, 1]) @ scan.affine @ np.c_[voxels, np.ones(len(voxels))].T
    found = np.linalg.inv(volume.affine) @ world
    np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
    np.testing.assert_array_equal(volume.array[tuple(np.rint(found[:3]).astype(int))], mask[mask > 0])
    assert np.count_nonzero(volume.array) == len(voxels)


def test_itk_finds_the_mask_at_its_place(series, tmp_path):
    scan = read_scan(series)
    mask = drawn(scan, (1,))
    mask[[0, -1], 0, 0] = 1  # ITK knows no slices that were left out
    write_labels(mask, scan, tmp_path / "mask.dcm")
    overlaid = sitk.ReadImage(str(tmp_path / "mask.dcm"))
    write_labels(mask, scan, tmp_path / "mask.nii.gz")
    nifti = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    moved = sitk.Resample(overlaid, nifti, sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(moved) > 0, sitk.GetArrayFromImage(nifti) > 0)


def test_every_frame_refers_to_its_image(series, tmp_path):
    scan = read_scan(series)
    write_labels(drawn(scan, (1,)), scan, tmp_path / "mask.dcm")
    mask = pydicom.dcmread(tmp_path / "mask.dcm")
    images = {h.SOPInstanceUID: h for h in map(pydicom.dcmread, (tmp_path / "series").iterdir())}
    series_uid = mask.ReferencedSeriesSequence[0].SeriesInstanceUID
    assert series_uid == scan.metadata["series_uid"]
    assert mask.FrameOfReferenceUID == next(iter(images.values())).FrameOfReferenceUID
    for frame in mask.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        image = images[source.ReferencedSOPInstanceUID]
        if "ReferencedFrameNumber" in source:
            image = image.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1].PlanePositionSequence[0]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient


def test_classes_keep_their_names_and_colours(series, tmp_path):
    scan = read_scan(series)
    path = tmp_path / "mask.dcm"
    write_labels(drawn(scan, (2, 5)), scan, path, classes={2: "liver", 9: "spleen"}, colours={2: "#D55E00"})
    assert label_names(path) == {2: "liver", 5: "Class 5", 9: "spleen"}
    assert [s.SegmentLabel for s in segments(path).values()] == ["liver", "Class 5", "spleen"]
    lab = segments(path)[1].RecommendedDisplayCIELabValue
    assert hd.color.CIELabColor.from_dicom_value(lab).to_rgb(clip=True) == (213, 94, 0)
    write_labels(drawn(scan), scan, tmp_path / "mask.nii.gz")
    assert label_names(tmp_path / "mask.nii.gz") == {}


def test_the_volume_of_one_time_point(tmp_path):
    twice = np.concatenate([NOISE, NOISE])

    def time(index):
        return {"FrameContentSequence": [tiny.item(TemporalPositionIndex=1 + index // len(NOISE))]}

    path = tiny.frames(tmp_path / "e.dcm", twice, np.concatenate([WHERE, WHERE]), groups=time)
    scan = read_scan(path, frame=1)
    mask = drawn(scan)
    write_labels(mask, scan, tmp_path / "mask.dcm")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.dcm", scan), mask)


def test_a_mask_of_the_same_place_in_another_format(series, tmp_path):
    scan = read_scan(series)
    mask = drawn(scan)
    write_labels(mask, scan, tmp_path / "mask.dcm")
    write_labels(mask, scan, tmp_path / "mask.nii.gz")
    as_nifti = read_scan(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.dcm", as_nifti), as_nifti.image[0])


@pytest.mark.parametrize("axes", [(2, 1, 0), (1, 2, 0), (0, 2, 1)], ids=str)
def test_the_same_voxels_turned(series, tmp_path, axes):
    scan = read_scan(series)
    mask = drawn(scan)
    write_labels(mask, scan, tmp_path / "mask.dcm")
    order = [*axes, 3]
    turned = nib.Nifti1Image(scan.image[0].transpose(axes)[::-1], scan.affine[:, order] @ flip(len_of(scan, axes)))
    nib.save(turned, tmp_path / "turned.nii")
    other = read_scan(tmp_path / "turned.nii")
    found = read_labels(tmp_path / "mask.dcm", other)
    expected = other.layout.to_display(mask.transpose(axes)[::-1])
    np.testing.assert_array_equal(found, expected)


def len_of(scan, axes):
    return scan.shape[axes[0]]


def flip(length):
    matrix = np.diag([-1.0, 1, 1, 1])
    matrix[0, 3] = length - 1
    return matrix


def test_a_folder_with_one_segmentation(series, tmp_path):
    scan = read_scan(series)
    mask = drawn(scan)
    folder = series if series.is_dir() else series.parent
    write_labels(mask, scan, tmp_path / "mask.dcm")
    assert is_segmentation(tmp_path / "mask.dcm")
    assert not is_segmentation(folder)
    shutil.copy(tmp_path / "mask.dcm", folder / "mask.dcm")
    np.testing.assert_array_equal(read_labels(folder, scan), mask)
    np.testing.assert_array_equal(read_scan(folder).image, scan.image)
    shutil.copy(tmp_path / "mask.dcm", folder / "second.dcm")
    with pytest.raises(CeaseError, match=r"holds 2 DICOM segmentations \(mask\.dcm, second\.dcm\)"):
        read_labels(folder, scan)


def test_without_its_scan(series, tmp_path):
    scan = read_scan(series)
    mask = drawn(scan)
    write_labels(mask, scan, tmp_path / "mask.dcm")
    found, own = read_own_labels(tmp_path / "mask.dcm")
    np.testing.assert_array_equal(found, mask[1:-1])  # empty slices at the ends are not in the file
    np.testing.assert_allclose(own.affine[:3, :3], scan.affine[:3, :3], atol=1e-5)
    np.testing.assert_allclose(own.affine @ [0, 0, 0, 1], scan.affine @ [1, 0, 0, 1], atol=1e-4)


def foreign(scan, path, array, **options):
    """A segmentation as another program might write it, over the scan's images."""
    folder = scan.path if scan.path.is_dir() else scan.path.parent
    sources = [pydicom.dcmread(folder / name) for name in scan.metadata["files"]]
    for header in sources:
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            header.setdefault(keyword, "")
        header.StudyDate = header.StudyTime = header.ReferringPhysicianName = ""
    count = array.shape[-1] if array.ndim == 4 else max(int(array.max()), 1)
    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    described = [hd.seg.SegmentDescription(k, f"part {k}", tissue, tissue, "MANUAL") for k in range(1, count + 1)]
    options = {"segmentation_type": "BINARY", "omit_empty_frames": True} | options
    hd.seg.Segmentation(
        sources, array, segment_descriptions=described, series_instance_uid=hd.UID(), series_number=9,
        sop_instance_uid=hd.UID(), instance_number=1, manufacturer="m", manufacturer_model_name="n",
        software_versions="1", device_serial_number="2", **options,
    ).save_as(path)  # fmt: skip
    return path


@pytest.fixture
def classic(tmp_path):
    return read_scan(tiny.slices(tmp_path / "classic", NOISE, WHERE))


def in_frames(scan, mask):
    return scan.layout.to_file(mask).T


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_what_other_programs_write(classic, tmp_path, kind):
    mask = drawn(classic)
    array = in_frames(classic, mask).astype(np.uint8)
    path = foreign(classic, tmp_path / "seg.dcm", array, segmentation_type=kind)
    np.testing.assert_array_equal(read_labels(path, classic), mask)
    assert label_names(path) == {1: "part 1", 2: "part 2", 3: "part 3"}


def test_segments_that_overlap(classic, tmp_path):
    both = np.ones((*in_frames(classic, classic.image[0]).shape, 2), np.uint8)
    path = foreign(classic, tmp_path / "seg.dcm", both)
    with pytest.raises(CeaseError, match=r"its segments overlap.*export the segments one by one"):
        read_labels(path, classic)


def test_probabilities(classic, tmp_path):
    half = np.full(in_frames(classic, classic.image[0]).shape, 0.5)
    path = foreign(classic, tmp_path / "seg.dcm", half, segmentation_type="FRACTIONAL")
    with pytest.raises(CeaseError, match="holds probabilities, not a mask"):
        read_labels(path, classic)


def elsewhere(index, header):
    header.ImagePositionPatient = [float(v) + 0.4 for v in header.ImagePositionPatient]


def coarser(index, header):
    header.PixelSpacing = [1.6, 1.2]


def far_away(index, header):
    header.ImagePositionPatient = [
        float(v) + 100 * tiny.OBLIQUE[k] * 0.6 for k, v in enumerate(header.ImagePositionPatient)
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(elsewhere, "lies on another grid"), (coarser, "lies on another grid"), (far_away, "reaches beyond it")],
)
def test_a_mask_of_another_scan(classic, tmp_path, change, sentence):
    other = read_scan(tiny.slices(tmp_path / "other", NOISE, WHERE, change=change))
    write_labels(drawn(other), other, tmp_path / "mask.dcm")
    with pytest.raises(CeaseError, match=f"does not fit tiny: the mask {sentence}.*choose the segmentation of this"):
        read_labels(tmp_path / "mask.dcm", classic)


def test_scans_that_no_segmentation_can_refer_to(classic, tmp_path):
    mask = drawn(classic)
    write_labels(mask, classic, tmp_path / "mask.nii.gz")
    nifti = read_scan(tmp_path / "mask.nii.gz")
    with pytest.raises(CeaseError, match=r"refers to DICOM images, and mask does not come from any; choose \.nii\.gz"):
        write_labels(mask, nifti, tmp_path / "mask.dcm")

    film = read_scan(tiny.film(tmp_path / "us.dcm", np.zeros((3, 10, 12), np.uint8)), frame=0)
    with pytest.raises(CeaseError, match="one picture of a film"):
        write_labels(np.ones(film.shape, int), film, tmp_path / "mask.dcm")

    next(classic.path.iterdir()).unlink()
    with pytest.raises(CeaseError, match=r"an image that it refers to, is gone from classic"):
        write_labels(mask, classic, tmp_path / "mask.dcm")
    assert not (tmp_path / "mask.dcm").exists()


def test_an_image_is_no_mask_and_a_mask_no_image(classic, tmp_path):
    write_labels(drawn(classic), classic, tmp_path / "mask.dcm")
    with pytest.raises(CeaseError, match="is a DICOM segmentation, a mask without intensities"):
        read_scan(tmp_path / "mask.dcm")
    with pytest.raises(CeaseError, match="is a CT image, not a DICOM segmentation"):
        read_labels(classic.path / "000.dcm", classic)
    with pytest.raises(CeaseError, match=r"classic holds no DICOM segmentation.*RTSTRUCT"):
        read_labels(classic.path, classic)


def test_contours(classic, tmp_path):
    header = tiny.common("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT", NOISE)
    del header.Rows, header.Columns, header.PixelData, header.BitsAllocated
    with pytest.raises(CeaseError, match=r"contours \(RTSTRUCT\), not a DICOM segmentation; convert the mask to NIfTI"):
        read_labels(tiny.write(header, tmp_path / "rt.dcm"), classic)


def unknown_segment(header):
    header.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


def no_segments(header):
    del header.SegmentSequence


def fewer_frames(header):
    header.PerFrameFunctionalGroupsSequence = header.PerFrameFunctionalGroupsSequence[:1]


def more_frames(header):
    header.NumberOfFrames = 200000


def larger_frames(header):
    header.Rows = header.Columns = 60000


@pytest.mark.parametrize("damage", [unknown_segment, no_segments, fewer_frames, more_frames, larger_frames])
def test_damaged_headers(classic, tmp_path, damage):
    write_labels(drawn(classic), classic, tmp_path / "mask.dcm")
    header = pydicom.dcmread(tmp_path / "mask.dcm")
    damage(header)
    header.save_as(tmp_path / "damaged.dcm")
    with pytest.raises(CeaseError, match=r"damaged\.dcm ?:? (could not be read as DICOM|is cut short|.*would take)"):
        read_labels(tmp_path / "damaged.dcm", classic)


def test_a_file_cut_short(classic, tmp_path):
    write_labels(drawn(classic), classic, tmp_path / "mask.dcm")
    whole = (tmp_path / "mask.dcm").read_bytes()
    for keep in range(150, len(whole) - 100, len(whole) // 12):
        (tmp_path / "cut.dcm").write_bytes(whole[:keep])
        with pytest.raises(CeaseError):
            read_labels(tmp_path / "cut.dcm", classic)
