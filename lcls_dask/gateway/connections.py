"""Connections: the TLS handshake, one request after the other, deadlines, and the end of what has expired."""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from tornado.ioloop import IOLoop
from tornado.iostream import SSLIOStream, StreamClosedError

from ..errors import AccessError, LclsError
from ..security import Peer, peer_of
from .limits import Usage
from .metrics import Metrics
from .request import END, MOST_HEAD, BadRequestError, Heads, Request
from .response import Response, error_response
from .runs import status_of
from .service import Client, Service
from .settings import Timeouts

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between looks at certificates and deadlines.
SWEEP = 2.0
#: A body up to this size goes out together with its head.
_SMALL = 64 << 10
_READ = 16 << 10
#: Bytes after which other connections have their turn.
_TURN = 4 << 20
#: Connections that are accepted before others have their turn; seconds without, where there is no descriptor for one.
_CALLERS, _PAUSE = 128, 0.1
#: Linux alone can be told that more is to come.
_CORK: int | None = getattr(socket, "TCP_CORK", None)
#: Connections of a process that may be in their handshake; to begin one takes no certificate.
MOST_STRANGERS = 256


class _Stream(SSLIOStream):
    """Tornado's, which reads when there is something to read, and sends without further ado while the client is fast.

    Tornado itself tries to read before it waits: for a client that waits for its answer before it asks again always
    in vain, at a tenth of the time that a small request takes.
    """

    _told = False
    _writable: asyncio.Future[None] | None = None

    def _handle_read(self) -> None:
        self._told = True
        super()._handle_read()

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        if not self._told and not self.socket.pending():
            return None  # the loop tells again what is left
        self._told = False
        return super().read_from_fd(buf)

    @contextmanager
    def full_packets(self) -> Iterator[None]:
        """Have the kernel fill its packets: each of TLS's records would else travel alone, which costs the receiver.

        Raises
        ------
        StreamClosedError
        """
        if self.closed():  # the client has gone while its answer was made
            raise StreamClosedError
        if _CORK is None:
            yield
            return
        self.socket.setsockopt(socket.IPPROTO_TCP, _CORK, 1)
        try:
            yield
        finally:
            if not self.closed():
                self.socket.setsockopt(socket.IPPROTO_TCP, _CORK, 0)

    async def send(self, data: memoryview) -> None:
        """Send what may be overwritten afterwards, while nothing else waits to be written.

        Raises
        ------
        StreamClosedError
        """
        while not self._sent(data):
            await self._until_writable()

    def _sent(self, data: memoryview) -> bool:
        """Give bytes to TLS, which takes all of them, or wants to be given them again."""
        if self.closed():
            raise StreamClosedError
        try:
            self.socket.send(data)
        except ssl.SSLWantWriteError:
            return False
        except OSError as error:
            # with its traceback the stream, which keeps it, would be kept by it, and the memory of the body too
            self.close(exc_info=error.with_traceback(None))
            raise StreamClosedError(error) from error
        return True

    async def _until_writable(self) -> None:
        """Wait until the client has taken some of what was sent, or has gone."""
        self._writable = asyncio.get_running_loop().create_future()
        self._add_io_state(IOLoop.WRITE)
        await self._writable

    def writing(self) -> bool:
        return self._writable is not None or super().writing()

    def _handle_write(self) -> None:
        if self._writable is None:
            super()._handle_write()
        else:
            self._wake()

    def _signal_closed(self) -> None:
        self._wake()
        super()._signal_closed()

    def _wake(self) -> None:
        waiting, self._writable = self._writable, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


@dataclass(eq=False)
class Connection:
    """A connection and what it is waiting for.

    Attributes
    ----------
    stream : SSLIOStream
    address : str
    deadline : float
        Of the monotonic clock: when its patience ends.
    waiting : str
        For what, as the audit says it.
    busy : bool
        Whether a request is being answered.
    client : Client or None
        None until the handshake is over.
    heads : Heads
    """

    stream: _Stream
    address: str
    deadline: float
    waiting: str = "handshake"
    busy: bool = False
    client: Client | None = None
    heads: Heads = field(default_factory=Heads)

    def wait(self, what: str, seconds: float) -> None:
        """Give it so many seconds from now."""
        self.waiting, self.deadline = what, time.monotonic() + seconds


