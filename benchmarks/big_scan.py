"""Whether a CT-sized volume can be worked with: time and peak memory of opening, showing, segmenting and attacking it.

    python benchmarks/big_scan.py [--edge 512] [--depth 600] [--overlap 0.25] [--steps 1] [--dry]

A synthetic CT (int16, anisotropic, oblique) is written to a temporary folder as ``.nii``, ``.nii.gz`` and, in float32,
as a second ``.nii``, the kind that is mapped into memory instead of read. Each file is opened and shown in a process of
its own; in a last one the first file is segmented as a whole by windows, the mask written, and the window around the
middle slice attacked. The model is the shipped hippocampus network: what it finds in such a volume means nothing, what
it costs does.

``seconds`` is wall time, ``cpu_s`` the process's own, which a busy machine lengthens less; ``peak_gib`` is the
process's largest resident size (VmHWM) during the step, all that earlier steps left behind included, and ``rss_gib``
what is resident after it. All peaks have to stay within 24 GiB. It writes ``benchmarks/results/big_scan.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from provenance import write_result

from cease_core.attacks import PGD
from cease_core.attacks.on_scan import WINDOW_EDGE, pose_on_scan
from cease_core.io import read_labels, read_scan, write_labels
from cease_core.models import Windowed, load_model, prepare
from cease_core.models.library import find_model
from cease_core.models.segmenter import predict_labels

LIMIT_GIB = 24.0
MODEL = "hippocampus-undefended"
EPSILON = 8 / 255
Figures = dict[str, Any]


def body(edge: int, depth: int) -> np.ndarray:
    """A trunk with lungs and a spine, in HU with noise: int16, shape (edge, edge, depth)."""
    generator = np.random.default_rng(0)
    x, y = np.meshgrid(*[np.linspace(-1, 1, edge)] * 2, indexing="ij")
    volume = np.empty((edge, edge, depth), np.int16, order="F")
    for k in range(depth):
        lung = 0.55 * np.sin(np.pi * k / depth)
        plane = np.full((edge, edge), -1000.0)
        plane[(x / 0.85) ** 2 + (y / 0.6) ** 2 < 1] = 40
        plane[((np.abs(x) - 0.4) / 0.3) ** 2 + (y / 0.7) ** 2 < lung**2] = -800
        plane[x**2 + (y + 0.4) ** 2 < 0.01] = 600
        volume[..., k] = plane + generator.normal(0, 20, plane.shape)
    return volume


def write_scans(folder: Path, edge: int, depth: int) -> dict[str, Path]:
    """The same volume in the three kinds of file."""
    angle = np.radians(10)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.8, -0.8, 1.25])
    volume = body(edge, depth)
    files = {"int16 .nii": "ct.nii", "int16 .nii.gz": "ct.nii.gz", "float32 .nii": "ct32.nii"}
    for kind, name in files.items():
        array = volume.astype(np.float32) if kind.startswith("float32") else volume
        nib.save(nib.Nifti1Image(array, affine), folder / name)
    return {kind: folder / name for kind, name in files.items()}


class Steps:
    """Time and memory of one thing after the other, told as lines of JSON."""

    @contextmanager
    def step(self, name: str) -> Iterator[Figures]:
        """Measure the block; what it puts into the figures is told, too."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        found: Figures = {"step": name}
        began, spent = time.monotonic(), time.process_time()
        yield found
        found["seconds"] = round(time.monotonic() - began, 2)
        found["cpu_s"] = round(time.process_time() - spent, 2)
        found |= {"peak_gib": resident("VmHWM"), "rss_gib": resident("VmRSS")}
        print(json.dumps(found), flush=True)


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20, 2)


