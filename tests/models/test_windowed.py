"""Overlapping windows give the logits and the exact gradient of their blend, at one window's memory."""

from __future__ import annotations

import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from cease_core.errors import CeaseError
from cease_core.models import SegmentationModel, Segmenter, Windowed, prepare
from cease_core.models.windowed import Blend


def blend_with_the_whole_graph(windowed: Windowed, images: Tensor) -> Tensor:
    """The same blend, written plainly: autograd keeps every window."""
    window, places = windowed.plan(tuple(images.shape[2:]))
    slices, rows, columns = (windowed.profile(edge) for edge in window)
    weight = slices[:, None, None] * rows[:, None] * columns
    total: Tensor | float = 0.0
    blended: Tensor | float = 0.0
    for place in places:
        patch = images[(..., *place)]
        logits = windowed.model(patch.squeeze(2)).unsqueeze(2) if windowed.planar else windowed.model(patch)
        pad = [v for p, s in reversed(list(zip(place, images.shape[2:], strict=True))) for v in (p.start, s - p.stop)]
        blended = blended + torch.nn.functional.pad(weight * logits, pad)
        total = total + torch.nn.functional.pad(weight, pad)
    assert isinstance(blended, Tensor)
    return blended / total


def error(found: Tensor, exact: Tensor) -> float:
    return float(((found - exact).norm() / exact.norm()).detach())


def border(volume: Tensor) -> Tensor:
    """The voxels of the outermost layer."""
    inside = torch.zeros(volume.shape[2:], dtype=torch.bool)
    inside[tuple(slice(1, s - 1) for s in inside.shape)] = True
    return volume[..., ~inside]


CASES = {
    # name: (2-D model, window, overlap, volume)
    "overlap": (False, (6, 6, 6), 0.5, (10, 9, 8)),
    "more overlap, odd borders": (False, (5, 6, 4), 0.7, (7, 11, 9)),
    "side by side": (False, (4, 4, 4), 0.0, (8, 7, 4)),
    "window larger than the volume": (False, (16, 16, 16), 0.5, (6, 5, 7)),
    "slices": (True, (1, 9, 8), 0.0, (5, 9, 8)),
    "parts of slices": (True, (1, 6, 6), 0.5, (4, 9, 8)),
}


