"""A run through the gateway by xarray and Dask, over mutual TLS, against a bare TLS socket for the same bytes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import xarray as xr

from lcls_dask.formats import discover
from lcls_dask.security import load_identity
from lcls_dask.security.tls import client_context
from tests.gateway_rig import Facility, Gateway, write_store

from .timing import Setting, interleaved, ratio, show

EXPERIMENT, NAME = "bench0001", "det.raw.big"
CHUNK = 16 << 20

#: Sends as many chunks as it was told to, to whoever connects with a certificate; nothing else.
_SERVER = """
import socket, sys
from lcls_dask.security import load_identity, server_context
context, chunk = server_context(load_identity(sys.argv[1])), bytes(range(256)) * (int(sys.argv[3]) // 256)
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    with context.wrap_socket(server.accept()[0], server_side=True) as connection:
        for _ in range(int(sys.argv[2])):
            connection.sendall(chunk)
"""


def run(setting: Setting) -> None:
    """Measure."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # a server and its client are two
    facility = Facility(setting.directory)
    frames = setting.size(512, 16)
    shape = (frames, 1024, 1024)
    shapes = {NAME: (8, shape), "timestamp": (frames, (frames,))}
    write_store(facility.root / EXPERIMENT / "r0001.zarr", EXPERIMENT, 1, shapes)
    alice = facility.identity("alice")
    facility.allow({EXPERIMENT: ["alice"]})
    token = alice / "token"
    token.touch(0o600)
    token.write_text(facility.token(alice, EXPERIMENT, lifetime=3000))
    limits = ("--requests", "1e9", "--inflight", "1e6", "--connections", "100000")
    gateway = Gateway(facility, limits).start()
    settings = {"lcls.gateway": f"https://localhost:{gateway.port}", "lcls.identity": str(alice), "lcls.direct": False}
    size = frames << 21
    try:
        with dask.config.set(settings), bare_server(facility, size // CHUNK) as port:
            uri = f"lcls://{EXPERIMENT}/r0001"
            there = xr.open_dataset(facility.root / EXPERIMENT / "r0001.zarr", engine="lcls", chunks={})[NAME]
            expected = int(there.sum().compute())
            assert reduced(uri) == expected
            timings = interleaved(
                setting.repeats,
                {
                    "bare TLS socket, recv_into": lambda: received(facility, alice, port, size),
                    "lcls_dask, open and sum, threads": lambda: reduced(uri),
                    "lcls_dask, open and load": lambda: loaded(uri),
                },
            )
    finally:
        gateway.stop()
    print(f"  {size / 1e9:.2f} GB in chunks of 16 MiB, {os.cpu_count()} cores, client and server on one machine")
    for name, timing in timings.items():
        show(name, timing, size=size)
    bare = timings["bare TLS socket, recv_into"]
    ratio(
        "throughput of open and sum over bare TLS",
        bare,
        timings["lcls_dask, open and sum, threads"],
        0.8,
        at_least=True,
    )
    ratio("throughput of open and load over bare TLS", bare, timings["lcls_dask, open and load"])


def reduced(uri: str) -> int:
    """The sum of all pixels, by Dask's threads."""
    discover._OPEN.clear()
    return int(xr.open_dataset(uri, engine="lcls", chunks={})[NAME].sum().compute(scheduler="threads"))


def loaded(uri: str) -> int:
    """All pixels in one array."""
    discover._OPEN.clear()
    return int(xr.open_dataset(uri, engine="lcls")[NAME].load().nbytes)


def received(facility: Facility, identity: Path, port: int, size: int) -> None:
    """The same number of bytes into one buffer."""
    context = client_context(load_identity(identity))
    buffer = memoryview(bytearray(CHUNK))
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        done = 0
        while done < size:
            got = connection.recv_into(buffer[done % CHUNK :])
            if not got:
                raise RuntimeError("the bare server hung up")
            done += got


@contextmanager
def bare_server(facility: Facility, chunks: int) -> Iterator[int]:
    """Port of a server that sends so many chunks."""
    command = [sys.executable, "-c", _SERVER, str(facility.gateway), str(chunks), str(CHUNK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(30)
