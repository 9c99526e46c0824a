"""Killed, stopped, overloaded, and served from files that change: an error that says so or the right bytes."""

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from gateway_rig import Facility, Gateway, Reply, exchange, until, write_store
from test_gateway_state import Postgres, postgres  # noqa: F401

import lcls_dask
from lcls_dask.gateway.audit import AuditLog
from lcls_dask.gateway.authority import Authority
from lcls_dask.gateway.connections import Connections
from lcls_dask.gateway.limits import Usage, create_table
from lcls_dask.gateway.metrics import Metrics
from lcls_dask.gateway.reading import Reader
from lcls_dask.gateway.runs import Runs
from lcls_dask.gateway.seen import Seen
from lcls_dask.gateway.service import Service
from lcls_dask.gateway.settings import Settings
from lcls_dask.gateway.state import State
from lcls_dask.gateway.worker import listening_socket
from lcls_dask.security import create_revocations, load_identity
from lcls_dask.security.capability import read_unverified
from lcls_dask.security.introductions import accept, introduce
from lcls_dask.security.tls import client_context
from lcls_dask.stores.keys import RunKeys

HERS = "tmox42619"
BIG = "det.raw.big"  # chunks of 16 MiB
SMALL = "det.raw.small"
RUN = f"/v1/runs/{HERS}/r0005@{5:032x}"
MIB = 1 << 20


@pytest.fixture
def facility(tmp_path: Path) -> Facility:
    made = Facility(tmp_path)
    lcls_dask.simulate(made.root / HERS / "r0001", "scan", events=200, experiment=HERS, run=1)
    write_store(
        made.root / HERS / "r0005.zarr",
        HERS,
        5,
        {BIG: (8, (16, 1024, 1024)), SMALL: (1, (16, 2048)), "timestamp": (16, (16,))},
    )
    made.identity("alice")
    made.allow({HERS: ["alice"]})
    return made


@pytest.fixture
def alice(facility: Facility) -> Path:
    return facility.base / "alice"


@pytest.fixture
def gateway(facility: Facility) -> Iterator[Gateway]:
    running = Gateway(facility)
    yield running
    if running.process is not None:
        assert running.stop() == 0


def chunk(facility: Facility, name: str, number: int, dims: int = 3) -> bytes:
    return facility.root.joinpath(HERS, "r0005.zarr", name, "c", str(number), *["0"] * (dims - 1)).read_bytes()


def ask(gateway: Gateway, identity: Path, token: str, target: str) -> ssl.SSLSocket:
    """A connection on which a request was sent, and nothing read yet."""
    connection = gateway.socket(identity)
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return connection


