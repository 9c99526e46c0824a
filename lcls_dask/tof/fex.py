"""FEX streams and whole waveforms, there and back."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError, FormatError
from ..reduce.ragged import Ragged, block_coordinates
from .node import windows_dataset
from .records import as_waveforms, from_array, whole_channels

Array = np.ndarray[Any, np.dtype[Any]]


def fex_sparsify(waveforms: Any, ymin: int, ymax: int, xpre: int = 8, xpost: int = 8) -> Ragged:
    """What the digitizer's feature extraction keeps of waveforms: the samples out of a band, and some around them.

    A group of 4 samples is kept if it or one within `xpre` samples behind it, or `xpost` before it, is out of the band.

    Parameters
    ----------
    waveforms : xarray.DataArray or array, (event, channel, sample) uint16 or int16
        NumPy or Dask; an array may have fewer dimensions. A multiple of 4 samples, none beyond 15 bits.
    ymin, ymax : int
        The band; what lies in it, ends included, is dropped [ADU].
    xpre, xpost : int
        Samples to keep before and after one that is out of the band.

    Returns
    -------
    Ragged
        `words` (word) uint16, the FEX stream of each (event, channel).

    Raises
    ------
    ArgumentError
        The waveforms cannot be coded, or there is no such band.

    Examples
    --------
    >>> waveform = np.full(400, 2048, np.uint16)
    >>> waveform[200:203] = 1900, 1800, 1950
    >>> stream = fex_sparsify(waveform, 2008, 2088)
    >>> stream.compute().sizes["word"]
    28
    >>> window = decode_fex(stream).compute()
    >>> window["start"].values, window["samples"].values[:12]
    (array([192], dtype=int32), array([2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048, 1900, 1800, 1950, 2048], dtype=uint16))
    >>> bool((padded(decode_fex(stream), 2048) == waveform).all())
    True
    """  # noqa: E501
    if ymin > ymax or xpre < 0 or xpost < 0:
        raise ArgumentError(f"ymin {ymin} <= ymax {ymax} and xpre {xpre}, xpost {xpost} >= 0 are wanted")
    data = whole_channels(as_waveforms(waveforms))
    if data.dtype not in (np.dtype(np.uint16), np.dtype(np.int16)):
        raise ArgumentError(f"samples that are coded are uint16 or int16, not {data.dtype}")
    if data.shape[-1] % 4:
        raise ArgumentError(f"waveforms of {data.shape[-1]} samples cannot be coded; a multiple of 4 is wanted")
    return from_array(data, partial(_sparsify, ymin=ymin, ymax=ymax, xpre=xpre, xpost=xpost))


def _sparsify(values: Array, coords: xr.Dataset, *, ymin: int, ymax: int, xpre: int, xpost: int) -> xr.Dataset:
    from .kernels.fex import sparsify_rows

    if values.size and (values.min() < 0 or values.max() > 0x7FFF):
        raise ArgumentError("a sample is negative or has bit 15, which marks what is skipped: it cannot be coded")
    rows = values.reshape(-1, values.shape[-1]) if values.size else np.zeros((values[..., 0].size, 4), values.dtype)
    words = np.empty(len(rows) * (2 * rows.shape[1] + 4), np.uint16)
    ends = np.zeros(len(rows) + 1, np.int64)
    sparsify_rows(rows, ymin, ymax, xpre, xpost, words, ends)
    text = "FEX streams, groups of four words"
    return xr.Dataset(
        {
            "offset": ("row_edge", ends, {"units": "1", "long_name": "first word of each (event, channel)"}),
            "words": ("word", words[: ends[-1]].copy(), {"units": "1", "long_name": text, **values_told(coords)}),
        },
        block_coordinates(coords),
    )


def values_told(coords: xr.Dataset) -> dict[str, Any]:
    """The sample interval among a block's attributes."""
    return {name: value for name, value in coords.attrs.items() if name.startswith("sample_interval")}


