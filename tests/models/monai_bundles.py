"""Bundles as MONAI's model zoo writes them, and what MONAI itself makes of a scan with one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Invertd
from torch import Tensor, nn

from cease_core.io import read_scan
from cease_core.models.foreign.model import ForeignModel
from cease_core.scan import Scan

UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "norm": "batch",
}
LOAD = (
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
)
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
WINDOWS = {"_target_": "SlidingWindowInferer", "roi_size": [24, 24, 24], "sw_batch_size": 4, "overlap": 0.5}
CT_RANGE = {
    "_target_": "ScaleIntensityRanged",
    "keys": "image",
    "a_min": -160,
    "a_max": 240,
    "b_min": 0.0,
    "b_max": 1.0,
    "clip": True,
}


def network_of(definition: dict[str, Any], seed: int = 0) -> nn.Module:
    """A network with random weights and lived-in batch norms, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        args = {key: value for key, value in definition.items() if key != "_target_"}
        network = ConfigParser({"net": {"_target_": definition["_target_"], **args}}).get_parsed_content("net")
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return network.eval()


def write_bundle(
    folder: Path,
    network: nn.Module,
    definition: dict[str, Any] | str,
    preparation: Sequence[dict[str, Any]],
    *,
    inferer: dict[str, Any] | None = None,
    after: Sequence[dict[str, Any]] = (SOFTMAX,),
    channels: dict[str, str] | None = None,
    further: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write configs/, models/ and a licence."""
    for part in ("configs", "models"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    config = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": definition,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": list(preparation)},
        "inferer": inferer or {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                *after,
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"},
            ],
        },
        "handlers": [{"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"}],
        "run": ["$@evaluator.run()"],
    }
    port = {"type": "image", "num_channels": 2, "channel_def": channels or {"0": "background", "1": "organ"}}
    data = {"inputs": {"image": {"type": "image"}}, "outputs": {"pred": port}}
    about = {"name": "An organ", "version": "0.1.0", "description": "Segments an organ.", "network_data_format": data}
    (folder / "configs" / "inference.json").write_text(json.dumps(config | (further or {})))
    (folder / "configs" / "metadata.json").write_text(json.dumps(about | (metadata or {})))
    (folder / "LICENSE").write_text("Apache License\n  Version 2.0, January 2004\n\nTERMS AND CONDITIONS")
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def by_monai(bundle: Path, network: nn.Module, image: Path, scan: Scan) -> Tensor:
    """Logits (K, *spatial) on the scan's display grid: preparation, windows and way back are MONAI's own."""
    parser = ConfigParser()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser.read_config(bundle / "configs" / "inference.json")
        prepare: Compose = parser.get_parsed_content("preprocessing")
        case = prepare({"image": str(image)})
        with torch.no_grad():
            logits = parser.get_parsed_content("inferer")(case["image"][None], network)
        # The coarsest heads of a deep supervision come first.
        logits = logits[-1] if isinstance(logits, list | tuple) else logits
        case["pred"] = logits[0]
        back = Invertd(keys="pred", transform=prepare, orig_keys="image", nearest_interp=False, to_tensor=True)
        found = np.asarray(back(case)["pred"])
    return torch.from_numpy(np.ascontiguousarray(scan.layout.with_channels.to_display(found)))


def by_us(model: ForeignModel, scan: Scan) -> Tensor:
    """The same of an imported model."""
    with torch.no_grad():
        return model.on(scan)(fractions(model, scan))[0]


def fractions(model: ForeignModel, scan: Scan) -> Tensor:
    """A scan in window fractions (1, C, *spatial)."""
    window = model.card.window.resolve(scan)
    return torch.from_numpy((scan.image - np.float32(window.low)) / np.float32(window.width))[None]


def store(values: np.ndarray, spacing: Sequence[float], path: Path, *, codes: str = "RAS", tilt: float = 0.0) -> Scan:
    """Write an array as a NIfTI file in another orientation, perhaps oblique, and read it as a scan."""
    turn = np.eye(4)
    cosine, sine = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    affine = turn @ np.diag([*spacing, 1.0])
    affine[:3, 3] = (-40.0, 25.0, 10.0)
    image = nib.Nifti1Image(values, affine)
    ends = nib.orientations.axcodes2ornt(tuple(codes))
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), ends)), path)
    return read_scan(path)
