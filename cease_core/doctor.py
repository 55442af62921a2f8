"""What this computer offers and lacks, as findings that each name their remedy.

Nothing here imports napari or Qt: versions come from the packages' metadata, and OpenGL is tried in a process
of its own, because a broken driver ends the process that asks for it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "napari-cease"
NEEDED_DISK = 2**30

SYSTEM_LIBRARIES: dict[str, str] = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libOpenGL.so.0": "libopengl0",
    "libGLX_mesa.so.0": "libglx-mesa0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libdbus-1.so.3": "libdbus-1-3",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-xinerama.so.0": "libxcb-xinerama0",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libfontconfig.so.1": "libfontconfig1",
    "libglib-2.0.so.0": "libglib2.0-0",
}
"""Sonames that Qt and OpenGL load on Linux, and the Debian package of each."""

# Prints the renderer's name. Qt's "offscreen" platform has no OpenGL, so this needs a display.
_OPENGL_PROBE = """
import importlib
for binding in ("PyQt6", "PySide6"):
    try:
        gui = importlib.import_module(binding + ".QtGui")
        gl = importlib.import_module(binding + ".QtOpenGL")
    except ImportError:
        continue
    break
app = gui.QGuiApplication([])
context, surface = gui.QOpenGLContext(), gui.QOffscreenSurface()
surface.create()
if not (context.create() and context.makeCurrent(surface)):
    raise SystemExit("no OpenGL context could be made")
profile = gl.QOpenGLVersionProfile()
profile.setVersion(2, 1)
functions = gl.QOpenGLVersionFunctionsFactory.get(profile, context)
print("renderer:", functions.glGetString(0x1F01) if functions else "without OpenGL 2.1")
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    name, value
        What it is, and what was found.
    ok
        Whether it is as the programs need it.
    remedy
        The one command (or sentence) that mends it; empty if ``ok``.
    """

    name: str
    value: str
    ok: bool
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything, in the order in which things depend on each other."""
    environment = os.environ
    return [
        python(),
        *(package(name) for name in ("torch", "monai", "numpy", "napari")),
        device(),
        qt_binding(),
        display(environment),
        opengl(environment),
        system_libraries(),
        shipped_models(),
        free_disk(),
    ]


def python() -> Finding:
    """The interpreter, against the range that the project supports."""
    value = f"{platform.python_version()} ({sys.executable})"
    ok = sys.version_info >= (3, 11)
    return Finding(
        "Python", value, ok, "" if ok else "install Python 3.11 or newer, then: make setup PYTHON=python3.11"
    )


def package(name: str) -> Finding:
    """An installed package, against the range in the project's own metadata."""
    wanted = _requirement(name)
    remedy = f'{sys.executable} -m pip install "{wanted}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", False, remedy)
    if not in_range(version, wanted.removeprefix(name)):
        return Finding(name, f"{version}, but {wanted} is needed", False, remedy)
    return Finding(name, version, True)


def in_range(version: str, clauses: str) -> bool:
    """Whether a release fits clauses such as ``">=2.8,<2.14"``.

    Examples
    --------
    >>> in_range("2.13.0+cpu", ">=2.8,<2.14"), in_range("2.14.1", ">=2.8,<2.14")
    (True, False)
    """
    release = _release(version)
    for operator, bound in re.findall(r"(>=|<)\s*([\d.]+)", clauses):
        if (release >= _release(bound)) != (operator == ">="):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"[\d.]*\d", version)
    parts = [int(n) for n in numbers.group().split(".")] if numbers else []
    while parts and parts[-1] == 0:  # 2.8 and 2.8.0 are one release
        parts.pop()
    return tuple(parts)


def _requirement(name: str) -> str:
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        specifier = line.split(";")[0].strip()
        if re.match(rf"{re.escape(name)}\b", specifier, re.IGNORECASE):
            return specifier
    return name


def device() -> Finding:
    """The fastest device that torch can compute on."""
    try:
        import torch
    except Exception as error:  # a broken installation raises anything from ImportError to OSError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(
            "device",
            f"torch cannot be loaded: {reason}",
            False,
            f'{sys.executable} -m pip install --force-reinstall "{_requirement("torch")}"',
        )
    if torch.cuda.is_available():
        return Finding("device", f"cuda: {torch.cuda.get_device_name()} (CUDA {torch.version.cuda})", True)
    if torch.backends.mps.is_available():
        return Finding("device", "mps: Apple graphics", True)
    return Finding("device", f"cpu: {torch.get_num_threads()} threads; no graphics card that torch can use", True)


def installed_qt() -> str | None:
    """Name and version of the Qt binding, if there is one."""
    for binding in ("PyQt6", "PySide6"):
        try:
            return f"{binding} {metadata.version(binding)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def qt_binding() -> Finding:
    """The package that draws napari's windows."""
    found = installed_qt()
    if found:
        return Finding("Qt", found, True)
    return Finding("Qt", "no binding installed", False, f'{sys.executable} -m pip install "{_requirement("PyQt6")}"')


