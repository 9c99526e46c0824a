"""What is answered: a status, fields and a body that is never copied."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from .open_run import Rest

#: Of a snapshot nothing ever changes: a client need not ask again for a year.
IMMUTABLE = "private, max-age=31536000, immutable"
VOLATILE = "private, no-cache"
#: For what may be there again in a moment.
RETRY: Mapping[str, str] = {"Retry-After": "1"}

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_NO_FIELDS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Response:
    """An answer.

    Attributes
    ----------
    status : int
    fields : mapping of str to str
        Header fields; ``Date``, ``Content-Length`` and ``Connection`` are added when it is sent.
    body : bytes or memoryview
        Sent as it is, unless the method was HEAD.
    close : bool
        Whether the connection ends with it.
    rest : Rest or None
        What follows `body`.
    more : int
        How many bytes that is.
    """

    status: int
    fields: Mapping[str, str] = field(default_factory=lambda: _NO_FIELDS)
    body: bytes | memoryview = b""
    close: bool = False
    rest: Rest | None = None
    more: int = 0

    @property
    def size(self) -> int:
        """Bytes of the body, and of what follows."""
        return (self.body.nbytes if isinstance(self.body, memoryview) else len(self.body)) + self.more

    def head(self, *, close: bool) -> bytes:
        """Status line and fields, with the empty line.

        Examples
        --------
        >>> Response(204).head(close=False).split(b"\\r\\n")[0]
        b'HTTP/1.1 204 No Content'
        """
        lines = [f"HTTP/1.1 {self.status} {_REASONS[self.status]}", f"Date: {_date()}"]
        lines += [f"{name}: {value}" for name, value in self.fields.items()]
        if self.status not in (204, 304):
            lines.append(f"Content-Length: {self.size}")
        if close:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def json_response(value: Any, status: int = 200, fields: Mapping[str, str] | None = None) -> Response:
    """A JSON document, which may be cached but must be asked for again unless `fields` say otherwise."""
    body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    return Response(status, {"Content-Type": "application/json", "Cache-Control": VOLATILE, **(fields or {})}, body)


def error_response(
    status: int, message: str, *, fields: Mapping[str, str] | None = None, close: bool = False
) -> Response:
    """One line that says what is wrong, and what to do next."""
    body = json.dumps({"status": status, "error": message}, separators=(",", ":")).encode() + b"\n"
    shown = {"Content-Type": "application/json", "Cache-Control": "no-store", **(fields or {})}
    return Response(status, shown, body, close)


#: The same for what is not there and for what is not hers: nobody can tell one from the other.
NOT_FOUND = error_response(404, "there is no such thing here, or it is not yours to know of")

_last: tuple[int, str] = (0, "")


def _date() -> str:
    global _last
    now = int(time.time())
    if _last[0] != now:
        _last = now, formatdate(now, usegmt=True)
    return _last[1]
