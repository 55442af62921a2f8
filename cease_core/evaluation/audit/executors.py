"""Who does the jobs of an audit: this process, or the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

from cease_core.errors import CeaseError
from cease_core.evaluation.audit.work import Cancelled, Job, Outcome, Stopped, do, failure

AHEAD = 3
"""Jobs that each worker of a cluster has waiting, so that it is never idle and little is lost when it dies."""


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

    Raises
    ------
    CeaseError
        When it runs: if Dask is not installed, or no scheduler answers.
    """

    def __init__(self, address: str | None = None, *, workers: int = 2) -> None:
        self.address = address
        self.workers = workers

    def run(self, jobs: Iterable[Job], stopped: Stopped) -> Iterator[Outcome]:
        """As `Executor.run`."""
        with ExitStack() as stack:
            client = self._client(stack)
            yield from _spread(client, iter(jobs), stopped)

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
            return stack.enter_context(Client(cluster))
        try:
            return stack.enter_context(Client(self.address, timeout="10s"))
        except (OSError, ValueError, TimeoutError) as error:
            raise CeaseError(
                f"no Dask scheduler answers at {self.address}; start one with `dask scheduler`, or leave it out."
            ) from error


def _spread(client: Any, jobs: Iterator[Job], stopped: Stopped) -> Iterator[Outcome]:
    from distributed import CancelledError, KilledWorker, as_completed

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

    try:
        feed()
        while running and not stopped():
            future = next(pool)
            job = running.pop(future)
            try:
                yield future.result()
            except (KilledWorker, CancelledError) as error:
                yield failure(job, f"every worker that tried it died ({type(error).__name__}).")
            feed()
    finally:
        client.cancel(list(running))


def local_workers() -> int:
    """As many processes as this machine has cores."""
    return os.cpu_count() or 1
