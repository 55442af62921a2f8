"""Whether damaged files of every kind are refused in one sentence, without a crash, a hang or a swollen process.

    python benchmarks/fuzz.py [--inputs 12000] [--seed 0] [--only NAME] [--dry]
    python benchmarks/fuzz.py --only NAME --input 123 --keep FOLDER

Each target starts from small valid files (``fuzz_targets.py``), which are damaged (``fuzz_damage.py``): cut, bits
flipped, pieces exchanged, numbers at which lengths go wrong written into headers, other types, nothing at all, entries
of a zip doubled, JSON nested without end, NaN, invalid UTF-8. Input *k* of a target is always damaged the same way for
one seed; the second form writes one into a folder and shows what becomes of it. The valid files themselves come first
and have to be accepted.

Inputs are read in a process of its own, which must live on. An outcome is **accepted** if what was read is sound,
**refused** if it raised a `CeaseError` of one line, and else a **defect**: any other exception, a process that died,
more than `SECONDS` of processor time, more than `GROWTH` bytes of memory for one small file, or more address space than
`SPACE`, even where that ends in a sentence. **Noise** counts inputs about which a library wrote to the terminal.

It prints a table and writes ``benchmarks/results/fuzz.json``. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from fuzz_damage import damaged, scratched
from fuzz_targets import TARGETS, Seed, Target
from provenance import write_result

from cease_core.errors import CeaseError

SECONDS = 10
"""Of processor time that one input may take."""

WALL_SECONDS = 120
"""After which a process that does nothing is taken for hung, on a machine that has other work, too."""

GROWTH = 2**30
"""Bytes by which one input, always a small file, may let the process grow at its peak."""

SPACE = 5 * 2**30
"""Bytes of address space that it may ask for beyond what is mapped: little more than a length of 32 bits can say."""

LONGEST = 1500
"""Letters of a sentence that can still be read."""

SOURCES = 300
"""Inputs that one process reads before the next one takes over."""

_FORK = multiprocessing.get_context("fork")
_KEPT = 20


ELSEWHERE = re.compile(r"/\S*/(?=\S)")
"""Folders that lead to a file."""


@dataclass
class Tally:
    """What became of a target's inputs."""

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    defects: int = 0
    noise: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0
    largest_mib: float = 0.0
    found: list[dict[str, Any]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)

    def add(self, index: int, outcome: Mapping[str, Any]) -> None:
        """Count one input."""
        self.inputs += 1
        kind = outcome["kind"]
        self.accepted += kind == "accepted"
        self.refused += kind == "refused"
        self.longest_seconds = max(self.longest_seconds, outcome.get("seconds", 0.0))
        self.largest_mib = max(self.largest_mib, outcome.get("mib", 0.0))
        if kind == "defect":
            self.defects += 1
            self.found.append({"input": index, "what": outcome["what"]})
        if outcome.get("noise"):
            self.noise += 1
            # Where a library is installed, or a file was damaged, is this machine's own business.
            self.said.append({"input": index, "what": ELSEWHERE.sub("", outcome["noise"])})


# --- inputs -------------------------------------------------------------------------------------------------------


def made(target: str, seeds: list[Seed], seed: int, index: int) -> Seed:
    """Input number ``index``: first the valid files, then damaged ones."""
    if index < len(seeds):
        return seeds[index]
    draw = random.Random(f"{seed} {target} {index}")
    chosen = seeds[draw.randrange(len(seeds))]
    files = dict(chosen.files)
    for name in draw.sample(sorted(files), k=min(len(files), draw.choice((1, 1, 1, 2)))):
        match draw.randrange(40):
            case 0:
                del files[name]
            case 1:
                other = seeds[draw.randrange(len(seeds))]
                files[name] = other.files[draw.choice(sorted(other.files))]
            case 2:
                files[name] = b""
            case 3:
                files[name] = scratched(files[name], draw)
            case _:
                files[name] = damaged(name, files[name], draw)
    return Seed(files, chosen.opened, chosen.beside)


