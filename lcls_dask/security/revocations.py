"""What is no longer good before its time: serials of certificates and revocation ids of tokens."""

import logging
import os
import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from ..errors import PolicyError
from .files import append, locked
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
    OSError
        The disk is full: nothing more is revoked than before.
    """
    ids = [identifier.lower() for identifier in identifiers]
    for identifier in ids:
        if not _ID.fullmatch(identifier):
            raise PolicyError(f"{identifier[:40]!r} is no serial and no revocation id: give hexadecimal digits")
    when = datetime.fromtimestamp(clock(), UTC).isoformat(timespec="seconds")
    lines = "".join(f"{identifier} {when} {' '.join(reason.split())}\n" for identifier in ids).encode()
    with locked(Path(path), 0o644) as descriptor:
        append(descriptor, lines)


def revoked_lines(path: str | os.PathLike[str]) -> list[tuple[str, str, str]]:
    """The list as people read it.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    list of tuple
        Id, time and reason of each line; the latter two may be empty in a line written by hand.
    """
    return [line for line in _lines(Path(path).read_bytes()) if line is not None]


def _lines(data: bytes) -> Iterator[tuple[str, str, str] | None]:
    """Id, time and reason of each line, None of one that is malformed.

    The last line may be without its end: to revoke too much by a cut id is impossible, as ids are unique.
    """
    for line in data.decode(errors="replace").splitlines():
        parts = line.split(maxsplit=2)
        if parts and not parts[0].startswith("#"):
            identifier, when, reason = *parts, *[""] * (3 - len(parts))
            yield (identifier.lower(), when, reason) if _ID.fullmatch(identifier.lower()) else None


def _parse(data: bytes) -> frozenset[str]:
    lines = list(_lines(data))
    if malformed := lines.count(None):
        logger.warning("%d lines of the revocations are malformed and passed over", malformed)
    return frozenset(line[0] for line in lines if line is not None)
