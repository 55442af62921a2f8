"""Whatever is wrong with a file, the user reads one sentence that names it and says what to do."""

from __future__ import annotations

import errno
import gzip
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan, write_labels, write_scan
from cease_core.io.files import write_reason
from cease_core.scan import Scan

NOISE = np.random.default_rng(0).normal(100, 20, (9, 8, 7)).astype(np.float32)


def nifti(path: Path, array=NOISE, affine=None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def cut(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def header_only(path: Path, shape) -> Path:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = header.binaryblock + b"\0" * 100
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def poisoned(path: Path, value: float) -> Path:
    array = NOISE.copy()
    array[1, 2, 3] = value
    return nifti(path, array)


def picture(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path


def itk(path: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(NOISE), str(path))
    return path


def stack(path: Path, **options) -> Path:
    pages = np.random.default_rng(0).integers(0, 999, (9, 40, 40), dtype=np.uint16)
    tifffile.imwrite(path, pages, photometric="minisblack", **options)
    return path


def text(path: Path, content: str = "not a scan at all\n" * 9) -> Path:
    path.write_text(content)
    return path


def vectors(path: Path) -> Path:
    image = nib.Nifti1Image(np.zeros((5, 5, 5, 1, 3), np.float32), np.eye(4))
    image.header.set_intent("vector")
    nib.save(image, path)
    return path


def colours(path: Path) -> Path:
    array = np.zeros((5, 5, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def detached(path: Path) -> Path:
    itk(path)
    path.with_suffix(".raw").unlink(missing_ok=True)
    path.with_suffix(".zraw").unlink(missing_ok=True)
    return path


def flat(path: Path) -> Path:
    image = nib.Nifti1Image(NOISE, None)
    image.header["sform_code"] = 1
    nib.save(image, path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


BAD: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "missing": ("gone.nii.gz", lambda p: p, "does not exist"),
    "empty": ("empty.nii.gz", lambda p: text(p, ""), "is an empty file"),
    "unknown suffix": ("scan.docx", text, r"format is not known; use one of \.nii, .*or a folder of DICOM slices"),
    "no suffix": ("scan", text, "format is not known"),
    "text as nifti": ("scan.nii", text, "could not be read as NIfTI"),
    "text as gzip": ("scan.nii.gz", text, "could not be read as NIfTI"),
    "text as nrrd": ("scan.nrrd", text, "could not be read as NRRD or MetaImage"),
    "text as mha": ("scan.mha", text, "could not be read as NRRD or MetaImage"),
    "text as dicom": ("scan.dcm", text, "could not be read as DICOM"),
    "text as png": ("scan.png", text, "could not be read as a picture"),
    "text as tiff": ("scan.tif", text, "could not be read as TIFF"),
    "picture as nifti": ("scan.nii", lambda p: picture(p.with_suffix(".png")).rename(p), "read as NIfTI"),
    "nifti.gz cut": ("scan.nii.gz", lambda p: cut(nifti(p), 0.5), "could not be read as NIfTI"),
    "nifti.gz header cut": ("scan.nii.gz", lambda p: cut(nifti(p), 0.02), "could not be read as NIfTI"),
    "nifti cut": ("scan.nii", lambda p: cut(nifti(p), 0.5), "is cut short"),
    "png cut": ("scan.png", lambda p: cut(picture(p), 0.5), "could not be read as a picture"),
    "jpeg cut": ("scan.jpg", lambda p: cut(picture(p), 0.5), "could not be read as a picture"),
    "nrrd cut": ("scan.nrrd", lambda p: cut(itk(p), 0.5), "is cut short"),
    "mha cut": ("scan.mha", lambda p: cut(itk(p), 0.5), "is cut short"),
    "mhd without data": ("scan.mhd", detached, "could not be read as NRRD"),
    "tiff cut": ("scan.tif", lambda p: cut(stack(p), 0.5), "is cut short"),
    "tiff pages cut": ("scan.tif", lambda p: cut(stack(p, compression="zlib"), 0.5), "cut short|read as TIFF"),
    "NaN": ("scan.nii.gz", lambda p: poisoned(p, np.nan), "1 voxels are NaN or infinite"),
    "infinite": ("scan.nii", lambda p: poisoned(p, np.inf), "1 voxels are NaN or infinite"),
    "overflow": ("scan.nii", lambda p: nifti(p, NOISE.astype(float) * 1e300), "NaN or infinite"),
    "huge": ("scan.nii.gz", lambda p: header_only(p, (3000, 3000, 3000)), r"would take 100\.6 GiB"),
    "bomb": ("scan.nii.gz", lambda p: header_only(p, (1000, 1000, 1000)), "is cut short"),
    "time series": ("scan.nii.gz", lambda p: nifti(p, np.zeros((5, 5, 5, 20))), "series of 20 volumes"),
    "vectors": ("scan.nii.gz", vectors, "holds vector values"),
    "complex": ("scan.nii.gz", lambda p: nifti(p, NOISE.astype(np.complex64)), "holds complex numbers"),
    "colours": ("scan.nii.gz", colours, "holds colours"),
    "one axis": ("scan.nii", lambda p: nifti(p, np.zeros(9, np.float32)), "two or three axes"),
    "singular affine": ("scan.nii", flat, "singular affine"),
    "empty folder": ("folder", folder, "holds no DICOM images itself"),
}


def one_sentence(error: CeaseError, name: str) -> None:
    message = str(error)
    assert name in message
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 400
    assert "; " in message  # what is wrong, then what to do


@pytest.mark.parametrize("case", BAD)
def test_one_sentence(tmp_path, case):
    name, make, expected = BAD[case]
    path = make(tmp_path / name)
    with pytest.raises(CeaseError, match=expected) as caught:
        read_scan(path)
    one_sentence(caught.value, path.name.split(".")[0])


MASKS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "other shape": ("m.nii", lambda p: nifti(p, NOISE[..., 1:] * 0), r"\(9, 8, 6\), but scan has \(9, 8, 7\)"),
    "elsewhere": ("m.nii", lambda p: nifti(p, np.zeros((9, 8, 7), np.uint8), np.diag([1, 1, 1.1, 1])), "voxels away"),
    "fractions": ("m.nii", lambda p: nifti(p, NOISE), "must be whole numbers"),
    "negative": ("m.nii", lambda p: nifti(p, -np.ones((9, 8, 7), np.int16)), "must be whole numbers"),
    "NaN": ("m.nii", lambda p: poisoned(p, np.nan), "must be whole numbers"),
    "colours": ("m.png", picture, "is a colour picture, not a mask"),
    "slice": ("m.nii", lambda p: nifti(p, np.zeros((9, 8), np.uint8)), r"\(9, 8\), but scan has"),
    "missing": ("m.nii", lambda p: p, "does not exist"),
    "unknown": ("m.xyz", text, "format is not known"),
    "folder": ("m", folder, r"holds no DICOM segmentation; .* convert an RTSTRUCT to NIfTI first"),
}  # fmt: skip


@pytest.mark.parametrize("case", MASKS)
def test_masks_that_do_not_fit(tmp_path, case):
    scan = read_scan(nifti(tmp_path / "scan.nii"))
    name, make, expected = MASKS[case]
    path = make(tmp_path / name)
    with pytest.raises(CeaseError, match=expected) as caught:
        read_labels(path, scan)
    one_sentence(caught.value, path.name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no/such/folder/mask.nii.gz", "its folder does not exist"),
        ("file.txt/mask.nii.gz", "its folder is not a folder"),
        ("folder.nii.gz", "a folder of that name exists"),
        ("mask.xyz", "format is not known"),
        ("mask.mhd", r"choose \.nrrd or \.mha"),
        ("mask.jpg", r"choose \.png"),
        ("mask.png", "PNG holds one slice"),
        ("m" * 300 + ".nii.gz", "does not exist|its name is too long"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, name, expected):
    scan = read_scan(nifti(tmp_path / "scan.nii"))
    text(tmp_path / "file.txt")
    folder(tmp_path / "folder.nii.gz")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CeaseError, match=expected) as caught:
        write_labels(np.ones(scan.shape), scan, tmp_path / name)
    one_sentence(caught.value, Path(name).name)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".tif"])
def test_a_disk_that_fills_up_costs_nothing(tmp_path, suffix):
    """The limit on file size fails mid-write just as a full disk does."""
    scan = Scan(np.random.default_rng(0).normal(0, 1, (1, 40, 50, 60)).astype(np.float32), np.eye(4))
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(b"what I had")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CeaseError, match=f"mine{suffix} was not written") as caught:
            write_scan(scan.image, scan, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_sentence(caught.value, path.name)
    assert path.read_bytes() == b"what I had"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "not permitted"), (errno.EROFS, "read-only")],
)
def test_the_system_says_why(code, expected):
    assert expected in write_reason(OSError(code, "…"))


def test_labels_and_images_that_do_not_fit_the_scan(tmp_path):
    scan = read_scan(nifti(tmp_path / "scan.nii"))
    with pytest.raises(CeaseError, match="choose the labels"):
        write_labels(np.ones((2, 2, 2)), scan, tmp_path / "mask.nii")
    with pytest.raises(CeaseError, match="one channel axis"):
        write_scan(scan.image[0], scan, tmp_path / "again.nii")


def test_reading_never_runs_code_from_a_file(tmp_path):
    """A pickled object in place of voxels is refused, not loaded."""
    for name in ("scan.nii", "scan.png", "scan.tif", "scan.nrrd", "scan.dcm"):
        (tmp_path / name).write_bytes(pickle.dumps(_Runs()))
        with pytest.raises(CeaseError, match="could not be read"):
            read_scan(tmp_path / name)
    assert not RAN


RAN: list[str] = []


class _Runs:
    def __reduce__(self):
        return RAN.append, ("unpickled",)
