"""The xarray engine ``lcls``: a run's nodes as Datasets whose values are read where they are used."""

import os
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from glob import escape
from typing import Any

import numpy as np
import xarray as xr
from dask.tokenize import normalize_token
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from ..errors import LiveRunError, SnapshotError
from ..formats import RunSource, SourceRef, may_grow, reopen
from ..model import Variable
from ..stores.metadata import dataset_attrs, variable_attrs
from ..uri import is_uri, parse_uri
from .chunking import block_length
from .cutting import Picked, Shifted, Spans, cut_node, matching
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
    rows : Picked, Spans or Shifted, optional
        Which rows of the variable these are; all by default.
    """

    def __init__(
        self, ref: SourceRef, path: str, variable: Variable, rows: Picked | Spans | Shifted | None = None
    ) -> None:
        self.ref, self.path, self.name, self.rows = ref, path, variable.name, rows
        self.shape, self.dtype = variable.shape, variable.dtype
        if rows is not None:
            self.shape = (rows.length, *variable.shape[1:])

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return normalize_token((self.ref, self.path, self.name, self.rows))  # type: ignore[no-any-return]

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        if isinstance(key, indexing.BasicIndexer | indexing.OuterIndexer):
            return self._read(key.tuple)  # as it is: xarray's adapter fails on an empty slice with a negative step
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        if not key:
            return reopen(self.ref).read(self.path, self.name, slice(0, 1)).reshape(())
        rows, after = _rows(key[0], self.shape[0])
        rows = rows if self.rows is None else self.rows.at(rows)
        values = reopen(self.ref).read(self.path, self.name, rows)
        if isinstance(self.rows, Shifted):
            values = values - self.rows.origin
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


def cut_dataset(whole: xr.Dataset, source: RunSource, path: str, event: str, chosen: Any) -> xr.Dataset:
    """Some events of a node that has ragged fields.

    Parameters
    ----------
    whole : xarray.Dataset
        The node, or some of its variables, as `node_dataset` gives it.
    source : RunSource
    path : str
        Of the node.
    event : str
        The dimension of its events.
    chosen : (n,) int64
        Which of them, in any order.

    Returns
    -------
    xarray.Dataset
        Values are read where they are used; but of events that are not consecutive the offsets of ragged fields are
        in memory.
    """
    node, ref = source.index.nodes[path], source.ref
    cut = cut_node(
        source, replace(node, variables=matching(node, [escape(str(name)) for name in whole])), event, chosen
    )
    variables: dict[Hashable, xr.Variable] = {}
    for name, there in whole.variables.items():
        offsets = cut.offsets.get(str(name))
        if isinstance(offsets, Shifted):
            variables[name] = _lazy(ref, path, node.variables[str(name)], offsets)
        elif offsets is not None:
            variables[name] = xr.Variable(there.dims, offsets, there.attrs, there.encoding)
        elif there.dims and there.dims[0] in cut.maps:
            variables[name] = _lazy(ref, path, node.variables[str(name)], cut.maps[str(there.dims[0])])
        else:
            variables[name] = there
    coordinates = {name: variables.pop(name) for name in whole.coords}
    return xr.Dataset(variables, coordinates, whole.attrs)


def _lazy(ref: SourceRef, path: str, variable: Variable, rows: Picked | Spans | Shifted | None = None) -> xr.Variable:
    data = indexing.LazilyIndexedArray(LclsArray(ref, path, variable, rows))
    chunks = {variable.dims[0]: block_length(variable)} if variable.dims else {}
    return xr.Variable(variable.dims, data, variable_attrs(variable), {"preferred_chunks": chunks})


class LclsBackendEntrypoint(BackendEntrypoint):
    """Opens LCLS runs: ``xr.open_dataset(uri_or_path, engine="lcls", chunks={})``.

    Parameters of ``open_dataset`` beside xarray's own: `group` (a node such as ``"/hsd"``), `run` (which one,
    where the files hold several), `snapshot` (pins a run that is still being written),
    `gateway` (where an ``lcls://`` URI is read from).
    """

    description = "LCLS runs: xtc2 streams, HDF5, exported zarr; finished or being written"
    url = "https://github.com/slac-lcls"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "group", "run", "snapshot", "gateway")
    supports_groups = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[Any],
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        run: int | None = None,
        snapshot: str | None = None,
        gateway: str | None = None,
    ) -> xr.Dataset:
        """One node of a run."""
        source = pinned_source(filename_or_obj, run, snapshot, gateway)
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
        gateway: str | None = None,
    ) -> dict[str, xr.Dataset]:
        """Every node of a run, by path."""
        source = pinned_source(filename_or_obj, run, snapshot, gateway)
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
        gateway: str | None = None,
    ) -> xr.DataTree:
        """Every node of a run as a tree."""
        groups: Mapping[str, xr.Dataset] = self.open_groups_as_dict(
            filename_or_obj,
            drop_variables=drop_variables,
            group=group,
            run=run,
            snapshot=snapshot,
            gateway=gateway,
        )
        return xr.DataTree.from_dict(dict(groups))

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is an ``lcls://`` URI, an xtc2 file, or a directory of them."""
        return isinstance(filename_or_obj, str | os.PathLike) and looks_like_run(os.fspath(filename_or_obj))


def _names(drop: str | Iterable[str] | None) -> tuple[str, ...]:
    return (drop,) if isinstance(drop, str) else tuple(drop or ())


#: Snapshots that this process has opened by names which do not hold them, by name, place and run; see `pinned_source`.
_SEEN: dict[tuple[str, str, float | None, int | None], str] = {}


def pinned_source(
    uri_or_path: str | os.PathLike[Any], run: int | None, snapshot: str | None, gateway: str | None = None
) -> RunSource:
    """A source that no other one, opened under the same name before or later, can be confused with.

    xarray names Dask keys by the path, its time of writing (of URIs not even that) and the keywords alone. So a
    directory or URI whose run has no end must be pinned: opened again after it has grown, it would give the old
    results. And what this process has opened before, and was replaced since, must be pinned as well.

    Raises
    ------
    LiveRunError
        The run may still grow and no snapshot was given; the message holds the call that pins it.
    SnapshotError
        This process has opened something else under the same name, and no snapshot was given.
    """
    text = os.fspath(uri_or_path)
    source = open_at(text, run, snapshot, gateway)
    index = source.index
    if snapshot is not None or (is_uri(text) and parse_uri(text).snapshot is not None):
        return source
    call = f"xr.open_dataset({text!r}, engine='lcls', snapshot={index.snapshot!r})"
    if may_grow(source):
        raise LiveRunError(
            f"{text}: run {index.run} of {index.experiment} has no end and may still be written; pin what is there "
            f"now: {call}, or use lcls_dask.open_run, which does"
        )
    if (
        _SEEN.setdefault((text, source.ref.gateway or source.ref.path, _written(text), run), index.snapshot)
        != index.snapshot
    ):
        raise SnapshotError(
            f"{text}: is another run than when it was opened before, and Dask would give results of that one; pin what "
            f"is there now: {call}, or use lcls_dask.open_run, which does"
        )
    return source


def _written(text: str) -> float | None:
    """What xarray knows of the time of writing: of a path its own, nothing of a URI."""
    return None if is_uri(text) else os.stat(os.path.expanduser(text)).st_mtime
