"""Running the compiled loops over the events of one run: which files, which rows, which errors."""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, TypeVar

import numpy as np

from ...errors import FormatError
from . import kernels
from .files import find, open_file
from .layout import Configuration, Dgram, dgram_at, parse_configuration
from .scan import CHUNK_SHIFT, Transition, read_exactly
from .tables import RunTables, StreamTable

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")
#: One of `kernels`: it returns a status, the row that it concerns, and a position in the file.
Loop = Callable[..., tuple[int, int, int]]

#: Files that one run keeps open.
MOST_OPEN = 48

_OFFSET = (1 << CHUNK_SHIFT) - 1


@dataclass(frozen=True)
class ByRow:
    """An argument of a loop that has one entry for each row."""

    values: Array


class _File:
    """An open file, closed with its last user: no loop reads from a number that means another file by then."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # when Python ends, `os` may go first
        close(self.fd)


class Events:
    """The files of a run, opened when they are needed, and the loops over their events."""

    def __init__(self, tables: RunTables) -> None:
        self.tables = tables
        self._sizes = dict(tables.used)
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()
        self.configurations: list[Configuration] = [self._configuration(stream) for stream in tables.streams]

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        with self._lock:
            self._open.clear()

    def _file(self, name: str) -> "_File":
        """A file of the run; it stays open as long as somebody holds it."""
        with self._lock:
            if name not in self._open:
                self._open[name] = _File(open_file(self.tables.home, name))
            self._open.move_to_end(name)
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
            return self._open[name]

    def transition(self, stream: StreamTable, place: Transition) -> tuple[bytes, Dgram, str]:
        """A whole transition, its header, and the name of its file."""
        name = stream.files[place.file]
        data = read_exactly(self._file(name).fd, place.end - place.offset, place.offset, name)
        dgram = dgram_at(data, 0, name, place.offset)
        if dgram.timestamp != place.timestamp or dgram.end != place.end:
            raise FormatError(f"{name}: byte {place.offset} is no longer what the index says; was the file replaced?")
        return data, dgram, name

    def _configuration(self, stream: StreamTable) -> Configuration:
        return parse_configuration(*self.transition(stream, stream.configure))

    def places(self, stream: int, rows: slice | Array) -> Array:
        """Where a stream's datagrams of these events lie; -1 where it has none."""
        table = self.tables.streams[stream]
        if table.events is None:
            return np.asarray(table.places[rows])
        if isinstance(rows, slice):
            out = np.full(rows.stop - rows.start, -1, np.int64)
            first, last = np.searchsorted(table.events, [rows.start, rows.stop])
            out[table.events[first:last].astype(np.int64) - rows.start] = table.places[first:last]
            return out
        if not table.events.size:
            return np.full(rows.size, -1, np.int64)
        at = np.minimum(np.searchsorted(table.events, rows), table.events.size - 1)
        return np.where(table.events[at] == rows, table.places[at], -1)

    def run(self, stream: int, rows: slice | Array, loop: Loop, *arguments: Any) -> None:
        """Run a loop over a stream's datagrams of these events, one file at a time.

        Parameters
        ----------
        stream : int
        rows : slice or (n,) int64
            Events of the run.
        loop : callable
            Takes ``(reader, offsets, stamps, *arguments)``, see `kernels`.
        *arguments
            The loop's own; of a `ByRow` it gets the rows that it works on.

        Raises
        ------
        FormatError
            A datagram is damaged; the message names file, byte and event.
        """
        places = self.places(stream, rows)
        stamps = np.asarray(self.tables.timestamps[rows])
        table = self.tables.streams[stream]
        chunks = places >> CHUNK_SHIFT  # of an absent datagram -1, like its place
        offsets = np.where(chunks > 0, places & _OFFSET, places)
        for first, last, chunk in _spans(chunks):
            name, part = table.files[chunk], slice(first, last)
            file = self._file(name)
            reader = kernels.reader(file.fd, self._sizes[name])
            theirs = (a.values[part] if isinstance(a, ByRow) else a for a in arguments)
            status, row, at = loop(reader, offsets[part], stamps[part], *theirs)
            if status != kernels.OK:
                raise FormatError(
                    f"{find(self.tables.home, name)}: event {stamps[first + row]} at byte {offsets[first + row]}: "
                    f"{kernels.REASONS[status]} (byte {at}); lcls-dask validate lists all such events"
                )


def _spans(chunks: Array) -> Sequence[tuple[int, int, int]]:
    """Stretches of rows that lie in one chunk file, absent ones (-1) counted with their neighbours."""
    last = int(chunks.max(initial=-1))
    if last <= 0:  # most runs have one chunk file
        return [(0, chunks.size, 0)] if last == 0 else []
    there = np.flatnonzero(chunks >= 0)
    turns = there[1:][np.diff(chunks[there]) != 0]
    edges = [0, *turns.tolist(), chunks.size]
    return [(first, last, int(chunks[first:last].max())) for first, last in pairwise(edges)]


def in_blocks(total: int, block: int, work: Callable[[slice], Result]) -> Iterator[Result]:
    """Results of `work` for consecutive blocks of rows, in order, computed by threads a few blocks ahead."""
    blocks = (slice(start, min(start + block, total)) for start in range(0, total, block))
    threads = min(8, len(os.sched_getaffinity(0)))
    if threads == 1 or total <= block:
        yield from map(work, blocks)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="lcls-survey") as pool:
        waiting = deque(pool.submit(work, part) for part in islice(blocks, 2 * threads))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, part) for part in islice(blocks, 1))
