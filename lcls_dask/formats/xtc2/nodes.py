"""The nodes of a run: each variable with the way to its values."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from ...model import Node, Variable, time_of
from ..source import Rows
from .dense import read_field, read_readings
from .describe import UNKNOWN, Column, columns_of, coordinate, event_coordinates, flat, item_of, segments_of
from .detectors import Part
from .events import Array, Events
from .probe import Shape, probe
from .ragged import SAMPLE_INTERVAL, Digitizer, OwnEvents, Ragged, own_events, survey_digitizer, survey_field
from .slow import Table, has_slow_variables, settings, slow_names, slow_variables, steps

#: Gives a variable's values for some rows.
Reader = Callable[[Rows], Array]
Entry = tuple[Variable, Reader]

#: Configuration arrays up to this many elements are attributes; larger ones are variables of the detector's node.
MOST_IN_ATTRIBUTE = 256


class _Found(Mapping[str, Variable]):
    """Variables that are found when they are first asked for, which may take reading payload headers."""

    def __init__(self, entries: Callable[[], Iterable[Entry]]) -> None:
        self._entries, self._lock = entries, threading.Lock()
        self._found: dict[str, Entry] | None = None

    def entries(self) -> Mapping[str, Entry]:
        with self._lock:  # threads that ask at once wait for the one survey
            if self._found is None:
                self._found = {variable.name: (variable, reader) for variable, reader in self._entries()}
            return self._found

    def __getitem__(self, name: str) -> Variable:
        return self.entries()[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries())

    def __len__(self) -> int:
        return len(self.entries())


class Readable:
    """A node and the way to each of its variables.

    Parameters
    ----------
    path : str
    attrs : mapping
    entries : callable
        Gives the variables and their readers; it is called once, when they are first asked for.
    """

    def __init__(self, path: str, attrs: Mapping[str, Any], entries: Callable[[], Iterable[Entry]]) -> None:
        self._variables = _Found(entries)
        self.node = Node(path, self._variables, attrs)

    @property
    def found(self) -> Mapping[str, Entry]:
        """Every variable with its reader, by name."""
        return self._variables.entries()


class NodeMaker:
    """Makes the nodes of a run.

    Parameters
    ----------
    events : Events
    parts : mapping of str to Part
    """

    def __init__(self, events: Events, parts: Mapping[str, Part]) -> None:
        self._events, self._parts = events, parts

    @cached_property
    def steps(self) -> Table:
        """The scan's steps."""
        return steps(self._events)

    @cached_property
    def _slow_variables(self) -> Table:
        return slow_variables(self._events)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """What the run's events tell of each field."""
        return probe(self._events, self._parts)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Every node that there is."""
        detectors = sorted({part.detector for part in self._parts.values()})
        # whether there are slow variables; there may be very many, which are read when they are asked for
        tables = (("steps", bool(self.steps.timestamps.size)), ("epics", has_slow_variables(self._events)))
        return ("/", *(f"/{name}" for name in detectors), *(f"/{name}" for name, there in tables if there))

    def make(self, path: str, attrs: Mapping[str, Any]) -> Readable:
        """Make one; `attrs` are those of the whole run."""
        if path == "/":
            return Readable(path, attrs, self._root)
        if path == "/steps":
            return Readable(path, attrs, lambda: _slow(path, "step", self.steps, {}))
        if path == "/epics":
            return Readable(path, attrs, lambda: _slow(path, "update", self._slow_variables, slow_names(self._events)))
        detector = path[1:]
        part = next(part for part in self._parts.values() if part.detector == detector)
        small, large = _configuration(settings(self._events, part.written).get(part.written, {}))
        serial = next(iter(part.streams.values()))[0].serial
        more = {"detector": part.written, "kind": part.kind, "serial": serial, **small}
        return Readable(path, {**attrs, **more}, lambda: (*self._detector(detector), *_held_arrays(detector, large)))

    def _root(self) -> Iterator[Entry]:
        own = OwnEvents(len(self._events.tables.timestamps), None)
        yield from self._coordinates("event", own, self._pulse_id())
        yield from self._columns(self._parts.values(), "event", own)

    def _detector(self, detector: str) -> Iterator[Entry]:
        own = own_events(self._events, self._parts, detector)
        mine = [part for part in self._parts.values() if part.detector == detector]
        yield from self._coordinates(f"{detector}.event", own, None)
        segments = segments_of(mine[0])  # rows of ragged fields count in them, even where there is only one
        yield segments, _held(np.array(mine[0].segments, np.int32))
        yield from self._columns(mine, f"{detector}.event", own)
        for part in mine:
            for title, field in part.fields.items():
                ragged = item_of(part, field, self.shapes[f"{part.name}.{title}"]) is None
                if title in part.channels:
                    digitizer = survey_digitizer(self._events, part, title, own)
                    if ragged:
                        yield from _ragged(digitizer.payload)
                    yield from _digitizer(digitizer)
                elif ragged:
                    yield from _ragged(survey_field(self._events, part, title, own))

    def _pulse_id(self) -> Column | None:
        for part in self._parts.values():
            for title, field in part.fields.items():
                if title.lower() in ("pulseid", "pulse_id") and not field.rank:
                    _, columns = columns_of([part], self.shapes, 0, "event")
                    return next(column for column in columns if column.field == title)
        return None

    def _coordinates(self, dim: str, own: OwnEvents, pulse: Column | None) -> Iterator[Entry]:
        stamps = self._events.tables.timestamps
        begins = self.steps.timestamps

        def of(rows: Rows) -> Array:
            return np.array(stamps[own.among_all(rows)])

        readers: dict[str, Reader] = {"timestamp": of, "time": lambda rows: time_of(of(rows))}
        if begins.size:
            readers["step"] = lambda rows: np.asarray(np.searchsorted(begins, of(rows), "right") - 1, np.int32)
        if pulse:
            shape = self.shapes[f"{pulse.part.name}.{pulse.field}"]
            field = partial(read_field, self._events, pulse.part, pulse.field, shape)
            readers["pulse_id"] = lambda rows: field(rows)[:, 0].astype(np.uint64)
        variables = event_coordinates(own.count, dim)
        for name, reader in readers.items():
            yield variables[name], reader

    def _columns(self, parts: Iterable[Part], dim: str, own: OwnEvents) -> Iterator[Entry]:
        segments, columns = columns_of(parts, self.shapes, own.count, dim)
        for part, variable in segments:
            yield variable, _held(np.array(part.segments, np.int32))
        for column in columns:
            yield column.variable, self._column(column, own)

    def _column(self, column: Column, own: OwnEvents) -> Reader:
        part, item = column.part, column.variable.shape[1:]

        def read(rows: Rows) -> Array:
            mine = own.among_all(rows)
            if column.mask:
                values = read_readings(self._events, part, mine)[column.mask == "damage"]
            else:
                shape = self.shapes[f"{part.name}.{column.field}"]
                values = read_field(self._events, part, column.field, shape, mine)
            return values.reshape(len(values), *item)

        return read


def _ragged(ragged: Ragged) -> Iterator[Entry]:
    part, title = ragged.part, ragged.field
    name, field = f"{part.name}.{title}", part.fields[title]
    rows, elements = ragged.offset.size - 1, int(ragged.offset[-1])
    text = f"where each (event, segment) of {name} begins"
    yield flat(f"{name}.offset", f"{name}.row_edge", rows + 1, np.int64, "1", text), _held(ragged.offset)
    text = f"{name}, rows one behind the other"
    yield flat(name, f"{name}.index", elements, field.dtype, "1", text), _ranged(ragged.elements)
    if field.rank > 1:
        words = {"units": "1", "long_name": f"shape of each (event, segment)'s array of {name}"}
        dims, shape = (f"{name}.row", f"{name}.rank"), (rows, field.rank)
        yield Variable(f"{name}.shape", dims, shape, np.dtype(np.int32), 1 << 20, words), _held(ragged.shapes)


def _digitizer(d: Digitizer) -> Iterator[Entry]:
    part, title = d.part, d.field
    base = part.name if len(part.channels) == 1 else f"{part.name}.{title}"
    wave, win = f"{base}.waveforms", f"{base}.windows"
    rows, samples, windows, inside = (
        d.offset.size - 1,
        int(d.offset[-1]),
        d.starts.size,
        int(d.samples[-1]),
    )
    told: dict[str, Any] = {"sample_interval": SAMPLE_INTERVAL, "sample_interval_units": "s"}
    if part.version == (3, 0, 0):
        told["fractional_bits"] = 4
    columns: tuple[tuple[str, str, int, Any, str, str, Reader], ...] = (
        (f"{wave}.offset", f"{wave}.row_edge", rows + 1, "i8", "1",
         "where each (event, segment)'s waveform begins", _held(d.offset)),
        (wave, f"{wave}.index", samples, "u2", "ADU", "samples of the waveforms", _ranged(d.waveforms)),
        (f"{win}.offset", f"{win}.row_edge", rows + 1, "i8", "1",
         "where each (event, segment)'s FEX windows begin", _held(d.windows)),
        (f"{win}.start", f"{win}.window", windows, "i4", "1", "first sample of the window", _held(d.starts)),
        (f"{win}.length", f"{win}.window", windows, "i4", "1", "samples in the window", _ranged(d.lengths)),
        (f"{win}.time", f"{win}.window", windows, "f8", "s", "time of the window's first sample",
         lambda asked: d.starts[asked] * SAMPLE_INTERVAL),
        (f"{win}.sample_offset", f"{win}.window_edge", windows + 1, "i8", "1",
         "where each window's samples begin", _held(d.samples)),
        (f"{win}.samples", f"{win}.sample", inside, "u2", "ADU", "samples of the FEX windows",
         _ranged(d.window_samples)),
        (f"{base}.stream_flags", f"{base}.row", rows, "u1", "1",
         "bits 0-2 raw, 3-5 FEX: out of range, unlocked, overflow; 7: malformed, no samples given", _held(d.flags)),
    )  # fmt: skip
    for *described, reader in columns:
        variable = flat(*described)
        yield replace(variable, attrs={**variable.attrs, **told}), reader


def _slow(path: str, dim: str, table: Table, told: Mapping[str, Mapping[str, str]]) -> Iterator[Entry]:
    times = {"timestamp": table.timestamps, "time": time_of(table.timestamps)}
    for name, values in times.items():
        units = {} if name == "time" else {"units": "1"}
        words = {"long_name": f"{name} of the {dim}", **units}
        yield coordinate(name, dim, values.size, values.dtype, words), _held(values)
    for name, values in table.columns.items():
        unique = name if name not in times else f"{path[1:]}.{name}"
        about = told.get(name, {})
        later: dict[str, Any] = {} if table.seen[name].all() else {"first_seen": int(np.argmax(table.seen[name]))}
        known = {"units": UNKNOWN, "long_name": about.get("description") or name, **about, **later}
        yield _constant(unique, (dim, *_dims(unique, values.ndim - 1)), values, known)


def _held_arrays(detector: str, arrays: Mapping[str, Array]) -> Iterator[Entry]:
    for key, values in arrays.items():
        name = f"{detector}.{key}"
        words = {"units": UNKNOWN, "long_name": f"{detector} configuration {key}"}
        yield _constant(name, _dims(name, values.ndim), values, words)


def _constant(name: str, dims: tuple[str, ...], values: Array, attrs: Mapping[str, Any]) -> Entry:
    return Variable(name, dims, values.shape, values.dtype, max(1, values.shape[0]), attrs), _held(values)


def _dims(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}.dim_{i}" for i in range(count))


def _held(values: Array) -> Reader:
    """A reader of an array that is there, in memory or mapped."""
    return lambda rows: np.array(values[rows])


def _ranged(read: Callable[[int, int], Array]) -> Reader:
    """A reader of ranges as a reader of rows; scattered ones are read by their stretches."""

    def of(rows: Rows) -> Array:
        if isinstance(rows, slice):
            return read(rows.start, rows.stop)
        if not rows.size:
            return read(0, 0)
        wanted, back = np.unique(rows, return_inverse=True)
        edges = np.flatnonzero(np.diff(wanted) > 64) + 1
        parts = []
        for stretch in np.split(wanted, edges):
            first = int(stretch[0])
            parts.append(read(first, int(stretch[-1]) + 1)[stretch - first])
        return np.concatenate(parts)[back]

    return of


def _configuration(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Configuration as attributes that any file format can hold, and the arrays that are too large to be one."""
    small: dict[str, Any] = {}
    large: dict[str, Array] = {}
    for key, value in values.items():
        if isinstance(value, np.ndarray) and (value.ndim > 1 or value.size > MOST_IN_ATTRIBUTE):
            large[key] = value
        elif isinstance(value, list):  # arrays whose shapes differ from segment to segment
            small[key] = json.dumps(value)
        else:
            small[key] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return small, large
