"""Ordinary Dask work through distributed's public API: the same on a guarded cluster as on a stock one."""

import asyncio
import operator
import os
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask_rig import until
from distributed import (
    Actor,
    Client,
    Event,
    LocalCluster,
    Lock,
    MultiLock,
    Queue,
    Semaphore,
    Variable,
    as_completed,
    fire_and_forget,
    get_client,
    get_task_stream,
    get_worker,
    performance_report,
    progress,
    rejoin,
    secede,
    wait,
    worker_client,
)
from distributed.diagnostics.progressbar import MultiProgressBar
from security_world import make_world

from lcls_dask.security import Role
from lcls_dask.security.guard import SchedulerGuard, security_of


@pytest.fixture(scope="module", params=["guarded", "stock"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    options: dict[str, Any] = {"security": True}
    if request.param == "guarded":
        world = make_world(tmp_path_factory.mktemp("world"))
        manager, scheduler, worker = (
            world.person("alice", role, "c1").directory for role in (Role.MANAGER, Role.SCHEDULER, Role.WORKER)
        )
        security = security_of(manager, scheduler=scheduler, worker=worker)
        options = {"security": security, "scheduler_kwargs": {"plugins": [SchedulerGuard()]}}
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": 1.1}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            resources={"detector": 1},
            **options,
        ) as cluster,
    ):
        cluster.client_security = (
            security_of(world.person("alice").directory) if request.param == "guarded" else cluster.security
        )
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster, security=cluster.client_security) as client:
        yield client


