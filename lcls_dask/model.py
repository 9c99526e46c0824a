"""What a run is, apart from its bytes: variables, nodes, and the immutable index over them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

#: Seconds between the Unix epoch and 1990-01-01 UTC, from which LCLS counts.
LCLS_EPOCH = 631_152_000

#: A storage chunk holds at most this many bytes, and at most this many events.
CHUNK_BYTES = 16 << 20
CHUNK_EVENTS = 1 << 16

_NO_ATTRS: Mapping[str, Any] = MappingProxyType({})


def chunk_length(item_bytes: int, *, target: int = CHUNK_BYTES, most: int = CHUNK_EVENTS) -> int:
    """Events in one chunk: the largest power of two within `target` bytes, so that all chunks nest.

    Parameters
    ----------
    item_bytes : int
        Bytes of one event.
    target : int
        Bytes that a chunk may hold.
    most : int
        Events that a chunk may hold, a power of two.

    Returns
    -------
    int
        A power of two, at least 1.

    Examples
    --------
    >>> chunk_length(8), chunk_length(8 << 20), chunk_length(64 << 20)
    (65536, 2, 1)
    """
    fitting = max(1, target // max(1, item_bytes))
    return int(min(most, 1 << (fitting.bit_length() - 1)))


def time_of(timestamp: np.ndarray) -> np.ndarray:
    """UTC times of LCLS timestamps.

    Parameters
    ----------
    timestamp : (n,) uint64
        ``seconds << 32 | nanoseconds``, seconds since 1990-01-01 UTC.

    Returns
    -------
    (n,) datetime64[ns]

    Examples
    --------
    >>> time_of(np.array([1 << 32], np.uint64))
    array(['1990-01-01T00:00:01.000000000'], dtype='datetime64[ns]')
    """
    seconds = (timestamp >> np.uint64(32)).astype(np.int64) + LCLS_EPOCH
    nanoseconds = (timestamp & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return (seconds * 1_000_000_000 + nanoseconds).view("datetime64[ns]")


@dataclass(frozen=True)
class Variable:
    """One labelled array of a node: everything about it but its values.

    Attributes
    ----------
    name : str
        ``<detector>.<algorithm>.<field>``, psana's own words, or a coordinate's name.
    dims : tuple of str
        The first one is what the array is chunked along.
    shape : tuple of int
    dtype : numpy.dtype
        Numbers, bool, ``datetime64[ns]`` or fixed-width ``str``.
    chunk : int
        Length of a storage chunk along the first dimension; the others are never split.
    attrs : mapping
        JSON-able; ``units`` and ``long_name`` always.
    coordinate : bool
        Whether xarray shall treat it as a coordinate.
    codecs : tuple of dict
        zarr v3 codecs with which `RunSource.read_encoded` gives chunks; empty where chunks
        are only given decoded.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int = 1
    attrs: Mapping[str, Any] = field(default_factory=lambda: _NO_ATTRS)
    coordinate: bool = False
    codecs: tuple[Mapping[str, Any], ...] = ()

    @property
    def item_bytes(self) -> int:
        """Bytes of one item along the first dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def storage_chunk(self) -> int:
        """Rows of one chunk as it is served, at least 1; a single one that is not encoded is as long as the array."""
        rows = self.shape[0] if self.shape else 1
        return max(1, self.chunk if self.codecs else min(self.chunk, rows))

    @property
    def chunk_count(self) -> int:
        """Number of chunks, all along the first dimension; 0 where any dimension has no length, 1 for a scalar."""
        if 0 in self.shape:
            return 0
        return -(-self.shape[0] // self.storage_chunk) if self.shape else 1


@dataclass(frozen=True)
class Node:
    """A group of variables whose dimensions agree: ``/``, ``/<detector>``, ``/steps``, ``/epics``."""

    path: str
    variables: Mapping[str, Variable]
    attrs: Mapping[str, Any] = field(default_factory=lambda: _NO_ATTRS)

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every dimension."""
        return {
            dim: size
            for variable in self.variables.values()
            for dim, size in zip(variable.dims, variable.shape, strict=True)
        }


@dataclass(frozen=True)
class Detector:
    """A detector as the run's configuration describes it.

    Attributes
    ----------
    name, kind, serial : str
        Its name in this run, its type (``"jungfrau"``), its serial number.
    segments : tuple of int
        Segment numbers over all streams, ascending.
    algorithms : mapping of str to str
        Algorithm and version, ``{"raw": "3.0.0"}``.
    """

    name: str
    kind: str
    serial: str
    segments: tuple[int, ...]
    algorithms: Mapping[str, str]


@dataclass(frozen=True)
class RunIndex:
    """An immutable snapshot of a run. A growing run yields a new one.

    Attributes
    ----------
    experiment : str
    run : int
    state : str
        ``"ended"`` (the run said so in every stream), ``"live"`` (it may still grow) or ``"cut"``
        (it stopped without saying so).
    snapshot : str
        Digest of what was there of each file.
    nodes : mapping of str to Node
        By path; looking one up may scan that detector's payload headers once.
    detectors : mapping of str to Detector
    attrs : mapping
        Attributes of the whole run, JSON-able.
    """

    experiment: str
    run: int
    state: str
    snapshot: str
    nodes: Mapping[str, Node]
    detectors: Mapping[str, Detector] = field(default_factory=lambda: MappingProxyType({}))
    attrs: Mapping[str, Any] = field(default_factory=lambda: _NO_ATTRS)

    @property
    def events(self) -> int:
        """Number of events of the root node."""
        return self.nodes["/"].sizes.get("event", 0)


@dataclass(frozen=True)
class Finding:
    """One thing that `validate` has to say about a run.

    Attributes
    ----------
    kind : str
        ``"gap"``, ``"duplicate"``, ``"order"``, ``"damage"``, ``"truncated"``, ``"corrupt"``, ``"missing"`` …
    where : str
        File, stream or detector.
    message : str
        One line for people.
    count : int
        How many events (or bytes, for ``"truncated"``) it concerns.
    fatal : bool
        Whether data cannot be read because of it.
    """

    kind: str
    where: str
    message: str
    count: int = 1
    fatal: bool = False
