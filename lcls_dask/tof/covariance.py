"""Covariance maps, plain and partial, of blocks of events combined in any order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from ..errors import ArgumentError
from ..reduce.reduction import Reduction
from .groups import Groups

Array = np.ndarray[Any, np.dtype[Any]]

#: Largest sum of products of whole numbers that float32 holds exactly.
_EXACT = float(1 << 24)


@dataclass(frozen=True)
class Moments:
    """Means, and sums of products of deviations from them, of some events.

    Attributes
    ----------
    count : int
    mean_x, mean_y : (n,), (m,) float64
    products : (n, m) float64
    """

    count: int
    mean_x: Array
    mean_y: Array
    products: Array

    @classmethod
    def of(cls, x: Array, y: Array) -> "Moments":
        """Moments of a block.

        Parameters
        ----------
        x, y : (events, n), (events, m)
            The same object for the covariance of something with itself, which takes half of the time.

        Returns
        -------
        Moments
        """
        count = len(x)
        if not count:
            return cls(0, np.zeros(x.shape[1]), np.zeros(y.shape[1]), np.zeros((x.shape[1], y.shape[1])))
        if _counts_exactly(x) and (y is x or _counts_exactly(y)):
            # whole numbers: float32, which is twice as fast, loses nothing, nor do the sums
            small_x = x.astype(np.float32, copy=False)
            small_y = small_x if y is x else y.astype(np.float32, copy=False)
            ones = np.ones(count, np.float32)
            sum_x = (ones @ small_x).astype(np.float64)
            mean_x = sum_x / count
            mean_y = mean_x if y is x else (ones @ small_y).astype(np.float64) / count
            products = np.outer(sum_x, mean_y)
            return cls(count, mean_x, mean_y, np.subtract(small_x.T @ small_y, products, out=products))
        mean_x = x.mean(axis=0, dtype=np.float64)
        mean_y = mean_x if y is x else y.mean(axis=0, dtype=np.float64)
        away_x = x - mean_x
        away_y = away_x if y is x else y - mean_y
        return cls(count, mean_x, mean_y, away_x.T @ away_y)

    def plus(self, other: "Moments") -> "Moments":
        """Moments of both, by the update of Chan, Golub and LeVeque."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        step_x, step_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        part = other.count / count
        return Moments(
            count,
            self.mean_x + step_x * part,
            self.mean_y + step_y * part,
            self.products + other.products + np.outer(step_x, step_y * (self.count * part)),
        )


def _counts_exactly(values: Array) -> bool:
    """Whether sums of products of these are whole numbers that float32 holds."""
    from .kernels.histogram import greatest_whole

    if values.dtype.kind in "iub":
        most = max(-float(values.min(initial=0)), float(values.max(initial=0)))
    elif values.dtype == np.float32:
        most = greatest_whole(np.ascontiguousarray(values).reshape(-1))
    else:
        return False
    return 0 <= most and most * most * len(values) < _EXACT


def covariance_map(
    x: xr.DataArray,
    y: xr.DataArray | None = None,
    ddof: int = 1,
    *,
    by: Any = None,
    bins: Any = None,
) -> xr.DataArray:
    """Covariance over events of every bin of one spectrum with every bin of another.

    ``cov(X, Y) = sum((x - <x>) (y - <y>)) / (N - ddof)`` [1]_, by deviations from the mean of each block, which are
    then combined [2]_: stable, whatever the means, and the same for any blocks to rounding.

    Parameters
    ----------
    x, y : (event, ...) xarray.DataArray
        Spectra of each event, NumPy or Dask, such as `event_spectra` gives for one channel; `y` is `x` by default.
    ddof : int
        Degrees of freedom that the mean takes: 1 makes it unbiased.
    by : (event,) array, optional
        A map for each value of it, or each bin of it with `bins`: contingent covariance. See `tof_spectrum`.
    bins : (m + 1,) array, optional

    Returns
    -------
    ([group,] x's dimensions, y's dimensions) xarray.DataArray
        float64; those of `y` have ``_2`` behind their names where `x` has them too. NaN where there are not more than
        `ddof` events, and in rows and columns of bins where some event has NaN.

    Raises
    ------
    ArgumentError
        `x` and `y` are not of the same events.

    References
    ----------
    .. [1] L. J. Frasinski, K. Codling and P. A. Hatherly, Science 246 (1989) 1029.
    .. [2] T. F. Chan, G. H. Golub and R. J. LeVeque, Am. Stat. 37 (1983) 242.

    Examples
    --------
    >>> x = xr.DataArray([[0.0, 1.0], [2.0, 5.0], [4.0, 0.0]], dims=("event", "tof"))
    >>> covariance_map(x).values
    array([[ 4., -1.],
           [-1.,  7.]])
    """
    return _map(x, y, None, ddof, by, bins, correct=False)


