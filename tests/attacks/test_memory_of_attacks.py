"""An attack on a batch that does not fit into memory goes on case by case, and finds the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attack_subjects import Target, target
from torch import Tensor

from cease_core.attacks import FGSM, MIFGSM, PGD, Attack
from cease_core.models import Mode


class Cramped:
    """A net that has memory for ``fits`` cases at once."""

    def __init__(self, t: Target, fits: int) -> None:
        self.net = t.net
        self.mode: Mode = t.net.mode
        self.fits = fits
        self.refused = 0

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) > self.fits:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.net(images)


ATTACKS: dict[str, Attack] = {
    "fgsm": FGSM(epsilon=0.04),
    "pgd": PGD(epsilon=0.04, steps=4),
    "pgd, ℓ2": PGD(epsilon=0.04, steps=4, norm="l2"),
    "restarts": PGD(epsilon=0.04, steps=3, restarts=3),
    "mifgsm": MIFGSM(epsilon=0.04, steps=4),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("fits", [1, 2])
def test_the_result_is_that_of_a_batch_that_fits(name: str, ndim: int, fits: int) -> None:
    t = target("multiclass", ndim, cases=4)
    cramped, attack = Cramped(t, fits), ATTACKS[name]
    found, exact = (attack(net, t.images, t.labels) for net in (cramped, t.net))
    assert cramped.refused > 0
    for field in ("adversarial", "logits", "dice", "loss"):
        torch.testing.assert_close(getattr(found, field), getattr(exact, field), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.gradients, exact.gradients)
    assert torch.equal(found.queries, exact.queries)


def test_what_does_not_fit_is_found_out_once() -> None:
    t = target("binary", 2, cases=4)
    cramped = Cramped(t, 1)
    PGD(steps=6)(cramped, t.images, t.labels)
    assert cramped.refused == 2  # four cases, then two


def test_a_case_that_does_not_fit_by_itself_is_out_of_memory() -> None:
    t = target("binary", 2)
    with pytest.raises(torch.OutOfMemoryError):
        FGSM()(Cramped(t, 0), t.images, t.labels)


def test_cases_that_are_done_make_room_for_nothing_larger() -> None:
    t = target("binary", 2, cases=4)
    attack = PGD(epsilon=0.1, steps=8, stop_below=0.9)
    found, exact = (attack(net, t.images, t.labels) for net in (Cramped(t, 1), t.net))
    torch.testing.assert_close(found.dice, exact.dice)
    assert torch.equal(found.gradients, exact.gradients)
    assert not torch.equal(replace(attack, stop_below=None)(t.net, t.images, t.labels).gradients, exact.gradients)
