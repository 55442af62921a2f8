"""Certificates of randomised smoothing, against probabilities known by hand and in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from cease_core.attacks import PGD
from cease_core.defences.smoothing import Certificate, Smoothed, binomial_p_values, certify, reject
from cease_core.errors import CeaseError
from cease_core.models import Mode

SIGMA = 0.25


class Threshold(torch.nn.Module):
    """Says yes where the image is above 0; under noise of σ it does with probability Φ(x/σ)."""

    def __init__(self, mode: Mode = "binary", steepness: float = 1.0) -> None:
        super().__init__()
        self.mode: Mode = mode
        self.steepness = steepness

    def forward(self, images: Tensor) -> Tensor:
        z = self.steepness * images
        return torch.cat((-z, z), dim=1) if self.mode == "multiclass" else z


def ramp(*shape: int) -> Tensor:
    """Values from -4 σ to 4 σ in one image."""
    return torch.linspace(-4 * SIGMA, 4 * SIGMA, math.prod(shape)).view(1, 1, *shape)


# Tests and their correction.


def test_p_values_by_hand() -> None:
    assert binomial_p_values(2, 0.5).tolist() == pytest.approx([1, 3 / 4, 1 / 4])
    # At least 0, 1, 2, 3 of 3 when each comes with probability 3/4.
    assert binomial_p_values(3, 0.75).tolist() == pytest.approx([1, 63 / 64, 54 / 64, 27 / 64])


@pytest.mark.parametrize(
    ("p_values", "holm", "bonferroni"),
    [
        # Holm compares with 0.05/3, 0.05/2 and 0.05 in ascending order.
        ([0.02, 0.01, 0.04], [True, True, True], [False, True, False]),
        ([0.03, 0.01, 0.04], [False, True, False], [False, True, False]),
        ([0.04, 0.02, 0.03], [False, False, False], [False, False, False]),
    ],
)
def test_holm_and_bonferroni_by_hand(p_values: list[float], holm: list[bool], bonferroni: list[bool]) -> None:
    assert reject(np.array(p_values), 0.05, "holm").tolist() == holm
    assert reject(np.array(p_values), 0.05, "bonferroni").tolist() == bonferroni


def test_correction_keeps_the_shape_of_a_volume() -> None:
    p_values = np.full((2, 3, 4), 0.9)
    p_values[1, 2, 3] = 1e-9
    for correction in ("holm", "bonferroni"):
        assert np.argwhere(reject(p_values, 0.001, correction)).tolist() == [[1, 2, 3]]


# Certificates.


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("shape", [(7, 9), (3, 3, 7)])
def test_threshold_model_is_certified_where_it_is_sure_enough(mode: Mode, shape: tuple[int, ...]) -> None:
    images = ramp(*shape)
    certificate = certify(Threshold(mode), images, sigma=SIGMA)
    assert certificate.labels.shape == (images.shape if mode == "multilabel" else (1, *shape))
    x, labels = images.flatten(), certificate.labels.flatten()
    # Nothing inside the radius of the other answer; all that is clearly outside, Φ(1.2) = 0.885 against τ = 0.75.
    assert (labels[x.abs() <= certificate.radius] == -1).all()
    assert (labels[x > 1.2 * SIGMA] == 1).all()
    assert (labels[x < -1.2 * SIGMA] == 0).all()
    assert torch.equal(certificate.abstained.flatten(), labels == -1)


def test_certified_labels_hold_inside_the_radius_and_no_further() -> None:
    images = ramp(1, 400)
    certificate = certify(Threshold(), images, sigma=SIGMA)
    nearest = images.flatten()[~certificate.abstained.flatten()].abs().min()
    # The smoothed answer turns at 0, and one pixel may take the whole perturbation.
    assert certificate.radius < nearest < 1.4 * certificate.radius


def test_votes_are_those_of_the_closed_form() -> None:
    images = ramp(1, 9)
    certificate = certify(Threshold(), images, sigma=SIGMA, n=4000)
    probability = norm.cdf(images.abs().flatten().numpy() / SIGMA)
    middle = images.flatten() == 0
    assert np.allclose(certificate.votes.flatten() / 4000, probability, atol=4 * math.sqrt(0.25 / 4000))
    assert certificate.p_values.shape == (1, 1, 9)
    assert certificate.p_values.flatten()[middle.numpy()] > 0.999
    assert certificate.p_values.min() < 1e-100


def test_a_mask_at_the_very_threshold_is_not_certified_anywhere() -> None:
    radius = SIGMA * norm.ppf(0.75)
    certificate = certify(Threshold(), torch.full((1, 1, 64, 64), radius), sigma=SIGMA, n=500)
    assert certificate.abstained.all()


def test_holm_certifies_no_less_than_bonferroni() -> None:
    holm, bonferroni = (
        certify(Threshold(), ramp(20, 20), sigma=SIGMA, n=100, correction=c) for c in ("holm", "bonferroni")
    )
    assert torch.equal(holm.votes, bonferroni.votes)
    assert (holm.abstained <= bonferroni.abstained).all()
    assert holm.abstained.sum() < bonferroni.abstained.sum()


def test_radius_is_of_the_whole_perturbation() -> None:
    certificate = certify(Threshold(), ramp(4, 4), sigma=0.25, tau=0.75, n=60)
    assert certificate.radius == pytest.approx(0.25 * 0.6744898)
    assert certificate.epsilon == pytest.approx(0.25 * 0.6744898 / 4)
    ball = torch.full((1, 1, 4, 4), certificate.epsilon)
    assert float(ball.norm()) == pytest.approx(certificate.radius)
    assert certify(Threshold(), ramp(4, 4), tau=0.5, n=60).radius == 0


def test_noise_depends_on_image_and_seed_but_on_no_batch() -> None:
    images = torch.cat((ramp(5, 8), ramp(5, 8).flip(2)))
    both = certify(Threshold(), images, sigma=SIGMA, n=60, batch=7)
    alone = certify(Threshold(), images[1:], sigma=SIGMA, n=60, batch=60)
    other = certify(Threshold(), images[1:], sigma=SIGMA, n=60, seed=1)
    assert torch.equal(both.votes[1:], alone.votes)
    assert not torch.equal(other.votes, alone.votes)


def test_the_full_precision_model_is_certified() -> None:
    class Coarse(Threshold):
        exact = Threshold()

        def forward(self, images: Tensor) -> Tensor:
            return -images

    found, expected = (certify(m, ramp(5, 8), n=60) for m in (Coarse(), Threshold()))
    assert torch.equal(found.labels, expected.labels)


# Its figures.


def certificate_of(labels: Tensor, mode: Mode, classes: int) -> Certificate:
    return Certificate(
        labels=labels,
        votes=torch.zeros_like(labels),
        classes=classes,
        values=labels[0].numel(),
        mode=mode,
        sigma=0.25,
        tau=0.75,
        n=10,
        alpha=0.001,
    )


def test_abstentions_count_as_wrong() -> None:
    truth = torch.tensor([[[1, 1, 1, 0, 0, 0, 0, 0]]])
    certificate = certificate_of(torch.tensor([[[1, 1, -1, 0, 0, 0, -1, 1]]]), "binary", 1)
    assert certificate.certified_share(truth).tolist() == [5 / 8]
    # Two hits; found are these, the false one, and the background that may turn: 2·2 / (3 + 4).
    assert certificate.dice(truth).tolist() == pytest.approx([4 / 7])


def test_dice_is_the_worst_that_abstentions_allow() -> None:
    truth = torch.tensor([[0, 1, 1, 2, 2, 2]])
    certified = torch.tensor([[0, 1, -1, 2, 2, -1]])
    certificate = certificate_of(certified, "multiclass", 2)
    # Class 1: hit 1, found 1 and the last pixel, true 2. Class 2: hits 2, found 2 and the third pixel, true 3.
    assert certificate.dice(truth).tolist() == pytest.approx([(2 / 4 + 4 / 6) / 2])


def test_channels_of_a_multilabel_mask_are_certified_apart() -> None:
    truth = torch.tensor([[[[1, 0]], [[1, 1]]]])
    certificate = certificate_of(torch.tensor([[[[1, -1]], [[1, 1]]]]), "multilabel", 2)
    assert certificate.certified_share(truth).tolist() == [3 / 4]
    assert certificate.dice(truth).tolist() == pytest.approx([(2 / 3 + 1) / 2])


def test_an_empty_mask_that_is_certified_is_perfect() -> None:
    empty = torch.zeros(2, 3, 3, dtype=torch.long)
    assert certificate_of(empty, "binary", 1).dice(empty).tolist() == [1, 1]
    assert certificate_of(empty - 1, "binary", 1).dice(empty).tolist() == [0, 0]


def test_classes_follow_the_mode() -> None:
    classes = {m: certify(Threshold(m), ramp(4, 4), n=60).classes for m in ("binary", "multiclass", "multilabel")}
    assert classes == {"binary": 1, "multiclass": 1, "multilabel": 1}


# Progress.


def test_progress_counts_noisy_images_of_all_cases() -> None:
    told: list[tuple[int, int]] = []
    images = torch.cat((ramp(4, 4), ramp(4, 4)))
    certify(Threshold(), images, n0=4, n=60, batch=30, callback=lambda done, total: told.append((done, total)))
    assert told == [(done, 128) for done in (4, 34, 64, 68, 98, 128)]


@pytest.mark.parametrize("stop", [4, 34, 64, 68, 98])
def test_what_was_stopped_certifies_finished_cases_only(stop: int) -> None:
    images = torch.cat((ramp(4, 4), ramp(4, 4) + 1e-3))
    whole = certify(Threshold(), images, n0=4, n=60, batch=30)
    certificate = certify(Threshold(), images, n0=4, n=60, batch=30, callback=lambda done, _: done < stop)
    finished = stop // 64
    assert certificate.cancelled
    assert torch.equal(certificate.labels[:finished], whole.labels[:finished])
    assert certificate.abstained[finished:].all()
    assert (certificate.votes[finished:] == 0).all()


def test_a_stop_after_the_last_image_cancels_nothing() -> None:
    certificate = certify(Threshold(), ramp(4, 4), n0=4, n=60, callback=lambda done, total: done < total)
    assert not certificate.cancelled
    assert not certificate.abstained.all()


# The smoothed model.


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_smoothed_probabilities_are_those_of_the_closed_form(mode: Mode) -> None:
    images = ramp(1, 9)
    logits = Smoothed(Threshold(mode, steepness=1e4), sigma=SIGMA, n=1000)(images)
    found = logits.softmax(dim=1)[:, 1:] if mode == "multiclass" else logits.sigmoid()
    expected = norm.cdf(images.numpy() / SIGMA)
    assert np.allclose(found, expected, atol=4 * math.sqrt(0.25 / 1000))


def test_attack_reaches_the_image_through_the_noise() -> None:
    images = torch.full((1, 1, 8, 8), 0.05)
    smoothed = Smoothed(Threshold(steepness=20.0), sigma=SIGMA, n=8)
    labels = torch.ones(1, 8, 8, dtype=torch.long)
    result = PGD(epsilon=0.3, steps=10)(smoothed, images, labels, bounds=(-1, 1))
    assert result.dice.item() < 0.2
    assert (result.perturbation < -0.25).float().mean() > 0.9


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma is 0.0; give a standard deviation above 0"),
        ({"tau": 0.4}, "tau is 0.4; give a probability of at least 0.5 and below 1"),
        ({"tau": 1.0}, "tau is 1.0"),
        ({"alpha": 0.0}, "alpha is 0.0; give a probability between 0 and 1"),
        ({"n0": 0}, "n0 is 0; give at least 1"),
        ({"correction": "fdr"}, "unknown correction 'fdr'; choose holm or bonferroni"),
        # 0.001 / 16 lies between 0.75 ** 33 and 0.75 ** 34.
        ({"n": 33}, "n is 33, but among 16 decisions even unanimous votes are only certified from 34 on"),
    ],
)
def test_errors_say_what_to_do(options: dict[str, object], message: str) -> None:
    with pytest.raises(CeaseError, match=message):
        certify(Threshold(), ramp(4, 4), **options)


def test_the_fewest_draws_that_are_accepted_do_certify() -> None:
    certificate = certify(Threshold(), torch.full((1, 1, 4, 4), 10.0), n=34)
    assert not certificate.abstained.any()


def test_labels_of_other_images_are_refused() -> None:
    certificate = certificate_of(torch.zeros(1, 4, 4, dtype=torch.long), "binary", 1)
    for figure in (certificate.certified_share, certificate.dice):
        with pytest.raises(CeaseError, match="choose the labels of these images"):
            figure(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("options", [{"sigma": -1.0}, {"n": 0}, {"seed": -1}])
def test_smoothed_models_refuse_what_they_cannot_use(options: dict[str, float]) -> None:
    with pytest.raises(CeaseError, match=f"{next(iter(options))} is "):
        Smoothed(Threshold(), **options)
