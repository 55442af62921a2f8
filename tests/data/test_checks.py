"""Each thing that can be wrong with a data set is found, and a sound one has no findings."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cease_core.data import Case, ClassMap, Dataset, Finding, Split, check, describe, find_cases, survey
from cease_core.data.survey import Facts, Unreadable, summarise

SAMPLES = Path(__file__).parents[2] / "sample_data"


class Folder:
    """A plain folder of small grey pictures, filled by a test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for kind in ("images", "labels"):
            (root / kind).mkdir()

    def add(self, name: str, image: np.ndarray | int | None = None, mask: np.ndarray | int = 1) -> Folder:
        """A case; numbers fill the whole image or mask but its first pixel, None is noise."""
        pixels = np.random.default_rng(len(self.cases)).integers(0, 256, (6, 8)) if image is None else image
        for kind, values in (("images", pixels), ("labels", mask)):
            array = np.full((6, 8), values) if np.ndim(values) == 0 else np.asarray(values)
            if kind == "labels":
                array[0, 0] = 0
            Image.fromarray(array.astype(np.uint8)).save(self.root / kind / f"{name}.png")
        return self

    @property
    def cases(self) -> list[Case]:
        return find_cases(self.root) if any((self.root / "images").iterdir()) else []

    def check(self, classes: dict[int, str] | None = None, split: Split | None = None) -> list[Finding]:
        return check(Dataset("pictures", "folders", tuple(self.cases), classes or {}), split=split)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["polyp_hyperkvasir", "cardiac_mr_sunnybrook", "nuclei_histology", "hippocampus_mri", "fundus_idrid"]
)
def test_the_samples_are_sound(name: str) -> None:
    assert check(describe(SAMPLES / name)) == []


def test_a_scan_or_mask_that_cannot_be_read_is_an_error(folder: Folder) -> None:
    folder.add("a").add("b").add("c")
    (folder.root / "images" / "a.png").write_bytes(b"damaged")
    Image.new("L", (3, 3)).save(folder.root / "labels" / "b.png")
    first, second = folder.check()
    assert (first.severity, first.case) == ("error", "a")
    assert "could not be read" in first.message
    assert (second.severity, second.case) == ("error", "b")
    assert "the mask has shape (3, 3)" in second.message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_an_error(tmp_path: Path, value: float) -> None:
    voxels = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    nib.save(nib.Nifti1Image(np.ones_like(voxels), np.eye(4)), tmp_path / "labels" / "a.nii")
    voxels[0, 0, 0] = value
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "images" / "a.nii")
    (finding,) = check(find_cases(tmp_path))
    assert (finding.severity, finding.case) == ("error", "a")
    assert "1 voxels are NaN or infinite" in finding.message


def test_a_constant_image_is_an_error(folder: Folder) -> None:
    (finding,) = folder.add("a").add("flat", image=7).add("grey", image=None).check()
    assert finding == Finding(
        "error", "flat", "every voxel of the image has the same value; replace it or leave it out."
    )


def test_an_empty_mask_is_a_warning(folder: Folder) -> None:
    (finding,) = folder.add("a").add("b", mask=0).check()
    assert (finding.severity, finding.case) == ("warning", "b")
    assert "the mask is empty" in finding.message


def test_the_odd_one_out_is_an_error(folder: Folder) -> None:
    colours = np.random.default_rng(9).integers(0, 256, (6, 8, 3))
    (finding,) = folder.add("a").add("b").add("colour", image=colours).check()
    assert (finding.severity, finding.case) == ("error", "colour")
    assert "is 2-D with 3 channels, but 2 of the 3 cases are 2-D with 1 channel;" in finding.message


def test_gaps_in_the_class_ids_are_an_error(folder: Folder) -> None:
    (finding,) = folder.add("a", mask=1).add("b", mask=4).check()
    assert (finding.severity, finding.case) == ("error", "")
    assert "class ids are 1, 4, but not 2" in finding.message


@pytest.mark.parametrize(("held", "proposed"), [((255,), "255=1"), ((1, 2, 4), "1=1,2=2,4=3")])
def test_ids_with_gaps_come_with_the_map_that_closes_them(tmp_path: Path, held: tuple[int, ...], proposed: str) -> None:
    for kind, voxels in (("images", np.random.default_rng(0).random((3, 4, 5))), ("labels", np.zeros((3, 4, 5)))):
        (tmp_path / kind).mkdir()
        if kind == "labels":
            voxels.flat[: len(held)] = held
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), tmp_path / kind / "a.nii")
    (finding,) = check(describe(tmp_path))
    assert finding.message.endswith(f"say which ids make them up, as in --classes {proposed}.")
    assert check(describe(tmp_path, ClassMap.read(proposed))) == []


