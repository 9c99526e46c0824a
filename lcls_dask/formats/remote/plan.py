"""Which bytes of which chunks hold some rows of a variable: pure arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

#: Two pieces that lie this close in one chunk are asked for together: a request costs as much as these bytes.
NEAR = 128 << 10


@dataclass(frozen=True)
class Piece:
    """Rows of one chunk that are asked for together.

    Attributes
    ----------
    chunk : int
    start, stop : int
        Rows, counted from the chunk's first.
    """

    chunk: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start


def of_slice(first: int, last: int, chunk: int) -> Iterator[Piece]:
    """Pieces of consecutive rows, for chunks of `chunk` rows.

    Examples
    --------
    >>> list(of_slice(3, 9, 4))
    [Piece(chunk=0, start=3, stop=4), Piece(chunk=1, start=0, stop=4), Piece(chunk=2, start=0, stop=1)]
    """
    for number in range(first // chunk, -(-last // chunk) if last > first else 0):
        base = number * chunk
        yield Piece(number, max(first - base, 0), min(last - base, chunk))


def of_rows(
    rows: np.ndarray[Any, np.dtype[np.int64]], chunk: int, item: int
) -> tuple[list[Piece], np.ndarray[Any, np.dtype[np.int64]]]:
    """Pieces of any rows.

    Parameters
    ----------
    rows : (n,) int64
        In any order, repeats allowed.
    chunk : int
        Rows of a chunk.
    item : int
        Bytes of a row.

    Returns
    -------
    pieces : list of Piece
        In ascending order.
    index : (n,) int64
        Where each row is among the rows of all pieces, one behind the other.

    Examples
    --------
    >>> of_rows(np.array([9, 2, 3]), 4, 100_000)
    ([Piece(chunk=0, start=2, stop=4), Piece(chunk=2, start=1, stop=2)], array([2, 0, 1]))
    """
    wanted = np.unique(rows)
    if not wanted.size:
        return [], np.empty(0, np.int64)
    apart = (np.diff(wanted) - 1) * item > NEAR
    cuts = np.flatnonzero(apart | (np.diff(wanted // chunk) != 0)) + 1
    edges = [0, *cuts.tolist(), wanted.size]
    pieces = []
    for first, last in pairwise(edges):
        number = int(wanted[first]) // chunk
        pieces.append(Piece(number, int(wanted[first]) - number * chunk, int(wanted[last - 1]) + 1 - number * chunk))
    starts = np.array([piece.chunk * chunk + piece.start for piece in pieces])
    before = np.cumsum([0, *(piece.rows for piece in pieces)])[:-1]
    holder = np.searchsorted(starts, rows, "right") - 1
    return pieces, before[holder] + rows - starts[holder]
