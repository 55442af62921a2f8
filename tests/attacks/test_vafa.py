"""The frequency attacks: cosine transforms, VAFA's quantisation, and PGD in a band."""

from __future__ import annotations

import math

import pytest
import torch
from attack_subjects import target
from torch import Tensor

from cease_core.attacks import VAFA, FrequencyPGD
from cease_core.attacks.dct import Cosines, cropped, dct_matrix, padded
from cease_core.attacks.frequency import Band
from cease_core.attacks.norms import rms
from cease_core.attacks.problem import Problem
from cease_core.attacks.vafa import Rounding, dissimilarity_slope, soft_round
from cease_core.errors import CeaseError

SHAPES = [(16, 24), (8, 16, 8)]
ODD = [(13, 9), (5, 9, 11)]


def images(*spatial: int, channels: int = 2) -> Tensor:
    return torch.rand(2, channels, *spatial, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 2, 8, 37])
def test_cosines_are_orthonormal(size: int) -> None:
    matrix = dct_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("edge", [8, None])
def test_the_inverse_undoes_the_transform_and_energy_is_kept(shape: tuple[int, ...], edge: int | None) -> None:
    x = images(*shape)
    cosines = Cosines([edge] * len(shape) if edge else shape, x)
    coefficients = cosines.forward(x)
    torch.testing.assert_close(cosines.inverse(coefficients), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(coefficients.square().sum(), x.square().sum())


def test_a_flat_block_is_its_first_coefficient_alone() -> None:
    x = torch.zeros(1, 1, 8, 16)
    x[..., 8:] = 3.0
    coefficients = Cosines([8, 8], x).forward(x)
    expected = torch.zeros_like(x)
    expected[..., 0, 8] = 3.0 * 8
    torch.testing.assert_close(coefficients, expected, rtol=0, atol=1e-5)


def test_a_cosine_is_one_coefficient_where_its_frequencies_say() -> None:
    place = torch.arange(8) + 0.5
    wave = (math.pi / 8 * 3 * place).cos()[:, None] * (math.pi / 8 * 5 * place).cos()[None, :]
    coefficients = Cosines([8, 8], wave).forward(wave[None, None])
    expected = torch.zeros(8, 8)
    expected[3, 5] = 4.0
    torch.testing.assert_close(coefficients[0, 0], expected, rtol=0, atol=1e-5)


def test_padding_repeats_the_last_values_and_is_cropped_away() -> None:
    for shape in ODD:
        x = images(*shape)
        whole = padded(x, 8)
        assert all(size % 8 == 0 and size - s < 8 for size, s in zip(whole.shape[2:], shape, strict=True))
        assert torch.equal(whole[..., -1], whole[..., shape[-1] - 1])
        assert torch.equal(cropped(whole, shape), x)


def test_rounding_has_the_value_and_the_slope_that_the_formula_says() -> None:
    x = torch.tensor([-1.3, 0.0, 0.2, 0.49, 0.51, 2.0, 7.75]).requires_grad_()
    y = soft_round(x)
    off = torch.tensor([-0.3, 0.0, 0.2, 0.49, -0.49, 0.0, -0.25])
    torch.testing.assert_close(y.detach(), torch.tensor([-1.0, 0, 0, 0, 1, 2, 8]) + off**3)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, 3 * off**2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES + ODD)
@pytest.mark.parametrize("step", [1.0, 20.0])
def test_no_coefficient_moves_by_more_than_half_a_step(shape: tuple[int, ...], step: float) -> None:
    rounding = Rounding(images(*shape), 8)
    table = torch.full_like(rounding.coefficients, step)
    assert rounding.moved(table).abs().max() <= step / 2
    assert rounding.moved(table).abs().max() > step / 4
    assert rounding.change(table).shape[2:] == shape
    # Orthonormal: as much error in the image as in its coefficients.
    assert rms(rounding.change(table)).max() <= step / 2 / 255 * math.sqrt(padded(images(*shape), 8)[0].numel())


def test_the_smallest_table_changes_nothing_beyond_rounding() -> None:
    rounding = Rounding(images(16, 16), 8)
    assert rms(rounding.change(torch.ones_like(rounding.coefficients))).max() < 0.5 / 255


