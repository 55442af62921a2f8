"""`cease attack` with targets, regions and other parameters; `cease attacks` lists what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cease_core.attacks import ATTACKS, LOSSES
from cease_core.attacks.targets import TARGETS

from .conftest import SAMPLES, Cease

HIPPOCAMPUS = SAMPLES / "hippocampus_mri"
VOLUME = HIPPOCAMPUS / "images" / "hippocampus_243.nii.gz"
LABELS = HIPPOCAMPUS / "labels" / "hippocampus_243.nii.gz"


def _report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def _attack(cease: Cease, out: Path, *options: object) -> dict[str, Any]:
    said = cease(
        "attack", VOLUME, "--model", "tiny-volume", "--labels", LABELS, "--device", "cpu", "--out", out, *options
    )
    assert said.code == 0, said.err
    return _report(out)


@pytest.mark.parametrize("target", ["erase", LABELS], ids=["by name", "from a file"])
def test_a_target_is_approached_and_reported(cease: Cease, tmp_path: Path, target: str | Path) -> None:
    one = _attack(cease, tmp_path / "one", "--target", target, "--steps", 1)
    many = _attack(cease, tmp_path / "many", "--target", target, "--steps", 6)
    assert one["target"] == many["target"] == str(target)
    assert many["target_dice"] >= one["target_dice"]
    untargeted = _attack(cease, tmp_path / "none", "--steps", 1)
    assert untargeted["target"] is None
    assert untargeted["target_dice"] is None


def test_outside_the_region_the_file_is_the_scan(cease: Cease, tmp_path: Path) -> None:
    image = nib.load(VOLUME)
    region = np.zeros(image.shape, np.uint8)
    region[5:15, 5:20, 8:20] = 1
    nib.save(nib.Nifti1Image(region, image.affine), tmp_path / "region.nii.gz")
    report = _attack(cease, tmp_path / "out", "--region", tmp_path / "region.nii.gz", "--steps", 2)
    assert report["region"] == "region.nii.gz"
    change = np.asarray(nib.load(tmp_path / "out" / "perturbation.nii.gz").dataobj)
    assert not change[region == 0].any()
    assert change[region == 1].any()


def test_other_parameters_reach_the_attack(cease: Cease, tmp_path: Path) -> None:
    report = _attack(cease, tmp_path, "--steps", 2, "--set", "restarts=3", "--set", "step_size=0.01")
    assert report["attack"]["restarts"] == 3
    assert report["attack"]["step_size"] == 0.01
    assert report["gradients"] == 6


def test_transfer_names_its_source(cease: Cease, tmp_path: Path) -> None:
    report = _attack(cease, tmp_path, "--attack", "transfer", "--source", "tiny-volume")
    assert report["attack"]["source"] == "tiny-volume"
    assert report["attack"]["inner"]["attack"] == "mifgsm"


def test_every_attack_loss_and_target_is_listed(cease: Cease) -> None:
    told = json.loads(cease("attacks", "--json").out)
    assert [row["name"] for row in told["attacks"]] == list(ATTACKS)
    assert told["losses"] == list(LOSSES)
    assert told["targets"] == list(TARGETS)
    table = cease("attacks").out
    assert all(name in table for name in (*ATTACKS, *LOSSES, *TARGETS))


def test_a_transferred_volume_goes_through_the_source_slice_by_slice(cease: Cease, tmp_path: Path) -> None:
    report = _attack(cease, tmp_path, "--model", "tiny-slice", "--attack", "transfer", "--source", "tiny-slice")
    assert report["attack"]["source"] == "tiny-slice"
    assert report["slice"] is None


def test_a_source_that_sees_scans_otherwise_is_refused(cease: Cease, tmp_path: Path) -> None:
    said = cease(
        "attack", VOLUME, "--model", "tiny-volume", "--out", tmp_path / "out", "--attack", "transfer",
        "--source", "tiny-ct", "--device", "cpu",
    )  # fmt: skip
    assert said.code == 2
    assert "differ in channels, classes or intensity window" in said.err
    assert not (tmp_path / "out").exists()


def test_a_minimal_attack_says_how_little_is_enough(cease: Cease, tmp_path: Path) -> None:
    arguments = ("attack", VOLUME, "--model", "tiny-volume", "--attack", "bisection", "--device", "cpu")
    said = cease(*arguments, "--out", tmp_path / "own", "--set", "tolerance=0.01")
    report = _report(tmp_path / "own")
    # Its own cap, not the other attacks' ε.
    assert report["epsilon"]["given"] is None
    assert report["epsilon"]["fraction"] == pytest.approx(32 / 255)
    assert report["minimal"]["success"]
    assert report["minimal"]["fraction"] == pytest.approx(report["distortion"]["linf"], rel=1e-4)
    assert "smallest epsilon that breaks the mask" in said.out
    said = cease(*arguments, "--out", tmp_path / "tiny", "--epsilon", "0.00001")
    assert _report(tmp_path / "tiny")["minimal"] == {"success": False, "fraction": None, "in_unit": None}
    assert "does not break within epsilon" in said.out
