"""A run as keys and bytes: which zarr keys it has, how long they are, and what they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import FormatError, SnapshotError
from ..formats.codecs import is_plain
from ..formats.source import RunSource
from ..model import Variable
from .metadata import array_json, group_json

METADATA = "zarr.json"


class Entry(NamedTuple):
    """One name in a directory."""

    name: str
    is_dir: bool = True
    size: int | None = 0  # None: an encoded chunk, which must be read to know


class Keys(Protocol):
    """Read-only bytes by key, directories implied: what the zarr store and the filesystem stand on."""

    def __contains__(self, key: str) -> bool:
        """Whether the key exists."""

    def size(self, key: str) -> int | None:
        """Bytes under the key, None where there is no such key."""

    def read(self, key: str, span: slice = slice(None)) -> memoryview | None:
        """Bytes under the key, None where there is no such key."""

    def list_dir(self, prefix: str) -> Iterator[Entry]:
        """What lies directly beneath a directory."""


@dataclass(frozen=True)
class _Group:
    path: str


@dataclass(frozen=True)
class _Array:
    variable: Variable


@dataclass(frozen=True)
class _Chunk:
    path: str
    variable: Variable
    number: int


class RunKeys:
    """The zarr v3 hierarchy of a run: metadata is made, chunks are read, nothing is stored.

    Parameters
    ----------
    source : RunSource

    Examples
    --------
    >>> from lcls_dask.formats import open_source
    >>> keys = RunKeys(open_source(run_path))
    >>> keys.size("timestamp/c/0")
    160
    """

    def __init__(self, source: RunSource) -> None:
        self._source = source

    def __contains__(self, key: str) -> bool:
        """Whether the key exists: chunks by the grid, without a look at their bytes."""
        with self._present(key):
            return self._locate(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes under a key.

        Parameters
        ----------
        key : str

        Returns
        -------
        int or None
            None where there is no such key. Only an encoded chunk is read to know it.
        """
        with self._present(key):
            match self._locate(key):
                case _Chunk(_, variable, _) if is_plain(variable.codecs):
                    return _chunk_bytes(variable)
                case None:
                    return None
                case _:
                    data = self.read(key)
                    return None if data is None else data.nbytes

    def read(self, key: str, span: slice = slice(None)) -> memoryview | None:
        """Bytes under a key.

        Parameters
        ----------
        key : str
        span : slice
            Which bytes, as Python would slice them. Only the rows they belong to are read.

        Returns
        -------
        memoryview or None
            Of the array that the source gave, not a copy; only what overlaps the padding of the
            last chunk is copied. None where there is no such key.

        Raises
        ------
        LclsError
            The chunk exists but cannot be given: never a FileNotFoundError, which zarr takes for zeros.
        """
        with self._present(key):
            match self._locate(key):
                case _Group(path):
                    return memoryview(group_json(self._source.index, path))[span]
                case _Array(variable):
                    return memoryview(array_json(variable))[span]
                case _Chunk(path, variable, number) if not is_plain(variable.codecs):
                    return self._encoded(path, variable, number)[span]
                case _Chunk(path, variable, number):
                    return self._decoded(path, variable, number, span)
            return None

    def list_dir(self, prefix: str) -> Iterator[Entry]:
        """What lies directly beneath a directory; no event data is read.

        Parameters
        ----------
        prefix : str
            With or without a slash at its end; ``""`` for the root.

        Yields
        ------
        Entry
            Nothing where there is no such directory.
        """
        parts = [part for part in prefix.split("/") if part]
        path = _path(parts)
        nodes = self._source.index.nodes
        with self._present(prefix):
            if path in nodes:
                yield Entry(METADATA, False, len(group_json(self._source.index, path)))
                below = "/" if path == "/" else f"{path}/"
                for other in nodes:
                    name = other.removeprefix(below)
                    if other not in (path, "/") and other.startswith(below) and "/" not in name:
                        yield Entry(name)
                for name in self._variables(path):
                    yield Entry(name)
            elif (found := self._array(parts)) is not None:
                yield from _within(found[1], found[2])

    @contextmanager
    def _present(self, key: str) -> Iterator[None]:
        """Turn errors that readers take for "no such key", and fill with zeros, into one that they do not."""
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, KeyError) as error:
            ref = self._source.ref
            raise SnapshotError(
                f"{ref.path}: {key!r} belongs to the run as it was opened, but cannot be read any more "
                f"({error}); open the run again"
            ) from error

    def _variables(self, path: str) -> dict[str, Variable]:
        nodes = self._source.index.nodes
        variables = dict(nodes[path].variables)
        below = "" if path == "/" else path
        for name in variables:
            if "/" in name or f"{below}/{name}" in nodes:
                raise FormatError(
                    f"{self._source.ref.path}: variable {name!r} of node {path} has a slash in its name, or "
                    "is called like a node; the format's reader must rename it"
                )
        return variables

    def _array(self, parts: list[str]) -> tuple[str, Variable, list[str]] | None:
        """Node, variable, and what of the key follows them."""
        nodes = self._source.index.nodes
        for depth in range(len(parts)):
            path = _path(parts[:depth])
            if path not in nodes:
                return None
            if _path(parts[: depth + 1]) in nodes:
                continue
            variable = nodes[path].variables.get(parts[depth])
            return None if variable is None else (path, variable, parts[depth + 1 :])
        return None

    def _locate(self, key: str) -> _Group | _Array | _Chunk | None:
        parts = key.split("/")
        if parts[-1] == METADATA and _path(parts[:-1]) in self._source.index.nodes:
            return _Group(_path(parts[:-1]))
        if (found := self._array(parts)) is None:
            return None
        path, variable, rest = found
        if rest == [METADATA]:
            return _Array(variable)
        if rest[:1] != ["c"] or len(rest) != 1 + len(variable.shape):
            return None
        number = _number(variable, rest[1:])
        return None if number is None else _Chunk(path, variable, number)

    def _encoded(self, path: str, variable: Variable, number: int) -> memoryview:
        data = self._source.read_encoded(path, variable.name, number)
        if data is None:
            raise FormatError(
                f"{self._source.ref.path}: chunk {number} of {variable.name!r} in node {path} is not in the "
                "file, so it cannot be given encoded; read it with engine='lcls'"
            )
        return memoryview(data)

    def _decoded(self, path: str, variable: Variable, number: int, span: slice) -> memoryview:
        item, rows = variable.item_bytes, variable.storage_chunk
        start, stop, _ = span.indices(rows * item)
        if start >= stop:
            return memoryview(b"")
        base = number * rows
        length = variable.shape[0] if variable.shape else 1
        filled = min(stop, min(rows, length - base) * item)  # what follows is padding
        data = memoryview(b"")
        if start < filled:
            first, last = start // item, -(-filled // item)
            data = self._rows(path, variable, base + first, base + last)
            data = data[start - first * item : filled - first * item]
        if filled == stop:
            return data
        padded = np.zeros(stop - start, np.uint8)
        padded[: data.nbytes] = data
        return padded.data

    def _rows(self, path: str, variable: Variable, first: int, last: int) -> memoryview:
        values = self._source.read(path, variable.name, slice(first, last))
        if values.dtype != variable.dtype or values.nbytes != (last - first) * variable.item_bytes:
            raise FormatError(
                f"{self._source.ref.path}: rows {first}:{last} of {variable.name!r} in node {path} came as "
                f"{values.dtype} {values.shape}, not as {last - first} items of {variable.dtype}"
            )
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _path(parts: list[str]) -> str:
    return "/" + "/".join(parts)


