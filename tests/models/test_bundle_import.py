"""MONAI bundles: the same logits as in MONAI, an attack that works, and nothing of a bundle that is run."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai_bundles import (
    CT_RANGE,
    LOAD,
    SIGMOID,
    SOFTMAX,
    UNET,
    WINDOWS,
    by_monai,
    by_us,
    network_of,
    store,
    write_bundle,
)

from cease_core.attacks import PGD
from cease_core.attacks.on_scan import pose_on_scan
from cease_core.errors import CeaseError
from cease_core.io import read_scan
from cease_core.models import ForeignModel, WindowRule
from cease_core.models.foreign.bundle import draft_bundle
from cease_core.models.foreign.drafts import Choices
from cease_core.models.foreign.spec import Clip, Percentiles, Scale, Standardise
from cease_core.models.foreign.trial import try_model

SAMPLES = Path(__file__).parents[2] / "sample_data"

ORIENT = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
SPACE = {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.5, 3.0], "mode": "bilinear"}
NORMALISE = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True}
SCALE = {"_target_": "ScaleIntensityd", "keys": "image"}
PERCENTILES = {
    "_target_": "ScaleIntensityRangePercentilesd",
    "keys": "image",
    "lower": 2,
    "upper": 98,
    "b_min": -1,
    "b_max": 1,
    "clip": True,
}


@pytest.fixture(scope="session")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of a CT, stored oblique, anisotropic and turned."""
    path = tmp_path_factory.mktemp("scans") / "ct.nii"
    whole = np.asarray(nib.load(SAMPLES / "ct_body_totalseg" / "images" / "example_ct.nii.gz").dataobj, np.float32)
    store(whole[30:78, 30:70, 40:64], (2.2, 2.2, 4.0), path, codes="PIR", tilt=8.0)
    return path


def opened(bundle: Path, choices: Choices | None = None) -> ForeignModel:
    draft = draft_bundle(bundle, choices or Choices())
    return ForeignModel(draft.card, draft.network)