@pytest.fixture(autouse=True)
def whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves two workers behind."""
    client = request.getfixturevalue("client") if "client" in request.fixturenames else None
    yield
    if client is not None:
        client.wait_for_workers(2, timeout=60)


def addresses(client: Client) -> list[str]:
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def test_submit(client: Client) -> None:
    assert client.submit(operator.add, 1, 2).result(timeout=30) == 3


def test_map_and_gather(client: Client) -> None:
    assert client.gather(client.map(lambda x: x**2, range(100))) == [x**2 for x in range(100)]


def test_futures_of_futures(client: Client) -> None:
    assert client.submit(sum, client.map(int, range(10))).result(timeout=30) == 45


def test_scatter(client: Client) -> None:
    data = client.scatter(np.arange(1000))
    assert client.submit(np.sum, data).result(timeout=30) == 499500


def test_scatter_broadcast(client: Client) -> None:
    data = client.scatter(np.arange(10), broadcast=True, hash=False)
    assert len(client.who_has(data)[data.key]) == 2


def test_compute_and_persist(client: Client) -> None:
    held = client.persist(da.ones((400, 400), chunks=100))
    wait(held, timeout=30)
    assert client.compute(held.sum()).result(timeout=30) == 160000


def test_p2p_rechunk(client: Client) -> None:
    with dask.config.set({"array.rechunk.method": "p2p"}):
        numbers = da.arange(1_000_000, chunks=50_000).reshape(1000, 1000).rechunk((1000, 50))
        assert any("p2p" in str(key) for key in numbers.dask)
        assert int(numbers[::2].sum().compute()) == int(np.arange(1_000_000).reshape(1000, 1000)[::2].sum())


def test_p2p_shuffle(client: Client) -> None:
    pytest.importorskip("pyarrow", reason="no pyarrow: P2P shuffles of dataframes are NOT tested")
    import dask.dataframe as dd
    import pandas as pd

    frame = pd.DataFrame({"shot": range(1000), "bin": [i % 7 for i in range(1000)]})
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        shuffled = dd.from_pandas(frame, npartitions=8).shuffle("bin").compute()
    assert sorted(shuffled["shot"]) == list(range(1000))


class Counter:
    n = 0

    def increment(self) -> int:
        self.n += 1
        return self.n


def test_actors(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result(timeout=30)
    assert isinstance(counter, Actor)
    assert [counter.increment().result(timeout=30) for _ in range(3)] == [1, 2, 3]
    assert counter.n == 3


def test_actor_used_by_a_task(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result(timeout=30)
    assert client.submit(lambda c: c.increment().result(), counter, pure=False).result(timeout=30) == 1


def test_get_client_in_a_task(client: Client) -> None:
    def outer() -> int:
        return sum(get_client().gather(get_client().map(operator.neg, range(10))))

    def around() -> int:
        secede()
        value = outer()
        rejoin()
        return value

    assert client.submit(around, pure=False).result(timeout=60) == -45


def test_worker_client(client: Client) -> None:
    def outer() -> int:
        with worker_client() as inner:
            value = inner.scatter(20)
            return int(inner.submit(operator.add, value, 1).result())

    assert client.submit(outer, pure=False).result(timeout=60) == 21


def test_collections_in_a_task(client: Client) -> None:
    def outer() -> int:
        with worker_client():
            return int(da.ones(100, chunks=10).sum().compute())

    assert client.submit(outer, pure=False).result(timeout=60) == 100


def test_transfer_between_workers(client: Client) -> None:
    first, second = addresses(client)
    a = client.submit(np.ones, 1000, workers=first)
    b = client.submit(np.ones, 1000, workers=second, pure=False)
    assert client.submit(lambda x, y: float((x + y).sum()), a, b, workers=second).result(timeout=30) == 2000


def test_publish_and_get_dataset(client: Client, cluster: LocalCluster) -> None:
    client.publish_dataset(powder=client.persist(da.arange(10, chunks=5)))
    with Client(cluster, security=cluster.client_security, set_as_default=False) as other:
        assert other.list_datasets() == ("powder",)
        assert other.compute(other.get_dataset("powder").sum()).result(timeout=30) == 45
    client.unpublish_dataset("powder")
    assert client.list_datasets() == ()


def test_queue(client: Client) -> None:
    queue = Queue("shots")
    queue.put(client.submit(int, "5", pure=False))
    assert client.submit(lambda: Queue("shots").get(timeout=20).result(), pure=False).result(timeout=30) == 5
    queue.close()


def test_variable(client: Client) -> None:
    threshold = Variable("threshold")
    threshold.set(3.5)
    assert client.submit(lambda: Variable("threshold").get(timeout=20), pure=False).result(timeout=30) == 3.5
    threshold.delete()


def test_event(client: Client) -> None:
    waiting = client.submit(lambda: Event("go").wait(timeout=30), pure=False)
    Event("go").set()
    assert waiting.result(timeout=30)


def test_locks(client: Client) -> None:
    def count(path: str) -> None:
        with Lock("file"), MultiLock(names=["a", "b"]):
            value = int(Path(path).read_text())
            time.sleep(0.01)
            Path(path).write_text(str(value + 1))

    file = Path(client.submit(lambda: get_worker().local_directory).result(timeout=30)) / "count"
    file.write_text("0")
    wait(client.map(count, [str(file)] * 10, pure=False), timeout=60)
    assert file.read_text() == "10"


def test_semaphore(client: Client) -> None:
    leases = Semaphore(max_leases=1, name="database")

    def use(semaphore: Semaphore) -> int:
        with semaphore:
            return os.getpid()

    assert len(client.gather(client.map(lambda _, s: use(s), range(6), s=leases))) == 6
    assert leases.get_value() == 0
    leases.close()


def test_as_completed_and_wait(client: Client) -> None:
    futures = client.map(lambda x: x + 1, range(20), pure=False)
    assert sorted(future.result() for future in as_completed(futures, timeout=30)) == list(range(1, 21))
    assert wait(futures, timeout=30).not_done == set()


def test_retries(client: Client, tmp_path: Path) -> None:
    def fails_twice(path: Path) -> int:
        path.touch() if not path.exists() else (path.parent / "again").touch()
        tried = len(list(path.parent.iterdir()))
        if tried < 2:
            raise OSError("not yet")
        return tried

    assert client.submit(fails_twice, tmp_path / "tried", retries=3, pure=False).result(timeout=30) == 2


def test_errors_and_retry(client: Client) -> None:
    failed = client.submit(operator.truediv, 1, 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(timeout=30)
    with pytest.raises(ZeroDivisionError):
        client.recreate_error_locally(failed)
    failed.retry()
    assert isinstance(failed.exception(timeout=30), ZeroDivisionError)


def until_there(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def test_cancel_and_fire_and_forget(client: Client, tmp_path: Path) -> None:
    slow = client.submit(until_there, tmp_path / "done", pure=False)
    client.cancel(slow)  # its thread goes on until the file is there
    with pytest.raises(CancelledError):
        slow.result(timeout=30)
    fire_and_forget(client.submit((tmp_path / "done").touch, pure=False))
    until((tmp_path / "done").exists, "the forgotten task")


def test_who_has_replicate_rebalance(client: Client) -> None:
    data = client.scatter(list(range(4)), workers=addresses(client)[:1], hash=False)
    client.replicate(data[:1], n=2)
    assert len(client.who_has(data[0])[data[0].key]) == 2
    client.rebalance(data)
    assert set(client.has_what()) == set(addresses(client))
    assert client.nbytes(summary=False)


def test_resources_and_annotations(client: Client) -> None:
    with dask.annotate(priority=10, retries=1):
        assert client.compute(da.ones(10, chunks=5).sum()).result(timeout=30) == 10
    assert client.submit(operator.neg, 1, resources={"detector": 1}, pure=False).result(timeout=30) == -1


def test_work_stealing(client: Client) -> None:
    def where(_: int) -> str:
        time.sleep(0.05)
        return str(get_worker().address)

    first, *_ = both = addresses(client)

    def stolen() -> bool:
        """Whether it was, this time: a busy machine may do it all before anybody looks who is idle."""
        futures = client.map(where, range(40), workers=first, allow_other_workers=True, pure=False)
        return set(client.gather(futures)) == set(both)

    until(stolen, "work that another worker takes")


def test_events_and_topics(client: Client) -> None:
    seen: list[Any] = []
    client.subscribe_topic("hits", seen.append)

    def heard() -> bool:  # to subscribe and to log go by two connections
        client.log_event("hits", {"run": 13})
        return bool(seen)

    until(heard, "the subscription")
    client.log_event("hits", {"run": 14})
    client.submit(lambda: get_worker().log_event("hits", {"run": 15}), pure=False).result(timeout=30)
    until(lambda: {14, 15} <= {event["run"] for _, event in seen}, "events")
    client.unsubscribe_topic("hits")
    assert [event["run"] for _, event in client.get_events("hits")][-2:] == [14, 15]


def test_metadata_versions_and_state(client: Client) -> None:
    client.set_metadata(["run", "14"], "good")
    assert client.get_metadata(["run", "14"]) == "good"
    assert len(client.get_versions(check=True)["workers"]) == 2
    assert len(client.nthreads()) == 2
    assert client.processing().keys() == set(addresses(client))
    assert client.get_worker_logs().keys() == set(addresses(client))
    assert client.get_worker_logs(nanny=True)
    assert client.call_stack() is not None
    assert client.amm.running() in (True, False)


def test_performance_report(client: Client, tmp_path: Path) -> None:
    with performance_report(filename=str(tmp_path / "report.html")), get_task_stream() as stream:
        client.gather(client.map(slowly_negative, range(5), pure=False))
    report = (tmp_path / "report.html").read_text()
    for tab in ("Summary", "Task Stream", "System", "Worker Profile (compute)", "Scheduler Profile", "Bandwidth"):
        assert tab in report
    assert report.count("slowly_negative") > 5  # in the task stream, and in the workers' profile
    assert len(stream.data) == 5


def slowly_negative(x: int) -> int:
    time.sleep(0.1)
    return -x


class Silent(MultiProgressBar):
    def _draw_bar(self, **_: Any) -> None: ...

    def _draw_stop(self, **_: Any) -> None: ...


def test_progress(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """In a terminal, and by kind of task as notebooks show it."""
    futures = client.map(slowly_negative, range(5), pure=False)
    progress(futures, notebook=False)
    assert "100% Completed" in capsys.readouterr().out
    bars = Silent(futures, scheduler=client.scheduler.address)
    client.sync(bars.listen)
    assert bars._last_response["all"] == {"slowly_negative": 5}
    assert bars.status == "finished"


def test_profile_story_and_dump(client: Client, tmp_path: Path) -> None:
    value = client.submit(operator.neg, 7, key="told")
    wait(value, timeout=30)
    assert client.profile()["count"] >= 0
    assert client.story("told")
    client.dump_cluster_state(str(tmp_path / "dump"), format="yaml")
    assert (tmp_path / "dump.yaml").stat().st_size > 1000


def test_a_worker_that_dies_is_replaced(client: Client, tmp_path: Path) -> None:
    def die_once(path: Path) -> str:
        if not path.exists():
            path.touch()
            os._exit(1)
        return "survived"

    assert client.submit(die_once, tmp_path / "died", pure=False).result(timeout=60) == "survived"


def test_asynchronous_client(cluster: LocalCluster) -> None:
    async def work() -> int:
        address, security = cluster.scheduler_address, cluster.client_security
        async with Client(address, asynchronous=True, security=security, set_as_default=False) as client:
            return int(await client.submit(operator.add, 3, 4))

    assert asyncio.run(work()) == 7


def test_scale_and_adapt(client: Client, cluster: LocalCluster) -> None:
    cluster.scale(1)
    until(lambda: len(addresses(client)) == 1, "one worker less")
    cluster.adapt(minimum=1, maximum=2, interval="100ms", wait_count=2, target_duration="500ms")
    slow = client.map(lambda _: time.sleep(0.2), range(20), pure=False)
    until(lambda: len(addresses(client)) == 2, "one worker more")
    client.cancel(slow)
    until(lambda: len(addresses(client)) == 1, "idle workers' end")
    cluster.adapt(minimum=2, maximum=2, interval="100ms")
    client.wait_for_workers(2, timeout=60)
