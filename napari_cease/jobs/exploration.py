"""What the explorer computes, off the GUI thread and without Qt: masks, perturbations and figures for every ε.

Two models are attacked side by side, rung by rung. Between any two gradient steps a radius that the user is
looking at, and that no rung has reached yet, is answered by a preview: the nearest known perturbation rescaled,
one forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cease_core.attacks import CRITERIA, Attack, AttackResult, Step, ladder
from cease_core.attacks.criteria import decide
from cease_core.attacks.losses import foreground
from cease_core.attacks.norms import project, steepest
from cease_core.attacks.on_scan import Extent, Subject, pose_on_scan
from cease_core.attacks.problem import Problem
from cease_core.attacks.targets import Target
from cease_core.errors import CeaseError
from cease_core.evaluation import Distortion, distortion
from cease_core.models.segmenter import ScanModel
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
    attack
        One that is made on a second model gets the other side's as its ``source``.
    epsilons
        Radii of the ladder, in window fractions.
    target
        Mask to reach (*spatial), or what makes it from the reference; None to leave the mask.
    region
        Where the scan may change (*spatial); None for everywhere.
    """

    scan: Scan
    labels: LabelArray | None
    models: Mapping[Side, Callable[[], ScanModel]]
    attack: Attack
    epsilons: tuple[float, ...]
    extent: Extent
    index: int
    device: torch.device | str = "cpu"
    target: LabelArray | Target | None = None
    region: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Opened:
    """A model's clean answer, and which part of the scan is looked at.

    ``reached`` is false where the region leaves nothing of that part to change; ``class_dice`` is the Dice of each
    class, in the card's order.
    """

    side: Side
    place: tuple[slice | int, ...]
    window: Window
    reference: Literal["labels", "clean mask"]
    mask: LabelArray
    dice: float
    target_dice: float | None = None
    reached: bool = True
    class_dice: tuple[float, ...] = ()

    def unchanged(self, epsilon: float, channels: int) -> View:
        """The view of a scan that is not perturbed, at any ε."""
        zero = np.broadcast_to(np.float32(0), (channels, *self.mask.shape))
        none = Distortion(0.0, 0.0, float("inf"), 1.0)
        return View(self.side, epsilon, self.mask, zero, self.dice, none, False, self.target_dice, self.class_dice)


