"""The cache gives back what decoding gives, and decodes again only what has changed or was damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cease_core.data import Cached, Case, find_cases, load_case
from cease_core.errors import CeaseError

SAMPLES = Path(__file__).parents[2] / "sample_data"


@pytest.mark.parametrize("name", ["hippocampus_mri", "cardiac_mr_sunnybrook", "polyp_hyperkvasir", "nuclei_histology"])
def test_the_cache_gives_back_what_was_decoded(name: str, tmp_path: Path) -> None:
    case, cache = find_cases(SAMPLES / name)[0], Cached(tmp_path / "cache")
    plain, mask = load_case(case)
    for _ in range(2):
        scan, labels = load_case(case, cache)
        assert np.array_equal(scan.image, plain.image)
        assert np.array_equal(labels, mask)
        assert (scan.image.dtype, labels.dtype) == (np.float32, np.int32)
        assert np.array_equal(scan.affine, plain.affine)
        facts = ("name", "unit", "length_unit", "window", "rgb", "layout", "path", "metadata")
        assert [getattr(scan, f) for f in facts] == [getattr(plain, f) for f in facts]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def cached_case(folder: Path) -> tuple[Case, Cached]:
    """A case in its own folder, and a cache that holds it."""
    case = find_cases(SAMPLES / "hippocampus_mri")[0]
    copied = Case("a", folder / "a.nii.gz", folder / "mask.nii.gz")
    for source, copy in ((case.image, copied.image), (case.labels, copied.labels)):
        shutil.copy(source, copy)
    cache = Cached(folder / "cache")
    case = copied
    load_case(case, cache)
    return case, cache


def test_a_second_reading_decodes_nothing(tmp_path: Path) -> None:
    case, cache = cached_case(tmp_path)
    files = [case.image, case.labels]

    def decode() -> Any:
        raise AssertionError("decoded again")

    scan, _ = cache.load(files, decode)
    assert scan.name == "a"
    scan.image[:] = -7  # what is done to the array stays in memory
    assert not (cache.load(files, decode)[0].image == -7).any()


def test_a_changed_file_replaces_its_entry(tmp_path: Path) -> None:
    case, cache = cached_case(tmp_path)
    before = case.image.stat().st_mtime_ns
    shutil.copy(case.labels, case.image)
    assert load_case(case, cache)[0].image.max() == 2
    os.utime(case.image, ns=(before, before))  # its size still tells
    shutil.copy(find_cases(SAMPLES / "hippocampus_mri")[0].image, case.image)
    os.utime(case.image, ns=(before, before))
    assert load_case(case, cache)[0].image.max() > 2
    assert len(list(cache.folder.iterdir())) == 1


@pytest.mark.parametrize("damaged", ["image.npy", "labels.npy", "scan.json"])
@pytest.mark.parametrize("left", [0, 100, None])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damaged: str, left: int | None) -> None:
    case, cache = cached_case(tmp_path)
    (entry,) = cache.folder.iterdir()
    if left is None:
        (entry / damaged).unlink()
    else:
        (entry / damaged).write_bytes((entry / damaged).read_bytes()[:left])
    assert np.array_equal(load_case(case, cache)[0].image, load_case(case)[0].image)
    assert (entry / damaged).stat().st_size > 100


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    case, _ = cached_case(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CeaseError, match="cannot keep decoded scans"):
        load_case(case, Cached(tmp_path / "file"))
