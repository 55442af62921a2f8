"""DICOM segmentations (SEG): masks that refer to the images they were drawn on; written and decoded by highdicom.

A segmentation may leave out empty slices, or turn the voxels another way round than the scan. So every frame is
put by its own position into the scan's grid, voxel onto voxel; nothing is resampled.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage, generate_uid

from cease_core.errors import CeaseError
from cease_core.io import dicom_frames, files
from cease_core.io.dicom_stack import Plane, axes, readable
from cease_core.io.orientation import complete_affine
from cease_core.io.stored import LPS_TO_RAS, StoredImage, to_scan
from cease_core.scan import Affine, LabelArray, Scan

SUFFIX = ".dcm"

_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage (DICOM Supplement 243)."""

_GRID_TOLERANCE = 0.1
"""How far, in voxels, a frame may lie from the scan's grid: scanners round each slice's position, and an even
stack passes through them."""

_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "ReferencedSegmentNumber": "SegmentIdentificationSequence",
}

# Segment numbers have to run from 1 without a gap, class ids need not: the id is kept beside the number.
_TRACKED = "class {}"
_TRACKS = re.compile(r"class (\d{1,9})")

_MOST_SLICES = 2**13
"""Of a grid that is known from the places of some of its slices alone: twice those of a whole body in slices of half a
millimetre."""

_MOST_CHARACTERS = 64
"""Of a segment's label, value representation LO."""

# What has to be there, empty if unknown (DICOM type 2), and is missing from many de-identified files.
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def is_segmentation(header: Any) -> bool:
    """Whether a header is that of a segmentation, not of an image."""
    return str(header.get("SOPClassUID", "")) in (SegmentationStorage, _LABEL_MAP)


def is_mask(path: Path) -> bool:
    """Whether a DICOM file is a segmentation.

    Raises
    ------
    CeaseError
        If its header is damaged.
    """
    with files.reading(path, "DICOM"):
        return is_segmentation(pydicom.dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True))


def load(path: Path, like: Scan) -> LabelArray:
    """Read a segmentation onto a scan's display grid; slices that it leaves out are background.

    Parameters
    ----------
    path
        The file.
    like
        The scan it belongs to.

    Returns
    -------
    array
        Class ids, int32, shape ``like.shape``: segment numbers, unless the file says which ids they stand for.

    Raises
    ------
    CeaseError
        If it is damaged, holds probabilities, lies elsewhere, or its segments overlap.
    """
    header = _header(path)
    with files.reading(path, "DICOM segmentation"):
        ids = {number: found for number, found, _ in _segments(header)}
        owners = [one["ReferencedSegmentNumber"] for one in dicom_frames.functional_groups(path, header, _GROUPS)]
    planes = dicom_frames.planes(path, header)
    mask = np.zeros((*like.shape, 1)[:3], np.int32)
    with files.reading(path, "DICOM segmentation"):
        image = hd.seg.segread(path)
    for frame, (one, owner) in enumerate(zip(planes, owners, strict=True), start=1):
        index = _index(one, like, path)
        with files.reading(path, "DICOM segmentation"):
            stored = image.get_stored_frame(frame)
            rows, columns = np.divmod(np.flatnonzero(stored), stored.shape[1])
            # A label map holds segment numbers, a binary frame belongs to one segment.
            numbers = stored[rows, columns] if owner is None else np.array([int(owner)])
            found, where = np.unique(numbers, return_inverse=True)
            values = np.array([ids[int(number)] for number in found], np.int32)[where]
        steps = index[:3, [3, 0, 1]].astype(int)
        _put(mask, [start + along * columns + down * rows for start, along, down in steps], values, like, path)
    return mask.reshape(like.shape)


def names(path: Path) -> dict[int, str]:
    """Name of each class id of a segmentation.

    Raises
    ------
    CeaseError
        If it is damaged.
    """
    header = _header(path)
    with files.reading(path, "DICOM segmentation"):
        return {found: label for _, found, label in _segments(header)}


