"""What is fuzzed: small valid files of every kind that is read, and what is asked of each.

Scans are cut from the sample data, networks made by MONAI, nnU-Net's library and torch themselves.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
import tifffile
import torch
from monai.networks.nets import UNet
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian
from safetensors.torch import save_file
from torch import nn

from cease_core.data import inspect
from cease_core.io import frame_count, label_names, read_labels, read_own_labels, read_scan, write_labels, write_scan
from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule
from cease_core.models.checkpoint import CARD, save_model
from cease_core.models.foreign.drafts import Choices, Question
from cease_core.models.foreign.nnunet_network import PLACE, build_nnunet
from cease_core.models.importing import import_any
from cease_core.models.library import user_library
from cease_core.scan import Scan

SAMPLES = Path(__file__).parent.parent / "sample_data"

LIKE = "like.nii"
"""The scan that a mask is brought onto; it is never damaged."""

CHOICES = Choices(
    classes=("disc",),
    mode="binary",
    normalise="none",
    architecture="monai.networks.nets.UNet",
    args={"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8], "strides": [2]},
)
"""What is said about weights and programs, which do not say it themselves."""

Ask = Callable[[Path], None]


@dataclass(frozen=True)
class Seed:
    """A valid input.

    Parameters
    ----------
    files
        Content by relative name; these are damaged.
    opened
        Which of them is opened; empty for their folder.
    beside
        What lies there, too, and stays whole.
    """

    files: Mapping[str, bytes]
    opened: str = ""
    beside: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A reader or importer.

    Parameters
    ----------
    name
        In the table.
    share
        Of all inputs, relative to the other targets'.
    ask
        Reads the path that it is given and checks what comes of it.
    make
        Writes the seeds' files into an empty folder.
    """

    name: str
    share: int
    ask: Ask
    make: Callable[[Path], list[Seed]]


# --- what is asked ------------------------------------------------------------------------------------------------


def ask_scan(path: Path) -> None:
    """Read a scan, the first one of a series."""
    frames = frame_count(path)
    assert frames >= 1
    _check_scan(read_scan(path, frame=0 if frames > 1 else None))


def ask_series(folder: Path) -> None:
    """Read the DICOM series in a folder, interpolated if need be."""
    _check_scan(read_scan(folder, resample=True))


def ask_labels(path: Path) -> None:
    """Read a mask onto the scan beside it."""
    like = read_scan(path.parent / LIKE)
    labels = read_labels(path, like)
    assert labels.shape == like.shape
    assert labels.dtype == np.int32
    assert labels.min() >= 0


def ask_segmentation(path: Path) -> None:
    """Read a DICOM segmentation onto the scan beside it, and by itself."""
    ask_labels(path)
    labels, scan = read_own_labels(path)
    assert labels.shape == scan.shape
    assert all(isinstance(name, str) for name in label_names(path).values())


def ask_cases(path: Path) -> None:
    """Read a list of cases or a data set's description; what is wrong with a case is a finding of one line."""
    dataset, findings = inspect(path)
    assert all(os.path.lexists(case.image) for case in dataset.cases)
    assert all("\n" not in finding.message for finding in findings)


def ask_bundle(path: Path) -> None:
    """Import a model that says everything about itself."""
    _import(path, Choices())


def ask_weights(path: Path) -> None:
    """Import a model of which the user says what it is."""
    _import(path, CHOICES)


def ask_program(path: Path) -> None:
    """Import a program that the user trusts."""
    _import(path, Choices(classes=("disc",), mode="binary", ndim=2, channels=1, normalise="none"))


def _import(path: Path, choices: Choices) -> None:
    try:
        folder = import_any(path, choices, _yes).folder
    except Exception:
        assert not list(user_library().glob("[!.]*")), "what was refused lies in the library"
        raise
    assert (folder / CARD).is_file()


def _yes(_: Question) -> bool:
    return True


def _check_scan(scan: Scan) -> None:
    assert scan.image.dtype == np.float32
    assert scan.image.ndim == scan.ndim + 1
    assert np.isfinite(scan.image).all()
    assert np.isfinite(scan.affine).all()
    assert np.linalg.det(scan.affine) != 0


# --- valid files --------------------------------------------------------------------------------------------------


