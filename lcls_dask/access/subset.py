"""Part of a run, as a run: chosen events and variables, ragged fields cut to the chosen events."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any

import numpy as np

from ..errors import SelectionError
from ..formats import reopen
from ..formats.source import Rows, RunSource, SourceRef
from ..model import Finding, Node, RunIndex, Variable

Index = np.ndarray[Any, np.dtype[np.int64]]

#: Events: consecutive ones, a mask, numbers, or (uint64) timestamps.
Events = slice | np.ndarray[Any, Any] | Sequence[int]


def event_rows(source: RunSource, events: Events) -> Index:
    """Rows of ``/`` that a choice of events means, ascending and each one once.

    Parameters
    ----------
    source : RunSource
    events : slice, (events,) bool, (n,) int or (n,) uint64
        Consecutive events, a mask, numbers of events (negative ones count from the end), or timestamps.

    Returns
    -------
    (n,) int64

    Raises
    ------
    SelectionError
        There are no such events.

    Examples
    --------
    >>> event_rows(source, slice(0, 3))  # doctest: +SKIP
    array([0, 1, 2])
    """
    total = source.index.events
    if isinstance(events, slice):
        return np.sort(np.arange(total, dtype=np.int64)[events])
    chosen = np.asarray(events)
    if chosen.dtype == np.bool_:
        if chosen.shape != (total,):
            raise SelectionError(f"a mask of shape {chosen.shape} does not fit {total} events")
        return np.flatnonzero(chosen)
    if chosen.dtype == np.uint64:
        there = source.read("/", "timestamp", slice(0, total))
        missing = np.setdiff1d(chosen, there)
        if len(missing):
            raise SelectionError(f"{len(missing)} of {len(chosen)} timestamps are not in the run, such as {missing[0]}")
        return np.flatnonzero(np.isin(there, chosen))
    if chosen.ndim != 1 or (chosen.dtype.kind not in "iu" and chosen.size):
        raise SelectionError("choose events by a slice, a mask, numbers of events or uint64 timestamps")
    numbers = np.unique(np.where(chosen < 0, chosen + total, chosen)).astype(np.int64)
    if len(numbers) and (numbers[0] < 0 or numbers[-1] >= total):
        raise SelectionError(f"there are {total} events, numbered 0 to {total - 1}")
    return numbers


@dataclass(frozen=True)
class _Picked:
    """Rows of a dimension, one by one."""

    rows: Index

    @property
    def length(self) -> int:
        return len(self.rows)

    def at(self, rows: Rows) -> Index:
        return np.ascontiguousarray(self.rows[rows])


@dataclass(frozen=True)
class _Spans:
    """Rows of a flat dimension: those of some spans, one after the other."""

    starts: Index
    offsets: Index

    @property
    def length(self) -> int:
        return int(self.offsets[-1])

    def at(self, rows: Rows) -> Index:
        wanted = np.arange(rows.start, rows.stop, dtype=np.int64) if isinstance(rows, slice) else rows
        span = np.searchsorted(self.offsets, wanted, side="right") - 1
        return self.starts[span] + wanted - self.offsets[span]


class SubsetSource:
    """Some events and variables of another source.

    Parameters
    ----------
    base : RunSource
    events : (n,) int64, optional
        Rows of ``/``, ascending (see `event_rows`). A detector keeps the events with these timestamps;
        ``/steps`` and ``/epics`` are kept whole.
    variables : sequence of str, optional
        Patterns of names, such as ``"hsd.*"``. Coordinates stay, and the offsets of ragged fields.

    Raises
    ------
    SelectionError
        A pattern matches nothing, or a detector's events cannot be told.
    """

    def __init__(self, base: RunSource, events: Index | None = None, variables: Sequence[str] | None = None) -> None:
        self._base = base
        self._events = events
        self._patterns = None if variables is None else tuple(variables)
        self._maps: dict[tuple[str, str], _Picked | _Spans] = {}
        self._offsets: dict[tuple[str, str], Index] = {}
        nodes = {}
        for path, node in base.index.nodes.items():
            kept = _matching(node, self._patterns)
            if kept or path == "/":
                nodes[path] = self._cut(replace(node, variables=kept))
        if self._patterns is not None:
            self._all_match(base.index)
        self._index = replace(
            base.index,
            nodes=nodes,
            snapshot=self._snapshot(),
            detectors={name: detector for name, detector in base.index.detectors.items() if f"/{name}" in nodes},
        )

    @property
    def index(self) -> RunIndex:
        """What is there. Its snapshot differs from the base's unless all of it is chosen."""
        return self._index

    @property
    def ref(self) -> SourceRef:
        """How another process opens the base."""
        return self._base.ref

    def __reduce__(self) -> tuple[Any, tuple[SourceRef, Index | None, tuple[str, ...] | None]]:
        return _again, (self._base.ref, self._events, self._patterns)

    def _snapshot(self) -> str:
        if self._events is None and self._patterns is None:
            return self._base.index.snapshot
        digest = blake2b(self._base.index.snapshot.encode(), digest_size=16)
        digest.update(b"all" if self._events is None else np.ascontiguousarray(self._events).tobytes())
        digest.update(repr(self._patterns).encode())
        return digest.hexdigest()

    def _all_match(self, index: RunIndex) -> None:
        names = {name for node in index.nodes.values() for name in node.variables}
        for pattern in self._patterns or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise SelectionError(f"no variable matches {pattern!r}; lcls-dask info lists them")

    def _cut(self, node: Node) -> Node:
        """A node at the chosen events: maps of its dimensions, and the new lengths."""
        if self._events is None:
            return node
        kept = self._kept(node)
        if kept is not None:
            event, rows = kept
            self._maps[node.path, event] = _Picked(rows)
            self._cut_ragged(node, event, rows)
        variables = {
            name: replace(variable, shape=self._shape(node.path, variable)) for name, variable in node.variables.items()
        }
        return replace(node, variables=variables)

    def _kept(self, node: Node) -> tuple[str, Index] | None:
        """The dimension of a node's events, and which of them are kept."""
        assert self._events is not None
        if node.path == "/":
            return "event", self._events
        event = f"{node.path[1:]}.event"
        whole = self._base.index.nodes[node.path]
        if event not in whole.sizes and not any(name.endswith(".offset") for name in whole.variables):
            return None
        root = self._base.index.nodes["/"].variables
        if "timestamp" in whole.variables and "timestamp" in root:
            own = self._base.read(node.path, "timestamp", slice(0, whole.variables["timestamp"].shape[0]))
            chosen = self._base.read("/", "timestamp", self._events)
            return event, np.flatnonzero(np.isin(own, chosen))
        if whole.sizes.get(event, self._base.index.events) == self._base.index.events:
            return event, self._events
        raise SelectionError(f"events cannot be chosen: node {node.path} has no timestamps; export all events")

    def _cut_ragged(self, node: Node, event: str, kept: Index) -> None:
        """Maps of the flat dimensions, from the outermost offsets inwards."""
        sizes = self._base.index.nodes[node.path].sizes
        events = sizes.get(event, self._base.index.events)
        offsets = [v for v in node.variables.values() if v.name.endswith((".offset", ".sample_offset"))]
        for variable in sorted(offsets, key=lambda v: v.name.endswith(".sample_offset")):
            base, _, kind = variable.name.rpartition(".")
            stored = self._base.read(node.path, variable.name, slice(0, variable.shape[0]))
            if kind == "offset":
                rows = _segments_of(kept, (len(stored) - 1) // max(1, events))
                names = [f"{base}.index", f"{base}.window"]
            else:
                outer = self._maps[node.path, f"{base}.window"]
                rows = outer.at(slice(0, outer.length))
                names = [f"{base}.sample"]
            target = variable.attrs.get("sample_dimension") or next((name for name in names if name in sizes), names[0])
            lengths = stored[1:][rows] - stored[:-1][rows]
            new = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
            self._offsets[node.path, variable.name] = new
            self._maps[node.path, str(target)] = _Spans(stored[:-1][rows], new)
        for dim, size in sizes.items():
            if dim.endswith(".row") and dim != f"{node.path[1:]}.row" and events and size % events == 0:
                self._maps[node.path, dim] = _Picked(_segments_of(kept, size // events))

    def _shape(self, path: str, variable: Variable) -> tuple[int, ...]:
        offsets = self._offsets.get((path, variable.name))
        if offsets is not None:
            return (len(offsets),)
        rows = self._maps.get((path, variable.dims[0])) if variable.dims else None
        return variable.shape if rows is None else (rows.length, *variable.shape[1:])

    def read(self, path: str, name: str, rows: Rows) -> np.ndarray[Any, Any]:
        """Values of a variable, as `RunSource.read`.

        Parameters
        ----------
        path, name : str
            Node and variable.
        rows : slice or (n,) int64

        Returns
        -------
        (n, *shape[1:]) ndarray
        """
        offsets = self._offsets.get((path, name))
        if offsets is not None:
            return offsets[rows]
        chosen = self._maps.get((path, self._index.nodes[path].variables[name].dims[0]))
        if chosen is None:
            return self._base.read(path, name, rows)
        wanted = chosen.at(rows)
        # consecutive rows, the usual case, are read as such
        if len(wanted) and wanted[-1] - wanted[0] == len(wanted) - 1 and np.all(np.diff(wanted) == 1):
            return self._base.read(path, name, slice(int(wanted[0]), int(wanted[-1]) + 1))
        return self._base.read(path, name, wanted)

    def read_encoded(self, path: str, name: str, chunk: int) -> bytes | None:
        """A chunk as the base holds it; only where all events are chosen.

        Parameters
        ----------
        path, name : str
            Node and variable.
        chunk : int

        Returns
        -------
        bytes or None
        """
        return self._base.read_encoded(path, name, chunk) if self._events is None else None

    def validate(self) -> Iterator[Finding]:
        """What the base finds.

        Yields
        ------
        Finding
        """
        yield from self._base.validate()

    def close(self) -> None:
        """Close the base."""
        self._base.close()


def _again(ref: SourceRef, events: Index | None, variables: tuple[str, ...] | None) -> SubsetSource:
    return SubsetSource(reopen(ref), events, variables)


def _segments_of(events: Index, segments: int) -> Index:
    """Rows of (event, segment) in C order."""
    return (events[:, None] * segments + np.arange(segments)).reshape(-1)


def _matching(node: Node, patterns: Iterable[str] | None) -> Mapping[str, Variable]:
    """The variables of a node that match, with what they cannot be read without."""
    if patterns is None:
        return node.variables
    chosen = {name for name in node.variables if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not chosen and node.path != "/":
        return {}
    while True:
        dims = {dim for name in chosen for dim in node.variables[name].dims}
        needed = {
            name
            for name, variable in node.variables.items()
            if variable.coordinate
            or (name.endswith(".offset") and dims & {f"{name[:-7]}.index", f"{name[:-7]}.window"})
            or (name.endswith(".sample_offset") and f"{name[:-14]}.sample" in dims)
            or (name.endswith(".offset") and f"{name[:-7]}.window_edge" in dims)
            or variable.attrs.get("sample_dimension") in dims
        }
        if needed <= chosen:
            return {name: variable for name, variable in node.variables.items() if name in chosen}
        chosen |= needed