def test_what_is_already_a_multiple_stays() -> None:
    rounding = Rounding(images(16, 16), 8)
    rounding.coefficients = 12.0 * rounding.coefficients.div(12).round()
    for step in (4.0, 12.0):
        moved = rounding.moved(torch.full_like(rounding.coefficients, step))
        torch.testing.assert_close(moved, torch.zeros_like(moved), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", ODD)
def test_the_slope_of_coefficients_is_that_of_autograd(shape: tuple[int, ...]) -> None:
    x, rounding = images(*shape), Rounding(images(*shape), 8)
    leaf = rounding.coefficients.clone().requires_grad_()
    image = cropped(rounding.cosines.inverse(leaf), rounding.shape) / 255
    (expected,) = torch.autograd.grad((image * x).sum(), leaf)
    torch.testing.assert_close(rounding.slope(x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", ODD)
def test_following_the_dissimilarity_makes_images_less_alike(shape: tuple[int, ...]) -> None:
    x = images(*shape)
    delta = 0.05 * (images(*shape).flip(0) - 0.5)
    slope = dissimilarity_slope(x, delta)
    assert slope.shape == x.shape
    # 1 − SSIM has its least value, 0, where nothing is perturbed.
    assert ((slope * delta).flatten(1).sum(dim=1) > 0).all()
    alone = dissimilarity_slope(x[:1], delta[:1])
    torch.testing.assert_close(alone, slope[:1], rtol=1e-4, atol=1e-8)


def test_structure_is_kept_at_the_cost_of_the_attack() -> None:
    t = target("multiclass", 2)
    free, bound = (VAFA(structure=s, steps=8, criterion="loss")(t.net, t.images, t.labels) for s in (0.0, 50.0))
    assert (rms(bound.perturbation) < rms(free.perturbation)).all()
    assert (bound.loss.amax(dim=0) <= free.loss.amax(dim=0)).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_choosing_beats_the_gradient_of_the_table(ndim: int) -> None:
    t = target("multiclass", ndim)
    sign, choose = (VAFA(update=u, epsilon=0.1)(t.net, t.images, t.labels).loss.amax(dim=0) for u in ("sign", "choose"))
    assert (choose >= sign).all()
    assert choose.sum() > sign.sum()


BANDS = [(0.0, 0.25), (0.25, 0.5), (0.5, 1.0)]


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_perturbation_has_no_energy_outside_its_band(band: tuple[float, float], norm: str, ndim: int) -> None:
    t = target("multiclass", ndim)
    attack = FrequencyPGD(band=band, norm=norm, steps=4, epsilon=0.03)
    result = attack(t.net, t.images, t.labels, bounds=(-1.0, 2.0))
    energy = Cosines(t.images.shape[2:], t.images).forward(result.perturbation).square()
    frequency = torch.stack(torch.meshgrid(*(torch.arange(s) / s for s in t.images.shape[2:]), indexing="ij")).amax(
        dim=0
    )
    outside = (frequency < band[0]) | (frequency >= band[1])
    assert energy.sum() > 0
    assert energy[..., outside].sum() <= 1e-10 * energy.sum()


def test_bands_share_an_image_out() -> None:
    x = images(16, 12)
    parts = [Band(band, x).only(x) for band in BANDS]
    torch.testing.assert_close(sum(parts), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(sum(p.square().sum() for p in parts), x.square().sum())


def test_the_lowest_band_is_flat() -> None:
    x = images(16, 12)
    torch.testing.assert_close(Band((0.0, 0.01), x).only(x), x.mean(dim=(2, 3), keepdim=True).expand_as(x))


def test_a_wider_band_is_stronger() -> None:
    t = target("multiclass", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice")
    narrow, wide, all_of_it = (
        FrequencyPGD(band=(0.0, end), norm="l2", epsilon=0.04).run(problem).loss.amax(dim=0) for end in (0.2, 0.5, 1.0)
    )
    assert (narrow < wide).all()
    assert (wide < all_of_it).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: VAFA(steps=0), "give at least 1"),
        (lambda: VAFA(q_max=1.0), "grey levels above 1"),
        (lambda: VAFA(edge=1), "at least 2 pixels"),
        (lambda: VAFA(structure=-1.0), "number ≥ 0"),
        (lambda: VAFA(update="guess"), "choose one of choose, sign"),
        (lambda: FrequencyPGD(band=(0.5, 0.5)), "the lower first"),
        (lambda: FrequencyPGD(band=(0.0, 1.5)), "from 0 to 1"),
        (lambda: Band((0.05, 0.06), images(8, 8)), "give a wider band"),
    ],
)
def test_parameters_out_of_range_are_refused(make, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        make()
