"""Counts that a dead time has lost."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]


def deadtime_correct(counts: Any, shots: Any, dead_time: float, *, bin_width: float | None = None) -> xr.DataArray:
    """Counts that there would have been without a dead time that later hits do not extend.

    In each bin only those shots can count that had no hit within the dead time before: ``live = shots - sum(w counts)``
    over the bins before, with the part w of the bin for which they are dead. Of these the part ``1 - exp(-rate)``
    counts, so that the true counts are ``-shots ln(1 - counts / live)`` [1]_. For an even rate and narrow bins that is
    ``n = m / (1 - m tau)``.

    Parameters
    ----------
    counts : (..., tof) xarray.DataArray, or array
        Of hits at least `dead_time` apart, such as `find_hits` and `tof_spectrum` give them. Bins are even, and no
        wider than the dead time.
    shots : int or array
        Events that were counted; the coordinate `shots` of the spectrum.
    dead_time : float
        In ns.
    bin_width : float, optional
        In ns; by default what `counts` says.

    Returns
    -------
    xarray.DataArray
        float64; NaN in bins where every live shot counted, so that the rate cannot be told.

    Raises
    ------
    ArgumentError
        The dead time is negative or less than a bin, or the bins are not even.

    References
    ----------
    .. [1] P. B. Coates, J. Phys. E 1 (1968) 878.

    Examples
    --------
    >>> deadtime_correct(np.array([0, 300, 200, 0]), 1000, 5.0, bin_width=5.0).values.round(1)
    array([  0. , 356.7, 268.3,   0. ])
    """
    array = counts if isinstance(counts, xr.DataArray) else xr.DataArray(np.asarray(counts))
    if not array.ndim:
        raise ArgumentError("counts: a spectrum is wanted")
    dim = "tof" if "tof" in array.dims else array.dims[-1]
    if bin_width is None:
        if f"{dim}_low" not in array.coords:
            raise ArgumentError("nothing says how wide the bins are: give bin_width= in ns, or what tof_spectrum gave")
        widths = (array[f"{dim}_high"] - array[f"{dim}_low"]).values
        bin_width = float(widths.mean())
        if not np.allclose(widths, bin_width, rtol=1e-3):
            raise ArgumentError("the bins are not even, which the dead time's correction wants")
    if not (np.isfinite(dead_time) and dead_time >= 0 and bin_width > 0):
        raise ArgumentError(f"dead_time={dead_time} ns and bin_width={bin_width} ns must not be negative")
    if 0 < dead_time < bin_width * (1 - 1e-9):
        raise ArgumentError(f"dead_time={dead_time} ns is less than a bin of {bin_width} ns; take narrower bins")
    if array.chunks is not None:
        array = array.chunk({dim: -1})
    exposed = shots if isinstance(shots, xr.DataArray) else xr.DataArray(np.asarray(shots))
    made = xr.apply_ufunc(
        partial(_correct, bins=dead_time / bin_width),
        array.astype(np.float64),
        exposed,
        input_core_dims=[[dim], []],
        output_core_dims=[[dim]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return made.assign_attrs(array.attrs)  # type: ignore[no-any-return]


def _correct(counts: Array, shots: Array, bins: float) -> Array:
    shots = np.asarray(shots, np.float64)[..., None]
    if bins == 0:
        return counts
    # bins behind a hit that are dead from end to end, then two in part: averaged over where in its bin the hit was
    whole = max(int(np.floor(bins - 1 + 1e-9)), 0)
    total = np.concatenate([np.zeros((*counts.shape[:-1], 1)), np.cumsum(counts, axis=-1)], axis=-1)
    at = np.arange(counts.shape[-1])
    dead = total[..., at] - total[..., np.maximum(at - whole, 0)]
    for later in (whole + 1, whole + 2):
        rest = bins - later
        part = 1 - (1 - rest) ** 2 / 2 if rest >= 0 else max(1 + rest, 0.0) ** 2 / 2
        dead[..., later:] += part * counts[..., : max(counts.shape[-1] - later, 0)]
    live = shots - dead
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = -np.log1p(-counts / live)
    return np.where((live > 0) & (counts < live), shots * rate, np.where(counts == 0, 0.0, np.nan))