@dataclass(frozen=True, eq=False)
class View:
    """One model at one ε: its mask (*part), the perturbation (C, *part) in window fractions, and the figures.

    ``preview`` marks a rescaled perturbation that the ladder's own result will replace; ``target_dice`` is the
    overlap with the mask to reach, if there is one, and ``class_dice`` the Dice of each class, in the card's order
    (empty in a preview).
    """

    side: Side
    epsilon: float
    mask: LabelArray
    perturbation: NDArray[np.float32]
    dice: float
    distortion: Distortion
    preview: bool
    target_dice: float | None = None
    class_dice: tuple[float, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Steps ``done`` of ``total``, over both models."""

    done: int
    total: int


Event = Opened | View | Progress
Emit = Callable[[Event], None]
Wanted = Callable[[], float | None]
Stopped = Callable[[], bool]


class _Pane:
    """One model's side of an exploration."""

    def __init__(self, side: Side, subject: Subject, attack: Attack, reached: bool) -> None:
        self.side = side
        self.subject = subject
        self.attack = attack
        self.reached = reached
        self.problem: Problem = subject.problem(attack.loss, criterion=attack.criterion)
        self.known: dict[float, Tensor] = {}
        self.direction: Tensor | None = None
        self.progress = Progress(0, 0)

    def open(self) -> Opened:
        logits = self.problem.clean().logits
        s = self.subject
        dice, target_dice = self.overlap(logits)
        return Opened(
            self.side,
            s.place,
            s.window,
            s.reference,
            s.mask(logits),
            dice,
            target_dice,
            self.reached,
            self.class_dice(logits),
        )

    def overlap(self, logits: Tensor) -> tuple[float, float | None]:
        """Dice with the reference, and with the mask to reach."""
        p = self.problem
        dice = CRITERIA["dice"]
        return float(dice(logits, p.labels, p.mode)), None if p.goal is None else float(dice(logits, p.goal, p.mode))

    def class_dice(self, logits: Tensor) -> tuple[float, ...]:
        """Dice of each class with the reference."""
        p = self.problem
        decided = foreground(decide(logits, p.mode), p.mode)
        # Classes stand for cases, so that the criterion's mean over classes is over one.
        cases = 2.0 * decided.transpose(0, 1) - 1.0, foreground(p.labels, p.mode).transpose(0, 1)
        return tuple(CRITERIA["dice"](*cases, "multilabel").tolist())

    def aim(self) -> None:
        """One gradient at the clean image: the first previews' direction at every ε."""
        if self.attack.about.group == "control":
            return  # the gradient would promise far more than the control is
        try:
            grad, _ = self.problem.gradient(torch.zeros_like(self.problem.images))
        except CeaseError:
            return  # an attack by queries does without, and so do its previews until the first rung
        self.direction = steepest(grad, self.attack.norm, self.problem.region)

    def view(self, epsilon: float, delta: Tensor, logits: Tensor, preview: bool) -> View:
        images = self.problem.images
        dice, target_dice = self.overlap(logits)
        return View(
            self.side,
            epsilon,
            self.subject.mask(logits),
            delta[0].cpu().numpy(),
            dice,
            distortion(images, images + delta, structure=not preview),
            preview,
            target_dice,
            () if preview else self.class_dice(logits),
        )

    def result(self, epsilon: float, found: AttackResult) -> View:
        self.known[epsilon] = found.perturbation
        return self.view(epsilon, found.perturbation, found.logits, preview=False)

    def preview(self, epsilon: float) -> View | None:
        larger = [e for e in self.known if e >= epsilon]
        if larger:
            nearest = min(larger)
            delta = self.known[nearest] * (epsilon / nearest)
        elif self.direction is not None:
            delta = project(self.direction * epsilon, epsilon, self.attack.norm, self.problem.region)
        else:
            return None
        delta = self.problem.clip(delta)
        return self.view(epsilon, delta, self.problem.look(delta).logits, preview=True)

    def told(self, step: Step) -> None:
        """Progress never goes back, though the parts of an attack may differ in length."""
        self.progress = Progress(max(self.progress.done, step.done), max(self.progress.total, step.total))


def _progress(panes: list[_Pane]) -> Progress:
    done = sum(p.progress.done for p in panes)
    known = [p.progress.total for p in panes if p.progress.total]
    # A pane that has not begun will take about as long as the others.
    total = sum(p.progress.total or max(known, default=0) for p in panes)
    return Progress(done, max(done, total))


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
    for pane in [p for p in panes if not p.reached]:
        opened, channels = pane.open(), request.scan.channels
        for epsilon in request.epsilons:
            emit(opened.unchanged(epsilon, channels))
    panes = [p for p in panes if p.reached]
    previewed: set[tuple[float, bool]] = set()

    def preview(epsilon: float) -> None:
        missing = [p for p in panes if epsilon not in p.known]
        # Twice at most: from the gradient at the clean image, and from the ladder once it has come that far.
        source = (epsilon, all(any(e >= epsilon for e in p.known) for p in missing))
        if source in previewed:
            return
        previewed.add(source)
        for view in [p.preview(epsilon) for p in missing]:
            if view is not None and not stopped():
                emit(view)

    def serve() -> None:
        epsilon = wanted()
        if epsilon is not None:
            preview(epsilon)

    for pane in panes:
        if stopped():
            return
        pane.aim()
    # Most previews cost less than one gradient: in advance, they answer a drag through the range at once.
    ahead = time.monotonic() + AHEAD
    for epsilon in sorted(request.epsilons):
        serve()
        if stopped() or time.monotonic() > ahead:
            break
        preview(epsilon)

    def hearing(pane: _Pane) -> Callable[[Step], bool]:
        def hear(step: Step) -> bool:
            pane.told(step)
            emit(_progress(panes))
            serve()
            return not stopped()

        return hear

    climbs = [(p, ladder(p.attack, p.problem, request.epsilons, wanted=wanted, callback=hearing(p))) for p in panes]
    while climbs and not stopped():
        for climb in list(climbs):
            if stopped():
                return
            pane, rungs = climb
            rung = next(rungs, None)
            if rung is None:
                climbs.remove(climb)
                continue
            emit(pane.result(rung.epsilon, rung.result))
            serve()


def attack_volume(request: Request, emit: Emit, stopped: Stopped) -> None:
    """Attack the whole scan at the attack's own ε; stopped early, the best so far is emitted.

    Raises
    ------
    CeaseError
        If scan, labels and model do not fit together.
    """
    panes = _open_panes(request, emit, stopped)
    for pane in panes:

        def hear(step: Step, pane: _Pane = pane) -> bool:
            pane.told(step)
            emit(_progress(panes))
            return not stopped()

        emit(pane.result(pane.attack.epsilon, pane.attack.run(pane.problem, hear)))
        if stopped():
            return


def _open_panes(request: Request, emit: Emit, stopped: Stopped) -> list[_Pane]:
    posed: dict[Side, tuple[Subject, bool]] = {}

    def subject(side: Side) -> tuple[Subject, bool]:
        if side not in posed:
            posed[side] = _pose(request, request.models[side]())
        return posed[side]

    panes = []
    for side in request.models:
        if stopped():
            break
        attack = request.attack
        if hasattr(attack, "source"):
            others = [other for other in request.models if other != side]
            if not others:
                raise CeaseError(f"{attack.about.title} is made on a second model; choose one for the other pane.")
            given: dict[str, Any] = {"source": subject(others[0])[0].model}
            attack = replace(attack, **given)
        pane = _Pane(side, subject(side)[0], attack, subject(side)[1])
        emit(pane.open())
        panes.append(pane)
    return panes


def _pose(request: Request, model: ScanModel) -> tuple[Subject, bool]:
    """What is attacked, and whether the region leaves anything of it to change."""
    subject = pose_on_scan(
        model,
        request.scan,
        request.labels,
        extent=request.extent,
        index=request.index,
        target=request.target,
        device=request.device,
    )
    if request.region is None:
        return subject, True
    # Which part of the region counts is known only now: it depends on how far the model looks.
    part = torch.from_numpy(np.ascontiguousarray(request.region[subject.place]))
    if not part.any():
        return subject, False
    return replace(subject, region=part[None, None].to(request.device)), True