@pytest.mark.parametrize(("planar", "window", "overlap", "volume"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("cases", [1, 2])
def test_logits_and_gradient_are_those_of_the_whole_graph(
    make_model,
    planar: bool,
    window: tuple[int, int, int],
    overlap: float,
    volume: tuple[int, int, int],
    cases: int,
) -> None:
    model: Segmenter = make_model(ndim=2 if planar else 3)
    windowed = Windowed(model, window, overlap=overlap, batch=3, planar=planar)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(cases, 1, *volume, generator=generator).requires_grad_()
    upstream = torch.randn(cases, 1, *volume, generator=generator)
    found, exact = windowed(images), blend_with_the_whole_graph(windowed, images)
    assert found.shape == (cases, 1, *volume)
    assert error(found, exact) <= 1e-5
    gradients = [torch.autograd.grad(logits, images, upstream)[0] for logits in (found, exact)]
    assert (gradients[0] != 0).all()
    assert error(*gradients) <= 1e-5
    assert error(border(gradients[0]), border(gradients[1])) <= 1e-5


@pytest.mark.parametrize(("blend", "theirs"), [("constant", "constant"), ("floored", "gaussian")])
def test_windows_of_monai(make_model, blend: Blend, theirs: str) -> None:
    model = make_model(ndim=3)
    images = torch.rand(2, 1, 20, 26, 17, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours = Windowed(model, (16, 12, 8), overlap=0.25, batch=3, blend=blend)(images)
    exact = sliding_window_inference(images, (16, 12, 8), 3, model, overlap=0.25, mode=theirs)
    assert (ours - exact).abs().max() <= 1e-5
    slopes = [torch.autograd.grad(logits.square().sum(), images)[0] for logits in (ours, exact)]
    assert error(*slopes) <= 1e-5


def test_every_voxel_is_covered_to_the_last_border() -> None:
    for planar, window, overlap, volume in CASES.values():
        seen = torch.zeros(volume)
        edge, places = Windowed(_Plain(), window, overlap=overlap, planar=planar).plan(volume)
        for place in places:
            assert tuple(p.stop - p.start for p in place) == edge
            seen[place] += 1
        assert seen.min() >= 1
        assert (seen.max() > 1) == (
            (overlap > 0 and edge != volume) or any(v % e for v, e in zip(volume, edge, strict=True))
        )


class _Plain:
    mode = "binary"

    def __call__(self, images: Tensor) -> Tensor:
        return images[:, :1] * 2


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_a_pixelwise_model_does_not_notice_windows(overlap: float) -> None:
    images = torch.rand(1, 1, 9, 7, 8)
    torch.testing.assert_close(Windowed(_Plain(), (4, 4, 4), overlap=overlap)(images), images * 2)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_a_matter_of_speed_alone(make_model, batch: int) -> None:
    model: SegmentationModel = make_model(ndim=3)
    images = torch.rand(2, 1, 9, 6, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one = Windowed(model, (6, 6, 6), batch=4)(images)
        other = Windowed(model, (6, 6, 6), batch=batch)(images)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_no_window_is_kept_for_the_backward_pass(make_model) -> None:
    model = make_model(ndim=3)
    images = torch.rand(1, 1, 12, 12, 12, requires_grad=True)
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        Windowed(model, (6, 6, 6))(images)
    assert kept == [images.numel()]


@pytest.mark.parametrize("weight", [1.0, torch.ones(1, requires_grad=True)], ids=["frozen", "trainable"])
def test_a_model_that_cuts_the_gradient_is_said_to(weight: float | Tensor) -> None:
    class Cut:
        mode = "binary"

        def __call__(self, images: Tensor) -> Tensor:
            return images[:, :1].detach() * weight

    images = torch.rand(1, 1, 8, 8, 8, requires_grad=True)
    whole = Windowed(Cut(), (4, 4, 4))(images)
    with pytest.raises(CeaseError, match="no gradient reaches the image"):
        torch.autograd.grad(whole.sum(), images)


def test_a_2d_model_sees_one_slice() -> None:
    with pytest.raises(ValueError, match="the first window edge must be 1"):
        Windowed(_Plain(), (2, 4, 4), planar=True)


class _Cramped:
    """A model that has memory for no more than ``fits`` windows at once."""

    mode = "binary"

    def __init__(self, model: Segmenter, fits: int) -> None:
        self.model = model
        self.fits = fits
        self.seen: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.seen.append(len(images))
        return self.model(images)


def test_windows_that_do_not_fit_together_go_through_one_by_one(make_model, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(ndim=3)
    images = torch.rand(1, 1, 9, 6, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cramped = _Cramped(model, fits=1)
    answers = []
    for segmenter in (model, cramped):
        logits = Windowed(segmenter, (6, 6, 6), batch=4)(images)
        answers.append((logits, torch.autograd.grad(logits.sum(), images)[0]))
    assert set(cramped.seen) == {1}
    assert "batches of 1" in caplog.text
    for whole, parts in zip(*answers, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_what_did_not_fit_is_not_tried_again(make_model) -> None:
    cramped = _Cramped(make_model(ndim=3), fits=2)
    windowed = Windowed(cramped, (6, 6, 6), batch=8)
    windowed(torch.rand(1, 1, 9, 9, 9))
    assert windowed.batch.size == 2


def test_a_window_that_does_not_fit_by_itself_is_out_of_memory(make_model) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Windowed(_Cramped(make_model(ndim=3), fits=0), (6, 6, 6))(torch.rand(1, 1, 6, 6, 6))


def test_reduced_precision_is_judged_by_the_same_windows_in_full(make_model) -> None:
    model = make_model(ndim=3)
    reduced = prepare(model, precision="bfloat16")
    images = torch.rand(1, 1, 9, 6, 7, generator=torch.Generator().manual_seed(0))
    windowed = Windowed(reduced, (6, 6, 6))
    assert windowed.exact is not None
    with torch.no_grad():
        coarse, fine, truth = (w(images) for w in (windowed, windowed.exact, Windowed(model, (6, 6, 6))))
    torch.testing.assert_close(fine, truth, rtol=1e-4, atol=1e-5)
    assert error(coarse, truth) > 1e-4
    assert Windowed(model, (6, 6, 6)).exact is None