def _brain() -> tuple[np.ndarray, np.ndarray]:
    """A piece of a brain, int16, shape (9, 8, 7), and where it lies."""
    image = nib.load(SAMPLES / "brain_mni152" / "t1.nii.gz")
    middle = [n // 2 for n in image.shape[:3]]
    piece = np.asarray(image.dataobj)[tuple(slice(m, m + n) for m, n in zip(middle, (9, 8, 7), strict=True))]
    return np.ascontiguousarray(piece).astype(np.int16), image.affine


def _regions() -> np.ndarray:
    """A mask with two classes for it."""
    brain, _ = _brain()
    return np.digitize(brain, np.quantile(brain, [0.4, 0.8])).astype(np.uint8)


def _picture() -> np.ndarray:
    """A piece of a photograph, uint8, shape (20, 24, 3)."""
    path = next(iter(sorted((SAMPLES / "dermoscopy_isic2017" / "images").glob("*.jpg"))))
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))[100:120, 100:124]


def _slices(folder: Path, count: int = 4) -> list[pydicom.Dataset]:
    """A few slices of a real series, cut to 16 × 12 pixels."""
    folder.mkdir(exist_ok=True)
    found = []
    for path in sorted((SAMPLES / "dicom_t1w").glob("*.dcm"))[:count]:
        header = pydicom.dcmread(path)
        pixels = header.pixel_array[150:166, 120:132]
        header.Rows, header.Columns = pixels.shape
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.set_pixel_data(pixels, "MONOCHROME2", header.BitsStored)
        header.save_as(folder / path.name, enforce_file_format=True)
        found.append(header)
    return found


def _network() -> nn.Module:
    """MONAI's U-Net that `CHOICES` describes."""
    torch.manual_seed(0)
    return UNet(**{**CHOICES.args, "spatial_dims": 2}).eval()


def _seeds(folder: Path, **beside: bytes) -> list[Seed]:
    """Each file in a folder by itself."""
    return [Seed({p.name: p.read_bytes()}, p.name, beside) for p in sorted(folder.iterdir()) if p.is_file()]


def _tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _zipped(files: Mapping[str, bytes], name: str) -> Seed:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for each, content in files.items():
                archive.writestr(zipfile.ZipInfo(f"model/{each}"), content, zipfile.ZIP_DEFLATED)
        return Seed({name: path.read_bytes()}, name)


def nifti_files(folder: Path, *, suffix: str, second: bool = False) -> list[Seed]:
    """A volume of integers, one of real numbers, a slice and a series."""
    brain, affine = _brain()
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    scaled = kind(brain, affine)
    scaled.header.set_slope_inter(0.5, 3)
    series = np.stack([brain, brain[::-1]], axis=-1)
    images = {
        "integer": scaled,
        "real": kind(brain.astype(np.float32), affine),
        "slice": kind(brain[:, :, 3].astype(np.float64), affine),
        "series": kind(series, affine),
        "big endian": kind(brain.astype(">i4"), affine),
    }
    for name, image in images.items():
        nib.save(image, folder / f"{name}{suffix}")
    return _seeds(folder)


def itk_files(folder: Path, *, suffix: str) -> list[Seed]:
    """A compressed and a plain volume, a slice, colours and a series."""
    brain, _ = _brain()
    volume = sitk.GetImageFromArray(brain)
    volume.SetSpacing((0.8, 0.9, 1.1))
    volume.SetOrigin((1, -2, 3))
    sitk.WriteImage(volume, folder / f"plain{suffix}", useCompression=False)
    sitk.WriteImage(volume, folder / f"packed{suffix}", useCompression=True)
    sitk.WriteImage(sitk.GetImageFromArray(brain[0].astype(np.float32)), folder / f"slice{suffix}")
    sitk.WriteImage(sitk.GetImageFromArray(_picture(), isVector=True), folder / f"colours{suffix}")
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([brain, brain]), isVector=False), folder / f"series{suffix}")
    return _seeds(folder)


def series_folder(folder: Path) -> list[Seed]:
    """A series of four slices in its folder, and one of them alone."""
    _slices(folder)
    files = _tree(folder)
    first = next(iter(files))
    return [Seed(files), Seed({first: files[first]})]


