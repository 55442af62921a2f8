"""How an audit scales: with processes, cases, ε and rows, and whether a kill changes its table.

    python benchmarks/audit_scaling.py

writes ``benchmarks/results/audit_scaling.json`` and prints it as lines. Ratios are taken within the run; the machine
should be idle.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from provenance import ROOT, write_result

from cease_core.data import Case, find_cases
from cease_core.evaluation.audit import Cluster, Executor, JobDone, Serial, Settings, audit, load_audit, tier
from cease_core.evaluation.audit.store import JOURNAL, Entry, Journal, keys_of, read_facts, write_tables

SAMPLES = ROOT / "sample_data" / "cardiac_mr_sunnybrook"
MODEL = ("cardiac-defended",)
TABLES = ("table.csv", "table.parquet", "probes.csv", "cases.csv")
EPSILONS = tuple(e / 255 for e in (1, 2, 3, 4, 6, 8, 10, 12))
SMALL = {"steps": 10, "longer": 20, "restarts": 1, "queries": 40}


def settings(cases: int, epsilons: tuple[float, ...] = (4 / 255, 8 / 255)) -> Settings:
    """Of a small audit."""
    return tier("quick", cases=cases, epsilons=epsilons, report_epsilon=epsilons[-1], slices=3, **SMALL)


def rows_per_second(folder: Path, chosen: Settings, executor: Executor, cases: list[Case]) -> tuple[float, float]:
    """Rows a second from the first finished job to the last, and all seconds, those of starting processes included."""
    began = time.monotonic()
    times, rows = [], 0
    for event in audit(MODEL, cases, folder, chosen, executor=executor):
        if isinstance(event, JobDone):
            times.append(time.monotonic())
            rows += len(event.rows) if len(times) > 1 else 0
    return rows / (times[-1] - times[0]), time.monotonic() - began


def with_processes(scratch: Path, cases: list[Case]) -> dict[str, object]:
    """One process, then one and two workers; the tables must be the same."""
    found: dict[str, object] = {}
    chosen = settings(6)
    runs: dict[str, Executor] = {
        "this process": Serial(),
        "1 worker": Cluster(workers=1),
        "2 workers": Cluster(workers=2),
    }
    for name, executor in runs.items():
        pace, seconds = rows_per_second(scratch / name, chosen, executor, cases)
        found[name] = {"rows_per_second": round(pace, 2), "seconds": round(seconds, 1)}
    paces = [found[name]["rows_per_second"] for name in ("1 worker", "2 workers")]  # type: ignore[index]
    same = {name: alike(scratch / "this process", scratch / name) for name in runs}
    return {**found, "2 workers / 1 worker": round(paces[1] / paces[0], 2), "same tables": all(same.values())}


def with_size(scratch: Path, cases: list[Case]) -> dict[str, object]:
    """Seconds as cases and ε grow."""
    by_cases, by_epsilons = {}, {}
    for count in (1, 2, 4, 6):
        by_cases[count] = timed(scratch / f"cases{count}", settings(count), cases)
    for count in (1, 2, 4, 8):
        by_epsilons[count] = timed(scratch / f"epsilons{count}", settings(2, EPSILONS[:count]), cases)
    return {"seconds by cases": by_cases, "seconds by number of epsilons": by_epsilons}


def timed(folder: Path, chosen: Settings, cases: list[Case]) -> float:
    """Seconds of all jobs, as the journal has them."""
    total = 0.0
    for event in audit(MODEL, cases, folder, chosen):
        if isinstance(event, JobDone):
            total += event.seconds
    return round(total, 2)


def with_rows(scratch: Path, cases: list[Case]) -> dict[str, object]:
    """Peak memory of writing tables of ever more rows, each in a process of its own."""
    folder = scratch / "rows"
    list(audit(MODEL, cases, folder, settings(1)))
    found = {}
    for count in (1_000, 10_000, 100_000):
        command = [sys.executable, __file__, "--write", str(folder), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[count] = float(done.stdout)
    return {"MiB at most, by rows": found, "MiB a row": round((found[100_000] - found[1_000]) / 99_000, 5)}


def write_many(folder: Path, count: int) -> None:
    """Fill a journal with copies of the rows of one and write its tables; prints the peak memory in MiB."""
    facts = read_facts(folder)
    entries = list(Journal(folder / JOURNAL).read(keys_of(facts)))
    entry = max(entries, key=lambda e: len(e.rows))
    with tempfile.TemporaryDirectory() as place:
        journal = Journal(Path(place) / JOURNAL)
        names = [f"case{i}" for i in range(count // len(entry.rows))]
        model, trial, _ = entry.key
        for name in names:
            journal.append(Entry((model, trial, name), entry.rows))
        facts["cases"] = names
        facts["victims"][0]["trials"] = [t for t in facts["victims"][0]["trials"] if t["name"] == trial]
        write_tables(Path(place), journal, facts)
    # Not ru_maxrss: a process inherits that of the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024)


def with_kill(scratch: Path, cases: list[Case]) -> dict[str, object]:
    """Kill an audit in the middle, go on, and compare with one that was left alone."""
    chosen = settings(2)
    list(audit(MODEL, cases, scratch / "left alone", chosen))
    folder = scratch / "killed"
    command = [sys.executable, __file__, "--audit", str(folder), chosen.model_dump_json()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    journal = folder / JOURNAL
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 10):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = journal.read_bytes().count(b"\n")
    again = [e for e in audit(MODEL, cases, folder, chosen) if isinstance(e, JobDone)]
    jobs = load_audit(folder).jobs
    return {
        "jobs": jobs,
        "done when killed": before,
        "done afterwards": len(again),
        "done twice": before + len(again) - jobs,
        "same tables": alike(scratch / "left alone", folder),
    }


def alike(one: Path, other: Path) -> bool:
    """Whether two audits have the same tables, byte by byte."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in TABLES)


def linear(seconds: dict[int, float]) -> float:
    """Slope of the last step over that of the first: 1 for a straight line."""
    slopes = [(seconds[b] - seconds[a]) / (b - a) for a, b in pairwise(seconds)]
    return round(slopes[-1] / slopes[0], 2)


def main() -> None:
    """Measure everything."""
    if "--write" in sys.argv:
        write_many(Path(sys.argv[2]), int(sys.argv[3]))
        return
    cases = find_cases(SAMPLES)
    if "--audit" in sys.argv:
        list(audit(MODEL, cases, sys.argv[2], Settings.model_validate_json(sys.argv[3])))
        return
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        sizes = with_size(scratch, cases)
        found = {
            "processes": with_processes(scratch, cases),
            "sizes": sizes,
            "last slope / first slope": {name: linear(values) for name, values in sizes.items()},  # type: ignore[arg-type]
            "rows": with_rows(scratch, cases),
            "kill": with_kill(scratch, cases),
        }
    for name, value in found.items():
        print(name, value, sep=": ")
    print(f"wrote {write_result('audit_scaling', found).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
