"""Bodies go out in full packets, and nothing is held back when one has ended."""

import asyncio
import socket
import ssl

import pytest
from tornado.iostream import StreamClosedError

from lcls_dask.gateway.connections import _CORK, _Stream


@pytest.mark.skipif(_CORK is None, reason="only Linux has TCP_CORK: full packets are NOT tested")
def test_a_cork_is_taken_off() -> None:
    async def check() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            plain, _ = server.accept()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            stream = _Stream(context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False))

            def corked() -> int:
                assert _CORK is not None
                return stream.socket.getsockopt(socket.IPPROTO_TCP, _CORK)

            with stream.full_packets():
                assert corked() == 1
            assert corked() == 0
            with pytest.raises(ConnectionError), stream.full_packets():
                raise ConnectionError
            assert corked() == 0
            with stream.full_packets():
                stream.close()
            # the client went while its answer was made
            with pytest.raises(StreamClosedError), stream.full_packets():
                pytest.fail("there is nobody to send to")

    asyncio.run(check())
