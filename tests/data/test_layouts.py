"""Decathlon and nnU-Net folders become cases, and what is wrong with them is said in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cease_core.data import Case, ClassMap, describe, find_cases, inspect, load_case
from cease_core.errors import CeaseError

SAMPLES = Path(__file__).parents[2] / "sample_data"
PLACE = np.diag([2.0, 1.0, 1.0, 1.0])
RNG = np.random.default_rng(0)


def volume(path: Path, shape: tuple[int, ...] = (4, 5, 6), value: float | None = None, affine: Any = PLACE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = RNG.random(shape) if value is None else np.full(shape, value)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), path)
    return path


def manifest(folder: Path, **content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def decathlon(folder: Path, *names: str, **changes: Any) -> Path:
    for name in names:
        volume(folder / "imagesTr" / f"{name}.nii.gz")
        volume(folder / "labelsTr" / f"{name}.nii.gz", value=1)
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    content = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": listed,
    }
    return manifest(folder, **content | changes)


def nnunet(folder: Path, *names: str, channels: int = 1, **changes: Any) -> Path:
    for name in names:
        for c in range(channels):
            volume(folder / "imagesTr" / f"{name}_{c:04d}.nii.gz", value=c)
        volume(folder / "labelsTr" / f"{name}.nii.gz", value=1)
    content = {
        "channel_names": {str(c): f"T{c + 1}" for c in range(channels)},
        "labels": {"background": 0, "PZ": 1, "TZ": 2},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
    }
    return manifest(folder, **content | changes)


def test_a_decathlon_task_is_what_its_dataset_json_lists(tmp_path: Path) -> None:
    found = describe(decathlon(tmp_path, "b_2", "a_1"))
    assert (found.name, found.layout, found.classes) == ("Hippocampus", "decathlon", {1: "Anterior", 2: "Posterior"})
    first = Case("a_1", tmp_path / "imagesTr" / "a_1.nii.gz", tmp_path / "labelsTr" / "a_1.nii.gz")
    assert found.cases[0] == first
    assert [c.name for c in found.cases] == ["a_1", "b_2"]
    assert find_cases(tmp_path / "dataset.json") == list(found.cases)


def test_several_modalities_of_the_decathlon_are_volumes_of_one_file(tmp_path: Path) -> None:
    decathlon(tmp_path, "brain", modality={"0": "FLAIR", "1": "T1w"})
    volume(tmp_path / "imagesTr" / "brain.nii.gz", (4, 5, 6, 2))
    (case,) = find_cases(tmp_path)
    scan, labels = load_case(case)
    assert (scan.channels, scan.ndim) == (2, 3)
    assert labels.shape == scan.shape


def test_nnunet_version_2_is_read_from_its_folders(tmp_path: Path) -> None:
    found = describe(nnunet(tmp_path / "Dataset005_Prostate", "p_1", "p_0"))
    assert (found.name, found.layout, found.classes) == ("Dataset005_Prostate", "nnunet", {1: "PZ", 2: "TZ"})
    assert [(c.name, c.image.name, c.further) for c in found.cases] == [
        ("p_0", "p_0_0000.nii.gz", ()),
        ("p_1", "p_1_0000.nii.gz", ()),
    ]


def test_nnunet_version_1_lists_files_without_their_channel(tmp_path: Path) -> None:
    nnunet(tmp_path, "la_003", "la_004")
    for name in ("la_003", "la_004"):
        (tmp_path / "imagesTr" / f"{name}_0001.nii.gz").touch()
    listed = [{"image": "./imagesTr/la_003.nii.gz", "label": "./labelsTr/la_003.nii.gz"}]
    manifest(tmp_path, modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "heart"}, training=listed)
    found = describe(tmp_path)
    assert (found.layout, found.classes) == ("nnunet", {1: "heart"})
    (case,) = found.cases
    assert [p.name for p in (case.image, *case.further)] == ["la_003_0000.nii.gz", "la_003_0001.nii.gz"]


def test_channels_of_one_grid_are_stacked(tmp_path: Path) -> None:
    (case,) = find_cases(nnunet(tmp_path, "p", channels=3))
    scan, labels = load_case(case)
    assert scan.image.shape == (3, 4, 6, 5)  # the thickest axis, that of the slices, comes first
    assert scan.image[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert labels.shape == scan.shape
    assert scan.window.low == 0
    assert scan.window.high == 2


@pytest.mark.parametrize("wrong", [{"shape": (4, 5, 7)}, {"affine": PLACE + 0.1 * np.eye(4, k=3)}])
def test_channels_of_two_grids_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    nnunet(tmp_path, "p", channels=2)
    volume(tmp_path / "imagesTr" / "p_0001.nii.gz", **wrong)
    (case,) = find_cases(tmp_path)
    with pytest.raises(CeaseError, match=r"p_0001.nii.gz does not lie on the grid of p_0000.nii.gz .*resample"):
        load_case(case)


def test_a_colour_picture_holds_all_channels_of_nnunet(tmp_path: Path) -> None:
    for folder, name, mode in (("imagesTr", "road_0000.png", "RGB"), ("labelsTr", "road.png", "L")):
        (tmp_path / folder).mkdir()
        Image.new(mode, (4, 3)).save(tmp_path / folder / name)
    manifest(
        tmp_path, channel_names={"0": "R", "1": "G", "2": "B"}, labels={"background": 0, "road": 1}, file_ending=".png"
    )
    (case,) = find_cases(tmp_path)
    assert load_case(case)[0].channels == 3


def test_plain_folders_may_name_their_classes(tmp_path: Path) -> None:
    assert describe(SAMPLES / "heart_mr_hvsmr2").classes[5] == "AO"
    assert describe(SAMPLES / "polyp_hyperkvasir").classes == {}
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.png").touch()
    (tmp_path / "classes.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(CeaseError, match=r"classes.json does not name classes by their ids; write it as"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": []}, "dataset.json lists no cases"),
        ({"training": [{"image": "a.nii.gz"}]}, r"training.0.label: Field required; correct that entry"),
        ({"training": [{"image": "../a.nii.gz", "label": "a"}]}, "lists ../a.nii.gz, which lies outside its folder"),
        ({"training": [{"image": "/etc/hosts", "label": "a"}]}, "lists /etc/hosts, which lies outside its folder"),
        ({"training": [{"image": "x/../../a", "label": "a"}]}, "which lies outside its folder"),
        (
            {"training": [{"image": "a\0", "label": "b"}]},
            r"missing; copy them there, or correct dataset.json",
        ),
        (
            {"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}] * 2},
            "a: dataset.json lists it twice",
        ),
        ({"labels": {"whole": []}}, "the region 'whole' has no ids"),
        ({"labels": {"whole": [1, 2], "core": 2}}, r"regions share the id 2, .* as in --classes 1=1,2=1 for 'whole'"),
        ({"labels": {"bg": 0, "a": 1, "b": 1}}, "'a' and 'b' share the id 1"),
        ({"labels": {"a": "b"}}, "'a' has no id"),
        ({"labels": {"a": 1, "ignore": 3}}, r"ignored \(the id 3\) .*make them background with --classes 1=1,3=0"),
    ],
)
def test_a_wrong_decathlon_list_is_said(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    decathlon(tmp_path, "a", **changes)
    with pytest.raises(CeaseError, match=sentence):
        describe(tmp_path)


def test_every_case_with_a_missing_file_is_named(tmp_path: Path) -> None:
    decathlon(tmp_path, "a", "b", "c")
    for lost in ("labelsTr/b.nii.gz", "imagesTr/c.nii.gz", "labelsTr/c.nii.gz"):
        (tmp_path / lost).unlink()
    with pytest.raises(CeaseError) as refused:
        describe(tmp_path)
    assert str(refused.value).splitlines() == [
        f"{tmp_path} has 2 problems:",
        "  b: labelsTr/b.nii.gz is missing; copy it there, or correct dataset.json.",
        "  c: imagesTr/c.nii.gz and labelsTr/c.nii.gz are missing; copy them there, or correct dataset.json.",
    ]
    usable, findings = inspect(tmp_path)
    assert [c.name for c in usable.cases] == ["a"]
    assert [f.case for f in findings] == ["b", "c"]


def test_many_problems_are_counted_after_some(tmp_path: Path) -> None:
    decathlon(tmp_path, *(f"case_{i:02d}" for i in range(13)))
    for lost in (tmp_path / "labelsTr").iterdir():
        lost.unlink()
    with pytest.raises(CeaseError, match="has 13 problems:") as refused:
        describe(tmp_path)
    assert str(refused.value).splitlines()[-2:] == [
        "  case_09: labelsTr/case_09.nii.gz is missing; copy it there, or correct dataset.json.",
        "  and 3 more",
    ]


def test_regions_of_nnunet_that_do_not_overlap_are_classes(tmp_path: Path) -> None:
    nnunet(tmp_path, "p", labels={"background": 0, "kidney": [1, 3], "tumour": 2})
    volume(tmp_path / "labelsTr" / "p.nii.gz", value=3)
    found = describe(tmp_path)
    assert found.classes == {1: "kidney", 2: "tumour"}
    assert np.unique(load_case(found.cases[0])[1]).tolist() == [1]


def test_a_class_map_decides_on_overlapping_regions_and_ignored_voxels(tmp_path: Path) -> None:
    nnunet(tmp_path, "p", labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
    volume(tmp_path / "labelsTr" / "p.nii.gz", value=3)
    found = describe(tmp_path, ClassMap.read("1=1,2=1,3=0"))
    assert found.classes == {1: "whole"}
    assert not load_case(found.cases[0])[1].any()
    assert describe(tmp_path, ClassMap.read("1=0,2=1,3=0")).classes == {1: "core"}


@pytest.mark.parametrize("text", ["", "{", '{"training": [', "[" * 100_000, "\ud800"])
def test_a_damaged_dataset_json_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CeaseError, match=r"dataset.json is not valid JSON .*copy or write it again"):
        describe(tmp_path)


def test_a_dataset_json_of_another_kind_is_said(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(CeaseError, match="the whole file: Input should be a valid dictionary"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("removed", "changes", "sentence"),
    [
        ("labelsTr/p.nii.gz", {}, "p: the scan has no mask in labelsTr; add p.nii.gz there"),
        ("imagesTr/p_0000.nii.gz", {}, "p: imagesTr/p_0000.nii.gz is missing"),
        ("imagesTr/p_0001.nii.gz", {}, "p: imagesTr/p_0001.nii.gz is missing"),
        ("imagesTr/p_0001.nii.gz", {"file_ending": ".b2nd"}, "file_ending '.b2nd' cannot be read"),
        ("imagesTr/p_0001.nii.gz", {"file_ending": ".png"}, "hold no .png files; correct file_ending"),
    ],
)
def test_what_nnunet_lacks_is_said(tmp_path: Path, removed: str, changes: dict[str, Any], sentence: str) -> None:
    nnunet(tmp_path, "p", "q", channels=2, **changes)
    (tmp_path / removed).unlink()
    with pytest.raises(CeaseError, match=sentence):
        describe(tmp_path)


def test_nnunet_needs_its_folders(tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match="has no folder imagesTr"):
        describe(nnunet(tmp_path))


def test_links_out_of_the_folder_are_the_owners_choice(tmp_path: Path) -> None:
    decathlon(tmp_path / "set", "a")
    (tmp_path / "set" / "imagesTr").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "imagesTr").symlink_to(tmp_path / "elsewhere")
    assert [c.name for c in find_cases(tmp_path / "set")] == ["a"]