PIPELINES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any] | None]] = {
    "U-Net, resampled, Hounsfield window, windows": (UNET, [*LOAD, ORIENT, SPACE, CT_RANGE], WINDOWS),
    "SegResNet, own grid, standardised": (
        {
            "_target_": "SegResNet",
            "in_channels": 1,
            "out_channels": 2,
            "init_filters": 8,
            "blocks_down": [1, 1],
            "blocks_up": [1],
        },
        [*LOAD, NORMALISE],
        WINDOWS,
    ),
    "deep supervision in a list": (
        {
            "_target_": "BasicUNetPlusPlus",
            "in_channels": 1,
            "out_channels": 2,
            "deep_supervision": True,
            "features": [4] * 6,
        },
        [*LOAD, {**ORIENT, "axcodes": "LPS"}, PERCENTILES],
        {**WINDOWS, "roi_size": [32, 32, 32], "overlap": 0.3, "padding_mode": "replicate"},
    ),
    "DynUNet with heads for deep supervision": (
        {
            "_target_": "DynUNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 8, 8],
            "deep_supervision": True,
        },
        [*LOAD, ORIENT, SPACE, SCALE],
        {**WINDOWS, "roi_size": [32, 40, 16]},
    ),
    "SegResNetDS, scaled before it is resampled, in windows with soft borders": (
        {
            "_target_": "SegResNetDS",
            "in_channels": 1,
            "out_channels": 2,
            "init_filters": 4,
            "blocks_down": [1, 1],
            "dsdepth": 2,
        },
        [*LOAD, ORIENT, SCALE, SPACE],
        {**WINDOWS, "mode": "gaussian", "overlap": 0.25},
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_logits_are_those_of_monai(ct: Path, tmp_path: Path, name: str) -> None:
    definition, preparation, inferer = PIPELINES[name]
    network = network_of(definition)
    bundle = write_bundle(tmp_path / "organ", network, definition, preparation, inferer=inferer)
    model = opened(bundle)
    scan = read_scan(ct)
    theirs, ours = by_monai(bundle, network, ct, scan), by_us(model, scan)
    assert ours.shape == theirs.shape == (2, *scan.shape)
    assert (ours - theirs).abs().max() <= 1e-5
    assert theirs.std() > 0.01  # there is something to compare


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_seen_as_monais_reader_sees_it(tmp_path: Path, channels: int) -> None:
    place, name = {1: ("heart_mr_hvsmr2", "10003_108.png"), 3: ("polyp_hyperkvasir", "cju1ewnoh5z030855vpex9uzt.jpg")}[
        channels
    ]
    picture = SAMPLES / place / "images" / name
    definition = {**UNET, "spatial_dims": 2, "in_channels": channels, "out_channels": 1}
    network = network_of(definition)
    first = {**LOAD[1], "channel_dim": -1} if channels == 3 else LOAD[1]
    resize = {"_target_": "Resized", "keys": ["image"], "spatial_size": [96, 64], "mode": ["bilinear"]}
    bundle = write_bundle(tmp_path / "b", network, definition, [LOAD[0], first, resize, SCALE], after=[SIGMOID])
    model, scan = opened(bundle), read_scan(picture)
    assert (model.card.ndim, model.card.channels, model.card.mode) == (2, channels, "binary")
    assert (by_us(model, scan) - by_monai(bundle, network, picture, scan)).abs().max() <= 1e-5


def test_sequences_of_one_examination_are_channels(tmp_path: Path) -> None:
    """Four sequences of one MR as BraTS has them: own statistics for each, three overlapping classes."""
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, 50.0, (24, 20, 16, 4)).astype(np.float32) * np.float32((1, 3, 0.2, 1))
    values[:6] = 0
    path = tmp_path / "brain.nii"
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    definition = {**UNET, "in_channels": 4, "out_channels": 3}
    network = network_of(definition)
    classes = {"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"}
    bundle = write_bundle(
        tmp_path / "b", network, definition, [*LOAD, NORMALISE], inferer=WINDOWS, after=[SIGMOID], channels=classes
    )
    model, scan = opened(bundle), read_scan(path, volumes_as_channels=True)
    assert (model.card.mode, [c.name for c in model.card.classes]) == ("multilabel", list(classes.values()))
    assert (by_us(model, scan) - by_monai(bundle, network, path, scan)).abs().max() <= 1e-5


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_attack_works_through_all_of_it(ct: Path, tmp_path: Path, ndim: int) -> None:
    definition = {**UNET, "spatial_dims": ndim}
    space = SPACE if ndim == 3 else {**SPACE, "pixdim": [2.0, 2.5, -1]}
    windows = {**WINDOWS, "roi_size": [24] * ndim}
    network, scan = network_of(definition), read_scan(ct)
    bundle = write_bundle(tmp_path / "b", network, definition, [*LOAD, ORIENT, space, CT_RANGE], inferer=windows)
    model = opened(bundle)
    extent = "slice" if ndim == 2 else "volume"
    subject = pose_on_scan(model, scan, extent=extent, index=12)
    with torch.no_grad():  # the last bias, so that half of the voxels are organ
        logits = subject.model(subject.images)
        list(model.parameters())[-1].add_(torch.tensor([0.0, float((logits[:, 0] - logits[:, 1]).median())]))
    subject = pose_on_scan(model, scan, extent=extent, index=12)
    result = PGD(epsilon=0.2, steps=5).run(subject.problem("dice_ce"))
    noise = 0.2 * torch.randn(subject.images.shape, generator=torch.Generator().manual_seed(0)).sign()
    with torch.no_grad():
        shaken = subject.model(subject.images + noise).argmax(1)
    organ = subject.labels == 1
    by_chance = float(2 * (organ & (shaken == 1)).sum() / (organ.sum() + (shaken == 1).sum()))
    assert float(result.score) < min(0.8, by_chance - 0.1)
    assert float(result.perturbation.abs().max()) <= 0.2 + 1e-6


# --- what a card says ---


@pytest.fixture
def plain(tmp_path: Path) -> Callable[..., Path]:
    """A bundle of a small 2-D network, with changes."""

    def make(
        preparation: list[dict[str, Any]] | None = None, definition: dict[str, Any] | None = None, **changes: Any
    ) -> Path:
        network = {**UNET, "spatial_dims": 2}
        built = network_of(network)
        return write_bundle(tmp_path / "b", built, definition or network, preparation or list(LOAD), **changes)

    return make


def test_the_card_says_where_a_bundle_comes_from(plain) -> None:
    card = opened(plain([*LOAD, CT_RANGE])).card
    assert (card.name, card.title, card.architecture) == ("An-organ", "An organ", "UNet")
    assert card.licence == "Apache License, Version 2.0, January 2004"
    assert "Segments an organ." in card.notes
    assert "TERMS AND CONDITIONS" in card.notes
    assert (card.window.kind, card.window.low, card.window.high) == ("fixed", -160, 240)
    assert [c.name for c in card.classes] == ["organ"]
    assert card.foreign is not None
    assert card.foreign.target == "monai.networks.nets.UNet"


def test_without_a_window_of_its_own_epsilon_is_in_percentiles_of_the_scan(plain) -> None:
    rule = opened(plain([*LOAD, NORMALISE])).card.window
    assert (rule.kind, rule.low, rule.high) == ("percentile", 0.5, 99.5)


@pytest.mark.parametrize(
    ("transform", "steps"),
    [
        (SCALE, [Percentiles()]),
        ({**SCALE, "minv": None, "maxv": None, "factor": 0.5}, [Scale(factor=(1.5,))]),
        ({**NORMALISE, "nonzero": "True"}, [Standardise(over="nonzero", only_there=True)]),
        (
            {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": [10], "divisor": [4]},
            [Scale(factor=(0.25,), offset=(-2.5,))],
        ),
        ({**PERCENTILES, "relative": True}, [Percentiles(lower=2, upper=98, low=-0.96, high=0.96, clip=True)]),
        ({"_target_": "ShiftIntensityd", "keys": "image", "offset": 7}, [Scale(offset=(7,))]),
        ({"_target_": "ThresholdIntensityd", "keys": "image", "threshold": 0, "above": True, "cval": 0}, [Clip(low=0)]),
        ({**CT_RANGE, "b_min": None, "b_max": None, "clip": False}, [Scale(factor=(1 / 400,), offset=(0.4,))]),
        ({"_target_": "EnsureTyped", "keys": "image", "device": "$torch.device('cpu')"}, []),
        ({**SCALE, "keys": "label"}, []),
        ({**SCALE, "_disabled_": True}, []),
        ({"_target_": "monai.transforms.ScaleIntensityD", "keys": ["image", "label"]}, [Percentiles()]),
    ],
)
def test_every_known_way_to_change_intensities_becomes_steps(
    plain, transform: dict[str, Any], steps: list[Any]
) -> None:
    foreign = opened(plain([*LOAD, transform])).foreign
    assert list(foreign.steps) == steps


@pytest.mark.parametrize(
    ("after", "outputs", "mode", "classes", "chosen"),
    [
        ([SOFTMAX], 3, "multiclass", ["b", "c"], ()),
        ([{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}], 3, "multiclass", ["b", "c"], ()),
        ([SIGMOID], 3, "multilabel", ["a", "b", "c"], ()),
        ([{"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}], 1, "binary", ["a"], ()),
        ([], 3, "multiclass", ["b", "c"], ()),
    ],
)
def test_what_is_done_to_logits_afterwards_tells_what_they_mean(
    plain, after: list[Any], outputs: int, mode: str, classes: list[str], chosen: tuple[int, ...]
) -> None:
    definition = {**UNET, "spatial_dims": 2, "out_channels": outputs}
    bundle = plain(definition=definition, after=after, channels={"0": "a", "1": "b", "2": "c"})
    torch.save(network_of(definition).state_dict(), bundle / "models" / "model.pt")
    card = opened(bundle).card
    assert (card.mode, [c.name for c in card.classes]) == (mode, classes)
    assert card.foreign is not None
    assert card.foreign.outputs == chosen


def test_the_background_is_found_wherever_it_stands(plain) -> None:
    foreign = opened(plain(channels={"0": "organ", "1": "Background"})).card
    assert [c.name for c in foreign.classes] == ["organ"]
    assert foreign.foreign is not None
    assert foreign.foreign.outputs == (1, 0)


FIXED = WindowRule(kind="fixed", low=0, high=100)


def without_preprocessing(bundle: Path) -> None:
    """Take it out of the configuration."""
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    del config["preprocessing"]
    path.write_text(json.dumps(config))


def test_a_users_word_goes_before_the_bundles(plain) -> None:
    choices = Choices(
        name="mine",
        title="Mine",
        licence="CC0",
        classes=("liver",),
        spacing=(1.0, 1.0),
        orientation="LPS",
        roi=(32, 32),
        steps=(Scale(factor=(2.0,)),),
    )
    unknown = {"_target_": "scripts.transforms.Secret", "keys": "image"}
    card = opened(plain([*LOAD, ORIENT, SPACE, unknown, SCALE]), choices).card
    assert (card.name, card.title, card.licence, card.classes[0].name) == ("mine", "Mine", "CC0", "liver")
    foreign = card.foreign
    assert foreign is not None
    assert (foreign.spacing, foreign.orientation, foreign.window, foreign.steps) == (
        (1, 1),
        "LPS",
        (32, 32),
        choices.steps,
    )


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("said", "steps"),
    [
        ({"normalise": "zscore"}, (Standardise(),)),
        ({"normalise": "none"}, ()),
        ({"normalise": "unit", "window": FIXED}, (Scale(factor=(0.01,), offset=(0.0,)),)),
    ],
)
def test_a_word_about_intensities_goes_before_the_bundles(
    plain, said: dict[str, Any], steps: tuple[Any, ...], named: bool
) -> None:
    bundle = plain([*LOAD, CT_RANGE])
    if not named:
        without_preprocessing(bundle)
    assert opened(bundle, Choices(**said)).foreign.steps == steps


def test_without_preprocessing_a_window_is_what_the_network_sees(plain) -> None:
    bundle = plain([*LOAD, CT_RANGE])
    assert len(opened(bundle, Choices(window=FIXED)).foreign.steps) == 2  # a bundle knows its own
    without_preprocessing(bundle)
    assert opened(bundle, Choices(window=FIXED)).foreign.steps == (Scale(factor=(0.01,), offset=(0.0,)),)
    draft = draft_bundle(bundle, Choices())
    assert draft.card.foreign is not None
    assert draft.card.foreign.steps == ()
    assert any("seen as their files hold them" in remark for remark in draft.remarks)


def test_a_bundle_has_no_folds(plain) -> None:
    with pytest.raises(CeaseError, match="fold means nothing for a bundle; leave that out"):
        draft_bundle(plain(), Choices(fold="1"))


MEAN = {**NORMALISE, "nonzero": False}
SHIFT = {"_target_": "ShiftIntensityd", "keys": "image", "offset": 7}
CROP = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}


@pytest.mark.parametrize(
    ("chain", "over", "said"),
    [
        ([CROP, MEAN], "box", "the box around what is not zero"),
        ([SHIFT, CROP, MEAN], "box", "the box around what is not zero"),
        ([CROP, SHIFT, MEAN], "all", "of the whole scan"),
        ([{**CROP, "margin": 5}, MEAN], "all", "of the whole scan"),
        ([{**CROP, "select_fn": "$lambda x: x > 7"}, MEAN], "all", "of the whole scan"),
        ([{**CROP, "source_key": "label"}, MEAN], "all", "of the whole scan"),
        ([CROP, NORMALISE], "nonzero", ""),
        ([MEAN, CROP], "all", ""),
    ],
)
def test_figures_are_of_what_a_bundle_crops_scans_to(plain, chain: list[Any], over: str, said: str) -> None:
    draft = draft_bundle(plain([*LOAD, *chain]), Choices())
    assert draft.card.foreign is not None
    (step,) = [step for step in draft.card.foreign.steps if isinstance(step, Standardise)]
    assert step.over == over
    remarks = [remark for remark in draft.remarks if "taken of" in remark]
    assert len(remarks) == bool(said)
    assert all(said in remark for remark in remarks)


def test_percentiles_are_of_the_whole_scan_and_that_is_said(plain) -> None:
    draft = draft_bundle(plain([*LOAD, CROP, SCALE]), Choices())
    assert any("taken of the whole scan" in remark for remark in draft.remarks)


def test_aliases_within_aliases_are_looked_through_once(plain) -> None:
    bundle = plain()
    (bundle / "configs" / "inference.json").rename(bundle / "configs" / "inference.yaml")  # YAML holds JSON
    config = bundle / "configs" / "inference.yaml"
    deep = ["a0: &a0 [models/other.pt]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 30)}]" for i in range(1, 7)]
    content = yaml.safe_dump(json.loads(config.read_text()))
    config.write_text(content + "\n".join(deep) + "\n")
    shutil.copy(bundle / "models" / "model.pt", bundle / "models" / "other.pt")
    assert draft_bundle(bundle, Choices()).card.architecture == "UNet"


def test_what_is_left_out_is_said(plain) -> None:
    crop = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}
    remarks = draft_bundle(plain([*LOAD, crop], after=[SOFTMAX, largest]), Choices()).remarks
    assert any("CropForeground" in r and "whole scan" in r for r in remarks)
    assert any("KeepLargestConnectedComponentd" in r for r in remarks)


def test_entries_may_refer_to_each_other_and_hold_plain_values(plain) -> None:
    definition = {
        **UNET,
        "spatial_dims": "$@dims",
        "channels": "$[4, 8]",
        "out_channels": "@labels#count",
        "norm": "$monai.networks.layers.factories.Norm.BATCH",
    }
    further = {
        "dims": 2,
        "labels": {"count": 2},
        "high": True,
        "a": [*LOAD],
        "b": [{**SCALE, "maxv": "$2.0 if @high else -1"}],
        "preprocessing": {"_target_": "Compose", "transforms": "$@a + @b"},
    }
    foreign = opened(plain(definition=definition, further=further)).foreign
    assert foreign.args == {**{k: v for k, v in UNET.items() if k != "_target_"}, "spatial_dims": 2}
    assert foreign.steps == (Percentiles(high=2.0),)


def test_yaml_safetensors_and_zips_are_read_alike(plain, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    bundle = plain([*LOAD, SCALE])
    config = bundle / "configs" / "inference.json"
    (bundle / "configs" / "inference.yaml").write_text(yaml.safe_dump(json.loads(config.read_text())))
    config.unlink()
    state = torch.load(bundle / "models" / "model.pt")
    save_file(state, bundle / "models" / "model.safetensors")
    (bundle / "models" / "model.pt").unlink()
    zipped = shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path, "b")
    one, other = opened(bundle), opened(Path(zipped))
    assert one.card.foreign == other.card.foreign
    assert all(torch.equal(a, state[k]) for k, a in other.asked.network.state_dict().items())


# --- hostile ---


def evil(path: Path) -> str:
    return f"$__import__('pathlib').Path({str(path)!r}).write_text('gone')"


@pytest.mark.parametrize("entry", ["channels", "_target_", "dropout", "norm"])
def test_no_expression_in_a_network_is_evaluated(plain, tmp_path: Path, entry: str) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(CeaseError, match=r"evaluated|not one that is built"):
        draft_bundle(plain(definition={**UNET, "spatial_dims": 2, entry: evil(canary)}), Choices())
    assert not canary.exists()


@pytest.mark.parametrize("way", ["@trap", "$@trap", "$[@trap]", "%trap"])
def test_nor_is_one_that_is_referred_to(plain, tmp_path: Path, way: str) -> None:
    canary = tmp_path / "canary"
    bundle = plain([*LOAD, {**SCALE, "minv": way}], further={"trap": evil(canary)})
    with pytest.raises(CeaseError, match="would have to be evaluated"):
        draft_bundle(bundle, Choices())
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "$import os",
        "$().__class__.__base__",
        "$[x for x in (1,)]",
        "$2 ** 99999999",
        "$9 * [9]",
        "$(lambda: 4)()",
        "$f'{4}'",
        "${'a': 4}",
        "$" + "(" * 900,
        "$" + "4" * 5000,
        "$@",
        "@",
        "$",
    ],
)
def test_only_plain_values_are_understood(plain, text: str) -> None:
    bundle = plain([*LOAD, {**SCALE, "minv": text}])
    with pytest.raises(CeaseError, match=r"transforms\[2\]\.minv .* evaluated"):
        draft_bundle(bundle, Choices())


