"""Input that cannot be used: exit code 2, one sentence that says what to do, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from .conftest import SAMPLES, Cease, Said

VOLUME = SAMPLES / "hippocampus_mri" / "images" / "hippocampus_243.nii.gz"
PICTURE = next(iter(sorted((SAMPLES / "polyp_hyperkvasir" / "images").glob("*.jpg"))))


def _refused(said: Said, *words: str) -> None:
    assert said.code == 2, said
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].endswith(".")
    for word in words:
        assert word in lines[0]


def test_missing_file(cease: Cease, tmp_path: Path) -> None:
    _refused(cease("attack", tmp_path / "no.nii.gz", "--model", "tiny-slice", "--out", tmp_path / "o"), "no.nii.gz")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("source", [VOLUME, PICTURE], ids=["nifti", "picture"])
def test_truncated_file(cease: Cease, tmp_path: Path, source: Path) -> None:
    cut = tmp_path / f"cut{''.join(source.suffixes)}"
    cut.write_bytes(source.read_bytes()[:2000])
    _refused(cease("attack", cut, "--model", "tiny-slice", "--out", tmp_path / "o"), cut.name)


def test_wrong_channels(cease: Cease, tmp_path: Path) -> None:
    _refused(cease("attack", PICTURE, "--model", "tiny-slice", "--out", tmp_path / "o"), "channel", "choose a model")


def test_labels_of_another_shape(cease: Cease, tmp_path: Path) -> None:
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), nib.load(VOLUME).affine), other)
    said = cease("attack", VOLUME, "--labels", other, "--model", "tiny-slice", "--out", tmp_path / "o")
    _refused(said, "(5, 6, 7)", "choose the labels")


def test_labels_with_a_class_that_the_model_does_not_know(cease: Cease, tmp_path: Path) -> None:
    other = tmp_path / "other.nii.gz"
    source = nib.load(VOLUME)
    nib.save(nib.Nifti1Image(np.full(source.shape, 7, np.uint8), source.affine), other)
    said = cease("attack", VOLUME, "--labels", other, "--model", "tiny-slice", "--out", tmp_path / "o")
    _refused(said, "class 7")


def test_constant_scan(cease: Cease, tmp_path: Path) -> None:
    flat = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.uint8), np.eye(4)), flat)
    _refused(cease("attack", flat, "--model", "tiny-slice", "--out", tmp_path / "o"), "same value")


def test_unknown_model_is_answered_with_the_known_ones(cease: Cease, tmp_path: Path) -> None:
    _refused(cease("attack", VOLUME, "--model", "nobody", "--out", tmp_path / "o"), "'nobody'", "tiny-slice")


@pytest.mark.parametrize("epsilon", ["nonsense", "8/0", "", "8/", "nan", "inf", "1,5", "8/255/2", "5mm", "8"])
def test_epsilon_nonsense(cease: Cease, tmp_path: Path, epsilon: str) -> None:
    said = cease("attack", VOLUME, "--model", "tiny-slice", "--epsilon", epsilon, "--out", tmp_path / "o")
    _refused(said, "epsilon", "8/255")
    assert not (tmp_path / "o").exists()


def test_epsilon_below_zero(cease: Cease, tmp_path: Path) -> None:
    _refused(cease("attack", VOLUME, "--model", "tiny-slice", "--epsilon=-8/255", "--out", tmp_path / "o"), "epsilon")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--attack", "magic"), "fgsm, bim, pgd"),
        (("--attack", "asma"), "give it a target mask"),
        (("--attack", "transfer"), "needs a second model"),
        (("--source", "tiny-volume"), "leave out --source"),
        (("--target", "moon"), "erase"),
        (("--set", "restarts"), "restarts=3"),
        (("--set", "restarts=many"), "restarts of PGD is 'many'"),
        (("--set", "colour=3"), "has no parameter 'colour'"),
        (("--attack", "fgsm", "--steps", "5"), "--steps"),
        (("--steps", "0"), "at least 1"),
        (("--norm", "l7"), "linf or l2"),
        (("--loss", "regret"), "soft_dice"),
        (("--device", "cuda:99"), "cease doctor"),
        (("--device", "abacus"), "cease doctor"),
        (("--slice", "5000"), "slices 0 to"),
        (("--slice", "-1"), "slices 0 to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_fit(cease: Cease, tmp_path: Path, options: tuple[str, ...], word: str) -> None:
    _refused(cease("attack", VOLUME, "--model", "tiny-slice", "--out", tmp_path / "o", *options), word)


def test_slice_of_a_picture(cease: Cease, tmp_path: Path) -> None:
    said = cease("attack", PICTURE, "--model", "tiny-picture", "--slice", 0, "--out", tmp_path / "o")
    _refused(said, "leave out --slice")


@pytest.mark.parametrize("below", ["", "inside"])
def test_out_that_cannot_be_written(cease: Cease, tmp_path: Path, below: str) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file", encoding="utf-8")
    _refused(cease("attack", VOLUME, "--model", "tiny-slice", "--out", taken / below), str(taken), "choose another")


def test_picture_of_unknown_format(cease: Cease, tmp_path: Path) -> None:
    gif = tmp_path / "film.gif"
    Image.new("L", (32, 32)).save(gif)
    _refused(cease("attack", gif, "--model", "tiny-slice", "--out", tmp_path / "o"), "film.gif")


def test_damaged_model(cease: Cease, tmp_path: Path, library: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "card.json").write_bytes((library / "tiny-slice" / "card.json").read_bytes())
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    _refused(cease("attack", VOLUME, "--model", folder, "--out", tmp_path / "o"), "model.safetensors", "damaged")


def test_config_with_a_wrong_entry(cease: Cease, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"name": "x"}), encoding="utf-8")
    _refused(cease("train", config, "--data", SAMPLES, "--out", tmp_path / "o"), "config.json", "correct that entry")
    _refused(cease("train", tmp_path / "none.json", "--data", SAMPLES, "--out", tmp_path / "o"), "none.json")
