"""The background thread: the newest job wins, errors become sentences, and it ends."""

from __future__ import annotations

import threading

import pytest

from cease_core.errors import CeaseError
from napari_cease.jobs.worker import Worker

WAIT = 10_000


@pytest.fixture
def worker(qtbot):
    made = Worker()
    yield made
    assert made.shutdown()


@pytest.fixture
def heard(worker):
    said = []
    worker.said.connect(lambda generation, event: said.append(("event", generation, event)))
    worker.failed.connect(lambda generation, sentence: said.append(("failed", generation, sentence)))
    worker.finished.connect(lambda generation: said.append(("finished", generation)))
    return said


def test_events_arrive_on_the_gui_thread_with_their_generation(qtbot, worker, heard):
    threads = []
    worker.said.connect(lambda *_: threads.append(threading.current_thread()))
    generation = worker.submit(lambda emit, stopped: emit("hello"))
    qtbot.waitUntil(lambda: ("finished", generation) in heard, timeout=WAIT)
    assert heard == [("event", generation, "hello"), ("finished", generation)]
    assert threads == [threading.main_thread()]


def test_the_newest_job_wins(qtbot, worker, heard):
    started, ran = threading.Event(), []

    def long(emit, stopped):
        started.set()
        while not stopped():
            threading.Event().wait(0.002)
        emit("too late")

    first = worker.submit(long)
    assert started.wait(5)
    skipped = worker.submit(lambda emit, stopped: ran.append("skipped"))
    last = worker.submit(lambda emit, stopped: ran.append("last"))
    qtbot.waitUntil(lambda: ("finished", last) in heard, timeout=WAIT)
    # One that never started is passed over only if it was overtaken before the first one stopped.
    assert ran[-1] == "last"
    assert first < skipped < last == worker.generation
    assert ("event", first, "too late") in heard


def test_cancelling_keeps_the_generation(qtbot, worker, heard):
    started = threading.Event()

    def long(emit, stopped):
        started.set()
        while not stopped():
            threading.Event().wait(0.002)
        emit("best so far")

    generation = worker.submit(long)
    assert started.wait(5)
    worker.cancel()
    qtbot.waitUntil(lambda: ("finished", generation) in heard, timeout=WAIT)
    assert ("event", generation, "best so far") in heard
    assert worker.generation == generation


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (CeaseError("choose another scan."), "choose another scan."),
        (ZeroDivisionError("oops"), "Stopped on an unexpected error: ZeroDivisionError('oops')."),
    ],
)
def test_an_exception_becomes_one_sentence_and_the_thread_lives_on(qtbot, worker, heard, error, sentence):
    def job(emit, stopped):
        raise error

    bad = worker.submit(job)
    qtbot.waitUntil(lambda: ("finished", bad) in heard, timeout=WAIT)
    good = worker.submit(lambda emit, stopped: emit(1))
    qtbot.waitUntil(lambda: ("finished", good) in heard, timeout=WAIT)
    assert [entry for entry in heard if entry[0] == "failed"] == [("failed", bad, sentence)]


def test_shutting_down_ends_the_thread_in_the_middle_of_a_job_and_says_no_more(qtbot, heard, worker):
    started = threading.Event()

    def long(emit, stopped):
        started.set()
        while not stopped():
            threading.Event().wait(0.002)
        emit("nobody listens")

    worker.submit(long)
    assert started.wait(5)
    assert worker.shutdown()
    assert worker.shutdown()  # twice is allowed
    qtbot.wait(20)
    assert heard == []


def test_a_receiver_that_is_gone_does_no_harm(qtbot):
    from qtpy import QtCore

    worker = Worker()
    started, go = threading.Event(), threading.Event()

    def job(emit, stopped):
        started.set()
        go.wait(5)
        emit("to nobody")

    worker.submit(job)
    assert started.wait(5)
    worker.deleteLater()
    QtCore.QCoreApplication.sendPostedEvents(worker, QtCore.QEvent.Type.DeferredDelete)
    go.set()
    assert worker.shutdown()
