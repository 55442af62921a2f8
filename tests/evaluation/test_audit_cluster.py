"""The same audit on a Dask cluster: other processes, the same table, also when one of them dies."""

import os
import signal
import time
from pathlib import Path

import dask
import distributed
import pytest

from cease_core.data import find_cases
from cease_core.errors import CeaseError
from cease_core.evaluation.audit import AuditFinished, Cluster, JobDone, Planned, audit, load_audit, tier
from cease_core.evaluation.audit.executors import check_versions

SAMPLES = Path(__file__).parents[2] / "sample_data" / "cardiac_mr_sunnybrook"
SETTINGS = tier(
    "quick", cases=2, steps=3, longer=4, restarts=1, queries=4, epsilons=(2 / 255, 8 / 255), report_epsilon=8 / 255
)


def events(out, **options):
    return audit(["cardiac-defended"], find_cases(SAMPLES), out, SETTINGS, **options)


def test_a_cluster_gives_the_same_table_also_when_a_worker_dies(tmp_path):
    list(events(tmp_path / "alone"))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50, memory_limit=0
    ) as cluster:
        killed = 0
        for event in events(tmp_path / "spread", executor=Cluster(cluster.scheduler_address)):
            if isinstance(event, JobDone) and not killed:
                killed = cluster.workers[0].pid
                os.kill(killed, signal.SIGKILL)
    assert killed
    for name in ("table.csv", "table.parquet", "probes.csv"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "spread" / name).read_bytes()
    assert (load_audit(tmp_path / "spread").rows["error"] == "").all()


def test_a_scheduler_that_dies_ends_the_audit_and_spoils_nothing(tmp_path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        distributed.LocalCluster(
            n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
    ):
        running = events(tmp_path, executor=Cluster(cluster.scheduler_address))
        next(event for event in running if isinstance(event, JobDone))
        cluster.close()
        with pytest.raises(CeaseError, match=r"lost .* give the same command again"):
            list(running)
    rows = load_audit(tmp_path).rows
    assert len(rows)
    assert (rows["error"] == "").all()


def test_a_cluster_without_workers_is_named_and_can_be_left(tmp_path):
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as cluster:
        with pytest.raises(CeaseError, match="no worker"):
            list(events(tmp_path, executor=Cluster(cluster.scheduler_address, wait=0.2)))
        # Stopped while it waits: ended, without a word.
        begun = []
        for event in events(tmp_path, executor=Cluster(cluster.scheduler_address), stopped=lambda: bool(begun)):
            begun.append(event)
        assert [type(event) for event in begun] == [Planned, AuditFinished]


def test_workers_with_another_version_are_refused():
    mine = {"napari-cease": "1", "torch": "2"}
    check_versions({"tcp://a": mine}, mine)
    with pytest.raises(CeaseError, match=r"tcp://b has torch 3, and this process torch 2"):
        check_versions({"tcp://a": mine, "tcp://b": mine | {"torch": "3"}}, mine)


def test_a_scheduler_that_does_not_answer_is_named(tmp_path):
    began = time.monotonic()
    with pytest.raises(CeaseError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        list(events(tmp_path, executor=Cluster("tcp://127.0.0.1:9")))
    assert time.monotonic() - began < 60
