"""One HDF5 file and its datasets as columns: the only place that reads event data.

Where a dataset's bytes lie in the file as NumPy wants them, they are read with `os.preadv` straight
into the result, past h5py's lock, which all threads of a process share. All else goes through libhdf5.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FormatError
from ..codecs import Codec, encode
from ..confine import open_inside
from ..source import Rows
from .columns import Array, Index
from .filters import Filter, require, zarr_codecs
from .reading import open_file, reading

#: A smaller chunk costs a reader more to ask for than to decode: those are not passed through.
LEAST_CHUNK = 256

#: Longest string that is read, in bytes.
LONGEST_TEXT = 16384


class DataFile:
    """An open HDF5 file. Opened when first needed, and again after `close`.

    Parameters
    ----------
    path : Path
        Without symbolic links, inside its run's directory (see `confine`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: Any = None
        self._descriptor = -1
        self._datasets: dict[str, Any] = {}

    def dataset(self, name: str) -> Any:
        """The h5py dataset of this name, kept open."""
        with self._lock:
            if self._file is None:
                self._file = open_file(self.path)
            if name not in self._datasets:
                self._datasets[name] = self._file[name]
            return self._datasets[name]

    @property
    def attrs(self) -> Any:
        """Attributes of the root group."""
        self.dataset("/")
        return self._file.attrs

    def pread(self, out: memoryview, offset: int, what: str) -> None:
        """Fill a buffer with the bytes at an offset of the file."""
        with self._lock:
            if self._descriptor < 0:
                self._descriptor = open_inside(self.path, self.path.parent)
            descriptor = self._descriptor
        while len(out):
            count = os.preadv(descriptor, [out], offset)
            if count == 0:
                raise FormatError(
                    f"{self.path}: {what} ends at byte {offset}, {len(out)} bytes early; copy the file again"
                )
            out, offset = out[count:], offset + count

    def close(self) -> None:
        """Give back the file's descriptors."""
        with self._lock:
            self._datasets = {}
            if self._file is not None:
                self._file.close()
                self._file = None
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    # Descriptors of its own, unlike a Python file, are not given back with the object.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # when Python ends, `os` may go first
        if self._descriptor >= 0:
            close(self._descriptor)