def body_of(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[2]


def memory(pid: int) -> int:
    """Bytes of a process that no file backs."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


# --- stopping ---


def test_sigterm_lets_a_download_end(facility: Facility, gateway: Gateway, alice: Path) -> None:
    gateway.start()
    token = facility.token(alice, HERS)
    slow = ask(gateway, alice, token, f"{RUN}/zarr/{BIG}/c/0/0/0")
    received = slow.recv(1000)
    idle = gateway.socket(alice)
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGTERM)
    assert idle.recv(1) == b"", "who asks for nothing is told to go"

    def refuses() -> bool:
        try:
            socket.create_connection(("127.0.0.1", gateway.port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    until(refuses, what="refusal of new connections")
    assert gateway.process.poll() is None
    while piece := slow.recv(1 << 20):
        received += piece
    assert body_of(received) == chunk(facility, BIG, 0)
    assert gateway.wait() == 0
    slow.close()
    idle.close()


def test_sigterm_gives_up_on_who_never_reads(facility: Facility, alice: Path) -> None:
    gateway = Gateway(facility, ("--drain", "1")).start()
    stuck = ask(gateway, alice, facility.token(alice, HERS), f"{RUN}/zarr/{BIG}/c/0/0/0")
    stuck.recv(1000)
    begun = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - begun < 10
    stuck.close()


def test_a_killed_process_is_started_again(facility: Facility, gateway: Gateway, alice: Path) -> None:
    gateway.arguments = ("--processes", "2", "--connections", "6")
    gateway.start()
    token = facility.token(alice, HERS)
    held = [gateway.socket(alice) for _ in range(6)]
    before = gateway.workers()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(gateway.workers()) == 2 and before[0] not in gateway.workers(), what="a new process")
    os.kill(before[1], signal.SIGKILL)
    until(lambda: len(gateway.workers()) == 2 and not set(before) & set(gateway.workers()), what="a new process")

    def served() -> bool:
        try:
            with gateway.client(alice, token) as client:
                return client.get(f"{RUN}/zarr/{SMALL}/c/3/0").body == chunk(facility, SMALL, 3, 2)
        except OSError:
            return False

    until(served, what="an answer")  # and what the killed ones had counted is forgotten, or this were a 429
    assert "a process died and is started again" in gateway.log.read_text()
    for connection in held:
        connection.close()


def test_processes_end_with_their_supervisor(facility: Facility, gateway: Gateway) -> None:
    gateway.arguments = ("--processes", "2")
    gateway.start()
    workers = gateway.workers()
    assert gateway.stop(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), what="the end of the processes")


def test_killed_and_restarted_while_clients_read(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """Whoever retries gets the right bytes, every time; nobody ever gets wrong ones."""
    gateway.start()
    token = facility.token(alice, HERS)
    expected = [chunk(facility, SMALL, number, 2) for number in range(16)]
    stop, answers = Event(), [0] * 4

    def read(which: int) -> None:
        number = which
        while not stop.is_set():
            try:
                with gateway.client(alice, token) as client:
                    while not stop.is_set():
                        reply = client.get(f"{RUN}/zarr/{SMALL}/c/{number % 16}/0")
                        assert (reply.status, reply.body) == (200, expected[number % 16])
                        answers[which] += 1
                        number += 1
            except (OSError, HTTPException):
                continue

    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(read, which) for which in range(4)]
        try:
            for _ in range(2):
                until(lambda: min(answers) > 5)
                workers = gateway.workers()
                assert gateway.stop(signal.SIGKILL) == -signal.SIGKILL
                until(lambda gone=workers: not any(Path(f"/proc/{pid}").exists() for pid in gone))
                answers[:] = [0] * 4
                gateway.start()
            until(lambda: min(answers) > 5)
        finally:
            stop.set()
        for future in futures:
            future.result()


# --- limits ---


def test_requests_are_limited_over_all_processes(facility: Facility, gateway: Gateway, alice: Path) -> None:
    gateway.arguments = ("--processes", "2", "--requests", "20")
    gateway.start()
    token = facility.token(alice, HERS)
    replies: list[Reply] = []
    begun = time.monotonic()
    for _ in range(10):  # on connections of their own, so that both processes get some
        with gateway.client(alice, token) as client:
            replies += [client.get(f"{RUN}/zarr/{SMALL}/c/0/0") for _ in range(20)]
    seconds = time.monotonic() - begun
    good = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    assert len(good) + len(refused) == 200
    assert len(good) <= 20 * (seconds + 1) + 2
    assert refused
    assert all(reply.fields["retry-after"] == "1" for reply in refused)
    gateway.audited(decision="refused", reason="too many requests", user="alice", status=429)
    bob = facility.identity("bob")
    facility.allow({HERS: ["alice", "bob"]})
    with gateway.client(bob, facility.token(bob, HERS)) as client:
        assert until(lambda: client.get(f"/v1/runs/{HERS}/r0005").status == 200), "others are not held up"


def test_connections_are_limited(facility: Facility, gateway: Gateway, alice: Path) -> None:
    gateway.arguments = ("--processes", "2", "--connections", "3")
    gateway.start()
    health = b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n"
    held = [gateway.socket(alice) for _ in range(3)]
    for connection in held:
        connection.sendall(health)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    with gateway.socket(alice) as fourth:
        received = exchange(fourth, health)
    assert received.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nRetry-After: 1\r\n" in received
    held.pop().close()

    def fits() -> bool:
        with gateway.socket(alice) as again:
            again.sendall(health)
            return again.recv(15) == b"HTTP/1.1 200 OK"

    until(fits)
    for connection in held:
        connection.close()


def test_bytes_on_their_way_are_limited(facility: Facility, gateway: Gateway, alice: Path) -> None:
    gateway.arguments = ("--processes", "2", "--inflight", "40")
    gateway.start()
    token = facility.token(alice, HERS)
    held = [ask(gateway, alice, token, f"{RUN}/zarr/{BIG}/c/0/0/0") for _ in range(2)]
    for connection in held:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    with ask(gateway, alice, token, f"{RUN}/zarr/{BIG}/c/1/0/0") as third:
        assert third.recv(12) == b"HTTP/1.1 429"
    with gateway.client(alice, token) as client:
        assert client.get(f"{RUN}/zarr/{SMALL}/c/1/0").status == 200, "a small answer still fits"
    for connection in held:
        connection.close()
    with gateway.client(alice, token) as client:
        assert until(lambda: client.get(f"{RUN}/zarr/{BIG}/c/1/0/0").status == 200)


def test_memory_is_bounded_by_chunks_in_flight(facility: Facility, gateway: Gateway, alice: Path) -> None:
    gateway.start()
    token = facility.token(alice, HERS)
    (worker,) = gateway.workers()
    with gateway.client(alice, token) as client:
        assert client.get(f"{RUN}/zarr/{BIG}/c/0/0/0").status == 200
    idle = memory(worker)
    clients = 12
    held = [ask(gateway, alice, token, f"{RUN}/zarr/{BIG}/c/{number % 2}/0/0") for number in range(clients)]
    for connection in held:
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    assert memory(worker) - idle <= 64 * MIB + 2 * clients * 16 * MIB
    for connection in held:
        connection.close()
    until(lambda: memory(worker) - idle <= 64 * MIB, what="giving back the memory")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def churn(gateway: Gateway, identity: Path, count: int) -> None:
    """Connections one after the other: half give up before TLS, a sixth after it, a third ask and are answered."""
    context = client_context(load_identity(identity))
    health = b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n"
    for number in range(count):
        if number % 2 == 0:
            socket.create_connection(("127.0.0.1", gateway.port), timeout=30).close()
            continue
        with gateway.socket(None, context) as connection:
            if number % 3:
                connection.sendall(health)
                assert connection.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "count", [10_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(14_400)])]
)
def test_connections_in_sequence_leak_nothing(facility: Facility, gateway: Gateway, alice: Path, count: int) -> None:
    gateway.arguments = ("--requests", "1000000")
    gateway.start()
    (worker,) = gateway.workers()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: churn(gateway, alice, 250), range(4)))
        files, size = descriptors(worker), memory(worker)
        list(threads.map(lambda _: churn(gateway, alice, (count - 1000) // 4), range(4)))
    until(lambda: descriptors(worker) <= files + 4, what="closing of all descriptors")
    assert memory(worker) - size < 24 * MIB
    assert gateway.workers() == [worker], "the same process has served them all"


# --- files that change ---


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


# --- the rest of the world ---


def test_nothing_is_sent_that_cannot_be_audited(facility: Facility, gateway: Gateway, alice: Path) -> None:
    gateway.start()
    (worker,) = gateway.workers()
    target = f"{RUN}/zarr/{SMALL}/c/0/0"
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        assert client.get(target).status == 200
        unlimited = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (1, unlimited[1]))  # as a full disk
        try:
            reply = client.get(target)
            assert (reply.status, reply.fields["retry-after"]) == (503, "1")
        finally:
            resource.prlimit(worker, resource.RLIMIT_FSIZE, unlimited)
        assert client.get(target).body == chunk(facility, SMALL, 0, 2)
    assert all(isinstance(record, dict) for record in gateway.audit())


def test_the_gateways_certificate_is_renewed_under_load(facility: Facility, gateway: Gateway, alice: Path) -> None:
    gateway.start()
    context = client_context(load_identity(alice))

    def serial() -> str:
        with gateway.socket(None, context) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            told = connection.getpeercert()
            assert told is not None
            return str(told["serialNumber"]).lstrip("0").lower()

    before = serial()
    with gateway.client(alice, facility.token(alice, HERS)) as kept:
        assert kept.get(f"/v1/runs/{HERS}/r0005").status == 200
        subject = (facility.gateway / "id.crt").read_bytes()
        signed = introduce(facility.base / "site", subject, hosts=("localhost", "127.0.0.1"))
        accept(facility.gateway, json.dumps(signed))
        after = until(lambda: (now := serial()) != before and now)
        assert after == load_identity(facility.gateway).peer.serial
        assert kept.get(f"/v1/runs/{HERS}/r0005").status == 200, "who is connected stays connected"


def test_a_certificate_that_could_not_be_taken_is_taken_once_it_is_mended(
    facility: Facility, gateway: Gateway, alice: Path
) -> None:
    gateway.start()
    subject = (facility.gateway / "id.crt").read_bytes()
    signed = introduce(facility.base / "site", subject, hosts=("localhost", "127.0.0.1"))
    renewed = accept(facility.gateway, json.dumps(signed))
    renewed.certificate_file.chmod(0o666)
    until(lambda: "can be written by others" in gateway.log.read_text(), what="a warning")
    renewed.certificate_file.chmod(0o644)

    def presented() -> bytes | None:
        with gateway.socket(alice) as connection:
            return connection.getpeercert(binary_form=True)

    until(lambda: presented() == renewed.certificate.public_bytes(Encoding.DER), what="the new certificate")
    assert gateway.log.read_text().count("can be written by others") == 1


def test_an_issuers_key_that_is_withdrawn(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """Tokens of an issuer whose key was stolen: good until somebody takes the public key away, not until a restart."""
    gateway.start()
    public = facility.gateway / "known_issuers" / "issuer.pub"
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        assert client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 200
        public.rename(facility.base / "withdrawn")
        begun = time.monotonic()
        until(lambda: client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 401)
        assert time.monotonic() - begun < 5
        gateway.audited(decision="refused", reason="bad signature", user="alice")
        (facility.base / "withdrawn").rename(public)
        until(lambda: client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 200)


def test_a_policy_source_that_fails_hides_no_experiments(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """To answer that she has none would be taken for the truth."""
    (facility.base / "portal.py").write_text(
        "class Portal:\n    version = 1\n    def operations(self, user, experiment): raise TimeoutError\n"
        "    experiments = operations\n"
    )
    facility.policy.write_text(facility.policy.read_text() + '[source]\nuse = "portal:Portal"\n')
    gateway.environment = {"PYTHONPATH": str(facility.base)}
    gateway.start()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        for target in ("/v1/runs", f"/v1/runs/{HERS}", f"{RUN}/zarr/{SMALL}/c/0/0"):
            reply = client.get(target)
            assert (reply.status, reply.fields["retry-after"]) == (503, "1")
    gateway.audited(decision="refused", reason="policy unavailable", operation="runs", status=503)


def test_what_is_refused_for_its_number_does_not_fill_the_disk(
    facility: Facility, gateway: Gateway, alice: Path
) -> None:
    gateway.arguments = ("--requests", "5")
    gateway.start()
    token = facility.token(alice, HERS)
    with gateway.client(alice, token) as client:
        statuses = [client.get(f"{RUN}/zarr/{SMALL}/c/{number}/0").status for number in range(400)]
    assert statuses.count(429) > 300
    until(lambda: sum(r["count"] for r in gateway.audit() if r["status"] == 429) == statuses.count(429))
    assert len(gateway.audit()) < 100


def test_a_user_within_her_limit_does_not_take_all_descriptors(
    facility: Facility, gateway: Gateway, alice: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        gateway.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    token = facility.token(alice, HERS)
    held = [gateway.socket(alice) for _ in range(300)]
    try:
        with gateway.client(alice, token) as client:
            assert client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 200
    finally:
        for connection in held:
            connection.close()
    assert "Too many open files" not in gateway.log.read_text()


def test_health_and_deadlines_need_no_disk(facility: Facility, alice: Path) -> None:
    """All threads that read are stuck: who asks for the health is answered at once."""
    settings = Settings(
        facility.root, facility.gateway, facility.policy, facility.revocations, facility.base / "audit",
        f"sqlite:///{facility.base / 'gateway.db'}",
    )  # fmt: skip
    shared, table, seen = facility.base / "shared", facility.base / "usage", facility.base / "seen"
    create_revocations(shared)
    create_table(table, 1)
    seen.mkdir()
    stuck, pool = Event(), ThreadPoolExecutor(2)
    for _ in range(2):
        pool.submit(stuck.wait)

    async def serve() -> bytes:
        authority, usage = Authority(settings, shared), Usage(table, 0, 1, settings.limits)
        audit, state = AuditLog(settings.audit), State(settings.state)
        state.migrate()
        reading = Reader(Runs(facility.root, Seen(seen)), authority.authoriser, state)
        service = Service(reading, authority.authoriser, audit, usage, pool, pool, 2)
        server = Connections(service, authority.context(), usage, Metrics(), settings.timeouts, authority.revoked)
        sock = listening_socket("127.0.0.1", 0)
        server.add_sockets([sock])
        reader, writer = await asyncio.open_connection(
            *sock.getsockname(), ssl=client_context(load_identity(alice)), server_hostname="localhost"
        )
        writer.write(f"GET {RUN} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        other, more = await asyncio.open_connection(
            *sock.getsockname(), ssl=client_context(load_identity(alice)), server_hostname="localhost"
        )
        more.write(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
        answer = await asyncio.wait_for(other.readuntil(b"}\n"), 20)
        with pytest.raises(TimeoutError):  # while the other is not answered
            await asyncio.wait_for(reader.read(1), 0.1)
        stuck.set()
        assert await asyncio.wait_for(reader.readexactly(15), 20) == b"HTTP/1.1 200 OK"
        for stream in (writer, more):
            stream.close()
        await server.drain()
        audit.close()
        state.close()
        return answer

    token = facility.token(alice, HERS)
    try:
        assert asyncio.run(serve()).endswith(b'{"status":"ok"}\n')
    finally:
        stuck.set()
        pool.shutdown()


def test_what_other_gateways_revoked_stays_revoked(
    facility: Facility,
    gateway: Gateway,
    alice: Path,
    postgres: Postgres,  # noqa: F811
) -> None:
    """Also in a process that starts anew while the database is away."""
    gateway.arguments = ("--state", postgres.url)
    gateway.start()
    token = facility.token(alice, HERS)
    target = f"{RUN}/zarr/{SMALL}/c/0/0"
    (identifier,) = read_unverified(token).revocation_ids

    def status() -> int:
        try:
            with gateway.client(alice, token) as client:
                return client.get(target).status
        except OSError:
            return 0

    assert status() == 200
    other = State(postgres.url)
    other.share_revocations([(identifier, "now", "by another gateway")])
    other.close()
    begun = time.monotonic()
    until(lambda: status() == 401)
    assert time.monotonic() - begun < 5
    postgres.stop()
    try:
        (worker,) = gateway.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: gateway.workers() not in ([], [worker]), what="a new process")
        assert until(status) == 401
    finally:
        postgres.start()


def test_serving_goes_on_while_postgresql_is_away(
    facility: Facility,
    gateway: Gateway,
    alice: Path,
    postgres: Postgres,  # noqa: F811
) -> None:
    gateway.arguments = ("--state", postgres.url)
    gateway.start()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        table = client.get(f"/v1/runs/{HERS}").json
        postgres.stop()
        try:
            begun = time.monotonic()
            while time.monotonic() - begun < 10:
                assert client.get(f"{RUN}/zarr/{SMALL}/c/7/0").body == chunk(facility, SMALL, 7, 2)
                time.sleep(0.2)
            assert client.get(f"/v1/runs/{HERS}").json == table
        finally:
            postgres.start()
        state = State(postgres.url)
        expected = sum(record["operation"] == "key" for record in gateway.audit())
        mine = gateway.audit()[0]["certificate"]

        def indexed() -> bool:
            rows = [row for row in state.audit(user="alice") if row["certificate"] == mine]
            return sum(row["operation"] == "key" for row in rows) >= expected

        until(indexed, 30, "the index catching up")
        state.close()
    log = gateway.log.read_text()
    assert "the audit is not indexed for now" in log
    assert "the audit is indexed again" in log


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [("--policy", "[experiments", "no TOML"), ("--state", "nonsense://", "URL"), ("--issuer", "x", "public key")],
)
def test_what_cannot_start_says_why_in_one_line(
    facility: Facility, tmp_path: Path, argument: str, value: str, said: str
) -> None:
    if argument != "--state":
        bad = tmp_path / "bad"
        bad.write_text(value)
        bad.chmod(0o644)
        value = str(bad)
    call = ["serve", "--root", str(facility.root), "--identity", str(facility.gateway), "--port", "0"]
    call += ["--policy", str(facility.policy), "--revocations", str(facility.revocations)]
    call += ["--audit", str(tmp_path / "audit"), "--state", f"sqlite:///{tmp_path / 'x.db'}", argument, value]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; from lcls_dask.cli import main; sys.exit(main({call!r}))"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
