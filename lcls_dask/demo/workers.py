"""Blocks of events on two Dask workers of this machine, once undisturbed and once with a worker killed on the way."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dask import config
from distributed import Client, Future, LocalCluster

Block = tuple[int, int]


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


def blocks(events: int, length: int) -> list[Block]:
    """Events in blocks: (first, behind the last) of each.

    Parameters
    ----------
    events, length : int

    Returns
    -------
    list of (int, int)

    Examples
    --------
    >>> blocks(5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(first, min(first + length, events)) for first in range(0, events, length)]


def reduce_blocks(
    client: Client,
    work: Callable[[Block], Any],
    merge: Callable[[Sequence[Any]], Any],
    parts: Sequence[Block],
    *,
    kill: bool = False,
) -> Pass:
    """Work on every block and merge what comes out, on the workers.

    Parameters
    ----------
    client : distributed.Client
    work : callable
        From a block to a partial result.
    merge : callable
        From partial results to one of their kind; the order must not matter.
    parts : sequence of (int, int)
    kill : bool
        Kill one worker with SIGKILL as soon as a quarter of the blocks is finished.

    Returns
    -------
    Pass

    Examples
    --------
    >>> with two_workers() as client:  # doctest: +SKIP
    ...     reduce_blocks(client, lambda block: block[1] - block[0], sum, blocks(10, 3)).result
    10
    """
    start = time.perf_counter()
    futures = client.map(work, parts, pure=False)
    killed, finished = None, 0
    if kill:
        while (finished := sum(future.done() for future in futures)) < len(parts) / 4:
            time.sleep(0.002)
        killed = kill_one(client)
    # groups of eight, so that no worker must hold all partial results at once
    level: list[Future[Any]] = futures
    while len(level) > 1:
        level = [client.submit(merge, level[i : i + 8], pure=False) for i in range(0, len(level), 8)]
    result = level[0].result()
    return Pass(result, time.perf_counter() - start, len(parts), killed, finished)


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
