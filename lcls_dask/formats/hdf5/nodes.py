"""From fields to the data model: nodes, dimensions and variables, and the column behind each variable."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...model import Detector, Node, Variable, chunk_length, time_of
from .clock import Clock
from .columns import Column, Held, Index, Mapped, Taken

TIME = np.dtype("datetime64[ns]")
_IMAGE = ("segment", "row", "column")


@dataclass(frozen=True)
class Field:
    """Something that has a value for each event, or for each row of a ragged field.

    Attributes
    ----------
    name : str
        Of the variable; what stands before the first dot is the detector.
    column : Column
    attrs : mapping
    """

    name: str
    column: Column
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def detector(self) -> str:
        """The detector's name, empty for a field of the run itself."""
        return self.name.partition(".")[0] if "." in self.name else ""


@dataclass(frozen=True)
class Ragged:
    """Fields of which each event has any number of values.

    Attributes
    ----------
    name : str
        Base name: dimensions are ``<name>.row_edge`` and ``<name>.index``.
    offsets : (events + 1,) int64
    fields : tuple of Field
        Flat.
    """

    name: str
    offsets: Index
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Part:
    """Everything of one set of events: of the whole file, or of a group with timestamps of its own.

    Attributes
    ----------
    length : int
        Number of events.
    clock : Clock or None
    fields, ragged
        What has a value for each event.
    loose : tuple of Field
        What has none: masks, powder patterns, settings.
    constants : mapping of str to dict
        Small ones of these, as attributes by detector (empty name: of the run).
    """

    length: int
    clock: Clock | None
    fields: tuple[Field, ...]
    ragged: tuple[Ragged, ...] = ()
    loose: tuple[Field, ...] = ()
    constants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass
class Tree:
    """What a layout gives: nodes, detectors, and the column of each variable by (node, name)."""

    nodes: dict[str, Node] = field(default_factory=dict)
    columns: dict[tuple[str, str], Column] = field(default_factory=dict)
    detectors: dict[str, Detector] = field(default_factory=dict)

    def add(self, path: str, members: Iterable[tuple[Variable, Column]], attrs: Mapping[str, Any]) -> None:
        """Add variables to a node, which is made if it is not there."""
        node = self.nodes.get(path, Node(path, {}))
        variables = dict(node.variables)
        for variable, column in members:
            variables[variable.name] = variable
            self.columns[path, variable.name] = column
        self.nodes[path] = replace(node, variables=variables, attrs={**node.attrs, **attrs})


def variable(
    name: str, dims: tuple[str, ...], column: Column, attrs: Mapping[str, Any], *, coordinate: bool = False
) -> tuple[Variable, Column]:
    """A variable and the column behind it."""
    item = int(np.prod(column.shape[1:], dtype=np.int64)) * column.dtype.itemsize
    described = {"units": "", "long_name": name, **attrs}
    chunk = column.chunk if column.codecs else chunk_length(item)
    return Variable(name, dims, column.shape, column.dtype, chunk, described, coordinate, column.codecs), column


def clock_variables(clock: Clock, dim: str) -> list[tuple[Variable, Column]]:
    """``timestamp`` and ``time`` along a dimension."""
    stamp = {"long_name": "LCLS timestamp: seconds since 1990-01-01 UTC << 32 | nanoseconds", **clock.attrs}
    return [
        variable("timestamp", (dim,), clock.column, stamp, coordinate=True),
        variable("time", (dim,), Mapped(clock.column, time_of, TIME), {"long_name": "time (UTC)"}, coordinate=True),
    ]


def dims_of(detector: str, fields: Iterable[Field], loose: Iterable[Field]) -> dict[str, tuple[str, ...]]:
    """Dimensions of the fields of a detector, without the dimension of events.

    Two or three dimensions are an image, or a stack of one image for each segment. Where a
    detector has images of different shapes, the largest one gives ``<detector>.row`` its length, and
    those that do not fit have dimensions of their own.

    Parameters
    ----------
    detector : str
        Empty for the run itself, whose fields share no dimensions.
    fields, loose : iterable of Field
        Those with a value for each event, and those without.

    Returns
    -------
    dict of str to tuple of str
        By the field's name.
    """
    shapes = {entry.name: entry.column.shape[1:] for entry in fields}
    largest_first = sorted(shapes, key=lambda name: -int(np.prod(shapes[name], dtype=np.int64)))
    shapes |= {entry.name: entry.column.shape for entry in loose}
    found: dict[str, tuple[str, ...]] = {}
    sizes: dict[str, int] = {}
    for name in [*largest_first, *(name for name in shapes if name not in largest_first)]:
        shape = shapes[name]
        names = tuple(f"{detector}.{word}" for word in _IMAGE[-len(shape) :]) if len(shape) in (2, 3) else ()
        fits = all(sizes.get(dim, size) == size for dim, size in zip(names, shape, strict=False))
        if not (detector and names and fits):
            names = tuple(f"{name}.dim_{k}" for k in range(len(shape)))
        sizes.update(zip(names, shape, strict=True))
        found[name] = names
    return found