@pytest.mark.parametrize(("coarse", "told"), [(1.9, False), (2.1, True)])
def test_voxels_of_very_different_sizes_are_a_warning(tmp_path: Path, coarse: float, told: bool) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("a", 1.0), ("b", coarse)):
        voxels = rng.random((4, 5, 6)).astype(np.float32)
        for kind, values in (("images", voxels), ("labels", (voxels > 0.5).astype(np.float32))):
            (tmp_path / kind).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.diag([1, 1, 3 * size, 1])), tmp_path / kind / f"{name}.nii")
    findings = check(find_cases(tmp_path))
    assert len(findings) == int(told)
    if told:
        assert findings[0].severity == "warning"
        assert "voxels of 3-D cases measure from 3 mm (a) to 6.3 mm (b)" in findings[0].message


def test_ids_beyond_the_named_classes_are_an_error(folder: Folder) -> None:
    folder.add("a", mask=1).add("b", mask=4)
    error, warning = folder.check({1: "liver", 2: "spleen"})
    assert (error.severity, error.case) == ("error", "b")
    assert "class ids without a name: 4" in error.message
    assert (warning.severity, warning.case) == ("warning", "")
    assert "no case holds class 2 (spleen)" in warning.message


def test_equal_images_are_a_warning_and_across_a_split_an_error(folder: Folder) -> None:
    image = np.random.default_rng(5).integers(0, 256, (6, 8))
    folder.add("a", image=image).add("b").add("c", image=image)
    (finding,) = folder.check()
    assert (finding.severity, finding.case) == ("warning", "a")
    assert "the same as that of c" in finding.message
    a, b, c = folder.cases
    (together,) = folder.check(split=Split((a, c), (b,)))
    assert together.severity == "warning"
    (apart,) = folder.check(split=Split((a, b), (), (c,)))
    assert (apart.severity, apart.case) == ("error", "a")
    assert "on several sides of the split (test, training)" in apart.message


def test_names_that_look_like_slices_of_patients_are_a_warning(folder: Folder) -> None:
    folder.add("10_1").add("10_2").add("11_1")
    (finding,) = folder.check()
    assert finding.severity == "warning"
    assert "the names of 2 cases start with 10" in finding.message
    known = [Case(c.name, c.image, c.labels, patient=c.name[:2]) for c in folder.cases]
    assert check(known) == []


def test_errors_come_first(folder: Folder) -> None:
    findings = folder.add("a", mask=0).add("b", image=3).check()
    assert [f.severity for f in findings] == ["error", "warning"]


def test_a_summary_counts_what_is_there(folder: Folder) -> None:
    half = np.array([[0] * 8] * 3 + [[2] * 8] * 3)
    folder.add("a", image=10 * np.ones((6, 8), int), mask=half).add("b", image=30 * np.ones((6, 8), int), mask=0)
    (folder.root / "images" / "c.png").touch()
    (folder.root / "labels" / "c.png").touch()
    surveyed = list(survey(folder.cases))
    assert [type(s) for s in surveyed] == [Facts, Facts, Unreadable]
    summary = summarise(Dataset("pictures", "folders", tuple(folder.cases), {1: "one"}), surveyed)
    assert (summary.cases, summary.patients, summary.unreadable) == (3, 3, 1)
    assert (summary.ndim, summary.channels, summary.units, summary.length_unit) == ((2,), (1,), ("8-bit",), "pixel")
    assert summary.shape == ((6, 6), (8, 8))
    assert summary.percentiles == ((10, 20, 30),)
    assert [(c.id, c.name, c.share, c.cases) for c in summary.classes] == [
        (0, "background", 0.75, 2),
        (1, "one", 0, 0),
        (2, "", 0.25, 1),
    ]


def test_ranges_span_all_cases() -> None:
    dataset = describe(SAMPLES / "hippocampus_mri")
    summary = summarise(dataset, list(survey(dataset.cases)))
    sizes = [nib.load(c.image).shape[::-1] for c in dataset.cases]
    assert sorted(summary.shape) == sorted((min(s), max(s)) for s in zip(*sizes, strict=True))
    assert summary.spacing == ((1, 1),) * 3
