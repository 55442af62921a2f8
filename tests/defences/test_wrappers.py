"""Wrapped models answer truly, and attacks see through them: no defence by a hidden gradient."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import median_filter
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor, nn

from cease_core.attacks import APGD, PGD, FeatureAttack, Problem, Square, Transfer
from cease_core.attacks.on_scan import pose_on_scan
from cease_core.defences.ensemble import Ensemble
from cease_core.defences.input_transforms import (
    JPEG,
    BitDepth,
    Median,
    Noise,
    TotalVariation,
    Transform,
    Transformed,
    case_codes,
    expectation,
    straight_through,
)
from cease_core.defences.smoothing import Smoothed
from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan
from cease_core.models import Mode, Segmenter, Windowed, find_model, load_model, predict_labels, prepare

CASE = Path(__file__).parents[2] / "sample_data" / "cardiac_mr_sunnybrook"
OUTPUTS: dict[Mode, int] = {"binary": 1, "multiclass": 3, "multilabel": 2}


class Net(nn.Module):
    """Two small convolutions, in any mode and dimension."""

    def __init__(self, mode: Mode = "binary", ndim: int = 2, channels: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.mode: Mode = mode
        conv = nn.Conv2d if ndim == 2 else nn.Conv3d
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                conv(channels, 4, 3, padding=1), nn.Tanh(), conv(4, OUTPUTS[mode], 3, padding=1, bias=False)
            )
        with torch.no_grad():
            self.layers[0].weight *= 4
            self.layers[2].weight *= 8

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images - 0.5)


class Linear(nn.Module):
    """Its logits are the image, times a factor."""

    mode: Mode = "binary"

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * images


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def applied(transform: Transform, images: Tensor) -> Tensor:
    return transform(images, torch.Generator().manual_seed(0))


def gradient(model: Segmenter, images: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad((model(images) * weights).sum(), images)[0]


# What a transform does.


def through_pil(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / np.float32(255)


def test_jpeg_is_pils() -> None:
    grey, colour, volume = pictures(2, 1, 20, 24), pictures(2, 3, 20, 24), pictures(1, 2, 3, 16, 20)
    jpeg = JPEG(quality=60)
    assert np.array_equal(applied(jpeg, grey)[1, 0], through_pil(grey[1, 0].numpy(), 60))
    expected = through_pil(colour[1].movedim(0, -1).numpy(), 60)
    assert np.array_equal(applied(jpeg, colour)[1].movedim(0, -1), expected)
    assert np.array_equal(applied(jpeg, volume)[0, 1, 2], through_pil(volume[0, 1, 2].numpy(), 60))
    colours = pictures(1, 3, 2, 16, 20)
    expected = through_pil(colours[0, :, 1].movedim(0, -1).numpy(), 60)
    assert np.array_equal(applied(jpeg, colours)[0, :, 1].movedim(0, -1), expected)


def test_bit_depth_rounds_to_levels_and_ends_the_window() -> None:
    images = torch.tensor([-0.4, 0.1, 0.2, 0.49, 0.51, 0.9, 1.7]).view(1, 1, 1, -1)
    two, one = applied(BitDepth(bits=2), images), applied(BitDepth(bits=1), images)
    assert torch.equal((3 * two).flatten(), torch.tensor([0.0, 0, 1, 1, 2, 3, 3]))
    assert one.flatten().tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("shape", [(2, 2, 9, 11), (1, 2, 5, 6, 7)])
def test_median_is_scipys_and_its_gradient_goes_to_the_median_pixel(shape: tuple[int, ...]) -> None:
    images = 4 * pictures(*shape) - 2
    filtered = applied(Median(window=3), images)
    expected = median_filter(images[-1, 1].numpy(), size=3, mode="nearest")
    assert np.array_equal(filtered[-1, 1], expected)
    row = torch.tensor([0.0, 5, 1, 2, 3]).view(1, 1, 1, 5).expand(1, 1, 3, 5)
    found = gradient(Transformed(Linear(), [Median()]), row, torch.eye(5)[2].view(1, 1, 1, 5))
    assert found.sum(dim=2).flatten().tolist() == [0, 0, 0, 3, 0]


@pytest.mark.parametrize("shape", [(2, 2, 12, 14), (1, 1, 6, 7, 8)])
def test_total_variation_is_scikit_images(shape: tuple[int, ...]) -> None:
    images = 3 * pictures(*shape) - 1
    denoised = applied(TotalVariation(weight=0.2, steps=30), images)
    # Scikit-image returns what it had before its last update.
    expected = denoise_tv_chambolle(images[-1, -1].numpy(), weight=0.2, eps=0, max_num_iter=31)
    assert np.allclose(denoised[-1, -1], expected, atol=1e-6)


def test_total_variation_has_a_gradient_where_the_image_is_flat() -> None:
    found = gradient(Transformed(Linear(), [TotalVariation()]), torch.full((1, 1, 6, 6), 0.5))
    # What is smoothed keeps its mean.
    assert torch.allclose(found, torch.ones_like(found), atol=1e-5)


def test_transforms_follow_one_another() -> None:
    images = pictures(1, 1, 16, 16)
    both = Transformed(Linear(2.0), [BitDepth(bits=3), JPEG()])(images)
    assert torch.equal(both, 2 * applied(JPEG(), applied(BitDepth(bits=3), images)))


# Gradients through what has none.


def test_straight_through_is_the_function_with_the_gradient_of_the_identity() -> None:
    images = pictures(1, 1, 4, 4)
    upstream = pictures(1, 1, 4, 4, seed=1)
    assert torch.equal(straight_through(torch.round, images), images.round())
    assert torch.equal(gradient(lambda x: straight_through(torch.round, x), images, upstream), upstream)
    assert torch.equal(gradient(torch.round, images, upstream), torch.zeros_like(images))


@pytest.mark.parametrize("transform", [BitDepth(bits=3), JPEG(quality=50)])
def test_gradient_is_the_models_own_at_the_transformed_image(transform: Transform) -> None:
    images = pictures(2, 1, 16, 16)
    found = gradient(Transformed(Net(), [transform]), images)
    assert torch.equal(found, gradient(Net(), applied(transform, images)))
    assert torch.equal(gradient(Transformed(Linear(), [transform]), images + 3), torch.ones_like(images))


class Hidden(Transform):
    """Rounds to eight grey levels and leaves the attack with the gradient that this has: none."""

    differentiable = True

    def apply(self, images: Tensor, draws: torch.Generator) -> Tensor:
        return BitDepth(bits=3).apply(images, draws)


@pytest.fixture(scope="module")
def heart() -> Problem:
    """The undefended model on the slice with the largest ventricle."""
    scan = read_scan(CASE / "images" / "scd_15.nii.gz")
    labels = read_labels(CASE / "labels" / "scd_15.nii.gz", like=scan)
    index = int((labels > 0).sum(axis=(1, 2)).argmax())
    model = prepare(load_model(find_model("cardiac-undefended")))
    return pose_on_scan(model, scan, labels, extent="slice", index=index).problem("dice_masked")


def test_without_bpda_rounding_looks_like_a_defence(heart: Problem) -> None:
    attack = PGD(epsilon=8 / 255, random=False)
    hidden = attack.run(heart.judged_by(Transformed(heart.model, [Hidden()])))
    seen = attack.run(heart.judged_by(Transformed(heart.model, [BitDepth(bits=3)])))
    assert torch.equal(hidden.perturbation, torch.zeros_like(hidden.perturbation))
    assert hidden.dice > 0.8
    assert seen.dice < 0.1


@pytest.mark.parametrize("transform", [JPEG(quality=50), BitDepth(bits=3), Median(), TotalVariation()])
def test_attack_through_a_transform_is_stronger_than_transfer_from_the_bare_model(
    heart: Problem, transform: Transform
) -> None:
    wrapped = heart.judged_by(Transformed(heart.model, [transform]))
    clean = wrapped.clean().score
    through = PGD(epsilon=8 / 255).run(wrapped)
    transferred = Transfer(source=heart.model, inner=PGD(), epsilon=8 / 255).run(wrapped)
    assert through.dice <= transferred.dice
    assert through.dice < clean - 0.2


def test_attacks_on_features_go_through_a_transform_but_through_no_mean(heart: Problem) -> None:
    attack = FeatureAttack(epsilon=8 / 255, steps=10)
    wrapped = heart.judged_by(Transformed(heart.model, [Median()]))
    assert attack.run(wrapped).dice < wrapped.clean().score - 0.2
    for model in (Transformed(heart.model, [Noise()], draws=2), Transformed(Net(), [Median()])):
        with pytest.raises(CeaseError, match="needs a model that shows its features"):
            attack.run(heart.judged_by(model))


def test_a_copy_shows_its_own_features(heart: Problem) -> None:
    original = Transformed(heart.model, [Median()])
    copied = copy.deepcopy(original)
    with torch.no_grad():
        for weights in copied.parameters():
            weights.mul_(0.5)
    shape = tuple(heart.images.shape[2:])
    for model in (original, copied):
        assert torch.equal(model.decode(model.encode(heart.images), shape), model(heart.images))
    assert not torch.equal(original(heart.images), copied(heart.images))


def test_the_own_gradient_of_total_variation_beats_the_identitys(heart: Problem) -> None:
    class Straight(TotalVariation):
        differentiable = False

    own, identity = (
        PGD(epsilon=8 / 255).run(heart.judged_by(Transformed(heart.model, [t]))).dice
        for t in (TotalVariation(), Straight())
    )
    assert own < identity - 0.05


# Chance.


RANDOM = [JPEG(quality=(30, 90)), BitDepth(bits=(2, 6)), TotalVariation(weight=(0.02, 0.2)), Noise(sigma=0.1)]


@pytest.mark.parametrize("transform", RANDOM, ids=lambda t: type(t).__name__)
def test_draws_differ_but_repeat_for_the_same_image_and_seed(transform: Transform) -> None:
    model = Transformed(Net(), [transform], draws=3)
    images = pictures(2, 1, 16, 16)
    shown = [model.transform(images, draw) for draw in range(12)]
    assert any(not torch.equal(shown[0], other) for other in shown[1:])
    assert torch.equal(model(images), model(images))
    assert torch.equal(model(images), Transformed(Net(), [transform], draws=3)(images))
    assert not torch.equal(model(images), Transformed(Net(), [transform], draws=3, seed=1)(images))


@pytest.mark.parametrize("wrap", [lambda net: Transformed(net, [Noise()], draws=2), lambda net: Smoothed(net, n=2)])
def test_a_moved_image_meets_fresh_noise_whatever_its_company(wrap: type[nn.Module]) -> None:
    model, images = wrap(Linear()), pictures(3, 1, 8, 8)
    answer = model(images)
    assert torch.equal(answer[1:2], model(images[1:2]))
    assert (model(images + 2**-20) - answer).abs().max() > 0.01


def test_every_bit_of_an_image_and_its_place_count() -> None:
    images = pictures(1, 1, 8, 8)
    nudged, swapped = images.clone(), images.clone()
    nudged[0, 0, 3, 4] = torch.nextafter(images[0, 0, 3, 4], torch.tensor(2.0))
    swapped[0, 0, 0, 0], swapped[0, 0, 0, 1] = images[0, 0, 0, 1], images[0, 0, 0, 0]
    assert len({*case_codes(images), *case_codes(nudged), *case_codes(swapped), *case_codes(-images)}) == 4
    assert case_codes(torch.cat((nudged, images)))[1:] == case_codes(images)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_expectation_and_its_gradient_are_those_of_the_mean_written_out(logarithmic: bool) -> None:
    net, images, upstream = Net("multiclass"), pictures(2, 1, 8, 8), pictures(2, 3, 8, 8, seed=1)

    def draw(x: Tensor, number: int) -> Tensor:
        return net(x * (1 + number)).log_softmax(dim=1)

    def written_out(x: Tensor) -> Tensor:
        values = torch.stack([draw(x, number) for number in range(4)])
        return values.logsumexp(dim=0) - math.log(4) if logarithmic else values.mean(dim=0)

    def drawn(x: Tensor) -> Tensor:
        return expectation(draw, x, 4, logarithmic=logarithmic)

    assert torch.allclose(drawn(images), written_out(images), atol=1e-5)
    expected = gradient(written_out, images, upstream)
    assert torch.allclose(gradient(drawn, images, upstream), expected, atol=1e-5 * float(expected.abs().max()))


def test_random_transforms_are_averaged_over_draws() -> None:
    images = pictures(1, 1, 16, 16)
    model = Transformed(Net(), [JPEG(quality=(30, 90)), Noise()], draws=3)
    shown = [model.transform(images, draw) for draw in range(3)]
    expected = torch.stack([Net()(x) for x in shown]).mean(dim=0)
    assert torch.allclose(model(images), expected, atol=1e-5)


def test_windows_draw_the_same_noise_both_ways() -> None:
    inner = Transformed(Net(ndim=3), [Noise()], draws=2)
    windowed = Windowed(inner, (4, 8, 8), overlap=0)
    images = pictures(1, 1, 8, 8, 8)
    halves = torch.cat([gradient(inner, half) for half in images.split(4, dim=2)], dim=2)
    assert torch.allclose(gradient(windowed, images), halves, atol=1e-5)


def test_attacks_are_judged_on_draws_they_have_not_seen() -> None:
    images = pictures(1, 1, 16, 16)
    labels = predict_labels(Net()(images), "binary")
    for wrapped in (Transformed(Net(), [Noise()], draws=2), Smoothed(Net(), n=2)):
        result = PGD(epsilon=0.02, steps=3)(wrapped, images, labels)
        assert torch.equal(result.logits, wrapped.exact(result.adversarial))
        assert not torch.equal(result.logits, wrapped(result.adversarial))
        again = PGD(epsilon=0.02, steps=3)(wrapped, images, labels)
        assert torch.equal(result.perturbation, again.perturbation)


class Coarse(Net):
    """Reduced precision with a better self."""

    @property
    def exact(self) -> Net:
        return Net()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).half().float()


def test_wrappers_keep_the_full_precision_of_what_they_wrap() -> None:
    images = pictures(1, 1, 16, 16)
    plain, coarse = Net(), Coarse()
    assert torch.equal(Transformed(coarse, [Median()]).exact(images), Transformed(plain, [Median()])(images))
    assert torch.equal(Ensemble([coarse, plain]).exact(images), Ensemble([plain, plain])(images))
    assert torch.equal(Smoothed(coarse).exact(images), Smoothed(plain).exact(images))
    assert Transformed(plain, [Median()]).exact is None
    assert Ensemble([plain, plain]).exact is None


# Ensembles.


def test_mean_of_logits() -> None:
    images = pictures(1, 1, 4, 4)
    assert torch.allclose(Ensemble([Linear(1.0), Linear(4.0)])(images), 2.5 * images)


@pytest.mark.parametrize("mode", OUTPUTS)
def test_mean_of_probabilities_comes_back_as_logits(mode: Mode) -> None:
    images = pictures(2, 1, 8, 8)
    nets = [Net(mode, seed=seed) for seed in range(3)]
    logits = Ensemble(nets, average="probabilities")(images)
    squash = (lambda z: z.softmax(dim=1)) if mode == "multiclass" else torch.sigmoid
    expected = torch.stack([squash(net(images)) for net in nets]).mean(dim=0)
    assert torch.allclose(squash(logits), expected, atol=1e-6)


def test_saturated_probabilities_keep_their_logits_and_gradient() -> None:
    images = torch.full((1, 1, 1, 1), 1.0)
    sure = Ensemble([Linear(200.0), Linear(200.0)], average="probabilities")
    assert sure(images).item() == pytest.approx(200.0)
    assert gradient(sure, images).item() == pytest.approx(200.0, rel=1e-5)
    # σ(200) and σ(-100): odds of (1 + 0) / (0 + 1).
    assert Ensemble([Linear(200.0), Linear(-100.0)], average="probabilities")(images).item() == pytest.approx(0.0)


def test_an_ensemble_moves_with_its_models() -> None:
    model = Ensemble([Net(), Windowed(Net(ndim=3), (4, 4, 4))])
    assert len(list(model.parameters())) == len(list(Net().parameters()))
    assert all(p.dtype == torch.float64 for p in model.double().parameters())


def test_models_of_an_ensemble_must_agree() -> None:
    with pytest.raises(CeaseError, match="no models has no answer"):
        Ensemble([])
    with pytest.raises(CeaseError, match="not binary and multiclass; choose others"):
        Ensemble([Net("binary"), Net("multiclass")])
    with pytest.raises(CeaseError, match="unknown average 'votes'; choose logits or probabilities"):
        Ensemble([Net()], average="votes")
    more = Net("multilabel")
    more.mode = "binary"
    with pytest.raises(CeaseError, match="not 1 and 2 output channels"):
        Ensemble([Net(), more])(pictures(1, 1, 8, 8))


# All of them, under attack.

WRAPPERS = {
    "jpeg": lambda net: Transformed(net, [JPEG()]),
    "bits and median": lambda net: Transformed(net, [BitDepth(), Median()]),
    "total variation": lambda net: Transformed(net, [TotalVariation(steps=5)]),
    "random": lambda net: Transformed(net, [JPEG(quality=(60, 90)), Noise(sigma=0.02)], draws=2),
    "ensemble": lambda net: Ensemble([net, Transformed(net, [Median()])], average="probabilities"),
    "smoothed": lambda net: Smoothed(net, sigma=0.02, n=2),
}
ATTACKS = [PGD(epsilon=0.08, steps=5), APGD(epsilon=0.08, steps=5), Square(epsilon=0.2, queries=30)]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("mode", "shape"), [("binary", (3, 16, 16)), ("multiclass", (1, 4, 8, 8))])
def test_attacks_break_every_wrapper(attack: PGD, wrapper: str, mode: Mode, shape: tuple[int, ...]) -> None:
    images = pictures(2, *shape)
    model = WRAPPERS[wrapper](Net(mode, len(shape) - 1, shape[0]))
    assert isinstance(model, Segmenter)
    labels = predict_labels(model(images), mode)
    # Who judges a random model draws anew, so chance alone already costs it some Dice.
    clean = Problem.pose(getattr(model, "exact", None) or model, images, labels, "dice_masked").clean().score
    result = attack(model, images, labels)
    assert (result.dice < clean - 0.1).all()
    assert result.perturbation.abs().max() <= attack.epsilon + 1e-6


# Errors.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JPEG(quality=0), "quality is 0; give a number from 1 to 95"),
        (lambda: JPEG(quality=(80, 40)), "in ascending order"),
        (lambda: BitDepth(bits=20), "bits is 20; give a number from 1 to 16"),
        (lambda: Median(window=4), "window is 4; give an odd number of pixels"),
        (lambda: TotalVariation(weight=0.0), "weight is 0.0; give a number of at least"),
        (lambda: TotalVariation(steps=0), "steps is 0; give at least 1"),
        (lambda: Noise(sigma=math.nan), "sigma is nan"),
        (lambda: Transformed(Net(), []), "there is no transform"),
        (lambda: Transformed(Net(), [Noise()], draws=0), "draws is 0; give at least 1"),
        (lambda: Transformed(Net(), [Noise()], seed=-1), "seed is -1; give at least 0"),
    ],
)
def test_errors_say_what_to_do(make: type, message: str) -> None:
    with pytest.raises(CeaseError, match=message):
        make()
