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


def no_frames(shape: tuple[int, ...], several: int) -> Part:
    """Sums of no frames yet.

    Parameters
    ----------
    shape : (int, int, int)
        Segments, rows, columns.
    several : int
        Groups.

    Returns
    -------
    Part
    """
    of_each = (several, *shape)
    return (
        np.zeros(of_each, np.uint32), np.zeros(of_each), np.zeros(of_each), np.full(of_each, -np.inf, np.float32),
        np.zeros(several, np.int64),
    )  # fmt: skip


def add_frames_to(part: Part, values: Array, coords: xr.Dataset, group: Array) -> None:
    """Add frames to the sums of their groups, in place.

    Parameters
    ----------
    part : Part
        Such as `no_frames` gives.
    values : (event, segment, row, column) array
    coords : xarray.Dataset
        Of the events; its `present` says which segments are there.
    group : (event,) int64
        -1 for none.
    """
    from .kernels.powder import add_frames, add_whole_frames

    if values.dtype.kind == "f" or not present_of(coords, values.shape[:2]).all():
        values = as_float32(values, coords)
    several, n = len(part[4]), int(np.prod(values.shape[1:]))
    add = add_frames if values.dtype.kind == "f" else add_whole_frames
    frames, sums = np.ascontiguousarray(values).reshape(len(values), n), [one.reshape(several, n) for one in part[:4]]
    for number in range(several):
        if len(chosen := np.flatnonzero(group == number)):
            add(frames, chosen, *(one[number] for one in sums))
    part[4][:] += np.bincount(group[group >= 0], minlength=several)


def _sum(values: Array, coords: xr.Dataset, group: Array, several: int) -> Part:
    part = no_frames(values.shape[1:], several)
    add_frames_to(part, values, coords, group)
    return part


def add_sums(parts: Sequence[Part]) -> Part:
    """Sums of all frames of all parts.

    Parameters
    ----------
    parts : sequence of Part

    Returns
    -------
    Part
    """
    count, total, square, most, frames = (np.array(one) for one in parts[0])
    sums = count, total, square, most, frames
    for part in parts[1:]:
        add_to(sums, part)
    return sums


def add_to(sums: Part, part: Part) -> None:
    """Add sums of other frames, in place: they are large.

    Parameters
    ----------
    sums, part : Part
    """
    for i, (one, other) in enumerate(zip(sums, part, strict=True)):
        if i == 3:
            np.maximum(one, other, out=one)
        else:
            np.add(one, other, out=one)


def finished(part: Part, names: tuple[str, ...], units: str, segments: xr.DataArray) -> xr.Dataset:
    """The pattern of each group, of its sums.

    Parameters
    ----------
    part : Part
    names : tuple of str
        Of the groups; where there is one more than groups, the first is of all together.
    units : str
    segments : (segment) xarray.DataArray

    Returns
    -------
    xarray.Dataset
        See `powder`.
    """
    count, total, square, most, frames = part
    if len(names) > len(frames):
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
        partial(_sum, several=several), add_sums, partial(finished, names=names, units=units, segments=segments)
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