def partial_covariance_map(
    x: xr.DataArray,
    y: xr.DataArray | None = None,
    control: Any = None,
    ddof: int = 1,
    *,
    by: Any = None,
    bins: Any = None,
) -> xr.DataArray:
    """Covariance that is not due to a fluctuating control, such as the pulse energy.

    ``pcov(X, Y; I) = cov(X, Y) - cov(X, I) cov(I, Y) / var(I)`` [1]_, times ``(N - 1) / (N - 2)`` where `ddof` is 1, as
    the control takes one degree of freedom more. Several controls take one each.

    Parameters
    ----------
    x, y : (event, ...) xarray.DataArray
        See `covariance_map`.
    control : (event,) or (event, n) array or xarray.DataArray
        Events where it is NaN are left out.
    ddof : int
        See `covariance_map`.
    by, bins : optional
        See `covariance_map`.

    Returns
    -------
    xarray.DataArray
        As of `covariance_map`; all NaN where the control does not vary, as nothing can be told then.

    Raises
    ------
    ArgumentError
        There is no control, or it is not of the same events.

    References
    ----------
    .. [1] L. J. Frasinski et al., Phys. Rev. Lett. 111 (2013) 073002.

    Examples
    --------
    >>> energy = np.array([1.0, 2.0, 3.0, 4.0])
    >>> x = xr.DataArray(np.stack([energy, 3 * energy], 1), dims=("event", "tof"))
    >>> partial_covariance_map(x, control=energy).values.round(12) + 0
    array([[0., 0.],
           [0., 0.]])
    """
    if control is None:
        raise ArgumentError("control= is wanted: the pulse energy of each event")
    return _map(x, y, control, ddof, by, bins, correct=ddof == 1)


def covariance_reduction(
    groups: int, shape: tuple[int, int], controls: int, ddof: int, correct: bool
) -> Reduction[list[Moments], Array]:
    """Covariance maps as a reduction of (x, y or None, control or None, groups).

    Parameters
    ----------
    groups : int
    shape : (int, int)
        Bins of x and of y.
    controls : int
        How many there are.
    ddof : int
    correct : bool
        For the degrees of freedom of the controls.

    Returns
    -------
    Reduction
        Of blocks (events, n), (events, m), (events, controls), (events,); to (groups, n, m) float64.
    """
    finish = partial(_finish, shape=shape, controls=controls, ddof=ddof, correct=correct)
    return Reduction(partial(_moments, several=groups), _combine, finish)


def _moments(x: Array, y: Array | None, control: Array | None, groups: Array, several: int) -> list[Moments]:
    x = _flat(np.asarray(x))
    other = x if y is None else _flat(np.asarray(y))
    if control is not None:
        groups = np.where(np.isnan(control).any(axis=1), -1, groups)
        # the controls stand behind the others: one product gives all covariances
        kind = np.float64
        x = np.concatenate([x.astype(kind), control], axis=1)
        other = x if y is None else np.concatenate([other.astype(kind), control], axis=1)
    made = []
    for group in range(several):
        mine = groups == group
        part = x if mine.all() else x[mine]
        made.append(Moments.of(part, part if other is x else (other if mine.all() else other[mine])))
    return made


def _flat(values: Array) -> Array:
    return values.reshape(len(values), int(np.prod(values.shape[1:])))


def _combine(parts: Sequence[list[Moments]]) -> list[Moments]:
    made = list(parts[0])
    for part in parts[1:]:
        made = [mine.plus(theirs) for mine, theirs in zip(made, part, strict=True)]
    return made


