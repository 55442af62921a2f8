"""Who does the jobs of an audit: this process, or the workers of a Dask cluster."""

from __future__ import annotations

import asyncio
import importlib.metadata
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from cease_core.errors import CeaseError
from cease_core.evaluation.audit.work import Cancelled, Job, Outcome, Stopped, do, failure

AHEAD = 3
"""Jobs that each worker of a cluster has waiting, so that it is never idle and little is lost when it dies."""

PAUSE = 0.02
"""Seconds between two looks at the cluster, and at whether to stop."""


class Executor(Protocol):
    """Does jobs and yields what they give, in any order; closing the generator drops what is under way."""

    def run(self, jobs: Iterable[Job], stopped: Stopped) -> Iterator[Outcome]: ...


class Serial:
    """One job after the other, in this process."""

    def run(self, jobs: Iterable[Job], stopped: Stopped) -> Iterator[Outcome]:
        """As `Executor.run`."""
        for job in jobs:
            if stopped():
                return
            try:
                yield do(job, stopped)
            except Cancelled:
                return


class Cluster:
    """Jobs on a Dask cluster. A worker that dies costs its own jobs, which others do again.

    Parameters
    ----------
    address
        Of a scheduler, such as ``tcp://host:8786``; its workers must see the same files under the same paths.
        None to start a cluster on this machine.
    workers
        Processes of a cluster on this machine.
    wait
        Seconds until the scheduler must have a worker.

    Raises
    ------
    CeaseError
        When it runs: if Dask is not installed, no scheduler answers or has a worker, workers have other versions than
        this process, or the cluster is lost on the way.
    """

    def __init__(self, address: str | None = None, *, workers: int = 2, wait: float = 60.0) -> None:
        self.address = address
        self.workers = workers
        self.wait = wait

    def run(self, jobs: Iterable[Job], stopped: Stopped) -> Iterator[Outcome]:
        """As `Executor.run`."""
        with ExitStack() as stack:
            client = self._client(stack)
            if self._ready(client, stopped):
                yield from _spread(client, iter(jobs), stopped)

    def _ready(self, client: Any, stopped: Stopped) -> bool:
        """Wait for a worker; False if it was stopped meanwhile."""
        until = time.monotonic() + self.wait
        while not client.nthreads():
            if stopped():
                return False
            if time.monotonic() > until:
                raise CeaseError("the Dask scheduler has no worker; start some with `dask worker`, and try again.")
            time.sleep(PAUSE)
        try:
            theirs = client.run(versions)
        except Exception as error:
            raise CeaseError(
                f"a Dask worker cannot run audits ({_short(error)}); install the same napari-cease there as here."
            ) from error
        check_versions(theirs, versions())
        return True

    def _client(self, stack: ExitStack) -> Any:
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise CeaseError("a cluster needs Dask; install it with: pip install 'napari-cease[cluster]'") from error
        if self.address is None:
            cluster = LocalCluster(
                n_workers=self.workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=50,
                # A worker is killed by the system, if by anyone, not for what torch's allocator holds back.
                memory_limit=0,
            )
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
            client.register_plugin(_deaf())
            return client
        try:
            return stack.enter_context(Client(self.address, timeout="10s"))
        except (OSError, ValueError, TimeoutError) as error:
            raise CeaseError(
                f"no Dask scheduler answers at {self.address}; start one with `dask scheduler`, or leave it out."
            ) from error


def versions() -> dict[str, str]:
    """Of what decides an audit's figures, in this process."""
    return {name: importlib.metadata.version(name) for name in ("napari-cease", "torch", "monai", "numpy")}


def check_versions(theirs: Mapping[str, Mapping[str, str]], mine: Mapping[str, str]) -> None:
    """See that all workers would find the same.

    Parameters
    ----------
    theirs
        Versions by name, of each worker by address.
    mine
        Of this process.

    Raises
    ------
    CeaseError
        If a worker has another version of anything.
    """
    for worker, its in sorted(theirs.items()):
        for name, version in mine.items():
            if its.get(name) != version:
                raise CeaseError(
                    f"the Dask worker {worker} has {name} {its.get(name)}, and this process {name} {version}; "
                    "install the same version on both, since results depend on it."
                )


def _deaf() -> Any:
    """A plugin for workers of our own: Ctrl-C in a terminal is for the audit, which lets them finish or ends them."""
    from distributed import WorkerPlugin

    class Deaf(WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            del worker
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    return Deaf()


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _spread(client: Any, jobs: Iterator[Job], stopped: Stopped) -> Iterator[Outcome]:
    from distributed import KilledWorker, as_completed

    running: dict[Any, Job] = {}
    pool = as_completed()

    def feed() -> None:
        room = AHEAD * max(1, len(client.nthreads()))
        while len(running) < room:
            job = next(jobs, None)
            if job is None:
                return
            future = client.submit(do, job, pure=False)
            running[future] = job
            pool.add(future)

    def next_one() -> Outcome | None:
        """None if it was stopped; `do` itself never fails, so what is raised here is of the cluster."""
        feed()
        while running and not pool.has_ready():
            if stopped():
                return None
            time.sleep(PAUSE)
        if not running or stopped():
            return None
        future = next(pool)
        job = running.pop(future)
        try:
            outcome: Outcome = future.result()
        except KilledWorker as error:
            return failure(job, f"every worker that tried it died ({type(error).__name__}).")
        return outcome

    try:
        while True:
            try:
                outcome = next_one()
            except CeaseError:
                raise
            except (Exception, asyncio.CancelledError) as error:
                raise CeaseError(
                    f"the Dask cluster was lost ({_short(error)}); start it again, and give the same command again, "
                    "which goes on where this one ended."
                ) from error
            if outcome is None:
                return
            yield outcome
    finally:
        # A cluster that is gone has nothing to cancel.
        with suppress(Exception, asyncio.CancelledError):
            client.cancel(list(running))
