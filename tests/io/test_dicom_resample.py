"""A tilted or uneven series is refused, and on request interpolated from the true position of every slice."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tiny_dicom as tiny
from scipy import ndimage

from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan, write_labels

SHAPE = (16, 48, 56)
"""Slices, rows, columns."""

CENTRE = np.array([-20.0, 30, 40]) + 27 * 0.6 * tiny.OBLIQUE[:3] + 24 * 0.8 * tiny.OBLIQUE[3:]
DOWN, NORMAL = tiny.OBLIQUE[3:], tiny.normal(tiny.OBLIQUE)
LPS_TO_RAS = np.diag([-1.0, -1, 1])


def tilted(degrees=14.0):
    steps = np.arange(SHAPE[0])[:, None] * 2.0
    return tiny.positions(SHAPE[0], step=2.0) + steps * np.tan(np.radians(degrees)) * DOWN


def uneven():
    depths = np.cumsum([0, 2, 2, 2, 2, 2, 2, 2, 2.6, 2.6, 2.6, 2.6, 2.6, 2.6, 2.6, 2.6])
    return tiny.positions(1)[0] + depths[:, None] * NORMAL


def tilted_and_uneven():
    return uneven() + (tilted() - tiny.positions(SHAPE[0], step=2.0))


def sideways():
    """Every other slice is shifted along its rows."""
    where = tiny.positions(SHAPE[0], step=2.0)
    where[1::2] += 3.0 * tiny.OBLIQUE[:3]
    where[-1] = where[0] + 2.0 * (SHAPE[0] - 1) * NORMAL
    return where


WHERE = {"tilted": tilted, "uneven": uneven, "both": tilted_and_uneven, "sideways": sideways}


def points(where):
    """Millimetres (LPS) of every voxel, (slices, rows, columns, 3)."""
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    plane = columns[..., None] * 0.6 * tiny.OBLIQUE[:3] + rows[..., None] * 0.8 * DOWN
    return where[:, None, None, :] + plane


def middle(where):
    return where.mean(axis=0) + CENTRE - tiny.positions(1)[0]


def ball(at, centre, radius=9.0):
    """Positive inside, by the distance to the surface."""
    return radius - np.linalg.norm(at - centre, axis=-1)


def series(folder, where, values):
    stored = np.rint(values).astype(np.int16)
    return tiny.slices(folder, stored, where, slope=[(0.01, 0)] * len(stored))


def world(scan):
    """Millimetres (LPS) of every voxel of a scan."""
    index = np.moveaxis(np.indices(scan.shape), 0, -1)
    return (index @ scan.affine[:3, :3].T + scan.affine[:3, 3]) @ LPS_TO_RAS


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("tilted", r"tilted by 14\.0°"),
        ("uneven", r"unevenly spaced, from 2\.00 to 2\.60 mm apart"),
        ("both", r"tilted by 1\d\.\d° .* and its slices are unevenly spaced"),
        ("sideways", r"slices lie up to 3\.\d\d mm from a straight and even stack"),
    ],
)
def test_it_is_refused_unless_asked_for(tmp_path, kind, sentence):
    where = WHERE[kind]()
    folder = series(tmp_path / "series", where, 100 * ball(points(where), middle(where)))
    with pytest.raises(CeaseError, match=rf"{sentence}.*resample=True"):
        read_scan(folder)
    assert (
        read_scan(folder, resample=True)
        .metadata["resampled"]
        .endswith("interpolated linearly onto an upright, even grid")
    )


@pytest.mark.parametrize("kind", WHERE)
def test_a_ball_stays_where_it_is(tmp_path, kind):
    where = WHERE[kind]()
    centre = middle(where)
    scan = read_scan(series(tmp_path / "series", where, 100 * ball(points(where), centre)), resample=True)
    found, truth = scan.image[0] > 0, ball(world(scan), centre) > 0
    assert dice(found, truth) >= 0.98
    np.testing.assert_allclose(scan.affine[:3, :3].T @ scan.affine[:3, :3], np.diag(np.square(scan.spacing)), atol=1e-9)

    # Its mask, as NIfTI, in another program: every original voxel finds there what lies nearest to it.
    write_labels(found.astype(int), scan, tmp_path / "mask.nii.gz")
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    array = sitk.GetArrayFromImage(mask).T
    direction = np.reshape(mask.GetDirection(), (3, 3)) * mask.GetSpacing()
    nearest = np.rint((points(where) - mask.GetOrigin()) @ np.linalg.inv(direction).T).astype(int)
    back = array[tuple(np.moveaxis(np.clip(nearest, 0, np.array(array.shape) - 1), -1, 0))]
    assert dice(back > 0, ball(nearest @ direction.T + mask.GetOrigin(), centre) > 0) >= 0.98


@pytest.mark.parametrize("kind", WHERE)
def test_a_slope_is_interpolated_exactly(tmp_path, kind):
    where = WHERE[kind]()
    across = np.array([0.3, -0.7, 0.5])
    ramp = (points(where) - where.mean(axis=0)) @ across
    scan = read_scan(series(tmp_path / "series", where, 100 * ramp), resample=True)
    expected = (world(scan) - where.mean(axis=0)) @ across
    inside = scan.image[0] > ramp.min() + 1
    deep = ndimage.binary_erosion(inside, iterations=2)
    assert np.count_nonzero(deep) > 0.4 * deep.size
    np.testing.assert_allclose(scan.image[0][deep], expected[deep], atol=0.02)


def test_no_slice_is_cut_off(tmp_path):
    where = tilted()
    folder = series(tmp_path / "series", where, np.full(SHAPE, 700.0))
    scan = read_scan(folder, resample=True)
    assert scan.file_shape[0] == SHAPE[2]
    shear = (SHAPE[0] - 1) * 2.0 * np.tan(np.radians(14))
    assert scan.file_shape[1] == SHAPE[1] + np.ceil(shear / 0.8)
    assert scan.file_shape[2] == SHAPE[0]


def test_its_segmentation_lies_on_the_new_grid(tmp_path):
    where = tilted()
    scan = read_scan(series(tmp_path / "series", where, 100 * ball(points(where), middle(where))), resample=True)
    mask = (scan.image[0] > 0).astype(int)
    write_labels(mask, scan, tmp_path / "mask.dcm")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.dcm", scan), mask)


def test_several_frames_in_one_file(tmp_path):
    where = tilted()
    stored = np.rint(100 * ball(points(where), middle(where))).astype(np.int16)
    classic = tiny.slices(tmp_path / "classic", stored, where)
    enhanced = tiny.frames(tmp_path / "e.dcm", stored, where)
    one, other = (read_scan(path, resample=True) for path in (classic, enhanced))
    np.testing.assert_allclose(one.image, other.image, atol=1e-3)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-6)


def test_an_even_series_stays_as_it_is(samples):
    asked, plain = (read_scan(samples / "dicom_t1w", resample=r) for r in (True, False))
    np.testing.assert_array_equal(asked.image, plain.image)
    assert "resampled" not in asked.metadata


def test_missing_and_repeated_slices_stay_refused(tmp_path):
    where = tiny.positions(SHAPE[0])
    values = np.zeros(SHAPE)
    folder = series(tmp_path / "series", where, values)
    (folder / "005.dcm").unlink()
    with pytest.raises(CeaseError, match=r"1 slice\(s\) missing"):
        read_scan(folder, resample=True)
    again = pydicom.dcmread(folder / "004.dcm")
    again.save_as(folder / "005.dcm")
    with pytest.raises(CeaseError, match="lie where another one does"):
        read_scan(folder, resample=True)
