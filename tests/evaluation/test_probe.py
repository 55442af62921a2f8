"""What a probe says of models whose gradient is known: honest ones, and each way to hide it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cease_core.defences.input_transforms import JPEG, BitDepth, Transformed
from cease_core.errors import CeaseError
from cease_core.evaluation.audit.probe import probe
from cease_core.models.card import Mode
from cease_core.models.segmenter import Segmenter
from cease_core.models.windowed import Windowed

EDGE = 24


class Bright(nn.Module):
    """Finds what is brighter than one half, with logits that are linear in brightness."""

    mode: Mode

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda x: x, mode: Mode = "binary") -> None:
        super().__init__()
        self.change = change
        self.mode = mode
        self.slope = nn.Parameter(torch.tensor(8.0), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.slope * (self.change(images)[:, :1] - 0.5)
        return logits if self.mode == "binary" else torch.cat((-logits, logits), dim=1)


def scan(ndim: int = 2) -> tuple[Tensor, Tensor]:
    """A bright block on noise (1, 1, *spatial), and its mask."""
    shape = (EDGE,) * ndim
    labels = torch.zeros(1, *shape, dtype=torch.long)
    labels[(0, *(slice(8, 14),) * ndim)] = 1
    noise = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    return 0.1 + 0.3 * noise + 0.4 * labels.unsqueeze(1), labels


class WrongWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return -upstream[0]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_an_honest_model(ndim: int, mode: Mode) -> None:
    found = probe(Bright(mode=mode), *scan(ndim)) if mode != "multilabel" else probe(Two(), *scan(ndim))
    assert found.reached
    assert found.repeats
    assert found.zero_gradient == 0
    assert found.saturated == 0
    assert found.rise == pytest.approx(1, abs=0.1)
    assert 0.5 < found.logit_scale < 4


class Two(Bright):
    """Two structures that may overlap, with a channel each."""

    def __init__(self) -> None:
        super().__init__(mode="multilabel")

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return torch.cat((logits[:, 1:], logits[:, :1]), dim=1)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "with trainable weights"])
def test_a_gradient_that_is_cut_off_is_an_answer_and_no_error(trained: bool) -> None:
    model = Bright(lambda x: x.detach()).requires_grad_(trained)
    found = probe(model, *scan())
    assert not found.reached
    assert found.zero_gradient == 1
    assert math.isnan(found.rise)
    assert found.repeats


def test_also_inside_the_windows_of_a_volume() -> None:
    model = Windowed(Bright(lambda x: x.detach()), (16, 16, 16))
    assert not probe(model, *scan(ndim=3)).reached


def test_a_step_function_has_a_gradient_of_zeros() -> None:
    found = probe(Bright(lambda x: (x * 16).round() / 16), *scan())
    assert found.reached
    assert found.zero_gradient == 1
    assert math.isnan(found.rise)


def test_a_gradient_that_is_not_a_number_is_none() -> None:
    found = probe(Bright(lambda x: x + 0 * (x - x.detach()).sqrt()), *scan())
    assert found.zero_gradient == 1
    assert math.isnan(found.rise)


def test_saturated_logits() -> None:
    found = probe(Bright(lambda x: 1e4 * (x - 0.5) + 0.5), *scan())
    assert found.saturated > 0.9
    assert found.logit_scale > 1e3
    assert not found.rise > 0.25


def test_confident_is_not_saturated() -> None:
    assert probe(Bright(lambda x: 20 * (x - 0.5) + 0.5), *scan()).saturated == 0


@pytest.mark.parametrize("sigma", [0.05, 1e-3])
def test_random_noise_does_not_repeat(sigma: float) -> None:
    assert not probe(Bright(lambda x: x + sigma * torch.randn_like(x)), *scan()).repeats


def test_neither_does_a_model_that_answers_otherwise_when_a_gradient_is_asked_for() -> None:
    assert not probe(Bright(lambda x: 1 - x if x.requires_grad else x), *scan()).repeats


def test_float_noise_repeats() -> None:
    assert probe(Bright(lambda x: x + 1e-7 * torch.randn_like(x)), *scan()).repeats


def test_a_gradient_that_points_the_wrong_way() -> None:
    assert probe(Bright(WrongWay.apply), *scan()).rise == pytest.approx(-1, abs=0.1)


def test_a_gradient_that_holds_only_nearby() -> None:
    # Ripples with 20 times the slope of what they hide, and shorter than a step.
    assert probe(Bright(lambda x: x + 0.01 * torch.sin(2000 * x)), *scan()).rise < 0.25


@pytest.mark.parametrize("transform", [JPEG(quality=90), BitDepth(bits=5)], ids=["jpeg", "bit depth"])
def test_a_transform_that_passes_the_gradient_on_is_honest_on_an_8_bit_picture(transform: Any) -> None:
    images, labels = scan()
    found = probe(Transformed(Bright(), [transform]), (images * 255).round() / 255, labels)
    assert found.zero_gradient == 0
    assert found.rise > 0.25


def test_only_the_structure_needs_a_gradient() -> None:
    # The model reads nothing else, as one with a small receptive field far from a small lesion.
    def near(images: Tensor) -> Tensor:
        window = torch.zeros_like(images)
        window[..., 4:18, 4:18] = 1
        return images * window

    assert probe(Bright(near), *scan()).zero_gradient == 0


def test_without_any_structure_the_whole_image_is_looked_at() -> None:
    images, labels = scan()
    found = probe(Bright(lambda x: x / 4), images, torch.zeros_like(labels))
    assert found.zero_gradient == 0


def test_labels_that_do_not_fit_are_an_error() -> None:
    images, labels = scan()
    model: Segmenter = Bright()
    with pytest.raises(CeaseError, match="do not fit"):
        probe(model, images, labels[:, 1:])
