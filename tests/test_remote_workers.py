"""Dask workers that read through a gateway, which is killed under them."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from gateway_rig import Facility, Gateway, until, write_store

from lcls_dask.formats import discover
from lcls_dask.formats.remote import credentials as remote_credentials
from lcls_dask.formats.remote import gateway as remote_gateway

EXPERIMENT, NAME = "tmox42619", "det.raw.image"
WORKERS, CHUNKS = 8, 96


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """Serves a run of 96 chunks of 1 MiB, and is known to this process and its children by the environment alone."""
    facility = Facility(tmp_path)
    shapes = {NAME: (4, (4 * CHUNKS, 256, 512)), "timestamp": (4 * CHUNKS, (4 * CHUNKS,))}
    write_store(facility.root / EXPERIMENT / "r0001.zarr", EXPERIMENT, 1, shapes)
    alice = facility.identity("alice")
    facility.allow({EXPERIMENT: ["alice"]})
    token = alice / "token"
    token.touch(0o600)
    token.write_text(facility.token(alice, EXPERIMENT))
    running = Gateway(facility, ("--requests", "100000")).start()
    monkeypatch.setattr(remote_credentials, "_FOUND", {})
    monkeypatch.setattr(remote_gateway, "_GATEWAYS", {})
    monkeypatch.setenv("LCLS_GATEWAY", f"https://localhost:{running.port}")
    monkeypatch.setenv("LCLS_IDENTITY", str(alice))
    yield running
    remote_gateway._hang_up()
    discover._OPEN.clear()
    if running.process is not None:
        running.stop()


def test_killed_while_eight_workers_reduce(gateway: Gateway) -> None:
    """The answer is right, no task is lost or repeated, no worker fails."""
    facility = gateway.facility
    files = sorted((facility.root / EXPERIMENT / "r0001.zarr" / NAME / "c").rglob("*"))
    expected = sum(int(np.fromfile(file, "<u2").sum(dtype=np.int64)) for file in files if file.is_file())

    def served() -> int:
        return sum(record["key"].startswith(f"{NAME}/c/") for record in gateway.audit())

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        before = {name: worker["pid"] for name, worker in _workers(client).items()}
        pixels = xr.open_dataset(f"lcls://{EXPERIMENT}/r0001", engine="lcls")[NAME].chunk(event=4)
        slowly = pixels.data.map_blocks(_slowly, dtype=np.int64, chunks=(4, 1, 1))
        total = client.compute(slowly.sum())
        for share in (CHUNKS // 4, CHUNKS // 2):
            until(lambda share=share: served() >= share, 60, "the reduction")
            assert not total.done()
            gateway.stop(signal.SIGKILL)
            time.sleep(0.5)  # workers meet a closed port, and wait
            gateway.start()
        assert int(total.result(timeout=100)) == expected
        assert {name: worker["pid"] for name, worker in _workers(client).items()} == before
        failed = client.run_on_scheduler(
            lambda dask_scheduler: sum(task.suspicious for task in dask_scheduler.tasks.values())
        )
        assert failed == 0


def _workers(client: Client) -> dict[str, dict[str, int]]:
    told = client.run(os.getpid)
    return {address: {"pid": pid} for address, pid in told.items()}


def _slowly(block: np.ndarray) -> np.ndarray:
    """So that the gateway dies in the middle, on any machine."""
    time.sleep(0.3)
    return block.sum(axis=(1, 2), keepdims=True, dtype=np.int64)
