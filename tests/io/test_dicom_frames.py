"""Several frames in one DICOM file are the same scan as one file a slice."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tiny_dicom as tiny
from pydicom.uid import JPEGLosslessSV1, NuclearMedicineImageStorage

from cease_core.errors import CeaseError
from cease_core.io import CT_WINDOW, frame_count, read_scan, write_labels

NOISE = tiny.noise()
WHERE = tiny.positions(len(NOISE))
SLOPES = [(0.5 + k, -1024 + 10 * k) for k in range(len(NOISE))]


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_enhanced_file_is_the_series_it_holds(tmp_path, modality):
    shuffled = [3, 0, 5, 1, 4, 2]
    one = tiny.frames(
        tmp_path / "one" / "e.dcm",
        NOISE[shuffled],
        WHERE[shuffled],
        modality=modality,
        slope=[SLOPES[k] for k in shuffled],
    )
    many = read_scan(tiny.slices(tmp_path / "many", NOISE, WHERE, modality=modality, slope=SLOPES))
    scan = read_scan(one)
    np.testing.assert_allclose(scan.image, many.image, rtol=1e-6)
    np.testing.assert_allclose(scan.affine, many.affine, atol=1e-6)
    assert (scan.unit, scan.window) == (many.unit, many.window)
    np.testing.assert_array_equal(read_scan(one.parent).image, scan.image)
    assert frame_count(one) == 1


def test_enhanced_ct_is_in_hounsfield_units(tmp_path):
    scan = read_scan(tiny.frames(tmp_path / "e.dcm", NOISE, WHERE, slope=SLOPES))
    assert (scan.unit, scan.window) == ("HU", CT_WINDOW)
    np.testing.assert_allclose(scan.file_affine[:3, 3], WHERE[0] * [-1, -1, 1], atol=1e-6)
    for k, (slope, intercept) in enumerate(SLOPES):
        stored = scan.layout.to_file(scan.image[0])[..., k].T
        np.testing.assert_allclose(stored, slope * NOISE[k].astype(float) + intercept, rtol=1e-6)


def test_a_series_that_another_program_converted(samples, tmp_path):
    headers = [pydicom.dcmread(p) for p in sorted((samples / "dicom_t1w").glob("*.dcm"))]
    for header in headers:
        header.FrameOfReferenceUID = "1.2.3.4"
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            header.setdefault(keyword, "")
    converted = hd.legacy.LegacyConvertedEnhancedMRImage(headers, hd.UID(), 1, hd.UID(), 1)
    converted.save_as(tmp_path / "converted.dcm")
    scan, classic = read_scan(tmp_path / "converted.dcm"), read_scan(samples / "dicom_t1w")
    np.testing.assert_array_equal(scan.image, classic.image)
    np.testing.assert_allclose(scan.affine, classic.affine, atol=1e-5)


def test_the_place_is_that_of_itk(tmp_path):
    path = tiny.frames(tmp_path / "e.dcm", NOISE, WHERE)
    image, scan = sitk.ReadImage(str(path)), read_scan(path)
    assert scan.file_shape == image.GetSize()
    for index in [(0, 0, 0), (11, 9, 5)]:
        expected = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose((scan.file_affine @ [*index, 1])[:3], expected, atol=1e-4)


def test_time_points_are_chosen_by_their_number(tmp_path):
    twice = np.concatenate([NOISE, NOISE + 100])

    def time(index):
        return {"FrameContentSequence": [tiny.item(TemporalPositionIndex=1 + index // len(NOISE), StackID="1")]}

    path = tiny.frames(tmp_path / "e.dcm", twice, np.concatenate([WHERE, WHERE]), groups=time)
    assert frame_count(path) == 2
    with pytest.raises(
        CeaseError, match=r"2 volumes \(0: time point 1, 6 slices; 1: time point 2, 6 slices\).*frame=1"
    ):
        read_scan(path)
    first, second = (read_scan(path, frame=k) for k in (0, 1))
    np.testing.assert_array_equal(second.image, first.image + 100)
    assert second.name == "tiny, frame 1"
    assert (second.metadata["frame"], second.metadata["frames"]) == (1, 2)
    with pytest.raises(CeaseError, match="frames 0 to 1, so there is no frame 2"):
        read_scan(path, frame=2)


def test_stacks_of_different_directions_are_volumes_of_their_own(tmp_path):
    turned = tiny.AXIAL

    def group(index):
        stack = {"FrameContentSequence": [tiny.item(StackID=str(1 + index // 3))]}
        if index >= 3:
            stack["PlaneOrientationSequence"] = [tiny.item(ImageOrientationPatient=[f"{v:g}" for v in turned])]
        return stack

    where = np.concatenate([tiny.positions(3), tiny.positions(3, directions=turned)])
    path = tiny.frames(tmp_path / "e.dcm", NOISE, where, groups=group)
    with pytest.raises(CeaseError, match=r"2 volumes \(0: stack 1.*1: stack 2"):
        read_scan(path)
    np.testing.assert_allclose(np.abs(read_scan(path, frame=1).affine[:3, :3]).max(axis=1), (0.6, 0.8, 2.5), atol=1e-6)


def test_repeats_without_a_name_are_counted(tmp_path):
    thrice = np.concatenate([NOISE[:2], NOISE[:2] + 1, NOISE[:2] + 2])
    path = tiny.frames(tmp_path / "e.dcm", thrice, np.concatenate([WHERE[:2]] * 3))
    assert frame_count(path) == 3
    np.testing.assert_array_equal(read_scan(path, frame=2).image, read_scan(path, frame=0).image + 2)


def test_a_repeat_that_was_broken_off(tmp_path):
    path = tiny.frames(tmp_path / "e.dcm", NOISE[:3], WHERE[[0, 1, 0]])
    with pytest.raises(CeaseError, match="some places hold 2 frames, others 1"):
        read_scan(path)


def test_a_missing_frame(tmp_path):
    kept = [0, 1, 3, 4, 5]
    with pytest.raises(CeaseError, match=r"1 slice\(s\) missing"):
        read_scan(tiny.frames(tmp_path / "e.dcm", NOISE[kept], WHERE[kept]))


def test_a_single_frame(tmp_path):
    scan = read_scan(tiny.frames(tmp_path / "e.dcm", NOISE[:1], WHERE[:1]))
    np.testing.assert_array_equal(scan.layout.to_file(scan.image[0]).T, NOISE[0])


def test_a_scintigram_says_how_far_its_slices_lie_apart(tmp_path):
    header = tiny.common(NuclearMedicineImageStorage, "NM", NOISE)
    header.NumberOfFrames, header.PixelSpacing, header.SpacingBetweenSlices = len(NOISE), list(tiny.SPACING), "2.5"
    header.DetectorInformationSequence = [
        tiny.item(ImagePositionPatient=list(WHERE[0]), ImageOrientationPatient=list(tiny.OBLIQUE))
    ]
    scan = read_scan(tiny.write(header, tmp_path / "nm.dcm"))
    classic = read_scan(tiny.slices(tmp_path / "many", NOISE, WHERE, modality="MR"))
    np.testing.assert_array_equal(scan.image, classic.image)
    np.testing.assert_allclose(scan.affine, classic.affine, atol=1e-6)


def test_a_picture_of_a_film(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 10, 12), dtype=np.uint8)
    path = tiny.film(tmp_path / "us.dcm", pictures)
    with pytest.raises(CeaseError, match=r"holds 4 pictures \(a film.*frame=0 to frame=3"):
        read_scan(path)
    scan = read_scan(path, frame=2)
    np.testing.assert_array_equal(scan.image[0], pictures[2])
    assert (frame_count(path), scan.length_unit) == (4, "pixel")


def test_a_picture_of_a_film_in_colour(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 10, 12, 3), dtype=np.uint8)
    scan = read_scan(tiny.film(tmp_path / "us.dcm", pictures), frame=3)
    assert scan.rgb
    assert (scan.unit, tuple(scan.window)) == ("8-bit", (0, 255))
    np.testing.assert_array_equal(np.moveaxis(scan.image, 0, -1), pictures[3])
    write_labels(np.ones(scan.shape, int), scan, tmp_path / "mask.png")


def test_air_that_is_stored_white(tmp_path):
    def invert(header):
        header.PhotometricInterpretation = "MONOCHROME1"

    raw = NOISE.astype(np.uint16)
    scan = read_scan(tiny.frames(tmp_path / "e.dcm", raw, WHERE, modality="MR", change=invert))
    np.testing.assert_array_equal(scan.layout.to_file(scan.image[0]).T, raw.max() - raw.astype(float))


def test_files_of_several_frames_in_one_folder(tmp_path):
    for name in ("a.dcm", "b.dcm"):
        tiny.frames(tmp_path / name, NOISE, WHERE, change=lambda header: setattr(header, "SeriesInstanceUID", "1.2.3"))
    with pytest.raises(CeaseError, match=r"2 of its 2 files hold several frames.*open one of them by itself"):
        read_scan(tmp_path)
    assert read_scan(tmp_path / "b.dcm").file_shape == (12, 10, 6)


def without_groups(header):
    header.PerFrameFunctionalGroupsSequence = header.PerFrameFunctionalGroupsSequence[:-1]


def with_text(header):
    position = header.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    position.ImagePositionPatient = ["1", "2"]


def not_a_number(header):
    header.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient = ["1", "2", "nan"]


def skewed(header):
    plane = header.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    plane.ImageOrientationPatient = ["1", "0", "0", "0.7", "0.7", "0"]


def endless(header):
    header.NumberOfFrames = "2000000000"


def huge(header):
    header.Rows = header.Columns = 65535


def flat(header):
    header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = ["0", "1"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without_groups, "could not be read as DICOM"),
        (with_text, "could not be read as DICOM"),
        (not_a_number, "could not be read as DICOM"),
        (skewed, "rows and columns are not at right angles"),
        (endless, "announces 2000000000 frames"),
        (huge, "would take|is cut short"),
        (flat, "could not be read as DICOM"),
    ],
)
def test_damaged_headers(tmp_path, damage, sentence):
    path = tiny.frames(tmp_path / "e.dcm", NOISE, WHERE, change=damage)
    with pytest.raises(CeaseError, match=sentence):
        read_scan(path)


def test_a_file_cut_short(tmp_path):
    path = tiny.frames(tmp_path / "e.dcm", NOISE, WHERE)
    for keep in (0.3, 0.6, 0.95):
        cut = tmp_path / f"{keep}.dcm"
        cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        with pytest.raises(CeaseError, match=r"could not be read|cut short|names no DICOM series|holds no DICOM"):
            read_scan(cut)


def test_a_compression_without_a_decoder(tmp_path):
    def compress(header):
        header.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"] * len(NOISE))
        header["PixelData"].is_undefined_length = True

    path = tiny.frames(tmp_path / "e.dcm", NOISE, WHERE, change=compress)
    with pytest.raises(CeaseError, match=r"compressed as JPEG Lossless.*decompress it first"):
        read_scan(path)