def decode_fex(payload: Any, *, baselines: bool = False) -> Ragged:
    """Windows of FEX streams.

    Parameters
    ----------
    payload : Ragged, xarray.Dataset, or (n,) uint16
        Streams without their headers, as `fex_sparsify` gives them; an array is one stream.
    baselines : bool
        Whether the first 4 samples of a stream are the baselines of the ADC's cores, no signal (format 3.0.0); they are
        left out.

    Returns
    -------
    Ragged
        As `windows` gives it, with `length` (row) int32: samples of the whole waveform.

    Raises
    ------
    FormatError
        When it is computed: a stream is malformed.

    Examples
    --------
    >>> stream = np.array([0x8064, 0x8000, 0x8000, 0x8000, 7, 8, 9, 9], np.uint16)
    >>> windows = decode_fex(stream).compute()
    >>> windows["start"].values, windows["samples"].values, windows["length"].values
    (array([100], dtype=int32), array([7, 8, 9, 9], dtype=uint16), array([104], dtype=int32))
    """
    if isinstance(payload, np.ndarray):
        if payload.ndim != 1 or payload.dtype != np.uint16:
            raise ArgumentError(f"a stream is (n,) uint16, not {payload.shape} {payload.dtype}")
        words = ("word", payload, {"units": "1"})
        payload = xr.Dataset({"offset": ("row_edge", [0, payload.size]), "words": words}, {"channel": [0]})
    streams = Ragged.from_dataset(payload) if isinstance(payload, xr.Dataset) else payload
    if not isinstance(streams, Ragged) or "words" not in streams.meta:
        raise ArgumentError("FEX streams are a Ragged with words, as fex_sparsify gives it, or an array of one stream")
    return streams.map_blocks(_decode, 4 if baselines else 0)


def _decode(block: xr.Dataset, lead: int) -> xr.Dataset:
    from .kernels.fex import decode_streams, measure_streams

    words, ends = block["words"].values, np.ascontiguousarray(block["offset"].values)
    count, kept, length = (np.zeros(len(ends) - 1, np.int64) for _ in range(3))
    wrong = measure_streams(words, ends, lead, count, kept, length)
    if wrong >= 0:
        event, channel = divmod(int(wrong), block.sizes["channel"])
        raise FormatError(
            f"the FEX stream of event {event} of its block, channel {block['channel'].values[channel]}, is malformed: "
            f"{ends[wrong + 1] - ends[wrong]} words are not whole groups of four, or too few; leave this event out"
        )
    start = np.empty(count.sum(), np.int32)
    edge, samples = np.zeros(start.size + 1, np.int64), np.empty(kept.sum(), np.uint16)
    decode_streams(words, ends, lead, start, edge, samples)
    told = {name: value for name, value in block["words"].attrs.items() if name.startswith("sample_interval")}
    events = {str(name): c.variable for name, c in block.coords.items() if c.dims == ("event",)}
    labels = block["channel"].variable
    made = windows_dataset(np.concatenate([[0], np.cumsum(count)]), start, edge, samples, labels, told, events)
    text = {"units": "1", "long_name": "samples of the whole waveform"}
    return made.assign(length=("row", length.astype(np.int32), text))


def padded(windows: "Ragged | xr.Dataset", fill: int, samples: int | None = None) -> xr.DataArray:
    """Whole waveforms of windows, as psana's ``padded``.

    `find_hits` needs them not: it takes windows as they are, which is faster.

    Parameters
    ----------
    windows : Ragged or xarray.Dataset
        It is computed.
    fill : int
        Value where there is no window [ADU].
    samples : int, optional
        Of a waveform; by default what the streams said.

    Returns
    -------
    (event, channel, sample) xarray.DataArray
        Of the windows' dtype.

    Raises
    ------
    ArgumentError
        A window does not fit, or nothing says how long the waveforms are.

    Examples
    --------
    >>> stream = np.array([0x8004, 0x8000, 0x8000, 0x8000, 7, 8, 9, 9], np.uint16)
    >>> padded(decode_fex(stream), 5).values
    array([[[5, 5, 5, 5, 7, 8, 9, 9]]], dtype=uint16)
    """
    from .kernels.fex import fill as put

    block: xr.Dataset = windows.compute()
    if samples is None:
        lengths = np.unique(block["length"].values) if "length" in block else np.zeros(0)
        if len(lengths) != 1:
            raise ArgumentError("nothing says how long each waveform is, or not all are alike: give samples=")
        samples = int(lengths[0])
    rows = block.sizes["row_edge"] - 1
    values = np.full((rows, samples), fill, block["samples"].dtype)
    wrong = put(
        block["start"].values, block["sample_offset"].values, block["samples"].values, block["offset"].values, values
    )
    if wrong >= 0:
        raise ArgumentError(f"a window of row {wrong} does not fit a waveform of {samples} samples; give more")
    shape = (-1, block.sizes["channel"], samples) if rows else (0, block.sizes["channel"], samples)
    coords = {name: c.variable for name, c in block.coords.items() if set(c.dims) <= {"event", "channel"}}
    return xr.DataArray(values.reshape(shape), coords, ("event", "channel", "sample"), attrs=block["samples"].attrs)
