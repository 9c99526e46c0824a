"""A run behind a gateway as a `RunSource`."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote

import numpy as np

from ... import config
from ...errors import FormatError, RunNotFoundError, SelectionError, SnapshotError
from ...model import Finding, RunIndex, Variable
from ...uri import parse_uri
from .. import codecs, memory
from ..source import Rows, RunSource, SourceRef
from .cache import ChunkCache, chunk_cache
from .direct import OpenFiles, open_directly
from .documents import run_index
from .findings import findings
from .gateway import Gateway, gateway_at, quoted
from .http import Get
from .plan import Piece, of_rows, of_slice

Array = np.ndarray[Any, Any]


class RemoteSource:
    """A run behind a gateway, pinned to one snapshot.

    Values come through the gateway; or, where it says so and this machine sees the same files, from these.

    Parameters
    ----------
    ref : SourceRef
        With ``lcls://<experiment>/r<NNNN>`` as its path, and the gateway's address.
    open_files : callable
        Opens a path, run, snapshot and used bytes, as `open_source` does.

    Raises
    ------
    AccessError
        It may not be read.
    RunNotFoundError
        There is no such run, or it is not this user's to know of.
    SnapshotError
        The gateway does not have that snapshot.
    UnreachableError
        The gateway does not answer.
    """

    def __init__(self, ref: SourceRef, open_files: OpenFiles) -> None:
        self._open_files = open_files
        uri = parse_uri(ref.path)
        if uri.run is None or ref.gateway is None:
            raise RunNotFoundError(f"{ref.path}: names no run behind a gateway")
        self._gateway: Gateway = gateway_at(ref.gateway)
        self._path = f"lcls://{uri.experiment}/r{uri.run:04d}"
        base = f"/v1/runs/{uri.experiment}/r{uri.run:04d}"
        document = self._gateway.document(f"{base}@{ref.snapshot}" if ref.snapshot else base)
        self._index = run_index(document, lambda path: self._gateway.document(f"{self._base}/nodes/{quote(path[1:])}"))
        if not self._index.snapshot.startswith(ref.snapshot or ""):
            raise SnapshotError(f"{self._path}: the gateway has {self._index.snapshot}, not {ref.snapshot}")
        self._base = f"{base}@{self._index.snapshot}"
        self._cache: ChunkCache | None = chunk_cache()

    @property
    def index(self) -> RunIndex:
        """What is there."""
        return self._index

    @property
    def ref(self) -> SourceRef:
        """How another process opens the same; it finds credentials of its own."""
        return SourceRef(self._path, self._index.run, self._index.snapshot, (), str(self._gateway.address))

    @cached_property
    def _files(self) -> RunSource | None:
        """The same run in the facility's own files, where they may and can be read."""
        if not config.direct():
            return None
        return open_directly(self._gateway, f"{self._base}/direct", self._index.snapshot, self._open_files)

    def read(self, path: str, name: str, rows: Rows) -> Array:
        """Values of a variable; see `RunSource.read`."""
        variable = self._variable(path, name)
        if self._files is not None:
            return self._files.read(path, name, rows)
        if not codecs.is_plain(variable.codecs):
            return self._decoded(path, variable, rows)
        item = variable.item_bytes
        count = rows.stop - rows.start if isinstance(rows, slice) else rows.size
        if not count or not item:
            return np.zeros((count, *variable.shape[1:]), variable.dtype)
        chunk = variable.storage_chunk
        if isinstance(rows, slice):
            pieces, index = list(of_slice(rows.start, rows.stop, chunk)), None
        else:
            pieces, index = of_rows(rows, chunk, item)
        out = memory.empty(sum(piece.rows for piece in pieces) * item)
        self._fill(out.data, path, variable, pieces)
        values = out.view(variable.dtype.newbyteorder("<")).reshape(-1, *variable.shape[1:])
        values = values.astype(variable.dtype, copy=False)
        return values if index is None or np.array_equal(index, np.arange(len(values))) else values[index]

    def _fill(self, out: memoryview, path: str, variable: Variable, pieces: Sequence[Piece]) -> None:
        """Bytes of pieces, one behind the other, straight from the connection."""
        item, at, gets, wanted = variable.item_bytes, 0, [], []
        for piece in pieces:
            part = out[at : at + piece.rows * item]
            at += part.nbytes
            key = self._key(path, variable, piece.chunk)
            known = self._cache.get(self._cache_key(key)) if self._cache else None
            if known is not None:
                part[:] = known[piece.start * item : piece.stop * item]
                continue
            whole = piece.rows == variable.storage_chunk
            span = None if whole else (piece.start * item, piece.stop * item)
            gets.append(Get(f"{self._base}/zarr/{quoted(key)}", span, part))
            wanted.append((key, whole))
        for get, (key, whole), body in zip(gets, wanted, self._answers(gets), strict=True):
            if body is not get.into:
                raise FormatError(f"{self._path}: the gateway gave {body.nbytes} bytes of {key}, which is not its size")
            if whole and self._cache:
                self._cache.put(self._cache_key(key), body)

    def _answers(self, gets: Sequence[Get]) -> Iterator[memoryview]:
        try:
            for answer in self._gateway.fetch(gets):
                yield answer.body
        except RunNotFoundError as error:
            # the run was there: readers must not take it for a chunk that was never written, and fill in zeros
            raise SnapshotError(f"{error}; it was there when it was opened: open the run again") from error

    def _decoded(self, path: str, variable: Variable, rows: Rows) -> Array:
        wanted = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        out = np.zeros((wanted.size, *variable.shape[1:]), variable.dtype)
        numbers = wanted // variable.chunk
        present = np.unique(numbers).tolist()
        chunks = zip(present, self._encoded(path, variable, present), strict=True)
        for number, payload in chunks:
            decoded = codecs.decode(variable.codecs, payload, variable.dtype)
            decoded = decoded.reshape(variable.chunk, *variable.shape[1:])
            mine = numbers == number
            out[mine] = decoded[wanted[mine] - number * variable.chunk]
        return out

    def _encoded(self, path: str, variable: Variable, numbers: Sequence[int]) -> Iterator[bytes]:
        keys = [self._key(path, variable, number) for number in numbers]
        for body in self._answers([Get(f"{self._base}/zarr/{quoted(key)}") for key in keys]):
            yield bytes(body)

    def read_encoded(self, path: str, name: str, chunk: int) -> bytes | None:
        """A storage chunk as the file holds it; see `RunSource.read_encoded`."""
        variable = self._variable(path, name)
        if self._files is not None:
            return self._files.read_encoded(path, name, chunk)
        (payload,) = self._encoded(path, variable, [chunk])
        return payload

    def validate(self) -> Iterator[Finding]:
        """Fetch everything once and say what is wrong with it."""
        return self._files.validate() if self._files is not None else findings(self)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._gateway.close()
        if self._files is not None:
            self._files.close()

    def _variable(self, path: str, name: str) -> Variable:
        variables = self._index.nodes[path].variables
        if name not in variables:
            raise SelectionError(f"there is no {name!r} in {path}; there are {', '.join(variables)}")
        return variables[name]

    def _key(self, path: str, variable: Variable, chunk: int) -> str:
        grid = (str(chunk), *("0" for _ in variable.shape[1:])) if variable.shape else ()
        return "/".join(part for part in (path[1:], variable.name, "c", *grid) if part)

    def _cache_key(self, key: str) -> str:
        return f"{self._base}/{key}"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteSource, (self.ref, self._open_files)
