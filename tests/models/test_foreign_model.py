"""A foreign network's grid, intensities and windows: there and back, and differentiable all the way."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, Spacingd
from monai_bundles import by_us, store
from torch import Tensor, nn

from cease_core.errors import CeaseError
from cease_core.io import read_scan
from cease_core.models import ForeignModel, WindowRule, predict_labels
from cease_core.models.foreign.cards import class_infos, make_card
from cease_core.models.foreign.grid import Grid
from cease_core.models.foreign.intensities import fit
from cease_core.models.foreign.spec import Clip, Foreign, Percentiles, Scale, Standardise
from cease_core.scan import Layout, Scan

SAMPLES = Path(__file__).parents[2] / "sample_data"
CODES = ["".join(c) for order in permutations(("RL", "AP", "SI")) for c in product(*order)]


class Above(nn.Module):
    """Logit of being brighter than a threshold, in the network's own intensities."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images: Tensor) -> Tensor:
        return images - self.threshold


def made(
    network: nn.Module | None = None,
    ndim: int = 3,
    window: tuple[float, float] = (0.0, 1.0),
    roi: tuple[int, ...] = (),
    **foreign: Any,
) -> ForeignModel:
    card = make_card(
        name="above",
        title="Above",
        architecture="Above",
        ndim=ndim,
        channels=1,
        classes=class_infos(["bright"]),
        mode="binary",
        window=WindowRule(kind="fixed", low=window[0], high=window[1]),
        foreign={"kind": "registered", "window": roi, **foreign},
    )
    return ForeignModel(card, (network or Above()).eval())


@pytest.fixture(scope="session")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of a CT, stored oblique, anisotropic and turned."""
    path = tmp_path_factory.mktemp("scans") / "ct.nii"
    whole = np.asarray(nib.load(SAMPLES / "ct_body_totalseg" / "images" / "example_ct.nii.gz").dataobj, np.float32)
    store(whole[0:70, 0:60, 40:70], (1.8, 1.8, 3.5), path, codes="PIR", tilt=8.0)
    return path


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


# --- there and back ---


@pytest.mark.parametrize(
    ("codes", "spacing"), [("LPS", (1.5, 1.5, 1.5)), ("SAR", (3.0, 1.2, 2.0)), ("RAS", (1.0, 2.5, 3.5))]
)
def test_a_mask_comes_back_onto_the_scans_own_grid(ct: Path, codes: str, spacing: tuple[float, ...]) -> None:
    """Against the mask on the network's grid, brought back by nearest neighbours."""
    scan = read_scan(ct)
    model = made(Above(-200.0), window=(-1000, 1000), orientation=codes, spacing=spacing, align="centres")
    ours = predict_labels(by_us(model, scan)[None], "binary")[0].numpy() > 0
    prepare = Compose(
        [LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", codes), Spacingd("image", spacing)]
    )
    case = prepare({"image": str(ct)})
    case["pred"] = (case["image"] > -200).float()
    back = Invertd("pred", transform=prepare, orig_keys="image", nearest_interp=True)(case)["pred"]
    truth = scan.layout.to_display(np.asarray(back)[0]) > 0
    assert dice(ours, truth) >= 0.98
    assert 0.1 < truth.mean() < 0.9


@pytest.mark.parametrize("codes", CODES)
def test_every_orientation_is_the_one_that_nibabel_means(tmp_path: Path, codes: str) -> None:
    values = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    scan = store(values, (1.0, 2.0, 3.0), tmp_path / "scan.nii", codes="PIR", tilt=20)
    grid = Grid.of(Foreign(kind="registered", orientation=codes), scan, 3)
    stored = nib.load(tmp_path / "scan.nii")
    ends = nib.orientations.axcodes2ornt(tuple(codes))
    turned = stored.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(stored.affine), ends))
    images = torch.from_numpy(scan.image)[None]
    assert np.array_equal(grid.enter(images)[0, 0].numpy(), turned.get_fdata(dtype=np.float32))
    assert torch.equal(grid.leave(grid.enter(images), scan.shape), images)


