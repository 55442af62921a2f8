"""One job of an audit: a trial of one model on one case, as rows of the table.

A job is a value that can be sent to another process; what it gives depends on nothing but the job.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cease_core.attacks import AttackResult, MixedAttack, Step, Transfer, ladder
from cease_core.attacks.on_scan import Subject, in_windows, pose_on_scan
from cease_core.data import Case, load_case
from cease_core.defences.joint import joint_terms, load_heads
from cease_core.errors import CeaseError
from cease_core.evaluation.audit.plan import Trial
from cease_core.evaluation.audit.probe import probe
from cease_core.evaluation.audit.store import CLEAN, Entry, Key
from cease_core.evaluation.audit.victims import Victim
from cease_core.evaluation.calibration import calibration
from cease_core.evaluation.lesions import Lesions, found, lesions
from cease_core.evaluation.metrics import distortion, flipped, scores
from cease_core.models.memory import is_out_of_memory
from cease_core.models.segmenter import ScanModel, SegmentationModel
from cease_core.scan import LabelArray

log = logging.getLogger(__name__)

Stopped = Callable[[], bool]


class Cancelled(Exception):
    """The job was told to stop and has nothing to show."""


@dataclass(frozen=True)
class Unit:
    """What is attacked at once.

    Parameters
    ----------
    name
        The table's ``case``: that of the case, with the slice's index behind it if there is one.
    case
        Where scan and labels are.
    files
        Hash of the files: a unit of other files is another.
    index
        Slice along the scan's first axis; None for all of it.
    """

    name: str
    case: Case
    files: str
    index: int | None = None


@dataclass(frozen=True)
class Job:
    """A trial of a model on a case; without a trial, the unattacked case.

    Parameters
    ----------
    victim, unit, trial
        What is tried on what.
    source
        The model that a transfer is made on.
    picture_at
        ε at which the perturbation is handed back for a picture.
    tolerance
        Of the surface Dice, in millimetres.
    device, threads
        Where it runs, and on how many threads of a CPU.
    """

    victim: Victim
    unit: Unit
    trial: Trial | None
    picture_at: float
    tolerance: float
    device: str
    threads: int
    source: Victim | None = None

    @property
    def key(self) -> Key:
        """As in the journal."""
        return self.victim.name, self.trial.name if self.trial else CLEAN, self.unit.name


@dataclass(frozen=True, eq=False)
class Picture:
    """A perturbed image; of a volume the slice with the most of the reference.

    Parameters
    ----------
    image, perturbation
        Window fractions, shape (C, H, W).
    reference, clean, attacked
        Class ids (H, W).
    attack
        The trial's name.
    epsilon
        In window fractions.
    dice, clean_dice
        Of the whole image or volume.
    """

    image: NDArray[np.float16]
    perturbation: NDArray[np.float16]
    reference: NDArray[np.uint8]
    clean: NDArray[np.uint8]
    attacked: NDArray[np.uint8]
    attack: str
    epsilon: float
    dice: float
    clean_dice: float


@dataclass(frozen=True)
class Outcome:
    """What a job gives: an entry for the journal, and perhaps a picture."""

    entry: Entry
    picture: Picture | None = None


def do(job: Job, stopped: Stopped | None = None) -> Outcome:
    """Do a job; what goes wrong with it is written into its row.

    Parameters
    ----------
    stopped
        Asked after every step of an attack.

    Raises
    ------
    Cancelled
        If ``stopped`` said so.
    """
    began = time.monotonic()
    with _threads(job.threads):
        try:
            outcome = _try(job, stopped)
        except (Cancelled, KeyboardInterrupt):
            raise
        except CeaseError as error:
            outcome = failure(job, str(error))
        except Exception as error:
            full = isinstance(error, RuntimeError) and is_out_of_memory(error)
            if not full:
                log.info("%s failed", job.key, exc_info=True)
            told = "it does not fit into memory" if full else repr(error)
            outcome = failure(job, f"the model failed on this case: {told}.")
    return replace(outcome, entry=replace(outcome.entry, seconds=time.monotonic() - began))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def failure(job: Job, reason: str) -> Outcome:
    role = job.trial.role if job.trial else CLEAN
    epsilon = job.trial.epsilons[-1] if job.trial else 0.0
    row = {**_place(job), "role": role, "epsilon": epsilon, "lesions": "[]", "error": reason}
    return Outcome(Entry(job.key, (row,)))


def _place(job: Job) -> dict[str, Any]:
    model, attack, case = job.key
    return {"model": model, "attack": attack, "case": case, "patient": job.unit.case.patient}


def _try(job: Job, stopped: Stopped | None) -> Outcome:
    ready = _ready(job.victim, job.unit, job.device)
    if job.trial is None:
        return _unattacked(job, ready)
    return _attacked(job, job.trial, ready, stopped)


# --- what several jobs share --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ready:
    """A case posed for a model, and the model's answer to it."""

    model: ScanModel
    subject: Subject
    classes: tuple[int, ...]
    spacing: tuple[float, ...]
    reference: LabelArray
    lesions: Lesions
    mask: LabelArray
    dice: float


