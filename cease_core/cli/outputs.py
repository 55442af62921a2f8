"""What ``cease attack`` leaves behind: files on the scan's own grid, and ``result.json`` with the figures.

All figures are taken from the arrays as they are written, in float32 and the scan's unit, so that whoever
opens the files finds them again.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cease_core.attacks import Attack, AttackResult
from cease_core.attacks.build import describe
from cease_core.attacks.minimal import MinimalResult
from cease_core.attacks.on_scan import Subject
from cease_core.errors import CeaseError
from cease_core.evaluation import dice_per_class, distortion
from cease_core.io import write_labels, write_scan
from cease_core.io.files import write_reason, write_text
from cease_core.models import ModelCard
from cease_core.scan import FloatArray, LabelArray, Scan, Window

REFERENCES = {"labels": "labels", "clean mask": "the model's own clean mask"}
ZERO_GREY = 128
"""Grey level of the perturbation's PNG that means no change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A finished attack with the settings it ran under."""

    subject: Subject
    card: ModelCard
    attack: Attack
    result: AttackResult
    attack_name: str
    epsilon_given: str | None
    target_given: str | None
    region_given: str | None
    slice_index: int | None
    device: str
    seconds: float


def prepare_folder(folder: Path) -> None:
    """Make the folder, and make sure that it can be written before anything is computed.

    Raises
    ------
    CeaseError
        If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise CeaseError(f"{folder} is a file, not a folder; choose another --out.") from error
    except OSError as error:
        raise CeaseError(f"{folder} cannot be written: {write_reason(error)}.") from error


def write_outcome(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Write all files into ``folder`` and return what ``result.json`` holds.

    Raises
    ------
    CeaseError
        If a file cannot be written.
    """
    subject = outcome.subject
    adversarial = subject.perturbed_scan(outcome.result.perturbation)
    perturbation = np.zeros_like(subject.scan.image)
    perturbation[(slice(None), *subject.place)] = subject.in_unit(outcome.result.perturbation)
    clean_mask = _segment(subject, subject.scan.image)
    attacked_mask = _segment(subject, adversarial)
    report = _report(outcome, adversarial, clean_mask, attacked_mask)
    if _is_eight_bit_picture(subject.scan):
        suffix = ".png"
        report["files"] = _write_picture(subject.scan, adversarial, perturbation, folder)
        rounded_mask = _segment(subject, _to_grey_levels(adversarial))
        for row, dice in zip(report["classes"], _dice(outcome, rounded_mask).values(), strict=True):
            row["attacked_dice_rounded"] = dice
    else:
        suffix = ".tif" if _is_picture(subject.scan) else ".nii.gz"
        report["files"] = {name: f"{name}{suffix}" for name in ("adversarial", "perturbation")}
        write_scan(adversarial, subject.scan, folder / report["files"]["adversarial"])
        write_scan(perturbation, subject.scan, folder / report["files"]["perturbation"])
    for name, mask in {"clean_mask": clean_mask, "attacked_mask": attacked_mask}.items():
        report["files"][name] = f"{name}{suffix}"
        write_labels(_onto_scan(mask, subject), subject.scan, folder / f"{name}{suffix}")
    write_text(folder / "result.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return report


def _segment(subject: Subject, image: FloatArray) -> LabelArray:
    """The model's mask (*part) of intensities (C, *spatial)."""
    with torch.no_grad():
        return subject.mask(subject.model(_fractions(subject, image).to(subject.images.device)))


def _fractions(subject: Subject, image: FloatArray) -> torch.Tensor:
    window = subject.window
    part = (image[(slice(None), *subject.place)] - np.float32(window.low)) / np.float32(window.width)
    return torch.from_numpy(np.ascontiguousarray(part)).unsqueeze(0)


def _onto_scan(mask: LabelArray, subject: Subject) -> LabelArray:
    """A mask of the attacked part on the whole scan's grid, 0 elsewhere."""
    whole = np.zeros(subject.scan.shape, np.int32)
    whole[subject.place] = mask
    return whole


def _dice(outcome: Outcome, mask: LabelArray) -> dict[int, float]:
    reference = outcome.subject.labels[0].cpu().numpy().astype(np.int32)
    return dice_per_class(mask, reference, [c.id for c in outcome.card.classes])


def _report(
    outcome: Outcome, adversarial: FloatArray, clean_mask: LabelArray, attacked_mask: LabelArray
) -> dict[str, Any]:
    subject, card, result = outcome.subject, outcome.card, outcome.result
    scan, window = subject.scan, subject.window
    size = distortion(_fractions(subject, scan.image), _fractions(subject, adversarial))
    clean, attacked = _dice(outcome, clean_mask), _dice(outcome, attacked_mask)
    settings = {k: v for k, v in describe(outcome.attack).items() if k not in ("attack", "epsilon")}
    return {
        "scan": {"name": scan.name, "file": scan.path.name if scan.path else None, "shape": list(scan.shape)},
        "model": {"name": card.name, "title": card.title, "defence": card.defence},
        "attack": {"name": outcome.attack_name, **settings},
        "epsilon": {
            "given": outcome.epsilon_given,
            "fraction": outcome.attack.epsilon,
            "in_unit": outcome.attack.epsilon * window.width,
            "unit": scan.unit,
        },
        "window": {"low": window.low, "high": window.high},
        "slice": outcome.slice_index,
        "reference": REFERENCES[subject.reference],
        "classes": [
            {"id": c.id, "name": c.name, "clean_dice": clean[c.id], "attacked_dice": attacked[c.id]}
            for c in card.classes
        ],
        "target": outcome.target_given,
        "target_dice": None if result.target_dice is None else float(result.target_dice[0]),
        "minimal": _minimal(result, window),
        "region": outcome.region_given,
        "distortion": {
            "linf": size.linf,
            "linf_in_unit": size.linf * window.width,
            "rms": size.rms,
            "psnr": size.psnr if math.isfinite(size.psnr) else None,
            "ssim": size.ssim,
        },
        "gradients": int(result.gradients[0]),
        "queries": int(result.queries[0]),
        "seconds": round(outcome.seconds, 3),
        "cancelled": result.cancelled,
        "device": outcome.device,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("napari-cease", "torch", "monai", "numpy")},
        },
    }


