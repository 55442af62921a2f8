"""What PGD costs here and in other libraries, on one model, with one loss, at one strength.

    make bench-setup
    python benchmarks/attack_speed.py [--rounds 7] [--steps 20] [--threads 1] [--dry]

Everyone attacks the same trained model: a MONAI U-Net of 16 to 256 channels (1.6 million parameters) with a softmax
over background and myocardium, trained here for a minute on cardiac MR slices of other people than the attacked. The
attack is ℓ∞ PGD of 20 steps of 1/255 at 8/255 from a random start, ascending cross-entropy, on four slices of 256².
Rounds are interleaved, and the order turns from round to round; a first round is thrown away. Shown are medians of CPU
time, and the mean Dice with the labels that is left, judged in float32 by the original model. Where the processor has
no bfloat16 instructions that row is some ten times slower than the rest, so it is measured once. It writes
``benchmarks/results/attack_speed.json``.

How the others are called
    torchattacks    ``PGD`` as it is: its cross-entropy takes dense labels. It requires torchvision, which is not used
                    and, from the registry, does not import beside a CPU build of torch; ``make bench-setup``
                    therefore installs it without its dependencies.
    captum          ``PGD`` with the cross-entropy summed over pixels as its loss function; its results are
                    clamped to [0, 1] by its own bounds.
    foolbox         ``LinfPGD.run`` with a loss function for dense labels; the public call would check that one label a
                    case is given, and count the cases that are misclassified.
    ART             ``ProjectedGradientDescentPyTorch`` on a ``PyTorchClassifier``, both told to leave masks as they are
                    where they expect one label a case. It takes and gives numpy arrays.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from provenance import provenance, write_result
from torch import Tensor

from cease_core.attacks import PGD
from cease_core.attacks.criteria import CRITERIA
from cease_core.attacks.losses import one_hot
from cease_core.data import find_cases, load_case
from cease_core.models import ClassInfo, ModelCard, SegmentationModel, WindowRule, prepare

ROOT = Path(__file__).parent.parent
CARDIAC = ROOT / "sample_data" / "cardiac_mr_sunnybrook"
EDGE = 256
EPSILON, STEP = 8 / 255, 1 / 255
ONCE = ("ours, bfloat16",)
Attack = Callable[[Tensor, Tensor], Tensor]


def slices() -> tuple[Tensor, Tensor]:
    """The middle slice of every case and two beside it, as window fractions (N, 1, 256, 256) with class ids."""
    images, labels = [], []
    for case in find_cases(CARDIAC):
        scan, mask = load_case(case)
        window = WindowRule(kind="percentile", low=0.5, high=99.5).resolve(scan)
        filled = [i for i in range(mask.shape[0]) if mask[i].any()]
        middle = len(filled) // 2
        for i in filled[max(0, middle - 1) : middle + 2]:
            image = (torch.from_numpy(scan.image[:, i].copy())[None] - window.low) / window.width
            images.append(F.interpolate(image, (EDGE, EDGE), mode="bilinear", align_corners=False)[0].clamp(0, 1))
            ids = torch.from_numpy((mask[i] > 0).astype("float32"))[None, None]
            labels.append(F.interpolate(ids, (EDGE, EDGE))[0, 0].long())
    return torch.stack(images), torch.stack(labels)


def trained(images: Tensor, labels: Tensor, updates: int) -> SegmentationModel:
    """The U-Net after ``updates`` steps of Adam; enough to segment and to be broken."""
    torch.manual_seed(0)
    card = ModelCard(
        name="speed",
        title="U-Net 16–256",
        architecture="residual_unet",
        architecture_args={"channels": (16, 32, 64, 128, 256)},
        ndim=2,
        channels=1,
        classes=(ClassInfo(id=1, name="myocardium", color="#E69F00"),),
        mode="multiclass",
        window=WindowRule(kind="percentile", low=0.5, high=99.5),
    )
    model = SegmentationModel(card).train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(updates):
        pick = torch.randint(len(images), (4,))
        top, left = torch.randint(EDGE // 4, 3 * EDGE // 4 + 1, (2,)).sub(EDGE // 4).tolist()
        crop = (..., slice(top, top + EDGE // 2), slice(left, left + EDGE // 2))
        inputs, ids = images[pick][crop], labels[pick][crop]
        logits = model(inputs)
        target = one_hot(ids, "multiclass", 2)
        p = logits.softmax(dim=1)
        overlap = 2 * (p * target)[:, 1].sum() / ((p + target)[:, 1].sum() + 1)
        loss = F.cross_entropy(logits, ids) + 1 - overlap
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def ours(model: SegmentationModel, steps: int, **prepared: Any) -> Attack:
    segmenter = prepare(model, **prepared)
    attack = PGD(epsilon=EPSILON, steps=steps, step_size=STEP, loss="cross_entropy")
    return lambda images, labels: attack(segmenter, images, labels, bounds=(0.0, 1.0)).adversarial


def of_torchattacks(model: SegmentationModel, steps: int) -> Attack:
    import torchattacks

    return torchattacks.PGD(model, eps=EPSILON, alpha=STEP, steps=steps, random_start=True)


def of_captum(model: SegmentationModel, steps: int) -> Attack:
    from captum.robust import PGD as Captum

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none").sum(dim=(1, 2))

    attack = Captum(model, loss, lower_bound=0.0, upper_bound=1.0)
    # Captum descends its loss unless told that the target is to be left; its random start is one direction a batch.
    return lambda images, labels: attack.perturb(images, EPSILON, STEP, steps, labels, random_start=True).detach()


def of_foolbox(model: SegmentationModel, steps: int) -> Attack:
    import eagerpy as ep
    import foolbox

    class Dense(foolbox.attacks.LinfPGD):  # type: ignore[misc]
        def get_loss_fn(self, net: Any, labels: Any) -> Any:
            ids = labels.raw
            return lambda x: ep.astensor(F.cross_entropy(net(x).raw, ids))

    victim = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = Dense(abs_stepsize=STEP, steps=steps, random_start=True)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        criterion = foolbox.criteria.Misclassification(labels)
        return attack.run(victim, images, criterion, epsilon=EPSILON)

    return run


def of_art(model: SegmentationModel, steps: int) -> Attack:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def dense(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)

    class Victim(PyTorchClassifier):  # type: ignore[misc]
        def reduce_labels(self, y: Any) -> Any:
            return y

    victim = Victim(model, dense, (1, EDGE, EDGE), 2, clip_values=(0.0, 1.0), device_type="cpu")

    class Dense(ProjectedGradientDescentPyTorch):  # type: ignore[misc]
        def _set_targets(self, x: Any, y: Any, classifier_mixin: bool = True) -> Any:
            return y

    attack = Dense(victim, eps=EPSILON, eps_step=STEP, max_iter=steps, num_random_init=1, verbose=False)

    def run(images: Tensor, labels: Tensor) -> Tensor:
        target = one_hot(labels, "multiclass", 2).numpy()
        return torch.from_numpy(attack.generate(images.numpy(), y=target))

    return run


OTHERS = {"torchattacks": of_torchattacks, "foolbox": of_foolbox, "art": of_art, "captum": of_captum}


def measured(attacks: dict[str, Attack], images: Tensor, labels: Tensor, rounds: int) -> dict[str, dict[str, Any]]:
    """CPU and wall time of each round, and the last result."""
    names = list(attacks)
    found: dict[str, dict[str, Any]] = {name: {"cpu_s": [], "wall_s": []} for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if name in ONCE and turn != 1:
                continue
            torch.manual_seed(turn)
            cpu, wall = time.process_time(), time.perf_counter()
            adversarial = attacks[name](images, labels)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            found[name]["adversarial"] = adversarial.detach()
            if turn:
                found[name]["cpu_s"].append(round(cpu, 4))
                found[name]["wall_s"].append(round(wall, 4))
        print(f"round {turn} of {rounds}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--updates", type=int, default=400, help="training steps of the victim")
    parser.add_argument("--no-bfloat16", action="store_true", help="leave out the slow row")
    parser.add_argument("--dry", action="store_true", help="write no file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)

    images, labels = slices()
    model = trained(images[6:], labels[6:], args.updates)
    images, labels = images[:4].contiguous(), labels[:4].contiguous()
    attacks = {"ours, float32": ours(model, args.steps)}
    if not args.no_bfloat16:
        attacks["ours, bfloat16"] = ours(model, args.steps, precision="bfloat16")
    missing = [name for name in OTHERS if importlib.util.find_spec(name) is None]
    attacks |= {name: make(model, args.steps) for name, make in OTHERS.items() if name not in missing}
    if missing:
        print(f"not installed: {', '.join(missing)} (make bench-setup)")

    found = measured(attacks, images, labels, args.rounds)
    truth = one_hot(labels, "multiclass", 2)

    def dice(inputs: Tensor) -> float:
        with torch.no_grad():
            return float(CRITERIA["dice"](model(inputs), truth, "multiclass").mean())

    median = {name: {key: statistics.median(row[key]) for key in ("cpu_s", "wall_s")} for name, row in found.items()}
    reference = median.get("torchattacks")
    rows = []
    for name, row in found.items():
        assert float((row["adversarial"] - images).abs().max()) <= EPSILON + 1e-6
        ratio = None if reference is None else round(median[name]["cpu_s"] / reference["cpu_s"], 3)
        left = round(dice(row["adversarial"]), 4)
        rows.append({"name": name, **median[name], "of_torchattacks": ratio, "dice": left, "rounds": row["cpu_s"]})
        print(f"{name:16s} {median[name]['cpu_s']:7.2f} s CPU  {median[name]['wall_s']:7.2f} s  × {ratio}  Dice {left}")
    print(f"clean Dice {dice(images):.4f}; {provenance()}")
    if not args.dry:
        settings = {"steps": args.steps, "epsilon": EPSILON, "step_size": STEP, "loss": "cross_entropy"}
        payload = {
            **settings,
            "images": list(images.shape),
            "seeds": list(range(1, args.rounds + 1)),
            "clean_dice": round(dice(images), 4),
            "not_installed": missing,
            "rows": rows,
        }
        print(write_result("attack_speed", payload))


if __name__ == "__main__":
    main()