class Connections:
    """The TLS listener of one process.

    Parameters
    ----------
    service : Service
    context : ssl.SSLContext
    usage : Usage
    metrics : Metrics
    timeouts : Timeouts
    revoked : callable
        Whether a peer's certificate is revoked.
    """

    def __init__(
        self,
        service: Service,
        context: ssl.SSLContext,
        usage: Usage,
        metrics: Metrics,
        timeouts: Timeouts,
        revoked: Callable[[Peer], bool],
    ) -> None:
        self._context, self._service, self._usage, self._metrics = context, service, usage, metrics
        self._timeouts, self._revoked = timeouts, revoked
        self._open: set[Connection] = set()
        self._strangers: dict[Connection, None] = {}  # the oldest first
        self._draining = self._served = False
        self._listening: list[socket.socket] = []
        self._crowded = False
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, listening: socket.socket) -> None:
        """Accept connections, until `drain`."""
        self._listening.append(listening)
        self._resume(listening)

    def use(self, context: ssl.SSLContext) -> None:
        """Take another certificate, for connections that begin from now on."""
        self._context = context

    def _resume(self, listening: socket.socket) -> None:
        if not self._draining:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        """Begin with those who wait, some at a time."""
        loop = asyncio.get_running_loop()
        for _ in range(_CALLERS):
            try:
                plain, address = listening.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # no descriptor or no memory is left: without a pause the loop would do nothing but ask again
                if not self._crowded:
                    _log.error("no connection can be accepted for now", extra={"fields": {"error": str(error)}})
                self._crowded = True
                loop.remove_reader(listening)
                loop.call_later(_PAUSE, self._resume, listening)
                return
            self._crowded = False
            try:
                wrapped = self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            except OSError:  # whoever it was has gone
                plain.close()
                continue
            task = loop.create_task(self._handle(_Stream(wrapped, read_chunk_size=_READ), address[0]))
            self._tasks.add(task)  # or it might be collected
            task.add_done_callback(self._tasks.discard)

    async def _handle(self, stream: _Stream, address: str) -> None:
        """Serve a connection until it ends."""
        connection = Connection(stream, address, 0.0)
        connection.wait("handshake", self._timeouts.handshake)
        self._open.add(connection)
        self._strangers[connection] = None
        if len(self._strangers) > MOST_STRANGERS:  # who means well needs milliseconds, so the oldest goes
            self._end(next(iter(self._strangers)), "too many handshakes")
        self._metrics.connections(len(self._open))
        try:
            await self._serve(connection)
        except (StreamClosedError, ConnectionError):
            pass  # whoever closed it has said why
        except Exception:
            _log.exception("a connection ended unexpectedly")
        finally:
            stream.close()
            self._open.discard(connection)
            self._strangers.pop(connection, None)
            self._metrics.connections(len(self._open))
            if connection.client is not None:
                self._usage.disconnected(connection.client.peer.user)

    def sweep(self) -> None:
        """Close connections whose certificate has expired or was revoked, and those that take too long."""
        now, today = time.monotonic(), time.time()
        for connection in list(self._open):
            if (client := connection.client) is not None and (reason := self._lapsed(client.peer, today)):
                self._end(connection, reason)
            elif now > connection.deadline:
                # to be silent between two requests is no offence
                self._end(connection, "" if connection.waiting == "idle" else f"{connection.waiting} timeout")

    def quiet(self) -> bool:
        """Whether nothing is being answered now, but something was since this was last asked."""
        served, self._served = self._served, False
        return served and not any(connection.busy for connection in self._open)

    async def drain(self) -> None:
        """Accept nothing more, let requests end, then close everything."""
        await asyncio.sleep(0)  # what has been accepted is begun
        self._draining = True
        for listening in self._listening:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        end = time.monotonic() + self._timeouts.drain
        while self._open and time.monotonic() < end:
            for connection in list(self._open):
                if not connection.busy:
                    connection.stream.close()
            await asyncio.sleep(0.02)
        for connection in list(self._open):
            connection.stream.close()

    def _lapsed(self, peer: Peer, today: float) -> str:
        if today > peer.not_after:
            return "certificate expired"
        return "certificate revoked" if self._revoked(peer) else ""

    def _end(self, connection: Connection, reason: str) -> None:
        if reason:
            self._refuse(connection, reason)
        connection.deadline = 0.0  # that is all to be said of it
        self._strangers.pop(connection, None)
        connection.stream.close()

    def _refuse(self, connection: Connection, reason: str, status: int = 0) -> None:
        self._metrics.refused()
        self._service.refuse(connection.client, reason, status, connection.address)

    async def _serve(self, connection: Connection) -> None:
        stream = connection.stream
        try:
            await stream.wait_for_handshake()
        except (ssl.SSLError, OSError) as error:
            if connection in self._open and time.monotonic() <= connection.deadline:
                self._refuse(connection, _why(stream.error or error))
            return
        if connection not in self._strangers:
            return  # ended in the moment that its handshake was over
        del self._strangers[connection]
        stream.set_nodelay(True)
        der = stream.socket.getpeercert(binary_form=True)
        try:
            peer = peer_of(der or b"")
        except AccessError as error:
            self._refuse(connection, str(error))
            return
        if reason := self._lapsed(peer, time.time()):  # a resumed session brings a certificate that was checked earlier
            self._refuse(connection, reason)
            return
        connection.client = Client(peer, connection.address, self._usage.connected(peer.user))
        await self._requests(connection, connection.client)

    async def _requests(self, connection: Connection, client: Client) -> None:
        received = bytearray()
        connection.wait("head", self._timeouts.head)  # whoever connects has something to ask
        while not self._draining:
            try:
                request = await self._next(connection, received)
            except BadRequestError as error:
                self._refuse(connection, error.reason, error.status)
                await self._write(connection, error_response(error.status, error.reason, close=True), "GET")
                return
            connection.busy = self._served = True
            connection.wait("answer", self._timeouts.idle * 10)  # of files, not of the client
            begun = time.perf_counter()
            answer = await self._service.answer(request, client)
            try:
                open_ = await self._write(connection, answer.response, request.method, request.keep_alive)
            finally:
                self._service.sent(client, answer)
                connection.busy = False
            took = time.perf_counter() - begun
            self._metrics.answered(answer.kind, answer.response.status, answer.held, took)
            if not open_:
                return
            del answer  # its body is a chunk, which need not live while the client is silent
            connection.wait("idle", self._timeouts.idle)

    async def _next(self, connection: Connection, received: bytearray) -> Request:
        """The next request; what follows it stays in `received`."""
        begun = False
        while True:
            _refuse_early(received)
            if (end := received.find(END)) >= 0:
                break
            if received and not begun:
                begun = True
                connection.wait("head", self._timeouts.head)
            received += await connection.stream.read_bytes(_READ, partial=True)
        head = bytes(received[:end])
        del received[: end + len(END)]
        return connection.heads.parse(head)

    async def _write(self, connection: Connection, response: Response, method: str, keep_alive: bool = True) -> bool:
        """Send an answer; whether the connection stays open."""
        close = response.close or not keep_alive or self._draining
        head = response.head(close=close)
        size = 0 if method == "HEAD" else response.size
        connection.wait("send", self._timeouts.idle + size / self._timeouts.slowest)
        if size <= _SMALL:
            await connection.stream.write(head + response.body[:size])
        else:
            with connection.stream.full_packets():
                await connection.stream.write(head)
                await self._send(connection, response)
        return not close

    async def _send(self, connection: Connection, response: Response) -> None:
        """Send a body: what is in memory bit by bit; else each part is read while the one before is on its way."""
        stream, rest, sent = connection.stream, response.rest, 0
        if rest is not None:
            while (ready := self._promised(connection, rest.ready)) is not None:
                await stream.send(ready)
                sent += len(ready)
                if sent >= _TURN:  # as long as the client is fast, nothing here has waited
                    sent = 0
                    await asyncio.sleep(0)
        part: bytes | memoryview = response.body
        while rest is not None and rest.left:
            following = self._service.next_part(rest)
            try:
                await stream.write(part)
            except BaseException:
                following.cancel()
                raise
            await asyncio.wait([following])
            part = self._promised(connection, following.result)
        await stream.write(part)

    def _promised(self, connection: Connection, read: Callable[[], T]) -> T:
        """What the head has promised; if that cannot be read, all that can be done is to break off."""
        try:
            return read()
        except (LclsError, OSError) as error:
            self._refuse(connection, status_of(error)[1])
            raise ConnectionError("a body could not be read to its end") from error


def _refuse_early(received: bytearray) -> None:
    """Refuse what can no longer become a request, without waiting for its end."""
    if len(received) > MOST_HEAD and received.find(END, 0, MOST_HEAD) < 0:
        raise BadRequestError(431, "header fields too large")
    if received and not 0x41 <= received[0] <= 0x5A:
        raise BadRequestError(400, "not HTTP")
    at = received.find(b"\n")
    while at >= 0:
        if at == 0 or received[at - 1] != 0x0D:
            raise BadRequestError(400, "bare line feed")
        at = received.find(b"\n", at + 1)


def _why(error: BaseException) -> str:
    """Why a handshake failed, in OpenSSL's words but without its line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.replace('_', ' ').lower()}"
    return "TLS: connection closed"
