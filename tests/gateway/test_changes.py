"""Files that change while they are served: an error that says so or the right bytes."""

import os
import shutil
import signal
import ssl
from pathlib import Path

import numpy as np
import pytest
from gateway_rig import Facility, Gateway, Reply, until
from served_store import BIG, HERS, MIB, RUN, ask, body_of, chunk
from test_state import Postgres, postgres  # noqa: F401

import lcls_dask
from lcls_dask.stores.keys import RunKeys


def stream_of(facility: Facility) -> Path:
    (stream, *_) = sorted((facility.root / HERS / "r0001").glob("*-s000-c000.xtc2"))
    return stream


@pytest.fixture
def simulated(facility: Facility) -> tuple[str, dict[str, bytes]]:
    """Where run 1 is, pinned, and what its chunks hold."""
    source = lcls_dask.open_run(facility.root / HERS / "r0001").source
    keys = RunKeys(source)
    names = [name for name, variable in source.index.nodes["/"].variables.items() if variable.nbytes]
    found = {}
    for name in names:
        dims = len(source.index.nodes["/"].variables[name].shape)
        key = "/".join([name, "c", *["0"] * dims])
        data = keys.read(key)
        assert data is not None
        found[key] = data.tobytes()
    return f"/v1/runs/{HERS}/r0001@{source.index.snapshot}", found


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def overwrite_in_the_middle(path: Path) -> None:
    """The same size, the same first and last bytes: only the time of writing tells."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(4096))


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(os.urandom(path.stat().st_size))
    other.replace(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [truncate, overwrite_in_the_middle, replace, remove])
def test_a_stream_that_changes_while_it_is_served(
    facility: Facility, gateway: Gateway, alice: Path, simulated: tuple[str, dict[str, bytes]], change: object
) -> None:
    run, expected = simulated
    gateway.start()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        for key, data in expected.items():
            assert client.get(f"{run}/zarr/{key}").body == data
        assert callable(change)
        change(stream_of(facility))
        for _ in range(2):
            for key in expected:
                reply = client.get(f"{run}/zarr/{key}")
                assert reply.status in (410, 500, 503), (key, reply)
                assert "\n" not in reply.json["error"].strip()
        told = gateway.audited(operation="key", reason="snapshot gone", status=410, user="alice")
        assert (told["decision"], told["bytes"]) == ("refused", 0)


@pytest.mark.parametrize("change", [Path.touch, overwrite_in_the_middle])
def test_a_run_that_was_written_to_is_served_again_under_another_name(
    facility: Facility, gateway: Gateway, alice: Path, simulated: tuple[str, dict[str, bytes]], change: object
) -> None:
    """Without a signal, by all processes alike; and never under the name of what it was, whose bytes clients keep."""
    run, expected = simulated
    plain = run.partition("@")[0]
    gateway.arguments = ("--processes", "2")
    gateway.start()
    token = facility.token(alice, HERS)

    def ask(target: str) -> Reply:  # on a connection of its own, so that either process may get it
        with gateway.client(alice, token) as client:
            return client.get(target)

    key = next(iter(expected))
    for _ in range(8):
        assert ask(f"{run}/zarr/{key}").body == expected[key]
    assert callable(change)
    change(stream_of(facility))
    name = until(lambda: (found := ask(plain).json["snapshot"]) not in run and found, what="another snapshot")
    for _ in range(8):
        reply = ask(f"{run}/zarr/{key}")
        assert reply.status == 410
        assert "ask for the run again" in reply.json["error"]
    now = lcls_dask.open_run(facility.root / HERS / "r0001").source
    for _ in range(8):
        reply = ask(f"{plain}@{name}/zarr/{key}")
        assert (reply.status, reply.body) == (200, RunKeys(now).read(key))
    until(lambda: {ask(plain).json["snapshot"] for _ in range(8)} == {name}, what="one name for all processes")
    (row,) = [row for row in ask(f"/v1/runs/{HERS}").json["runs"] if row["run"] == 1]
    assert row["snapshot"] == name
    # an operator says that it is as it should be
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGHUP)
    until(lambda: {ask(f"{run}/zarr/{key}").status for _ in range(8)} == {200}, what="the name of the files again")


@pytest.mark.parametrize("change", [truncate, overwrite_in_the_middle, replace, remove])
def test_a_chunk_of_a_store_that_changes(facility: Facility, gateway: Gateway, alice: Path, change: object) -> None:
    gateway.start()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        assert client.get(f"{RUN}/zarr/{BIG}/c/0/0/0").body == chunk(facility, BIG, 0)
        assert callable(change)
        change(facility.root / HERS / "r0005.zarr" / BIG / "c" / "1" / "0" / "0")
        for _ in range(2):
            assert client.get(f"{RUN}/zarr/{BIG}/c/1/0/0").status in (410, 500)
        assert client.get(f"{RUN}/zarr/{BIG}/c/0/0/0").body == chunk(facility, BIG, 0), "the others are as they were"


@pytest.mark.parametrize("change", [truncate, overwrite_in_the_middle, replace, remove])
def test_a_chunk_that_changes_while_it_is_sent(
    facility: Facility, gateway: Gateway, alice: Path, change: object
) -> None:
    """Its parts are read one after the other: what follows the change is not sent, and the audit says why."""
    gateway.start()
    token, target = facility.token(alice, HERS), f"{RUN}/zarr/{BIG}/c/1/0/0"
    expected = chunk(facility, BIG, 1)
    with gateway.client(alice, token) as client:
        assert client.get(target).body == expected  # its digest is known from now on
    with ask(gateway, alice, token, target) as connection:
        received = connection.recv(1000)
        assert callable(change)
        change(facility.root / HERS / "r0005.zarr" / BIG / "c" / "1" / "0" / "0")
        try:
            while piece := connection.recv(1 << 20):
                received += piece
        except (ConnectionError, ssl.SSLError):
            pass
    body = body_of(received)
    assert len(body) < len(expected)
    assert expected.startswith(body)
    told = gateway.audited(operation="connect", user="alice")
    assert told["reason"] in ("snapshot gone", "damaged")


@pytest.mark.parametrize("kept", [0, 5 * MIB + 4096])
def test_a_chunk_that_has_left_the_memory(facility: Facility, gateway: Gateway, alice: Path, kept: int) -> None:
    """What is in memory is sent at once, what follows is read by threads: the same bytes."""
    path = facility.root / HERS / "r0005.zarr" / BIG / "c" / "1" / "0" / "0"
    expected = chunk(facility, BIG, 1)
    gateway.start()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        assert client.get(f"{RUN}/zarr/{BIG}/c/1/0/0").body == expected  # its digest is known from now on
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not on the disk yet stays
            os.posix_fadvise(file.fileno(), kept, 0, os.POSIX_FADV_DONTNEED)
        for _ in range(2):
            assert client.get(f"{RUN}/zarr/{BIG}/c/1/0/0").body == expected


def test_a_run_that_grows_keeps_its_snapshots(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """A snapshot of a run that is being written is served, and stays the same, while the run grows and ends."""
    whole = facility.base / "whole"
    lcls_dask.simulate(whole, "scan", events=300, experiment=HERS, run=9)
    live = facility.root / HERS / "r0009"
    shutil.copytree(whole, live)
    streams = [path for path in live.rglob("*.xtc2")]
    cut = {}
    for path in streams:
        size = path.stat().st_size
        cut[path] = path.with_name(path.name + ".inprogress")
        path.rename(cut[path])
        with cut[path].open("r+b") as file:
            file.truncate(size * 2 // 3)
    gateway.start()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        told = client.get(f"/v1/runs/{HERS}/r0009").json
        assert told["state"] == "live"
        pinned = f"/v1/runs/{HERS}/r0009@{told['snapshot']}"
        before = client.get(f"{pinned}/zarr/timestamp/c/0")
        assert before.status == 200
        for path in streams:
            original = whole / path.relative_to(live)
            with cut[path].open("ab") as file:
                file.write(original.read_bytes()[cut[path].stat().st_size :])
        assert client.get(f"{pinned}/zarr/timestamp/c/0").body == before.body
        for path in streams:
            cut[path].rename(path)
        assert client.get(f"{pinned}/zarr/timestamp/c/0").body == before.body
        now = until(lambda: (d := client.get(f"/v1/runs/{HERS}/r0009").json)["state"] == "ended" and d)
        assert (now["events"], now["snapshot"] != told["snapshot"]) == (300, True)
        stamps = client.get(f"/v1/runs/{HERS}/r0009@{now['snapshot']}/zarr/timestamp/c/0").body
        earlier = np.frombuffer(before.body, "u8")[: told["events"]]
        assert np.isin(earlier, np.frombuffer(stamps, "u8")).all()
