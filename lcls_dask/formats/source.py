"""The protocol between a file format and everything above it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..model import Finding, RunIndex

#: Rows to read: consecutive ones, or any (int64, in any order, repeats allowed).
Rows = slice | np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class SourceRef:
    """All that another process needs to open the same snapshot of a run: well under 1 kB pickled.

    Attributes
    ----------
    path : str
        Absolute path of the run's file or directory, or its URI.
    run : int or None
        Which run, where the files hold several.
    snapshot : str or None
        Digest that the opened index must have; None opens what is there now.
    used : tuple of (str, int)
        Bytes of each file that belong to the snapshot, so that a run that has grown since
        can be opened as it was.
    gateway : str or None
        Address of the gateway that `path`, then an ``lcls://`` URI, is read from.
    within : str or None
        Directory that the run must lie in, whatever links there are on the way: a service reads for others.
    """

    path: str
    run: int | None = None
    snapshot: str | None = None
    used: tuple[tuple[str, int], ...] = ()
    gateway: str | None = None
    within: str | None = None


class RunSource(Protocol):
    """A run as its files hold it. A new file format is one class that satisfies this."""

    @property
    def index(self) -> RunIndex:
        """What is there."""

    @property
    def ref(self) -> SourceRef:
        """How another process opens the same."""

    def read(self, path: str, name: str, rows: Rows) -> np.ndarray[Any, Any]:
        """Values of a variable.

        Parameters
        ----------
        path, name : str
            Node and variable, as in ``index.nodes[path].variables[name]``.
        rows : slice (step 1, in range) or (n,) int64
            Along the variable's first dimension.

        Returns
        -------
        (n, *shape[1:]) ndarray
            C-contiguous, of the variable's dtype. Absent values are zeros.

        Raises
        ------
        FormatError
            The bytes are damaged; the message names file and offset.
        """

    def read_encoded(self, path: str, name: str, chunk: int) -> bytes | None:
        """A storage chunk as the file holds it, encoded with the variable's `codecs`.

        Only called for variables with codecs; None where the file has no such chunk.
        """

    def validate(self) -> Iterator[Finding]:
        """Read everything once and say what is wrong with it."""

    def close(self) -> None:
        """Give back file descriptors; reading afterwards opens them again."""
