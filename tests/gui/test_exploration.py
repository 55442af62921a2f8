"""What an exploration says, and in which order; no window is involved."""

from __future__ import annotations

import numpy as np
import pytest

from cease_core.attacks import FGSM, PGD
from cease_core.errors import CeaseError
from cease_core.models import load_model, prepare
from napari_cease.jobs import exploration
from napari_cease.jobs.exploration import SIDES, Opened, Progress, Request, View, attack_volume, explore

LADDER = tuple(level / 255 for level in range(1, 7))


@pytest.fixture
def ask(library):
    def make(scan, labels, scene="polyp", **options):
        defaults = {
            "attack": PGD(epsilon=6 / 255, steps=4, loss="soft_dice"),
            "epsilons": LADDER,
            "extent": "slice",
            "index": 0,
        }
        models = {side: lambda side=side: prepare(load_model(library / f"{scene}-{side}")) for side in SIDES}
        return Request(scan=scan, labels=labels, models=models, **(defaults | options))

    return make


def run(request, wanted=lambda: None, stopped=lambda: False, job=explore):
    events = []
    if job is explore:
        explore(request, events.append, wanted, stopped)
    else:
        job(request, events.append, stopped)
    return events


def views(events, preview=False):
    return [e for e in events if isinstance(e, View) and e.preview == preview]


@pytest.mark.parametrize("attack", [PGD(steps=4, loss="soft_dice"), FGSM(loss="soft_dice")], ids=["pgd", "fgsm"])
def test_both_sides_open_first_and_every_epsilon_is_answered(ask, picture, attack):
    scan, labels = picture
    events = run(ask(scan, labels, attack=attack))
    assert [e.side for e in events[:2] if isinstance(e, Opened)] == list(SIDES)
    final = {(v.side, v.epsilon): v for v in views(events)}
    assert set(final) == {(side, e) for side in SIDES for e in LADDER}
    for (_, epsilon), view in final.items():
        assert view.mask.shape == scan.shape
        assert view.mask.dtype == np.int32
        assert view.perturbation.shape == scan.image.shape
        assert np.abs(view.perturbation).max() <= epsilon + 1e-6
    for opened in events[:2]:
        ladder = [final[opened.side, e].dice for e in LADDER]
        assert max(ladder) <= opened.dice
        assert ladder == sorted(ladder, reverse=True)
    assert final["undefended", LADDER[-1]].dice < events[0].dice


def test_progress_counts_up_to_its_total(ask, picture):
    steps = [e for e in run(ask(*picture)) if isinstance(e, Progress)]
    assert [s.done for s in steps] == list(range(1, len(steps) + 1))
    assert steps[-1].done == steps[-1].total
    assert all(s.done <= s.total for s in steps)


def test_a_wanted_radius_is_the_first_to_get_a_preview_and_then_the_real_thing(ask, picture):
    wanted = LADDER[2]
    events = run(ask(*picture), wanted=lambda: wanted)
    first = views(events, preview=True)
    assert [(v.side, v.epsilon) for v in first[:2]] == [(side, wanted) for side in SIDES]
    # Previews come before the first gradient step of the ladder.
    assert events.index(first[0]) < next(i for i, e in enumerate(events) if isinstance(e, Progress))
    for side in SIDES:
        order = [e.preview for e in events if isinstance(e, View) and (e.side, e.epsilon) == (side, wanted)]
        assert order == sorted(order, reverse=True), "a preview never replaces the real thing"
        assert 1 <= sum(order) <= 2
        assert order[-1] is False


def test_every_radius_gets_a_preview_in_advance_where_that_is_quick(ask, picture, monkeypatch):
    monkeypatch.setattr(exploration, "AHEAD", 60)
    events = run(ask(*picture))
    first = events[: events.index(next(e for e in events if isinstance(e, Progress)))]
    assert {(v.side, v.epsilon) for v in views(first, preview=True)} == {(s, e) for s in SIDES for e in LADDER}
    monkeypatch.setattr(exploration, "AHEAD", -1)
    assert not views(run(ask(*picture)), preview=True)


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
def test_nothing_more_than_the_running_step_comes_after_stopping(ask, picture, after):
    events, late = [], []

    def stopped():
        return len(events) >= after

    def emit(event):
        (late if stopped() else events).append(event)

    explore(ask(*picture), emit, lambda: None, stopped)
    assert len(late) <= 1
    assert not [e for e in late if isinstance(e, View)]


def test_a_slice_is_attacked_alone(ask, volume):
    scan, labels = volume
    events = run(ask(scan, labels, "cardiac", index=3))
    assert [e.place for e in events if isinstance(e, Opened)] == [(3, slice(0, 32), slice(0, 40))] * 2
    assert {v.mask.shape for v in views(events)} == {(32, 40)}


def test_a_volume_is_attacked_at_one_radius(ask, volume):
    scan, labels = volume
    events = run(ask(scan, labels, "cardiac", extent="volume", epsilons=()), job=attack_volume)
    found = views(events)
    assert [(v.side, v.epsilon) for v in found] == [(side, 6 / 255) for side in SIDES]
    assert all(v.mask.shape == scan.shape for v in found)
    assert [e.done for e in events if isinstance(e, Progress)] == list(range(1, 9))


def test_a_cancelled_volume_keeps_the_best_so_far(ask, volume):
    scan, labels = volume
    events = []

    def stopped():
        return sum(isinstance(e, Progress) for e in events) >= 8

    attack = PGD(epsilon=16 / 255, steps=100, loss="soft_dice")
    attack_volume(ask(scan, labels, "cardiac", extent="volume", epsilons=(), attack=attack), events.append, stopped)
    (best,) = views(events)
    assert best.side == "undefended"
    assert best.dice < events[0].dice


def test_without_a_reference_the_models_own_mask_judges(ask, picture):
    events = run(ask(picture[0], None))
    assert [(e.reference, e.dice) for e in events[:2]] == [("clean mask", 1.0)] * 2


def test_what_does_not_fit_is_refused(ask, picture, volume):
    with pytest.raises(CeaseError, match="channel"):
        run(ask(volume[0], None))
    with pytest.raises(CeaseError, match="unknown class 7"):
        run(ask(picture[0], picture[1] * 7))
