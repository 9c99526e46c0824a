"""A run in HDF5 files as a `RunSource`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import FormatError, SelectionError
from ...model import Finding, RunIndex, Variable
from ..source import Rows, RunSource, SourceRef
from .columns import Column
from .datafile import DataFile


class Hdf5Source:
    """A run in HDF5 files.

    Made by `open_hdf5`, and pickled as a call of it.

    Parameters
    ----------
    index : RunIndex
    ref : SourceRef
        With the snapshot, so that whoever unpickles the source gets the same or an error.
    columns : mapping of (str, str) to Column
        By node and variable.
    files : tuple of DataFile
    reopen : callable
        `open_hdf5`.
    """

    def __init__(
        self,
        index: RunIndex,
        ref: SourceRef,
        columns: Mapping[tuple[str, str], Column],
        files: tuple[DataFile, ...],
        reopen: Callable[[SourceRef], RunSource],
    ) -> None:
        self._index = index
        self._ref = ref
        self._columns = columns
        self._files = files
        self._reopen = reopen

    @property
    def index(self) -> RunIndex:
        """What is there."""
        return self._index

    @property
    def ref(self) -> SourceRef:
        """How another process opens the same."""
        return self._ref

    def __reduce__(self) -> tuple[Callable[[SourceRef], RunSource], tuple[SourceRef]]:
        return self._reopen, (self._ref,)

    def _column(self, path: str, name: str) -> Column:
        try:
            return self._columns[path, name]
        except KeyError:
            raise SelectionError(
                f"{self._ref.path}: there is no variable {name!r} in node {path}; lcls-dask info lists them"
            ) from None

    def read(self, path: str, name: str, rows: Rows) -> np.ndarray[Any, Any]:
        """Values of a variable.

        Parameters
        ----------
        path, name : str
            Node and variable.
        rows : slice or (n,) int64
            Along the first dimension.

        Returns
        -------
        (n, *shape[1:]) ndarray

        Raises
        ------
        FormatError
            The file is damaged there.
        UnsupportedError
            It is compressed by a filter that is not installed.
        """
        return self._column(path, name).read(rows)

    def read_encoded(self, path: str, name: str, chunk: int) -> bytes | None:
        """A chunk as the file holds it, encoded with the variable's codecs.

        Parameters
        ----------
        path, name : str
            Node and variable.
        chunk : int

        Returns
        -------
        bytes
            Never None: a chunk that HDF5 has not written is encoded from its fill value.
        """
        return self._column(path, name).encoded(chunk)

    def validate(self) -> Iterator[Finding]:
        """Read everything once and say what is wrong with it.

        Yields
        ------
        Finding
        """
        for path, reason in self._index.attrs.get("hdf5_unread", {}).items():
            yield Finding("missing", path, f"{path} is left out: {reason}")
        for path, remark in self._index.attrs.get("hdf5_remarks", {}).items():
            yield Finding("corrupt", path, f"{path}: {remark}")
        if "timestamp" not in self._index.nodes["/"].variables:
            yield Finding("missing", self._ref.path, "there are no timestamps: events have only their order")
        seen: set[int] = set()
        for path, node in self._index.nodes.items():
            if "timestamp" in node.variables:
                yield from self._check_time(path, node.variables["timestamp"])
            for name, variable in node.variables.items():
                column = self._columns[path, name]
                if id(column) not in seen:  # a detector's node shows what / shows
                    seen.add(id(column))
                    yield from self._check_values(path, variable)

    def _check_time(self, path: str, variable: Variable) -> Iterator[Finding]:
        stamps = self.read(path, "timestamp", slice(0, variable.shape[0]))
        back = int(np.count_nonzero(stamps[1:] < stamps[:-1]))
        if back:
            yield Finding("order", path, f"{back} events are earlier than the one before them", back)
        twice = len(stamps) - len(np.unique(stamps))
        if twice:
            yield Finding("duplicate", path, f"{twice} events have a timestamp that another one has too", twice)
        if not variable.attrs.get("timestamp_exact", True):
            step = variable.attrs.get("timestamp_resolution_ns", 0)
            yield Finding("damage", path, f"timestamps were rounded to {step} ns by whoever wrote them", len(stamps))

    def _check_values(self, path: str, variable: Variable) -> Iterator[Finding]:
        bad, why = 0, ""
        for start in range(0, variable.shape[0], variable.chunk):
            stop = min(start + variable.chunk, variable.shape[0])
            try:
                self.read(path, variable.name, slice(start, stop))
            except FormatError as error:
                bad, why = bad + stop - start, str(error)
        if bad:
            yield Finding("corrupt", f"{path} {variable.name}", why, bad, fatal=True)

    def close(self) -> None:
        """Give back file descriptors; reading afterwards opens them again."""
        for file in self._files:
            file.close()
