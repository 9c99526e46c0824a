"""Digitizer records as `Ragged`: FEX windows and whole waveforms of a run's node."""

import pickle
from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import delayed

from ..errors import ArgumentError
from ..reduce.ragged import Ragged, empty_like

Array = np.ndarray[Any, np.dtype[Any]]

#: Bytes of samples in a block, about; and the most events.
BLOCK_BYTES, BLOCK_EVENTS = 16 << 20, 1 << 15


def windows(dataset: xr.Dataset, *, waveforms: bool = False, events: int | None = None) -> Ragged:
    """FEX windows, or whole waveforms, of a digitizer's node.

    Parameters
    ----------
    dataset : xarray.Dataset
        A digitizer's own node, ``run.dataset(group="/hsd", chunks=None)``, or some events of it.
    waveforms : bool
        Take the whole waveforms, each as one window; not all events have one where they are prescaled.
    events : int, optional
        Events to a block; by default some 16 MiB of samples.

    Returns
    -------
    Ragged
        `start` (window) int32, first sample of each window; `sample_offset` (window_edge) int64; `samples` (sample) as
        they are in the run; coordinates `channel`, and the events' `timestamp` and `step`.

    Raises
    ------
    ArgumentError
        The Dataset is no digitizer's node.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = lcls_dask.simulate(f"{folder.name}/run", "tof", events=10)
    >>> node = lcls_dask.open_run(f"{folder.name}/run").dataset(group="/hsd", chunks=None)
    >>> windows(node)
    <Ragged of 10 events x 16 channels in 1 block: start, samples [ADU]>
    >>> folder.cleanup()
    """
    base, event, channel = _names(dataset)
    count = dataset.sizes[event]
    segments = dataset.sizes[channel]
    offsets = dataset[f"{base}.{'waveforms' if waveforms else 'windows'}.offset"]
    if offsets.size != count * segments + 1:
        raise ArgumentError(
            f"{base}: has {offsets.size - 1} rows for {count} events x {segments} channels; choose events by "
            "run.dataset(group=..., events=...), which cuts the ragged fields along"
        )
    samples = dataset[f"{base}.waveforms" if waveforms else f"{base}.windows.samples"]
    if events is None:
        events = _block_length(count, samples.size * samples.dtype.itemsize)
    if events < 1:
        raise ArgumentError(f"{events} events to a block is too few; give 1 or more")
    bounds = np.minimum(np.arange(0, count + events, events), count) if count else np.zeros(2, np.int64)
    keep = {
        str(name): dataset.variables[name]
        for name in ("timestamp", "step")
        if name in dataset.variables and dataset[name].dims == (event,)
    }
    labels = xr.Variable("channel", dataset[channel].values if channel in dataset.coords else np.arange(segments))
    told = {key: samples.attrs[key] for key in ("sample_interval", "sample_interval_units", "fractional_bits")
            if key in samples.attrs}  # fmt: skip
    if waveforms:
        told["whole_waveforms"] = 1
    read = (_read_waveforms if waveforms else _read_windows)(dataset, base, bounds * segments)
    own = [
        {name: _part(c, first, last) for name, c in keep.items()}
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]
    # named by what is read, as Dask would read it to name it
    token = tokenize(pickle.dumps((read, own, labels, told)))
    work: Any = delayed(_block)
    blocks = [
        work(columns, kept, labels, told, dask_key_name=f"windows-{token}-{i}")
        for i, (columns, kept) in enumerate(zip(read, own, strict=True))
    ]
    edge = np.zeros(1, np.int64)
    none: dict[str, Array] = {"offset": edge, "start": np.zeros(0, np.int32), "sample_offset": edge}
    none["samples"] = np.zeros(0, samples.dtype)
    columns = {name: (array, 0, len(array)) for name, array in none.items()}
    meta = empty_like(_block(columns, {name: _part(c, 0, 0) for name, c in keep.items()}, labels, told))
    return Ragged.from_blocks(blocks, np.diff(bounds).tolist(), meta)


def _names(dataset: xr.Dataset) -> tuple[str, Hashable, Hashable]:
    """Names of the digitizer's algorithm, of its dimension of events, and of its segments."""
    if not isinstance(dataset, xr.Dataset):
        raise ArgumentError(f"windows are taken of a digitizer's node, a Dataset, not of {type(dataset).__name__}")
    found = [str(name).removesuffix(".windows.offset") for name in dataset if str(name).endswith(".windows.offset")]
    if len(found) != 1:
        raise ArgumentError(
            f"one digitizer's node is wanted, and this Dataset has {len(found)} variables *.windows.offset; take "
            "run.dataset(group='/<detector>', chunks=None), or some of its variables by name"
        )
    detector = found[0].split(".")[0]
    event, segment = f"{detector}.event", f"{detector}.segment"
    missing = {event, segment} - set(dataset.dims)
    if missing:
        raise ArgumentError(
            f"{detector}: this Dataset has no dimension {' or '.join(sorted(missing))}, so its rows cannot be told; "
            f"take the whole node, run.dataset(group='/{detector}', chunks=None)"
        )
    return found[0], event, segment


