"""Powder patterns: what many frames have together."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError
from ..reduce.reduction import Reduction
from .frames import as_float32, as_frames, present_of, whole_frames

Array = np.ndarray[Any, np.dtype[Any]]

#: Of each group and pixel (group, segment, row, column): how many values, their sum, the sum of their squares, and the
#: highest; and how many frames each group has.
Part = tuple[Array, Array, Array, Array, Array]


def _sum(values: Array, coords: xr.Dataset, group: Array, several: int) -> Part:
    from .kernels.powder import add_frames, add_whole_frames

    if values.dtype.kind == "f" or not present_of(coords, values.shape[:2]).all():
        values = as_float32(values, coords)
    shape = values.shape[1:]
    n = int(np.prod(shape))
    part = (
        np.zeros((several, n), np.uint32),
        np.zeros((several, n)),
        np.zeros((several, n)),
        np.full((several, n), -np.inf, np.float32),
    )
    add = add_frames if values.dtype.kind == "f" else add_whole_frames
    add(np.ascontiguousarray(values).reshape(len(values), n), group, *part)
    frames = np.bincount(group[group >= 0], minlength=several)
    count, total, square, most = (one.reshape(several, *shape) for one in part)
    return count, total, square, most, frames


def _add(parts: Sequence[Part]) -> Part:
    first, *others = parts
    count, total, square, most, frames = (np.array(one) for one in first)
    for other in others:
        count += other[0]
        total += other[1]
        square += other[2]
        np.maximum(most, other[3], out=most)
        frames += other[4]
    return count, total, square, most, frames


def _finished(part: Part, names: tuple[str, ...], units: str, segments: xr.DataArray) -> xr.Dataset:
    count, total, square, most, frames = part
    if len(names) == 3:  # all of hits and misses
        count, total, square, most, frames = _with_all(part)
    there = count > 0
    number = np.maximum(count, 1)
    mean = total / number
    spread = np.sqrt(np.maximum(square / number - mean * mean, 0))
    dims = ("group", "segment", "row", "column")
    return xr.Dataset(
        {
            "count": (dims, count, {"units": "1", "long_name": "frames in which the pixel counts"}),
            "sum": (dims, np.where(there, total, np.nan), {"units": units, "long_name": "sum of all frames"}),
            "mean": (dims, np.where(there, mean, np.nan), {"units": units, "long_name": "mean of all frames"}),
            "std": (dims, np.where(there, spread, np.nan), {"units": units, "long_name": "standard deviation"}),
            "max": (dims, np.where(there, most, np.nan), {"units": units, "long_name": "highest of all frames"}),
        },
        {
            "group": list(names),
            "segment": segments.variable,
            "frames": ("group", frames, {"units": "1", "long_name": "frames"}),
        },
    )


def _with_all(part: Part) -> Part:
    """Hits and misses, and both together before them."""
    count, total, square, most, frames = part
    added = [np.concatenate([one.sum(axis=0, keepdims=True, dtype=one.dtype), one])
             for one in (count, total, square, frames)]  # fmt: skip
    return added[0], added[1], added[2], np.concatenate([most.max(axis=0, keepdims=True), most]), added[3]


def powder_reduction(units: str, segments: xr.DataArray, hits: bool) -> Reduction[Part, xr.Dataset]:
    """A powder pattern as a reduction of (values, coordinates, group).

    Parameters
    ----------
    units : str
        Of the frames.
    segments : (segment) xarray.DataArray
    hits : bool
        Whether groups 0 and 1 are hits and misses; else all events are in group 0.

    Returns
    -------
    Reduction
        For `Running`, while a run is taken.

    Examples
    --------
    >>> from lcls_dask.reduce.reduction import Running
    >>> running = Running(powder_reduction("photon", xr.DataArray([0], dims="segment"), False))
    >>> frames = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    >>> result = running.update(frames, xr.Dataset(), np.zeros(2, int)).result()
    >>> result["mean"].values[0, 0]
    array([[2., 3.],
           [4., 5.]])
    """
    names = ("all", "hits", "misses") if hits else ("all",)
    several = 2 if hits else 1
    return Reduction(
        partial(_sum, several=several), _add, partial(_finished, names=names, units=units, segments=segments)
    )


def powder(frames: Any, hits: Any = None) -> xr.Dataset:
    """Sum, mean, standard deviation and maximum of each pixel over frames, of hits and misses too.

    Whole numbers are summed as they are; real numbers are rounded to 1/4096 of their unit first, so that sums are exact
    and the same for any blocks and any order (sums of squares are up to 5e8 of their unit, and good to 16 digits
    beyond).

    Parameters
    ----------
    frames : xarray.DataArray, numpy.ndarray or dask.array.Array
        (event, segment, row, column), as `find_peaks` takes them. NaN, infinities and absent segments do not count.
    hits : (event) array of bool, optional
        Such as `find_hits` gives; patterns are then ``"all"``, ``"hits"`` and ``"misses"``.

    Returns
    -------
    xarray.Dataset
        `sum`, `mean`, `std`, `max`, float64, and `count`, over (group, segment, row, column), on Dask where the frames
        are; NaN where no frame counts. Coordinate `frames` (group).

    Raises
    ------
    ArgumentError
        `hits` is not of these events.

    Examples
    --------
    >>> frames = np.arange(8.0).reshape(2, 1, 2, 2)
    >>> pattern = powder(frames, hits=[True, False])
    >>> pattern["max"].sel(group="hits").values[0], pattern["frames"].values
    (array([[0., 1.],
           [2., 3.]], dtype=float32), array([2, 1, 1]))
    """
    array = as_frames(frames)
    events = array.sizes["event"]
    if not events:
        raise ArgumentError("there are no frames to sum")
    coords = array.coords.to_dataset().load()
    units = str(array.attrs.get("units", "1"))
    reduction = powder_reduction(units, coords["segment"], hits is not None)
    if hits is None:
        group: Any = np.zeros(events, np.int64)
    else:
        group = hits.data if isinstance(hits, xr.DataArray) else np.asarray(hits)
        if group.shape != (events,) or group.dtype != np.bool_:
            raise ArgumentError(
                f"hits: is {group.dtype} of {group.shape}; a boolean for each of {events} events is wanted"
            )
    if array.chunks is None and not hasattr(group, "dask"):
        chosen = group if hits is None else np.where(group, 0, 1)
        return reduction([(array.values, coords, chosen)])
    return _lazily(array, coords, group, hits is not None, reduction)


def _grouped(group: Array, hits: bool) -> Array:
    return np.where(group, 0, 1) if hits else group


def _lazily(
    array: xr.DataArray, coords: xr.Dataset, group: Any, hits: bool, reduction: Reduction[Part, xr.Dataset]
) -> xr.Dataset:
    import dask.array as da
    from dask.delayed import delayed

    array = whole_frames(array)
    lengths = array.chunks[0] if array.chunks else ()
    if hasattr(group, "dask"):
        parts = group.rechunk((lengths,)).to_delayed()
    else:
        parts = np.split(group, np.cumsum(lengths)[:-1])
    edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    wrap: Any = delayed(_grouped, pure=True)
    blocks = (
        (frames, coords.isel(event=slice(first, last), missing_dims="ignore"), wrap(part, hits))
        for frames, part, first, last in zip(array.data.to_delayed().ravel(), parts, edges[:-1], edges[1:], strict=True)
    )
    result = reduction.lazily(blocks)
    several = 3 if hits else 1
    empty = reduction.finalise(reduction.chunk(np.zeros((0, *array.shape[1:]), array.dtype), xr.Dataset(),
                                               np.zeros(0, np.int64)))  # fmt: skip
    take: Any = delayed(_variable, pure=True)
    made = {}
    for name, variable in empty.data_vars.items():
        shape = (several, *array.shape[1:])
        values = da.from_delayed(take(result, name), shape, variable.dtype)  # type: ignore[no-untyped-call]
        made[name] = (variable.dims, values, variable.attrs)
    count = da.from_delayed(take(result, "frames"), (several,), np.int64)  # type: ignore[no-untyped-call]
    return xr.Dataset(made, empty.drop_vars("frames").coords).assign_coords(
        frames=("group", count, empty["frames"].attrs)
    )


def _variable(result: xr.Dataset, name: str) -> Array:
    return result[name].values
