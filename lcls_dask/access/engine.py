"""The xarray engine ``lcls``: a run's nodes as Datasets whose values are read where they are used."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from ..errors import LiveRunError
from ..formats import RunSource, SourceRef, may_grow, reopen
from ..model import Variable
from ..stores.metadata import dataset_attrs, variable_attrs
from ..uri import is_uri, parse_uri
from .chunking import block_length
from .resolve import looks_like_run, open_at


class LclsArray(BackendArray):
    """One variable of a run, which reads what is asked of it.

    What is pickled is the run's reference, so that graphs stay small and hold neither data nor credentials.

    Parameters
    ----------
    ref : SourceRef
    path : str
        The node.
    variable : Variable
    """

    def __init__(self, ref: SourceRef, path: str, variable: Variable) -> None:
        self.ref, self.path, self.name = ref, path, variable.name
        self.shape, self.dtype = variable.shape, variable.dtype

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (self.ref, self.path, self.name)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        if isinstance(key, indexing.BasicIndexer | indexing.OuterIndexer):
            return self._read(key.tuple)  # as it is: xarray's adapter fails on an empty slice with a negative step
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        if not key:
            return reopen(self.ref).read(self.path, self.name, slice(0, 1)).reshape(())
        rows, after = _rows(key[0], self.shape[0])
        values = reopen(self.ref).read(self.path, self.name, rows)
        # from the last axis to the first, so that an integer, which drops its axis, moves no other
        for axis in range(len(key) - 1, 0, -1):
            if not (isinstance(key[axis], slice) and key[axis] == slice(None)):
                values = values[(slice(None),) * axis + (key[axis],)]
        return np.asarray(values[after])


def _rows(key: Any, size: int) -> tuple[slice | np.ndarray[Any, Any], Any]:
    """Rows to read for a key along the first dimension, and what to take of them."""
    if isinstance(key, int | np.integer):
        _within(np.asarray(key), size)
        at = int(key) + (size if key < 0 else 0)
        return slice(at, at + 1), 0
    if isinstance(key, slice):
        start, stop, step = key.indices(size)
        if step == 1:
            return slice(start, max(start, stop)), slice(None)
        return np.arange(start, stop, step, dtype=np.int64), slice(None)
    rows = np.asarray(key, np.int64)
    _within(rows, size)
    return np.where(rows < 0, rows + size, rows), slice(None)


def _within(rows: np.ndarray[Any, Any], size: int) -> None:
    """xarray leaves the check to the array, and what is not there must not read as zeros."""
    if rows.size and (rows.min() < -size or rows.max() >= size):
        wrong = rows[(rows < -size) | (rows >= size)].ravel()[0] if rows.ndim else rows
        raise IndexError(f"index {wrong} is out of bounds for axis 0 with size {size}")


def node_dataset(source: RunSource, path: str, drop: Iterable[str] = ()) -> xr.Dataset:
    """A node of a run as a lazy Dataset.

    Parameters
    ----------
    source : RunSource
    path : str
    drop : iterable of str
        Variables to leave out.

    Returns
    -------
    xarray.Dataset
        Nothing but segment numbers is read.
    """
    node, ref, left_out = source.index.nodes[path], source.ref, set(drop)
    kept = {name: v for name, v in node.variables.items() if name not in left_out}
    variables = {name: _lazy(ref, path, variable) for name, variable in kept.items()}
    coordinates = {name: variables.pop(name) for name, variable in kept.items() if variable.coordinate}
    return xr.Dataset(variables, coordinates, dataset_attrs(source.index, path))


def _lazy(ref: SourceRef, path: str, variable: Variable) -> xr.Variable:
    data = indexing.LazilyIndexedArray(LclsArray(ref, path, variable))
    chunks = {variable.dims[0]: block_length(variable)} if variable.dims else {}
    return xr.Variable(variable.dims, data, variable_attrs(variable), {"preferred_chunks": chunks})


class LclsBackendEntrypoint(BackendEntrypoint):
    """Opens LCLS runs: ``xr.open_dataset(uri_or_path, engine="lcls", chunks={})``.

    Parameters of ``open_dataset`` beside xarray's own: `group` (a node such as ``"/hsd"``), `run` (which one,
    where the files hold several), `snapshot` (pins a run that is still being written).
    """

    description = "LCLS runs: xtc2 streams, HDF5, exported zarr; finished or being written"
    url = "https://github.com/slac-lcls"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "group", "run", "snapshot")
    supports_groups = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[Any],
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        run: int | None = None,
        snapshot: str | None = None,
    ) -> xr.Dataset:
        """One node of a run."""
        source = pinned_source(filename_or_obj, run, snapshot)
        path = "/" + (group or "").strip("/")
        return node_dataset(source, path, _names(drop_variables))

    def open_groups_as_dict(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[Any],
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        run: int | None = None,
        snapshot: str | None = None,
    ) -> dict[str, xr.Dataset]:
        """Every node of a run, by path."""
        source = pinned_source(filename_or_obj, run, snapshot)
        if group is not None:
            return {"/": node_dataset(source, "/" + group.strip("/"), _names(drop_variables))}
        return {path: node_dataset(source, path, _names(drop_variables)) for path in source.index.nodes}

    def open_datatree(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[Any],
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        run: int | None = None,
        snapshot: str | None = None,
    ) -> xr.DataTree:
        """Every node of a run as a tree."""
        groups: Mapping[str, xr.Dataset] = self.open_groups_as_dict(
            filename_or_obj, drop_variables=drop_variables, group=group, run=run, snapshot=snapshot
        )
        return xr.DataTree.from_dict(dict(groups))

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is an ``lcls://`` URI, an xtc2 file, or a directory of them."""
        return isinstance(filename_or_obj, str | os.PathLike) and looks_like_run(os.fspath(filename_or_obj))


def _names(drop: str | Iterable[str] | None) -> tuple[str, ...]:
    return (drop,) if isinstance(drop, str) else tuple(drop or ())


def pinned_source(uri_or_path: str | os.PathLike[Any], run: int | None, snapshot: str | None) -> RunSource:
    """A source that no later opening under the same name can be confused with.

    xarray names Dask keys by the path, a file's time of writing and the keywords alone: a directory or URI whose run
    has no end, opened again after it has grown, would give the old results. So it must be pinned.

    Raises
    ------
    LiveRunError
        The run may still grow and no snapshot was given; the message holds the call that pins it.
    """
    text = os.fspath(uri_or_path)
    source = open_at(text, run, snapshot)
    index = source.index
    pinned = snapshot is not None or (is_uri(text) and parse_uri(text).snapshot is not None)
    if not pinned and may_grow(source):
        call = f"xr.open_dataset({text!r}, engine='lcls', snapshot={index.snapshot!r})"
        raise LiveRunError(
            f"{text}: run {index.run} of {index.experiment} has no end and may still be written; pin what is there "
            f"now: {call}, or use lcls_dask.open_run, which does"
        )
    return source