def single_dicom(folder: Path) -> list[Seed]:
    """A slice by itself, several frames in one file, and a film in colours."""
    slices = _slices(folder / "series")
    several = hd.legacy.LegacyConvertedEnhancedMRImage(
        slices,
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    several.save_as(folder / "several.dcm")
    film = pydicom.dcmread(next((folder / "series").iterdir()))
    film.set_pixel_data(np.stack([_picture()] * 2), "RGB", 8)
    film.NumberOfFrames = 2
    film.save_as(folder / "film.dcm")
    slices[0].save_as(folder / "slice.dcm")
    return _seeds(folder)


def segmentations(folder: Path) -> list[Seed]:
    """Masks of two classes for a series and for one slice."""
    _slices(folder / "series")
    seeds = []
    scan = read_scan(folder / "series")
    write_scan(scan.image, scan, folder / LIKE)
    like = {LIKE: (folder / LIKE).read_bytes()}
    labels = np.digitize(scan.image[0], np.quantile(scan.image[0], [0.5, 0.9])).astype(np.uint8)
    write_labels(labels, scan, folder / "mask.dcm", classes={1: "grey", 2: "white"}, colours={1: "#112233"})
    seeds.append(Seed({"mask.dcm": (folder / "mask.dcm").read_bytes()}, "mask.dcm", like))
    write_labels((labels > 1).astype(np.uint8), scan, folder / "one.dcm")
    seeds.append(Seed({"one.dcm": (folder / "one.dcm").read_bytes()}, "one.dcm", like))
    return seeds


def masks(folder: Path) -> list[Seed]:
    """A mask in every format of volumes."""
    _, affine = _brain()
    regions = _regions()
    nib.save(nib.Nifti1Image(regions, affine), folder / "mask.nii")
    nib.save(nib.Nifti1Image(_brain()[0], affine), folder / LIKE)
    nib.save(nib.Nifti1Image(regions.astype(np.float32), affine), folder / "real.nii.gz")
    scan = read_scan(folder / LIKE)
    shown = read_labels(folder / "mask.nii", scan)
    for name in ("mask.nrrd", "mask.mha"):
        write_labels(shown, scan, folder / name)
    like = (folder / LIKE).read_bytes()
    return [seed for seed in _seeds(folder, **{LIKE: like}) if seed.opened != LIKE]


def flat_masks(folder: Path) -> list[Seed]:
    """Masks of a picture: ids, black and white, a palette, and colours that are all grey."""
    ids = (_picture()[..., 0] // 90).astype(np.uint8)
    nib.save(nib.Nifti1Image(ids.T.astype(np.float32), np.diag([-1.0, -1, 1, 1])), folder / LIKE)
    Image.fromarray(ids).save(folder / "ids.png")
    Image.fromarray(((ids > 1) * 255).astype(np.uint8)).save(folder / "white.png")
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(folder / "palette.png")
    Image.fromarray(ids.astype(np.uint16)).save(folder / "deep.tif")
    Image.fromarray(((ids > 1) * 255).astype(np.uint8)).save(folder / "white.jpg", quality=95)
    like = (folder / LIKE).read_bytes()
    return [seed for seed in _seeds(folder, **{LIKE: like}) if seed.opened != LIKE]


def pictures(folder: Path, *, suffix: str) -> list[Seed]:
    """Colours, greys and what else the format has."""
    colours = Image.fromarray(_picture())
    colours.save(folder / f"colours{suffix}")
    colours.convert("L").save(folder / f"grey{suffix}")
    if suffix == ".png":
        colours.convert("P").save(folder / "palette.png")
        Image.fromarray(_picture()[..., 0].astype(np.uint16) * 200).save(folder / "deep.png")
    else:
        colours.save(folder / "progressive.jpg", progressive=True)
        colours.convert("CMYK").save(folder / "print.jpg")
    return _seeds(folder)


def tiff_files(folder: Path) -> list[Seed]:
    """Stacks plain, packed and as ImageJ writes them, and a picture that Pillow packs."""
    brain, _ = _brain()
    stack = (brain - brain.min()).astype(np.uint16)
    tifffile.imwrite(folder / "plain.tif", stack, photometric="minisblack")
    tifffile.imwrite(folder / "packed.tif", stack, photometric="minisblack", compression="zlib")
    notes = {"axes": "ZYX", "unit": "mm", "spacing": 2.0}
    tifffile.imwrite(folder / "imagej.tif", stack.astype(np.float32), imagej=True, resolution=(2, 2), metadata=notes)
    Image.fromarray(_picture()).save(folder / "colours.tif", compression="tiff_lzw")
    Image.fromarray(_picture()[..., 0]).save(folder / "grey.tif", compression="packbits")
    return _seeds(folder)


def case_lists(folder: Path) -> list[Seed]:
    """CSV and JSONL lists with every column."""
    files = {f"{kind}/{n}.nii.gz": b"" for kind in ("images", "second", "labels") for n in range(3)}
    rows = [(f"images/{n}.nii.gz", f"second/{n}.nii.gz", f"labels/{n}.nii.gz", n) for n in range(3)]
    table = ["image,image_2,labels,name,patient,split,map"]
    table += [f'{a},{b},{c},case {n},p{n},{"training" if n else "test"},"1=1,2=1,*=0"' for a, b, c, n in rows]
    objects = [
        {"image": [a, b], "labels": c, "name": f"case {n}", "patient": n, "split": "train", "map": {"1": 1, "2": 2}}
        for a, b, c, n in rows
    ]
    names = json.dumps({"1": "liver", "2": "spleen"}).encode()
    return [
        Seed({"list.csv": "\n".join(table).encode()}, "list.csv", files),
        Seed({"list.jsonl": "\n".join(map(json.dumps, objects)).encode()}, "list.jsonl", files),
        Seed({"list.csv": "\n".join(table).encode(), "classes.json": names}, "list.csv", files),
    ]


def manifests(folder: Path) -> list[Seed]:
    """The descriptions of the Decathlon and of nnU-Net, and names of classes beside plain folders."""
    listed = [{"image": f"./imagesTr/a{n}.nii.gz", "label": f"./labelsTr/a{n}.nii.gz"} for n in range(3)]
    decathlon = {
        "name": "Heart",
        "description": "left atrium",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "left atrium", "2": "wall"},
        "numTraining": 3,
        "training": listed,
        "test": [],
    }
    second = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole": [1, 2], "rest": [3]},
        "regions_class_order": [1, 2],
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    plain = {f"{kind}/a{n}.nii.gz": b"" for kind in ("imagesTr", "labelsTr") for n in range(3)}
    channels = {f"imagesTr/a{n}_000{c}.nii.gz": b"" for n in range(3) for c in range(2)}
    masks = {f"labelsTr/a{n}.nii.gz": b"" for n in range(3)}
    pairs = {f"{kind}/a{n}.nii.gz": b"" for kind in ("images", "labels") for n in range(3)}
    return [
        Seed({"dataset.json": json.dumps(decathlon).encode()}, "", plain),
        Seed({"dataset.json": json.dumps(second).encode()}, "", {**channels, **masks}),
        Seed({"classes.json": json.dumps({"1": "liver", "2": "spleen"}).encode()}, "", pairs),
    ]


def own_models(folder: Path) -> list[Seed]:
    """A model folder of this program, with what an audit found, and a zip of it."""
    card = ModelCard(
        name="tiny",
        title="Tiny",
        architecture="unet",
        architecture_args={"channels": (4, 8)},
        ndim=2,
        channels=1,
        classes=(ClassInfo(id=1, name="disc", color="#E69F00"),),
        mode="binary",
        window=WindowRule(kind="percentile", low=0.5, high=99.5),
        metrics={"validation_clean_dice": 0.9},
    )
    torch.manual_seed(0)
    save_model(SegmentationModel(card), folder)
    found = {"clean_dice": 0.9, "worst_dice": 0.2, "epsilon": 0.03, "asr_drop": 1.0, "verdict": "not robust"}
    files = _tree(folder) | {"robustness.json": json.dumps(found).encode()}
    return [Seed(files), _zipped(files, "model.zip")]


def bundles(folder: Path) -> list[Seed]:
    """A MONAI bundle as a folder and as a zip, with weights of either kind."""
    network = _network()
    inference: dict[str, Any] = {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "network_def": {"_target_": "UNet", **CHOICES.args},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 9, "b_min": 0, "b_max": 1},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32], "sw_batch_size": 1, "overlap": 0.25},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}],
        },
    }
    port = {"type": "image", "num_channels": 1, "spatial_shape": [32, 32], "dtype": "float32"}
    answer = {**port, "channel_def": {"0": "disc"}}
    metadata = {
        "version": "0.1.0",
        "name": "disc",
        "task": "segment discs",
        "network_data_format": {"inputs": {"image": port}, "outputs": {"pred": answer}},
    }
    torch.save(network.state_dict(), folder / "model.pt")
    save_file(network.state_dict(), folder / "model.safetensors")
    configs = {
        "configs/metadata.json": json.dumps(metadata).encode(),
        "configs/inference.json": json.dumps(inference).encode(),
    }
    torch_files = {**configs, "models/model.pt": (folder / "model.pt").read_bytes(), "LICENSE": b"Apache 2.0\n"}
    safe_files = {**configs, "models/model.safetensors": (folder / "model.safetensors").read_bytes()}
    return [Seed(torch_files), _zipped(torch_files, "bundle.zip"), Seed(safe_files)]


