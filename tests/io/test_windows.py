"""Windows of CT by name: what consoles call them, in HU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cease_core.io import CT_WINDOW, WINDOWS, presets_for, read_scan
from cease_core.scan import percentile_window


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("lung", -1350, 150), ("soft tissue", -160, 240), ("bone", -500, 1300), ("brain", 0, 80)],
)
def test_level_and_width_make_an_interval(name, low, high):
    preset = WINDOWS[name]
    assert preset.window == (low, high)
    assert preset.window.width == preset.width
    assert sum(preset.window) / 2 == preset.level


def test_a_ct_opens_in_soft_tissue_and_offers_all(samples):
    ct = read_scan(samples / "ct_body_totalseg/images/example_ct.nii.gz")
    assert ct.window == CT_WINDOW == WINDOWS["soft tissue"].window
    assert presets_for(ct) == tuple(WINDOWS.values())


def test_a_scan_without_a_unit_offers_none_and_opens_in_percentiles(samples):
    mr = read_scan(samples / "hippocampus_mri/images/hippocampus_001.nii.gz")
    assert presets_for(mr) == ()
    assert mr.window == percentile_window(mr.image)
    assert presets_for(replace(mr, unit="HU"))


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        WINDOWS["own"] = WINDOWS["lung"]  # type: ignore[index]
    assert np.all([p.width > 0 for p in WINDOWS.values()])
