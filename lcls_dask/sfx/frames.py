"""Frames as operations take them: an array of any kind as blocks of events, with the coordinates of each block."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from ..errors import ArgumentError
from ..reduce.ragged import Ragged, block_coordinates, empty_like

Array = np.ndarray[Any, np.dtype[Any]]

DIMS = ("event", "segment", "row", "column")

#: Bytes of a block of frames in memory.
BLOCK_BYTES = 64 << 20


def as_frames(frames: Any) -> xr.DataArray:
    """Frames as (event, segment, row, column).

    Parameters
    ----------
    frames : xarray.DataArray, numpy.ndarray or dask.array.Array
        The last dimensions are those of rows and columns, one before them that of segments, the first that of events.
        What an array has fewer, it has one of. Integers or real numbers. A run's variable will do, whose dimensions are
        ``event``, ``jungfrau.segment`` and so on.

    Returns
    -------
    xarray.DataArray
        With coordinates over `event` and `segment`.

    Raises
    ------
    ArgumentError
        They are of another kind.

    Examples
    --------
    >>> as_frames(np.zeros((8, 512, 1024))).sizes["event"]
    1
    """
    if isinstance(frames, xr.DataArray):
        axes = {dim: str(dim).rpartition(".")[2] for dim in frames.dims}
        if not {"row", "column"} <= set(axes.values()) and frames.ndim <= 4:
            axes = dict(zip(frames.dims, DIMS[4 - frames.ndim :], strict=True))
        if sorted(axes.values()) != sorted({"row", "column"} | set(axes.values()) & {"event", "segment"}):
            names = ", ".join(map(str, frames.dims))
            raise ArgumentError(f"frames have dimensions event, segment, row and column, not {names}")
        array = frames.rename({dim: axis for dim, axis in axes.items() if dim != axis})
        kept = {"event", "segment"}
        array = array.drop_vars([name for name, c in array.coords.items() if not c.dims or not set(c.dims) <= kept])
    elif isinstance(frames, np.ndarray | da.Array):
        if not 2 <= frames.ndim <= 4:
            raise ArgumentError(f"frames have 2 to 4 dimensions, event, segment, row and column, not {frames.ndim}")
        array = xr.DataArray(frames, dims=DIMS[4 - frames.ndim :])
    else:
        raise ArgumentError(f"frames are a DataArray, a NumPy or a Dask array, not {type(frames).__name__}")
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise ArgumentError(f"frames are integers or real numbers, not {array.dtype}")
    missing = {dim: 1 for dim in ("event", "segment") if dim not in array.dims}
    array = array.expand_dims(missing).transpose(*DIMS)
    if "segment" not in array.coords:
        array = array.assign_coords(segment=np.arange(array.sizes["segment"]))
    return array


def whole_frames(array: xr.DataArray) -> xr.DataArray:
    """The same in Dask blocks along events alone.

    Parameters
    ----------
    array : (event, segment, row, column) xarray.DataArray

    Returns
    -------
    xarray.DataArray
    """
    if array.chunks is not None:
        return array.chunk({"segment": -1, "row": -1, "column": -1})
    event_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])))
    length = max(1, min(array.sizes["event"], BLOCK_BYTES // event_bytes))
    # a name of its own: hashing the values would cost more than what is done with them
    blocks = da.from_array(array.values, chunks=(length, -1, -1, -1), name=False)  # type: ignore[no-untyped-call]
    return array.copy(data=blocks)


def fits(array: xr.DataArray, shape: tuple[int, int, int], of: str) -> None:
    """Check that frames are those of a detector.

    Parameters
    ----------
    array : (event, segment, row, column) xarray.DataArray
    shape : (int, int, int)
        Segments, rows, columns.
    of : str
        What has that shape.

    Raises
    ------
    ArgumentError
        They are not.

    Examples
    --------
    >>> fits(as_frames(np.zeros((8, 512, 1024))), (8, 512, 1024), "the geometry")
    """
    if array.shape[1:] != shape:
        theirs, ours = (" x ".join(map(str, one)) for one in (array.shape[1:], shape))
        raise ArgumentError(f"frames have {theirs} pixels (segment x row x column), and {of} is of {ours}")


def ragged(
    array: xr.DataArray, work: Callable[[Array, xr.Dataset, Any], xr.Dataset], shared: Delayed, meta: xr.Dataset
) -> Ragged:
    """Ragged rows made of each block of frames.

    Parameters
    ----------
    array : (event, segment, row, column) xarray.DataArray
        As `whole_frames` gives it.
    work : callable
        Takes the block's values, its coordinates over event and segment, and what all blocks share; gives a CSR
        Dataset.
    shared : Delayed
        Made once.
    meta : xarray.Dataset
        What `work` gives of no events, without coordinates.

    Returns
    -------
    Ragged
    """
    data: da.Array = array.data
    coords = array.coords.to_dataset().assign_attrs(told_of(array)).load()
    name = f"ragged-{tokenize(data.name, work, shared.key, coords)}"
    layer: Any = {
        (name, i): (work, (data.name, i, 0, 0, 0), block, shared.key)
        for i, block in enumerate(_blocks(coords, data.chunks[0]))
    }
    collections: Any = [data, shared]
    graph = HighLevelGraph.from_collections(name, layer, collections)
    none = coords.isel(event=slice(0, 0), missing_dims="ignore")
    return Ragged(graph, name, data.chunks[0], empty_like(meta.assign_coords(block_coordinates(none))))


def told_of(array: xr.DataArray) -> dict[str, Any]:
    """What results say of the frames that they were made of: units, constants, calibration.

    Parameters
    ----------
    array : xarray.DataArray

    Returns
    -------
    dict

    Examples
    --------
    >>> told_of(xr.DataArray(np.zeros(1), attrs={"units": "photon", "long_name": "pixels"}))
    {'units': 'photon'}
    """
    kept = {key: value for key, value in array.attrs.items() if str(key).startswith(("constants.", "calibration."))}
    return {"units": str(array.attrs.get("units", "1")), **kept}


def mapped(
    array: xr.DataArray,
    work: Callable[[Array, xr.Dataset, Any], Array],
    shared: Delayed,
    dtype: Any,
    shape: tuple[int, int, int] | None = None,
) -> xr.DataArray:
    """Frames made of each block of frames.

    Parameters
    ----------
    array : (event, segment, row, column) xarray.DataArray
        As `whole_frames` gives it.
    work : callable
        Takes the block's values, its coordinates over event and segment, and what all blocks share; gives as many
        frames.
    shared : Delayed
        Made once.
    dtype : dtype
    shape : (int, int, int), optional
        Segments, rows and columns of what is made; by default those of the frames.

    Returns
    -------
    (event, segment, row, column) xarray.DataArray
        With the coordinates of `array`, without its attributes.
    """
    data: da.Array = array.data
    coords = array.coords.to_dataset().load()
    name = f"{work.__name__}-{tokenize(data.name, work, shared.key, coords)}"
    layer: Any = {
        (name, i, 0, 0, 0): (work, (data.name, i, 0, 0, 0), block, shared.key)
        for i, block in enumerate(_blocks(coords, data.chunks[0]))
    }
    collections: Any = [data, shared]
    graph = HighLevelGraph.from_collections(name, layer, collections)
    chunks = data.chunks if shape is None else (data.chunks[0], *((size,) for size in shape))
    made = da.Array(graph, name, chunks, dtype)  # type: ignore[no-untyped-call]
    kept = (
        coords if shape is None else coords.drop_vars([n for n, c in coords.variables.items() if "segment" in c.dims])
    )
    return xr.DataArray(made, kept.coords, DIMS, "pixels")


def _blocks(coords: xr.Dataset, lengths: tuple[int, ...]) -> list[xr.Dataset]:
    """Coordinates of each block."""
    edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    return [coords.isel(event=slice(first, last), missing_dims="ignore") for first, last in pairwise(edges)]


def as_float32(values: Array, coords: xr.Dataset) -> Array:
    """A block as the kernels take it: pixels of segments that are absent are NaN.

    Parameters
    ----------
    values : (event, segment, row, column) array
    coords : xarray.Dataset
        Its `present` (event, segment) says which are there.

    Returns
    -------
    (event, segment, row, column) float32
        The same memory, where nothing had to be done.
    """
    made = np.ascontiguousarray(values, np.float32)
    there = present_of(coords, made.shape[:2])
    if not there.all():
        made = made.copy() if np.shares_memory(made, values) else made
        made[~there] = np.nan
    return made


def present_of(coords: xr.Dataset, shape: tuple[int, ...]) -> Array:
    """Which segments of which events are there.

    Parameters
    ----------
    coords : xarray.Dataset
        Of a block; its `present` over event, segment, or both.
    shape : (int, int)
        Events, segments.

    Returns
    -------
    (event, segment) bool

    Examples
    --------
    >>> present_of(xr.Dataset(coords={"present": ("event", [True, False])}), (2, 1)).ravel()
    array([ True, False])
    """
    if "present" not in coords:
        return np.ones(shape, np.bool_)
    there = coords["present"].astype(np.bool_)
    missing = {dim: size for dim, size in zip(DIMS[:2], shape, strict=True) if dim not in there.dims}
    made: Array = there.expand_dims(missing).transpose(*DIMS[:2]).values
    return made
