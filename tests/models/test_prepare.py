"""A prepared model is a frozen, faster copy that answers the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cease_core.models import SegmentationModel, prepare

CONFIGURATIONS = {
    "unet": {"architecture": "unet", "architecture_args": {"channels": (4, 8, 8)}},
    "residual_unet": {"architecture": "residual_unet", "architecture_args": {"channels": (4, 8, 8)}},
    "instance": {"architecture": "unet", "architecture_args": {"channels": (4, 8), "norm": "instance"}},
    "segresnet": {"architecture": "segresnet", "architecture_args": {"filters": 8, "levels": 2}},
}


def norms(model: nn.Module) -> int:
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
    return sum(isinstance(m, kinds) for m in model.modules())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_same_logits(make_model, name: str, ndim: int) -> None:
    model = make_model(ndim=ndim, **CONFIGURATIONS[name])
    images = torch.rand(2, 1, *(11,) * ndim)
    with torch.no_grad():
        torch.testing.assert_close(prepare(model)(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_batch_norms_are_folded_and_others_stay(make_model, name: str, ndim: int) -> None:
    model = make_model(ndim=ndim, **CONFIGURATIONS[name])
    before = norms(model)
    assert before > 0
    assert norms(prepare(model)) == (0 if name in ("unet", "residual_unet") else before)
    assert norms(model) == before


def test_the_original_is_left_as_it_was(make_model) -> None:
    model: SegmentationModel = make_model().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    prepared = prepare(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.is_contiguous()
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.zero_()
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in before)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_copy_is_frozen_and_the_gradient_reaches_the_image(make_model, name: str) -> None:
    model = make_model(**CONFIGURATIONS[name])
    prepared = prepare(model)
    assert not prepared.training
    assert not any(p.requires_grad for p in prepared.parameters())
    images = torch.rand(1, 1, 12, 12, requires_grad=True)
    gradients = [torch.autograd.grad(net(images).square().sum(), images)[0] for net in (model, prepared)]
    assert gradients[0].any()
    error = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert error < 1e-4


@pytest.mark.parametrize(("ndim", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_memory_is_laid_out_for_convolutions(make_model, ndim: int, layout: torch.memory_format) -> None:
    prepared = prepare(make_model(ndim=ndim))
    weights = [m.weight for m in prepared.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    assert weights
    assert all(w.is_contiguous(memory_format=layout) for w in weights)


def test_folding_that_would_change_the_answer_is_undone(make_model, caplog: pytest.LogCaptureFixture) -> None:
    # A hook between a convolution and its norm: the two are no longer one linear map.
    model: SegmentationModel = make_model()
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: output + 3)
    prepared = prepare(model)
    images = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(prepared(images), model(images), rtol=1e-4, atol=1e-5)
    assert norms(prepared) == norms(model)
    assert "it runs unfolded" in caplog.text