@pytest.mark.parametrize(
    ("further", "sentence"),
    [
        ({"a": "@b", "b": "@a"}, "refers to itself"),
        ({"a": "@nothing"}, "refers to 'nothing', which there is not"),
        ({f"a{i or ''}": [f"@a{i + 1}"] * 9 for i in range(8)} | {"a8": 1}, "unfolds to more entries"),
        ({f"a{i or ''}": f"$@a{i + 1} + @a{i + 1}" for i in range(30)} | {"a30": [1] * 9}, "more entries|evaluated"),
    ],
)
def test_references_neither_circle_nor_multiply(plain, further: dict[str, Any], sentence: str) -> None:
    bundle = plain(definition={**UNET, "spatial_dims": 2, "channels": "@a"}, further=further)
    with pytest.raises(CeaseError, match=sentence):
        draft_bundle(bundle, Choices())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_target_": "os.system", "command": "true"}, "not one that is built here by its name"),
        ({"_target_": "scripts.networks.UNet"}, "not one that is built here by its name"),
        ({"_target_": "monai.networks.nets.os.UNet"}, "not one that is built here by its name"),
        ({"_target_": "monai.networks.nets.TorchVisionFCModel"}, "not one that is built here by its name"),
        ({"channels": [60000, 60000]}, "has shape|size cannot be built"),
        ({"channels": [10**12, 8]}, "beyond 65536"),
        ({"num_res_units": 60000}, "size cannot be built"),
        ({"channels": {"_target_": "list"}}, "no plain argument"),
        ({"colour": 3}, "cannot be built with these arguments"),
        ({"channels": [4, 8, 16], "strides": [2, 2]}, "lacks 'model"),
        ({"channels": [6, 8]}, "has shape"),
    ],
)
def test_a_network_that_is_not_the_weights_is_refused_before_it_is_made(
    plain, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CeaseError, match=sentence):
        draft_bundle(plain(definition={**UNET, "spatial_dims": 2} | change), Choices())


