"""Lists of cases, and masks whose ids are not those of the model, through every command that takes labels."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from cease_core.data import find_cases, read_split
from cease_core.evaluation.audit import load_audit

from .conftest import Cease

SMALL = ("--model", "unet", "--set", "architecture_args.channels=[4, 8]", "--set", "batch_size=2", "--epochs", 1)
FEW = ("--epsilons", "8/255", "--set", "steps=2", "--set", "longer=3", "--set", "restarts=1", "--set", "queries=2")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of six NIfTI slices with a bright square each, which their masks call 255; two train, two validate."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    lines = ["image,labels,split"]
    for i, side in enumerate(("training", "validation", "test") * 2):
        mask = np.zeros((24, 24), np.int16)
        mask[4 + i : 14 + i, 6:16] = 255
        image = rng.normal(0, 20, mask.shape) + 150 * (mask > 0)
        for kind, values in (("scan", image.astype(np.float32)), ("mask", mask)):
            nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"{kind}_{i}.nii")
        lines.append(f"scan_{i}.nii,mask_{i}.nii,{side}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "cases.csv"


def dice(folder: Path) -> list[float]:
    report = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return [row["clean_dice"] for row in report["classes"]]


def test_an_attack_asks_what_the_ids_mean_and_takes_the_answer(cease: Cease, cases: Path, tmp_path: Path) -> None:
    scan, mask = cases.parent / "scan_0.nii", cases.parent / "mask_0.nii"
    command = ["attack", scan, "--model", "tiny-ct", "--attack", "fgsm", "--labels"]
    said = cease(*command, mask, "--out", tmp_path / "none")
    assert said.code == 2
    assert "unknown class 255, but Tiny-Ct knows 0 background, 1 part 1" in said.err
    assert "in another numbering, add --classes 255=1," in said.err
    said = cease(*command, mask, "--out", tmp_path / "mapped", "--classes", "255=1")
    assert said.code == 0, said.err
    image = nib.load(mask)
    plain = tmp_path / "plain.nii"
    nib.save(nib.Nifti1Image((image.get_fdata() > 0).astype(np.int16), image.affine), plain)
    assert cease(*command, plain, "--out", tmp_path / "plain").code == 0
    assert dice(tmp_path / "mapped") == dice(tmp_path / "plain")
    said = cease(*command, plain, "--target", mask, "--classes", "1=1,255=1", "--out", tmp_path / "target")
    assert said.code == 0, said.err


@pytest.mark.parametrize("model", ["tiny-slice"])
def test_ids_that_could_mean_several_things_are_not_guessed(
    cease: Cease, cases: Path, tmp_path: Path, model: str
) -> None:
    command = ["attack", cases.parent / "scan_0.nii", "--model", model, "--labels", cases.parent / "mask_0.nii"]
    said = cease(*command, "--out", tmp_path / "none")
    assert said.code == 2
    assert "say with --classes which class each id becomes, as in --classes 255=0 to drop it" in said.err


def test_a_class_map_that_is_none_is_said(cease: Cease, cases: Path) -> None:
    for command in (["data", cases], ["train", "--data", cases, "--dry-run"]):
        said = cease(*command, "--classes", "lesion")
        assert said.code == 2
        assert "--classes: 'lesion' is not understood; write id=class, as in 1=1,2=1,4=2" in said.err


def test_data_shows_the_ids_and_proposes_a_map(cease: Cease, cases: Path) -> None:
    said = cease("data", cases, "--check")
    assert said.code == 1
    assert "cases (list of cases)" in said.out
    lines = [line.split() for line in said.out.splitlines()]
    assert any(line[:2] == ["255", "unnamed"] for line in lines)
    assert any(line[:1] == ["validation"] for line in lines)
    assert "1 error\nerror: class ids are 255, but not 1;" in said.out
    assert "as in --classes 255=1." in said.out
    said = cease("data", cases, "--check", "--classes", "255=1")
    assert said.code == 0, said.out
    assert ["class", "map", "255=1"] in [line.split() for line in said.out.splitlines()]
    assert "Nothing is wrong with these cases." in said.out


def test_all_problems_are_listed_at_once(cease: Cease, cases: Path, tmp_path: Path) -> None:
    folder = cases.parent
    broken = tmp_path / "broken.csv"
    lines = ["image,labels", "none.nii,none.nii"]
    lines += [f"{folder}/scan_{i}.nii,{folder}/mask_{i}.nii" for i in range(3)]
    np.save(tmp_path / "odd.npy", np.zeros(3))
    nib.save(nib.Nifti1Image(np.full((24, 24), 0.5, np.float32), np.eye(4)), tmp_path / "soft.nii")
    lines.append(f"{folder}/scan_3.nii,soft.nii")
    lines.append(f"{folder}/scan_4.nii,odd.npy")
    broken.write_text("\n".join(lines), encoding="utf-8")
    said = cease("data", broken, "--check", "--classes", "255=1")
    assert said.code == 1
    told = said.out[said.out.index("4 errors\n") :].splitlines()
    assert told[1].startswith("error: line 2: image 'none.nii' does not exist;")
    assert told[2].startswith("error: line 2: labels 'none.nii' does not exist;")
    assert told[3].startswith("error: scan_3: soft.nii: class ids must be whole numbers")
    assert told[4].startswith("error: scan_4: odd.npy cannot be read")
    refused = cease("data", broken)
    assert refused.code == 2
    assert "broken.csv has 2 problems:\n  line 2: image 'none.nii'" in refused.err


def test_training_keeps_the_split_of_a_list_and_says_how_to_read_the_masks(
    cease: Cease, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    refused = cease("train", "--data", cases, "--out", out)
    assert refused.code == 2
    assert "the masks hold the class ids 255;" in refused.err
    assert "map them, as with --classes 255=1." in refused.err
    refused = cease("train", "--data", cases, "--classes", "255=1", "--validation", 0.5, "--out", out)
    assert refused.code == 2
    assert "says which side each case is on; leave out --validation" in refused.err

    said = cease("train", "--data", cases, "--classes", "255=1", "--preset", "none", "--out", out, *SMALL)
    assert said.code == 0, said.err
    config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    assert (config["data"]["map"], config["mode"]) == ("255=1", "binary")
    sides = read_split(out / "split.json", find_cases(cases)).sides
    assert {side: [c.name for c in kept] for side, kept in sides.items()} == {
        "training": ["scan_0", "scan_3"],
        "validation": ["scan_1", "scan_4"],
        "test": ["scan_2", "scan_5"],
    }
    proposed = shlex.split(said.out.splitlines()[-1].removeprefix("Attack it: cease "))
    assert proposed[-2:] == ["--classes", "255=1"]
    assert cease(*proposed, "--attack", "fgsm").code == 0
    again = cease("train", "--out", out, "--resume")
    assert again.code == 0, again.err
    written = cease("train", out / "config.yaml", "--data", cases.parent, "--dry-run")
    assert written.code == 0, written.err
    assert "2 training, 2 validation, 2 test" in written.err


def test_an_audit_takes_the_test_side_of_a_list(cease: Cease, cases: Path, tmp_path: Path) -> None:
    command = ["audit", "tiny-ct", "--data", cases, "--out", tmp_path, *FEW]
    assert "add --classes 255=1" in cease(*command).err
    said = cease(*command, "--classes", "255=1")
    assert said.code == 0, said.err
    assert sorted(load_audit(tmp_path).facts["cases"]) == ["scan_2", "scan_5"]
    other = cease(*command, "--classes", "255=0")
    assert other.code == 2
    assert "files of the cases" in other.err