@dataclass(frozen=True)
class Stored:
    """A dataset of numbers.

    Attributes
    ----------
    file : DataFile
    name : str
        Path of the dataset.
    dtype : numpy.dtype
        Of the values given, in native byte order.
    disk : numpy.dtype
        Of the bytes in the file.
    shape : tuple of int
    chunks : tuple of int or None
    filters : tuple
    local : bool
        Whether its bytes are in this file, and not in one that a link leads to.
    """

    file: DataFile
    name: str
    dtype: np.dtype[Any]
    disk: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None
    filters: tuple[Filter, ...]
    local: bool = True

    @property
    def whole_rows(self) -> bool:
        """Whether chunks are split along the first dimension only."""
        return self.chunks is not None and self.chunks[1:] == self.shape[1:]

    @cached_property
    def codecs(self) -> tuple[Codec, ...]:
        if not self.local or not self.whole_rows or self.chunk * self._row_bytes < LEAST_CHUNK:
            return ()
        return zarr_codecs(self.filters, self.disk)

    @property
    def chunk(self) -> int:
        return self.chunks[0] if self.chunks is not None and self.whole_rows else 0

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.disk.itemsize

    @cached_property
    def _extents(self) -> tuple[int, Index] | None:
        """Rows in a piece that is contiguous in the file, and where each piece lies; -1: nowhere."""
        dataset = self.file.dataset(self.name)
        if self.filters or not self.local or dataset.is_virtual or not self._row_bytes or not self.shape[0]:
            return None
        if self.chunks is None:
            offset = dataset.id.get_offset()
            return None if offset is None else (self.shape[0], np.array([offset], np.int64))
        if not self.whole_rows:
            return None
        where = np.full(-(-self.shape[0] // self.chunk), -1, np.int64)

        def note(info: Any) -> None:
            where[info.chunk_offset[0] // self.chunk] = info.byte_offset

        dataset.id.chunk_iter(note)
        return self.chunk, where

    def read(self, rows: Rows) -> Array:
        with reading(self.file.path, self.name):
            count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            out = np.empty((count, *self.shape[1:]), self.disk)
            if isinstance(rows, slice):
                self._read_run(rows.start, rows.stop, out)
            elif count:
                self._read_rows(rows, out)
            return out if self.disk == self.dtype else out.astype(self.dtype)

    def _read_run(self, start: int, stop: int, out: Array) -> None:
        if self._extents is None:
            self._decode(start, stop, out)
            return
        piece, where = self._extents
        first = start
        while first < stop:
            last = min(stop, (first // piece + 1) * piece)
            offset = int(where[first // piece])
            part = out[first - start : last - start]
            if offset < 0:
                self._decode(first, last, part)
            else:
                view = part.reshape(-1).view(np.uint8).data
                self.file.pread(view, offset + first % piece * self._row_bytes, self.name)
            first = last

    def _read_rows(self, rows: Index, out: Array) -> None:
        """Any rows: each run of neighbours at once, and each compressed chunk decoded once."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        if self.filters and self.chunks is not None:
            groups = ordered // self.chunks[0]
            edges = np.flatnonzero(np.diff(groups)) + 1
        else:
            edges = np.flatnonzero(np.diff(ordered) > 1) + 1
        for first, last in zip([0, *edges], [*edges, len(rows)], strict=True):
            start, stop = int(ordered[first]), int(ordered[last - 1]) + 1
            run = np.empty((stop - start, *self.shape[1:]), self.disk)
            self._read_run(start, stop, run)
            out[order[first:last]] = run[ordered[first:last] - start]

    def _decode(self, start: int, stop: int, out: Array) -> None:
        require(self.filters, f"{self.file.path}: {self.name}")
        if stop > start:
            self.file.dataset(self.name).read_direct(out, np.s_[start:stop])

    def encoded(self, chunk: int) -> bytes:
        with reading(self.file.path, self.name):
            dataset = self.file.dataset(self.name)
            corner = (chunk * self.chunk, *(0 for _ in self.shape[1:]))
            info = dataset.id.get_chunk_info_by_coord(corner)
            if info.byte_offset is not None and info.filter_mask == 0:
                payload = bytearray(info.size)
                self.file.pread(memoryview(payload), info.byte_offset, f"{self.name}, chunk {chunk}")
                return bytes(payload)
            # never written (fill values), or a filter gave up on it: encode what HDF5 would give
            full = np.empty((self.chunk, *self.shape[1:]), self.disk)
            stop = min(corner[0] + self.chunk, self.shape[0])
            self._decode(corner[0], stop, full[: stop - corner[0]])
            full[stop - corner[0] :] = 0
            return encode(self.codecs, full)


@dataclass(frozen=True)
class Text:
    """A dataset of strings, given as fixed-width ``str``."""

    file: DataFile
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    filters: tuple[Filter, ...]
    codecs: tuple[Codec, ...] = ()
    chunk: int = 0

    def read(self, rows: Rows) -> Array:
        with reading(self.file.path, self.name):
            require(self.filters, f"{self.file.path}: {self.name}")
            text = self.file.dataset(self.name).asstr(errors="replace")
            if isinstance(rows, slice):
                return np.asarray(text[rows.start : rows.stop], dtype=self.dtype)
            wanted, where = np.unique(rows, return_inverse=True)
            return np.asarray(text[wanted] if len(wanted) else [], dtype=self.dtype)[where]

    def encoded(self, chunk: int) -> bytes:
        raise LookupError(f"{self.name} is not stored as a reader would see it")
