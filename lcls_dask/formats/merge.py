"""Streams of timestamps become one sequence of events: equal timestamps are one event."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numba import njit

BLOCK = 1 << 17


def merge_timestamps(
    streams: Sequence[np.ndarray[Any, np.dtype[np.uint64]]], *, block: int = BLOCK
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Merge sorted timestamps block by block, in bounded memory.

    Parameters
    ----------
    streams : sequence of (n_s,) uint64
        Strictly rising timestamps of each stream; memory maps are read a block at a time.
    block : int
        Timestamps held of each stream, and given out at once.

    Yields
    ------
    timestamps : (k,) uint64
        The next part of the union, rising.
    members : (streams, k) bool
        Which streams have each of them.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.array([1, 2, 4], np.uint64), np.array([2, 3], np.uint64)
    >>> [(t.tolist(), m.astype(int).tolist()) for t, m in merge_timestamps([a, b])]
    [([1, 2, 3], [[1, 1, 0], [0, 1, 1]]), ([4], [[1], [0]])]
    """
    count = len(streams)
    heads, sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    read = np.zeros(count, np.int64)  # how far each stream has been taken into its block
    blocks = np.empty((count, block), np.uint64)
    live = np.arange(count)
    while True:
        for s in live.tolist():
            if heads[s] == sizes[s]:
                part = streams[s][read[s] : read[s] + block]
                blocks[s, : part.size] = part
                heads[s], sizes[s], read[s] = 0, part.size, read[s] + part.size
        live = np.flatnonzero(sizes)
        if not live.size:
            return
        out, members = np.empty(block, np.uint64), np.zeros((count, block), np.bool_)
        some = np.zeros((live.size, block), np.bool_)
        their_heads = heads[live]
        n = _step(their_heads, sizes[live], blocks if live.size == count else blocks[live], out, some)
        heads[live] = their_heads
        members[live] = some
        yield out[:n], members[:, :n]


@njit(nogil=True, cache=True)
def _step(heads: Any, sizes: Any, blocks: Any, out: Any, members: Any) -> int:
    """One block of a merge of sorted, strictly rising timestamps.

    Parameters
    ----------
    heads : (streams,) int64
        Where in each stream's block to go on; moved forward.
    sizes : (streams,) int64
        How much of each block is filled.
    blocks : (streams, block) uint64
    out : (n,) uint64
        The union.
    members : (streams, n) bool
        Whose timestamp it is.

    Returns
    -------
    int
        Timestamps written: it stops when `out` is full or any block is used up.
    """
    n = 0
    while n < out.size:
        least = np.uint64(0xFFFFFFFFFFFFFFFF)
        for s in range(heads.size):
            if heads[s] >= sizes[s]:
                return n
            least = min(least, blocks[s, heads[s]])
        out[n] = least
        for s in range(heads.size):
            if blocks[s, heads[s]] == least:
                members[s, n] = True
                heads[s] += 1
        n += 1
    return n