def own_grid(path: Path) -> Scan:
    """An empty scan on the grid that a segmentation itself describes, for a mask without its scan.

    Raises
    ------
    CeaseError
        If it is damaged, or its frames lie in no even stack.
    """
    header = _header(path)
    planes = dicom_frames.planes(path, header)
    size = planes[0].size
    affine, slices = np.eye(4), 1
    with files.reading(path, "DICOM segmentation"):
        name = readable(header.get("SeriesDescription")) or path.stem
        if planes[0].position is not None:
            geometry = hd.seg.segread(path).get_volume_geometry()
            if geometry is None or geometry.spatial_shape[0] > _MOST_SLICES:
                raise CeaseError(
                    f"{path.name}: its slices lie in no even stack; open the scan that it was drawn on first."
                )
            # highdicom counts slice, row, column.
            affine, slices = geometry.affine[:, [2, 1, 0, 3]], geometry.spatial_shape[0]
            if slices > _MOST_SLICES:
                raise CeaseError(
                    f"{path.name}: its frames lie {slices} slices apart, more than any scan has; export it again, or "
                    "open the scan that it was drawn on first."
                )
    shape = (*size, slices)[: 3 if slices > 1 else 2]
    files.check_size(path.name, shape)
    empty = np.zeros((1, *shape), np.float32)
    return to_scan(StoredImage(empty, LPS_TO_RAS @ affine, name, path, metadata={"format": "DICOM-SEG"}))


def find(folder: Path, candidates: Iterable[Path]) -> Path:
    """The only segmentation among the DICOM files of a folder.

    Raises
    ------
    CeaseError
        If there is none or more than one.
    """
    found = [one for one in candidates if is_mask(one)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CeaseError(
            f"{folder.name} holds {len(found)} DICOM segmentations ({', '.join(one.name for one in found)}); "
            "choose one of these files."
        )
    raise CeaseError(
        f"{folder.name} holds no DICOM segmentation; choose a mask's file, and convert an RTSTRUCT to NIfTI first."
    )


def save(
    labels: NDArray[Any],
    scan: Scan,
    path: Path,
    classes: Mapping[int, str] | None = None,
    colours: Mapping[int, str] | None = None,
) -> None:
    """Write a mask as a binary DICOM segmentation that refers to the images the scan came from.

    Parameters
    ----------
    labels
        Class ids in display order, shape ``scan.shape``.
    scan
        A scan that was read from DICOM, whose files are still there.
    path
        New file.
    classes
        Name of each class id; a class that is named has a segment even where the mask holds none of it.
    colours
        Recommended colour of class ids, ``"#RRGGBB"``.

    Raises
    ------
    CeaseError
        If the scan does not come from DICOM, its files are gone or lack what a segmentation needs, or the
        file cannot be written.
    """
    sources = _sources(scan, path)
    ids = sorted({*(int(i) for i in np.unique(labels)), *(classes or {})} - {0}) or [1]
    numbers = np.searchsorted([0, *ids], scan.layout.to_file(labels)).astype(np.min_scalar_type(len(ids)))
    frames = numbers.reshape((*numbers.shape, 1)[:3]).transpose(2, 1, 0)
    with _describing(path, scan):
        segmentation = hd.seg.Segmentation(
            source_images=sources,
            **_where(frames, scan, sources),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _description(number, i, (classes or {}).get(i), (colours or {}).get(i))
                for number, i in enumerate(ids, start=1)
            ],
            series_instance_uid=generate_uid(),
            series_number=1000 + int(sources[0].get("SeriesNumber") or 0),
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="napari-cease",
            manufacturer_model_name="napari-cease",
            software_versions=version("napari-cease"),
            device_serial_number="0",
            series_description=f"{scan.name} segmentation"[:_MOST_CHARACTERS],
        )
    files.write_atomically(path, SUFFIX, segmentation.save_as)


