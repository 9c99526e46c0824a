"""A run of xtc2 streams as a `RunSource`: its nodes, and where each variable's values come from."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ... import config
from ...errors import SelectionError, SnapshotError
from ...model import Detector, Finding, Node, RunIndex, Variable, time_of
from ..source import Rows, SourceRef
from .dense import read_field, read_readings
from .describe import coordinate, dense_variables, event_coordinates, flat, item_of, segments_of
from .detectors import Part, parts_of
from .events import Array, Events
from .files import IN_PROGRESS, streams_of
from .probe import Shape, probe
from .ragged import SAMPLE_INTERVAL, OwnEvents, own_events, survey_digitizer, survey_field
from .slow import MOST_IN_ATTRIBUTE, Table, settings, slow_names, slow_variables, steps
from .tables import RunTables, open_tables

#: Gives a variable's values for some rows.
Reader = Callable[[Rows], Array]


@dataclass(frozen=True)
class _Readable:
    """A node and the way to each of its variables."""

    node: Node
    readers: Mapping[str, Reader]


class _Nodes(Mapping[str, Node]):
    """Nodes that are made when they are looked up: a detector's may need its payload headers read."""

    def __init__(self, paths: tuple[str, ...], make: Callable[[str], _Readable]) -> None:
        self._paths, self._make = paths, make
        self._made: dict[str, _Readable] = {}
        self._lock = threading.Lock()

    def readable(self, path: str) -> _Readable:
        if path not in self._paths:
            raise SelectionError(f"there is no node {path!r}; there are {', '.join(self._paths)}")
        with self._lock:
            if path not in self._made:
                self._made[path] = self._make(path)
            return self._made[path]

    def __getitem__(self, path: str) -> Node:
        return self.readable(path).node

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