def display(environment: Mapping[str, str]) -> Finding:
    """Where windows can open: a screen, or a virtual one."""
    if sys.platform != "linux":
        return Finding("display", "the desktop", True)
    for variable in ("WAYLAND_DISPLAY", "DISPLAY"):
        if environment.get(variable):
            return Finding("display", f"{variable}={environment[variable]}", True)
    if _virtual_display():
        return Finding("display", "none, but Xvfb can stand in", True)
    return Finding("display", "none, and no Xvfb to stand in", False, _apt(["xvfb", "xauth"]))


def _virtual_display() -> bool:
    return all(shutil.which(program) for program in ("Xvfb", "xvfb-run", "xauth"))


def opengl(environment: Mapping[str, str], timeout: float = 40.0) -> Finding:
    """Whether an OpenGL context can be made, and by which renderer.

    Parameters
    ----------
    environment
        Of the process that tries.
    timeout
        In seconds, after which a hanging driver counts as a failure.
    """
    if installed_qt() is None:
        return Finding("OpenGL", "cannot be tried without Qt", False, qt_binding().remedy)
    command = [sys.executable, "-c", _OPENGL_PROBE]
    if sys.platform == "linux" and not (environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")):
        if not _virtual_display():
            return Finding("OpenGL", "cannot be tried without a display", False, display(environment).remedy)
        command = ["xvfb-run", "-a", *command]
    # A platform forced on Qt, such as offscreen, would hide what the display can do.
    settings = {k: v for k, v in environment.items() if k != "QT_QPA_PLATFORM"}
    remedy = _apt(["libgl1-mesa-dri", "libgl1", "libegl1", "libopengl0", "libglx-mesa0"])
    try:
        code, output, errors = _run(command, settings, timeout)
    except subprocess.TimeoutExpired:
        return Finding("OpenGL", f"no answer within {timeout:.0f} s", False, remedy)
    except OSError as error:
        return Finding("OpenGL", f"could not be tried: {error.strerror}", False, remedy)
    for line in output.splitlines():
        if line.startswith("renderer: "):
            return Finding("OpenGL", line.removeprefix("renderer: "), True)
    said = [line.strip() for line in errors.splitlines() if line.strip()]
    return Finding("OpenGL", said[-1] if said else f"Qt ended with code {code}", False, remedy)


def _run(command: list[str], environment: Mapping[str, str], timeout: float) -> tuple[int, str, str]:
    """Exit code and output of a command; at the timeout all of its processes end, a virtual display included."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(environment),
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, output, errors


def system_libraries() -> Finding:
    """The libraries that Qt and OpenGL load on Linux and that pip cannot bring."""
    name = "system libraries"
    if sys.platform != "linux":
        return Finding(name, "none needed here", True)
    loader = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if loader is None:
        return Finding(name, "not checked: this system has no ldconfig", True)
    cache = subprocess.run([loader, "-p"], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    missing = missing_libraries(cache)
    if not missing:
        return Finding(name, f"all {len(SYSTEM_LIBRARIES)} present", True)
    return Finding(name, "missing: " + ", ".join(missing), False, _apt([SYSTEM_LIBRARIES[m] for m in missing]))


def missing_libraries(cache: str) -> list[str]:
    """Sonames of `SYSTEM_LIBRARIES` that are not in the output of ``ldconfig -p``."""
    known = {line.split()[0] for line in cache.splitlines() if line.startswith("\t")}
    return [soname for soname in SYSTEM_LIBRARIES if soname not in known]


def _apt(packages: Iterable[str]) -> str:
    command = "apt-get install -y " + " ".join(packages)
    return command if hasattr(os, "geteuid") and os.geteuid() == 0 else f"sudo {command}"


def shipped_models() -> Finding:
    """The models that came with the package, each with its card and weights."""
    name = "shipped models"
    if not package("torch").ok or not package("monai").ok:
        return Finding(name, "cannot be read without torch and monai", False, package("torch").remedy)
    from cease_core.models.checkpoint import CARD, WEIGHTS
    from cease_core.models.library import SHIPPED

    complete = sorted(card.parent.name for card in SHIPPED.glob(f"*/{CARD}") if (card.parent / WEIGHTS).is_file())
    if complete:
        return Finding(name, f"{len(complete)}: {', '.join(complete)}", True)
    checkout = Path(__file__).parents[1]
    if (checkout / ".git").exists():
        return Finding(name, "none", False, f"git -C {checkout} checkout -- {SHIPPED.relative_to(checkout)}")
    return Finding(name, "none", False, f"{sys.executable} -m pip install --force-reinstall --no-deps {DISTRIBUTION}")


def free_disk(folder: Path | None = None) -> Finding:
    """Room for checkpoints and results where the user's own models go."""
    folder = folder or Path.home()
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("free disk", f"{folder}: {error.strerror}", False, f"mkdir -p {folder}")
    ok = free >= NEEDED_DISK
    return Finding(
        "free disk",
        f"{free / 2**30:.1f} GiB at {folder}",
        ok,
        "" if ok else f"free {NEEDED_DISK / 2**30:.0f} GiB at {folder}: du -xh --max-depth=1 {folder} | sort -h",
    )