def _header(path: Path) -> Any:
    if not is_mask(path):
        with files.reading(path, "DICOM"):
            modality = pydicom.dcmread(path, specific_tags=["Modality"], stop_before_pixels=True).get("Modality")
        what = "a set of contours (RTSTRUCT)" if modality == "RTSTRUCT" else f"a {readable(modality, 'DICOM')} image"
        raise CeaseError(f"{path.name} is {what}, not a DICOM segmentation; convert the mask to NIfTI or NRRD.")
    header = dicom_frames.read_header(path)
    if header.get("SegmentationType") == "FRACTIONAL":
        raise CeaseError(
            f"{path.name} holds probabilities, not a mask; export it as a binary segmentation and open that."
        )
    return header


def _segments(header: Any) -> list[tuple[int, int, str]]:
    """Number, class id and label of every segment."""
    items = [s for s in header.SegmentSequence if int(s.SegmentNumber) > 0]
    tracked = [_TRACKS.fullmatch(str(s.get("TrackingID", ""))) for s in items]
    ids = [int(t[1]) for t in tracked if t]
    if len(set(ids)) != len(items) or 0 in ids:
        ids = [int(s.SegmentNumber) for s in items]
    return [(int(s.SegmentNumber), i, readable(s.SegmentLabel, f"Class {i}")) for s, i in zip(items, ids, strict=True)]


def _index(one: Plane, like: Scan, path: Path) -> Affine:
    """From (column, row, 0, 1) of a frame to the scan's display index, in whole voxels."""
    if one.position is None or one.directions is None:
        if one.size != like.file_shape:
            raise _elsewhere(path, like, f"has {one.size[0]}×{one.size[1]} pixels and no place")
        return np.asarray(np.linalg.inv(like.layout.index_matrix(like.file_shape)), float)
    along_row, along_column, normal = axes(one)
    row_step, column_step = one.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along_row * column_step, along_column * row_step, normal], axis=1)
    affine[:3, 3] = one.position
    index: Affine = np.linalg.inv(complete_affine(like.affine, like.ndim, like.name)) @ LPS_TO_RAS @ affine
    whole: Affine = index.copy()
    whole[:3, [0, 1, 3]] = np.rint(index[:3, [0, 1, 3]])
    corners = [(c, r, 0, 1) for c, r in product((0, one.size[0] - 1), (0, one.size[1] - 1))]
    away = max(float(np.abs((index - whole) @ corner).max()) for corner in corners)
    steps = np.abs(whole[:3, :2])
    if away > _GRID_TOLERANCE or not (steps.sum(axis=0) == 1).all() or (steps[:, 0] * steps[:, 1]).any():
        raise _elsewhere(path, like, f"lies on another grid ({one.title} is up to {away:.3g} voxels off)")
    return whole


def _put(mask: LabelArray, voxels: list[NDArray[Any]], values: NDArray[np.int32], like: Scan, path: Path) -> None:
    """Write class ids into voxels, given by their index along each axis."""
    if not len(voxels[0]):
        return
    if any(v.min() < 0 or v.max() >= n for v, n in zip(voxels, mask.shape, strict=True)):
        raise _elsewhere(path, like, "reaches beyond it")
    place = tuple(voxels)
    before = mask[place]
    if ((before != 0) & (before != values)).any():
        raise CeaseError(
            f"{path.name}: its segments overlap, and a voxel can have one class only; "
            "export the segments one by one and open the one you want."
        )
    mask[place] = values


def _elsewhere(path: Path, like: Scan, what: str) -> CeaseError:
    return CeaseError(
        f"{path.name} does not fit {like.name}: the mask {what}; "
        "choose the segmentation of this scan, or resample it onto the scan's grid."
    )


