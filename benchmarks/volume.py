"""What the exact gradient through overlapping windows costs: memory at 256³, time where the full graph still fits.

    python benchmarks/volume.py [--edge 256] [--window 96] [--small 80] [--small-window 40] [--dry]

The model is the shipped hippocampus network, with random weights of one output channel, so that a *volume* means the
same for images and logits. Each measurement runs in a process of its own, on one thread; memory is the growth of the
process's peak resident size (VmHWM) above what it held with its images loaded and its model warmed up.

``blend``   logits of the windows' blend, and the gradient for a given upstream gradient
``step``    the same inside an attack's `Problem`, with its loss and score on the whole volume
``window``  forward and backward pass of one window
``graph``   the blend with all of its graph kept, as autograd would have it

Targets: ``blend`` grows by at most 1.3 × ``window`` plus three volumes, and takes at most 1.8 × the CPU time of
``graph``. It writes ``benchmarks/results/volume.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from provenance import write_result
from torch import Tensor

from cease_core.attacks.problem import Problem
from cease_core.models import SegmentationModel, Windowed, load_model, prepare
from cease_core.models.library import find_model

MEMORY_TARGET, TIME_TARGET = 1.3, 1.8


def network() -> SegmentationModel:
    """The hippocampus architecture, prepared, with one output channel."""
    card = load_model(find_model("hippocampus-undefended")).card
    torch.manual_seed(0)
    one = card.model_copy(update={"mode": "binary", "classes": card.classes[:1]})
    return prepare(SegmentationModel(one))


def whole_graph(windowed: Windowed, images: Tensor) -> Tensor:
    """The blend with every window in the graph."""
    blended = torch.zeros_like(images)
    for job in windowed.jobs(images):
        logits = windowed.run(images[job.at][None])
        weight = torch.ones_like(logits[0])
        job.weigh(weight)
        spans = reversed(list(zip(job.at[2:], images.shape[2:], strict=True)))
        blended = blended + F.pad(logits * weight, [v for p, size in spans for v in (p.start, size - p.stop)])
    return blended


def measure(kind: str, edge: int, window: int, rounds: int) -> dict[str, float]:
    """Peak growth in MiB and median CPU seconds of one kind of gradient."""
    torch.set_num_threads(1)
    model = network()
    windowed = Windowed(model, (window,) * 3, overlap=0.5, batch=1)
    generator = torch.Generator().manual_seed(0)
    size = window if kind == "window" else edge
    images = torch.rand(1, 1, size, size, size, generator=generator)
    upstream = torch.randn(images.shape, generator=generator) / images.numel()

    def through(answer: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = images.detach().requires_grad_()
        return torch.autograd.grad(answer(leaf), leaf, upstream)[0]

    # Libraries load and allocators grow in the first calls.
    small = torch.rand(1, 1, 16, 16, 16).requires_grad_()
    torch.autograd.grad(model(small).sum(), small)
    if kind == "step":
        labels = (images[:, 0] > 0.5).long()
        delta = torch.zeros_like(images)
        seen = _Once(windowed)
        problem = Problem.pose(seen, images, labels, "soft_dice")
        seen.posed = True
    runs: dict[str, Callable[[], object]] = {
        "window": lambda: through(model),
        "blend": lambda: through(windowed),
        "graph": lambda: through(lambda leaf: whole_graph(windowed, leaf)),
        "step": lambda: problem.gradient(delta),
    }
    trim()
    before = resident("VmRSS")
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = runs[kind]()
        times.append(time.process_time() - start)
    del result
    return {"growth_mib": (resident("VmHWM") - before) / 1024, "cpu_s": statistics.median(times)}


class _Once:
    """Answers zeros until it is posed: checking a volume would take as long as measuring it."""

    mode = "binary"

    def __init__(self, model: Windowed) -> None:
        self.model = model
        self.posed = False

    def __call__(self, images: Tensor) -> Tensor:
        return self.model(images) if self.posed else torch.zeros_like(images)


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def trim() -> None:
    """Give freed memory back, and let the peak start from here."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def apart(kind: str, edge: int, window: int, rounds: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, str(edge), str(window), str(rounds)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(
        f"{kind:7s} {edge}³ through {window}³: {found['growth_mib']:8.1f} MiB, {found['cpu_s']:8.1f} s CPU", flush=True
    )
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--small", type=int, default=80)
    parser.add_argument("--small-window", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3, help="of the small comparison, interleaved")
    parser.add_argument("--no-step", action="store_true", help="leave out the attack step on the large volume")
    parser.add_argument("--dry", action="store_true", help="write no file")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        kind, *numbers = args.measure
        print(json.dumps(measure(kind, *map(int, numbers))))
        return

    volume = args.edge**3 * 4 / 2**20
    small: dict[str, list[dict[str, float]]] = {"blend": [], "graph": []}
    for _ in range(args.rounds):
        for kind, found in small.items():
            found.append(apart(kind, args.small, args.small_window, 1))
    seconds = {kind: statistics.median(f["cpu_s"] for f in found) for kind, found in small.items()}
    window = apart("window", args.window, args.window, 3)
    large = {"window": window, "blend": apart("blend", args.edge, args.window, 1)}
    if not args.no_step:
        large["step"] = apart("step", args.edge, args.window, 1)
    allowed = MEMORY_TARGET * window["growth_mib"] + 3 * volume
    ratio = seconds["blend"] / seconds["graph"]
    share = large["blend"]["growth_mib"] / allowed
    print(f"memory: {share:.2f} of 1.3 × window + 3 volumes ({allowed:.0f} MiB); time: {ratio:.2f} × the full graph")
    if not args.dry:
        payload = {
            "edge": args.edge,
            "window": args.window,
            "volume_mib": volume,
            "large": large,
            "allowed_mib": allowed,
            "of_allowed": share,
            "small": {"edge": args.small, "window": args.small_window, **small},
            "time_ratio": ratio,
        }
        print(write_result("volume", payload))


if __name__ == "__main__":
    main()
