"""Part of a run, as a run: chosen events and variables, ragged fields cut to the chosen events."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any

import numpy as np

from ..errors import SelectionError
from ..formats import reopen
from ..formats.source import Rows, RunSource, SourceRef
from ..model import Finding, Node, RunIndex
from .cutting import Cut, Index, cut_node, is_ragged, matching

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


_WHOLE = Cut()


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
        self._cuts: dict[str, Cut] = {}
        nodes = {}
        for path, node in base.index.nodes.items():
            kept = matching(node, self._patterns)
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
        """A node at the chosen events, with its new lengths."""
        if self._events is None:
            return node
        kept = self._kept(node)
        if kept is None:
            return node
        cut = self._cuts[node.path] = cut_node(self._base, node, *kept)
        variables = {name: replace(variable, shape=cut.shape(variable)) for name, variable in node.variables.items()}
        return replace(node, variables=variables)

    def _kept(self, node: Node) -> tuple[str, Index] | None:
        """The dimension of a node's events, and which of them are kept."""
        assert self._events is not None
        if node.path == "/":
            return "event", self._events
        event = f"{node.path[1:]}.event"
        whole = self._base.index.nodes[node.path]
        if event not in whole.sizes and not is_ragged(whole):
            return None
        root = self._base.index.nodes["/"].variables
        if "timestamp" in whole.variables and "timestamp" in root:
            own = self._base.read(node.path, "timestamp", slice(0, whole.variables["timestamp"].shape[0]))
            chosen = self._base.read("/", "timestamp", self._events)
            return event, np.flatnonzero(np.isin(own, chosen))
        if whole.sizes.get(event, self._base.index.events) == self._base.index.events:
            return event, self._events
        raise SelectionError(f"events cannot be chosen: node {node.path} has no timestamps; export all events")

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
        return self._cuts.get(path, _WHOLE).read(self._base, path, name, rows)

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
