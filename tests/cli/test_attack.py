"""`cease attack` on sample scans: files that overlay the scan, and figures that agree with the files."""

from __future__ import annotations

import _thread
import json
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from cease_core.cli.epsilon import Epsilon
from cease_core.evaluation import distortion
from cease_core.io import read_labels, read_scan
from cease_core.models import load_model, prepare

from .conftest import SAMPLES, Cease

HIPPOCAMPUS = SAMPLES / "hippocampus_mri"
VOLUME = HIPPOCAMPUS / "images" / "hippocampus_243.nii.gz"
VOLUME_LABELS = HIPPOCAMPUS / "labels" / "hippocampus_243.nii.gz"
CT = SAMPLES / "ct_body_totalseg" / "images" / "example_ct.nii.gz"
PICTURE = next(iter(sorted((SAMPLES / "polyp_hyperkvasir" / "images").glob("*.jpg"))))
PICTURE_LABELS = SAMPLES / "polyp_hyperkvasir" / "labels" / f"{PICTURE.stem}.png"


def _report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = a.sum() + b.sum()
    return 1.0 if total == 0 else 2 * (a & b).sum() / total


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_volume_files_overlay_the_scan_and_hold_the_reported_figures(
    cease: Cease, tmp_path: Path, attack: str, norm: str
) -> None:
    steps = ("--steps", 3) if attack == "pgd" else ()
    said = cease(
        "attack", VOLUME, "--model", "tiny-volume", "--labels", VOLUME_LABELS, "--attack", attack, "--norm", norm,
        "--loss", "soft_dice", "--epsilon", "8/255", "--device", "cpu", "--out", tmp_path, *steps,
    )  # fmt: skip
    assert said.code == 0, said.err
    report = _report(tmp_path)
    source = nib.load(VOLUME)
    for name in report["files"].values():
        written = nib.load(tmp_path / name)
        assert written.shape == source.shape
        np.testing.assert_array_equal(written.affine, source.affine)

    files = {key: np.asarray(nib.load(tmp_path / name).dataobj) for key, name in report["files"].items()}
    clean = np.asarray(source.dataobj, np.float32)
    labels = np.asarray(nib.load(VOLUME_LABELS).dataobj)
    width = report["window"]["high"] - report["window"]["low"]
    delta = (files["adversarial"] - clean) / width
    figures = report["distortion"]
    assert figures["linf"] == pytest.approx(np.abs(delta).max(), rel=1e-4)
    assert figures["rms"] == pytest.approx(np.sqrt(np.mean(delta**2)), rel=1e-4)
    assert figures["psnr"] == pytest.approx(-20 * math.log10(np.sqrt(np.mean(delta**2))), rel=1e-4)
    np.testing.assert_allclose(files["perturbation"] / width, delta, atol=1e-6)
    reached = figures["linf"] if norm == "linf" else figures["rms"]
    assert 0 < reached <= report["epsilon"]["fraction"] * (1 + 1e-5)
    assert report["epsilon"]["in_unit"] == pytest.approx(8 / 255 * width)
    for row in report["classes"]:
        reference = labels == row["id"]
        assert row["clean_dice"] == pytest.approx(_dice(files["clean_mask"] == row["id"], reference))
        assert row["attacked_dice"] == pytest.approx(_dice(files["attacked_mask"] == row["id"], reference))
    assert np.mean([r["attacked_dice"] for r in report["classes"]]) <= np.mean(
        [r["clean_dice"] for r in report["classes"]]
    )
    assert report["reference"] == "labels"
    assert report["attack"]["name"] == attack
    assert report["cancelled"] is False
    assert report["gradients"] == (3 if attack == "pgd" else 1)


def test_model_finds_the_reported_mask_on_the_written_scan(cease: Cease, tmp_path: Path, library: Path) -> None:
    assert cease("attack", VOLUME, "--model", library / "tiny-slice", "--attack", "fgsm", "--out", tmp_path).code == 0
    report = _report(tmp_path)
    adversarial, clean = read_scan(tmp_path / "adversarial.nii.gz"), read_scan(VOLUME)
    model = prepare(load_model(library / "tiny-slice"))
    low, high = report["window"]["low"], report["window"]["high"]
    with torch.no_grad():
        slices = torch.from_numpy((adversarial.image[0] - np.float32(low)) / np.float32(high - low)).unsqueeze(1)
        mask = torch.cat([model(s.unsqueeze(0)) for s in slices]).argmax(dim=1).numpy()
    written = read_labels(tmp_path / "attacked_mask.nii.gz", like=clean)
    assert np.mean(mask != written) < 1e-3  # a voxel on the fence may fall either way in another batch
    assert report["reference"] == "the model's own clean mask"
    assert all(row["clean_dice"] == 1 for row in report["classes"])


def test_slice_leaves_the_rest_of_the_scan_bit_identical(cease: Cease, tmp_path: Path) -> None:
    said = cease(
        "attack", CT, "--model", "tiny-ct", "--slice", 40, "--epsilon", "20HU", "--steps", 2, "--out", tmp_path
    )
    assert said.code == 0, said.err
    report = _report(tmp_path)
    assert report["epsilon"] == {"given": "20HU", "fraction": 0.05, "in_unit": 20.0, "unit": "HU"}
    before, after = read_scan(CT).image[0], read_scan(tmp_path / "adversarial.nii.gz").image[0]
    changed = np.unique(np.nonzero(before != after)[0])
    assert changed.tolist() == [40]
    assert np.abs(after - before).max() == pytest.approx(20, rel=1e-4)
    assert report["slice"] == 40