def weight_files(folder: Path, *, suffix: str) -> list[Seed]:
    """A state dict, by itself and within a checkpoint."""
    state = _network().state_dict()
    if suffix == ".safetensors":
        save_file(state, folder / "net.safetensors")
    else:
        torch.save(state, folder / "net.pt")
        torch.save({"epoch": 3, "lr": 0.1, "state_dict": state}, folder / "checkpoint.pth")
    return _seeds(folder)


def programs(folder: Path, *, suffix: str) -> list[Seed]:
    """A network of two convolutions as a program."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 1, 3, padding=1)).eval()
    path = folder / f"net{suffix}"
    if suffix == ".ts":
        torch.jit.script(network).save(str(path))
    else:
        edges = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
        exported = torch.export.export(network, (torch.rand(1, 1, 32, 40),), dynamic_shapes=({**edges},))
        torch.export.save(exported, path)
    return _seeds(folder)


def nnunet_folders(folder: Path) -> list[Seed]:
    """The results of a trained configuration: plans, data set and checkpoint."""
    args: dict[str, Any] = {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3], [3, 3]],
        "strides": [[1, 1], [2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = f"{PLACE}.PlainConvUNet"
    torch.manual_seed(0)
    network = build_nnunet(name, {"input_channels": 1, "num_classes": 2, **args})
    architecture = {"network_class_name": name, "arch_kwargs": args, "_kw_requires_import": ["conv_op", "norm_op"]}
    plans = {
        "dataset_name": "Dataset001_Disc",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "configurations": {
            "2d": {
                "patch_size": [32, 32],
                "spacing": [1.0, 1.0],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "architecture": architecture,
            }
        },
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 5.0, "std": 2.0, "percentile_00_5": 0.0, "percentile_99_5": 9.0}
        },
    }
    dataset = {
        "channel_names": {"0": "grey"},
        "labels": {"background": 0, "disc": 1},
        "numTraining": 3,
        "file_ending": ".png",
    }
    held = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "2d", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "current_epoch": 1000,
    }
    torch.save(held, folder / "checkpoint.pth")
    files = {
        "plans.json": json.dumps(plans).encode(),
        "dataset.json": json.dumps(dataset).encode(),
        "fold_0/checkpoint_final.pth": (folder / "checkpoint.pth").read_bytes(),
    }
    return [Seed(files)]


TARGETS = (
    Target("NIfTI (.nii)", 10, ask_scan, lambda at: nifti_files(at, suffix=".nii")),
    Target("NIfTI (.nii.gz)", 10, ask_scan, lambda at: nifti_files(at, suffix=".nii.gz")),
    Target("NIfTI-2", 6, ask_scan, lambda at: nifti_files(at, suffix=".nii", second=True)),
    Target("NRRD", 10, ask_scan, lambda at: itk_files(at, suffix=".nrrd")),
    Target("MetaImage", 10, ask_scan, lambda at: itk_files(at, suffix=".mha")),
    Target("DICOM series", 8, ask_series, series_folder),
    Target("DICOM files", 8, ask_scan, single_dicom),
    Target("DICOM-SEG", 6, ask_segmentation, segmentations),
    Target("PNG", 8, ask_scan, lambda at: pictures(at, suffix=".png")),
    Target("JPEG", 6, ask_scan, lambda at: pictures(at, suffix=".jpg")),
    Target("TIFF", 8, ask_scan, tiff_files),
    Target("masks of volumes", 6, ask_labels, masks),
    Target("masks of pictures", 6, ask_labels, flat_masks),
    Target("lists (CSV, JSONL)", 8, ask_cases, case_lists),
    Target("dataset.json, classes.json", 8, ask_cases, manifests),
    Target("own model", 6, ask_bundle, own_models),
    Target("MONAI bundle", 6, ask_bundle, bundles),
    Target("weights (safetensors)", 6, ask_weights, lambda at: weight_files(at, suffix=".safetensors")),
    Target("weights (torch)", 6, ask_weights, lambda at: weight_files(at, suffix=".pt")),
    Target("TorchScript", 4, ask_program, lambda at: programs(at, suffix=".ts")),
    Target("torch.export", 4, ask_program, lambda at: programs(at, suffix=".pt2")),
    Target("nnU-Net", 6, ask_bundle, nnunet_folders),
)
"""All that is read from files of others."""
