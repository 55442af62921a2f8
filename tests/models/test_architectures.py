"""Encoder and decoder are the MONAI network cut in two, whatever the size of the image."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.vnet import VNet

from cease_core.errors import CeaseError
from cease_core.models import ARCHITECTURES, SegmentationModel, build, load_model, prepare, save_model
from cease_core.models.architectures import Backbone, arguments
from cease_core.models.architectures.denoising import FILTERS, KEYS
from cease_core.models.architectures.unetr import UNETRBackbone

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "unet-2": ("unet", {"channels": [4, 8]}),
    "unet-4": ("unet", {"channels": [4, 8, 8, 12], "norm": "instance"}),
    "residual_unet-2": ("residual_unet", {"channels": [4, 8]}),
    "residual_unet-3": ("residual_unet", {"channels": [4, 8, 12]}),
    "attention_unet-2": ("attention_unet", {"channels": [4, 8]}),
    "attention_unet-4": ("attention_unet", {"channels": [4, 8, 8, 12]}),
    "unet_plus_plus": ("unet_plus_plus", {"channels": [4, 6, 6, 8, 8]}),
    "unet_plus_plus-batch": ("unet_plus_plus", {"channels": [4, 6, 6, 8, 8], "norm": "batch"}),
    "segresnet": ("segresnet", {"filters": 8, "levels": 3}),
    "dynunet": ("dynunet", {"channels": [4, 8, 8]}),
    "dynunet-residual": (
        "dynunet",
        {"channels": [4, 8, 8, 12], "norm": ["group", {"num_groups": 2}], "residual": True},
    ),
    "vnet": ("vnet", {"filters": 2}),
    "flexible_unet": ("flexible_unet", {"channels": [8, 8, 8, 8, 4]}),
    "unetr": ("unetr", {"filters": 4, "hidden": 12, "mlp": 12, "heads": 2, "image_size": 32}),
    "swin_unetr": ("swin_unetr", {"depths": [2, 1, 1, 1], "heads": [1, 1, 1, 1], "window": 3}),
    "mednext": ("mednext", {"filters": 4, "levels": 4, "blocks": 1}),
}
every_net = pytest.mark.parametrize(("name", "args"), CASES.values(), ids=CASES)
FAMILIES = dict(reversed(CASES.values()))
every_family = pytest.mark.parametrize(("name", "args"), FAMILIES.items(), ids=FAMILIES)
both_dimensions = pytest.mark.parametrize("ndim", [2, 3])


def seeded(name: str, ndim: int, args: dict[str, Any], inputs: int = 2, outputs: int = 3) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(name, ndim, inputs, outputs, args).eval()


def size(backbone: Backbone, ndim: int) -> tuple[int, ...]:
    """Two positions at the coarsest level; more where MONAI's own forward knows one size alone."""
    m = backbone.multiple
    return (2 * m,) * ndim if isinstance(backbone, UNETRBackbone) else (2 * m, m, m)[:ndim]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_every_architecture_is_tested() -> None:
    assert {name for name, _ in CASES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_defaults_are_json_and_suit_a_cpu(name: str) -> None:
    backbone = build(name, 2, 1, 1, json.loads(json.dumps(arguments(name))))
    # An EfficientNet is never smaller than its B0.
    assert sum(p.numel() for p in backbone.parameters()) < (4.5e6 if name == "flexible_unet" else 2e6)


@every_net
@both_dimensions
def test_decode_after_encode_is_the_network(name: str, args: dict, ndim: int) -> None:
    backbone = seeded(name, ndim, args)
    images = drawn(2, 2, *size(backbone, ndim))
    with torch.no_grad():
        features = backbone.encode(images)
        expected = backbone.net(images)
        # U-Net++ returns a list, for deep supervision.
        expected = expected[0] if isinstance(expected, list) else expected
        assert torch.equal(backbone.decode(features), expected)
    assert expected.shape == (2, 3, *images.shape[2:])
    assert backbone.widths == tuple(f.shape[1] for f in features)
    edges = [f.shape[2] for f in features]
    assert edges == sorted(edges, reverse=True)
    assert images.shape[2] / edges[-1] == backbone.multiple


@every_family
@both_dimensions
def test_gradients_reach_the_image_and_every_weight(name: str, args: dict, ndim: int) -> None:
    backbone = seeded(name, ndim, args).train()
    images = drawn(1, 2, *size(backbone, ndim)).requires_grad_()
    backbone(images).square().mean().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []


@every_family
def test_nothing_is_dropped_in_training(name: str, args: dict) -> None:
    backbone = seeded(name, 2, args).train()
    images = drawn(2, 2, *size(backbone, 2))
    with torch.no_grad():
        assert torch.equal(backbone(images), backbone(images))


@every_family
def test_bfloat16_rounds_and_no_more(name: str, args: dict) -> None:
    backbone = seeded(name, 2, args)
    images = drawn(2, 2, *size(backbone, 2)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        coarse = backbone(images)
    (gradient,) = torch.autograd.grad(coarse.float().square().sum(), images)
    fine = backbone(images)
    assert (coarse - fine).norm() < 0.1 * fine.norm()
    assert gradient.isfinite().all()


@every_family
@both_dimensions
def test_odd_sizes_are_padded_and_cropped(make_model, name: str, args: dict, ndim: int) -> None:
    model: SegmentationModel = make_model(architecture=name, architecture_args=args, ndim=ndim)
    multiple = model.backbone.multiple
    shape, whole = (multiple + 1, multiple - 1, multiple)[:ndim], (2 * multiple, multiple, multiple)[:ndim]
    images = torch.rand(1, 1, *shape)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (1, 1, *shape)
        # The border voxel is repeated after the last one, along each axis.
        pad = [v for full, s in zip(reversed(whole), reversed(shape), strict=True) for v in (0, full - s)]
        padded = F.pad(images, pad, mode="replicate")
        torch.testing.assert_close(logits, model(padded)[(..., *(slice(0, s) for s in shape))], rtol=0, atol=0)


@every_family
@both_dimensions
def test_prepared_it_answers_the_same(make_model, caplog, name: str, args: dict, ndim: int) -> None:
    model: SegmentationModel = make_model(architecture=name, architecture_args=args, ndim=ndim)
    images = torch.rand(1, 1, *size(model.backbone, ndim))
    with caplog.at_level(logging.WARNING), torch.no_grad():
        torch.testing.assert_close(prepare(model)(images), model(images), rtol=1e-4, atol=1e-4)
    assert caplog.records == []  # it would say so if it ran unsimplified


@every_family
def test_a_checkpoint_brings_it_back(make_model, tmp_path: Path, name: str, args: dict) -> None:
    model: SegmentationModel = make_model(architecture=name, architecture_args=args)
    loaded = load_model(save_model(model, tmp_path))
    images = torch.rand(1, 1, *size(model.backbone, 2))
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@both_dimensions
def test_downsampled_models_answer_on_the_images_grid(make_model, ndim: int) -> None:
    full, half = (make_model(ndim=ndim, downsample=k) for k in (1, 2))
    blocks = torch.rand(1, 1, *(6,) * ndim)
    images = blocks
    for axis in range(2, ndim + 2):
        images = images.repeat_interleave(2, dim=axis)
    with torch.no_grad():
        logits = half(images)
        assert logits.shape == images.shape
        # Each block of the image is one pixel of the network's input.
        small = full(blocks)
        mode = "bilinear" if ndim == 2 else "trilinear"
        torch.testing.assert_close(logits, F.interpolate(small, scale_factor=2, mode=mode))
        assert half(images[..., :9]).shape == (1, 1, *images.shape[2:-1], 9)


def test_encode_gives_features_to_defences(make_model) -> None:
    model: SegmentationModel = make_model(architecture_args={"channels": (4, 8, 8)})
    images = torch.rand(2, 1, 13, 16)
    features = model.encode(images)
    assert [f.shape[1] for f in features] == [4, 8, 8]
    assert torch.equal(model.decode(features, (13, 16)), model(images))


def test_vnet_of_the_papers_width_is_monais() -> None:
    backbone, reference = seeded("vnet", 2, {"filters": 16}), VNet(2, in_channels=2, out_channels=3).eval()
    reference.load_state_dict(backbone.net.state_dict())
    images = drawn(1, 2, 32, 16)
    with torch.no_grad():
        assert torch.equal(backbone(images), reference(images))


@both_dimensions
def test_vnet_takes_colour_images(ndim: int) -> None:
    backbone = seeded("vnet", ndim, {"filters": 4}, inputs=3)
    images = drawn(1, 3, *size(backbone, ndim))
    with torch.no_grad():
        empty = torch.zeros_like(images[:, :1])
        assert torch.equal(backbone(images), backbone.net(torch.cat([images, empty], dim=1)))


@both_dimensions
def test_unetr_interpolates_its_position_embeddings(ndim: int) -> None:
    backbone: Any = seeded("unetr", ndim, dict(CASES["unetr"][1]))
    own = backbone.net.vit.patch_embedding.position_embeddings
    corners = own.view(*(2,) * ndim, -1)
    torch.testing.assert_close(backbone.positions((2,) * ndim)[0].movedim(0, -1), corners)
    # Between two positions lies their mean; beyond the outer ones, themselves.
    wide = backbone.positions((4, *(2,) * (ndim - 1)))[0].movedim(0, -1)
    torch.testing.assert_close(wide[0], corners[0])
    torch.testing.assert_close(wide[1], 0.75 * corners[0] + 0.25 * corners[1])
    (gradient,) = torch.autograd.grad(wide.sum(), own)
    torch.testing.assert_close(gradient, torch.full_like(own, 2))


@pytest.mark.parametrize("shape", [(192, 96), (32, 96), (160, 224)])
def test_swin_unetr_takes_any_multiple(shape: tuple[int, int]) -> None:
    backbone = seeded("swin_unetr", 2, CASES["swin_unetr"][1] | {"window": 7})
    with torch.no_grad():
        assert backbone(drawn(1, 2, *shape)).shape == (1, 3, *shape)


@every_family
def test_feature_denoising_changes_nothing_at_first(name: str, args: dict) -> None:
    plain, denoised = seeded(name, 2, args), seeded(name, 2, args | {"denoise": "mean"})
    assert (denoised.widths, denoised.multiple) == (plain.widths, plain.multiple)
    images = drawn(2, 2, *size(plain, 2))
    with torch.no_grad():
        assert torch.equal(denoised(images), plain(images))


@pytest.mark.parametrize("kind", FILTERS)
@both_dimensions
def test_feature_denoising_is_learnt(make_model, tmp_path: Path, caplog, kind: str, ndim: int) -> None:
    args = {"channels": [4, 8, 8], "denoise": kind}
    model: SegmentationModel = make_model(architecture_args=args, ndim=ndim)
    images = torch.rand(2, 1, *(13,) * ndim)
    before = model(images)
    before.square().sum().backward()
    with torch.no_grad():
        for block in model.backbone.blocks:
            assert block.mix.weight.grad.abs().sum() > 0
            block.mix.weight -= 0.1 * block.mix.weight.grad.sign()
        after, fine = model(images), model.encode(images)[0]
        assert (after - before).abs().max() > 1e-3
        assert torch.equal(fine, model.backbone.inner.encode(model._enter(images))[0])
        assert torch.equal(load_model(save_model(model, tmp_path))(images), after)
        torch.testing.assert_close(prepare(model)(images), after, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(images) - after).norm() < 0.1 * after.norm()
    assert caplog.records == []


@pytest.mark.parametrize("kind", FILTERS)
@both_dimensions
def test_filters_keep_what_is_constant_and_lessen_noise(kind: str, ndim: int) -> None:
    blur = FILTERS[kind](ndim)
    constant = torch.full((1, 3, *(5,) * ndim), 0.7)
    torch.testing.assert_close(blur(constant), constant)
    noise = drawn(1, 3, *((50, 40) if ndim == 2 else (16, 12, 10)))
    assert noise[0, 0].numel() > KEYS
    assert blur(noise).shape == noise.shape
    assert blur(noise).std() < 0.7 * noise.std()


def test_filters_by_hand() -> None:
    impulse = torch.zeros(1, 1, 3, 3)
    impulse[..., 1, 1] = 16
    gaussian = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    torch.testing.assert_close(FILTERS["gaussian"](2)(impulse)[0, 0], gaussian)
    torch.testing.assert_close(FILTERS["mean"](2)(impulse)[0, 0], torch.full((3, 3), 16 / 9))
    assert not FILTERS["median"](2)(impulse).any()
    # One channel: a weight is the exponential of the product of two values.
    values = torch.tensor([1.0, 2.0])
    weights = torch.outer(values, values).softmax(dim=1)
    torch.testing.assert_close(FILTERS["nonlocal"](2)(values.view(1, 1, 1, 2)).flatten(), weights @ values)


@pytest.mark.parametrize(
    ("name", "args", "sentence"),
    [
        ("transformer", {}, r"unknown architecture 'transformer'; choose one of attention_unet, .*, vnet\.$"),
        ("unet", {"channels": [4]}, r"no less than 2\.$"),
        ("unet", {"channels": [-1, 4]}, r"cannot be built with .*negative dimension"),
        ("unet", {"norm": "none such"}, "cannot be built with"),
        ("unet", {"channels": 4}, "cannot be built with"),
        ("unet", {"width": 3}, r"'unet' has no argument 'width'; choose among channels, norm, denoise\.$"),
        ("residual_unet", {"units": 3}, "has no argument 'units'; choose among channels, norm, denoise"),
        (
            "unet",
            {"denoise": "wish"},
            r"unknown denoise filter 'wish'; choose one of mean, gaussian, median, nonlocal\.$",
        ),
        ("segresnet", {"filters": 6}, "divisible"),
        ("attention_unet", {"channels": [4]}, "at least two levels"),
        ("unet_plus_plus", {"channels": [4, 8]}, "must name 5 levels, not 2"),
        ("dynunet", {"channels": [4, 8]}, "no less than 3"),
        ("vnet", {"filters": 0}, "at least the image's 1 channels"),
        ("flexible_unet", {"encoder": "vgg16"}, "unknown encoder 'vgg16'; choose one of efficientnet-b0, "),
        ("flexible_unet", {"channels": [8, 8]}, "decoder_channels"),
        ("unetr", {"hidden": 10, "heads": 4}, "divisible by num_heads"),
        ("unetr", {"image_size": 8}, "patch_size should be smaller than img_size"),
        ("swin_unetr", {"filters": 8}, "divisible by 12"),
        ("swin_unetr", {"heads": [1]}, "must name four stages"),
        ("mednext", {"kernel": 4}, "kernel odd"),
    ],
)
def test_what_cannot_be_built(name: str, args: dict, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        build(name, 2, 1, 1, args)
