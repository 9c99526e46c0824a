"""Limits of requests, connections, bytes and memory, over all processes."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gateway_rig import Facility, Gateway, Reply, exchange, until
from served_store import BIG, HERS, MIB, RUN, SMALL, ask, memory
from test_state import Postgres, postgres  # noqa: F401

from lcls_dask.gateway.connections import MOST_STRANGERS
from lcls_dask.security import load_identity
from lcls_dask.security.tls import client_context


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


def test_handshakes_that_never_end_are_limited(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """Who has no certificate may connect, but cannot hold all descriptors: the oldest go first, and it is audited."""
    gateway.start()
    (worker,) = gateway.workers()
    before = descriptors(worker)
    strangers = [socket.create_connection(("127.0.0.1", gateway.port), timeout=30) for _ in range(2 * MOST_STRANGERS)]
    try:
        with gateway.client(alice, facility.token(alice, HERS)) as client:
            assert client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 200
        assert strangers[0].recv(1) == b"", "the oldest was told to go"
        assert descriptors(worker) <= before + MOST_STRANGERS + 8
    finally:
        for stranger in strangers:
            stranger.close()
    gateway.audited(operation="connect", decision="refused", reason="too many handshakes")
    until(lambda: descriptors(worker) <= before + 4, what="closing of all descriptors")


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
    "count", [2_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(14_400)])]
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