class Xtc2Source:
    """A run of xtc2 streams.

    Parameters
    ----------
    ref : SourceRef
        What to open.

    Raises
    ------
    RunNotFoundError, SeveralRunsError, FormatError, SnapshotError
    """

    def __init__(self, ref: SourceRef) -> None:
        path = Path(ref.path)
        home, streams = streams_of(path, ref.run)
        self._tables = open_tables(home, streams, ref.run, dict(ref.used))
        if ref.snapshot not in (None, self._tables.snapshot):
            raise SnapshotError(
                f"{path}: holds the snapshot {self._tables.snapshot}, not {ref.snapshot}: the run has grown or was "
                "replaced; open it again with lcls_dask.open_run"
            )
        self._path = path
        self._events = Events(self._tables)
        self._parts = parts_of(self._events.configurations)

    @property
    def ref(self) -> SourceRef:
        """How another process opens the same."""
        t = self._tables
        return SourceRef(str(self._path), t.run, t.snapshot, t.used)

    @property
    def tables(self) -> RunTables:
        """Where every event lies."""
        return self._tables

    @property
    def events(self) -> Events:
        """The loops over the run's events."""
        return self._events

    def close(self) -> None:
        """Give back file descriptors."""
        self._events.close()

    @cached_property
    def index(self) -> RunIndex:
        """What is there."""
        t = self._tables
        paths = ("/", *(f"/{name}" for name in self._detectors), *(f"/{name}" for name in self._slow))
        unread = {s.name: s.reason for s in t.streams if s.unread}
        return RunIndex(
            t.experiment,
            t.run,
            self._state(),
            t.snapshot,
            _Nodes(paths, self._node),
            MappingProxyType(self._detectors),
            {
                "streams": [s.name for s in t.streams],
                "steps": len(self._steps.timestamps),
                **({"unread": unread} if unread else {}),
            },
        )

    def read(self, path: str, name: str, rows: Rows) -> Array:
        """Values of a variable; see `RunSource.read`."""
        node = self._readable(path)
        if name not in node.readers:
            raise SelectionError(f"there is no {name!r} in {path}; there are {', '.join(node.readers)}")
        return node.readers[name](rows)

    def read_encoded(self, path: str, name: str, chunk: int) -> bytes | None:
        """Nothing in xtc2 is encoded."""
        return None

    def validate(self) -> Iterator[Finding]:
        """Read every datagram and say what is wrong."""
        from .validate import findings

        return findings(self._events)

    def _readable(self, path: str) -> _Readable:
        nodes = self.index.nodes
        assert isinstance(nodes, _Nodes)
        return nodes.readable(path)

    # what the run is -------------------------------------------------------------------------------------------------

    def _state(self) -> str:
        if all(stream.ended for stream in self._tables.streams):
            return "ended"
        names = [name for name, _ in self._tables.used]
        home = self._tables.home
        if any((home / (name + IN_PROGRESS)).exists() for name in names):
            return "live"
        if self._path.is_dir():  # of a single file xarray itself sees that it was written to
            written = max((home / name).stat().st_mtime for name in names if (home / name).exists())
            if time.time() - written < config.quiet_after():
                return "live"
        return "cut"

    @cached_property
    def _detectors(self) -> dict[str, Detector]:
        found: dict[str, Detector] = {}
        for part in self._parts.values():
            names = next(iter(part.streams.values()))[0]
            before = found.get(part.detector)
            algorithms = {**(before.algorithms if before else {}), part.algorithm: ".".join(map(str, part.version))}
            found[part.detector] = Detector(part.detector, part.kind, names.serial, part.segments, algorithms)
        return dict(sorted(found.items()))

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return probe(self._events, self._parts)

    @cached_property
    def _steps(self) -> Table:
        return steps(self._events)

    @cached_property
    def _slow_variables(self) -> Table:
        return slow_variables(self._events)

    @cached_property
    def _slow(self) -> tuple[str, ...]:
        tables = (("steps", self._steps), ("epics", self._slow_variables))
        return tuple(name for name, table in tables if table.timestamps.size)

    # nodes -----------------------------------------------------------------------------------------------------------

    def _node(self, path: str) -> _Readable:
        if path == "/":
            return self._root()
        if path == "/steps":
            return _slow_node(path, "step", self._steps, {}, self._attrs())
        if path == "/epics":
            return _slow_node(path, "update", self._slow_variables, slow_names(self._events), self._attrs())
        return self._detector_node(path[1:])

    def _attrs(self) -> dict[str, Any]:
        t = self._tables
        return {"experiment": t.experiment, "run": t.run, "state": self._state(), "snapshot": t.snapshot}

    def _root(self) -> _Readable:
        events = len(self._tables.timestamps)
        pulse = self._pulse_id()
        variables = event_coordinates(
            events, "event", steps=bool(self._steps.timestamps.size), pulse_id=pulse is not None
        )
        dense = dense_variables(self._parts, self._shapes, events, "event")
        readers = self._coordinate_readers(OwnEvents(events, None), pulse) | self._dense_readers(dense, None)
        return _Readable(Node("/", variables | dense, self._attrs()), {k: readers[k] for k in variables | dense})

    def _detector_node(self, detector: str) -> _Readable:
        own = own_events(self._events, self._parts, detector)
        dim = f"{detector}.event"
        variables = event_coordinates(own.count, dim, steps=bool(self._steps.timestamps.size), pulse_id=False)
        dense = dense_variables(self._parts, self._shapes, own.count, dim, detector)
        readers = self._coordinate_readers(own, None)
        readers |= self._dense_readers(dense, None if own.rows is None else own)
        variables |= dense
        for part in self._parts.values():
            if part.detector == detector:
                for title in part.fields:
                    if item_of(part, part.fields[title], self._shapes[f"{part.name}.{title}"]) is None:
                        self._add_ragged(part, title, own, variables, readers)
                    if part.is_hsd and title.startswith("chan"):
                        self._add_digitizer(part, title, own, variables, readers)
        if any(name.endswith(".offset") for name in variables) and f"{detector}.segment" not in variables:
            part = next(part for part in self._parts.values() if part.detector == detector)
            variables[f"{detector}.segment"] = segments_of(part)
            readers[f"{detector}.segment"] = _held(np.array(part.segments, np.int32))
        attrs, large = _configuration(settings(self._events, detector).get(detector, {}))
        for key, value in large.items():
            name = f"{detector}.{key}"
            dims = tuple(f"{name}.dim_{i}" for i in range(value.ndim))
            words = {"units": "1", "long_name": f"{detector} configuration {key}"}
            variables[name] = Variable(name, dims, value.shape, value.dtype, value.shape[0], words)
            readers[name] = _held(value)
        told = self._detectors[detector]
        node = Node(
            f"/{detector}",
            variables,
            self._attrs() | {"detector": told.name, "kind": told.kind, "serial": told.serial, "configuration": attrs},
        )
        return _Readable(node, {name: readers[name] for name in variables})

    # readers ---------------------------------------------------------------------------------------------------------

    def _pulse_id(self) -> tuple[Part, str] | None:
        for part in self._parts.values():
            for title, field in part.fields.items():
                if title.lower() in ("pulseid", "pulse_id") and not field.rank:
                    return part, title
        return None

    def _coordinate_readers(self, own: OwnEvents, pulse: tuple[Part, str] | None) -> dict[str, Reader]:
        stamps = self._tables.timestamps

        def of(rows: Rows) -> Array:
            return np.asarray(stamps[own.among_all(rows)])

        readers: dict[str, Reader] = {
            "timestamp": lambda rows: of(rows).copy(),
            "time": lambda rows: time_of(of(rows)),
            "step": lambda rows: (np.searchsorted(self._steps.timestamps, of(rows), "right") - 1).astype(np.int32),
        }
        if pulse:
            part, title = pulse
            shape = self._shapes[f"{part.name}.{title}"]
            readers["pulse_id"] = lambda rows: read_field(self._events, part, title, shape, rows)[:, 0].astype(
                np.uint64
            )
        return readers

    def _dense_readers(self, variables: Mapping[str, Variable], own: OwnEvents | None) -> dict[str, Reader]:
        readers: dict[str, Reader] = {}
        for name, variable in variables.items():
            detector, _, kind = name.rpartition(".")
            if kind == "segment" and variable.coordinate:
                segments = np.array(self._detectors[detector].segments, np.int32)
                readers[name] = _held(segments)
                continue
            part = max((p for p in self._parts.values() if name.startswith(p.name + ".")), key=lambda p: len(p.name))
            title = name[len(part.name) + 1 :]
            readers[name] = self._dense_reader(part, title, variable, own)
        return readers

    def _dense_reader(self, part: Part, title: str, variable: Variable, own: OwnEvents | None) -> Reader:
        def read(rows: Rows) -> Array:
            mine = rows if own is None else own.among_all(rows)
            if title in part.fields:
                values = read_field(self._events, part, title, self._shapes[f"{part.name}.{title}"], mine)
            else:
                values = read_readings(self._events, part, mine)[title == "damage"]
            return values.reshape(values.shape[0], *variable.shape[1:])

        return read

    def _add_ragged(
        self, part: Part, title: str, own: OwnEvents, variables: dict[str, Variable], readers: dict[str, Reader]
    ) -> None:
        ragged = survey_field(self._events, part, title, own)
        name, field = f"{part.name}.{title}", part.fields[title]
        rows = own.count * len(part.segments)
        elements = int(ragged.offset[-1])
        columns: list[tuple[Variable, Reader]] = [
            (flat(f"{name}.offset", f"{name}.row_edge", rows + 1, np.int64, "1", f"where each row of {name} begins"),
             _mapped(lambda: ragged.offset)),
            (flat(name, f"{name}.index", elements, field.dtype, "1", f"{name}, rows one behind the other"),
             _ranged(ragged.elements)),
        ]  # fmt: skip
        if field.rank > 1:
            text = f"shape of each row's array of {name}"
            variable = Variable(
                f"{name}.shape", (f"{name}.row", f"{name}.rank"), (rows, field.rank), np.dtype(np.int32), 1 << 20,
                {"units": "1", "long_name": text},
            )  # fmt: skip
            columns.append((variable, _mapped(lambda: ragged.shapes)))
        for variable, reader in columns:
            variables[variable.name], readers[variable.name] = variable, reader

    def _add_digitizer(
        self, part: Part, title: str, own: OwnEvents, variables: dict[str, Variable], readers: dict[str, Reader]
    ) -> None:
        d = survey_digitizer(self._events, part, title, own)
        rows = own.count * len(part.segments)
        channels = [name for name in part.fields if name.startswith("chan")]
        base = part.name if len(channels) == 1 else f"{part.name}.{title}"
        wave, window = f"{base}.waveforms", f"{base}.windows"
        samples, windows, inside = int(d.offset[-1]), d.starts.size, int(d.samples[-1])
        dt = SAMPLE_INTERVAL
        columns: list[tuple[Variable, Reader]] = [
            (flat(f"{wave}.offset", f"{wave}.row_edge", rows + 1, np.int64, "1", "where each row's waveform begins"),
             _mapped(lambda: d.offset)),
            (flat(wave, f"{wave}.index", samples, np.uint16, "ADU", "samples of the waveforms"), _ranged(d.waveforms)),
            (flat(f"{window}.offset", f"{window}.row_edge", rows + 1, np.int64, "1", "where each row's windows begin"),
             _mapped(lambda: d.windows)),
            (flat(f"{window}.start", f"{window}.window", windows, np.int32, "1", "first sample of the window"),
             _mapped(lambda: d.starts)),
            (flat(f"{window}.length", f"{window}.window", windows, np.int32, "1", "samples in the window"),
             _ranged(lambda a, b: d.lengths(slice(a, b)))),
            (flat(f"{window}.time", f"{window}.window", windows, np.float64, "s", "time of the window's first sample"),
             lambda r: d.starts[r] * dt),
            (flat(f"{window}.sample_offset", f"{window}.window_edge", windows + 1, np.int64, "1",
                  "where each window's samples begin"), _mapped(lambda: d.samples)),
            (flat(f"{window}.samples", f"{window}.sample", inside, np.uint16, "ADU", "samples of the FEX windows"),
             _ranged(d.window_samples)),
            (flat(f"{base}.stream_flags", f"{base}.row", rows, np.uint8, "1",
                  "bits 0-2 raw, 3-5 FEX: out of range, unlocked, overflow"), _mapped(lambda: d.flags)),
        ]  # fmt: skip
        for variable, reader in columns:
            told = {**variable.attrs, "sample_interval": dt, "sample_interval_units": "s"}
            if part.version == (3, 0, 0):
                told["fractional_bits"] = 4
            variable = Variable(variable.name, variable.dims, variable.shape, variable.dtype, variable.chunk, told)
            variables[variable.name], readers[variable.name] = variable, reader


