"""`cease attack --frame` attacks one volume of a series, and writes volumes on the series' grid."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from .conftest import SAMPLES, Cease

VOLUME = SAMPLES / "hippocampus_mri" / "images" / "hippocampus_243.nii.gz"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """The sample and, as frame 1, the sample upside down in intensity."""
    image = nib.load(VOLUME)
    array = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.stack([array, array.max() - array], -1), image.affine), tmp_path / "series.nii.gz")
    return tmp_path / "series.nii.gz"


def test_the_frame_alone_is_attacked(cease: Cease, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = cease(
        "attack", series, "--model", "tiny-volume", "--attack", "fgsm", "--frame", 1, "--device", "cpu", "--out", out
    )
    assert said.code == 0, said.err
    report = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert report["scan"]["name"] == "series, frame 1"
    source = nib.load(series)
    for name in report["files"].values():
        written = nib.load(out / name)
        assert written.shape == source.shape[:3]
        np.testing.assert_array_equal(written.affine, source.affine)
    changed = np.asarray(nib.load(out / report["files"]["adversarial"]).dataobj) - source.dataobj[..., 1]
    np.testing.assert_allclose(np.abs(changed).max(), report["epsilon"]["in_unit"], rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [((), "series of 2 volumes; choose one with frame=0 to frame=1 (--frame"), (("--frame", 2), "has frames 0 to 1")],
)
def test_a_frame_that_is_not_there_is_one_sentence(
    cease: Cease, series: Path, tmp_path: Path, options: tuple[object, ...], sentence: str
) -> None:
    said = cease("attack", series, "--model", "tiny-volume", "--out", tmp_path / "out", *options)
    assert said.code != 0
    assert sentence in " ".join(said.err.split())
    assert not (tmp_path / "out").exists()
