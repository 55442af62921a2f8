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
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cease_core.attacks.on_scan import pose_on_scan
from cease_core.errors import CeaseError
from cease_core.io import read_scan
from cease_core.models import ForeignModel, WindowRule, predict_labels
from cease_core.models.foreign.cards import class_infos, make_card
from cease_core.models.foreign.grid import Grid, resample
from cease_core.models.foreign.intensities import fit
from cease_core.models.foreign.model import Asked
from cease_core.models.foreign.spec import Clip, Foreign, Percentiles, Scale, Standardise
from cease_core.models.foreign.trial import COARSER, made_scan, try_model
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


def test_pictures_are_refused_where_a_voxel_size_is_needed() -> None:
    picture = Scan(np.ones((1, 8, 8), np.float32), np.eye(4), name="photo", length_unit="pixel")
    with pytest.raises(CeaseError, match=r"wants voxels of 0\.5 × any mm, but photo does not say .* without spacing"):
        made(ndim=2, spacing=(0.5, 0)).check(picture)
    made(ndim=2, spacing=(0, 0)).check(picture)


def test_nothing_on_the_way_is_larger_than_both_ends() -> None:
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel())
            return out

    values = torch.rand(1, 1, 4, 40, 8)
    with Watch():
        assert resample(values, (40, 4, 8)).shape == (1, 1, 40, 4, 8)
    assert max(sizes) == values.numel()


def test_only_the_cpu_is_asked_for_double_precision() -> None:
    """Apple's graphics processors have none; torch's meta device stands for any other than the CPU."""
    elsewhere: list[torch.dtype] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            elsewhere.extend([out.dtype] if out.device.type != "cpu" else [])
            return out

    image = np.random.default_rng(0).random((1, 6, 5), np.float32)
    values = torch.empty(1, 1, 6, 5, device="meta")
    with Watch():
        for stage in fit((Standardise(), Clip(low=0)), image):
            values = stage(values)
        assert resample(values, (9, 3)).device.type == "meta"
    assert torch.float32 in elsewhere
    assert torch.float64 not in elsewhere


# --- what a network has done to its logits ---


