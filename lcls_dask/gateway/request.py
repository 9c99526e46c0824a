"""The head of an HTTP/1.1 request, taken apart strictly.

Nothing is repaired: a head that two parsers could read in two ways (a bare line feed, a folded line, two lengths) is
refused, so that nothing can be smuggled past a proxy. Tornado's own parser, like most, accepts these; hence this one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

END = b"\r\n\r\n"
#: A head holds a token of a few kB at most; the longest key is well below 2 kB.
MOST_HEAD = 16 << 10
MOST_TARGET = 2 << 10
MOST_FIELDS = 64

_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/([0-9]\.[0-9])")
# name and value each by itself: one expression for both, with the blanks between and behind, took seconds for
# a head of nothing but blanks
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))", re.ASCII)
_NO_FIELDS: Mapping[str, str] = {}
#: Fields whose meaning depends on which of two is taken.
_ONCE = frozenset(("host", "content-length", "transfer-encoding", "authorization", "biscuit", "range", "if-range"))


class BadRequestError(Exception):
    """A request that is answered and then hung up on.

    Parameters
    ----------
    status : int
    reason : str
        A short phrase: of the answer, and of the audit.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Request:
    """A request without a body.

    Attributes
    ----------
    method : str
    target : str
        As sent: percent-encoded ASCII that begins with a slash.
    fields : mapping of str to str
        Header fields, names in lower case.
    """

    method: str
    target: str
    fields: Mapping[str, str]

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants to ask for more."""
        return "close" not in self.fields.get("connection", "").lower()

    @property
    def token(self) -> str | None:
        """The capability: ``Authorization: Bearer``, or `certified`'s ``Biscuit``."""
        scheme, _, token = self.fields.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return token.strip() or None
        return self.fields.get("biscuit") or None


class Heads:
    """Takes the heads of one connection's requests apart.

    A client sends the same fields with each request: those that are, byte for byte, the last ones are not parsed again.
    """

    def __init__(self) -> None:
        self._lines, self._fields = b"", _NO_FIELDS

    def parse(self, head: bytes) -> Request:
        """Take a head apart; see `parse_head`."""
        first, _, lines = head.partition(b"\r\n")
        method, target = _parse_line(first)
        if lines != self._lines or not lines:
            self._fields = _parse_fields(lines)
            self._lines = lines
        return Request(method, target, self._fields)


def parse_head(head: bytes) -> Request:
    """Take the head of a request apart.

    Parameters
    ----------
    head : bytes
        From the request line to the empty line, without it.

    Returns
    -------
    Request

    Raises
    ------
    BadRequestError
        It is malformed, ambiguous, of another version, or announces a body.

    Examples
    --------
    >>> parse_head(b"GET /healthz HTTP/1.1\\r\\nHost: gateway").target
    '/healthz'
    """
    return Heads().parse(head)


def _parse_line(line: bytes) -> tuple[str, str]:
    """Method and target."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadRequestError(400, "malformed request line")
    if match[3] != b"1.1":
        raise BadRequestError(505, "not HTTP/1.1")
    if len(match[2]) > MOST_TARGET:
        raise BadRequestError(414, "URL too long")
    return match[1].decode(), match[2].decode()


def _parse_fields(block: bytes) -> Mapping[str, str]:
    lines = block.split(b"\r\n") if block else []
    if len(lines) > MOST_FIELDS:
        raise BadRequestError(431, "too many header fields")
    fields: dict[str, str] = {}
    for line in lines:
        key, colon, text = line.partition(b":")
        if not colon or not _NAME.fullmatch(key) or not _VALUE.fullmatch(text):
            raise BadRequestError(400, "malformed header field")
        name, value = key.decode().lower(), text.strip(b" \t").decode("latin-1")
        if name in fields:
            if name in _ONCE:
                raise BadRequestError(400, f"two {name} fields")
            value = f"{fields[name]}, {value}"
        fields[name] = value
    if not fields.get("host"):
        raise BadRequestError(400, "no host field")
    if "transfer-encoding" in fields or fields.get("content-length", "0") != "0":
        raise BadRequestError(400, "a request here has no body")
    return fields


def parse_range(text: str | None) -> slice | None:
    """The bytes that a Range field asks for.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    slice or None
        None where there is no field, or one that RFC 9110 has a server ignore: another unit, several ranges, nonsense.

    Examples
    --------
    >>> parse_range("bytes=0-99"), parse_range("bytes=-16"), parse_range("bytes=9-3")
    (slice(0, 100, None), slice(-16, None, None), None)
    """
    match = _RANGE.fullmatch(text) if text else None
    if match is None:
        return None
    if match[3] is not None:
        return slice(-int(match[3]), None) if int(match[3]) else slice(0, 0)
    start = int(match[1])
    if match[2] is None:
        return slice(start, None)
    stop = int(match[2]) + 1
    return slice(start, stop) if stop > start else None
