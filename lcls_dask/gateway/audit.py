"""Who read what, and who was refused: one JSON object a line, only ever appended to, one file a process.

A line is written before the bytes that it tells of are sent; where it cannot be written, nothing is sent.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _text
from pathlib import Path
from socket import gethostname
from threading import Lock
from typing import Any

#: Seconds within which equal refusals are counted instead of written one by one.
WINDOW = 5.0
#: Distinct refusals that are counted at one time; beyond, each is written.
_MOST = 4096
SUFFIX = ".audit.jsonl"


@dataclass(frozen=True)
class Entry:
    """What the audit says of one request or connection. Never a token, only its identifier.

    Attributes
    ----------
    user, role, certificate : str
        From the certificate; empty where none was accepted.
    experiment : str
    run : int or None
    operation : str
    key : str
    bytes : int
        Of the answer's body.
    allowed : bool
    reason : str
    status : int
        0 where there was no answer.
    token : str or None
    address : str
    """

    user: str = ""
    role: str = ""
    certificate: str = ""
    experiment: str = ""
    run: int | None = None
    operation: str = ""
    key: str = ""
    bytes: int = 0
    allowed: bool = False
    reason: str = ""
    status: int = 0
    token: str | None = None
    address: str = ""


class AuditLog:
    """The file of one process.

    Parameters
    ----------
    directory : Path

    Raises
    ------
    OSError
        It cannot be written.

    Examples
    --------
    >>> log = AuditLog(Path("audit"))
    >>> log.write([Entry(user="alice", experiment="tmox42619", run=14, operation="read", allowed=True, reason="ok")])
    >>> json.loads(log.path.read_text())["decision"]
    'allowed'
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        began = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        # of a name that no other process has, on any machine whose audit goes into the same database
        self.path = directory / f"{began}-{gethostname()}-{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._whole = True
        self._lock = Lock()  # threads that read write here, too
        self._refused: dict[Entry, tuple[float, int]] = {}

    def write(self, entries: Sequence[Entry]) -> None:
        """Append a line for each; of equal refusals only the first, and later how many there were.

        Raises
        ------
        OSError
            They could not all be written.
        """
        lines = [_line(entry, 1) for entry in entries if entry.allowed or self._first(entry)]
        if lines:
            self._append(b"".join(lines))

    def _first(self, refusal: Entry) -> bool:
        """Whether a refusal is to be written; else it is counted."""
        now = time.monotonic()
        with self._lock:
            since, count = self._refused.get(refusal, (now, 0))
            if count:
                self._refused[refusal] = since, count + 1
                return False
            if len(self._refused) < _MOST:
                self._refused[refusal] = now, 1
            return True

    def flush(self, *, everything: bool = False) -> None:
        """Write how many refusals were like one that was written; call it every second or so."""
        now = time.monotonic()
        for entry, (since, _) in list(self._refused.items()):
            if everything or now - since >= WINDOW:
                with self._lock:
                    _, count = self._refused.pop(entry)
                if count > 1:
                    try:
                        self._append(_line(entry, count - 1))
                    except OSError:
                        self._refused[entry] = since, count  # they stay counted
                        raise

    def close(self) -> None:
        """Write what is still counted."""
        self.flush(everything=True)
        os.close(self._file)

    def _append(self, lines: bytes) -> None:
        # a line that a full disk cut in two is ended first, so that only it is lost
        data = lines if self._whole else b"\n" + lines
        written = os.write(self._file, data)
        self._whole = written == len(data)
        if not self._whole:
            raise OSError(f"{self.path}: the audit could not be written")


#: As `json.dumps` would write it, which takes five times as long; strings are escaped by its own function.
_LINE = (
    '{"time":%.6f,"user":%s,"role":%s,"experiment":%s,"run":%s,"operation":%s,"key":%s,"bytes":%d,"decision":"%s",'
    '"reason":%s,"status":%d,"certificate":%s,"token":%s,"address":%s,"count":%d}\n'
)


def _line(entry: Entry, count: int) -> bytes:
    return (
        _LINE
        % (
            time.time(),
            _text(entry.user),
            _text(entry.role),
            _text(entry.experiment),
            "null" if entry.run is None else entry.run,
            _text(entry.operation),
            _text(entry.key),
            entry.bytes,
            "allowed" if entry.allowed else "refused",
            _text(entry.reason),
            entry.status,
            _text(entry.certificate),
            "null" if entry.token is None else _text(entry.token),
            _text(entry.address),
            count,
        )
    ).encode()


def parse_line(line: bytes) -> Mapping[str, Any] | None:
    """A line of the audit, None where a full disk or a kill cut it.

    Examples
    --------
    >>> parse_line(b'{"time": 1.5, "us') is None
    True
    """
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("time"), int | float) else None
