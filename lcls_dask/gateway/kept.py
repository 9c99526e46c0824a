"""Small chunks kept in memory: timestamps and scalars are what every worker of every client asks for."""

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock


class Kept:
    """Bytes by key; those that were asked for least recently make room.

    Parameters
    ----------
    limit : int
        Bytes in all.

    Examples
    --------
    >>> kept = Kept(limit=10)
    >>> kept.put("a", memoryview(b"12345678"))
    >>> kept.put("b", memoryview(b"1234"))
    >>> kept.get("a") is None, bytes(kept.get("b"))
    (True, b'1234')
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[Hashable, memoryview] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> memoryview | None:
        """Bytes, None where they are not here."""
        with self._lock:
            if (data := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
            return data

    def put(self, key: Hashable, data: memoryview) -> None:
        """Keep bytes, which must never change."""
        with self._lock:
            self._size += data.nbytes - (self._kept[key].nbytes if key in self._kept else 0)
            self._kept[key] = data
            while self._size > self._limit:
                self._size -= self._kept.popitem(last=False)[1].nbytes
