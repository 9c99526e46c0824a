"""What happens to a reduction when parts of a cluster end: workers, the gateway, certificates."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config
import pytest
from cluster_rig import Site, open_site, tof_work, total
from cluster_tasks import slowly
from dask_rig import ask_identity, dial
from distributed.comm import CommClosedError
from gateway_rig import Gateway, until

from lcls_dask.cluster import ClusterClient, connect
from lcls_dask.security import load_identity, revoke


@pytest.fixture(scope="module")
def site(cluster_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Gateway]]:
    with (
        open_site(tmp_path_factory.mktemp("site"), cluster_runs) as (made, gateway),
        dask.config.set(made.settings(gateway)),
    ):
        yield made, gateway


@pytest.fixture(scope="module")
def client(site: tuple[Site, Gateway]) -> Iterator[ClusterClient]:
    """Of two workers; the last test ends them."""
    with dask.config.set({"lcls.sweep": 0.5}), connect("local", workers=2, threads_per_worker=1) as client:
        yield client


def suspicious(client: ClusterClient) -> int:
    """Times that a task was lost with its worker."""
    return sum(int(task.suspicious) for task in client.cluster.scheduler.tasks.values())


def done(futures: list[Any]) -> int:
    return sum(future.done() for future in futures)


def audited(directory: Path) -> list[dict[str, Any]]:
    lines = [line for file in directory.glob("*.jsonl") for line in file.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def test_a_worker_and_the_gateway_are_killed(site: tuple[Site, Gateway], client: ClusterClient) -> None:
    made, gateway = site
    work, parts, right = tof_work(made)
    futures = client.map(slowly, [work] * len(parts), parts, [0.2] * len(parts), pure=False)
    until(lambda: done(futures) >= len(parts) // 4, 120, "a quarter of the reduction")
    pids = [client.submit(os.getpid, workers=[worker], pure=False) for worker in client.scheduler_info()["workers"]]
    os.kill(client.gather(pids)[0], signal.SIGKILL)
    until(lambda: done(futures) >= len(parts) // 2, 120, "half of it")
    gateway.stop(signal.SIGKILL)
    time.sleep(0.5)  # workers meet a closed port, and wait
    gateway.start()
    assert total(client.gather(futures)) == right
    client.wait_for_workers(2, timeout=60)  # the nanny has started another


@pytest.mark.long
def test_certificates_end_in_the_middle_and_are_renewed(site: tuple[Site, Gateway]) -> None:
    """Lifetimes of 20 s and a reduction that lasts two of them: nothing is lost, nothing is computed twice."""
    made, _ = site
    with (
        dask.config.set({"lcls.cluster.hours": 20 / 3600, "lcls.sweep": 0.5}),
        connect("local", workers=2, threads_per_worker=1) as client,
    ):
        work, parts, right = tof_work(made)
        directories = client.cluster.security.directories
        first = {role: load_identity(path).peer for role, path in directories.items()}
        assert {peer.role for peer in first.values()} == {"manager", "scheduler", "worker"}
        pause = 2 * 45 / len(parts)
        futures = client.map(slowly, [work] * len(parts), parts, [pause] * len(parts), pure=False)
        assert total(client.gather(futures)) == right
        assert all(time.time() > peer.not_after for peer in first.values())
        for role, path in directories.items():
            assert load_identity(path).peer.serial != first[role].serial
        assert suspicious(client) == 0
        assert len(client.scheduler_info()["workers"]) == 2
    ended = [
        line for line in audited(made.base / "dask-audit") if line["decision"] == "ended" and "expired" in str(line)
    ]
    assert ended == []


def test_revoked_workers_stop_within_the_sweep_and_it_is_said_why(
    site: tuple[Site, Gateway], client: ClusterClient
) -> None:
    made, _ = site
    work, parts, _ = tof_work(made)
    futures = client.map(slowly, [work] * len(parts), parts, [1.0] * len(parts), pure=False)
    until(lambda: done(futures) >= 1, 120, "the first block")
    serial = load_identity(client.cluster.security.directories["worker"]).peer.serial
    revoke(made.revocations, [serial], "stolen")
    began = time.monotonic()
    until(lambda: not client.cluster.scheduler.workers, 30, "the end of the revoked workers")
    # a second until the list is read again, half a one for the sweep, the rest for a busy machine
    assert time.monotonic() - began < 10
    count = done(futures)
    told = until(
        lambda: [line for line in audited(made.base / "dask-audit") if "revoked" in str(line.get("reason"))],
        20,
        "a line of the audit",
    )
    assert any(line.get("user") == "alice" for line in told)
    # whoever still has that certificate is turned away; whether a nanny tries that itself or has ended first is a race
    with pytest.raises(CommClosedError):
        dial(
            client.scheduler_info()["address"],
            load_identity(client.cluster.security.directories["worker"]),
            ask_identity,
        )
    until(
        lambda: [
            line
            for line in audited(made.base / "dask-audit")
            if (line["event"], line["decision"], line["reason"]) == ("connect", "refused", "certificate revoked")
        ],
        20,
        "a refusal",
    )
    assert not client.cluster.scheduler.workers
    # what they had done is lost with them, nothing more is done
    assert done(futures) <= count < len(parts)
