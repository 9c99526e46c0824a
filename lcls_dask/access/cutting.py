"""A node cut to some of its events: which rows of each dimension remain, those of ragged fields among them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ..formats.source import Rows, RunSource
from ..model import Node, Variable

Index = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Picked:
    """Rows of a dimension, one by one."""

    rows: Index

    @property
    def length(self) -> int:
        """How many there are."""
        return len(self.rows)

    def at(self, rows: Rows) -> Rows:
        """Rows of the whole that these rows of the part are."""
        return _as_slice(np.ascontiguousarray(self.rows[rows]))


@dataclass(frozen=True)
class Spans:
    """Rows of a flat dimension: those of some spans, one after the other.

    Attributes
    ----------
    starts : (spans,) int64
    edges : (spans + 1,) int64
        Where each span begins in the part, and the part's length.
    """

    starts: Index
    edges: Index

    @classmethod
    def of(cls, starts: Index, lengths: Index) -> "Spans":
        """Spans without empty ones, and as few as possible: consecutive events are one."""
        there = lengths > 0
        starts, lengths = starts[there], lengths[there]
        first = np.ones(len(starts), np.bool_)
        first[1:] = starts[1:] != starts[:-1] + lengths[:-1]
        before = np.cumsum(lengths) - lengths
        return cls(starts[first], np.append(before[first], lengths.sum()))

    @property
    def length(self) -> int:
        """How many rows there are."""
        return int(self.edges[-1])

    def at(self, rows: Rows) -> Rows:
        """Rows of the whole that these rows of the part are."""
        if isinstance(rows, slice):
            span = int(np.searchsorted(self.edges, rows.start, side="right")) - 1
            if rows.start < rows.stop <= self.edges[min(span + 1, len(self.edges) - 1)]:
                shift = int(self.starts[span] - self.edges[span])
                return slice(rows.start + shift, rows.stop + shift)
            rows = np.arange(rows.start, rows.stop, dtype=np.int64)
        span_of = np.searchsorted(self.edges, rows, side="right") - 1
        return _as_slice(self.starts[span_of] - self.edges[span_of] + rows)


@dataclass(frozen=True)
class Shifted:
    """Offsets of consecutive rows: those of the whole, less the first of them.

    Attributes
    ----------
    start, length : int
        Which of the whole.
    origin : int
        The first one.
    """

    start: int
    length: int
    origin: int

    def at(self, rows: Rows) -> Rows:
        """Rows of the whole that these rows of the part are."""
        return slice(rows.start + self.start, rows.stop + self.start) if isinstance(rows, slice) else rows + self.start


def _as_slice(rows: Index) -> Rows:
    """Consecutive rows, the usual case, as a slice, which is read faster."""
    if not len(rows):
        return slice(0, 0)
    if rows[-1] - rows[0] == len(rows) - 1 and np.all(np.diff(rows) == 1):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


@dataclass(frozen=True)
class Cut:
    """Some events of a node: which rows of each dimension remain.

    Attributes
    ----------
    maps : mapping of str to Picked or Spans
        By dimension; the others are kept whole.
    offsets : mapping of str to (n,) int64 or Shifted
        New values of the offsets of ragged fields, by variable; of consecutive events how to read them.
    """

    maps: Mapping[str, Picked | Spans] = field(default_factory=dict)
    offsets: Mapping[str, Index | Shifted] = field(default_factory=dict)

    def shape(self, variable: Variable) -> tuple[int, ...]:
        """A variable's shape in the part."""
        offsets = self.offsets.get(variable.name)
        if offsets is not None:
            return (offsets.length if isinstance(offsets, Shifted) else len(offsets),)
        rows = self.maps.get(variable.dims[0]) if variable.dims else None
        return variable.shape if rows is None else (rows.length, *variable.shape[1:])

    def read(self, source: RunSource, path: str, name: str, rows: Rows) -> np.ndarray[Any, Any]:
        """Values of a variable at rows of the part."""
        offsets = self.offsets.get(name)
        if isinstance(offsets, Shifted):
            return source.read(path, name, offsets.at(rows)) - offsets.origin
        if offsets is not None:
            return offsets[rows]
        chosen = self.maps.get(source.index.nodes[path].variables[name].dims[0])
        return source.read(path, name, rows if chosen is None else chosen.at(rows))