def test_picture_comes_back_as_png_with_the_exact_perturbation_beside_it(cease: Cease, tmp_path: Path) -> None:
    said = cease(
        "attack", PICTURE, "--model", "tiny-picture", "--labels", PICTURE_LABELS, "--attack", "fgsm",
        "--epsilon", "8 levels", "--out", tmp_path,
    )  # fmt: skip
    assert said.code == 0, said.err
    report = _report(tmp_path)
    clean = np.asarray(Image.open(PICTURE).convert("RGB"), np.float32)
    exact = np.moveaxis(read_scan(tmp_path / "perturbation.tif").image, 0, -1)
    assert np.abs(exact).max() == pytest.approx(report["distortion"]["linf_in_unit"], rel=1e-4)
    rounded = np.clip(np.rint(clean + exact), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "adversarial.png")), rounded)
    shown = np.asarray(Image.open(tmp_path / "perturbation.png"), np.float32)
    np.testing.assert_array_equal(shown - 128, np.rint(exact))
    scan = read_scan(PICTURE)
    images = torch.from_numpy(scan.image / 255).unsqueeze(0)
    attacked = torch.from_numpy((scan.image + np.moveaxis(exact, -1, 0)) / 255).unsqueeze(0)
    assert report["distortion"]["ssim"] == pytest.approx(distortion(images, attacked).ssim, abs=1e-5)
    mask = np.asarray(Image.open(tmp_path / "attacked_mask.png"))
    labels = read_labels(PICTURE_LABELS, like=scan)
    assert report["classes"][0]["attacked_dice"] == pytest.approx(_dice(mask == 1, labels == 1))


def test_epsilon_zero_changes_nothing(cease: Cease, tmp_path: Path) -> None:
    assert cease("attack", VOLUME, "--model", "tiny-volume", "--epsilon", "0", "--out", tmp_path).code == 0
    report = _report(tmp_path)
    assert report["distortion"] == {"linf": 0.0, "linf_in_unit": 0.0, "rms": 0.0, "psnr": None, "ssim": 1.0}
    np.testing.assert_array_equal(read_scan(tmp_path / "adversarial.nii.gz").image, read_scan(VOLUME).image)


def test_seed_decides_the_result(cease: Cease, tmp_path: Path) -> None:
    deltas = []
    for run, seed in (("a", 3), ("b", 3), ("c", 4)):
        options = ("--steps", 1, "--seed", seed, "--slice", 10)
        assert cease("attack", VOLUME, "--model", "tiny-slice", *options, "--out", tmp_path / run).code == 0
        deltas.append(read_scan(tmp_path / run / "perturbation.nii.gz").image)
    np.testing.assert_array_equal(deltas[0], deltas[1])
    assert (deltas[0] != deltas[2]).any()


def test_ctrl_c_writes_the_best_so_far(cease: Cease, tmp_path: Path) -> None:
    usual = signal.getsignal(signal.SIGINT)

    def press() -> None:
        deadline = time.monotonic() + 60
        while signal.getsignal(signal.SIGINT) is usual and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        _thread.interrupt_main()

    presser = threading.Thread(target=press)
    presser.start()
    said = cease(
        "attack", VOLUME, "--model", "tiny-slice", "--slice", 10, "--steps", 1_000_000, "--out", tmp_path
    )  # fmt: skip
    presser.join()
    assert said.code == 130
    assert "Stopped by Ctrl-C" in said.err
    report = _report(tmp_path)
    assert report["cancelled"] is True
    assert 0 < report["gradients"] < 1_000_000
    assert (tmp_path / "adversarial.nii.gz").is_file()
    assert signal.getsignal(signal.SIGINT) is usual


@pytest.mark.parametrize(
    ("text", "epsilon"),
    [
        ("8/255", Epsilon(8 / 255)),
        ("0.03", Epsilon(0.03)),
        (" 1e-2 ", Epsilon(0.01)),
        (".5", Epsilon(0.5)),
        ("20HU", Epsilon(20, "HU")),
        ("2.5 a.u.", Epsilon(2.5, "a.u.")),
    ],
)
def test_epsilon_is_read_as_people_write_it(text: str, epsilon: Epsilon) -> None:
    assert Epsilon.parse(text) == epsilon


def test_models_are_listed_by_name(cease: Cease, library: Path) -> None:
    said = cease("models", "--json")
    assert said.code == 0
    listed = {row["name"]: row for row in json.loads(said.out)}
    assert {"tiny-picture", "tiny-slice", "tiny-volume", "tiny-ct"} <= listed.keys()
    assert listed["tiny-slice"]["classes"] == ["part 1", "part 2"]
    assert listed["tiny-slice"]["folder"] == str(library / "tiny-slice")
    table = cease("models").out
    assert all(name in table for name in listed)
