"""Large bodies to slow clients: they arrive whole, though their memory is used again; nobody is waited for in vain."""

import asyncio
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gateway_rig import Facility
from tornado.iostream import StreamClosedError

from lcls_dask.gateway.connections import _Stream
from lcls_dask.security import load_identity, server_context
from lcls_dask.security.tls import client_context

STEP = 1 << 20


@asynccontextmanager
async def streamed(facility: Facility) -> AsyncIterator[tuple[_Stream, ssl.SSLSocket]]:
    """A stream, and the client at its other end, which does not read unless it is made to."""
    loop = asyncio.get_running_loop()
    context = client_context(load_identity(facility.identity("alice")))
    with socket.create_server(("127.0.0.1", 0)) as server:
        plain = socket.create_connection(server.getsockname())
        shaken = loop.run_in_executor(None, lambda: context.wrap_socket(plain, server_hostname="localhost"))
        accepted, _ = server.accept()
        accepted.setblocking(False)
        server_side = server_context(load_identity(facility.gateway))
        wrapped = server_side.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        stream = _Stream(wrapped)
        await stream.wait_for_handshake()
        client = await shaken
        try:
            yield stream, client
        finally:
            stream.close()
            client.close()


async def blocked(stream: _Stream, memory: bytearray) -> "asyncio.Task[None]":
    """A task that sends until the client would have to read, and waits."""

    async def send() -> None:
        while True:
            await stream.send(memoryview(memory))

    task = asyncio.create_task(send())
    while not stream.writing():
        await asyncio.sleep(0.01)
        assert not task.done()
    return task


def test_what_is_overwritten_afterwards_arrives_as_it_was(tmp_path: Path) -> None:
    def read_slowly(client: ssl.SSLSocket, size: int, found: "hashlib._Hash") -> None:
        while size:
            part = client.recv(300_000)
            found.update(part)
            size -= len(part)
            time.sleep(0.005)

    async def check() -> None:
        async with streamed(Facility(tmp_path)) as (stream, client):
            sent, found, memory = hashlib.sha256(), hashlib.sha256(), bytearray(STEP)
            reader = threading.Thread(target=read_slowly, args=(client, 12 * STEP, found))
            reader.start()
            waited = False
            for step in range(12):
                memory[:] = bytes([step]) * STEP
                sent.update(memory)
                sending = asyncio.create_task(stream.send(memoryview(memory)))
                await asyncio.sleep(0)
                waited |= stream.writing()
                await sending
            await asyncio.to_thread(reader.join)
            assert waited  # or this has tested nothing
            assert found.digest() == sent.digest()

    asyncio.run(check())


@pytest.mark.parametrize("end", ["closed here", "client gone", "cancelled"])
def test_who_waits_for_a_client_is_told(tmp_path: Path, end: str) -> None:
    async def check() -> None:
        async with streamed(Facility(tmp_path)) as (stream, client):
            task = await blocked(stream, bytearray(STEP))
            if end == "closed here":  # as where its patience has ended
                stream.close()
            elif end == "client gone":
                client.close()
            else:
                task.cancel()
            with pytest.raises(asyncio.CancelledError if end == "cancelled" else StreamClosedError):
                await asyncio.wait_for(task, 20)

    asyncio.run(check())
