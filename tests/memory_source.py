"""A run that lives in memory, and hypothesis strategies that make such runs."""

import gzip
import hashlib
import itertools
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lcls_dask.errors import SnapshotError
from lcls_dask.formats.source import Rows, SourceRef
from lcls_dask.model import Finding, Node, RunIndex, Variable
from lcls_dask.stores.keys import Entry

GZIP = (
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "gzip", "configuration": {"level": 1}},
)

_numbers = itertools.count()
_sources: "weakref.WeakValueDictionary[str, MemorySource]" = weakref.WeakValueDictionary()

Values = Mapping[str, Mapping[str, np.ndarray[Any, Any]]]


def array(
    values: Any,
    dims: tuple[str, ...],
    *,
    chunk: int = 4,
    attrs: Mapping[str, Any] | None = None,
    coordinate: bool = False,
    codecs: tuple[Mapping[str, Any], ...] = (),
) -> tuple[Variable, np.ndarray[Any, Any]]:
    """A variable, still without a name, and its values."""
    values = np.asarray(values)
    attrs = {"units": "1", "long_name": "test"} if attrs is None else attrs
    return Variable("", dims, values.shape, values.dtype, chunk, attrs, coordinate, codecs), values


class MemorySource:
    """A `RunSource` over arrays in memory. `reads` tells what was asked of it."""

    def __init__(
        self,
        nodes: Mapping[str, Mapping[str, tuple[Variable, np.ndarray[Any, Any]]]],
        *,
        experiment: str = "tmox42619",
        run: int = 14,
        state: str = "ended",
        attrs: Mapping[str, Any] | None = None,
        node_attrs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.values = {path: {name: pair[1] for name, pair in node.items()} for path, node in nodes.items()}
        digest = hashlib.sha256()
        for path, node in self.values.items():
            for name, values in node.items():
                digest.update(f"{path}:{name}:{values.shape}".encode() + values.tobytes())
        self.index = RunIndex(
            experiment,
            run,
            state,
            digest.hexdigest()[:16],
            {
                path: Node(
                    path,
                    {name: replace(pair[0], name=name) for name, pair in node.items()},
                    (node_attrs or {}).get(path, {}),
                )
                for path, node in nodes.items()
            },
            attrs=attrs or {},
        )
        self.ref = SourceRef(f"/memory/{next(_numbers)}", run, self.index.snapshot)
        self.reads: list[tuple[str, str, Rows]] = []
        _sources[self.ref.path] = self

    def read(self, path: str, name: str, rows: Rows) -> np.ndarray[Any, Any]:
        self.reads.append((path, name, rows))
        values = self.values[path][name]
        return (values if values.ndim else values.reshape(1))[rows]

    def read_encoded(self, path: str, name: str, chunk: int) -> bytes | None:
        variable = self.index.nodes[path].variables[name]
        start = chunk * variable.chunk
        rows = self.values[path][name][start : start + variable.chunk]
        padding = [(0, variable.chunk - len(rows))] + [(0, 0)] * (rows.ndim - 1)
        # a chunk is the same whenever it is read: no time of day in it
        return gzip.compress(np.pad(rows, padding).tobytes(), 1, mtime=0)

    def validate(self) -> Iterator[Finding]:
        return iter(())

    def close(self) -> None:
        pass


def at(path: str) -> MemorySource:
    """The source that calls itself this."""
    return _sources[path]


def reopen(ref: SourceRef) -> MemorySource:
    """Stand-in for `lcls_dask.formats.reopen`: the same process, so the same arrays."""
    source = at(ref.path)
    if ref.snapshot != source.index.snapshot:
        raise SnapshotError(f"{ref.path} has no snapshot {ref.snapshot}")
    return source


class DictKeys:
    """Keys of any name, for zarr's and fsspec's suites: theirs are not those of a run."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def size(self, key: str) -> int | None:
        return len(self.data[key]) if key in self.data else None

    def read(self, key: str, span: slice = slice(None)) -> memoryview | None:
        return memoryview(self.data[key])[span] if key in self.data else None

    def list_dir(self, prefix: str) -> Iterator[Entry]:
        start = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        inside = [key.removeprefix(start).partition("/") for key in self.data if key.startswith(start)]
        yield from (Entry(name, bool(slash)) for name, slash in sorted({part[:2] for part in inside}))


DTYPES = (
    *(np.dtype(f"{sign}{size}") for sign in ("i", "u") for size in (1, 2, 4, 8)),
    *(np.dtype(name) for name in ("bool", "f2", "f4", "f8", "c8", "c16", ">u2", ">f8", "<U5", "datetime64[ns]")),
)

_names = st.from_regex(r"[a-z][a-z0-9]{0,5}\.(raw|fex)\.[a-zA-Z0-9_:]{1,6}", fullmatch=True)
_finite = st.floats(allow_nan=False, allow_infinity=False)
_attr_values = st.one_of(
    st.text(max_size=5),
    st.integers(-(2**63), 2**63),
    _finite,
    st.booleans(),
    st.none(),
    st.lists(_finite, max_size=3),
)
_units = st.sampled_from(["", "1", "s", "seconds", "ns", "hours", "days", "eV", "m/s", "degC"])


@st.composite
def _attrs(draw: st.DrawFn) -> dict[str, Any]:
    extra = draw(st.dictionaries(st.from_regex(r"x[a-z_]{1,8}", fullmatch=True), _attr_values, max_size=2))
    return {"units": draw(_units), "long_name": draw(st.text(max_size=8)), **extra}


@st.composite
def values(draw: st.DrawFn, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Any bytes that the dtype allows: NaN, infinities and negative zero too, but not NaT."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype.kind == "U":
        words = np.array(["", "a", "µé", "日本語", "abcde", "x\ty"], dtype)
        return words[rng.integers(0, len(words), shape)]
    if dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.kind == "M":
        return np.asarray(rng.integers(-(2**62), 2**62, shape)).astype("datetime64[ns]")
    count = int(np.prod(shape, dtype=int))
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape)


@st.composite
def _node(draw: st.DrawFn, dim: str, segments: int | None) -> dict[str, tuple[Variable, np.ndarray[Any, Any]]]:
    length = draw(st.integers(0, 13))

    def variable(shape: tuple[int, ...], dims: tuple[str, ...], **more: Any) -> Any:
        dtype = more.pop("dtype", None) or draw(st.sampled_from(DTYPES))
        data = draw(values(shape, dtype))
        return array(data, dims, chunk=draw(st.sampled_from([1, 2, 4, 8, 16])), attrs=draw(_attrs()), **more)

    node = {
        "timestamp": variable((length,), (dim,), dtype=np.dtype("u8"), coordinate=True),
        "time": variable((length,), (dim,), dtype=np.dtype("datetime64[ns]"), coordinate=True),
    }
    for name in draw(st.lists(_names, max_size=4, unique=True)):
        trailing = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3)))
        dims = (dim, *(f"{name}.dim_{axis}" for axis in range(len(trailing))))
        codecs = GZIP if draw(st.booleans()) else ()
        plain = variable((length, *trailing), dims, codecs=codecs)
        if codecs and plain[0].dtype.byteorder == ">":
            plain = array(plain[1].astype(plain[1].dtype.newbyteorder("<")), dims, codecs=codecs)
        node[name] = plain
    if draw(st.booleans()):
        node["run_start"] = variable((), ())
    if segments is not None:
        node["det.segment"] = array(np.arange(segments, dtype="i4"), ("det.segment",), coordinate=True)
    return node


@st.composite
def sources(draw: st.DrawFn) -> MemorySource:
    """Runs with a root, up to two detectors, and every dtype that the data model has."""
    segments = draw(st.none() | st.integers(0, 3))  # all nodes agree, as a tree of datasets must
    nodes = {"/": draw(_node("event", segments))}
    for name in draw(st.lists(st.sampled_from(["hsd", "steps", "epics", "c"]), max_size=2, unique=True)):
        nodes[f"/{name}"] = draw(_node(f"{name}.event", segments))
    return MemorySource(nodes, attrs=draw(_attrs()), node_attrs={path: draw(_attrs()) for path in nodes})
