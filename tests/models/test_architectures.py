"""Encoder and decoder are the MONAI network cut in two, whatever the size of the image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cease_core.errors import CeaseError
from cease_core.models import ARCHITECTURES, SegmentationModel, build

ARGS = [
    ("unet", {"channels": (4, 8)}),
    ("unet", {"channels": (4, 8, 8, 12), "norm": "instance"}),
    ("residual_unet", {"channels": (4, 8)}),
    ("residual_unet", {"channels": (4, 8, 12)}),
    ("segresnet", {"filters": 8, "levels": 3}),
]
every_net = pytest.mark.parametrize(
    ("name", "args"), ARGS, ids=[f"{n}-{len(a.get('channels', (1,) * 3))}" for n, a in ARGS]
)


def test_every_architecture_is_tested() -> None:
    assert {name for name, _ in ARGS} == set(ARCHITECTURES)


@every_net
@pytest.mark.parametrize("ndim", [2, 3])
def test_decode_after_encode_is_the_network(name: str, args: dict, ndim: int) -> None:
    backbone = build(name, ndim, 2, 3, args).eval()
    images = torch.randn(2, 2, *(2 * backbone.multiple,) * ndim)
    with torch.no_grad():
        features = backbone.encode(images)
        assert torch.equal(backbone.decode(features), backbone.net(images))
        assert torch.equal(backbone(images), backbone.net(images))
    edges = [f.shape[-1] for f in features]
    assert edges == sorted(edges, reverse=True)
    assert 2 * backbone.multiple / edges[-1] == backbone.multiple


@every_net
@pytest.mark.parametrize("ndim", [2, 3])
def test_odd_sizes_are_padded_and_cropped(make_model, name: str, args: dict, ndim: int) -> None:
    model: SegmentationModel = make_model(architecture=name, architecture_args=args, ndim=ndim)
    multiple = model.backbone.multiple
    shape = (2 * multiple - 1, multiple + 1, 2 * multiple)[:ndim]
    images = torch.rand(1, 1, *shape)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (1, 1, *shape)
        # The border voxel is repeated after the last one, along each axis.
        pad = [v for s in reversed(shape) for v in (0, 2 * multiple - s)]
        padded = F.pad(images, pad, mode="replicate")
        whole = tuple(slice(0, s) for s in shape)
        torch.testing.assert_close(logits, model(padded)[(..., *whole)], rtol=0, atol=0)


@pytest.mark.parametrize("ndim", [2, 3])
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


@pytest.mark.parametrize(
    ("name", "args", "sentence"),
    [
        ("transformer", {}, r"unknown architecture 'transformer'; choose one of residual_unet, segresnet, unet\.$"),
        ("unet", {"channels": (4,)}, r"no less than 2\.$"),
        ("unet", {"channels": (-1, 4)}, r"cannot be built with .*negative dimension"),
        ("unet", {"norm": "none such"}, "cannot be built with"),
        ("unet", {"width": 3}, "unexpected keyword argument 'width'"),
        ("segresnet", {"filters": 6}, "divisible"),
    ],
)
def test_what_cannot_be_built(name: str, args: dict, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        build(name, 2, 1, 1, args)
