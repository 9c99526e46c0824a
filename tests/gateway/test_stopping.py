"""Stopped, killed and started again: downloads end, clients go on."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from threading import Event

import pytest
from gateway_rig import Facility, Gateway, until
from served_store import BIG, HERS, RUN, SMALL, ask, body_of, chunk
from test_state import Postgres, postgres  # noqa: F401


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


@pytest.mark.long  # quick ones: restarted_in_the_middle, killed_while_eight_workers_reduce
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
