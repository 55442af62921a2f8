"""Targets on masks drawn by hand: class ids and channels, in two and three dimensions."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from attack_subjects import target
from torch import Tensor

from cease_core.attacks import PGD
from cease_core.attacks.losses import one_hot
from cease_core.attacks.targets import TARGETS, Target, erase, fill, grow, own, shift, swap
from cease_core.errors import CeaseError
from cease_core.models import Mode


def ids(*rows: str) -> Tensor:
    """One case (1, rows, columns) from its rows of digits."""
    return torch.tensor([[[int(c) for c in row] for row in rows]])


def channels(*masks: Tensor) -> Tensor:
    """One channel (1, K, *spatial) a mask of zeros and ones."""
    return torch.stack(masks, dim=1).float()


TWO = ids(
    "000000",
    "011000",
    "011000",
    "002000",
    "000000",
)
OVERLAP = channels(ids("1100", "1100"), ids("0110", "0000"))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("labels", [TWO, TWO[:, :, :, None].expand(1, 5, 6, 4), OVERLAP], ids=["2d", "3d", "channels"])
def test_every_target_keeps_the_form_and_leaves_the_labels_alone(name: str, labels: Tensor) -> None:
    before = labels.clone()
    made = TARGETS[name].make(labels)
    assert made.shape == labels.shape
    assert made.dtype == labels.dtype
    assert not torch.equal(made, labels)
    assert torch.equal(labels, before)


@pytest.mark.parametrize("name", TARGETS)
def test_a_case_does_not_feel_its_batch(name: str) -> None:
    batch = torch.cat([TWO, (TWO > 0) * 2, TWO.flip(1, 2)])
    make = TARGETS[name].make
    assert torch.equal(make(batch), torch.cat([make(case) for case in batch.split(1)]))


def test_erase_leaves_background() -> None:
    assert not erase(TWO).any()
    assert not erase(OVERLAP).any()


def test_fill_covers_everything_with_the_commonest_structure() -> None:
    assert (fill(TWO) == 1).all()
    assert (fill(TWO, label=2) == 2).all()
    assert (fill(TWO, label=3) == 3).all()  # in no pixel yet, but the model may know it
    assert (fill(torch.zeros_like(TWO)) == 1).all()
    assert torch.equal(fill(OVERLAP), channels(torch.ones(1, 2, 4), torch.zeros(1, 2, 4)))
    assert torch.equal(fill(OVERLAP, label=2), channels(torch.zeros(1, 2, 4), torch.ones(1, 2, 4)))


def test_grow_takes_background_only() -> None:
    assert torch.equal(
        grow(TWO, by=1),
        ids(
            "111100",
            "111100",
            "111200",  # where two structures meet on background, the higher id
            "122200",
            "022200",
        ),
    )


def test_grow_lets_channels_overlap_and_reaches_by_default_a_twentieth() -> None:
    assert torch.equal(grow(OVERLAP, by=1), channels(ids("1110", "1110"), ids("1111", "1111")))
    dot = torch.zeros(1, 41, 60, dtype=torch.long)
    dot[0, 20, 30] = 1
    assert grow(dot).nonzero().amin(dim=0).tolist() == [0, 18, 28]
    assert grow(dot).sum() == 5 * 5


def test_grow_in_three_dimensions_is_a_cube() -> None:
    dot = torch.zeros(1, 5, 5, 5, dtype=torch.long)
    dot[0, 2, 2, 2] = 1
    grown = grow(dot, by=1)
    assert grown.sum() == 27
    assert grown[0, 1:4, 1:4, 1:4].all()


@pytest.mark.parametrize(
    ("offset", "rows"),
    [
        ((1, 2), ("000000", "000000", "000110", "000110", "000020")),
        ((-1, 0), ("011000", "011000", "002000", "000000", "000000")),
        ((0, 4), ("000000", "000001", "000001", "000000", "000000")),
        ((2, 0), ("000000", "000000", "000000", "011000", "011000")),
        ((9, 0), ("000000",) * 5),
    ],
)
def test_shift_loses_what_leaves(offset: tuple[int, int], rows: tuple[str, ...]) -> None:
    assert torch.equal(shift(TWO, offset=offset), ids(*rows))
    both = one_hot(TWO, "multilabel", 2)
    assert torch.equal(shift(both, offset=offset), one_hot(ids(*rows), "multilabel", 2))


def test_shift_in_three_dimensions() -> None:
    dot = torch.zeros(1, 4, 5, 6, dtype=torch.long)
    dot[0, 1, 2, 3] = 2
    assert shift(dot, offset=(2, -1, 1)).nonzero().tolist() == [[0, 3, 1, 4]]


def test_shift_goes_a_fifth_of_the_way_to_the_roomier_side() -> None:
    dots = torch.zeros(2, 10, 20, dtype=torch.long)
    dots[0, 1, 1] = dots[1, 1, 18] = 1
    assert shift(dots).nonzero().tolist() == [[0, 3, 5], [1, 3, 14]]


def test_swap_exchanges_the_two_commonest() -> None:
    swapped = ids("000000", "022000", "022000", "001000", "000000")
    assert torch.equal(swap(TWO), swapped)
    assert torch.equal(swap(TWO, first=2, second=1), swapped)
    three = ids("1233", "1233")
    assert torch.equal(swap(three), ids("3211", "3211"))
    assert torch.equal(swap(three, first=1, second=2), ids("2133", "2133"))


def test_swap_takes_the_background_of_a_single_structure() -> None:
    one = ids("0110", "0000")
    assert torch.equal(swap(one), 1 - one)
    assert torch.equal(swap(one, classes=1), 1 - one)
    assert torch.equal(swap(channels(one)), channels(1 - one))


def test_swap_knows_of_absent_classes_when_told() -> None:
    assert torch.equal(swap(ids("0110"), classes=3), ids("0220"))
    assert torch.equal(swap(ids("0330"), classes=3), ids("0110"))
    assert torch.equal(swap(ids("0110"), first=1, second=3), ids("0330"))


def test_swap_of_channels_keeps_their_overlap() -> None:
    assert torch.equal(swap(OVERLAP), OVERLAP.flip(1))
    turned = channels(ids("0000", "0000"), ids("0110", "0000"))
    turned[0, 0] = 1 - OVERLAP.amax(dim=1)[0]
    assert torch.equal(swap(OVERLAP, first=0, second=1), turned)


def test_swapping_twice_is_no_change() -> None:
    for labels in (TWO, OVERLAP):
        assert torch.equal(swap(swap(labels, first=1, second=2), first=1, second=2), labels)


def test_own_mask_for_every_case_or_each() -> None:
    batch = TWO.repeat(2, 1, 1)
    for mask in (TWO[0], TWO, TWO.repeat(2, 1, 1), TWO[0] > 0):
        made = own(mask)(batch)
        assert made.shape == batch.shape
        assert made.dtype == torch.long
        assert torch.equal(made[1], mask.reshape(-1, 5, 6)[0].long())


def test_own_channels_and_ids_fit_labels_of_either_form() -> None:
    assert torch.equal(own(OVERLAP[0])(OVERLAP.repeat(3, 1, 1, 1)), OVERLAP.repeat(3, 1, 1, 1))
    assert torch.equal(own(OVERLAP)(torch.zeros(1, 2, 4, dtype=torch.long)), OVERLAP)
    assert torch.equal(own(ids("1200", "1200"))(OVERLAP), ids("1200", "1200"))


def test_own_mask_is_not_shared() -> None:
    mask = TWO.clone()
    own(mask)(TWO).zero_()
    assert torch.equal(mask, TWO)


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("name", TARGETS)
def test_an_attack_can_be_sent_to_every_target(name: str, mode: Mode) -> None:
    t = target(mode, 2)
    goal = TARGETS[name].make(t.labels)
    # Dice with an empty mask is 0 until the last pixel is gone, so soft Dice is asked.
    near, clean = (PGD(steps=3, epsilon=e, criterion="loss")(t.net, t.images, t.labels, target=goal) for e in (0.1, 0))
    assert (near.score < clean.score).all()


@pytest.mark.parametrize(
    ("make", "labels", "sentence"),
    [
        (partial(fill, label=0), TWO, "class 0 is unknown here; choose among 1, 2"),
        (partial(fill, label=3), OVERLAP, "class 3 is unknown here; choose among 1, 2"),
        (partial(fill, label=-1), torch.zeros_like(TWO), "choose 1 or above"),
        (partial(grow, by=0), TWO, "give at least 1"),
        (partial(shift, offset=(1, 2, 3)), TWO, "does not fit 2 axes"),
        (partial(swap, first=1), TWO, "give first and second, or neither"),
        (partial(swap, first=1, second=1), TWO, "two different classes"),
        (partial(swap, first=1, second=4, classes=2), TWO, "class 4 is unknown here; choose among 0, 1, 2"),
        (partial(swap, first=1, second=3), OVERLAP, "class 3 is unknown here; choose among 0, 1, 2"),
        (partial(swap, first=5, second=6), TWO, "neither class 5 nor class 6; choose among 0, 1, 2"),
        (own(TWO[:, :4]), TWO, "choose a mask of this scan"),
        (own(TWO.repeat(3, 1, 1)), TWO.repeat(2, 1, 1), "choose a mask of this scan"),
        (own(TWO[0]), TWO[:, :, :, None], "choose a mask of this scan"),
    ],
)
def test_what_cannot_be_made_is_refused(make: Target, labels: Tensor, sentence: str) -> None:
    with pytest.raises(CeaseError, match=sentence):
        make(labels)