class Activated(nn.Module):
    """Its input as probabilities."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        if self.classes == 1:
            return images.sigmoid()
        return torch.cat([torch.zeros_like(images), images], 1).softmax(1)


@pytest.mark.parametrize(("activation", "highest"), [("sigmoid", 12.0), ("softmax", 60.0)])
def test_undone_activations_keep_the_gradients_of_sure_pixels(activation: str, highest: float) -> None:
    classes = 1 if activation == "sigmoid" else 2
    card = made(ndim=2, activation=activation).card
    asked = Asked(Activated(classes), card.model_copy(update={"mode": "binary" if classes == 1 else "multiclass"}))
    logits = torch.linspace(-60, highest, 16).view(1, 1, 4, 4).requires_grad_()
    answer = asked(logits)
    answer = answer if classes == 1 else answer.diff(dim=1)
    (gradient,) = torch.autograd.grad(answer.sum(), logits)
    # Close to 1 float32 knows a probability to 6e-8, so a logit of 12 to a hundredth.
    assert torch.allclose(answer, logits, rtol=0, atol=0.02)
    assert torch.allclose(gradient, torch.ones(()), rtol=0, atol=0.02)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_undone_activations_are_finite_where_a_probability_is_0_or_1(activation: str) -> None:
    classes = 1 if activation == "sigmoid" else 2
    card = made(ndim=2, activation=activation).card
    asked = Asked(Activated(classes), card.model_copy(update={"mode": "binary" if classes == 1 else "multiclass"}))
    logits = torch.tensor([-1000.0, -80, 80, 1000]).view(1, 1, 2, 2).requires_grad_()
    answer = asked(logits)
    (gradient,) = torch.autograd.grad(answer.square().sum(), logits)
    assert answer.isfinite().all()
    assert gradient.isfinite().all()


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


# --- the slices around one ---


@pytest.mark.parametrize("align", ["edges", "centres"])
@pytest.mark.parametrize(
    ("orientation", "spacing", "zoom"), [("display", (2.0, 0, 0), 1 / 4), ("RAS", (0, 0, 0.2), 2.5), ("RAS", (), 1)]
)
def test_a_slice_is_attacked_with_one_full_window_of_the_network(
    align: str, orientation: str, spacing: tuple[float, ...], zoom: float
) -> None:
    rng = np.random.default_rng(0)
    across = np.array([[0, 1.0, 0, 0], [0, 0, 1, 0], [0.5, 0, 0, 0], [0, 0, 0, 1]])
    scan = Scan(rng.random((1, 200, 4, 5), np.float32), across)
    axis = 0 if orientation == "display" else 2
    roi = tuple(32 if a == axis else 8 for a in range(3))
    model = made(orientation=orientation, spacing=spacing, roi=roi, align=align)
    subject = pose_on_scan(model, scan, extent="slice", index=100)
    slices = subject.images.shape[2]
    assert Grid.of(model.foreign, scan, 3).sizes(subject.images.shape[2:])[axis] >= 32
    assert slices <= 32 / zoom + 2
    assert subject.place[0].start <= 100 - slices // 2 + 1
    assert subject.place[0].stop >= 100 + slices // 2


def test_a_network_that_squeezes_scans_into_one_shape_is_attacked_on_all_of_it() -> None:
    scan = Scan(np.random.default_rng(0).random((1, 130, 4, 5), np.float32), np.eye(4))
    assert pose_on_scan(made(size=(8, 8, 8)), scan, extent="slice", index=3).place[0] == slice(0, 130)


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


# --- bounds ---


def test_a_scan_that_would_fill_the_memory_is_refused_before_it_does() -> None:
    scan = Scan(np.eye(48, 40, dtype=np.float32)[None, None].repeat(32, 1), np.eye(4))
    sentence = r"Above would see this scan as an array of shape .* 8 GiB allowed; crop the scan"
    with pytest.raises(CeaseError, match=sentence):
        made(spacing=(1.0, 0.005, 0.005)).on(scan)(torch.from_numpy(scan.image)[None])
    with pytest.raises(CeaseError, match=sentence):
        made(spacing=(1.0, 0.005, 0.005), steps=(Standardise(),)).on(scan)


# --- the trial ---


def small_network(ndim: int = 3) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d if ndim == 2 else nn.Conv3d
    return nn.Sequential(conv(1, 2, 3, padding=1), nn.Tanh(), conv(2, 1, 3, padding=1))


@pytest.mark.parametrize(("ndim", "spacing"), [(2, (0.01, 7.0)), (3, (10.0, 0.01, 0)), (3, (0.01, 4.0, 0.3))])
@pytest.mark.parametrize("orientation", ["display", "RAS", "zyx"])
def test_the_trials_scan_is_a_little_coarser_along_each_axis(
    ndim: int, spacing: tuple[float, ...], orientation: str
) -> None:
    model = made(small_network(ndim), ndim, spacing=spacing, orientation=orientation)
    grid = Grid.of(model.foreign, made_scan(model), ndim)
    assert grid.zoom == pytest.approx([COARSER if s else 1 for s in spacing])
    try_model(model)


def test_the_trial_prepares_the_model_for_attacks() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_network(2)

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images)

        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one of me")

    with pytest.raises(CeaseError, match="there is only one of me"):
        try_model(made(Single(), ndim=2))


def test_the_trial_says_in_one_sentence_what_figures_of_a_scan_fail() -> None:
    class Odd(Scale):
        """As a card that was not validated may hold it."""

    card = made(small_network(), steps=(Scale(),)).card
    assert card.foreign is not None
    foreign = card.foreign.model_copy(update={"steps": (Odd(factor=(1.0, 2.0)),)})
    model = ForeignModel(card.model_copy(update={"foreign": foreign}), small_network().eval())
    with pytest.raises(CeaseError, match="Above fails on an image of the kind that its card describes"):
        try_model(model)


# --- the card ---


@pytest.mark.parametrize(("low", "high"), [(-1, 99), (1, 101), (1, float("nan"))])
def test_percentiles_of_a_window_lie_between_0_and_100(low: float, high: float) -> None:
    with pytest.raises(ValidationError):
        WindowRule(kind="percentile", low=low, high=high)
    assert WindowRule(kind="percentile", low=0, high=100).high == 100


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
        ({"spacing": (1.0, 1.0, float("inf"))}, "above 0"),
        ({"size": (4000, 4000, 4000)}, "size: at most 4096 along an axis, and 134217728 voxels in all"),
        ({"roi": (4097, 1, 1)}, "window: at most 4096"),
        ({"divisor": 1024}, "images of 1024 voxels along each axis are too large"),
        ({"steps": [{"kind": "scale", "factor": (1.0, 2.0)}]}, "give one factor and offset"),
        ({"steps": [{"kind": "scale", "offset": ()}]}, "give one factor and offset"),
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