def cut_node(source: RunSource, node: Node, event: str, chosen: Index) -> Cut:
    """Cut a node to some of its events.

    Parameters
    ----------
    source : RunSource
    node : Node
        Of the source, with those variables that matter. The offsets of its ragged fields are read; of consecutive
        events only the first and the last.
    event : str
        The dimension of its events.
    chosen : (n,) int64
        Which of them, in any order.

    Returns
    -------
    Cut
    """
    maps: dict[str, Picked | Spans] = {event: Picked(chosen)}
    new_offsets: dict[str, Index | Shifted] = {}
    together = len(chosen) > 0 and bool((np.diff(chosen) == 1).all())
    sizes = source.index.nodes[node.path].sizes
    events = sizes.get(event, source.index.events)
    offsets = [variable for variable in node.variables.values() if _edges(variable)]
    # from the outermost inwards: a window's samples are cut by the windows that remain
    for variable in sorted(offsets, key=_edges):
        base = variable.name.rpartition(".")[0]
        outermost, outer = _edges(variable) == "row_edge", maps.get(f"{base}.window")
        names = [f"{base}.index", f"{base}.window"] if outermost else [f"{base}.sample"]
        target = str(variable.attrs.get("sample_dimension") or next((n for n in names if n in sizes), names[0]))
        segments = (variable.shape[0] - 1) // max(1, events)
        if together:
            first, last = int(chosen[0]) * segments, (int(chosen[-1]) + 1) * segments
            if not outermost:
                assert isinstance(outer, Spans)
                first, last = (int(outer.starts[0]), int(outer.starts[0]) + outer.length) if outer.length else (0, 0)
            low, high = (int(source.read(node.path, variable.name, slice(at, at + 1))[0]) for at in (first, last))
            new_offsets[variable.name] = Shifted(first, last - first + 1, low)
            maps[target] = Spans.of(np.array([low]), np.array([high - low]))
            continue
        stored = source.read(node.path, variable.name, slice(0, variable.shape[0]))
        if outermost:
            rows = _segments_of(chosen, segments)
        else:
            assert outer is not None
            rows = _listed(outer.at(slice(0, outer.length)))
        lengths = stored[1:][rows] - stored[:-1][rows]
        new_offsets[variable.name] = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        maps[target] = Spans.of(stored[:-1][rows], lengths)
    for dim, size in sizes.items():
        if dim.endswith(".row") and dim != f"{node.path[1:]}.row" and events and size % events == 0:
            maps[dim] = Picked(_segments_of(chosen, size // events))
    return Cut(maps, new_offsets)


def is_ragged(node: Node) -> bool:
    """Whether a node has offsets, so that some of its dimensions follow its events without being theirs."""
    return any(_edges(variable) for variable in node.variables.values())


def _edges(variable: Variable) -> str:
    """What a ragged field's offsets are edges of, ``"row_edge"`` or ``"window_edge"``; empty for anything else."""
    kind = variable.dims[0].rpartition(".")[2] if variable.dims else ""
    return kind if kind in ("row_edge", "window_edge") else ""


def matching(node: Node, patterns: Iterable[str] | None) -> Mapping[str, Variable]:
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


def _listed(rows: Rows) -> Index:
    return np.arange(rows.start, rows.stop, dtype=np.int64) if isinstance(rows, slice) else rows


def _segments_of(events: Index, segments: int) -> Index:
    """Rows of (event, segment) in C order."""
    return (events[:, None] * segments + np.arange(segments)).reshape(-1)