def opening(path: Path) -> None:
    """Open a file and lay out the explorer's panes over it."""
    from napari.components import ViewerModel

    from cease_core.models.checkpoint import load_card
    from napari_cease.layers import Panes
    from napari_cease.readers import scan_layers

    steps = Steps()
    with steps.step("start"):
        card = load_card(find_model(MODEL))
        viewer = ViewerModel()
    with steps.step("open") as found:
        scan = read_scan(path)
        found["shape"] = list(scan.shape)
    with steps.step("show"):
        ((data, options, _),) = scan_layers(scan)
        layer = viewer.add_image(data, **options)
        Panes(viewer).open(scan, layer, None, {"undefended": card, "defended": card}, split=True)
    with steps.step("next slice"):
        viewer.dims.set_current_step(0, scan.shape[0] // 3)
    with steps.step("model's window"):
        card.window.resolve(scan)


def working(path: Path, overlap: float, attack_steps: int) -> None:
    """Segment the whole of a file, write the mask, attack the window around the middle slice."""
    torch.set_num_threads(1)
    steps = Steps()
    with steps.step("start"):
        model = prepare(load_model(find_model(MODEL)))
    with steps.step("open"):
        scan = read_scan(path)
    with steps.step("segment the whole volume") as found:
        windowed = Windowed(model, (WINDOW_EDGE,) * 3, overlap=overlap, batch=1)
        found["windows"] = len(windowed.plan(scan.shape)[1])
        low, high = window = model.card.window.resolve(scan)
        images = torch.from_numpy((scan.image - np.float32(low)) / np.float32(window.width))[None]
        with torch.no_grad():
            mask = predict_labels(windowed(images), model.mode)[0].numpy().astype(np.int32)
        del images
        found["window"] = [low, high]
    with steps.step("write the mask and read it again") as found:
        out = path.with_name("mask.nii.gz")
        write_labels(mask, scan, out)
        again = read_labels(out, scan)
        found["same"] = bool(np.array_equal(again, mask))
        found["on the file's grid"] = bool(np.array_equal(nib.load(out).affine, nib.load(path).affine))
    with steps.step("pose the attack on the middle slice's window") as found:
        subject = pose_on_scan(model, scan, mask, extent="slice", index=scan.shape[0] // 2)
        found["shape"] = list(subject.images.shape[2:])
    with steps.step(f"attack it: PGD, {attack_steps} step(s)") as found:
        attack = PGD(epsilon=EPSILON, steps=attack_steps)
        result = attack.run(subject.problem(attack.loss))
        found["linf"] = float(result.perturbation.abs().max())
        found["voxels changed class"] = int((subject.mask(result.logits) != mask[subject.place]).sum())


def apart(*arguments: str) -> list[Figures]:
    """A part of this script in a process of its own; its lines are shown as they come."""
    found = []
    with subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found.append(json.loads(line))
            print(f"  {line.strip()}", flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=512, help="voxels along rows and columns")
    parser.add_argument("--depth", type=int, default=600, help="slices")
    parser.add_argument("--overlap", type=float, default=0.25, help="of the windows that segment the whole volume")
    parser.add_argument("--steps", type=int, default=1, help="of the attack")
    parser.add_argument("--dry", action="store_true", help="write no file")
    parser.add_argument("--opening", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--working", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.opening:
        opening(args.opening)
        return
    if args.working:
        working(args.working, args.overlap, args.steps)
        return
    with tempfile.TemporaryDirectory() as place:
        print(f"writing {args.edge} × {args.edge} × {args.depth}", flush=True)
        scans = write_scans(Path(place), args.edge, args.depth)
        runs: dict[str, Any] = {}
        for kind, path in scans.items():
            print(kind, flush=True)
            size = round(path.stat().st_size / 2**20)
            runs[kind] = {"file_mib": size, "steps": apart("--opening", str(path))}
        print("segmenting and attacking", flush=True)
        work = apart("--working", str(scans["int16 .nii"]), "--overlap", str(args.overlap), "--steps", str(args.steps))
    peak = max(step["peak_gib"] for steps in (*(run["steps"] for run in runs.values()), work) for step in steps)
    print(f"at most {peak:.2f} GiB: {'within' if peak <= LIMIT_GIB else 'ABOVE'} {LIMIT_GIB:.0f} GiB")
    if not args.dry:
        payload = {
            "shape": [args.edge, args.edge, args.depth],
            "model": MODEL,
            "window": WINDOW_EDGE,
            "overlap": args.overlap,
            "attack_steps": args.steps,
            "opening": runs,
            "working": work,
            "peak_gib": peak,
            "limit_gib": LIMIT_GIB,
            "within": peak <= LIMIT_GIB,
        }
        print(write_result("big_scan", payload))


if __name__ == "__main__":
    main()
