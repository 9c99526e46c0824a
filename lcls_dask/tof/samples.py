"""Baselines of digitizer samples."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError
from ..reduce.ragged import Ragged
from ..reduce.reduction import Reduction
from .records import as_waveforms, whole_channels

Array = np.ndarray[Any, np.dtype[Any]]

#: Samples further than this many standard deviations from the median are of a pulse.
CLIP = 4.0


def subtract_baseline(
    waveforms: Any,
    pretrigger: int = 64,
    cores: int = 4,
    polarity: int = -1,
    *,
    baseline: Any = None,
    saturation: tuple[float, float] | None = None,
) -> xr.DataArray:
    """Positive signal above the baseline of each interleaved ADC core.

    The baseline is the mean of the first samples of each core, of those within 4 standard deviations of their median
    (as told by the median absolute deviation): pulses in the window are left out, if they fill less than half of it.

    Parameters
    ----------
    waveforms : xarray.DataArray or array, (event, channel, sample)
        See `find_hits`; NumPy or Dask.
    pretrigger : int
        Samples at the start of each waveform to take its baseline from.
    cores : int
        Interleaved cores, sample i is of core ``i % cores``.
    polarity : {-1, 1}
        Whether pulses go down or up.
    baseline : float, (channel,) or (channel, core) array, optional
        To subtract instead [ADU].
    saturation : (float, float), optional
        Values that the digitizer cannot go beyond; by default 0 and 4095 for integers, none for real numbers.

    Returns
    -------
    (event, channel, sample) xarray.DataArray
        float32 [ADU]; coordinate `saturated` (event, channel) says where a sample is at the digitizer's limit. NaN
        where the waveform has NaN, and all of a waveform with NaN in the window.

    Raises
    ------
    ArgumentError
        The window holds no sample of some core, or the waveforms are shorter than it.

    Examples
    --------
    >>> waveform = np.tile([2050, 2041, 2048, 2044], 50).astype(np.uint16)
    >>> waveform[100] -= 30
    >>> signal = subtract_baseline(waveform)
    >>> signal[0, 0, 98:103].values, signal["saturated"].values
    (array([-0., -0., 30., -0., -0.], dtype=float32), array([[False]]))
    """
    from .hits import baseline_table

    array = as_waveforms(waveforms)
    if polarity not in (-1, 1):
        raise ArgumentError(f"polarity={polarity} must be -1, for pulses that go down, or 1")
    if array.chunks is not None:
        array = whole_channels(array)
    if saturation is None:
        saturation = (0, 4095) if array.dtype.kind in "iu" else (-np.inf, np.inf)
    if baseline is None:
        if not 1 <= cores <= pretrigger <= array.sizes["sample"]:
            raise ArgumentError(
                f"pretrigger={pretrigger} must hold a sample of each of cores={cores}, and the waveforms of "
                f"{array.sizes['sample']} samples must be as long"
            )
        work = partial(_subtract, pretrigger=pretrigger, cores=cores, polarity=polarity, saturation=saturation)
        given: list[xr.DataArray] = []
    else:
        table = baseline_table(baseline, array["channel"])
        table = np.broadcast_to(table, (array.sizes["channel"], table.shape[1]))
        work = partial(_subtract_given, polarity=polarity, saturation=saturation)
        given = [xr.DataArray(table, dims=("channel", "core"))]
    signal, saturated = xr.apply_ufunc(
        work,
        array,
        *given,
        input_core_dims=[["sample"], *([["core"]] if given else [])],
        output_core_dims=[["sample"], []],
        dask="parallelized",
        output_dtypes=[np.float32, np.bool_],
    )
    signal.attrs = {**array.attrs, "units": "ADU", "long_name": "signal above the baseline"}
    saturated.attrs = {"units": "1", "long_name": "a sample is at the digitizer's limit"}
    return signal.assign_coords(saturated=saturated)  # type: ignore[no-any-return]


def _subtract(
    values: Array, *, pretrigger: int, cores: int, polarity: int, saturation: tuple[float, float]
) -> tuple[Array, Array]:
    table = np.empty((*values.shape[:-1], cores))
    for core in range(cores):
        window = values[..., core:pretrigger:cores].astype(np.float64)
        median = np.median(window, axis=-1, keepdims=True)
        away = np.abs(window - median)
        # where more than half of the samples are equal, as where there is no noise, one step of the ADC is none either
        most = np.maximum(CLIP * 1.4826 * np.median(away, axis=-1, keepdims=True), 1.0)
        table[..., core] = np.where(np.isnan(away), np.nan, window).mean(axis=-1, where=~(away > most))
    return _subtract_given(values, table, polarity=polarity, saturation=saturation)


def _subtract_given(
    values: Array, table: Array, *, polarity: int, saturation: tuple[float, float]
) -> tuple[Array, Array]:
    signal = np.empty(values.shape, np.float32)
    cores = table.shape[-1]
    for core in range(cores):
        signal[..., core::cores] = polarity * (values[..., core::cores] - table[..., core, None])
    return signal, np.asarray(((values <= saturation[0]) | (values >= saturation[1])).any(axis=-1))


def baseline_of(waveforms: Any, cores: int = 4) -> xr.DataArray:
    """Baseline of each channel and interleaved core of a run, by its whole waveforms.

    The mean of the samples within 4 standard deviations of the median, of all samples: exact to some hundredths of
    an ADU, where the samples before one waveform's trigger give a quarter of the noise.

    Parameters
    ----------
    waveforms : Ragged, xarray.DataArray or array
        Integers: ``windows(node, waveforms=True)``, or (event, channel, sample). They are read.
    cores : int
        Interleaved cores of the digitizer.

    Returns
    -------
    (channel, core) xarray.DataArray
        float64 [ADU]; NaN for a channel without waveforms.

    Raises
    ------
    ArgumentError
        The samples are not integers.

    Examples
    --------
    >>> waveform = np.tile([2050, 2041, 2048, 2044], 50).astype(np.uint16)
    >>> waveform[100:108] -= 300
    >>> baseline_of(waveform).values
    array([[2050., 2041., 2048., 2044.]])
    """
    return levels_of(waveforms, cores)["baseline"]


def levels_of(waveforms: Any, cores: int = 4) -> xr.Dataset:
    """Baseline and noise of each channel and interleaved core of a run, in one pass over its whole waveforms.

    Parameters
    ----------
    waveforms : Ragged, xarray.DataArray or array
        See `baseline_of`.
    cores : int

    Returns
    -------
    xarray.Dataset
        `baseline` and `noise` (channel, core), float64 [ADU]: mean and standard deviation of the samples within 4
        standard deviations of the median; NaN for a channel without waveforms.

    Raises
    ------
    ArgumentError
        The samples are not integers.

    Examples
    --------
    >>> noise = np.rint(np.random.default_rng(0).normal(2048, 4, (20, 1, 2000))).astype(np.uint16)
    >>> levels_of(noise, cores=1)["noise"].values.round(1)
    array([[4.]])
    """
    records = waveforms if isinstance(waveforms, Ragged) else whole_channels(as_waveforms(waveforms))
    like = records.meta["samples"] if isinstance(records, Ragged) else records
    labels = records.meta["channel"] if isinstance(records, Ragged) else records["channel"]
    if like.dtype.kind not in "iu" or like.dtype.itemsize > 2:
        raise ArgumentError(f"baselines are found in samples of int16 or uint16, not {like.dtype}")
    if cores < 1:
        raise ArgumentError(f"cores={cores} must be 1 or more")
    count = partial(_count, channels=labels.size, cores=cores)
    reduction = Reduction(count, _add_counts, _levels)
    blocks = records.blocks if isinstance(records, Ragged) else records.data.to_delayed().ravel()
    baseline, noise = reduction.lazily((block,) for block in blocks).compute()  # type: ignore[no-untyped-call]
    dims = ("channel", "core")
    return xr.Dataset(
        {
            "baseline": (dims, baseline, {"units": "ADU", "long_name": "baseline of each interleaved core"}),
            "noise": (dims, noise, {"units": "ADU", "long_name": "standard deviation of samples without a pulse"}),
        },
        {"channel": labels.variable},
    )


#: Values that 16-bit samples can have, signed or not: -32768 to 65535.
_LOWEST, _VALUES = -(1 << 15), 3 << 15


def _count(block: Any, channels: int, cores: int) -> Array:
    """How often each value occurs: (channel, core, value), of int64 for the sum."""
    from .kernels.histogram import count_values

    if isinstance(block, xr.Dataset):
        samples, edge, start, offset = (block[n].values for n in ("samples", "sample_offset", "start", "offset"))
    else:
        events, _, length = block.shape
        samples = np.ascontiguousarray(block).reshape(-1)
        edge, start = np.arange(events * channels + 1) * length, np.zeros(events * channels, np.int32)
        offset = np.arange(events * channels + 1)
    counts = np.zeros((channels, cores, _VALUES), np.int32)
    count_values(samples, edge, start, offset, -_LOWEST, counts)
    return counts


def _add_counts(parts: Any) -> Array:
    return np.asarray(np.sum(parts, axis=0, dtype=np.int64))


def _levels(counts: Array) -> tuple[Array, Array]:
    """Clipped means and standard deviations of values that occur so often: (channel, core) each."""
    centres, widths = np.full(counts.shape[:2], np.nan), np.full(counts.shape[:2], np.nan)
    for index in np.ndindex(*centres.shape):
        values: Array = np.flatnonzero(counts[index])
        if not values.size:
            continue
        times: Array = counts[index][values]
        median = _middle(values, times)
        away = np.abs(values - median)
        order = np.argsort(away, kind="stable")
        kept = away <= max(CLIP * 1.4826 * _middle(away[order], times[order]), 1.0)
        mean = np.average(values[kept], weights=times[kept])
        centres[index] = mean + _LOWEST
        widths[index] = np.sqrt(np.average((values[kept] - mean) ** 2, weights=times[kept]))
    return centres, widths


def _middle(values: Array, times: Array) -> float:
    """Median of sorted values that occur so many times."""
    return float(values[np.searchsorted(np.cumsum(times), times.sum() / 2)])
