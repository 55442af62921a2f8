"""Where a benchmark's figures come from, and where they are kept.

    python benchmarks/provenance.py

prints what every result file says about the machine and the code.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

from cease_core.models.checkpoint import load_card
from cease_core.models.library import SHIPPED

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def provenance() -> dict[str, object]:
    """Commit, date, processor, cores, threads, accelerator, versions and what defends each model, ready for JSON."""
    return {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "defences": {name: load_card(SHIPPED / name).defence for name in sorted(os.listdir(SHIPPED))},
    }


def write_result(name: str, payload: dict[str, object]) -> Path:
    """Write ``benchmarks/results/<name>.json``: the provenance, then ``payload``."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"provenance": provenance(), **payload}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def commit() -> str:
    """Short name of the commit, with ``+`` where the tree's code, not its results, differs from it."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return (head or "unknown") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    print(json.dumps(provenance(), indent=1))
