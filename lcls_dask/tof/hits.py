"""Hits: the times, heights and widths of pulses, of waveforms or of FEX windows."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError
from ..reduce.kernels.arrays import read_only
from ..reduce.ragged import Ragged, block_coordinates
from .node import windows
from .records import SAMPLE_NS, as_waveforms, from_array, whole_channels

Array = np.ndarray[Any, np.dtype[Any]]

#: In the order of their numbers in the kernels.
METHODS = ("leading_edge", "dynamic_leading_edge", "cfd", "matched")

#: Samples of FEX format 3.0.0 have 4 fractional bits, 15 bits in all, and this baseline.
FRACTIONAL_SCALE, FRACTIONAL_PERIOD, FRACTIONAL_BASELINE = 1 / 16, 1 << 15, 1 << 14

#: Samples beyond it are refused, and baselines and thresholds: the signal is kept as float32.
LARGEST = 1e30

#: Types that loops are compiled for, besides float64.
_COMPILED = (np.dtype(np.int16), np.dtype(np.uint16))


@dataclass(frozen=True)
class Finder:
    """What finding hits needs to know, checked and in samples.

    Attributes
    ----------
    method, delay, polarity, pretrigger : int
    fraction, threshold, dead_time : float
    baseline : (channels or 1, cores) float64
        Of samples that have none of their own.
    saturation : (2,) tuple of float
    template, slope : (2 k + 1,) float64
        The correlation with the first is a pulse's height, that with the second the change of it with time.
    interval, first : float
        Of samples [ns].
    scale, period : float
        See `kernels.gate.Digitizer`.
    """

    method: int
    fraction: float
    delay: int
    threshold: float
    dead_time: float
    polarity: int
    pretrigger: int
    baseline: Array
    saturation: tuple[float, float]
    template: Array
    slope: Array
    interval: float
    first: float
    scale: float
    period: float

    def find(self, samples: Array, edge: Array, start: Array, record_edge: Array, channels: int) -> dict[str, Array]:
        """Columns of the hits of many records; see `kernels.hits.find_hits`."""
        from .kernels import gate
        from .kernels.hits import Hits, find_hits, reach_of, room_for
        from .kernels.pulses import Method

        rows, given, cores = len(record_edge) - 1, self.baseline, self.baseline.shape[1]
        if self.pretrigger == 0 and 4 % cores == 0:  # loops are compiled for four
            given, cores = np.tile(given, 4 // cores), 4
        baseline = np.ascontiguousarray(np.broadcast_to(given, (channels, cores)))
        each = np.bincount(np.arange(self.pretrigger) % cores, minlength=cores) * 1.0
        samples, edge, start, record_edge = map(read_only, (samples, edge, start, record_edge))
        reach, longest = reach_of(self.delay, len(self.template)), int(np.diff(edge).max(initial=0))
        digitizer = gate.Digitizer(
            baseline, self.pretrigger, tuple(each.tolist()) if cores == 4 else each,
            self.polarity, self.scale, self.period, self._rails(samples.dtype), self.first,
            self.interval, np.empty(16), np.empty(self.pretrigger),
        )  # fmt: skip
        # the signal is of float32, and so is what it is compared with
        threshold = float(np.float32(self.threshold))
        method = Method(self.method, threshold, self.fraction, self.delay, self.template, self.slope)
        records = gate.Records(samples, edge, start, record_edge, channels)
        work = room_for(samples.dtype, cores, longest, reach)
        offset = np.zeros(rows + 1, np.int64)
        parts: list[tuple[Array, ...]] = []
        row, room = 0, 4 * rows + 64
        while row < rows:
            out = Hits.room(room)
            row, hits = find_hits(records, digitizer, method, reach, self.dead_time, row, offset[1:], out, work)
            parts.append(tuple(column[:hits] for column in out))
            room *= 2  # one row alone may need more than all the room
        time, height, width, saturated = map(np.concatenate, zip(*(parts or [tuple(Hits.room(0))]), strict=True))
        np.cumsum(offset, out=offset)
        return {"offset": offset, "time": time, "amplitude": height, "width": width, "saturated": saturated}

    def _rails(self, dtype: np.dtype[Any]) -> Array:
        if dtype.kind == "f":
            return np.array([-np.inf, np.inf, 0.0, *self.saturation])
        limits = np.iinfo(dtype)
        return np.array([limits.min, limits.max, 1.0, *self.saturation], np.float64)


def find_hits(
    waveforms: Any,
    method: str = "cfd",
    fraction: float = 0.6,
    delay: float = 1.0,
    *,
    threshold: float,
    dead_time: float = 1.5,
    polarity: int = -1,
    baseline: Any = None,
    pretrigger: int = 64,
    cores: int = 4,
    saturation: tuple[float, float] | None = None,
    sample_interval: float | None = None,
    pulse_width: float = 1.39,
    template: Any = None,
) -> Ragged:
    """Find pulses and tell their times.

    A hit is a maximum that stands out by `threshold`, from the baseline and from the minimum before it. The signal is
    taken to be on its baseline before the first sample and behind the last. Times are told in one of four ways:

    - ``"cfd"``: where the signal is `fraction` of what it is `delay` later, so that pulses of all heights have the same
      time [1]_; psana's ``PyCFD`` has this convention too. The line is drawn through the four samples about the
      crossing.
    - ``"leading_edge"``: where it rises through `threshold`; earlier for higher pulses.
    - ``"dynamic_leading_edge"``: where it rises through `fraction` of its maximum.
    - ``"matched"``: at the maximum of the correlation with the pulse's shape, which is as exact as can be where the
      noise is white and no other pulse is near: the Cramér-Rao bound [2]_. The time is that of the template's maximum.

    Parameters
    ----------
    waveforms : xarray.DataArray, array, Ragged or xarray.Dataset
        (event, channel, sample) integers or real numbers, NumPy or Dask; an array of fewer dimensions is one channel,
        or one waveform. Or FEX windows: what `windows` or `decode_fex` gave, or a run's digitizer node,
        ``run.dataset(group="/hsd", chunks=None)``. A boolean coordinate `present` (event, channel) marks those there
        are.
    method : {"cfd", "leading_edge", "dynamic_leading_edge", "matched"}
    fraction : float
        Of ``"cfd"`` and ``"dynamic_leading_edge"``; in (0, 1], and less than 1 for the latter.
    delay : float
        Of ``"cfd"`` [ns]; rounded to samples.
    threshold : float
        Least height [ADU].
    dead_time : float
        After a hit for which there is no other [ns]; one in it does not extend it. Less than a pulse's width is of use
        only where there is little noise.
    polarity : {-1, 1}
        Whether pulses go down or up.
    baseline : float, (channel,) or (channel, core) array, optional
        Of each channel and interleaved ADC core [ADU]; see `baseline_of`. By default that of each waveform's first
        samples; windows, which have none, need it, but for format 3.0.0.
    pretrigger : int
        Samples at the start of a waveform to take its baseline from; pulses in them are left out.
    cores : int
        Interleaved cores of the digitizer that the baseline is told apart for.
    saturation : (float, float), optional
        Values that the digitizer cannot go beyond; by default 0 and 4095 for integers, none for real numbers.
    sample_interval : float, optional
        In ns; by default what the waveforms say, else the high-speed digitizer's 0.168269 ns.
    pulse_width : float
        Full width at half maximum of a Gaussian pulse, for ``"matched"`` [ns].
    template : (n,) array, optional
        The pulse for ``"matched"`` instead, a sample each, positive, with its maximum inside.

    Returns
    -------
    Ragged
        `time` [ns], float64, of sample 0 of the waveform on; `amplitude` [ADU] and `width` at half of it [ns], float32;
        `saturated`. Rows are (event, channel).

    Raises
    ------
    ArgumentError
        An argument is out of range. Where waveforms hold NaN, or samples beyond 1e30, when it is computed.

    References
    ----------
    .. [1] D. A. Gedcke and W. J. McDonald, Nucl. Instrum. Methods 58 (1968) 253.
    .. [2] For white noise of standard deviation s and a known pulse h, ``s / sqrt(sum(h'**2))``; H. L. Van Trees,
       Detection, Estimation, and Modulation Theory, part I (1968), section 4.2.3.

    Examples
    --------
    >>> sample = np.arange(400)
    >>> waveform = np.rint(2048 - 500 * np.exp(-(((sample - 200.3) / 3.5) ** 2) / 2)).astype(np.uint16)
    >>> hits = find_hits(waveform, "matched", threshold=40).compute()
    >>> (hits["time"] / (1e9 / (6.4e9 * 13 / 14))).values.round(2)
    array([200.3])
    """
    records = _records(waveforms)
    attrs = records.meta["samples"].attrs if isinstance(records, Ragged) else records.attrs
    dtype = records.meta["samples"].dtype if isinstance(records, Ragged) else records.dtype
    interval = _interval(attrs, sample_interval)
    sparse = isinstance(records, Ragged) and not attrs.get("whole_waveforms")
    fractional = sparse and "fractional_bits" in attrs
    if sparse and baseline is None and not fractional:
        raise ArgumentError(
            "FEX windows have no samples to take a baseline from: give baseline=, one number or (channel, core); "
            "baseline_of(windows(node, waveforms=True)) finds it in the run's whole waveforms"
        )
    if fractional and baseline is None:
        baseline = float(FRACTIONAL_BASELINE)
    _check(method, fraction, threshold, dead_time, polarity)
    if baseline is None and not 1 <= cores <= pretrigger:
        raise ArgumentError(
            f"pretrigger={pretrigger} samples must hold one of each of cores={cores}, of which there is one"
        )
    steps = max(1, round(delay / interval)) if np.isfinite(delay) and delay > 0 else 0
    length = None if isinstance(records, Ragged) else records.sizes["sample"]
    if steps == 0 or (method == "cfd" and length is not None and steps >= length):
        raise ArgumentError(f"delay={delay} ns must be positive and shorter than the trace of {length} samples")
    if baseline is None and length is not None and length < pretrigger:
        raise ArgumentError(f"the trace of {length} samples is shorter than pretrigger={pretrigger}; give baseline=")
    kernel, slope = _template(method, pulse_width / interval, template)
    if saturation is None:
        saturation = (-np.inf, np.inf) if dtype.kind == "f" or fractional else (0.0, 4095.0)
    finder = Finder(
        METHODS.index(method),
        float(fraction),
        steps,
        float(threshold),
        dead_time / interval,
        polarity,
        pretrigger if baseline is None else 0,
        np.zeros((1, cores)) if baseline is None else baseline_table(baseline, _labels(records)),
        (float(saturation[0]), float(saturation[1])),
        kernel,
        slope,
        interval,
        float(attrs.get("first_sample_ns", 0.0)),
        FRACTIONAL_SCALE if fractional else 1.0,
        float(FRACTIONAL_PERIOD) if fractional else 0.0,
    )
    told = {"method": method, "fraction": fraction, "delay": steps * interval, "threshold": threshold,
            "dead_time": dead_time, "polarity": polarity, "sample_interval": interval}  # fmt: skip
    if isinstance(records, Ragged):
        return records.map_blocks(_of_windows, finder, told)
    return from_array(whole_channels(records), partial(_of_waveforms, finder=finder, told=told))


def _records(waveforms: Any) -> "xr.DataArray | Ragged":
    if isinstance(waveforms, Ragged):
        records = waveforms
    elif isinstance(waveforms, xr.Dataset):
        records = Ragged.from_dataset(waveforms) if "sample_offset" in waveforms else windows(waveforms)
    else:
        return as_waveforms(waveforms)
    if "samples" not in records.meta:
        raise ArgumentError("hits are found in windows, which have samples: what windows or decode_fex gave")
    return records


def _labels(records: "xr.DataArray | Ragged") -> xr.DataArray:
    return records.meta["channel"] if isinstance(records, Ragged) else records["channel"]


def _interval(attrs: dict[Any, Any], asked: float | None) -> float:
    """Of samples, in ns."""
    if asked is None:
        if "sample_interval_ns" in attrs:
            return float(attrs["sample_interval_ns"])
        if "sample_interval" not in attrs:
            return SAMPLE_NS
        unit = attrs.get("sample_interval_units", "s")
        if unit not in ("s", "ns"):
            raise ArgumentError(f"the sample interval is in {unit!r}; give sample_interval= in ns")
        return float(attrs["sample_interval"]) * (1e9 if unit == "s" else 1.0)
    if not (np.isfinite(asked) and asked > 0):
        raise ArgumentError(f"sample_interval={asked} ns must be positive")
    return float(asked)


def _check(method: str, fraction: float, threshold: float, dead_time: float, polarity: int) -> None:
    if method not in METHODS:
        raise ArgumentError(f"there is no method {method!r}; choose from {', '.join(METHODS)}")
    if not 0 < fraction <= 1 or (method == "dynamic_leading_edge" and fraction == 1):
        most = "below" if method == "dynamic_leading_edge" else "at most"
        raise ArgumentError(f"fraction={fraction} must be above 0 and, for {method}, {most} 1")
    if not 1 / LARGEST <= threshold <= LARGEST:
        raise ArgumentError(f"threshold={threshold} ADU must be positive, from {1 / LARGEST:g} to {LARGEST:g}")
    if not (np.isfinite(dead_time) and dead_time >= 0):
        raise ArgumentError(f"dead_time={dead_time} ns must not be negative")
    if polarity not in (-1, 1):
        raise ArgumentError(f"polarity={polarity} must be -1, for pulses that go down, or 1")


def baseline_table(baseline: Any, channels: xr.DataArray) -> Array:
    """Baselines as (channels or 1, cores).

    Parameters
    ----------
    baseline : float, (channel,) or (channel, core)
    channels : xarray.DataArray
        Labels, which a baseline that has them too is chosen by.

    Returns
    -------
    (channels or 1, cores) float64

    Raises
    ------
    ArgumentError
        It is of another shape, or not a number.
    """
    if isinstance(baseline, xr.DataArray) and "channel" in baseline.coords and "channel" in baseline.dims:
        missing = set(channels.values.tolist()) - set(baseline["channel"].values.tolist())
        if missing:
            raise ArgumentError(f"baseline: has no channel {sorted(missing)[0]}")
        baseline = baseline.sel(channel=channels.values).transpose("channel", ...)
    table = np.atleast_1d(np.asarray(baseline, np.float64))
    table = table[:, None] if table.ndim == 1 else table
    fits = table.ndim == 2 and len(table) in (1, channels.size) and table.shape[1] > 0
    if not fits or not (np.abs(table) <= LARGEST).all():
        raise ArgumentError(
            f"baseline: one number, ({channels.size},) or ({channels.size}, cores) of finite numbers is wanted, "
            f"not {np.shape(baseline)}; a channel without waveforms has no baseline of its own"
        )
    return table


def _template(method: str, width: float, template: Any) -> tuple[Array, Array]:
    """Kernels of the correlation for the pulse's height and for its slope in time."""
    if method != "matched":
        return np.ones(1), np.ones(1)
    if template is None:
        if not (np.isfinite(width) and width > 0):
            raise ArgumentError("pulse_width must be positive")
        sigma = width / np.sqrt(8 * np.log(2))
        at = np.arange(-int(np.ceil(4.5 * sigma)), int(np.ceil(4.5 * sigma)) + 1)
        pulse = np.exp(-0.5 * (at / sigma) ** 2)
        slope = at / sigma**2 * pulse
    else:
        from scipy.interpolate import CubicSpline

        pulse = np.asarray(template, np.float64)
        if pulse.ndim != 1 or len(pulse) < 5 or not np.isfinite(pulse).all() or not 0 < pulse.argmax() < len(pulse) - 1:
            raise ArgumentError("template: five samples or more of a positive pulse with its maximum inside are wanted")
        spline = CubicSpline(np.arange(len(pulse)), pulse)
        peaks = [root for root in spline.derivative().roots() if abs(root - pulse.argmax()) <= 1]
        peak = max(peaks, key=spline)
        reach = max(pulse.argmax(), len(pulse) - 1 - pulse.argmax())
        at = np.arange(-reach, reach + 1) + peak
        inside = (at >= 0) & (at <= len(pulse) - 1)
        pulse, slope = np.where(inside, spline(at), 0.0), np.where(inside, -spline(at, 1), 0.0)
    return pulse / (pulse @ pulse), slope / (pulse @ pulse)


def _of_waveforms(values: Array, coords: xr.Dataset, *, finder: Finder, told: dict[str, Any]) -> xr.Dataset:
    """Hits of a block of whole waveforms."""
    events, channels, samples = values.shape
    if values.dtype not in _COMPILED:
        values = values.astype(np.float64)
    if values.dtype.kind == "f" and not (fit := np.abs(values) <= LARGEST).all():
        event, channel, sample = np.argwhere(~fit)[0]
        raise ArgumentError(
            f"sample {sample} of event {event}, channel {coords['channel'].values[channel]}, is not finite, or beyond "
            f"{LARGEST:g}; leave out what is missing by a coordinate present (event, channel), with zeros in its place"
        )
    rows = np.ascontiguousarray(values).reshape(events * channels, samples)
    record_edge = np.arange(len(rows) + 1)
    if "present" in coords:
        there = np.broadcast_to(coords["present"].transpose(..., "channel").values, (events, channels)).reshape(-1)
        rows = rows if there.all() else rows[there]
        record_edge = np.concatenate([np.zeros(1, np.int64), np.cumsum(there)])
    edge, start = np.arange(0, rows.size + 1, samples), np.zeros(len(rows), np.int32)
    columns = finder.find(rows.reshape(-1), edge, start, record_edge, channels)
    return hits_dataset(columns, block_coordinates(coords), told)


def _of_windows(block: xr.Dataset, finder: Finder, told: dict[str, Any]) -> xr.Dataset:
    """Hits of a block of windows."""
    lengths = np.diff(block["sample_offset"].values)
    if lengths.size and lengths.min() < finder.pretrigger:
        raise ArgumentError(
            f"a waveform of {lengths.min()} samples is shorter than pretrigger={finder.pretrigger}; give baseline="
        )
    samples = np.ascontiguousarray(block["samples"].values)
    if samples.dtype not in _COMPILED:
        samples = samples.astype(np.float64)
    if samples.dtype.kind == "f" and not (fit := np.abs(samples) <= LARGEST).all():
        window = np.searchsorted(block["sample_offset"].values, np.argmin(fit), side="right") - 1
        raise ArgumentError(f"window {window} of a block holds samples not finite, or beyond {LARGEST:g}; leave it out")
    columns = finder.find(
        samples,
        block["sample_offset"].values,
        block["start"].values,
        block["offset"].values,
        block.sizes["channel"],
    )
    return hits_dataset(columns, block_coordinates(block.coords.to_dataset()), told)


def hits_dataset(columns: dict[str, Array], coords: Any, told: dict[str, Any]) -> xr.Dataset:
    """A block of hits.

    Parameters
    ----------
    columns : dict of str to array
    coords : dict of str to xarray.Variable
    told : dict
        Attributes: how they were found.

    Returns
    -------
    xarray.Dataset
    """
    words = {
        "offset": ("1", "first hit of each (event, channel)"),
        "time": ("ns", "time of the hit after the first sample"),
        "amplitude": ("ADU", "height above the baseline"),
        "width": ("ns", "full width at half of the height"),
        "saturated": ("1", "the maximum is at the digitizer's limit"),
    }
    return xr.Dataset(
        {
            name: (
                "row_edge" if name == "offset" else "hit",
                column,
                dict(zip(("units", "long_name"), words[name], strict=True)),
            )
            for name, column in columns.items()
        },
        {name: c for name, c in coords.items() if name not in columns},  # events have a time too
        told,
    )
