"""A run through the gateway by xarray and Dask, over mutual TLS, against a bare TLS socket for the same bytes."""

import os
import socket
from pathlib import Path

from lcls_dask.security import load_identity
from lcls_dask.security.tls import client_context
from tests.gateway_rig import Facility

from .served import CHUNK, FRAME, NAME, served_run, serving
from .timing import Setting, interleaved, ratio, show

#: Sends what is in the files of a folder, which it holds in memory, to whoever connects with a certificate.
SENDER = """
import pathlib, socket, sys
from lcls_dask.security import load_identity, server_context
context = server_context(load_identity(sys.argv[1]))
chunks = [path.read_bytes() for path in pathlib.Path(sys.argv[2]).rglob("c/*/0/0")]
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    with context.wrap_socket(server.accept()[0], server_side=True) as connection:
        for chunk in chunks:
            connection.sendall(chunk)
"""


def run(setting: Setting) -> None:
    """Measure."""
    frames = setting.size(512, 16)
    size = frames * FRAME
    with served_run(setting, frames) as run, serving(SENDER, run.facility.gateway, run.store / NAME) as port:
        timings = interleaved(
            setting.repeats,
            {
                "bare TLS socket, recv_into": lambda: received(run.facility, run.identity, port, size),
                "lcls_dask, open and sum, threads": run.reduced,
                "lcls_dask, open and load": run.loaded,
            },
        )
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
