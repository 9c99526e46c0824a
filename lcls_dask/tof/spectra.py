"""Spectra of hits: by time of flight, by energy, of each event."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from ..errors import ArgumentError
from ..reduce.ragged import Ragged, as_ragged
from ..reduce.reduction import Reduction
from .axes import axis_constants, energy_at, time_of
from .groups import Groups

Array = np.ndarray[Any, np.dtype[Any]]


def tof_spectrum(
    hits: "Ragged | xr.Dataset",
    edges: Any,
    *,
    by: xr.DataArray | None = None,
    bins: Any = None,
    pulse_energy: Any = None,
) -> xr.DataArray:
    """Histogram of the times of flight, of each channel.

    Parameters
    ----------
    hits : Ragged or xarray.Dataset
        What `find_hits` gave, or what that computes to.
    edges : (n + 1,) array
        Of the bins, rising [ns]. A bin holds its lower edge, the last one both.
    by : (event,) xarray.DataArray, optional
        A spectrum for each value of it, such as the scan step, or, with `bins`, for each bin of it, such as the pulse
        energy. Events where it is NaN are in none.
    bins : (m + 1,) array, optional
        Edges of the bins of `by`.
    pulse_energy : (event,) array, optional
        Counts are divided by its sum over the events that are counted. Events where it is NaN are left out.

    Returns
    -------
    ([group,] channel, tof) xarray.DataArray
        Counts, int64; a float64 per unit of `pulse_energy` where that is given. Coordinates `tof`, `tof_low`,
        `tof_high` [ns], `outside` (hits in no bin) and `shots` (events). Lazy where `hits` is.

    Raises
    ------
    ArgumentError
        The edges do not rise, or `by` or `pulse_energy` is not of these events.

    Examples
    --------
    >>> from lcls_dask.tof import find_hits
    >>> waveform = np.full((2, 1, 200), 2048.0)
    >>> waveform[:, 0, 100:103] -= [50, 100, 50]
    >>> spectrum = tof_spectrum(find_hits(waveform, threshold=30), np.arange(0, 30, 10))
    >>> spectrum.values, spectrum["shots"].values
    (array([[0, 2]]), array(2))
    """
    made = _spectrum(as_ragged(hits), edges, Column("time"), "tof", "ns", by, bins, pulse_energy)
    return made if isinstance(hits, Ragged) else made.compute()


def energy_spectrum(
    source: "Ragged | xr.Dataset | xr.DataArray",
    edges: Any,
    *,
    calibration: xr.Dataset | None = None,
    length: Any = None,
    t0: Any = 0.0,
    retardation: Any = 0.0,
    field_free_length: Any = 0.0,
    density: bool = False,
    by: xr.DataArray | None = None,
    bins: Any = None,
    pulse_energy: Any = None,
) -> xr.DataArray:
    """Spectrum of the kinetic energies, of each channel.

    Of hits each is counted by its own energy. Of a spectrum of times the counts of each bin are taken to be even in
    time and are shared out to the energies that they belong to, which is the Jacobian ``|dt/dE|`` integrated over each
    bin: their sum is kept.

    Parameters
    ----------
    source : Ragged, xarray.Dataset or xarray.DataArray
        Hits, or what `tof_spectrum` gave.
    edges : (n + 1,) array
        Of the bins, rising [eV].
    calibration, length, t0, retardation, field_free_length
        The axis; see `tof_to_energy`. All but `calibration` may be (channel,) arrays.
    density : bool
        Divide by the bins' widths: counts per eV.
    by, bins, pulse_energy
        As of `tof_spectrum`; of hits alone.

    Returns
    -------
    ([group,] channel, energy) xarray.DataArray
        As of `tof_spectrum`, over `energy` [eV]; float64 of a spectrum of times.

    Raises
    ------
    ArgumentError
        As of `tof_spectrum` and `tof_to_energy`.

    Examples
    --------
    >>> from lcls_dask.tof import energy_to_tof
    >>> edges = np.linspace(energy_to_tof(100, 590), energy_to_tof(10, 590), 51)
    >>> low, high = edges[:-1], edges[1:]
    >>> names = {"tof_low": ("tof", low), "tof_high": ("tof", high)}
    >>> times = xr.DataArray(np.ones((1, 50)), names, ("channel", "tof"))
    >>> spectrum = energy_spectrum(times, np.linspace(10, 100, 10), length=590)
    >>> spectrum.values.round(1), float(spectrum.sum().round(9))
    (array([[21.4,  9.5,  5.7,  3.9,  2.8,  2.2,  1.8,  1.5,  1.3]]), 50.0)
    """
    constants = axis_constants(length, t0, retardation, field_free_length, calibration)
    if isinstance(source, xr.DataArray):
        if by is not None or pulse_energy is not None:
            raise ArgumentError("by= and pulse_energy= are of events, which a spectrum has no more; give hits")
        made = _shared_out(source, _rising(edges, "edges"), constants)
    else:
        column = Column("time", tuple(one if isinstance(one, xr.DataArray) else np.asarray(one) for one in constants))
        made = _spectrum(as_ragged(source), edges, column, "energy", "eV", by, bins, pulse_energy)
        made = made if isinstance(source, Ragged) else made.compute()
    if not density:
        return made
    attrs = {**made.attrs, "units": f"{made.attrs.get('units', '1')}/eV", "long_name": "counts per eV"}
    return (made / (made["energy_high"] - made["energy_low"])).assign_attrs(attrs)


def event_spectra(
    hits: "Ragged | xr.Dataset", edges: Any, *, column: str = "time", together: bool = False
) -> xr.DataArray:
    """Histogram of every event by itself, for covariance.

    Parameters
    ----------
    hits : Ragged or xarray.Dataset
    edges : (n + 1,) array
        Rising, in the unit of `column`.
    column : str
        What to histogram.
    together : bool
        Whether to add up all channels, each block at once, which takes less memory.

    Returns
    -------
    (event[, channel], tof) xarray.DataArray
        float32 counts, which are exact; in the blocks of events of `hits`.

    Examples
    --------
    >>> from lcls_dask.tof import find_hits
    >>> waveform = np.full((2, 1, 200), 2048.0)
    >>> waveform[1, 0, 100:103] -= [50, 100, 50]
    >>> event_spectra(find_hits(waveform, threshold=30), [0, 10, 20]).values
    array([[[0., 0.]],
    <BLANKLINE>
           [[0., 1.]]], dtype=float32)
    """
    ragged, bounds = as_ragged(hits), _rising(edges, "edges")
    channels, count = 1 if together else ragged.channels, len(bounds) - 1
    parts = [
        da.from_delayed(  # type: ignore[no-untyped-call]
            _delayed(_spread)(block, bounds, column, together), (events, channels, count), np.float32
        )
        for block, events in zip(ragged.blocks, ragged.events, strict=True)
    ]
    values = da.concatenate(parts)  # type: ignore[no-untyped-call]
    coords = _bin_coordinates("tof", bounds, "ns")
    if not together:
        coords["channel"] = ragged.meta["channel"].variable
    array = xr.DataArray(values, coords, ("event", "channel", "tof"), "hits", attrs={"units": "1", "long_name": "hits"})
    array = array.isel(channel=0) if together else array
    return array if isinstance(hits, Ragged) else array.compute()


def _item(several: Sequence[Any], i: int) -> Any:
    return several[i]


def _delayed(work: Callable[..., Any]) -> Any:
    from dask.delayed import delayed

    return delayed(work, pure=True)


def _spread(block: xr.Dataset, edges: Array, column: str, together: bool) -> Array:
    from .kernels.histogram import spread_hits

    offset, channels = block["offset"].values, block.sizes["channel"]
    out = np.zeros(((len(offset) - 1) // channels, 1 if together else channels, len(edges) - 1), np.float32)
    spread_hits(offset, block[column].values.astype(np.float64), channels, edges, _scale(edges), out)
    return out


@dataclass(frozen=True)
class Column:
    """What is histogrammed: a column of the hits, or the energy of it.

    Attributes
    ----------
    name : str
    constants : tuple
        `t0`, `a`, `b`, `u` of the energy axis, each one or (channel,); empty for the column itself.
    """

    name: str
    constants: tuple[Any, ...] = ()

    def of(self, block: xr.Dataset) -> Array:
        """Its values."""
        values: Array = block[self.name].values
        if not self.constants:
            return values
        offset, channels = block["offset"].values, block.sizes["channel"]
        channel = np.repeat(np.arange(len(offset) - 1) % channels, np.diff(offset))
        return energy_at(values, *(_per_channel(one, block["channel"])[channel] for one in self.constants))


def _per_channel(constant: Any, channels: xr.DataArray) -> Array:
    if isinstance(constant, xr.DataArray) and "channel" in constant.coords and constant.dims == ("channel",):
        constant = constant.sel(channel=channels.values)
    if np.ndim(constant) and np.shape(constant) != (channels.size,):
        raise ArgumentError(
            f"a constant of the axis has shape {np.shape(constant)}; one or ({channels.size},) is wanted"
        )
    return np.broadcast_to(np.asarray(constant, np.float64), channels.size)


def _rising(edges: Any, name: str) -> Array:
    bounds = np.asarray(edges, np.float64)
    if bounds.ndim != 1 or len(bounds) < 2 or not np.isfinite(bounds).all() or not (np.diff(bounds) > 0).all():
        raise ArgumentError(f"{name}: two or more rising, finite numbers are wanted")
    return np.ascontiguousarray(bounds)


def _scale(edges: Array) -> float:
    """Bins to one unit, where all are alike; else 0."""
    width = (edges[-1] - edges[0]) / (len(edges) - 1)
    even = np.abs(edges - (edges[0] + width * np.arange(len(edges)))).max() < 1e-3 * width
    return 1 / width if even else 0.0


def _bin_coordinates(dim: str, edges: Array, units: str) -> dict[str, Any]:
    words = {"tof": "time of flight", "energy": "kinetic energy"}.get(dim, dim)
    return {
        dim: (dim, (edges[:-1] + edges[1:]) / 2, {"units": units, "long_name": f"{words}, middle of the bin"}),
        f"{dim}_low": (dim, edges[:-1], {"units": units, "long_name": f"{words}, lower edge"}),
        f"{dim}_high": (dim, edges[1:], {"units": units, "long_name": f"{words}, upper edge"}),
    }


#: Counts (group, channel, bin), hits outside (group, channel), events and pulse energy (group).
Part = tuple[Array, Array, Array, Array]


def _count(block: xr.Dataset, groups: Array, energy: Array | None, column: Column, edges: Array, several: int) -> Part:
    from .kernels.histogram import count_hits

    channels = block.sizes["channel"]
    counts = np.zeros((several, channels, len(edges) - 1), np.int64)
    outside = np.zeros((several, channels), np.int64)
    if energy is not None:
        groups = np.where(np.isnan(energy), -1, groups)
    values = np.ascontiguousarray(column.of(block), np.float64)
    count_hits(block["offset"].values, values, channels, groups, edges, _scale(edges), counts, outside)
    there = groups >= 0
    shots = np.bincount(groups[there], minlength=several)
    total = np.zeros(several) if energy is None else np.bincount(groups[there], energy[there], several)
    return counts, outside, shots, total


def _add(parts: Sequence[Part]) -> Part:
    first, *others = parts
    made = tuple(np.array(one) for one in first)
    for other in others:
        for mine, theirs in zip(made, other, strict=True):
            mine += theirs
    return made  # type: ignore[return-value]


def _pass(part: Part) -> Part:
    return part


def spectrum_reduction(column: Column, edges: Array, several: int) -> Reduction[Part, Part]:
    """The histogram of hits as a reduction of (block, groups, pulse energy)."""
    return Reduction(partial(_count, column=column, edges=edges, several=several), _add, _pass)


def _spectrum(
    ragged: Ragged, edges: Any, column: Column, dim: str, units: str, by: Any, bins: Any, pulse_energy: Any
) -> xr.DataArray:
    bounds, groups = _rising(edges, "edges"), Groups.of(by, bins, len(ragged))
    energy = None if pulse_energy is None else np.asarray(pulse_energy, np.float64)
    if energy is not None and energy.shape != (len(ragged),):
        raise ArgumentError(f"pulse_energy: has shape {energy.shape}, and there are {len(ragged)} events")
    reduction = spectrum_reduction(column, bounds, groups.count)

    def arguments() -> Iterator[tuple[Any, ...]]:
        for block, span in zip(ragged.blocks, ragged.spans, strict=True):
            yield block, groups.numbers[span], None if energy is None else energy[span]

    result = reduction.lazily(arguments())
    shape = (groups.count, ragged.channels, len(bounds) - 1)
    counts, outside, shots, total = (
        da.from_delayed(_delayed(_item)(result, i), shape[:n], dtype)  # type: ignore[no-untyped-call]
        for i, (n, dtype) in enumerate(((3, np.int64), (2, np.int64), (1, np.int64), (1, np.float64)))
    )
    name, labels = groups.coordinate
    coords = {
        name: labels,
        "channel": ragged.meta["channel"].variable,
        **_bin_coordinates(dim, bounds, units),
        "outside": ((name, "channel"), outside, {"units": "1", "long_name": "hits in no bin"}),
        "shots": (name, shots, {"units": "1", "long_name": "events"}),
    }
    made = xr.DataArray(counts, coords, (name, "channel", dim), "counts", attrs={"units": "1", "long_name": "counts"})
    if energy is not None:
        unit = getattr(pulse_energy, "attrs", {}).get("units", "1")
        made = (made / xr.DataArray(total, dims=name)).assign_attrs(
            units="1" if unit == "1" else f"1/{unit}", long_name="counts by pulse energy"
        )
    return made if by is not None else made.isel({name: 0}).drop_vars(name)


def _shared_out(spectrum: xr.DataArray, edges: Array, constants: tuple[Any, ...]) -> xr.DataArray:
    """Counts by energy of counts by time."""
    if "tof" not in spectrum.dims or "tof_low" not in spectrum.coords:
        raise ArgumentError("a spectrum over tof with tof_low and tof_high is wanted, as tof_spectrum gives it")
    bounds = np.append(spectrum["tof_low"].values, spectrum["tof_high"].values[-1])
    if spectrum.chunks is not None:
        spectrum = spectrum.chunk({"tof": -1})
    # where nothing of an energy comes through, it would come after all others
    times = xr.apply_ufunc(
        lambda *values: np.nan_to_num(time_of(*values), nan=np.inf, posinf=np.inf),
        xr.DataArray(edges, dims="edge"),
        *constants,
    )
    made = xr.apply_ufunc(
        partial(_interpolated, bounds=bounds),
        spectrum.astype(np.float64),
        times,
        input_core_dims=[["tof"], ["edge"]],
        output_core_dims=[["energy"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"energy": len(edges) - 1}},
    )
    return made.assign_coords(_bin_coordinates("energy", edges, "eV")).assign_attrs(spectrum.attrs)  # type: ignore[no-any-return]


def _interpolated(counts: Array, times: Array, bounds: Array) -> Array:
    """Counts between times that fall, of counts between bounds that rise."""
    total = np.concatenate([np.zeros((*counts.shape[:-1], 1)), np.cumsum(counts, axis=-1)], axis=-1)
    at = np.clip(np.searchsorted(bounds, times, side="right") - 1, 0, len(bounds) - 2)
    part = np.clip((times - bounds[at]) / (bounds[at + 1] - bounds[at]), 0.0, 1.0)
    shape = np.broadcast_shapes(counts.shape[:-1], times.shape[:-1])
    at, part = (np.broadcast_to(one, (*shape, times.shape[-1])) for one in (at, part))
    total = np.broadcast_to(total, (*shape, total.shape[-1]))
    before = np.take_along_axis(total, at, -1)
    upto = before + part * (np.take_along_axis(total, at + 1, -1) - before)
    made: Array = upto[..., :-1] - upto[..., 1:]
    return made