def _segments(
    detector: str, dims: Iterable[tuple[str, ...]], sizes: Mapping[str, int]
) -> list[tuple[Variable, Column]]:
    name = f"{detector}.segment"
    if not any(name in used for used in dims):
        return []
    numbers = Held(np.arange(sizes[name], dtype=np.int32))
    attrs = {"long_name": f"place in the stack of {detector}'s segments"}
    return [variable(name, (name,), numbers, attrs, coordinate=True)]


def _members(
    entries: Iterable[Field], dims: Mapping[str, tuple[str, ...]], dim: str, coordinates: frozenset[str]
) -> list[tuple[Variable, Column]]:
    return [
        variable(
            entry.name,
            (dim, *dims[entry.name]),
            entry.column,
            entry.attrs,
            coordinate=entry.name in coordinates,
        )
        for entry in entries
    ]


def _by_detector(entries: Iterable[Field]) -> dict[str, list[Field]]:
    found: dict[str, list[Field]] = {}
    for entry in entries:
        found.setdefault(entry.detector, []).append(entry)
    return found


#: Fields of the run itself that label its events.
COORDINATES = frozenset({"step", "pulse_id"})


def build(whole: Part, groups: Mapping[str, Part] | None = None) -> Tree:
    """The tree of a run.

    Parameters
    ----------
    whole : Part
        The events of the file.
    groups : mapping of str to Part
        Detectors that have events, and timestamps, of their own. In ``/`` they stand at the events
        with equal timestamps; an event that only they have is added there.

    Returns
    -------
    Tree
    """
    groups = groups or {}
    whole = _without_clashes(whole, {*groups, *(entry.detector for entry in whole.fields)})
    tree = Tree()
    whole_rows, group_rows, root_clock, length = _align(whole, groups)
    root = [replace(entry, column=_at(entry.column, whole_rows)) for entry in whole.fields]
    if whole_rows is not None:
        root += [_present(name, whole_rows) for name in _by_detector(whole.fields) if name]
    for name, part in groups.items():
        rows = group_rows[name]
        root += [replace(entry, column=Taken(entry.column, rows)) for entry in part.fields]
        root.append(_present(name, rows))

    fields = _by_detector([*whole.fields, *(entry for part in groups.values() for entry in part.fields)])
    loose = _by_detector(whole.loose)
    dims: dict[str, tuple[str, ...]] = {entry.name: () for entry in root}
    for name in sorted({*fields, *loose}):
        dims |= dims_of(name, fields.get(name, []), loose.get(name, []))

    tree.add("/", clock_variables(root_clock, "event") if root_clock else [], whole.constants.get("", {}))
    tree.add("/", _members(root, dims, "event", COORDINATES), {})
    for part in (whole, *groups.values()):
        _add_detectors(tree, part, dims)
    own = [variable(entry.name, dims[entry.name], entry.column, entry.attrs) for entry in loose.get("", [])]
    tree.add("/", own, {})
    for name in tree.detectors:
        found = [value.dims for value in tree.nodes[f"/{name}"].variables.values()]
        sizes = tree.nodes[f"/{name}"].sizes
        tree.add(f"/{name}", _segments(name, found, sizes), {})
        tree.add("/", _segments(name, [value.dims for value in tree.nodes["/"].variables.values()], sizes), {})
    if not tree.nodes["/"].sizes.get("event") and length:
        raise ValueError("no dataset has a value for each event")
    return tree


def _without_clashes(whole: Part, detectors: set[str]) -> Part:
    """No variable of ``/`` may be called as a node below it: xarray refuses that."""
    return replace(
        whole,
        fields=tuple(
            replace(entry, name=f"{entry.name}.value") if entry.name in detectors else entry for entry in whole.fields
        ),
    )


