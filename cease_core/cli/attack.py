"""``cease attack``: from paths and options to an attacked scan on disk."""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cease_core.attacks import ATTACKS, Attack, AttackResult, Step, Transfer
from cease_core.attacks.build import build_attack, parameters
from cease_core.attacks.on_scan import Subject, in_windows, pose_on_scan
from cease_core.attacks.targets import TARGETS, Target
from cease_core.cli.epsilon import Epsilon, unit_name
from cease_core.cli.outputs import Outcome, prepare_folder, write_outcome
from cease_core.cli.progress import INTERRUPTED, interruptible, make_progress
from cease_core.data import ClassMap, read_mask
from cease_core.errors import CeaseError
from cease_core.io import read_labels, read_scan
from cease_core.models import best_device, find_model, open_model, prepare
from cease_core.models.memory import is_out_of_memory
from cease_core.models.segmenter import ScanModel
from cease_core.scan import LabelArray, Scan


@dataclass(frozen=True, kw_only=True)
class AttackRequest:
    """What was asked for, as it was written."""

    scan: Path
    model: str
    out: Path
    attack: str
    epsilon: str | None
    labels: Path | None
    norm: str
    loss: str | None
    steps: int | None
    target: str | None
    region: Path | None
    source: str | None
    parameters: tuple[str, ...]
    slice_index: int | None
    frame: int | None
    seed: int
    device: str
    classes: str | None = None
    resample: bool = False


