"""`cease doctor`: every finding that fails names the command that mends it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cease_core import doctor
from cease_core.doctor import SYSTEM_LIBRARIES, Finding

from .conftest import Cease

NAMES = [
    "Python", "torch", "monai", "numpy", "napari", "device", "Qt", "display", "OpenGL", "system libraries",
    "shipped models", "free disk",
]  # fmt: skip


def test_findings_of_this_computer(cease: Cease) -> None:
    said = cease("doctor", "--json")
    findings = [Finding(**row) for row in json.loads(said.out)]
    assert [f.name for f in findings] == NAMES
    assert all(f.value for f in findings)
    assert all(f.ok or f.remedy for f in findings)
    assert said.code == (0 if all(f.ok for f in findings) else 1)
    assert next(f for f in findings if f.name == "torch").value.startswith("2.")


def test_a_failing_finding_ends_with_code_1_and_its_remedy(cease: Cease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", "")
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    said = cease("doctor")
    assert said.code == 1
    assert "none, and no Xvfb to stand in" in said.out
    assert "apt-get install -y xvfb xauth" in next(
        line for line in said.out.splitlines() if line.startswith("display:")
    )


def test_packages_are_compared_with_the_projects_own_ranges() -> None:
    missing = doctor.package("surely-not-installed")
    assert not missing.ok
    assert missing.remedy.endswith('-m pip install "surely-not-installed"')
    assert doctor.package("torch").ok
    assert "2.14" in doctor._requirement("torch")


@pytest.mark.parametrize(
    ("version", "clauses", "fits"),
    [
        ("2.13.0+cpu", "<2.14,>=2.8", True),
        ("2.8", ">=2.8.0", True),
        ("2.14.0", "<2.14,>=2.8", False),
        ("2.7.1", "<2.14,>=2.8", False),
        ("3.0rc1", ">=2.0", True),
        ("1.0", "", True),
    ],
)
def test_version_ranges(version: str, clauses: str, fits: bool) -> None:
    assert doctor.in_range(version, clauses) is fits


def test_missing_libraries_are_those_the_loader_does_not_know() -> None:
    cache = "2 libs found in cache\n" + "".join(
        f"\t{soname} (libc6,x86-64) => /lib/{soname}\n" for soname in SYSTEM_LIBRARIES if "xcb" not in soname
    )
    assert doctor.missing_libraries(cache) == [soname for soname in SYSTEM_LIBRARIES if "xcb" in soname]
    assert doctor.missing_libraries("") == list(SYSTEM_LIBRARIES)


def test_display_is_found_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert doctor.display({"DISPLAY": ":7"}).value == "DISPLAY=:7"
    assert doctor.display({"WAYLAND_DISPLAY": "wayland-0"}).ok
    monkeypatch.setenv("PATH", "")
    bare = doctor.display({})
    assert not bare.ok
    assert bare.remedy.endswith("apt-get install -y xvfb xauth")
    assert doctor.opengl({}).value == "cannot be tried without a display"


def test_a_hanging_driver_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_OPENGL_PROBE", "import time; time.sleep(60)")
    finding = doctor.opengl({"DISPLAY": ":7", "PATH": ""}, timeout=0.5)
    assert not finding.ok
    assert "no answer" in finding.value


def test_a_crashing_driver_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_OPENGL_PROBE", "raise SystemExit('could not load the driver')")
    finding = doctor.opengl({"DISPLAY": ":7", "PATH": ""})
    assert not finding.ok
    assert finding.value == "could not load the driver"
    assert finding.remedy


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.free_disk(tmp_path / "nowhere").ok is False
    monkeypatch.setattr(doctor, "NEEDED_DISK", 2**70)
    assert str(tmp_path) in doctor.free_disk(tmp_path).remedy


def test_help_is_quick_because_nothing_heavy_is_loaded() -> None:
    script = (
        "import sys, cease_core.cli, cease_core.doctor; print(sorted({'torch', 'monai', 'numpy'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
