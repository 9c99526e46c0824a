"""zarr v3 stores that our own export wrote, read back as runs.

Only what export writes is read: a local directory, chunks along the first dimension, and codecs that stand
in `codecs`. Any other store is for ``xarray.open_zarr``. Unlike zarr, a chunk that is missing is an error
and not zeros.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import (
    ConfinementError,
    FormatError,
    LclsError,
    RunNotFoundError,
    SelectionError,
    SnapshotError,
    UnsupportedError,
)
from ..model import Detector, Finding, Node, RunIndex, Variable
from . import memory
from .codecs import decode, is_plain
from .confine import open_inside, real_home
from .source import Rows, SourceRef

#: Attribute of the root group in which export describes the run.
EXPORT = "lcls_dask_export"
METADATA = "zarr.json"
#: How ``datetime64[ns]`` is written, which zarr v3 has no stable type for.
TIMES = {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}


def open_zarr(ref: SourceRef) -> "ZarrSource":
    """Open a store that export wrote.

    Parameters
    ----------
    ref : SourceRef
        Directory of the store.

    Returns
    -------
    ZarrSource
        With the names, dimensions, attributes and values of the run that was exported. Its snapshot is that
        of the run, or one of its own where only a part of the run was exported.

    Raises
    ------
    RunNotFoundError
        There is no such store.
    FormatError
        It is damaged, or another program wrote it.
    SnapshotError
        It is not of ``ref.snapshot``.
    ConfinementError
        A link in it leads out of it.

    Examples
    --------
    >>> open_zarr(SourceRef("/scratch/r0014.zarr")).index.state  # doctest: +SKIP
    'ended'
    """
    source = ZarrSource(ref)
    if ref.snapshot not in (None, source.index.snapshot):
        raise SnapshotError(
            f"{ref.path}: holds snapshot {source.index.snapshot}, not {ref.snapshot}; open it without a snapshot"
        )
    return source


class ZarrSource:
    """A run in a zarr v3 store. No file stays open.

    Parameters
    ----------
    ref : SourceRef
    """

    def __init__(self, ref: SourceRef) -> None:
        self._root = real_home(ref.path, ref.within)
        if not (self._root / METADATA).is_file():
            raise RunNotFoundError(f"{ref.path}: there is no zarr store; export writes one")
        about = self._json("").get("attributes", {}).get(EXPORT)
        if not isinstance(about, dict):
            raise FormatError(f"{ref.path}: export did not write this store; open it with xarray.open_zarr")
        try:
            self._index = self._read_index(about)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{ref.path}: its metadata is damaged ({error}); export it again") from error
        self._ref = SourceRef(ref.path, ref.run, self._index.snapshot)

    @property
    def index(self) -> RunIndex:
        """What is there."""
        return self._index

    @property
    def ref(self) -> SourceRef:
        """How another process opens the same."""
        return self._ref

    def __reduce__(self) -> tuple[Any, tuple[SourceRef]]:
        return open_zarr, (self._ref,)

    def _read_index(self, about: Mapping[str, Any]) -> RunIndex:
        nodes: dict[str, Node] = {}
        run: dict[str, Any] = {}
        for path, names in about["nodes"].items():
            attrs = self._json(path)["attributes"]
            own = {key: attrs.pop(key) for key in ("experiment", "run", "state", "snapshot")}
            run = own if path == "/" else run
            attrs.pop(EXPORT, None)
            nodes[path] = Node(path, {name: self._variable(path, name) for name in names}, attrs)
        detectors = {
            name: Detector(name, own["kind"], own["serial"], tuple(own["segments"]), own["algorithms"])
            for name, own in about["detectors"].items()
        }
        return RunIndex(
            str(run["experiment"]),
            int(run["run"]),
            str(run["state"]),
            str(run["snapshot"]),
            nodes,
            detectors,
            nodes["/"].attrs,
        )

    def _variable(self, path: str, name: str) -> Variable:
        array = self._json(f"{path.strip('/')}/{name}")
        shape = tuple(int(length) for length in array["shape"])
        chunk = [int(length) for length in array["chunk_grid"]["configuration"]["chunk_shape"]]
        if not shape or min(shape) < 0 or chunk[0] < 1 or chunk[1:] != [max(1, length) for length in shape[1:]]:
            raise ValueError(f"{name} is split along more than its first dimension")
        attrs = dict(array["attributes"])
        dtype = _dtype(array["data_type"])
        if dtype == np.int64 and all(attrs.get(key) == value for key, value in TIMES.items()):
            dtype = np.dtype("datetime64[ns]")
            attrs = {key: value for key, value in attrs.items() if key not in TIMES}
        dims = tuple(array["dimension_names"])
        coordinate = dims == (name,) or attrs.pop("coordinates", None) == name
        return Variable(name, dims, shape, dtype, chunk[0], attrs, coordinate, tuple(array["codecs"]))

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """A file of the store, as its descriptor and size; links out are refused, also ones made at this moment."""
        name = f"{self._root}/{key.lstrip('/')}"
        if ".." in key.split("/"):
            raise ConfinementError(f"{self._root}: {key} leads out of the store")
        fd = open_inside(name, self._root)
        try:
            yield fd, os.fstat(fd).st_size
        finally:
            os.close(fd)

    def _bytes(self, key: str) -> bytes:
        with self._opened(key) as (fd, size):
            data = os.read(fd, size)
            if len(data) == size:
                return data
            pieces = [data]  # the kernel gives 2 GiB at a time; or the file was cut meanwhile
            while piece := os.read(fd, size):
                pieces.append(piece)
            return b"".join(pieces)

    def _json(self, key: str) -> dict[str, Any]:
        path = f"{self._root}/{key.strip('/')}/{METADATA}"
        try:
            value = json.loads(self._bytes(f"{key}/{METADATA}"))
        except LclsError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"{path}: cannot be read as JSON ({error}); export the run again") from error
        if not isinstance(value, dict):
            raise FormatError(f"{path}: is no zarr metadata; export the run again")
        return value

    def _find(self, path: str, name: str) -> Variable:
        try:
            return self._index.nodes[path].variables[name]
        except KeyError:
            raise SelectionError(
                f"{self._ref.path}: there is no variable {name!r} in node {path}; lcls-dask info lists them"
            ) from None

    def read(self, path: str, name: str, rows: Rows) -> np.ndarray[Any, Any]:
        """Values of a variable.

        Parameters
        ----------
        path, name : str
            Node and variable.
        rows : slice or (n,) int64
            Along the first dimension.

        Returns
        -------
        (n, *shape[1:]) ndarray

        Raises
        ------
        FormatError
            A chunk is missing or damaged.
        """
        variable = self._find(path, name)
        length = variable.chunk
        if not variable.item_bytes:  # nothing is stored of it
            count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            return np.empty((count, *variable.shape[1:]), variable.dtype)
        if isinstance(rows, slice):
            if is_plain(variable.codecs):
                return self._plain(path, variable, rows)
            out = np.empty((rows.stop - rows.start, *variable.shape[1:]), variable.dtype)
            for number in range(rows.start // length, -(-rows.stop // length) if len(out) else 0):
                first, last = max(rows.start, number * length), min(rows.stop, (number + 1) * length)
                values = self._chunk(path, variable, number)
                out[first - rows.start : last - rows.start] = values[first - number * length : last - number * length]
            return out
        out = np.empty((len(rows), *variable.shape[1:]), variable.dtype)
        numbers = rows // length
        for number in np.unique(numbers):
            here = numbers == number
            out[here] = self._chunk(path, variable, int(number))[rows[here] - number * length]
        return out

    def _plain(self, path: str, variable: Variable, rows: slice) -> np.ndarray[Any, Any]:
        """Rows of chunks that are not encoded: only their bytes are read, straight into the array."""
        item, length = variable.item_bytes, variable.chunk
        out = memory.empty((rows.stop - rows.start) * item)
        for number in range(rows.start // length, -(-rows.stop // length) if out.size else 0):
            first, last = max(rows.start, number * length), min(rows.stop, (number + 1) * length)
            part = out.data[(first - rows.start) * item : (last - rows.start) * item]
            try:
                with self._opened(self._key(path, variable, number)) as (fd, size):
                    got = _fill(part, fd, (first - number * length) * item)
            except FileNotFoundError:
                raise self._missing(path, variable, number) from None
            if size != length * item or got != part.nbytes:
                raise FormatError(
                    f"{self._root}: chunk {number} of {variable.name} in {path} has {size} bytes instead of "
                    f"{length * item}; export it again"
                )
        return out.view(variable.dtype).reshape(-1, *variable.shape[1:])

    def _key(self, path: str, variable: Variable, chunk: int) -> str:
        return "/".join([path.strip("/"), variable.name, "c", str(chunk), *("0" for _ in variable.shape[1:])])

    def _missing(self, path: str, variable: Variable, chunk: int) -> FormatError:
        return FormatError(f"{self._root}: chunk {chunk} of {variable.name} in {path} is missing; export the run again")

    def _chunk(self, path: str, variable: Variable, number: int) -> np.ndarray[Any, Any]:
        payload = self.read_encoded(path, variable.name, number)
        shape = (variable.chunk, *variable.shape[1:])
        if payload is None:
            raise self._missing(path, variable, number)
        stored = np.dtype("int64") if variable.dtype.kind == "M" else variable.dtype
        try:
            values = decode(variable.codecs, payload, stored)
            return values.reshape(shape).view(variable.dtype)
        except LclsError:
            raise
        except (RuntimeError, ValueError, OSError, EOFError) as error:
            raise FormatError(
                f"{self._root}: chunk {number} of {variable.name} in {path} is damaged ({error}); export it again"
            ) from error

    def read_encoded(self, path: str, name: str, chunk: int) -> bytes | None:
        """A chunk as the store holds it.

        Parameters
        ----------
        path, name : str
            Node and variable.
        chunk : int

        Returns
        -------
        bytes or None
            None where the store has no such chunk.
        """
        try:
            return self._bytes(self._key(path, self._find(path, name), chunk))
        except FileNotFoundError:
            return None

    def validate(self) -> Iterator[Finding]:
        """Read everything once and say what is wrong with it.

        Yields
        ------
        Finding
        """
        for path, node in self._index.nodes.items():
            for name, variable in node.variables.items():
                bad, why = 0, ""
                for start in range(0, variable.shape[0], variable.chunk):
                    stop = min(start + variable.chunk, variable.shape[0])
                    try:
                        self.read(path, name, slice(start, stop))
                    except (FormatError, UnsupportedError) as error:
                        bad, why = bad + stop - start, str(error)
                if bad:
                    yield Finding("corrupt", f"{path} {name}", why, bad, fatal=True)

    def close(self) -> None:
        """Nothing to give back: no file stays open."""


def _fill(part: memoryview, fd: int, at: int) -> int:
    """Read into memory from somewhere in a file; how many bytes there were."""
    done = 0
    while done < part.nbytes and (got := os.preadv(fd, [part[done:]], at + done)):
        done += got
    return done


def _dtype(data_type: Any) -> np.dtype[Any]:
    """The NumPy dtype of zarr's ``data_type``."""
    if isinstance(data_type, dict):
        if data_type["name"] != "fixed_length_utf32":
            raise ValueError(f"data type {data_type['name']!r} is not one that export writes")
        return np.dtype(f"<U{int(data_type['configuration']['length_bytes']) // 4}")
    dtype: np.dtype[Any] = np.dtype(data_type)
    if dtype.kind not in "biufc":
        raise ValueError(f"data type {data_type!r} is not one that export writes")
    return dtype