def _finish(groups: list[Moments], shape: tuple[int, int], controls: int, ddof: int, correct: bool) -> Array:
    out = np.full((len(groups), *shape), np.nan)
    n, m = shape
    for made, moments in zip(out, groups, strict=True):
        degrees = moments.count - ddof - (controls if correct else 0)
        if degrees <= 0:
            continue
        products = moments.products[:n, :m]
        if controls:
            inner = moments.products[n:, m:]
            spread = np.sqrt(np.diag(inner))
            noise = 1e-13 * np.sqrt(moments.count) * np.abs(moments.mean_x[n:])
            if not (spread > noise).all() or np.linalg.cond(inner / np.outer(spread, spread)) > 1e12:
                continue  # the controls do not vary, or are the same
            products = products - moments.products[:n, m:] @ np.linalg.solve(inner, moments.products[n:, :m])
        made[...] = products / degrees
    return out


def _map(x: Any, y: Any, control: Any, ddof: int, by: Any, bins: Any, correct: bool) -> xr.DataArray:
    for name, one in (("x", x), ("y", y)):
        if not isinstance(one, xr.DataArray) and not (name == "y" and one is None):
            raise ArgumentError(f"{name}: a DataArray over event is wanted, not {type(one).__name__}")
    event = "event" if "event" in x.dims else x.dims[0]
    x = x.transpose(event, ...)
    if y is not None and event not in y.dims:
        raise ArgumentError(f"y: has no dimension {event}, over which x varies")
    other = None if y is None else y.transpose(event, ...)
    events = x.sizes[event]
    if other is not None and other.sizes[event] != events:
        raise ArgumentError(f"x has {events} events and y {other.sizes[event]}")
    table = None if control is None else np.asarray(control, np.float64).reshape(np.shape(control)[0], -1)
    if table is not None and len(table) != events:
        raise ArgumentError(f"control: has {len(table)} events, and x has {events}")
    groups = Groups.of(by, bins, events)
    shapes = [x.shape[1:], x.shape[1:] if other is None else other.shape[1:]]
    size = (int(np.prod(shapes[0])), int(np.prod(shapes[1])))
    reduction = covariance_reduction(groups.count, size, 0 if table is None else table.shape[1], ddof, correct)
    lazy = x.chunks is not None or (other is not None and other.chunks is not None)
    if lazy:
        pieces = x.chunk({dim: -1 for dim in x.dims[1:]}) if x.chunks is not None else x.chunk({event: other.chunks[0]})  # type: ignore[union-attr]
        theirs = None if other is None else other.chunk({event: pieces.chunks[0], **dict.fromkeys(other.dims[1:], -1)})
        result = reduction.lazily(_blocks(pieces, theirs, table, groups))
        values = da.from_delayed(result, (groups.count, *size), np.float64)  # type: ignore[no-untyped-call]
    else:
        values = reduction([(x.values, None if other is None else other.values, table, groups.numbers)])
    name, labels = groups.coordinate
    coords = {str(c): v for c, v in x.coords.items() if event not in v.dims}
    dims, more = [str(dim) for dim in x.dims[1:]], []
    for dim in (x if other is None else other).dims[1:]:
        more.append(f"{dim}_2" if dim in dims else str(dim))
    second = x if other is None else other
    renamed = dict(zip(map(str, second.dims[1:]), more, strict=True))
    for c, v in second.coords.items():
        if v.dims and event not in v.dims:
            title = f"{c}_2" if str(c) in coords or str(c) in dims else str(c)
            coords[title] = xr.DataArray(v.data, dims=[renamed[str(dim)] for dim in v.dims], attrs=v.attrs)
    attrs = {"units": "1", "long_name": "partial covariance" if table is not None else "covariance", "ddof": ddof}
    made = xr.DataArray(
        values.reshape((groups.count, *shapes[0], *shapes[1])), coords, (name, *dims, *more), "covariance", attrs=attrs
    ).assign_coords({name: labels})
    return made if by is not None else made.isel({name: 0}, drop=True)


def _blocks(x: xr.DataArray, y: xr.DataArray | None, table: Array | None, groups: Groups) -> Iterator[tuple[Any, ...]]:
    mine = x.data.to_delayed().ravel()
    theirs = [None] * len(mine) if y is None else y.data.to_delayed().ravel()
    stop = 0
    for block, other, count in zip(mine, theirs, x.data.chunks[0], strict=True):
        start, stop = stop, stop + count
        yield block, other, None if table is None else table[start:stop], groups.numbers[start:stop]