def written(one: Seed, folder: Path) -> Path:
    """Write an input into a folder; the path that is opened."""
    for name, content in (*one.beside.items(), *one.files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / one.opened if one.opened else folder


def seeds_of(target: Target) -> list[Seed]:
    """A target's valid files, made in a process of its own, so that no library is used before processes part."""
    receive, send = _FORK.Pipe(duplex=False)

    def make() -> None:
        with tempfile.TemporaryDirectory() as place:
            send.send(target.make(Path(place)))

    maker = _FORK.Process(target=make)
    maker.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise SystemExit(f"the valid files for {target.name} could not be made") from None
    finally:
        maker.join()


# --- reading one, in a process of its own -------------------------------------------------------------------------


def judged(target: Target, path: Path, *, valid: bool) -> dict[str, Any]:
    """What becomes of an input."""
    try:
        target.ask(path)
    except CeaseError as error:
        if found := _fault(error):
            return {"kind": "defect", "what": found}
        if valid:
            return {"kind": "defect", "what": f"a valid file is refused: {error}"}
        return {"kind": "refused", "said": str(error)}
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-6:]
        steps = " > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in where)
        return {"kind": "defect", "what": f"{type(error).__name__}: {str(error)[:300]} ({steps})"}
    return {"kind": "accepted"}


def _fault(error: CeaseError) -> str:
    """What is wrong with a sentence, or with how it came about; empty if nothing."""
    said = str(error)
    if not said or not said.isprintable() or len(said) > LONGEST:
        return f"no sentence: {said[:300]!r} ({len(said)} letters)"
    cause: BaseException | None = error
    while cause is not None:
        told = str(cause)
        if isinstance(cause, MemoryError) or any(w in told for w in ("bad_alloc", "allocate memory", "bad allocation")):
            return f"more than {SPACE / 2**30:.0f} GiB were asked for: {said}"
        cause = cause.__cause__ or cause.__context__
    return ""


def serve(target: Target, seeds: list[Seed], seed: int, connection: Connection) -> None:
    """Read the inputs whose numbers come in, and tell what became of them."""
    torch.set_num_threads(1)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryFile() as terminal, tempfile.TemporaryDirectory() as scratch:
        for stream in (1, 2):
            os.dup2(terminal.fileno(), stream)
        while (index := connection.recv()) is not None:
            place = Path(scratch) / "input"
            os.environ["CEASE_MODELS"] = str(Path(scratch) / "home" / "models")
            os.environ["CEASE_CONSENT"] = str(Path(scratch) / "home")
            path = written(made(target.name, seeds, seed, index), place)
            terminal.truncate(0)
            terminal.seek(0)
            with measured() as figures:
                outcome = judged(target, path, valid=index < len(seeds))
            sys.stdout.flush()
            sys.stderr.flush()
            terminal.seek(0)
            outcome |= figures | {"noise": terminal.read(2000).decode(errors="replace")[:300]}
            if figures["mib"] * 2**20 > GROWTH:
                outcome |= {"kind": "defect", "what": f"grew by {figures['mib']:.0f} MiB: {outcome}"}
            for each in (place, Path(scratch) / "home"):
                shutil.rmtree(each, ignore_errors=True)
            connection.send(outcome)


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Processor time and growth at the peak; a block that takes too long ends the process by SIGPROF."""
    gc.collect(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _resident("VmRSS"), time.process_time()
    figures: dict[str, float] = {}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield figures
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        figures["seconds"] = time.process_time() - began
        figures["mib"] = max(0.0, _resident("VmHWM") - before)


def _resident(name: str) -> float:
    """VmRSS or VmHWM in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


# --- all of a target ----------------------------------------------------------------------------------------------