def _block_length(count: int, size: int) -> int:
    """Events of a block: a power of two."""
    length = 1
    while length < BLOCK_EVENTS and 2 * length * size <= BLOCK_BYTES * max(count, 1):
        length *= 2
    return max(length, 64)


def _read_windows(dataset: xr.Dataset, base: str, rows: Array) -> list[dict[str, Any]]:
    """For each block of rows the columns that it needs, not read yet."""
    name = f"{base}.windows"
    offset, start, inside, samples = (
        dataset.variables[f"{name}.{column}"] for column in ("offset", "start", "sample_offset", "samples")
    )
    # only the ends of blocks are read here
    ends = np.asarray(offset[rows]).tolist()
    sample_ends = np.asarray(inside[ends]).tolist()
    return [
        {
            "offset": _part(offset, rows[i], rows[i + 1] + 1),
            "start": _part(start, ends[i], ends[i + 1]),
            "sample_offset": _part(inside, ends[i], ends[i + 1] + 1),
            "samples": _part(samples, sample_ends[i], sample_ends[i + 1]),
        }
        for i in range(len(rows) - 1)
    ]


def _read_waveforms(dataset: xr.Dataset, base: str, rows: Array) -> list[dict[str, Any]]:
    offset, samples = dataset.variables[f"{base}.waveforms.offset"], dataset.variables[f"{base}.waveforms"]
    ends = np.asarray(offset[rows]).tolist()
    return [
        {
            "waveform_offset": _part(offset, rows[i], rows[i + 1] + 1),
            "samples": _part(samples, ends[i], ends[i + 1]),
        }
        for i in range(len(rows) - 1)
    ]


#: Rows of a variable: those of a lazy one are taken where they are read, as xarray would keep them in the graph.
Part = tuple[Any, int, int]


def _part(variable: Any, first: int, last: int) -> Part:
    first, last = int(first), int(last)
    in_hand = variable.chunks is not None or variable._in_memory
    return (variable[first:last], 0, last - first) if in_hand else (variable, first, last)


def _values(part: Part) -> Array:
    variable, first, last = part
    return np.asarray(variable[first:last])


def _block(columns: dict[str, Part], events: dict[str, Part], labels: xr.Variable, told: dict[str, Any]) -> xr.Dataset:
    """One block of events, read."""
    values = {name: _values(column) for name, column in columns.items()}
    if "waveform_offset" in values:
        values |= _as_windows(values.pop("waveform_offset"))
    offset, inside = values["offset"], values["sample_offset"]
    return windows_dataset(
        offset - offset[0], values["start"], inside - inside[0], values["samples"], labels, told,
        {name: xr.Variable("event", _values(part), part[0].attrs) for name, part in events.items()},
    )  # fmt: skip


def _as_windows(edges: Array) -> dict[str, Array]:
    """Every waveform as one window; a row without samples has none."""
    there = np.diff(edges) > 0
    return {
        "offset": np.concatenate([[0], np.cumsum(there)]),
        "start": np.zeros(int(there.sum()), np.int32),
        "sample_offset": np.append(edges[:-1][there], edges[-1]),
    }


def windows_dataset(
    offset: Array,
    start: Array,
    sample_offset: Array,
    samples: Array,
    labels: xr.Variable,
    told: dict[str, Any],
    events: dict[str, Any],
) -> xr.Dataset:
    """A block of windows.

    Parameters
    ----------
    offset : (rows + 1,) int64
    start : (windows,) int32
    sample_offset : (windows + 1,) int64
    samples : (n,)
    labels : (channel) xarray.Variable
    told : dict
        Attributes of the samples.
    events : dict of str to xarray.Variable or xarray.DataArray
        Over `event`.

    Returns
    -------
    xarray.Dataset
    """
    return xr.Dataset(
        {
            "offset": ("row_edge", offset, {"units": "1", "long_name": "first window of each (event, channel)"}),
            "start": ("window", start, {"units": "1", "long_name": "first sample of the window"}),
            "sample_offset": ("window_edge", sample_offset, {"units": "1", "long_name": "where each window begins"}),
            "samples": ("sample", samples, {"units": "ADU", "long_name": "samples of all windows", **told}),
        },
        {"channel": labels, **events},
    )
