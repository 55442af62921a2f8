"""A process of its own on a folder: found by whoever opens the folder, asked to end, and what it leaves."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest

from cease_core.errors import CeaseError
from napari_cease.jobs import process
from napari_cease.jobs.process import LOG, RECORD, START, Detached

SILENT = "import time; time.sleep(60)"
TELLING = """
import sys, time
from pathlib import Path
from napari_cease.jobs.process import work

def do():
    {do}
    return "finished", {{"figure": 3}}

raise SystemExit(work(Path(sys.argv[1]), "work", do))
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Detached]]:
    """Starts a process that runs a text; it is ended after the test."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = []

    def begin(text: str) -> Detached:
        (tmp_path / "worker_module.py").write_text(text)
        folder = tmp_path / "folder"
        folder.mkdir()
        detached = Detached("worker_module", folder)
        detached.start()
        made.append(detached)
        return detached

    yield begin
    for detached in made:
        detached.kill()


@pytest.fixture
def in_another_window(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From here on nothing is known of processes but what is in their folders."""
    monkeypatch.setattr(process, "PATIENCE", 0.1)
    return lambda: monkeypatch.setattr(process, "_children", {})


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_is_found_before_it_has_told_anything(start, in_another_window) -> None:
    detached = start(SILENT)
    in_another_window()
    assert detached.look().stage == "starting"
    assert detached.look().alive
    detached.kill()
    assert not detached.look().alive
    assert detached.why(detached.look().code) == "it was killed, or the computer was restarted."


def test_of_two_windows_that_start_at_once_one_does(start, in_another_window) -> None:
    first = start(SILENT)
    in_another_window()
    with pytest.raises(CeaseError, match=r"another window has started a process on .* already; open the run"):
        Detached(first.module, first.folder).start()
    assert first.look().alive
    with filelock.FileLock(first.folder / START), pytest.raises(CeaseError, match="another window"):
        Detached(first.module, first.folder).start()


def test_it_is_found_where_its_folder_was_moved(start, in_another_window) -> None:
    detached = start(SILENT)
    in_another_window()
    moved = Detached(detached.module, detached.folder.rename(detached.folder.with_name("moved")))
    assert moved.look().alive
    moved.kill()
    assert not moved.look().alive


def test_another_one_that_has_got_its_number_is_not_taken_for_it(tmp_path) -> None:
    detached = Detached("worker_module", tmp_path)
    for record in ({"pid": os.getpid()}, {"pid": os.getpid(), "created": 1.0}, {"pid": "7"}, {"pid": -1}, [7], None):
        (tmp_path / RECORD).write_text(json.dumps(record))
        assert detached.find() is None


def test_what_it_says_of_its_end_stays(start) -> None:
    detached = start(TELLING.format(do="pass"))
    until(lambda: detached.look().ended)
    seen = detached.look()
    assert (seen.stage, seen.record["figure"]) == ("finished", 3)
    until(lambda: detached.look().code == 0)
    assert not detached.look().alive


def test_interrupted_it_says_so(start) -> None:
    detached = start(TELLING.format(do="time.sleep(60)"))
    until(lambda: detached.look().stage == "running")
    detached.terminate()
    until(lambda: detached.look().ended or not detached.look().alive)
    assert detached.look().stage == "stopped"


def test_an_unexpected_error_is_one_sentence_and_the_rest_is_in_the_log(start) -> None:
    detached = start(TELLING.format(do="1 / 0"))
    until(lambda: detached.look().ended)
    assert detached.look().stage == "failed"
    assert detached.look().record["sentence"] == (
        "The work ended on an unexpected error, ZeroDivisionError: division by zero; log.txt in its folder has all."
    )
    assert "Traceback" in (detached.folder / LOG).read_text()


def test_one_that_ends_before_it_has_told_anything_is_quoted(start) -> None:
    detached = start("raise SystemExit('no memory is left')")
    until(lambda: not detached.look().alive)
    seen = detached.look()
    assert seen.code == 1
    assert detached.why(seen.code) == "no memory is left"
