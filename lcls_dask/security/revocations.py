"""What is no longer good before its time: serials of certificates and revocation ids of tokens."""

import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Hashable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from ..errors import PolicyError
from .watched import WatchedFile

logger = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{1,256}")


class Revocations(Protocol):
    """A list of revoked ids. Each process asks it on each decision, so it must answer from memory."""

    @property
    def version(self) -> Hashable:
        """Changes whenever the list has changed; at most some seconds late."""
        ...

    def __contains__(self, identifier: object, /) -> bool:
        """Whether a serial or a revocation id (hexadecimal, lower case) is on the list."""
        ...


class FileRevocations:
    """The list in a text file that grows by a line: ``id time reason``.

    Every process re-reads it, at most a second after it has changed. Lines that are malformed are told of in the
    log; all others stay in force.

    Parameters
    ----------
    path : path-like
    interval : float
        Seconds between two looks at the file.
    monotonic : callable
        The clock, in seconds.

    Raises
    ------
    PolicyError
        The file is not there: a gateway without its list would honour what is revoked.

    Examples
    --------
    >>> revoke("revoked.txt", ["0a1b"], "laptop lost")
    >>> "0a1b" in FileRevocations("revoked.txt")
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        interval: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = WatchedFile(path, _parse, interval, monotonic)

    @property
    def version(self) -> Hashable:
        """How often the list has changed."""
        self._file.current()
        return self._file.generation

    def __contains__(self, identifier: object, /) -> bool:
        return identifier in self._file.current()

    def __repr__(self) -> str:
        return f"FileRevocations({str(self._file.path)!r})"


def create_revocations(path: str | os.PathLike[str]) -> None:
    """Make an empty list, or leave the one that is there.

    Parameters
    ----------
    path : path-like
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))


def revoke(
    path: str | os.PathLike[str],
    identifiers: Iterable[str],
    reason: str,
    clock: Callable[[], float] = time.time,
) -> None:
    """Put serials or revocation ids on a list, and wait until they are on disk.

    Parameters
    ----------
    path : path-like
        The list; made where there is none.
    identifiers : iterable of str
        Hexadecimal.
    reason : str
    clock : callable
        Seconds since the epoch.

    Raises
    ------
    PolicyError
        An id is not hexadecimal.
    """
    ids = [identifier.lower() for identifier in identifiers]
    for identifier in ids:
        if not _ID.fullmatch(identifier):
            raise PolicyError(f"{identifier[:40]!r} is no serial and no revocation id: give hexadecimal digits")
    when = datetime.fromtimestamp(clock(), UTC).isoformat(timespec="seconds")
    lines = "".join(f"{identifier} {when} {' '.join(reason.split())}\n" for identifier in ids).encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # a writer died in the middle of its line: ours must not become the end of it
            lines = b"\n" + lines
        os.write(descriptor, lines)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def revoked_lines(path: str | os.PathLike[str]) -> list[tuple[str, str, str]]:
    """The list as people read it.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    list of tuple
        Id, time and reason of each line.
    """
    lines = (line.split(maxsplit=2) for line in Path(path).read_text(errors="replace").splitlines())
    return [(parts[0], parts[1], parts[2] if len(parts) > 2 else "") for parts in lines if len(parts) > 1]


def _parse(data: bytes) -> frozenset[str]:
    *lines, unfinished = data.decode(errors="replace").split("\n")
    ids = set()
    for number, line in enumerate([*lines, unfinished], 1):
        identifier = line.split(" ", 1)[0]
        if _ID.fullmatch(identifier):
            # also from a line without its end: revoking too much by a cut id is impossible, as ids are unique
            ids.add(identifier)
        elif line.strip() and not line.startswith("#"):
            logger.warning("line %d of the revocations is malformed and passed over", number)
    return frozenset(ids)