def _add_detectors(tree: Tree, part: Part, dims: Mapping[str, tuple[str, ...]]) -> None:
    """The nodes of the detectors of a set of events."""
    fields = _by_detector(part.fields)
    ragged: dict[str, list[Ragged]] = {}
    for entry in part.ragged:
        ragged.setdefault(entry.name.partition(".")[0], []).append(entry)
    loose = _by_detector(part.loose)
    for name in sorted({*fields, *ragged, *loose, *part.constants} - {""}):
        dim = f"{name}.event"
        members: list[tuple[Variable, Column]] = []
        if part.clock and (name in fields or name in ragged):
            members += clock_variables(part.clock, dim)
        members += _members(fields.get(name, []), dims, dim, frozenset())
        members += [variable(e.name, dims[e.name], e.column, e.attrs) for e in loose.get(name, [])]
        for entry in ragged.get(name, []):
            members += _ragged_variables(entry)
        tree.add(f"/{name}", members, part.constants.get(name, {}))
        segments = tree.nodes[f"/{name}"].sizes.get(f"{name}.segment", 1)
        tree.detectors[name] = Detector(name, "", "", tuple(range(segments)), {})


def _ragged_variables(entry: Ragged) -> list[tuple[Variable, Column]]:
    # CF's word for the dimension that a contiguous ragged array's rows are cut from
    attrs = {"long_name": f"where each row of {entry.name} begins", "sample_dimension": f"{entry.name}.index"}
    members = [variable(f"{entry.name}.offset", (f"{entry.name}.row_edge",), Held(entry.offsets), attrs)]
    for flat in entry.fields:
        own = tuple(f"{flat.name}.dim_{k}" for k in range(len(flat.column.shape) - 1))
        members.append(variable(flat.name, (f"{entry.name}.index", *own), flat.column, flat.attrs))
    return members


def _at(column: Column, rows: Index | None) -> Column:
    return column if rows is None else Taken(column, rows)


def _present(name: str, rows: Index) -> Field:
    return Field(f"{name}.present", Held(rows >= 0), {"long_name": f"whether {name} was read in this event"})


def _align(whole: Part, groups: Mapping[str, Part]) -> tuple[Index | None, dict[str, Index], Clock | None, int]:
    """Rows of each part at the events of ``/``, by equal timestamp; None: the same rows."""
    if not groups or (whole.clock is None and whole.length):
        return (
            None,
            {name: _no_rows(part, whole.length) for name, part in groups.items()},
            whole.clock,
            whole.length,
        )
    own = whole.clock.column.read(slice(0, whole.length)) if whole.clock else np.empty(0, np.uint64)
    stamps = {name: part.clock.column.read(slice(0, part.length)) for name, part in groups.items() if part.clock}
    more = np.setdiff1d(np.unique(np.concatenate([own[:0], *stamps.values()])), own)
    union = np.sort(np.concatenate([own, more]), kind="stable") if len(more) else own
    clock = whole.clock
    rows = None
    if len(more):
        rows = _places(own, union)
        attrs = whole.clock.attrs if whole.clock else {}
        clock = Clock(Held(union), {**attrs, "timestamp_source": "union of all groups"})
    return rows, {name: _places(values, union) for name, values in stamps.items()}, clock, len(union)


def _no_rows(part: Part, length: int) -> Index:
    if part.length:
        raise ValueError("a group has timestamps, but the events of the file have none to match them with")
    return np.full(length, -1, np.int64)


def _places(values: np.ndarray[Any, Any], union: np.ndarray[Any, Any]) -> Index:
    """For each timestamp of `union` its row in `values`, -1 where it has none.

    The k-th of several equal timestamps is matched with the k-th of them on the other side.
    """
    order, ordered = np.argsort(values, kind="stable"), np.sort(values)
    goal_order, goal = np.argsort(union, kind="stable"), np.sort(union)
    nth = np.arange(len(goal)) - np.searchsorted(goal, goal, side="left")
    place = np.searchsorted(ordered, goal, side="left") + nth
    found = place < np.searchsorted(ordered, goal, side="right")
    rows = np.full(len(union), -1, np.int64)
    rows[goal_order[found]] = order[place[found]]
    return rows
