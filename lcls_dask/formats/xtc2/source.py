"""A run of xtc2 streams as a `RunSource`."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ... import config
from ...errors import SelectionError, SnapshotError
from ...model import Detector, Finding, Node, RunIndex
from ..confine import real_home
from ..source import Rows, SourceRef
from .detectors import Part, parts_of
from .events import Array, Events
from .files import IN_PROGRESS, streams_of
from .nodes import NodeMaker, Readable
from .tables import RunTables, open_tables, used_by


class _Nodes(Mapping[str, Node]):
    """Nodes that are made when they are looked up: a detector's may need its payload headers read."""

    def __init__(self, paths: tuple[str, ...], make: Callable[[str], Readable]) -> None:
        self._paths, self._make = paths, make
        self._made: dict[str, Readable] = {}
        self._lock = threading.Lock()

    def readable(self, path: str) -> Readable:
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
        home, streams = streams_of(real_home(path, ref.within), ref.run)
        used = dict(ref.used) or (used_by(ref.snapshot) if ref.snapshot else {})
        self._tables = open_tables(home, streams, ref.run, used)
        if ref.snapshot not in (None, self._tables.snapshot):
            raise SnapshotError(
                f"{path}: holds the snapshot {self._tables.snapshot}, not {ref.snapshot}: the run has grown or was "
                "replaced, and no index of that snapshot is kept here; open it again with lcls_dask.open_run"
            )
        self._path = path
        self._events = Events(self._tables)
        self._parts = parts_of(self._events.configurations)
        self._maker = NodeMaker(self._events, self._parts)
        self._state = _state(path, self._tables)
        t = self._tables
        attrs = {"experiment": t.experiment, "run": t.run, "state": self._state, "snapshot": t.snapshot}
        # not through self: what refers to itself would keep its files open until it is collected
        self._nodes = _Nodes(self._maker.paths, partial(self._maker.make, attrs=attrs))

    @property
    def ref(self) -> SourceRef:
        """How another process opens the same."""
        t = self._tables
        return SourceRef(str(self._path), t.run, t.snapshot, t.used)

    @property
    def tables(self) -> RunTables:
        """Where every event lies."""
        return self._tables

    @cached_property
    def index(self) -> RunIndex:
        """What is there."""
        t = self._tables
        unread = [s.reason for s in t.streams if s.unread]
        attrs = {"streams": [s.name for s in t.streams], "steps": len(self._maker.steps.timestamps)}
        return RunIndex(
            t.experiment,
            t.run,
            self._state,
            t.snapshot,
            self._nodes,
            MappingProxyType(_detectors(self._parts)),
            {**attrs, **({"unread": unread} if unread else {})},
        )

    def read(self, path: str, name: str, rows: Rows) -> Array:
        """Values of a variable; see `RunSource.read`."""
        found = self._nodes.readable(path).found
        if name not in found:
            raise SelectionError(f"there is no {name!r} in {path}; there are {', '.join(found)}")
        _, read = found[name]
        return read(rows)

    def read_encoded(self, path: str, name: str, chunk: int) -> bytes | None:
        """Nothing in xtc2 is encoded."""
        return None

    def validate(self) -> Iterator[Finding]:
        """Read every datagram and say what is wrong."""
        from .validate import findings

        return findings(self._events, self._parts, self._maker.shapes)

    def close(self) -> None:
        """Give back file descriptors."""
        self._events.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Xtc2Source, (self.ref,)


def _state(path: Path, tables: RunTables) -> str:
    if all(stream.ended for stream in tables.streams):
        return "ended"
    names = [name for name, _ in tables.used]
    if any((tables.home / (name + IN_PROGRESS)).exists() for name in names):
        return "live"
    if path.is_dir():
        written = max((tables.home / name).stat().st_mtime for name in names if (tables.home / name).exists())
        if time.time() - written < config.quiet_after():
            return "live"
    return "cut"


def _detectors(parts: Mapping[str, Part]) -> dict[str, Detector]:
    found: dict[str, Detector] = {}
    for part in sorted(parts.values(), key=lambda part: part.detector):
        serial = next(iter(part.streams.values()))[0].serial
        others = found[part.detector].algorithms if part.detector in found else {}
        algorithms = {**others, part.algorithm: ".".join(map(str, part.version))}
        found[part.detector] = Detector(part.detector, part.kind, serial, part.segments, algorithms)
    return found