@pytest.mark.parametrize(
    ("transform", "sentence"),
    [
        ({"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x"}, "cannot be done inside an attack"),
        ({"_target_": "scripts.mine.ScaleIntensityd", "keys": "image"}, "cannot be done inside an attack"),
        ({**CT_RANGE, "a_max": -500}, r"a_max is -500.0 where more than a_min is needed"),
        ({**CT_RANGE, "a_min": "low"}, r"a_min is 'low' where a number is needed"),
        ({**PERCENTILES, "lower": 99}, "upper must be above lower"),
        ({**SPACE, "pixdim": []}, "pixdim"),
        ({**ORIENT, "axcodes": "XYZ"}, "orientation"),
        ({"_target_": "Resized", "keys": "image", "spatial_size": [-1, 64]}, "an edge for each axis"),
    ],
)
def test_a_preparation_that_cannot_be_said_is_refused(plain, transform: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        draft_bundle(plain([*LOAD, transform]), Choices())


def test_scans_turned_after_they_were_resampled_are_refused(plain) -> None:
    with pytest.raises(CeaseError, match="exchange the two"):
        draft_bundle(plain([*LOAD, SPACE, ORIENT]), Choices())


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "gone"))


def test_weights_that_bring_code_are_not_loaded(plain, tmp_path: Path) -> None:
    bundle, canary = plain(), tmp_path / "canary"
    torch.save({"state_dict": Payload(canary)}, bundle / "models" / "model.pt")
    with pytest.raises(CeaseError, match="holds more than tensors"):
        draft_bundle(bundle, Choices())
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["../../outside.pt", "/tmp/outside.pt", "b/models/..\\..\\outside.pt", "C:/outside.pt"]
)
def test_entries_of_a_zip_cannot_escape(plain, tmp_path: Path, name: str) -> None:
    zipped = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", plain().parent, "b"))
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr(name, b"gone")
    with pytest.raises(CeaseError, match="points outside"):
        draft_bundle(zipped, Choices())


