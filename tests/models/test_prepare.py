"""A prepared model is a frozen, faster copy that answers the same."""

from __future__ import annotations

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from monai.networks.blocks.acti_norm import ADN
from monai.networks.nets import UNet
from torch import nn

from cease_core.attacks.on_scan import pose_on_scan
from cease_core.errors import CeaseError
from cease_core.models import ForeignModel, SegmentationModel, prepare
from cease_core.models.foreign.cards import SCAN_WINDOW, class_infos, make_card
from cease_core.scan import Scan

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
    gradient_is_kept(model, prepared)


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
    assert "it runs unsimplified" in caplog.text


@pytest.mark.parametrize("ndim", [2, 3])
def test_one_slope_for_all_channels_becomes_a_leaky_relu(make_model, ndim: int) -> None:
    prepared = prepare(make_model(ndim=ndim))
    kinds = [type(m) for m in prepared.modules()]
    assert nn.PReLU not in kinds
    assert nn.LeakyReLU in kinds
    assert not any(issubclass(kind, nn.modules.dropout._DropoutNd) for kind in kinds)


@pytest.mark.parametrize("slope", [0.25, 0.0, -0.3, 1.5])
def test_slopes_are_kept_whatever_training_made_of_them(make_model, slope: float, caplog) -> None:
    model: SegmentationModel = make_model()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.PReLU):
                module.weight.fill_(slope)
    prepared = prepare(model)
    assert not caplog.text
    assert {m.negative_slope for m in prepared.modules() if isinstance(m, nn.LeakyReLU)} == {float(torch.tensor(slope))}
    gradient_is_kept(model, prepared)


def test_one_slope_a_channel_stays(make_model) -> None:
    model: SegmentationModel = make_model()
    block = next(m for m in model.modules() if isinstance(m, ADN))
    block.A = nn.PReLU(4)
    with torch.no_grad():
        block.A.weight.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    prepared = prepare(model)
    assert [m.num_parameters for m in prepared.modules() if isinstance(m, nn.PReLU)] == [4]
    gradient_is_kept(model, prepared)


def test_an_activation_whose_input_is_needed_later_is_not_overwritten(make_model, caplog) -> None:
    # A block whose output is the product of its activation and the activation's input.
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.PReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.act(x)

    model: SegmentationModel = make_model()
    block = next(m for m in model.modules() if isinstance(m, ADN))
    block.A = Gate()
    prepared = prepare(model)
    assert "it runs unsimplified" in caplog.text
    gradient_is_kept(model, prepared)


def test_same_logits_but_another_gradient_is_undone(make_model, caplog) -> None:
    class Crooked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: torch.Tensor, factor: float) -> torch.Tensor:
            ctx.factor = factor
            return x.clone()

        @staticmethod
        def backward(ctx, upstream: torch.Tensor):
            return upstream * ctx.factor, None

    class Deceitful(nn.Dropout):
        """Passes values on but not their gradient; a dropout in evaluation mode would pass on both."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Crooked.apply(x, 0.5)

    model: SegmentationModel = make_model()
    block = next(m for m in model.modules() if isinstance(m, ADN))
    block.A = nn.Sequential(Deceitful(), block.A)
    prepared = prepare(model)
    assert "it runs unsimplified" in caplog.text
    gradient_is_kept(model, prepared)


def test_a_single_small_volume_is_answered_like_one_of_many(make_model) -> None:
    prepared = prepare(make_model(ndim=3))
    images = torch.rand(2, 1, 12, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(prepared(images)[:1], prepared(images[:1]), rtol=1e-5, atol=1e-6)


def test_reduced_precision_keeps_the_exact_model_beside_it(make_model) -> None:
    model: SegmentationModel = make_model()
    reduced, full = prepare(model, precision="bfloat16"), prepare(model)
    images = torch.rand(1, 1, 12, 12, requires_grad=True)
    coarse, fine = reduced(images), full(images)
    assert coarse.dtype == torch.float32
    assert 1e-4 < (coarse - fine).abs().max() < 0.05 * fine.abs().max()
    assert torch.equal(reduced.exact(images), fine)
    assert torch.autograd.grad(coarse.sum(), images)[0].dtype == torch.float32
    assert not hasattr(full, "exact")
    assert (reduced.card, reduced.mode) == (model.card, model.mode)


def test_an_unknown_precision_is_refused(make_model) -> None:
    with pytest.raises(CeaseError, match="choose float32 or bfloat16"):
        prepare(make_model(), precision="float8")  # type: ignore[arg-type]


def foreign(network: nn.Module, window: tuple[int, ...], *, fixed: bool = False) -> ForeignModel:
    card = make_card(
        name="other",
        title="Other",
        architecture="Other",
        ndim=2,
        channels=1,
        classes=class_infos(["disc"]),
        mode="multiclass",
        window=SCAN_WINDOW,
        foreign={"kind": "monai", "window": window, "fixed": fixed},
    )
    return ForeignModel(card, network.eval())


def halving(norm: str) -> nn.Module:
    """A network that halves its input five times, down to one value of a small image."""
    return UNet(2, 1, 2, channels=(4,) * 6, strides=(2,) * 5, norm=(norm, {"affine": True}))


def prelus(model: nn.Module) -> int:
    return sum(isinstance(m, nn.PReLU) for m in model.modules())


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_deep_network_of_others_is_compared_at_a_size_that_it_takes(norm: str, fixed: bool) -> None:
    """Instance norms refuse a single value, which is what five poolings leave of a small image."""
    model = foreign(halving(norm), (64, 64), fixed=fixed)
    prepared = prepare(model)
    assert (prelus(model) > 0, prelus(prepared)) == (True, 0)
    images = torch.rand(1, 1, 64, 64, requires_grad=True)
    gradients = [torch.autograd.grad(m.asked(images).square().sum(), images)[0] for m in (model, prepared)]
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def test_a_six_stage_network_of_nnunet_can_be_attacked() -> None:
    stages = 6
    network = PlainConvUNet(
        input_channels=1,
        n_stages=stages,
        features_per_stage=(4,) * stages,
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=(1, *(2,) * (stages - 1)),
        n_conv_per_stage=1,
        num_classes=2,
        n_conv_per_stage_decoder=1,
        norm_op=nn.InstanceNorm2d,
        nonlin=nn.LeakyReLU,
    )
    scan = Scan(torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(0)).numpy(), torch.eye(4).numpy())
    problem = pose_on_scan(prepare(foreign(network, (64, 64))), scan).problem("soft_dice")
    gradient, _ = problem.gradient(torch.zeros_like(problem.images))
    assert gradient.any()


def test_a_network_of_others_that_takes_no_probe_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = foreign(halving("instance"), (32, 32))
    prepared = prepare(model)
    assert prelus(prepared) == prelus(model)
    assert not any(p.requires_grad for p in prepared.parameters())
    assert "could not be compared" in caplog.text


def gradient_is_kept(model: nn.Module, prepared: nn.Module) -> None:
    images = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradients = [torch.autograd.grad(net(images).square().sum(), images)[0] for net in (model, prepared)]
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()