def _chunk_bytes(variable: Variable) -> int:
    return variable.storage_chunk * variable.item_bytes


def _within(variable: Variable, rest: list[str]) -> Iterator[Entry]:
    """What lies in the directory `rest` of an array."""
    ndim = len(variable.shape)
    size = _chunk_bytes(variable) if is_plain(variable.codecs) else None
    if not rest:
        yield Entry(METADATA, False, len(array_json(variable)))
        if variable.chunk_count:
            yield Entry("c") if ndim else Entry("c", False, size)
    elif rest == ["c"] and ndim:
        for number in range(variable.chunk_count):
            yield Entry(str(number)) if ndim > 1 else Entry(str(number), False, size)
    elif rest[0] == "c" and len(rest) <= ndim and _number(variable, rest[1:]) is not None:
        yield Entry("0") if len(rest) < ndim else Entry("0", False, size)


def _number(variable: Variable, indices: list[str]) -> int | None:
    """Number of the chunk with these (or these first) grid indices, None outside the grid."""
    if any(index != "0" for index in indices[1:]):
        return None
    text = indices[0] if indices else "0"
    if not (text.isascii() and text.isdigit()) or (len(text) > 1 and text[0] == "0") or len(text) > 18:
        return None
    return int(text) if int(text) < variable.chunk_count else None