def test_a_link_in_a_zip_is_refused(plain, tmp_path: Path) -> None:
    zipped = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", plain().parent, "b"))
    with zipfile.ZipFile(zipped, "a") as archive:
        link = zipfile.ZipInfo("b/models/other.pt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(CeaseError, match="is a link"):
        draft_bundle(zipped, Choices())


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda b: (b / "configs" / "inference.json").write_text("{"), "no valid JSON"),
        (lambda b: (b / "configs" / "inference.json").write_text("[" * 100_000), "no valid JSON"),
        (lambda b: (b / "configs" / "inference.json").write_text("[]"), "entries by name"),
        (lambda b: (b / "configs" / "inference.json").write_text(" " * 2**21), "larger than"),
        (lambda b: (b / "configs" / "inference.json").write_text("{}"), "does not define its network"),
        (lambda b: (b / "configs" / "inference.json").unlink(), "holds no configs/inference.json"),
        (lambda b: (b / "configs" / "metadata.json").write_text("{"), "no valid JSON"),
        (lambda b: (b / "models" / "model.pt").unlink(), "download the bundle's weights"),
        (lambda b: (b / "models" / "model.pt").rename(b / "models" / "model.ts"), "the program models/model.ts"),
        (lambda b: (b / "models" / "model.pt").write_bytes(b"PK\x03\x04broken"), "damaged|could not be read"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_sentence(plain, harm: Callable[[Path], Any], sentence: str) -> None:
    bundle = plain()
    harm(bundle)
    with pytest.raises(CeaseError, match=sentence) as said:
        draft_bundle(bundle, Choices())
    assert "\n" not in str(said.value)


def test_an_imported_bundle_passes_the_trial(plain) -> None:
    try_model(opened(plain([*LOAD, ORIENT, {**SPACE, "pixdim": [1.5, 1.5, -1]}, CT_RANGE])))
