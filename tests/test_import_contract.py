"""Imports run one way, and the engine loads no window toolkit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import cease_core
names = [m.name for m in pkgutil.walk_packages(cease_core.__path__, "cease_core.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
assert "cease_core.cli" in names and "cease_core.training.trainer" in names
screen = {"napari", "qtpy", "magicgui", "superqt", "pyqtgraph", "PyQt6", "PySide6", "PyQt5", "vispy", "napari_cease"}
print(sorted(screen & {name.split(".")[0] for name in sys.modules}))
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_contracts_are_kept() -> None:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    ran = _run(lint, "--no-logo", "--no-cache")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 kept, 0 broken" in ran.stdout


def test_the_engine_loads_no_window_toolkit() -> None:
    ran = _run(IMPORT_EVERYTHING)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
