"""Hits: frames with enough peaks."""

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import ArgumentError
from ..reduce.ragged import Ragged, as_ragged

Array = np.ndarray[Any, np.dtype[Any]]


def find_hits(
    peaks: "Ragged | xr.Dataset", *, min_peaks: int = 15, max_peaks: int | None = None, min_snr: float = 0.0
) -> xr.DataArray:
    """Tell frames with a crystal by their number of peaks.

    Parameters
    ----------
    peaks : Ragged or xarray.Dataset
        What `find_peaks` gave, or what that computed to.
    min_peaks : int
        Fewest peaks of a hit, in all segments together.
    max_peaks : int, optional
        Most of them: more are of ice, or of salt.
    min_snr : float
        Peaks of a lower ratio of signal to noise do not count.

    Returns
    -------
    (event) xarray.DataArray
        bool; on Dask for a Ragged. Its coordinate `peaks` has how many each event has.

    Raises
    ------
    ArgumentError
        The limits do not rise.

    Examples
    --------
    >>> offset = ("row_edge", np.array([0, 2, 20, 20]))
    >>> peaks = xr.Dataset({"offset": offset, "snr": ("peak", np.full(20, 9.0))}, {"segment": [0]})
    >>> hits = find_hits(peaks, min_peaks=10)
    >>> hits.values, hits["peaks"].values
    (array([False,  True, False]), array([ 2, 18,  0]))
    """
    if min_peaks < 1 or (max_peaks is not None and max_peaks < min_peaks):
        raise ArgumentError(f"{min_peaks} to {max_peaks} peaks to a hit: 1 or more are wanted, rising")
    ragged = as_ragged(peaks)
    if "snr" not in ragged.meta:
        raise ArgumentError("hits are told by peaks: what find_peaks gave")
    work: Any = delayed(count_peaks, pure=True)
    parts = [
        da.from_delayed(work(block, ragged.channels, min_snr), (events,), np.int64)  # type: ignore[no-untyped-call]
        for block, events in zip(ragged.blocks, ragged.events, strict=True)
    ]
    count = da.concatenate(parts)  # type: ignore[no-untyped-call]
    values = count >= min_peaks if max_peaks is None else (count >= min_peaks) & (count <= max_peaks)
    coords = {
        str(name): variable for name, variable in peaks_events(ragged, peaks).items() if variable.dims == ("event",)
    }
    coords["peaks"] = xr.Variable("event", count, {"units": "1", "long_name": "peaks of the event"})
    told = {"min_peaks": min_peaks, **({} if max_peaks is None else {"max_peaks": max_peaks}), "min_snr": min_snr}
    made = xr.DataArray(values, coords, ("event",), "hit", attrs={"long_name": "a crystal was hit", **told})
    return made if isinstance(peaks, Ragged) else made.compute()


def peaks_events(ragged: Ragged, peaks: "Ragged | xr.Dataset") -> dict[str, xr.Variable]:
    """Coordinates of events that are known before anything is computed."""
    return {} if isinstance(peaks, Ragged) else {str(name): peaks[name].variable for name in peaks.coords}


def count_peaks(block: xr.Dataset, segments: int, min_snr: float) -> Array:
    """Peaks of each event.

    Parameters
    ----------
    block : xarray.Dataset
        Of peaks.
    segments : int
    min_snr : float

    Returns
    -------
    (event,) int64
    """
    edges = block["offset"].values[:: max(segments, 1)]
    counted = np.concatenate([[0], np.cumsum(block["snr"].values >= min_snr)])
    made: Array = counted[edges[1:]] - counted[edges[:-1]]
    return made