def _sources(scan: Scan, path: Path) -> list[Any]:
    """Headers of the images that a scan came from, in its order, with what a segmentation copies from them."""
    saved = scan.metadata
    if saved.get("format") != "DICOM" or scan.path is None:
        raise CeaseError(
            f"{path.name} was not written: a DICOM segmentation refers to DICOM images, and {scan.name} does not "
            "come from any; choose .nii.gz or .nrrd."
        )
    if not saved["placed"] and saved["frame_numbers"]:
        raise CeaseError(
            f"{path.name} was not written: {scan.name} is one picture of a film that does not say where it lies; "
            "choose .png or .nii.gz."
        )
    folder = scan.path if scan.path.is_dir() else scan.path.parent
    found = []
    for name in saved["files"]:
        if not (folder / name).is_file():
            raise CeaseError(
                f"{path.name} was not written: {name}, an image that it refers to, is gone from {folder.name}; "
                "put it back, or choose .nii.gz."
            )
        with files.reading(folder / name, "DICOM"):
            header = pydicom.dcmread(folder / name, stop_before_pixels=True)
            for keyword in _MAY_BE_EMPTY:
                header.setdefault(keyword, "")
            if saved["placed"] and not header.get("FrameOfReferenceUID"):
                header.FrameOfReferenceUID = generate_uid(entropy_srcs=[saved["series_uid"]])
            found.append(header)
    return found


def _where(frames: NDArray[Any], scan: Scan, sources: list[Any]) -> dict[str, Any]:
    """Frames (slices, rows, columns) with their places: each image's own while the scan keeps its grid."""
    saved = scan.metadata
    if (
        "resampled" in saved
        or list(scan.file_shape) != saved["shape"]
        or not np.allclose(scan.file_affine, saved["affine"], atol=1e-4)
    ):
        return {"pixel_array": _volume(frames, scan, sources[0])}
    if not saved["frame_numbers"]:
        return {"pixel_array": frames}
    every = dicom_frames.planes(Path(saved["files"][0]), sources[0])
    planes = [every[number - 1] for number in saved["frame_numbers"]]
    patient = hd.CoordinateSystemNames.PATIENT
    return {
        "pixel_array": frames,
        "plane_positions": [hd.PlanePositionSequence(patient, list(one.position or ())) for one in planes],
        "plane_orientation": hd.PlaneOrientationSequence(patient, list(planes[0].directions or ())),
        "pixel_measures": hd.PixelMeasuresSequence(planes[0].spacing or (1.0, 1.0), planes[0].thickness),
    }


def _volume(frames: NDArray[Any], scan: Scan, source: Any) -> hd.Volume:
    """Frames (slices, rows, columns) with the place that the scan's affine gives them."""
    affine = LPS_TO_RAS @ complete_affine(scan.file_affine, scan.ndim, scan.name)
    return hd.Volume(
        frames,
        affine[:, [2, 1, 0, 3]],
        coordinate_system=hd.CoordinateSystemNames.PATIENT,
        frame_of_reference_uid=source.FrameOfReferenceUID,
    )


def _description(number: int, class_id: int, name: str | None, colour: str | None) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=(name or f"Class {class_id}")[:_MOST_CHARACTERS],
        # What a class is, its name alone does not say: the general code that other programs use, too.
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="napari-cease", family=codes.DCM.ArtificialIntelligence, version=version("napari-cease")
        ),
        tracking_uid=generate_uid(),
        tracking_id=_TRACKED.format(class_id),
        display_color=hd.color.CIELabColor.from_string(colour) if colour else None,
    )


@contextmanager
def _describing(path: Path, scan: Scan) -> Iterator[None]:
    try:
        # What pydicom and highdicom find unusual in the source's names and dates is copied as it is.
        with warnings.catch_warnings(action="ignore"):
            yield
    except MemoryError:
        raise
    except Exception as error:
        raise CeaseError(
            f"{path.name} was not written: the headers of {scan.name} lack or contradict what a DICOM segmentation "
            f"needs ({readable(error, type(error).__name__).rstrip('.')}); "
            "choose .nii.gz."
        ) from error
