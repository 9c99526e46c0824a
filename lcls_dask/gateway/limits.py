"""What each user takes, counted over all processes, and how much that may be.

One file that all processes map. Each process writes a row of its own and judges by the sum over all rows, so that no
lock is needed where requests are counted; the row of a process that was killed is emptied before its successor starts.
"""

import fcntl
import math
import mmap
import os
import threading
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

#: Users that are told apart; should there ever be more, some share.
SLOTS = 4096

_CONNECTIONS, _BYTES, _SECOND, _COUNT, _BEFORE = range(5)
_FIELDS = 5


@dataclass(frozen=True)
class Limits:
    """What one user may take, over all processes.

    Attributes
    ----------
    requests : float
        In any second.
    bytes : int
        In answers that are being sent.
    connections : int
    """

    requests: float = 20_000
    bytes: int = 4 << 30
    connections: int = 1024


class Usage:
    """One process's row of the table, and the sums over all.

    Parameters
    ----------
    path : Path
        Made by `create_table`.
    row, rows : int
        Which row is this process's, and how many there are.
    limits : Limits

    Examples
    --------
    >>> create_table(Path("usage"), rows=2)
    >>> usage = Usage(Path("usage"), 0, 2, Limits(requests=1))
    >>> [usage.request("alice", now=100.0) for _ in range(3)]
    [None, 1, 1]
    """

    def __init__(self, path: Path, row: int, rows: int, limits: Limits) -> None:
        self._limits, self._rows = limits, rows
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._cells = memoryview(mmap.mmap(self._file, 0)).cast("q")
        self._own = self._base(row)
        self._bases = [self._base(number) for number in range(rows)]
        self._slots: dict[str, int] = {}
        self._lock = threading.RLock()  # threads of this process share its row

    def _base(self, row: int) -> int:
        return SLOTS + row * SLOTS * _FIELDS

    def connected(self, user: str) -> bool:
        """Count a connection; whether it is within the limit (if not, it counts until `disconnected` all the same)."""
        self._add(user, _CONNECTIONS, 1)
        return self._sum(user, _CONNECTIONS) <= self._limits.connections

    def disconnected(self, user: str) -> None:
        """Stop counting a connection."""
        self._add(user, _CONNECTIONS, -1)

    def take(self, user: str, size: int) -> bool:
        """Count bytes that are to be sent; whether they are within the limit (only then do they count)."""
        with self._lock:
            taken = self._sum(user, _BYTES)
            if taken and taken + size > self._limits.bytes:
                return False
            self._add(user, _BYTES, size)
            return True

    def give_back(self, user: str, size: int) -> None:
        """Stop counting bytes: they were sent, or will never be."""
        self._add(user, _BYTES, -size)

    def request(self, user: str, now: float | None = None) -> int | None:
        """Count a request.

        Parameters
        ----------
        user : str
        now : float, optional
            Seconds of the clock that all processes share.

        Returns
        -------
        int or None
            None where it is within the limit, else how many seconds to wait.
        """
        now = time.monotonic() if now is None else now
        second = math.floor(now)
        cells, slot = self._cells, self._slot(user) * _FIELDS
        own = self._own + slot
        if cells[own + _SECOND] != second:
            cells[own + _BEFORE] = cells[own + _COUNT] if cells[own + _SECOND] == second - 1 else 0
            cells[own + _COUNT] = 0
            cells[own + _SECOND] = second
        count = before = 0
        for base in self._bases:
            at = base + slot
            written = cells[at + _SECOND]
            if written == second:
                count, before = count + cells[at + _COUNT], before + cells[at + _BEFORE]
            elif written == second - 1:
                before += cells[at + _COUNT]
        # the second before counts for as much of it as a window of one second still covers
        rate = count + before * (1 - (now - second))
        if rate + 1 > self._limits.requests:
            return 1
        cells[own + _COUNT] += 1  # what is refused does not count, or who asks too often would never be answered again
        return None

    def _slot(self, user: str) -> int:
        slot = self._slots.get(user)
        if slot is None:
            slot = self._slots[user] = self._claim(user)
        return slot

    def _claim(self, user: str) -> int:
        """The user's slot in all rows: where her digest stands, or the next free one."""
        digest = int.from_bytes(blake2b(user.encode(), digest_size=8).digest(), "little", signed=True) or 1
        first = digest % SLOTS
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            for step in range(SLOTS):
                slot = (first + step) % SLOTS
                if self._cells[slot] in (0, digest):
                    self._cells[slot] = digest
                    return slot
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return first

    def _add(self, user: str, field: int, amount: int) -> None:
        with self._lock:
            self._cells[self._own + self._slot(user) * _FIELDS + field] += amount

    def _sum(self, user: str, field: int) -> int:
        at = self._slot(user) * _FIELDS + field
        return sum(self._cells[base + at] for base in self._bases)


def create_table(path: Path, rows: int) -> None:
    """Make the table of `rows` processes, all zeros."""
    with path.open("wb") as file:
        file.truncate(8 * SLOTS * (1 + rows * _FIELDS))


def clear_row(path: Path, row: int) -> None:
    """Forget what a process that is gone had counted."""
    with path.open("r+b") as file:
        file.seek(8 * SLOTS * (1 + row * _FIELDS))
        file.write(bytes(8 * SLOTS * _FIELDS))
