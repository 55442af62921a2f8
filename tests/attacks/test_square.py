"""Square asks for scores only, changes a square at a time, and still finds what is easy to find."""

from __future__ import annotations

import pytest
import torch
from attack_subjects import Target, target
from torch import Tensor

from cease_core.attacks import Square
from cease_core.attacks.norms import Norm, rms
from cease_core.attacks.problem import Problem
from cease_core.attacks.square import HALVINGS, Boxes
from cease_core.errors import CeaseError
from cease_core.models import Mode

NORMS: list[Norm] = ["linf", "l2"]
BOUNDS = (-9.0, 9.0)


class Listening:
    """Passes images on, remembers them, and shows whether a gradient was wanted."""

    def __init__(self, t: Target) -> None:
        self.net, self.mode = t.net, t.net.mode
        self.heard: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not images.requires_grad
        self.heard.append(images)
        return self.net(images)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_only_forward_passes_are_spent_one_a_query(norm: Norm, ndim: int) -> None:
    t = target("multiclass", ndim)
    model = Listening(t)
    result = Square(queries=30, norm=norm)(model, t.images, t.labels)
    assert result.gradients.tolist() == [0, 0]
    # The clean image, too, is asked for.
    assert result.queries.tolist() == [31, 31]
    assert len([x for x in model.heard if len(x) == 2]) == 31


@pytest.mark.parametrize("norm", NORMS)
def test_a_model_without_a_gradient_can_be_attacked(norm: Norm) -> None:
    t = target("binary", 2)

    class Steps:
        mode: Mode = "binary"

        def __call__(self, images: Tensor) -> Tensor:
            return (4 * t.net(images)).round()

    problem = Problem.pose(Steps(), t.images, t.labels, "soft_dice", bounds=BOUNDS)
    result = Square(queries=100, norm=norm, epsilon=0.1, share=0.1).run(problem)
    assert (result.score < problem.clean().score).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_each_query_changes_one_square_of_the_best_so_far(ndim: int) -> None:
    t = target("multiclass", ndim)
    model = Listening(t)
    result = Square(queries=60, share=0.1, criterion="loss", epsilon=0.05)(model, t.images, t.labels, bounds=BOUNDS)
    seen = torch.stack([x for x in model.heard if len(x) == 2][1:])
    # The first entry of the trace is the start's, as of what was seen.
    losses = result.loss
    for case in range(2):
        best = 0
        accepted = [losses[0, case]]
        for query in range(1, len(seen)):
            changed = (seen[query, case] != seen[best, case]).any(dim=0)
            places = changed.nonzero()
            if len(places):
                edges = places.amax(dim=0) - places.amin(dim=0) + 1
                assert edges.prod() <= 2 * 0.1 * changed.numel()
            torch.testing.assert_close((seen[query] - t.images).abs(), torch.full_like(t.images, 0.05))
            if losses[query, case] > losses[best, case]:
                best = query
                accepted.append(losses[query, case])
        assert accepted == sorted(accepted)
        assert len(accepted) > 3
        assert torch.equal(result.adversarial[case], t.images[case] + (seen[best, case] - t.images[case]))


@pytest.mark.parametrize("norm", NORMS)
def test_more_queries_only_help(norm: Norm) -> None:
    t = target("multiclass", 2)
    problem = Problem.pose(t.net, t.images, t.labels, "soft_dice", criterion="loss")
    few, many = (Square(queries=n, norm=norm).run(problem).score for n in (20, 400))
    assert (many < few).all()


WEIGHTS = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(5)).cumsum(dim=2).cumsum(dim=3)


class Linear:
    """One weighted sum of all values is the logit of every pixel; the weights are smooth."""

    mode: Mode = "binary"

    def __call__(self, images: Tensor) -> Tensor:
        return (WEIGHTS * images).mean(dim=(1, 2, 3), keepdim=True).expand(-1, 1, 12, 12)


def summed(logits: Tensor, target: Tensor, mode: Mode) -> Tensor:
    del target, mode
    return logits.flatten(1).mean(dim=1)


@pytest.mark.parametrize(("norm", "part"), [("linf", 0.9), ("l2", 0.6)])
def test_most_of_a_linear_optimum_is_found(norm: Norm, part: float) -> None:
    images, labels = torch.zeros(1, 1, 12, 12), torch.zeros(1, 12, 12, dtype=torch.long)
    attack = Square(queries=1000, norm=norm, epsilon=0.1, loss=summed, criterion="loss")
    found = attack(Linear(), images, labels, bounds=BOUNDS)
    best = 0.1 * (WEIGHTS.abs().mean() if norm == "linf" else WEIGHTS.square().mean().sqrt())
    assert part * best < -found.score <= best * (1 + 1e-5)


@pytest.mark.parametrize("bounds", [BOUNDS, (0.0, 1.0)])
def test_l2_spends_the_whole_ball_where_the_bounds_allow(bounds: tuple[float, float]) -> None:
    t = target("multiclass", 2)
    result = Square(queries=50, norm="l2", epsilon=0.05, criterion="loss")(t.net, t.images, t.labels, bounds=bounds)
    size = rms(result.perturbation)
    assert (size <= 0.05 * (1 + 1e-5)).all()
    if bounds == BOUNDS:
        torch.testing.assert_close(size, torch.full((2,), 0.05), rtol=1e-4, atol=0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_squares_lie_in_the_box_of_each_cases_region(ndim: int) -> None:
    t = target("binary", ndim)
    region = torch.zeros_like(t.images)
    region[0, 0, 2:6, 1:5] = 1
    region[0, 1, 4, 4] = 1
    region[1, :, 1:3, 3:] = 1
    boxes = Boxes(Problem.pose(t.net, t.images, t.labels, "soft_dice", region=region))
    draws = torch.Generator().manual_seed(0)
    touched = torch.zeros_like(region[:, :1], dtype=torch.bool)
    for share in (0.01, 0.2, 1.0) * 40:
        inside, _, edges = boxes.square(share, draws)
        assert torch.equal(inside.flatten(1).sum(dim=1), edges.prod(dim=1).long())
        touched |= inside
    assert torch.equal(touched, region.amax(dim=1, keepdim=True) > 0)


def test_the_squares_shrink_when_the_paper_says() -> None:
    shares: list[float] = []

    original = Boxes.square

    def square(self: Boxes, share: float, draws: torch.Generator):
        shares.append(share)
        return original(self, share, draws)

    t = target("binary", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Boxes, "square", square)
        Square(queries=1000, share=0.8)(t.net, t.images, t.labels)
    halved = [query for query in range(1, 999) if shares[query] < shares[query - 1]]
    assert shares[0] == 0.8
    assert halved == [h // 10 for h in HALVINGS]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Square(queries=0), "queries is 0; give at least 1"),
        (lambda: Square(share=0.0), "above 0 and at most 1"),
        (lambda: Square(share=1.5), "above 0 and at most 1"),
    ],
)
def test_parameters_out_of_range_are_refused(make, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        make()