def _minimal(result: AttackResult, window: Window) -> dict[str, Any] | None:
    """What an attack that looks for the smallest perturbation has found."""
    if not isinstance(result, MinimalResult):
        return None
    size = float(result.minimal[0])
    if not math.isfinite(size):
        return {"success": False, "fraction": None, "in_unit": None}
    return {"success": True, "fraction": size, "in_unit": size * window.width}


def _is_picture(scan: Scan) -> bool:
    return scan.metadata.get("format") == "picture"


def _is_eight_bit_picture(scan: Scan) -> bool:
    return _is_picture(scan) and scan.ndim == 2 and scan.unit == "8-bit" and scan.channels in (1, 3)


def _to_grey_levels(image: FloatArray) -> FloatArray:
    return np.clip(np.rint(image), 0, 255).astype(np.float32)


def _write_picture(scan: Scan, adversarial: FloatArray, perturbation: FloatArray, folder: Path) -> dict[str, str]:
    """PNGs to look at, rounded to grey levels, and the exact perturbation as floating-point TIFF."""
    files = {
        "adversarial": "adversarial.png",
        "perturbation": "perturbation.png",
        "perturbation_exact": "perturbation.tif",
    }
    write_scan(_to_grey_levels(adversarial), scan, folder / files["adversarial"])
    write_scan(_to_grey_levels(perturbation + ZERO_GREY), scan, folder / files["perturbation"])
    write_scan(perturbation, scan, folder / files["perturbation_exact"])
    return files