def test_the_files_own_order_is_kept_either_way(tmp_path: Path) -> None:
    values = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    scan = store(values, (1.0, 2.0, 3.0), tmp_path / "scan.nii", codes="PIR")
    stored = nib.load(tmp_path / "scan.nii").get_fdata(dtype=np.float32)
    images = torch.from_numpy(scan.image)[None]
    for orientation, expected in {"xyz": stored, "zyx": stored.T, "display": scan.image[0]}.items():
        grid = Grid.of(Foreign(kind="registered", orientation=orientation), scan, 3)
        assert np.array_equal(grid.enter(images)[0, 0].numpy(), expected)
    grid = Grid.of(Foreign(kind="registered", orientation="xyz", transpose=(2, 0, 1)), scan, 3)
    assert np.array_equal(grid.enter(images)[0, 0].numpy(), stored.transpose(2, 0, 1))


@pytest.mark.parametrize("align", ["edges", "centres"])
@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.7])
def test_what_changes_evenly_comes_back_as_it_was(align: str, factor: float) -> None:
    ramp = torch.arange(40, dtype=torch.float64).view(1, 1, 40, 1, 1).expand(1, 1, 40, 6, 7) * 3 - 5
    scan = Scan(ramp[0].numpy().astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    grid = Grid.of(Foreign(kind="registered", spacing=(2 * factor, 0, 2.0), align=align), scan, 3)
    there = grid.enter(ramp)
    assert there.shape[2] == (round(40 / factor) if align == "edges" else round(39 / factor + 1))
    assert there.shape[3:] == (6, 7)
    back = grid.leave(there, (40, 6, 7))
    if align == "centres":
        assert torch.allclose(back[:, :, :-2], ramp[:, :, :-2], atol=1e-9)
    else:
        assert torch.allclose(back[:, :, 2:-2], ramp[:, :, 2:-2], atol=1e-9)


def test_whole_scans_may_be_brought_to_one_size() -> None:
    scan = Scan(np.random.default_rng(0).random((1, 30, 20)).astype(np.float32), np.eye(4), length_unit="pixel")
    grid = Grid.of(Foreign(kind="registered", size=(24, 60), align="edges", orientation="display"), scan, 2)
    images = torch.from_numpy(scan.image)[None]
    assert grid.enter(images).shape == (1, 1, 24, 60)
    assert grid.leave(grid.enter(images), (30, 20)).shape == images.shape
    expected = nn.functional.interpolate(images, (24, 60), mode="bilinear", align_corners=False)
    assert torch.allclose(grid.enter(images), expected, atol=1e-6)


def test_pictures_that_know_no_size_are_not_resampled() -> None:
    scan = Scan(np.ones((1, 8, 8), np.float32), np.eye(4), length_unit="pixel")
    assert Grid.of(Foreign(kind="registered", spacing=(0.5, 0.5)), scan, 2).zoom == (1, 1)


@pytest.mark.parametrize("align", ["edges", "centres"])
def test_the_grids_gradient_is_exact(align: str) -> None:
    grid = Grid(Layout((1, 0), (True, False)), (1.6, 0.7), align == "centres")
    images = torch.rand(1, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: grid.leave(grid.enter(x), (6, 5)), images)


# --- intensities ---


STEPS = (
    Clip(low=-1.0),
    Standardise(over="nonzero", only_there=True),
    Percentiles(lower=1, upper=99, low=-1, high=1, clip=True),
    Scale(factor=(2.0, 3.0), offset=(0.5, 0.0)),
)


def by_hand(image: np.ndarray) -> np.ndarray:
    x = np.maximum(image, -1).astype(np.float64)
    for channel in x:
        there = channel != 0
        channel[there] = (channel[there] - channel[there].mean()) / channel[there].std()
    low, high = np.percentile(x, (1, 99))
    x = np.clip(2 * (x - low) / (high - low) - 1, -1, 1)
    return x * np.array([2.0, 3.0]).reshape(-1, 1, 1, 1) + np.array([0.5, 0.0]).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(("low", "width"), [(0.0, 1.0), (-3.0, 9.0)])
def test_steps_are_fitted_to_a_scan_and_start_from_window_fractions(low: float, width: float) -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(1, 2, (2, 6, 7, 8)).astype(np.float32)
    image[:, :2] = 0
    values = torch.from_numpy((image - low) / width)[None].float()
    for stage in fit(STEPS, image, low=low, width=width):
        values = stage(values)
    assert np.allclose(values[0].numpy(), by_hand(image), atol=1e-5)


def test_air_stays_air_though_intensities_were_scaled_before() -> None:
    """What counts as zero shrinks with the values."""
    image = np.concatenate([np.zeros(50), np.linspace(1, 2000, 150)]).astype(np.float32).reshape(1, 10, 20)
    steps = (Scale(factor=(1e-3,)), Standardise(over="nonzero", only_there=True))
    values = torch.from_numpy(image / 2000)[None]
    for stage in fit(steps, image, low=0, width=2000):
        values = stage(values)
    inside = image[image > 0]
    assert np.allclose(values[0].numpy()[image > 0], (inside - inside.mean()) / inside.std(), atol=1e-5)
    assert (values[0].numpy()[image == 0] == 0).all()


@pytest.mark.parametrize("resampled", ["first", "last"])
def test_figures_of_a_scan_are_taken_before_or_after_it_is_resampled(ct: Path, resampled: str) -> None:
    scan = read_scan(ct)
    model = made(spacing=(6.0, 6.0, 6.0), steps=(Percentiles(),), resampled=resampled, window=(-1000, 1000))
    seen: list[Tensor] = []
    model.asked.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    by_us(model, scan)
    spread = (float(seen[0].min()), float(seen[0].max()))
    assert (spread == pytest.approx((0, 1), abs=1e-5)) == (resampled == "first")


def test_a_model_by_itself_takes_images_on_its_own_grid() -> None:
    model = made(ndim=2, steps=(Percentiles(),), window=(0, 10))
    images = torch.rand(1, 1, 9, 9)
    with torch.no_grad():
        logits = model(images)
    assert (float(logits.min()), float(logits.max())) == pytest.approx((0, 1), abs=1e-6)


# --- windows ---


class Border(nn.Module):
    """Says what it sees at the corner of its input, everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        self.sizes = images.shape[2:]
        return images + images[..., :1, :1]


@pytest.mark.parametrize(("padding", "expected"), [("zeros", 0.0), ("edge", 7.0)])
def test_small_images_are_padded_to_the_window(padding: str, expected: float) -> None:
    network = Border()
    model = made(network, ndim=2, roi=(16, 12), padding=padding)
    scan = Scan(np.eye(5, 9, dtype=np.float32)[None], np.eye(4))
    with torch.no_grad():
        logits = model.on(scan)(torch.full((1, 1, 5, 9), 7.0))
    assert tuple(network.sizes) == (16, 12)
    assert logits.shape == (1, 1, 5, 9)
    assert torch.equal(logits, torch.full_like(logits, 7 + expected))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_gradient_through_everything_is_that_of_the_logits(ct: Path, ndim: int) -> None:
    """A small step along a random direction changes the loss as the gradient says."""
    torch.manual_seed(0)
    conv = nn.Conv2d if ndim == 2 else nn.Conv3d
    network = nn.Sequential(conv(1, 4, 3, padding=1), nn.Tanh(), conv(4, 1, 3, padding=1))
    scale = (Scale(factor=(1e-3,)),)
    model = made(network, ndim, (-1000, 1000), (16,) * ndim, orientation="LPS", spacing=(2.2,) * ndim, steps=scale)
    bound = model.on(read_scan(ct))
    images = torch.rand(1, 1, *(20, 24, 22)[:ndim], requires_grad=True)
    weights = torch.rand(1, 1, *images.shape[2:])
    direction = torch.randn_like(images)
    (gradient,) = torch.autograd.grad((bound(images) * weights).sum(), images)
    with torch.no_grad():
        step = 1e-2
        change = ((bound(images + step * direction) - bound(images - step * direction)) * weights).sum() / (2 * step)
    assert float(change) == pytest.approx(float((gradient * direction).sum()), rel=2e-3)


# --- the card ---


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"orientation": "RLS"}, "each of the three directions"),
        ({"orientation": "ras"}, "orientation"),
        ({"spacing": (1.0, 1.0)}, "2 values for 3 axes"),
        ({"spacing": (1.0, 1.0, -1.0)}, "above 0"),
        ({"size": (4, 4)}, "2 values for 3 axes"),
        ({"size": (4, 4, 0)}, "edges are at least 1"),
        ({"size": (4, 4, 4), "spacing": (1.0, 1.0, 1.0)}, "no voxel size beside it"),
        ({"fixed": True}, "needs one"),
        ({"transpose": (0, 0, 1)}, "each axis once"),
        ({"outputs": (0, 0)}, "each channel once"),
        ({"overlap": 1.0}, "less than 1"),
        ({"steps": [{"kind": "clip"}]}, "give low, high or both"),
        ({"steps": [{"kind": "percentiles", "lower": 9, "upper": 9}]}, "upper must be above lower"),
        ({"colour": 1}, "no such entry"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        made(**fields)
