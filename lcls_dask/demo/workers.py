"""Blocks of events on two Dask workers of this machine, once undisturbed and once with a worker killed on the way."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dask import config
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

from ..tof.chain import Plan


@dataclass(frozen=True)
class Pass:
    """One reduction of a run.

    Attributes
    ----------
    result : object
        What the merge returned.
    seconds : float
    blocks : int
    killed : int or None
        Process id of the worker that was killed on the way.
    finished_before : int
        Blocks that were finished when it was.
    """

    result: Any
    seconds: float
    blocks: int
    killed: int | None = None
    finished_before: int = 0


@contextmanager
def two_workers() -> Iterator[Client]:
    """A client of two worker processes, reachable from this machine alone.

    Yields
    ------
    distributed.Client

    Examples
    --------
    >>> with two_workers() as client:  # doctest: +SKIP
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    # spawning a process inherits the terminal's warnings filter, and killing one is meant here: its log is noise
    with (
        config.set({"distributed.scheduler.allowed-failures": 10}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        yield client


def compute_plan(client: Client, plan: Plan, *, kill: bool = False) -> Pass:
    """Carry out the chain of time of flight on the workers.

    Parameters
    ----------
    client : distributed.Client
        Of a cluster whose scheduler is in this process.
    plan : Plan
    kill : bool
        Kill one worker with SIGKILL as soon as a quarter of the blocks of hits is finished.

    Returns
    -------
    Pass

    Examples
    --------
    >>> with two_workers() as client:  # doctest: +SKIP
    ...     compute_plan(client, plan(run, Settings(threshold=60))).seconds
    """
    blocks = plan.hits.npartitions
    watch = _Watch(plan.hits.name, client.run(os.getpid), -(-blocks // 4) if kill else 0)
    cluster: Any = client.cluster
    cluster.scheduler.add_plugin(watch)
    start = time.perf_counter()
    try:
        result = plan.compute()
    finally:
        cluster.scheduler.remove_plugin(watch.name)
    return Pass(result, time.perf_counter() - start, blocks, watch.killed, watch.finished)


class _Watch(SchedulerPlugin):
    """Counts the blocks that are finished, and kills the worker that finished the one it is told."""

    name = "lcls-dask-demo"

    def __init__(self, blocks: str, pids: dict[str, int], last: int) -> None:
        self._blocks, self._pids, self._last = blocks, pids, last
        self.finished, self.killed = 0, None  # type: int, int | None

    def transition(self, key: Any, start: str, finish: str, *args: Any, worker: str = "", **kwargs: Any) -> None:
        """A task has another state."""
        if self.killed is not None or finish != "memory" or not (isinstance(key, tuple) and key[0] == self._blocks):
            return
        self.finished += 1
        if self.finished == self._last:
            self.killed = self._pids[worker]
            os.kill(self.killed, signal.SIGKILL)


def kill_one(client: Client) -> int:
    """Kill the worker that holds most results: the most has to be done again.

    Parameters
    ----------
    client : distributed.Client

    Returns
    -------
    int
        Its process id.
    """
    holds = client.has_what()
    address = max(holds, key=lambda worker: len(holds[worker]))
    pid: int = client.run(os.getpid, workers=[address])[address]
    os.kill(pid, signal.SIGKILL)
    return pid
