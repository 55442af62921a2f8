"""Small DICOM files, from pydicom alone: classic slices, and several frames in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

SPACING = (0.8, 0.6)
"""From row to row and from column to column, in millimetres."""

OBLIQUE = np.array([0.8, 0.6, 0.0, -0.36, 0.48, -0.8])
"""Along a row and along a column, in LPS."""

AXIAL = np.array([1.0, 0, 0, 0, 1, 0])

CLASSIC = {"CT": CTImageStorage, "MR": MRImageStorage}
ENHANCED = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage}


def normal(directions):
    return np.cross(directions[:3], directions[3:])


def positions(count, step=2.5, directions=OBLIQUE, origin=(-20.0, 30, 40)):
    """Of an upright, even stack, in LPS."""
    return np.array(origin) + np.outer(np.arange(count) * step, normal(directions))


def common(sop_class, modality, pixels):
    """A header that every image has, with pixels (rows, columns) or (frames, rows, columns[, 3])."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = sop_class, generate_uid()
    header.StudyInstanceUID = header.SeriesInstanceUID = generate_uid()
    header.FrameOfReferenceUID = generate_uid()
    header.Modality, header.SeriesNumber, header.InstanceNumber = modality, 7, 1
    header.SeriesDescription = "tiny"
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    pixels = np.asarray(pixels)
    header.Rows, header.Columns = pixels.shape[-2:] if pixels.shape[-1] != 3 else pixels.shape[-3:-1]
    header.BitsAllocated = header.BitsStored = pixels.dtype.itemsize * 8
    header.HighBit, header.PixelRepresentation = header.BitsStored - 1, int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()
    return header


def write(header, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    pydicom.dcmwrite(path, header, enforce_file_format=True)
    return path


def slices(folder: Path, stack, where, *, directions=OBLIQUE, modality="CT", slope=None, change=None) -> Path:
    """One file a slice of ``stack`` (slices, rows, columns) int16 at ``where`` (slices, 3)."""
    series, frame, study = generate_uid(), generate_uid(), generate_uid()
    for index, (pixels, position) in enumerate(zip(stack, where, strict=True)):
        header = common(CLASSIC[modality], modality, pixels)
        header.SeriesInstanceUID, header.FrameOfReferenceUID, header.StudyInstanceUID = series, frame, study
        header.InstanceNumber = index + 1
        header.ImagePositionPatient = [f"{v:.9g}" for v in position]
        header.ImageOrientationPatient = [f"{v:.9g}" for v in directions]
        header.PixelSpacing, header.SliceThickness = list(SPACING), "2.5"
        header.RescaleSlope, header.RescaleIntercept = (*(("1", "0") if slope is None else map(str, slope[index])),)
        if change is not None:
            change(index, header)
        write(header, folder / f"{index:03d}.dcm")
    return folder


def item(**values):
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def frames(
    path: Path, stack, where, *, directions=OBLIQUE, modality="CT", slope=None, groups=None, change=None
) -> Path:
    """The same as `slices` in one enhanced file; ``groups(index)`` adds functional groups to a frame."""
    header = common(ENHANCED[modality], modality, stack)
    header.NumberOfFrames = len(stack)
    header.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=list(SPACING), SliceThickness="2.5")],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[f"{v:.9g}" for v in directions])],
        )
    ]
    own = []
    for index, position in enumerate(where):
        intercept_and_slope = (1, 0) if slope is None else slope[index]
        own.append(
            item(
                PlanePositionSequence=[item(ImagePositionPatient=[f"{v:.9g}" for v in position])],
                PixelValueTransformationSequence=[
                    item(
                        RescaleSlope=str(intercept_and_slope[0]),
                        RescaleIntercept=str(intercept_and_slope[1]),
                        RescaleType="US",
                    )
                ],
                **(groups(index) if groups else {}),
            )
        )
    header.PerFrameFunctionalGroupsSequence = own
    if change is not None:
        change(header)
    return write(header, path)


def film(path: Path, pictures, *, change=None) -> Path:
    """Ultrasound without a place: (frames, rows, columns) in grey or (frames, rows, columns, 3) in colour, uint8."""
    header = common(UltrasoundMultiFrameImageStorage, "US", pictures)
    if np.ndim(pictures) == 4:
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
    header.NumberOfFrames = len(pictures)
    del header.FrameOfReferenceUID
    if change is not None:
        change(header)
    return write(header, path)


def noise(shape=(6, 10, 12), seed=0):
    """Intensities (slices, rows, columns)."""
    return np.random.default_rng(seed).integers(-900, 1500, shape).astype(np.int16)
