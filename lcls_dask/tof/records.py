"""Waveforms as operations take them: an array of any kind as blocks of events, with the coordinates of each block."""

from collections.abc import Callable, Hashable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from ..errors import ArgumentError
from ..reduce.ragged import Ragged, empty_like

Array = np.ndarray[Any, np.dtype[Any]]

#: Time between samples of LCLS's high-speed digitizer, 6.4 GS/s * 13/14 [ns].
SAMPLE_NS = 1e9 / (6.4e9 * 13 / 14)

#: Bytes of a block of an array in memory.
BLOCK_BYTES = 16 << 20

_NANOSECONDS = {"s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "ns": 1.0, "ps": 1e-3}


def as_waveforms(waveforms: Any) -> xr.DataArray:
    """Waveforms as (event, channel, sample).

    Parameters
    ----------
    waveforms : xarray.DataArray, numpy.ndarray or dask.array.Array
        The last dimension is that of samples, one before it that of channels, the first that of events. What an
        array has fewer, it has one of. Integers or real numbers.

    Returns
    -------
    xarray.DataArray
        With coordinates over `event` and `channel`.

    Raises
    ------
    ArgumentError
        They are of another kind.

    Examples
    --------
    >>> as_waveforms(np.zeros((4, 100))).sizes["event"]
    1
    """
    if isinstance(waveforms, xr.DataArray):
        array = waveforms
        axes = {dim: _axis(dim) for dim in array.dims}
        if "sample" not in axes.values() and array.ndim <= 3:
            axes = dict(zip(array.dims, ("event", "channel", "sample")[3 - array.ndim :], strict=True))
        if sorted(axes.values()) != sorted({"sample"} | set(axes.values()) & {"event", "channel"}):
            names = ", ".join(map(str, array.dims))
            raise ArgumentError(f"waveforms have dimensions event, channel and sample, not {names}")
        told = sample_axis(array, next(dim for dim, axis in axes.items() if axis == "sample"))
        array = array.rename({dim: axis for dim, axis in axes.items() if dim != axis}).assign_attrs(told)
        kept = {"event", "channel"}
        array = array.drop_vars([name for name, c in array.coords.items() if not c.dims or not set(c.dims) <= kept])
    elif isinstance(waveforms, np.ndarray | da.Array):
        if not 1 <= waveforms.ndim <= 3:
            raise ArgumentError(f"waveforms have 1 to 3 dimensions, event, channel and sample, not {waveforms.ndim}")
        array = xr.DataArray(waveforms, dims=("event", "channel", "sample")[3 - waveforms.ndim :])
    else:
        raise ArgumentError(f"waveforms are a DataArray, a NumPy or a Dask array, not {type(waveforms).__name__}")
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise ArgumentError(f"waveforms are integers or real numbers, not {array.dtype}")
    missing = {dim: 1 for dim in ("event", "channel") if dim not in array.dims}
    array = array.expand_dims(missing).transpose("event", "channel", "sample")
    if "channel" not in array.coords:
        array = array.assign_coords(channel=np.arange(array.sizes["channel"]))
    return array


def _axis(dim: Hashable) -> str:
    """What a dimension is, by its name: ``hsd.segment`` is one of channels."""
    last = str(dim).rpartition(".")[2]
    return {"segment": "channel", "time": "sample", "tof": "sample"}.get(last, last)


def sample_axis(array: xr.DataArray, dim: Hashable) -> dict[str, float]:
    """Interval and time of the first sample, where the samples have a coordinate.

    Parameters
    ----------
    array : xarray.DataArray
    dim : str
        Of the samples.

    Returns
    -------
    dict
        ``sample_interval_ns`` and ``first_sample_ns``, or nothing.

    Raises
    ------
    ArgumentError
        The coordinate is not one of even times.
    """
    if dim not in array.coords or array.sizes[dim] < 2:
        return {}
    times = array[dim].values
    unit = array[dim].attrs.get("units", "1")
    if unit in ("1", "sample", "samples"):
        return {}
    if unit not in _NANOSECONDS or times.dtype.kind not in "iuf":
        raise ArgumentError(f"{dim}: its units are {unit!r}, not one of {', '.join(_NANOSECONDS)}; set attrs['units']")
    steps = np.diff(times.astype(np.float64))
    if not np.allclose(steps, steps.mean(), rtol=1e-6, atol=1e-9 * abs(times).max()) or steps.mean() <= 0:
        raise ArgumentError(f"{dim}: its values are not evenly spaced and rising, as times of samples are")
    scale = _NANOSECONDS[unit]
    return {"sample_interval_ns": float(steps.mean()) * scale, "first_sample_ns": float(times[0]) * scale}


def whole_channels(array: xr.DataArray) -> xr.DataArray:
    """The same in Dask blocks along events alone.

    Parameters
    ----------
    array : (event, channel, sample) xarray.DataArray

    Returns
    -------
    xarray.DataArray
    """
    if array.chunks is not None:
        return array.chunk({"channel": -1, "sample": -1})
    event_bytes = max(1, array.dtype.itemsize * array.sizes["channel"] * array.sizes["sample"])
    length = max(1, min(array.sizes["event"], BLOCK_BYTES // event_bytes))
    # a name of its own: hashing the values would cost more than finding hits in them
    blocks = da.from_array(array.values, chunks=(length, -1, -1), name=False)  # type: ignore[no-untyped-call]
    return array.copy(data=blocks)


def from_array(array: xr.DataArray, work: Callable[[Array, xr.Dataset], xr.Dataset]) -> Ragged:
    """Ragged rows made of each block of an array.

    Parameters
    ----------
    array : (event, channel, sample) xarray.DataArray
        As `whole_channels` gives it.
    work : callable
        Takes the block's values, and its coordinates over event and channel; gives a CSR Dataset.

    Returns
    -------
    Ragged
    """
    data: da.Array = array.data
    coords = array.coords.to_dataset().assign_attrs(array.attrs).load()
    name = f"ragged-{tokenize(data.name, work, coords)}"
    edges = np.concatenate([[0], np.cumsum(data.chunks[0])])
    layer: Any = {
        (name, i): (work, (data.name, i, 0, 0), coords.isel(event=slice(edges[i], edges[i + 1]), missing_dims="ignore"))
        for i in range(len(data.chunks[0]))
    }
    collections: Any = [data]
    graph = HighLevelGraph.from_collections(name, layer, collections)
    none = np.empty((0, *array.shape[1:]), array.dtype)
    meta = empty_like(work(none, coords.isel(event=slice(0, 0), missing_dims="ignore")))
    return Ragged(graph, name, data.chunks[0], meta)
