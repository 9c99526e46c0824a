"""One connection to a gateway: HTTP/1.1 over mutual TLS, answers read straight into the memory where they are wanted.

Requests are sent ahead of the answers (pipelining), so that a gateway always knows what to read next. Of HTTP only what
a gateway speaks is understood: every answer says how long it is.
"""

import base64
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import google_crc32c
import numpy as np

from ...errors import UriError
from ...security import Role, check_role

_MOST_HEAD = 64 << 10
_DIGEST = "crc32c=:"


class ProtocolError(ConnectionError):
    """What came is no answer of a gateway, or was damaged on its way; asking again may help."""


@dataclass(frozen=True)
class Address:
    """Where a gateway listens.

    Attributes
    ----------
    host : str
    port : int
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"https://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Take a gateway's address apart.

    Raises
    ------
    UriError
        It is not ``https://host[:port]``.

    Examples
    --------
    >>> parse_address("https://gateway.example:8443/").port
    8443
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise UriError(f"{text[:120]!r} is no address of a gateway; write https://host:port")
    return Address(parts.hostname, port or 443)


@dataclass(frozen=True)
class Get:
    """A request.

    Attributes
    ----------
    target : str
        Percent-encoded path.
    span : (int, int) or None
        Which bytes of it: the first, and the one behind the last.
    into : memoryview or None
        Writable bytes, as long as the answer ought to be; an answer of another length goes elsewhere.
    """

    target: str
    span: tuple[int, int] | None = None
    into: memoryview | None = None


@dataclass(frozen=True)
class Answer:
    """A response.

    Attributes
    ----------
    status : int
    fields : mapping of str to str
        Names in lower case.
    body : memoryview
        The memory that the request named, where it fits.
    """

    status: int
    fields: Mapping[str, str]
    body: memoryview


class Connection:
    """A connection to a gateway. Not for several threads at once.

    Parameters
    ----------
    address : Address
    context : ssl.SSLContext
    patience : float
        Seconds without a single byte after which it is given up.

    Raises
    ------
    OSError
        Nobody answers, or the handshake fails.
    IdentityError
        Who answers is no gateway.
    """

    def __init__(self, address: Address, context: ssl.SSLContext, patience: float = 60.0) -> None:
        self._host = str(address).removeprefix("https://")
        plain = socket.create_connection((address.host, address.port), timeout=patience)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain, server_hostname=address.host)  # which closes it where that fails
        try:
            check_role(self._socket.getpeercert(binary_form=True), Role.GATEWAY)
        except BaseException:
            self._socket.close()
            raise
        self._rest = b""
        self._open = True

    @property
    def usable(self) -> bool:
        """Whether the next request can be sent on it."""
        return self._open

    def close(self) -> None:
        """Hang up."""
        self._open = False
        self._socket.close()

    def exchange(self, gets: Iterable[Get], token: str | None, ahead: int) -> Iterator[Answer]:
        """Ask, with up to `ahead` requests before their answers, which come in order.

        Raises
        ------
        OSError
            The connection broke; answers that were given are whole and right.
        """
        asked: deque[Get] = deque()
        for get in gets:
            self._send(get, token)
            asked.append(get)
            if len(asked) > ahead:
                yield self._receive(asked.popleft())
        while asked:
            yield self._receive(asked.popleft())

    def _send(self, get: Get, token: str | None) -> None:
        lines = [f"GET {get.target} HTTP/1.1", f"Host: {self._host}"]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        if get.span is not None:
            lines.append(f"Range: bytes={get.span[0]}-{get.span[1] - 1}")
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def _receive(self, get: Get) -> Answer:
        status, fields = _parse(self._head())
        if fields.get("connection", "").lower() == "close":
            self._open = False  # after this answer
        try:
            size = 0 if status in (204, 304) else int(fields["content-length"])
        except (KeyError, ValueError):
            raise ProtocolError("an answer without a length") from None
        wanted = get.into if get.into is not None and status in (200, 206) and get.into.nbytes == size else None
        body = memoryview(bytearray(size)) if wanted is None else wanted
        self._fill(body)
        if status in (200, 206):
            _verify(body, fields.get("content-digest", ""))
        return Answer(status, fields, body)

    def _head(self) -> bytes:
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            if len(self._rest) > _MOST_HEAD:
                raise ProtocolError("an answer whose head has no end")
            piece = self._socket.recv(16 << 10)
            if not piece:
                raise ConnectionResetError("the gateway hung up")
            self._rest += piece
        head, self._rest = self._rest[:end], self._rest[end + 4 :]
        return head

    def _fill(self, body: memoryview) -> None:
        at = min(len(self._rest), body.nbytes)
        body[:at] = self._rest[:at]
        self._rest = self._rest[at:]
        # what `recv_into` calls, once for each 16 kB that TLS gives
        receive = cast(Callable[[int, memoryview], int], self._socket.read)
        size = body.nbytes
        while at < size:
            got = receive(size - at, body[at:])
            if not got:
                raise ConnectionResetError("the gateway hung up in the middle of an answer")
            at += got


def _parse(head: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = head.decode("latin-1").split("\r\n")
    version, _, status = first.partition(" ")
    if version != "HTTP/1.1" or not status[:3].isdigit():
        raise ProtocolError("what answers does not speak HTTP/1.1")
    fields = (line.partition(":") for line in rest)
    return int(status[:3]), {name.lower(): value.strip() for name, _, value in fields}


def _verify(body: memoryview, digest: str) -> None:
    if not digest.startswith(_DIGEST):
        return  # of documents; JSON checks itself
    array: np.ndarray[Any, Any] = np.frombuffer(body.toreadonly(), np.uint8)
    checksum = google_crc32c.value(array) if body.nbytes else 0
    if base64.b64encode(checksum.to_bytes(4, "big")).decode() != digest.removeprefix(_DIGEST).rstrip(":"):
        raise ProtocolError("the checksum of an answer is wrong")
