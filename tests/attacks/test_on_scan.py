"""From a scan to a problem and back: which part is attacked, against which reference, in which unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cease_core.attacks import PGD
from cease_core.attacks.on_scan import WINDOW_EDGE, Extent, pose_on_scan
from cease_core.data import Case, load_case
from cease_core.errors import CeaseError
from cease_core.models import ClassInfo, Mode, ModelCard, SegmentationModel, Windowed, WindowRule, prepare
from cease_core.scan import LabelArray, Scan

SAMPLES = Path(__file__).parents[2] / "sample_data"
NAMES = ("anterior", "posterior")


@pytest.fixture(scope="module")
def brain() -> tuple[Scan, LabelArray]:
    """A hippocampus with its two parts: a whole volume, small enough for one window."""
    folder = SAMPLES / "hippocampus_mri"
    name = "hippocampus_001.nii.gz"
    return load_case(Case("hippocampus_001", folder / "images" / name, folder / "labels" / name))


def model(
    ndim: int, mode: Mode = "multiclass", channels: int = 1, window: WindowRule | None = None
) -> SegmentationModel:
    names = NAMES[:1] if mode == "binary" else NAMES
    card = ModelCard(
        name="tiny",
        title="Tiny",
        architecture="unet",
        architecture_args={"channels": (4, 8)},
        ndim=ndim,  # type: ignore[arg-type]
        channels=channels,
        classes=tuple(ClassInfo(id=i + 1, name=n, color="#E69F00") for i, n in enumerate(names)),
        mode=mode,
        window=window or WindowRule(kind="percentile", low=0.5, high=99.5),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return prepare(SegmentationModel(card))


@pytest.mark.parametrize(
    ("ndim", "extent", "windowed"),
    [(2, "slice", False), (2, "volume", True), (3, "slice", False), (3, "volume", False)],
)
def test_which_part_is_attacked(brain: tuple[Scan, LabelArray], ndim: int, extent: Extent, windowed: bool) -> None:
    scan, labels = brain
    subject = pose_on_scan(model(ndim), scan, labels, extent=extent, index=9)
    part = scan.shape[1:] if (ndim, extent) == (2, "slice") else scan.shape
    assert subject.images.shape == (1, 1, *part)
    assert subject.labels.shape == (1, *part)
    np.testing.assert_array_equal(subject.labels[0], labels[subject.place])
    assert isinstance(subject.model, Windowed) == windowed
    assert subject.reference == "labels"


def test_a_volume_through_a_2d_model_is_its_slices(brain: tuple[Scan, LabelArray]) -> None:
    scan, labels = brain
    flat = model(2)
    whole = pose_on_scan(flat, scan, labels, extent="volume")
    window = whole.model(whole.images)
    for z in (0, 17, scan.shape[0] - 1):
        one = pose_on_scan(flat, scan, labels, extent="slice", index=z)
        torch.testing.assert_close(window[:, :, z], flat(one.images), rtol=1e-4, atol=1e-4)


def test_a_large_volume_is_cut_around_the_slice() -> None:
    generator = np.random.default_rng(0)
    scan = Scan(generator.random((1, 130, 8, 8), np.float32), np.eye(4))
    for index, first in ((0, 0), (65, 65 - WINDOW_EDGE // 2), (129, 130 - WINDOW_EDGE)):
        subject = pose_on_scan(model(3), scan, extent="slice", index=index)
        assert subject.place == (slice(first, first + WINDOW_EDGE), slice(0, 8), slice(0, 8))
        assert subject.images.shape == (1, 1, WINDOW_EDGE, 8, 8)
    assert isinstance(pose_on_scan(model(3), scan, extent="volume").model, Windowed)


def test_intensities_map_to_the_window_and_back(brain: tuple[Scan, LabelArray]) -> None:
    scan, labels = brain
    subject = pose_on_scan(model(2, window=WindowRule(kind="fixed", low=20, high=100)), scan, labels)
    assert subject.window.width == 80
    np.testing.assert_allclose(subject.images[0].numpy() * 80 + 20, scan.image, rtol=0, atol=1e-4)
    # Beyond the window nothing is clipped: the brightest voxel is brighter than 1.
    assert scan.image.max() > 100
    assert subject.images.max() > 1
    one = torch.full_like(subject.images, 8 / 255)
    np.testing.assert_allclose(subject.in_unit(one), 80 * 8 / 255, rtol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_perturbed_scan_changes_the_part_alone(brain: tuple[Scan, LabelArray], ndim: int) -> None:
    scan, labels = brain
    before = scan.image.copy()
    subject = pose_on_scan(model(ndim), scan, labels, extent="slice", index=9)
    epsilon = 4 / 255
    result = PGD(epsilon=epsilon, steps=2).run(subject.problem("soft_dice"))
    perturbed = subject.perturbed_scan(result.perturbation)
    assert perturbed.dtype == np.float32
    np.testing.assert_array_equal(scan.image, before)
    change = np.abs(perturbed - scan.image)
    # Intensities are whole numbers around 100: float32 keeps their sums to about 1e-5.
    assert 0.5 * epsilon * subject.window.width < change.max() <= epsilon * subject.window.width + 1e-4
    outside = np.ones(scan.shape, bool)
    outside[subject.place] = False
    np.testing.assert_array_equal(perturbed[:, outside], scan.image[:, outside])
    assert outside.any() == (ndim == 2)
    unchanged = subject.perturbed_scan(torch.zeros_like(result.perturbation))
    np.testing.assert_array_equal(unchanged, scan.image)


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_without_labels_the_clean_mask_is_the_reference(brain: tuple[Scan, LabelArray], mode: Mode, ndim: int) -> None:
    scan, _ = brain
    subject = pose_on_scan(model(ndim, mode), scan, extent="slice", index=9)
    assert subject.reference == "clean mask"
    problem = subject.problem("soft_dice")
    logits, _, dice = problem.look(torch.zeros_like(problem.images))
    assert (logits > 0).any()
    assert dice.item() == 1
    assert subject.mask(logits).shape == subject.images.shape[2:]
    assert subject.mask(logits).dtype == np.int32


@pytest.mark.parametrize("extent", ["slice", "volume"])
def test_a_clean_mask_comes_from_full_precision(brain: tuple[Scan, LabelArray], extent: Extent) -> None:
    scan, _ = brain
    exact = model(2)
    masks = [
        pose_on_scan(m, scan, extent=extent, index=9).labels for m in (exact, prepare(exact, precision="bfloat16"))
    ]
    assert torch.equal(*masks)


def test_colours_of_a_picture() -> None:
    folder, name = SAMPLES / "nuclei_histology", "0bf33d3db4282d91.png"
    scan, labels = load_case(Case("nuclei", folder / "images" / name, folder / "masks" / name))
    subject = pose_on_scan(model(2, "binary", 3, WindowRule(kind="fixed", low=0, high=255)), scan, labels)
    assert subject.images.shape == (1, 3, *scan.shape)
    np.testing.assert_allclose(subject.images[0].numpy() * 255, scan.image, atol=1e-4)


def constant(scan: Scan) -> Scan:
    return scan.with_image(np.full_like(scan.image, 7))


def tiny(scan: Scan) -> Scan:
    return replace(scan, image=scan.image[:, :2, :2, :2])


@pytest.mark.parametrize(
    ("ndim", "change", "sentence"),
    [
        (2, constant, "every voxel has the same value; open an image that shows something"),
        (3, tiny, "needs at least 3 voxels along each axis; choose a larger scan or a shallower model"),
        (2, tiny, "needs at least 3 voxels along each axis"),
        (3, lambda scan: replace(scan, image=scan.image[:, 0]), "is a single image; choose a 2-D model"),
        (2, lambda scan: replace(scan, image=scan.image.repeat(3, axis=0)), "expects 1 channel, but .* has 3"),
    ],
)
def test_scans_that_do_not_fit(brain: tuple[Scan, LabelArray], ndim: int, change, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        pose_on_scan(model(ndim), change(brain[0]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda labels: labels + 1, "unknown class 3, but Tiny knows 0 background, 1 anterior, 2 posterior"),
        (lambda labels: labels[1:], "choose the labels of this scan"),
        (lambda labels: labels[0], "choose the labels of this scan"),
    ],
)
def test_labels_that_do_not_fit(brain: tuple[Scan, LabelArray], change, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        pose_on_scan(model(2), brain[0], change(brain[1]))


@pytest.mark.parametrize("index", [-1, 1000])
def test_slices_that_do_not_exist(brain: tuple[Scan, LabelArray], index: int) -> None:
    with pytest.raises(CeaseError, match=rf"slice {index} does not exist; .* has slices 0 to {brain[0].shape[0] - 1}"):
        pose_on_scan(model(2), brain[0], extent="slice", index=index)


@pytest.mark.parametrize("edge", [3, 4, 5])
def test_the_smallest_scan_that_is_let_in_is_segmented(edge: int) -> None:
    # Instance norms fail where a single voxel is left at the coarsest level.
    card = model(2).card.model_copy(update={"architecture_args": {"channels": (4, 8), "norm": "instance"}})
    net = SegmentationModel(card)
    assert net.minimum == 3
    scan = Scan(np.random.default_rng(0).random((1, edge, edge), np.float32), np.eye(4))
    assert pose_on_scan(prepare(net), scan).labels.shape == (1, edge, edge)
