"""The guarded cluster against distributed's own with TLS: tasks, transfers, P2P, starting; the graph of a 1 TB run."""

import operator
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, wait

from lcls_dask.security import Role
from lcls_dask.security.guard import SchedulerGuard, security_of
from tests.security_world import World, make_world

from . import terabyte
from .timing import Setting, compare, interleaved, ratio, show

#: What is kept of the stock cluster's speed.
KEPT = 0.95


@contextmanager
def stock(directory: Path) -> Iterator[Client]:
    """Distributed's own cluster, with certificates that it makes for itself."""
    with _local(directory, security=True) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2)
        yield client


@contextmanager
def guarded(directory: Path, world: World) -> Iterator[Client]:
    """The same cluster, guarded; its identities are there already."""
    manager, scheduler, worker = (
        world.person("alice", role, "c1").directory for role in (Role.MANAGER, Role.SCHEDULER, Role.WORKER)
    )
    security = security_of(manager, scheduler=scheduler, worker=worker)
    with (
        _local(directory, security=security, scheduler_kwargs={"plugins": [SchedulerGuard()]}) as cluster,
        Client(cluster, security=security_of(world.person("alice").directory), set_as_default=False) as client,
    ):
        client.wait_for_workers(2)
        yield client


def run(setting: Setting) -> None:
    """Measure."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # a cluster is several processes
    world = make_world(setting.directory)
    tasks, size = setting.size(10_000, 100), setting.size(256 << 20, 1 << 20)
    shuffled = setting.size(4 << 30, 8 << 20)
    run_path = setting.directory / "run"
    blocks = terabyte.describe(run_path, setting.size(10**12, 10**10))
    graph(setting, run_path, blocks)
    # repetitions at most, and what is repeated: some of it takes many seconds
    works: dict[str, tuple[int, Callable[[Client], Any]]] = {
        f"transfer of {size >> 20} MiB between workers": (5, lambda client: transfer(client, size)),
        f"gathering {size >> 20} MiB": (5, lambda client: gathering(client, size)),
        f"P2P rechunk of {shuffled >> 20} MiB": (2, lambda client: rechunk(client, shuffled)),
        f"{tasks:,} tiny tasks": (2, lambda client: tiny(client, tasks)),
    }
    with ExitStack() as stack:
        clusters = {
            "stock, TLS": stack.enter_context(stock(setting.directory)),
            "guarded": stack.enter_context(guarded(setting.directory, world)),
        }
        # the first ones compile, import and connect
        for client in clusters.values():
            tiny(client, 1000)
            transfer(client, size)
            gathering(client, size)
            rechunk(client, 64 << 20)
        for what, (most, work) in works.items():
            timings = interleaved(
                min(setting.repeats, most),
                {name: lambda client=client, work=work: work(client) for name, client in clusters.items()},  # type: ignore[misc]
            )
            for name, timing in timings.items():
                show(f"{what}, {name}", timing)
            ratio(
                f"{what}, speed of guarded over stock", timings["stock, TLS"], timings["guarded"], KEPT, at_least=True
            )
        reduced = interleaved(1, {"guarded": lambda: scheduled(clusters["guarded"], run_path)})["guarded"]
        show(f"{blocks:,} blocks of 64 MiB, reads stubbed", reduced)
    begun = interleaved(
        min(setting.repeats, 3),
        {
            "stock, TLS": lambda: first(stock(setting.directory)),
            "guarded": lambda: first(guarded(setting.directory, world)),
        },
    )
    for name, timing in begun.items():
        show(f"start to first result, {name}", timing)
    ratio("start to first result, guarded over stock", begun["guarded"], begun["stock, TLS"], 1.2)


def graph(setting: Setting, run_path: Path, blocks: int) -> None:
    """Tasks of a sum over all frames of a run, and how long it takes to describe them."""
    ratio_of_tasks = terabyte.tasks(terabyte.ours(run_path)) / blocks
    compare("tasks for each block of 64 MiB", ratio_of_tasks, 1.4)
    built = interleaved(
        setting.repeats,
        {
            "lcls_dask": lambda: terabyte.ours(run_path).__dask_graph__(),
            "xarray, zarr": lambda: terabyte.zarrs(run_path).__dask_graph__(),
        },
    )
    for name, timing in built.items():
        show(f"opening it and building the graph, {name}", timing)
    ratio("opening and building, lcls_dask over xarray", built["lcls_dask"], built["xarray, zarr"], 5)


def scheduled(client: Client, run_path: Path) -> None:
    """As many events as the run has, counted block by block; what a block holds is not read."""
    with client.as_current():
        workers = client.scheduler_info()["workers"]
        wait([client.submit(terabyte.stub_reads, workers=[worker], pure=False) for worker in workers])
        events = terabyte.shots(run_path)
        assert client.compute(events).result() == terabyte.events(run_path)


def tiny(client: Client, tasks: int) -> None:
    """Many tasks that do nothing; their results stay where they are."""
    with client.as_current():
        wait(client.map(operator.neg, range(tasks), pure=False))


def transfer(client: Client, size: int) -> None:
    """An array that one worker has made, used by the other."""
    first, second = sorted(client.scheduler_info()["workers"])
    made = client.submit(np.ones, size // 8, workers=first, pure=False)
    assert client.submit(len, made, workers=second, pure=False).result() == size // 8


def gathering(client: Client, size: int) -> None:
    """An array that a worker has made, brought to the client through the scheduler."""
    assert client.submit(np.ones, size // 8, pure=False).result().nbytes == size // 8 * 8


def rechunk(client: Client, size: int) -> None:
    """Columns from rows, by workers that send each other their pieces."""
    side = int((size // 8) ** 0.5) // 16 * 16
    with dask.config.set({"array.rechunk.method": "p2p"}):
        rows = da.ones((side, side), chunks=(side // 16, side)).rechunk((side, side // 16))
    assert client.compute(rows.sum()).result() == side * side


def first(starting: Any) -> None:
    """Start a cluster, have one result, end it."""
    with starting as client:
        assert client.submit(operator.neg, 1).result() == -1


def _local(directory: Path, **options: Any) -> LocalCluster:
    return LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        local_directory=str(directory),
        silence_logs=50,
        **options,
    )
