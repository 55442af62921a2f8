"""What the explorer computes, off the GUI thread and without Qt: masks, perturbations and figures for every ε.

Two models are attacked side by side, rung by rung. Between any two gradient steps a radius that the user is
looking at, and that no rung has reached yet, is answered by a preview: the nearest known perturbation rescaled,
one forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cease_core.attacks import FGSM, PGD, Step, ladder
from cease_core.attacks.losses import Loss
from cease_core.attacks.norms import Norm, project, steepest
from cease_core.attacks.on_scan import Extent, Subject, pose_on_scan
from cease_core.attacks.problem import Problem
from cease_core.evaluation import Distortion, distortion
from cease_core.models import SegmentationModel
from cease_core.scan import LabelArray, Scan, Window

Side = Literal["undefended", "defended"]
SIDES: tuple[Side, ...] = ("undefended", "defended")
AHEAD = 1.0
"""Seconds that the ladder may wait for previews nobody has asked for yet."""


@dataclass(frozen=True, eq=False)
class Request:
    """Everything an exploration depends on.

    Parameters
    ----------
    models
        Loads the model of each side; called on the worker's thread.
    epsilons
        Radii of the ladder, in window fractions.
    """

    scan: Scan
    labels: LabelArray | None
    models: Mapping[Side, Callable[[], SegmentationModel]]
    attack: FGSM | PGD
    epsilons: tuple[float, ...]
    extent: Extent
    index: int
    device: torch.device | str = "cpu"


@dataclass(frozen=True, eq=False)
class Opened:
    """A model's clean answer, and which part of the scan is looked at."""

    side: Side
    place: tuple[slice | int, ...]
    window: Window
    reference: Literal["labels", "clean mask"]
    mask: LabelArray
    dice: float


@dataclass(frozen=True, eq=False)
class View:
    """One model at one ε: its mask (*part), the perturbation (C, *part) in window fractions, and the figures.

    ``preview`` marks a rescaled perturbation that the ladder's own result will replace.
    """

    side: Side
    epsilon: float
    mask: LabelArray
    perturbation: NDArray[np.float32]
    dice: float
    distortion: Distortion
    preview: bool


@dataclass(frozen=True)
class Progress:
    """Gradient evaluations ``done`` of ``total``, over both models."""

    done: int
    total: int


Event = Opened | View | Progress
Emit = Callable[[Event], None]
Wanted = Callable[[], float | None]
Stopped = Callable[[], bool]


class _Pane:
    """One model's side of an exploration."""

    def __init__(self, side: Side, subject: Subject, loss: str | Loss) -> None:
        self.side = side
        self.subject = subject
        self.problem: Problem = subject.problem(loss)
        self.known: dict[float, Tensor] = {}
        self.direction: Tensor | None = None

    def open(self) -> Opened:
        logits, _, dice = self.problem.look(torch.zeros_like(self.problem.images))
        s = self.subject
        return Opened(self.side, s.place, s.window, s.reference, s.mask(logits), float(dice))

    def aim(self, attack: FGSM | PGD) -> None:
        """One gradient at the clean image: the first previews' direction at every ε."""
        grad, *_ = self.problem.gradient(torch.zeros_like(self.problem.images))
        self.direction = steepest(grad, attack.norm)

    def view(self, epsilon: float, delta: Tensor, logits: Tensor, dice: Tensor, preview: bool) -> View:
        images = self.problem.images
        return View(
            self.side,
            epsilon,
            self.subject.mask(logits),
            delta[0].cpu().numpy(),
            float(dice),
            distortion(images, images + delta, structure=not preview),
            preview,
        )

    def preview(self, epsilon: float, norm: Norm) -> View | None:
        larger = [e for e in self.known if e >= epsilon]
        if larger:
            nearest = min(larger)
            delta = self.known[nearest] * (epsilon / nearest)
        elif self.direction is not None:
            delta = project(self.direction * epsilon, epsilon, norm)
        else:
            return None
        delta = self.problem.clip(delta)
        logits, _, dice = self.problem.look(delta)
        return self.view(epsilon, delta, logits, dice, preview=True)


def explore(request: Request, emit: Emit, wanted: Wanted, stopped: Stopped) -> None:
    """Attack every model at every ε and emit what is learnt, as it is learnt.

    Parameters
    ----------
    emit
        Called with each event, on this thread.
    wanted
        The radius somebody is looking at that has no result yet, or None.
    stopped
        Asked between gradient steps; true ends the exploration.

    Raises
    ------
    CeaseError
        If scan, labels and model do not fit together.
    """
    panes = _open_panes(request, emit, stopped)
    attack = request.attack
    previewed: set[tuple[float, bool]] = set()

    def preview(epsilon: float) -> None:
        missing = [p for p in panes if epsilon not in p.known]
        # Twice at most: from the gradient at the clean image, and from the ladder once it has come that far.
        source = (epsilon, all(any(e >= epsilon for e in p.known) for p in missing))
        if source in previewed:
            return
        previewed.add(source)
        for view in [p.preview(epsilon, attack.norm) for p in missing]:
            if view is not None and not stopped():
                emit(view)

    def serve() -> None:
        epsilon = wanted()
        if epsilon is not None:
            preview(epsilon)

    for pane in panes:
        if stopped():
            return
        pane.aim(attack)
    # Most previews cost less than one gradient: in advance, they answer a drag through the range at once.
    ahead = time.monotonic() + AHEAD
    for epsilon in sorted(request.epsilons):
        serve()
        if stopped() or time.monotonic() > ahead:
            break
        preview(epsilon)

    steps = [0] * len(panes)
    total = [1] * len(panes)

    def counted(i: int) -> Callable[[Step], bool]:
        def after(_: Step) -> bool:
            steps[i] += 1
            emit(Progress(sum(steps), max(sum(total), sum(steps))))
            serve()
            return not stopped()

        return after

    climbs = [ladder(attack, p.problem, request.epsilons, callback=counted(i)) for i, p in enumerate(panes)]
    alive = set(range(len(panes)))
    while alive and not stopped():
        for i in sorted(alive):
            rung = next(climbs[i], None)
            if rung is None:
                alive.discard(i)
                continue
            pane, r = panes[i], rung.result
            total[i] = rung.total
            pane.known[rung.epsilon] = r.perturbation
            emit(pane.view(rung.epsilon, r.perturbation, r.logits, r.dice, preview=False))
            serve()


def attack_volume(request: Request, emit: Emit, stopped: Stopped) -> None:
    """Attack the whole scan at the attack's own ε; stopped early, the best so far is emitted.

    Raises
    ------
    CeaseError
        If scan, labels and model do not fit together.
    """
    panes = _open_panes(request, emit, stopped)
    attack = request.attack
    per_pane = attack.steps if isinstance(attack, PGD) else 1
    for i, pane in enumerate(panes):

        def after(step: Step, before: int = i * per_pane) -> bool:
            emit(Progress(before + step.done, per_pane * len(panes)))
            return not stopped()

        result = attack.run(pane.problem, after)
        emit(pane.view(attack.epsilon, result.perturbation, result.logits, result.dice, preview=False))
        if stopped():
            return


def _open_panes(request: Request, emit: Emit, stopped: Stopped) -> list[_Pane]:
    panes = []
    for side, load in request.models.items():
        if stopped():
            break
        model = load()
        subject = pose_on_scan(
            model, request.scan, request.labels, extent=request.extent, index=request.index, device=request.device
        )
        pane = _Pane(side, subject, request.attack.loss)
        emit(pane.open())
        panes.append(pane)
    return panes
