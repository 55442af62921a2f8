"""Results of nnU-Net v2: the folder as it is written, the same logits, and a working attack."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dynamic_network_architectures.architectures import unet
from dynamic_network_architectures.building_blocks.residual import BottleneckD
from torch import Tensor, nn

from cease_core.attacks import PGD
from cease_core.attacks.on_scan import pose_on_scan
from cease_core.errors import CeaseError
from cease_core.io import read_scan
from cease_core.models import ForeignModel, WindowRule, open_model, prepare
from cease_core.models.foreign import nnunet_network
from cease_core.models.foreign.classes import build_network
from cease_core.models.foreign.drafts import Choices, Question, refuse
from cease_core.models.foreign.nnunet import draft_nnunet
from cease_core.models.foreign.nnunet_network import build_nnunet
from cease_core.models.foreign.spec import Clip, Percentiles, Scale, Standardise
from cease_core.models.importing import import_any
from cease_core.scan import Scan

SPACING = (2.0, 0.8, 1.1)  # slices, rows, columns
FIGURES = {"mean": 60.0, "std": 25.0, "percentile_00_5": -20.0, "percentile_99_5": 140.0, "min": -99.0, "max": 300.0}


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's library; it does not exist yet."""
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path / "home" / "models"))
    monkeypatch.setenv("CEASE_CONSENT", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def yes(_: Question) -> bool:
    return True


def architecture(name: str, ndim: int) -> dict[str, Any]:
    """A small network as plans since version 2.4 describe it."""
    blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{ndim}d",
            "kernel_sizes": [[3] * ndim] * 3,
            "strides": [[1] * ndim, [2] * ndim, [1] + [2] * (ndim - 1)],
            blocks: [1, 2, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{ndim}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def old(described: dict[str, Any]) -> dict[str, Any]:
    """The same network as earlier plans describe it."""
    given = described["arch_kwargs"]
    return {
        "UNet_class_name": described["network_class_name"].rpartition(".")[2],
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": given.get("n_conv_per_stage", given.get("n_blocks_per_stage")),
        "n_conv_per_stage_decoder": given["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [2] * len(given["strides"][0]),
        "conv_kernel_sizes": given["kernel_sizes"],
        "pool_op_kernel_sizes": given["strides"],
    }


@dataclass
class Training:
    """A results folder of nnU-Net v2 that can be changed before it is written."""

    name: str = "PlainConvUNet"
    ndim: int = 3
    configuration: str = "3d_fullres"
    old: bool = False
    scheme: str = "ZScoreNormalization"
    mask: bool = False
    channels: tuple[str, ...] = ("T2",)
    labels: dict[str, Any] = field(default_factory=lambda: {"background": 0, "anterior": 1, "posterior": 2})
    dataset: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    folds: tuple[str, ...] = ("0",)
    prefix: str = ""
    checkpoint: dict[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """Channels of the network's answer."""
        regions = any(isinstance(v, list) for v in self.labels.values())
        return len([n for n in self.labels if n != "ignore"]) - regions

    def described(self) -> dict[str, Any]:
        """The planned configuration."""
        drawn = architecture(self.name, self.ndim)
        planned = {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [8, 16, 12][-self.ndim :],
            "median_image_size_in_voxels": [10.0, 20.0, 18.0][-self.ndim :],
            "spacing": list(SPACING)[-self.ndim :],
            "normalization_schemes": [self.scheme] * len(self.channels),
            "use_mask_for_norm": [self.mask] * len(self.channels),
            "batch_dice": False,
            **(old(drawn) if self.old else {"architecture": drawn}),
        }
        return planned | self.changes

    def network(self, seed: int) -> nn.Module:
        """The network that was trained, as nnU-Net itself builds it for a prediction."""
        given = architecture(self.name, self.ndim)["arch_kwargs"]
        layers = {"conv_op": "Conv", "norm_op": "InstanceNorm"}
        given |= {key: getattr(nn, f"{stem}{self.ndim}d") for key, stem in layers.items()} | {"nonlin": nn.LeakyReLU}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = getattr(unet, self.name)(
                input_channels=len(self.channels), num_classes=self.outputs, deep_supervision=False, **given
            )
        return made.eval()

    def write(self, folder: Path) -> Path:
        """The folder of the configuration within its data set's."""
        place = folder / "Dataset004_Hippocampus" / f"nnUNetTrainer__nnUNetPlans__{self.configuration}"
        plans = {
            "dataset_name": "Dataset004_Hippocampus",
            "plans_name": "nnUNetPlans",
            "original_median_spacing_after_transp": list(SPACING),
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {self.configuration: self.described()},
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {str(c): FIGURES for c in range(len(self.channels))},
        } | self.plans
        dataset = {
            "channel_names": {str(c): name for c, name in enumerate(self.channels)},
            "labels": self.labels,
            "numTraining": 208,
            "file_ending": ".nii.gz",
        } | self.dataset
        for seed, fold in enumerate(self.folds):
            (place / f"fold_{fold}").mkdir(parents=True)
            network = self.network(seed)
            momentum = {i: {"momentum_buffer": torch.zeros_like(p)} for i, p in enumerate(network.parameters())}
            checkpoint = {
                "network_weights": {self.prefix + k: v for k, v in network.state_dict().items()},
                "optimizer_state": {"state": momentum, "param_groups": [{"lr": 0.01, "params": [*momentum]}]},
                "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
                "logging": {
                    "mean_fg_dice": [np.float64(0.5), np.float32(0.75)],
                    "dice_per_class_or_region": [[np.float64(0.5)]],
                    "lrs": [0.01],
                },
                "_best_ema": np.float64(0.87),
                "current_epoch": 1000,
                "init_args": {
                    "plans": plans,
                    "configuration": self.configuration,
                    "fold": 0,
                    "dataset_json": dataset,
                    "device": torch.device("cuda"),
                },
                "trainer_name": "nnUNetTrainer",
                "inference_allowed_mirroring_axes": tuple(range(self.ndim)),
            } | self.checkpoint
            torch.save(checkpoint, place / f"fold_{fold}" / "checkpoint_final.pth")
        (place / "plans.json").write_text(json.dumps(plans))
        (place / "dataset.json").write_text(json.dumps(dataset))
        return place


def drafted(path: Path) -> ForeignModel:
    draft = draft_nnunet(path, Choices(), yes)
    return ForeignModel(draft.card, draft.network).eval()


# --- there and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("name", "earlier"),
    [
        ("PlainConvUNet", False),
        ("ResidualEncoderUNet", False),
        ("ResidualUNet", False),
        ("PlainConvUNet", True),
        ("ResidualEncoderUNet", True),
    ],
)
def test_the_same_logits_and_a_working_attack(name: str, earlier: bool, ndim: int, tmp_path: Path) -> None:
    training = Training(name=name, ndim=ndim, old=earlier, configuration="2d" if ndim == 2 else "3d_fullres")
    model = drafted(training.write(tmp_path))
    assert model.foreign.window == (8, 16, 12)[-ndim:]
    assert [c.name for c in model.card.classes] == ["anterior", "posterior"]
    patch = torch.randn(1, 1, *model.foreign.window, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.asked(patch), training.network(0)(patch), rtol=0, atol=1e-5)

    shape = (12, 16, 8)
    scan = Scan(100 * np.random.default_rng(0).random((1, *shape), np.float32), np.diag([1.1, 0.8, 2.0, 1.0]))
    problem = pose_on_scan(prepare(model), scan, extent="slice", index=4).problem("soft_dice")
    result = PGD(epsilon=0.1, steps=3).run(problem)
    assert problem.look(torch.zeros_like(problem.images))[2].item() == pytest.approx(1)
    assert problem.look(result.perturbation)[2].item() < 0.9


def nifti(path: Path, shape: tuple[int, ...] = (9, 11, 7)) -> np.ndarray:
    """An oblique NIfTI file with air around, and its array as nnU-Net reads it: slices, rows, columns."""
    values = np.random.default_rng(2).normal(50, 40, shape).astype(np.float32)
    values[:2] = values[:, -1] = 0
    affine = nib.affines.from_matvec(np.diag([-1, 1, 1]) @ np.diag(SPACING[::-1]), [5, -3, 20])
    nib.save(nib.Nifti1Image(values, affine), path)
    array: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array


def cropped_z(array: np.ndarray) -> np.ndarray:
    places = np.nonzero(array)
    box = array[tuple(slice(p.min(), p.max() + 1) for p in places)]
    return (array - box.mean()) / box.std()


def masked_z(array: np.ndarray) -> np.ndarray:
    inside = array != 0
    return np.where(inside, (array - array[inside].mean()) / array[inside].std(), 0)


NORMALISED: dict[tuple[str, bool], Callable[[np.ndarray], np.ndarray]] = {
    ("ZScoreNormalization", False): cropped_z,
    ("ZScoreNormalization", True): masked_z,
    ("CTNormalization", False): lambda array: (array.clip(-20, 140) - 60) / 25,
    ("RescaleTo01Normalization", False): lambda array: (array - array.min()) / (array.max() - array.min()),
    ("RGBTo01Normalization", False): lambda array: array / 255,
    ("NoNormalization", False): lambda array: array,
}


@pytest.mark.parametrize(("scheme", "mask"), NORMALISED)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_a_scan_reaches_the_network_as_from_nnunet(
    scheme: str, mask: bool, order: tuple[int, ...], tmp_path: Path
) -> None:
    """At the planned voxel size, where nnU-Net does not resample either."""
    array = nifti(tmp_path / "scan.nii.gz")
    spacing = [SPACING[axis] for axis in order]
    training = Training(
        scheme=scheme,
        mask=mask,
        plans={"transpose_forward": list(order)},
        changes={"spacing": spacing, "patch_size": [12, 12, 12]},
    )
    model = drafted(training.write(tmp_path))

    turned = NORMALISED[scheme, mask](array.astype(np.float64)).transpose(order)
    pads = [((12 - n) // 2, 12 - n - (12 - n) // 2) for n in turned.shape]
    padded = torch.from_numpy(np.pad(turned, pads).astype(np.float32))[None, None]
    with torch.no_grad():
        whole = training.network(0)(padded)[0]
    inside = whole[:, *(slice(low, 12 - high) for low, high in pads)].permute(0, *(1 + np.argsort(order)))

    scan = read_scan(tmp_path / "scan.nii.gz")
    window = model.card.window.resolve(scan)
    with torch.no_grad():
        logits = model.on(scan)(torch.from_numpy((scan.image - window.low) / np.float32(window.width))[None])[0]
    as_stored = np.stack([scan.layout.to_file(one.numpy()).transpose(2, 1, 0) for one in logits])
    np.testing.assert_allclose(as_stored, inside.numpy(), rtol=0, atol=2e-4)
    assert np.array_equal(as_stored.argmax(0), inside.numpy().argmax(0))


@pytest.mark.parametrize(("ndim", "configuration"), [(2, "2d"), (3, "3d_lowres")])
def test_nothing_is_unpickled_afterwards(ndim: int, configuration: str, tmp_path: Path) -> None:
    training = Training(ndim=ndim, configuration=configuration, changes={"patch_size": [24, 80, 64][-ndim:]})
    folder = import_any(training.write(tmp_path), consent=yes).folder
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model.safetensors"]
    shutil.rmtree(tmp_path / "Dataset004_Hippocampus")
    (tmp_path / "home" / "agreed.json").unlink()
    model = open_model(folder)
    assert isinstance(model, ForeignModel)
    assert (model.card.architecture, model.card.name) == ("PlainConvUNet", f"Dataset004_Hippocampus-{configuration}")
    patch = torch.randn(1, 1, *(8, 16, 12)[-ndim:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.asked(patch), training.network(0)(patch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_weights_of_several_devices_or_a_compiled_network(prefix: str, tmp_path: Path) -> None:
    training = Training(prefix=prefix)
    state = draft_nnunet(training.write(tmp_path), Choices(), yes).network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in training.network(0).state_dict().items())


# --- what plans and data set say ----------------------------------------------------------------------------------


def test_ct_is_clipped_by_each_channels_own_figures(tmp_path: Path) -> None:
    one = draft_nnunet(
        Training(scheme="CTNormalization", channels=("CT",)).write(tmp_path / "one"), Choices(), yes
    ).card
    assert one.foreign is not None
    assert one.foreign.steps == (Clip(low=-20, high=140), Scale(factor=(1 / 25,), offset=(-60 / 25,)))
    assert one.window == WindowRule(kind="fixed", low=-20, high=140)

    other = FIGURES | {"percentile_00_5": 0.0, "percentile_99_5": 50.0, "mean": 10.0, "std": 5.0}
    two = Training(
        scheme="CTNormalization",
        channels=("CT", "CT"),
        plans={"foreground_intensity_properties_per_channel": {"0": FIGURES, "1": other}},
    )
    model = drafted(two.write(tmp_path / "two"))
    scan = Scan(np.random.default_rng(0).uniform(-90, 250, (2, 8, 16, 12)).astype(np.float32), np.eye(4))
    values: Tensor = torch.from_numpy(scan.image)[None]
    window = model.card.window.resolve(scan)
    seen = (values - window.low) / window.width
    for stage in model.on(scan).stages:
        seen = stage(seen)
    expected = np.stack([(scan.image[0].clip(-20, 140) - 60) / 25, (scan.image[1].clip(0, 50) - 10) / 5])
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=1e-4)


def test_plans_of_the_first_releases_call_intensities_otherwise(tmp_path: Path) -> None:
    path = Training(scheme="CTNormalization").write(tmp_path)
    plans = json.loads((path / "plans.json").read_text())
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    (path / "plans.json").write_text(json.dumps(plans))
    assert draft_nnunet(path, Choices(), yes).card.window == WindowRule(kind="fixed", low=-20, high=140)


def test_schemes_become_steps(tmp_path: Path) -> None:
    def steps(scheme: str, mask: bool = False) -> Any:
        path = Training(scheme=scheme, mask=mask).write(tmp_path / f"{scheme}{mask}")
        return draft_nnunet(path, Choices(), yes).card.foreign.steps  # type: ignore[union-attr]

    assert steps("ZScoreNormalization") == (Standardise(over="box"),)
    assert steps("ZScoreNormalization", True) == (Standardise(over="nonzero", only_there=True),)
    assert steps("RescaleTo01Normalization") == (Percentiles(channelwise=True),)
    assert steps("RGBTo01Normalization") == (Scale(factor=(1 / 255,)),)
    assert steps("NoNormalization") == ()


def test_regions_are_classes_that_may_overlap(tmp_path: Path) -> None:
    training = Training(
        labels={"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, dataset={"regions_class_order": [1, 2]}
    )
    draft = draft_nnunet(training.write(tmp_path), Choices(), yes)
    assert (draft.card.mode, [c.name for c in draft.card.classes]) == ("multilabel", ["whole", "core"])
    assert any("regions overlap" in remark for remark in draft.remarks)


def test_the_ignored_label_has_no_channel(tmp_path: Path) -> None:
    card = draft_nnunet(
        Training(labels={"background": 0, "lesion": 1, "ignore": 2}).write(tmp_path), Choices(), yes
    ).card
    assert (card.mode, [c.name for c in card.classes], card.outputs) == ("multiclass", ["lesion"], 2)


def test_readers_that_turn_scans(tmp_path: Path) -> None:
    for reader, orientation in (("NibabelIOWithReorient", "SAR"), ("NaturalImage2DIO", "zyx")):
        path = Training(plans={"image_reader_writer": reader}).write(tmp_path / reader)
        assert draft_nnunet(path, Choices(), yes).card.foreign.orientation == orientation  # type: ignore[union-attr]


def test_configurations_inherit(tmp_path: Path) -> None:
    base = Training().described()
    plans = {
        "configurations": {"3d_fullres": base, "3d_small": {"inherits_from": "3d_fullres", "patch_size": [8, 8, 8]}}
    }
    path = Training(configuration="3d_small", plans=plans).write(tmp_path)
    assert draft_nnunet(path, Choices(), yes).card.foreign.window == (8, 8, 8)  # type: ignore[union-attr]


def test_what_differs_from_nnunet_is_said(tmp_path: Path) -> None:
    training = Training(folds=("0", "1"), checkpoint={"trainer_name": "nnUNetTrainerOwn"})
    said = " ".join(draft_nnunet(training.write(tmp_path), Choices(), yes).remarks)
    for part in (
        "linear interpolation",
        "clean scan once",
        "mirrored",
        "there is also 1",
        "trained by nnUNetTrainerOwn",
    ):
        assert part in said


def test_what_the_user_says_comes_first(tmp_path: Path) -> None:
    choices = Choices(name="mine", title="Mine", licence="CC0", classes=("a", "b"), roi=(16, 16, 16), spacing=(1, 1, 1))
    card = draft_nnunet(Training().write(tmp_path), choices, yes).card
    assert card.foreign is not None
    assert (card.name, card.title, card.licence, card.classes[1].name) == ("mine", "Mine", "CC0", "b")
    assert (card.foreign.window, card.foreign.spacing) == ((16, 16, 16), (1, 1, 1))


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"normalise": "zscore"}, "normalise means"),
        ({"mode": "binary", "activation": "none"}, "mode, activation mean"),
        ({"output": (0,), "outputs": (0,), "divisor": 8}, "divisor, output, outputs mean"),
        ({"architecture": "unet", "args": {}}, "architecture, args mean"),
    ],
)
def test_what_the_plans_say_is_not_said_again(tmp_path: Path, said: dict[str, Any], names: str) -> None:
    with pytest.raises(CeaseError, match=f"{names} nothing for an nnU-Net folder, whose plans say it"):
        draft_nnunet(Training().write(tmp_path), Choices(**said), yes)


def test_steps_go_before_a_normalisation_that_is_not_known(tmp_path: Path) -> None:
    path = Training().write(tmp_path)
    plans = next(tmp_path.rglob("plans.json"))
    plans.write_text(plans.read_text().replace("ZScoreNormalization", "OwnNormalization"))
    with pytest.raises(CeaseError, match="give the steps yourself"):
        draft_nnunet(path, Choices(), yes)
    card = draft_nnunet(path, Choices(steps=(Standardise(),)), yes).card
    assert card.foreign is not None
    assert card.foreign.steps == (Standardise(),)


# --- which folder, which fold -------------------------------------------------------------------------------------


def test_a_configuration_is_found_from_around(tmp_path: Path) -> None:
    training = Training(folds=("0", "3", "all"))
    path = training.write(tmp_path)
    for source in (path, path.parent, path / "fold_0", path / "fold_0" / "checkpoint_final.pth"):
        assert "fold 0" in draft_nnunet(source, Choices(), yes).card.title
    assert "fold 3" in draft_nnunet(path / "fold_3", Choices(), yes).card.title
    for fold in ("3", "fold_3"):
        draft = draft_nnunet(path, Choices(fold=fold), yes)
        first = next(iter(draft.network.state_dict().values()))
        assert torch.equal(first, next(iter(training.network(1).state_dict().values())))


def test_one_sentence_for_a_folder_that_does_not_fit(tmp_path: Path) -> None:
    path = Training().write(tmp_path)
    with pytest.raises(CeaseError, match=r"has no fold '7' with a checkpoint; choose among 0"):
        draft_nnunet(path, Choices(fold="7"), yes)
    shutil.copytree(path, path.with_name("nnUNetTrainer__nnUNetPlans__2d"))
    with pytest.raises(
        CeaseError, match="several trained configurations; choose one of nnUNetTrainer__nnUNetPlans__2d"
    ):
        draft_nnunet(path.parent, Choices(), yes)
    (path / "dataset.json").unlink()
    with pytest.raises(CeaseError, match=r"holds no dataset\.json"):
        draft_nnunet(path, Choices(), yes)
    (path / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(CeaseError, match="holds no fold"):
        draft_nnunet(path, Choices(), yes)
    with pytest.raises(CeaseError, match=r"holds no plans\.json"):
        draft_nnunet(tmp_path, Choices(), yes)


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (Training(changes={"previous_stage": "3d_lowres"}), "second stage of a cascade"),
        (Training(scheme="OwnNormalization"), "normalises by 'OwnNormalization'"),
        (
            Training(channels=("CT", "PET"), changes={"normalization_schemes": ["CTNormalization", "NoNormalization"]}),
            "normalises 2 channels by CTNormalization, NoNormalization",
        ),
        (Training(changes={"spacing": [1.0]}), "of different lengths"),
        (Training(changes={"inherits_from": "3d_fullres"}), "inherits from '3d_fullres', which cannot be"),
        (Training(changes={"inherits_from": "2d"}), "inherits from '2d', which cannot be"),
        (Training(changes={"patch_size": "large"}), r"is not what nnU-Net v2 writes \(3d_fullres: patch_size"),
        (Training(plans={"image_reader_writer": "OwnIO"}), "read by 'OwnIO'"),
        (Training(plans={"transpose_forward": [0, 1]}), "orders no three axes"),
        (Training(plans={"transpose_forward": [1, 0, 2]}, ndim=2, configuration="2d"), "across the display's"),
        (Training(plans={"configurations": []}), "is not what nnU-Net v2 writes .configurations"),
        (Training(plans={"foreground_intensity_properties_per_channel": {}}, scheme="CTNormalization"), "channel '0'"),
        (Training(dataset={"labels": {"background": 0, "a": 1, "b": 7}}), "must be numbered 0"),
        (Training(dataset={"labels": {"background": 0, "a": [1, 2]}}), "another number in regions_class_order"),
        (Training(dataset={"channel_names": {}}), "names no channel"),
        (Training(dataset={"labels": {"background": 0, "a": 1}}), "does not fit the plans: .* needs the shape"),
        (Training(checkpoint={"network_weights": {}}), "holds no weights"),
        (Training(checkpoint={"network_weights": {"w": torch.ones(1)}}), "more than the 1 that its weights hold"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_sentence_for_what_is_not_done_here(training: Training, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CeaseError, match=sentence):
        draft_nnunet(training.write(tmp_path), Choices(), yes)


def test_without_the_library_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Training().write(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "dynamic_network_architectures.architectures", None)
    nnunet_network._library.cache_clear()
    with pytest.raises(CeaseError, match=r"pip install 'napari-cease\[nnunet\]'"):
        draft_nnunet(path, Choices(), yes)


# --- networks -----------------------------------------------------------------------------------------------------


def test_bottleneck_blocks() -> None:
    args = architecture("ResidualEncoderUNet", 2)["arch_kwargs"] | {"input_channels": 1, "num_classes": 2}
    place = "dynamic_network_architectures.building_blocks.residual"
    network = build_nnunet("ResidualEncoderUNet", args | {"block": f"{place}.BottleneckD", "bottleneck_channels": 4})
    assert any(isinstance(module, BottleneckD) for module in network.modules())


@pytest.mark.parametrize(
    ("target", "changes", "sentence"),
    [
        ("os.system", {}, "none that nnU-Net plans by itself"),
        ("dynamic_network_architectures.architectures.unet.os", {}, "none that nnU-Net plans by itself"),
        ("PlainConvUNet", {"conv_op": "os.system"}, "name 'os.system' as conv_op"),
        ("PlainConvUNet", {"nonlin": "torch.nn.Module"}, "name 'torch.nn.Module' as nonlin"),
        ("PlainConvUNet", {"norm_op": "torch.hub.load"}, "name 'torch.hub.load' as norm_op"),
        ("PlainConvUNet", {"nonlin": "$import os"}, "would have to be evaluated"),
        ("PlainConvUNet", {"features_per_stage": [4, 8]}, "cannot be built as the plans say"),
        ("PlainConvUNet", {"depth": 3}, "cannot be built as the plans say"),
        ("PlainConvUNet", {"n_stages": 10**9}, "beyond"),
        ("PlainConvUNet", {"features_per_stage": [2**16] * 3}, "a network of this size cannot be built"),
        ("PlainConvUNet", {"kernel_sizes": [[999] * 3] * 3}, "a network of this size cannot be built"),
        ("PlainConvUNet", {"features_per_stage": [2**11] * 3}, "more than the .* that its weights hold or are allowed"),
    ],
)
def test_only_known_networks_and_layers_of_sensible_size_are_built(
    target: str, changes: dict[str, Any], sentence: str
) -> None:
    args = architecture("PlainConvUNet", 3)["arch_kwargs"] | {"input_channels": 1, "num_classes": 2} | changes
    before = deepcopy(args)
    with pytest.raises(CeaseError, match=sentence):
        build_nnunet(target, args)
    assert args == before


def test_stored_networks_are_built_by_the_same_door() -> None:
    args = architecture("PlainConvUNet", 2)["arch_kwargs"] | {"input_channels": 1, "num_classes": 2}
    target = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    assert isinstance(build_network(target, args), unet.PlainConvUNet)


# --- trust --------------------------------------------------------------------------------------------------------


def test_checkpoints_are_opened_after_consent_once(tmp_path: Path) -> None:
    path = Training(folds=("0", "1")).write(tmp_path)
    with pytest.raises(CeaseError, match=r"checkpoint_final\.pth was not opened"):
        import_any(path, consent=refuse)
    questions: list[Question] = []

    def ask(question: Question) -> bool:
        questions.append(question)
        return True

    draft_nnunet(path, Choices(), ask)
    draft_nnunet(path, Choices(), ask)
    draft_nnunet(path, Choices(fold="1"), ask)
    assert [q.path.parent.name for q in questions] == ["fold_0", "fold_1"]


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_never_runs_even_with_consent(tmp_path: Path, library: Path) -> None:
    canary = tmp_path / "canary"
    path = Training(checkpoint={"my_init_kwargs": Canary(canary)}).write(tmp_path)
    with pytest.raises(CeaseError, match=r"more than tensors \(posix.mkdir\)"):
        import_any(path, consent=yes)
    assert not canary.exists()
    assert not library.exists() or not list(library.iterdir())


@pytest.mark.parametrize("name", ["plans.json", "dataset.json", "fold_0/checkpoint_final.pth"])
@pytest.mark.parametrize("damage", [b"", b"{", b"[" * 100_000, b"\xff\xfe\x00", b"null"])
def test_damaged_files_are_one_sentence(name: str, damage: bytes, tmp_path: Path) -> None:
    path = Training().write(tmp_path)
    (path / name).write_bytes(damage)
    with pytest.raises(CeaseError):
        draft_nnunet(path, Choices(), yes)
