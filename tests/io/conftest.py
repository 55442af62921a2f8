"""Real DICOM slices to derive broken series from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

SAMPLES = Path(__file__).parents[2] / "sample_data"

Change = Callable[[int, Any], bool]


@pytest.fixture
def samples() -> Path:
    return SAMPLES


@pytest.fixture
def derive(tmp_path: Path) -> Callable[..., Path]:
    """Copy the sample series into a folder; ``change(index, dataset)`` edits a slice, False leaves it out."""

    def make(change: Change, folder: str = "series", count: int = 14) -> Path:
        target = tmp_path / folder
        target.mkdir(exist_ok=True)
        sources = sorted((SAMPLES / "dicom_t1w").glob("*.dcm"))[:count]
        for index, source in enumerate(sources):
            dataset = pydicom.dcmread(source)
            if change(index, dataset):
                dataset.save_as(target / f"{dataset.SeriesNumber}_{index:03d}.dcm")
        return target

    return make