def fuzzed(target: Target, inputs: int, seed: int) -> Tally:
    """Read a target's inputs, in as many processes as it takes."""
    tally, began = Tally(target.name), time.monotonic()
    seeds = seeds_of(target)
    index = 0
    while index < inputs:
        ours, theirs = _FORK.Pipe()
        process = _FORK.Process(target=serve, args=(target, seeds, seed, theirs), daemon=True)
        process.start()
        theirs.close()
        for index in range(index, min(index + SOURCES, inputs)):  # noqa: B020  (goes on where it stopped)
            ours.send(index)
            if not ours.poll(WALL_SECONDS):
                process.kill()
                tally.add(index, {"kind": "defect", "what": f"did nothing for {WALL_SECONDS} s"})
                break
            try:
                tally.add(index, ours.recv())
            except EOFError:
                process.join()
                tally.add(index, {"kind": "defect", "what": _death(process.exitcode)})
                break
        else:
            ours.send(None)
        index += 1
        process.join()
        ours.close()
    tally.seconds = round(time.monotonic() - began, 1)
    return tally


def _death(code: int | None) -> str:
    if code == -signal.SIGPROF:
        return f"took more than {SECONDS} s"
    return f"the process died ({signal.Signals(-code).name})" if code and code < 0 else f"the process ended ({code})"


def shares(inputs: int, targets: tuple[Target, ...]) -> list[int]:
    """How many inputs each target gets; together at least ``inputs``."""
    whole = sum(t.share for t in targets)
    return [-(-inputs * t.share // whole) for t in targets]


def shown(tally: Tally) -> str:
    """A line of the table."""
    return (
        f"{tally.target:<28}{tally.inputs:>8}{tally.accepted:>10}{tally.refused:>9}{tally.defects:>9}{tally.noise:>7}"
        f"{tally.seconds:>9.1f}{tally.longest_seconds:>10.2f}{tally.largest_mib:>12.0f}"
    )


def alike(found: list[dict[str, Any]]) -> list[str]:
    """A line for each kind of thing that was found, with the numbers of its first inputs."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        kinds.setdefault(re.sub(r"/tmp/\S+|[\d.e+-]+|'[^']*'", "", each["what"])[:80], []).append(each)
    ordered = sorted(kinds.values(), key=len, reverse=True)[:_KEPT]
    return [
        f"{len(k)} × {k[0]['what'].strip()!r:.400} (inputs {', '.join(str(e['input']) for e in k[:4])})"
        for k in ordered
    ]


def one(target: Target, seed: int, index: int, folder: Path) -> None:
    """Write an input into a folder, and show what becomes of it here."""
    seeds = seeds_of(target)
    os.environ["CEASE_MODELS"] = str(folder / "library" / "models")
    os.environ["CEASE_CONSENT"] = str(folder / "library")
    path = written(made(target.name, seeds, seed, index), folder / "input")
    print(path, flush=True)
    target.ask(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=12_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--only", help="targets whose name holds this")
    parser.add_argument("--input", type=int, help="number of the one input of --only that is looked at")
    parser.add_argument("--keep", type=Path, help="where that input is written")
    parser.add_argument("--dry", action="store_true", help="write no results")
    args = parser.parse_args()
    targets = tuple(t for t in TARGETS if (args.only or "").lower() in t.name.lower())
    if args.input is not None:
        one(targets[0], args.seed, args.input, args.keep)
        return
    began = time.monotonic()
    print(f"{'target':<28}{'inputs':>8}{'accepted':>10}{'refused':>9}{'defects':>9}{'noise':>7}", end="")
    print(f"{'seconds':>9}{'longest s':>10}{'largest MiB':>12}", flush=True)
    tallies = []
    for target, number in zip(targets, shares(args.inputs, targets), strict=True):
        tallies.append(fuzzed(target, number, args.seed))
        print(shown(tallies[-1]), flush=True)
        for line in alike(tallies[-1].found) + alike(tallies[-1].said)[:3]:
            print(f"  {line}", flush=True)
    total = {
        key: sum(getattr(t, key) for t in tallies) for key in ("inputs", "accepted", "refused", "defects", "noise")
    }
    total["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(total))
    if not args.dry and args.only is None:
        limits = {"seconds": SECONDS, "growth_bytes": GROWTH, "space_bytes": SPACE}
        rows = [{k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(t).items()} for t in tallies]
        for row in rows:
            row["said"] = row["said"][:3]
        print(write_result("fuzz", {"seed": args.seed, "limits": limits, "total": total, "targets": rows}))


if __name__ == "__main__":
    main()