def _held(values: Array) -> Reader:
    return lambda rows: values[rows].copy()


def _mapped(values: Callable[[], Array]) -> Reader:
    return lambda rows: np.array(values()[rows])


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


def _slow_node(
    path: str, dim: str, table: Table, told: Mapping[str, Mapping[str, str]], attrs: Mapping[str, Any]
) -> _Readable:
    size = table.timestamps.size
    columns: dict[str, Array] = {"timestamp": table.timestamps, "time": time_of(table.timestamps)}
    variables = {
        name: coordinate(
            name,
            dim,
            size,
            values.dtype,
            {"long_name": f"{name} of the {dim}"} | ({} if name == "time" else {"units": "1"}),
        )
        for name, values in columns.items()
    }
    for name, values in table.columns.items():
        unique = name if name not in columns else f"{path[1:]}.{name}"
        words = told.get(name, {})
        more = {} if table.seen[name].all() else {"first_seen": int(np.argmax(table.seen[name]))}
        variables[unique] = Variable(
            unique, (dim, *(f"{unique}.dim_{i}" for i in range(values.ndim - 1))), values.shape, values.dtype,
            max(1, size), {"units": "1", "long_name": words.get("description") or name, **words, **more},
        )  # fmt: skip
        columns[unique] = values
    return _Readable(Node(path, variables, attrs), {name: _held(columns[name]) for name in variables})


def _configuration(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Configuration as JSON-able attributes, and the arrays that are too large to be one."""
    small: dict[str, Any] = {}
    large: dict[str, Array] = {}
    for key, value in values.items():
        if isinstance(value, np.ndarray):
            if value.size > MOST_IN_ATTRIBUTE and value.dtype.kind in "iufb":
                large[key] = value
            else:
                small[key] = value.tolist()
        else:
            small[key] = value.item() if isinstance(value, np.generic) else value
    return small, large