def run_attack(request: AttackRequest) -> int:
    """Attack a scan, write the results and say what came out.

    Returns
    -------
    int
        Exit code: 0, or 130 if Ctrl-C stopped the attack (its best so far is written then, too).

    Raises
    ------
    CeaseError
        If any input cannot be used; nothing has been written then.
    """
    epsilon = None if request.epsilon is None else Epsilon.parse(request.epsilon)
    attack = _build(request)
    device = choose_device(request.device)
    model = prepare(open_model(find_model(request.model)), device)
    attack = _with_source(attack, request.source, model, device)
    contrasts = model.card.channels > 1
    scan = read_scan(request.scan, frame=request.frame, volumes_as_channels=contrasts, resample=request.resample)
    classes = None if request.classes is None else ClassMap.read(request.classes)
    labels = read_mask(request.labels, scan, classes) if request.labels else None
    if request.slice_index is not None and scan.ndim == 2:
        raise CeaseError(f"{scan.name} is a single image without slices; leave out --slice.")
    try:
        subject = pose_on_scan(
            model,
            scan,
            labels,
            extent="volume" if request.slice_index is None else "slice",
            index=request.slice_index or 0,
            region=read_labels(request.region, like=scan) if request.region else None,
            target=_target(request.target, scan, classes),
            device=device,
        )
        if epsilon is not None:
            attack = dataclasses.replace(attack, epsilon=epsilon.fraction(subject.window, scan))
        prepare_folder(request.out)
        began = time.monotonic()
        result = _attack(_seeing_alike(attack, subject), subject)
        outcome = Outcome(
            subject=subject,
            card=model.card,
            attack=attack,
            result=result,
            attack_name=request.attack.lower(),
            epsilon_given=request.epsilon,
            target_given=request.target,
            region_given=request.region.name if request.region else None,
            slice_index=request.slice_index,
            device=str(device),
            seconds=time.monotonic() - began,
        )
        report = write_outcome(outcome, request.out)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise CeaseError(
            f"{scan.name} and {model.card.title} do not fit into the memory of {device}; "
            "attack one slice with --slice, or use --device cpu."
        ) from error
    print(summary(report, scan))
    print(f"Written to {request.out}: {', '.join(report['files'].values())}, result.json")
    if result.cancelled:
        print("Stopped by Ctrl-C: this is the strongest perturbation found until then.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _build(request: AttackRequest) -> Attack:
    written: dict[str, object] = {"norm": request.norm, "seed": request.seed}
    if request.loss is not None:
        written["loss"] = request.loss
    if request.steps is not None:
        kind = ATTACKS.get(request.attack.lower())
        if kind is not None and "steps" not in parameters(kind):
            raise CeaseError(f"{kind.about.title} takes no number of steps; leave out --steps, or choose --attack pgd.")
        written["steps"] = request.steps
    for parameter in request.parameters:
        name, equals, value = parameter.partition("=")
        if not equals:
            raise CeaseError(f"--set {parameter!r} is not understood; write it as name=value, such as restarts=3.")
        written[name.strip()] = value.strip()
    return build_attack(request.attack, **written)


def _target(written: str | None, scan: Scan, classes: ClassMap | None) -> LabelArray | Target | None:
    """A ready target by its name, or the mask in a file."""
    if written is None:
        return None
    if written in TARGETS:
        return TARGETS[written].make
    if not Path(written).exists():
        raise CeaseError(
            f"the target {written!r} is neither a file nor one of {', '.join(TARGETS)}; choose one of them."
        )
    return read_mask(Path(written), scan, classes)


def _with_source(attack: Attack, name: str | None, model: ScanModel, device: torch.device) -> Attack:
    """Give a transfer attack the model that it is made on."""
    if isinstance(attack, Transfer) and name is not None:
        source = prepare(open_model(find_model(name)), device)
        one, other = ((c.mode, c.channels, c.outputs, c.window) for c in (source.card, model.card))
        if one != other:
            raise CeaseError(
                f"{source.card.title} and {model.card.title} differ in channels, classes or intensity window; "
                "choose a source that is made for the same images and classes."
            )
        return dataclasses.replace(attack, source=source)
    if name is not None:
        raise CeaseError(f"{attack.about.title} takes no second model; leave out --source, or choose transfer.")
    return attack


def _seeing_alike(attack: Attack, subject: Subject) -> Attack:
    """The same attack, with a source that looks at volumes in slices or windows where it has to."""
    if isinstance(attack, Transfer) and isinstance(attack.source, ScanModel):
        return dataclasses.replace(
            attack, source=in_windows(attack.source, tuple(subject.images.shape[2:]), subject.scan)
        )
    return attack


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes the fastest.

    Raises
    ------
    CeaseError
        If torch has no such device here.
    """
    if name == "auto":
        return best_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CeaseError(
            f"the device {name!r} is not available here; choose cpu, or run `cease doctor` to see what torch finds."
        ) from error
    return device


def _attack(attack: Attack, subject: Subject) -> AttackResult:
    with interruptible() as stopped, make_progress() as progress:
        task = progress.add_task(type(attack).__name__, total=None, note="")

        def show(step: Step) -> bool:
            progress.update(task, completed=step.done, total=step.total, note=f"loss {step.loss.mean():.3f}")
            return not stopped()

        return attack.run(subject.problem(attack.loss, criterion=attack.criterion), show)


def summary(report: dict[str, Any], scan: Scan) -> str:
    """The result in a few lines for the terminal."""
    epsilon, distortion = report["epsilon"], report["distortion"]
    lines = [
        f"{report['model']['title']}: {scan.name}, {report['attack']['name']}, "
        f"epsilon {epsilon['fraction']:.4f} of the window = {epsilon['in_unit']:.4g} {unit_name(scan)}",
        *(
            f"  {row['name']}: Dice {row['clean_dice']:.3f} -> {row['attacked_dice']:.3f} against {report['reference']}"
            for row in report["classes"]
        ),
    ]
    psnr = "identical images" if distortion["psnr"] is None else f"PSNR {distortion['psnr']:.1f} dB"
    spent = (
        f"{report['gradients']} gradient evaluations and {report['queries']} forward passes "
        f"in {report['seconds']:.1f} s"
    )
    if report["target_dice"] is not None:
        lines.append(f"  target ({report['target']}): Dice {report['target_dice']:.3f}")
    if report["minimal"] is not None:
        found = report["minimal"]
        if found["success"]:
            size = f"{found['fraction']:.4f} = {found['in_unit']:.4g} {unit_name(scan)}"
            lines.append(f"  smallest epsilon that breaks the mask: {size}")
        else:
            lines.append("  the mask does not break within epsilon")
    lines.append(f"  {psnr}, SSIM {distortion['ssim']:.4f}; {spent}")
    return "\n".join(lines)