# Few: jobs come case after case, and a volume with its answers may be large.
@lru_cache(maxsize=4)
def _ready(victim: Victim, unit: Unit, device: str) -> Ready:
    model = victim.load(device)
    scan, labels = load_case(unit.case)
    subject = pose_on_scan(
        model,
        scan,
        labels,
        extent="volume" if unit.index is None else "slice",
        index=unit.index or 0,
        device=device,
    )
    with torch.no_grad():
        logits = subject.model(subject.images)
    if not torch.isfinite(logits).all():
        raise CeaseError("the model's logits are not finite on the clean image; check its weights and window.")
    mask = subject.mask(logits)
    reference = subject.labels[0].cpu().numpy().astype(np.int32)
    ids = tuple(c.id for c in victim.card.classes)
    spacing = subject.scan.spacing[-reference.ndim :]
    dice = scores(mask, reference, ids, spacing).dice
    return Ready(model, subject, ids, spacing, reference, lesions(reference, ids, spacing), mask, dice)


def _row(job: Job, ready: Ready, logits: torch.Tensor, epsilon: float) -> dict[str, Any]:
    """Columns that depend on the mask."""
    subject = ready.subject
    mask = subject.mask(logits)
    score = scores(mask, ready.reference, ready.classes, ready.spacing, tolerance=job.tolerance)
    sure = calibration(logits, subject.labels, subject.model.mode)
    each = found(mask, ready.lesions)
    return {
        **_place(job),
        "role": job.trial.role if job.trial else CLEAN,
        "epsilon": epsilon,
        "dice": score.dice,
        "iou": score.iou,
        "hd95_mm": score.hd95_mm,
        "nsd": score.nsd,
        "mean_iou": score.mean_iou,
        "flipped": flipped(ready.mask, mask, ready.reference),
        "ece": sure.ece,
        "nll": sure.nll,
        "brier": sure.brier,
        **{f"dice_{c}": value for c, value in score.dice_per_class.items()},
        "lesions": json.dumps([round(share, 6) for share in each]),
        "error": "",
    }


# --- jobs ----------------------------------------------------------------------------------------------------


def _unattacked(job: Job, ready: Ready) -> Outcome:
    subject = ready.subject
    with torch.no_grad():
        logits = subject.model(subject.images)
    size = {"linf": 0.0, "rms": 0.0, "psnr": math.inf, "ssim": 1.0, "gradients": 0, "queries": 0}
    row = _row(job, ready, logits, 0.0) | size
    looked = probe(subject.model, subject.images, subject.labels)
    return Outcome(Entry(job.key, (row,), probe=vars(looked)))


def _attacked(job: Job, trial: Trial, ready: Ready, stopped: Stopped | None) -> Outcome:
    subject = ready.subject
    attack = trial.attack
    if isinstance(attack, Transfer):
        assert job.source is not None
        source = in_windows(job.source.load(job.device), tuple(subject.images.shape[2:]), subject.scan)
        attack = replace(attack, source=source)
    if isinstance(attack, MixedAttack):
        attack = replace(attack, terms=_terms(job.victim, ready))
    problem = subject.problem(attack.loss, criterion=attack.criterion)
    halted = False

    def go_on(_: Step) -> bool:
        nonlocal halted
        halted = halted or (stopped is not None and stopped())
        return not halted

    results: dict[float, AttackResult] = {}
    if len(trial.epsilons) == 1:
        results[trial.epsilons[0]] = replace(attack, epsilon=trial.epsilons[0]).run(problem, go_on)
    else:
        # What a smaller ε does is not handed upwards here: whether Dice falls with ε is a check of the attack.
        for rung in ladder(attack, problem, trial.epsilons, monotone=False, callback=go_on):
            results[rung.epsilon] = rung.result
    if halted:
        raise Cancelled
    rows = tuple(_row(job, ready, results[e].logits, e) | _size(subject, results[e]) for e in trial.epsilons)
    here = next((row for row in rows if row["epsilon"] == job.picture_at), None)
    if here is None:
        return Outcome(Entry(job.key, rows))
    return Outcome(Entry(job.key, rows), _picture(trial.name, ready, results[job.picture_at], here["dice"]))


def _terms(victim: Victim, ready: Ready) -> tuple[Any, ...]:
    """Losses of the auxiliary heads, where they were kept with the model."""
    if victim.folder is None or not isinstance(ready.model, SegmentationModel):
        return ()
    heads = load_heads(victim.folder, ready.model)
    return () if heads is None else joint_terms(heads, ready.subject.images, ready.subject.labels)


def _size(subject: Subject, result: AttackResult) -> dict[str, Any]:
    size = distortion(subject.images, result.adversarial)
    return {
        "linf": size.linf,
        "rms": size.rms,
        "psnr": size.psnr,
        "ssim": size.ssim,
        "gradients": int(result.gradients.sum()),
        "queries": int(result.queries.sum()),
    }


def _picture(attack: str, ready: Ready, result: AttackResult, dice: float) -> Picture:
    subject = ready.subject
    image, perturbation = (t[0].cpu().numpy().astype(np.float16) for t in (subject.images, result.perturbation))
    reference, clean, attacked = (
        m.astype(np.uint8) for m in (ready.reference, ready.mask, subject.mask(result.logits))
    )
    if image.ndim == 4:
        index = int((ready.reference > 0).sum(axis=(1, 2)).argmax())
        image, perturbation = image[:, index], perturbation[:, index]
        reference, clean, attacked = reference[index], clean[index], attacked[index]
    return Picture(image, perturbation, reference, clean, attacked, attack, result.epsilon, dice, ready.dice)
