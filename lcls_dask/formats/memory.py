"""Memory for large results, used again when the last array over it is gone.

The kernel clears memory before it gives it to a process, which takes as long as reading the same bytes from the page
cache. Blocks of a run are read, reduced and dropped one after the other, so the memory of one serves the next.
"""

from collections import deque
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Smaller results are taken from the heap, larger ones are rarely followed by another of their size.
LEAST, MOST = 1 << 20, 128 << 20
#: Bytes that wait to be used again, in the whole process.
IDLE = 256 << 20

_PAGE = 4096
_STEP = 1 << 20  # sizes are rounded up to this, so that blocks that differ a little fit the same memory
_idle: deque[Array] = deque()  # of which each operation is atomic: memory may come back in any thread at any time


class _Lent:
    """What arrays keep as their base; with the last of them it gives the memory back."""

    def __init__(self, memory: Array) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    # defaults, since the module may go first when Python ends
    def __del__(self, idle: "deque[Array]" = _idle, most: int = IDLE) -> None:
        idle.append(self._memory)
        while sum(memory.nbytes for memory in tuple(idle)) > most:
            idle.popleft()


def empty(size: int) -> Array:
    """Memory with anything in it.

    Parameters
    ----------
    size : int
        Bytes.

    Returns
    -------
    (size,) uint8 ndarray
        From one mebibyte on it begins at a page.

    Examples
    --------
    >>> empty(1 << 20).shape
    (1048576,)
    """
    if not LEAST <= size <= MOST:
        return np.empty(size, np.uint8)
    room = -(-size // _STEP) * _STEP
    return np.asarray(_Lent(_fitting(room)))[:size]


def release() -> None:
    """Give back what waits to be used again."""
    _idle.clear()


def _fitting(room: int) -> Array:
    for _ in range(len(_idle)):
        try:
            memory = _idle.popleft()
        except IndexError:  # another thread was faster
            break
        if memory.nbytes == room:
            return memory
        _idle.append(memory)
    fresh = np.empty(room + _PAGE, np.uint8)
    begin = -fresh.ctypes.data % _PAGE
    return fresh[begin : begin + room]
