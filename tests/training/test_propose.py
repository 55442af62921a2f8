"""A config made from the data: what shapes, units and masks suggest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cease_core.data import Case, Dataset, describe, survey
from cease_core.data.survey import Facts
from cease_core.errors import CeaseError
from cease_core.training import TrainingConfig
from cease_core.training.propose import propose

SAMPLES = Path(__file__).parents[2] / "sample_data"


def _facts(shape: tuple[int, ...], *, unit: str = "a.u.", ids: tuple[int, ...] = (0, 1), channels: int = 1) -> Facts:
    return Facts(
        case=Case("case", Path("image"), Path("labels")),
        channels=channels,
        shape=shape,
        spacing=(1.0,) * len(shape),
        unit=unit,
        length_unit="mm",
        constant=False,
        digest="",
        voxels=dict.fromkeys(ids, 1),
        sample=np.zeros((channels, 1), np.float32),
    )


def _proposed(*facts: Facts, **given: Any) -> dict[str, Any]:
    return propose(Dataset("Some data", "folders", ()), facts, given=given)


@pytest.mark.parametrize(
    ("folder", "ndim", "channels", "mode", "window"),
    [
        ("polyp_hyperkvasir", 2, 3, "binary", ("fixed", 0, 255)),
        ("heart_mr_hvsmr2", 2, 1, "multiclass", ("fixed", 0, 255)),
        ("hippocampus_mri", 3, 1, "multiclass", ("percentile", 0.5, 99.5)),
    ],
)
def test_real_data(folder: str, ndim: int, channels: int, mode: str, window: tuple[str, float, float]) -> None:
    dataset = describe(SAMPLES / folder)
    facts = [f for f in survey(dataset.cases) if isinstance(f, Facts)]
    raw = propose(dataset, facts, given={})
    config = TrainingConfig.model_validate(raw | {"data": {"name": folder}, "epochs": 1})
    assert (config.ndim, config.channels, config.mode) == (ndim, channels, mode)
    assert (config.window.kind, config.window.low, config.window.high) == window
    assert {c.id: c.name for c in config.classes}.items() >= dataset.classes.items()
    # The residual U-Net halves three times.
    assert all(size % 8 == 0 for size in config.patch)


def test_ct_gets_a_soft_tissue_window() -> None:
    assert _proposed(_facts((64, 64), unit="HU"))["window"] == {"kind": "fixed", "low": -160, "high": 240}


def test_patches_are_as_large_as_the_median_image_up_to_a_cap() -> None:
    small = _proposed(_facts((50, 70)), _facts((52, 75)), _facts((90, 90)))
    assert (small["patch"], small["foreground"]) == ([48, 72], 0.0)
    assert _proposed(_facts((400, 380)))["patch"] == [256, 256]
    volume = _proposed(_facts((40, 300, 300)))
    # A patch that shows a small part of the volume is centred on a structure every other time.
    assert (volume["patch"], volume["foreground"], volume["batch_size"]) == ([40, 96, 96], 0.5, 2)
    # The coarsest of its features, at a 32nd of the size, still has two samples.
    assert _proposed(_facts((40, 40)), architecture="swin_unetr")["patch"] == [64, 64]


def test_large_pictures_are_averaged_down() -> None:
    raw = _proposed(_facts((1200, 900)))
    assert (raw["downsample"], raw["patch"]) == (4, [256, 224])
    assert _proposed(_facts((1200, 900)), downsample=1)["patch"] == [256, 256]


def test_batches_shrink_with_the_data() -> None:
    assert _proposed(*[_facts((64, 64))] * 400)["batch_size"] == 16
    assert _proposed(*[_facts((64, 64))] * 40)["batch_size"] == 4
    assert _proposed(*[_facts((64, 64))] * 4)["batch_size"] == 2


def test_volumes_of_few_slices_are_seen_slice_by_slice() -> None:
    raw = _proposed(_facts((5, 64, 48)))
    assert (raw["ndim"], raw["patch"]) == (2, [64, 48])
    assert _proposed(_facts((32, 64, 48)))["ndim"] == 3
    assert _proposed(_facts((32, 64, 48)), ndim=2)["patch"] == [64, 48]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([_facts((64, 64)), _facts((8, 64, 64))], "add --set ndim=2"),
        ([_facts((64, 64)), _facts((64, 64), channels=3)], "1 or 3 channels"),
        ([_facts((64, 64), ids=(0,))], "masks of these cases are empty"),
        ([_facts((64, 64), ids=(0, 1, 3))], "class ids 1, 3; number the classes 1, 2"),
    ],
)
def test_data_that_do_not_fit_together(facts: list[Facts], words: str) -> None:
    with pytest.raises(CeaseError, match=words):
        _proposed(*facts)


def test_names_of_classes_fill_gaps() -> None:
    dataset = Dataset("Some data", "nnunet", (), {1: "liver", 2: "tumour", 3: "vessel"})
    raw = propose(dataset, [_facts((64, 64), ids=(0, 1, 3))], given={})
    assert [c["name"] for c in raw["classes"]] == ["liver", "tumour", "vessel"]
    assert raw["name"] == "some-data"
