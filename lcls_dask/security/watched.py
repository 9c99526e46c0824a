"""A small file that is read again when it changes, so that processes need no restart."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import LclsError, PolicyError

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: A file touched this recently may change again within one tick of its file system's clock: it is read once more.
_UNSETTLED_NS = 2_000_000_000


class WatchedFile(Generic[T]):
    """What a file says, read again at most every `interval` seconds and only when its stat has changed.

    A file that cannot be read any more, or is malformed, is told of in the log (once for each change) and what
    it said before stays in force.

    Parameters
    ----------
    path : path-like
    parse : callable
        Takes the file's bytes, gives what they say (something that can be compared), or raises an `LclsError`.
    interval : float
        Seconds.
    monotonic : callable
        The clock, in seconds.

    Raises
    ------
    PolicyError
        The file cannot be read, or anybody could have written it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        parse: Callable[[bytes], T],
        interval: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(path)
        self.generation = 0
        self._parse = parse
        self._interval = interval
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._value, self._signature = self._read()
        self._next = monotonic() + interval

    def current(self) -> T:
        """What the file says now.

        `generation` counts how often that has changed.
        """
        if self._monotonic() >= self._next:
            with self._lock:
                if self._monotonic() >= self._next:
                    self._refresh()
                    self._next = self._monotonic() + self._interval
        return self._value

    def _refresh(self) -> None:
        try:
            if self._stat() == self._signature:
                return
            value, self._signature = self._read()
        except (LclsError, OSError) as error:
            told = (str(error),)
            if self._signature != told:
                logger.warning("%s is not in force, what was read before stays: %s", self.path, error)
            self._signature = told
            return
        if value != self._value:
            self._value = value
            self.generation += 1

    def _stat(self) -> tuple[object, ...]:
        status = os.stat(self.path)
        signature = (status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return signature if time.time_ns() - status.st_mtime_ns > _UNSETTLED_NS else ("unsettled", time.time_ns())

    def _read(self) -> tuple[T, tuple[object, ...]]:
        try:
            signature = self._stat()
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o002:
                    raise PolicyError(f"{self.path} can be written by anybody: chmod o-w {self.path}")
                data = file.read()
        except OSError as error:
            if isinstance(error, LclsError):
                raise
            raise PolicyError(f"{self.path} cannot be read: {error.strerror}") from None
        return self._parse(data), signature
