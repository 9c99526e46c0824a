"""Calibrations of the axes, with their covariance, that a wrong line does not spoil."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]

#: Chance that a line which is right is left out, in a set of lines without a wrong one, about.
CHANCE = 1e-3
#: By how much the best half of the lines agrees better than all that are right, about.
INFLATE = 2.0

#: Curves through few lines that are tried.
TRIALS = 300


@dataclass(frozen=True)
class Model:
    """What is fitted: linear in all parameters but one.

    Attributes
    ----------
    name : str
    parameters : tuple of str
        The linear ones, then the other.
    design : callable
        Of (x, other): the columns that the linear parameters multiply, (n, linear).
    gradient : callable
        Of (x, other): the derivatives of these columns by the other parameter.
    scan : callable
        Of x: values of the other parameter to begin with.
    units : tuple of str
        Of the parameters, for those of x and y.
    """

    name: str
    parameters: tuple[str, ...]
    design: Callable[[Array, float], Array]
    gradient: Callable[[Array, float], Array]
    scan: Callable[[Array], Array]


def _inverse_square_scan(x: Array) -> Array:
    first, reach = x[0].min(), np.ptp(x[0]) or 1.0
    # the light comes before all electrons
    return np.asarray(first - reach * np.logspace(-2.5, 1.5, 60))


def _two_segment_design(x: Array, k: float) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([np.ones_like(x[0]), 1 / np.sqrt(x[0]), 1 / np.sqrt(x[0] - k * x[1])], axis=1)


def _two_segment_gradient(x: Array, k: float) -> Array:
    zero = np.zeros_like(x[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([zero, zero, 0.5 * x[1] * (x[0] - k * x[1]) ** -1.5], axis=1)


MODELS = {
    "inverse_square": Model(
        "inverse_square",
        ("e0", "c", "t0"),
        lambda x, t0: np.stack([np.ones_like(x[0]), (x[0] - t0) ** -2.0], axis=1),
        lambda x, t0: np.stack([np.zeros_like(x[0]), 2 * (x[0] - t0) ** -3.0], axis=1),
        _inverse_square_scan,
    ),
    "two_segment": Model(
        "two_segment",
        ("t0", "a", "b", "k"),
        _two_segment_design,
        _two_segment_gradient,
        lambda x: np.linspace(0.5, 1.5, 41),
    ),
    "mq": Model(
        "mq",
        ("t0", "k"),
        lambda x, _: np.stack([np.ones_like(x[0]), np.sqrt(x[0])], axis=1),
        lambda x, _: np.zeros((x.shape[1], 2)),
        lambda x: np.zeros(1),
    ),
}


def fit_energy_calibration(
    tof: Any, energy: Any, model: str = "inverse_square", *, retardation: Any = None, robust: bool = True
) -> xr.Dataset:
    """Fit the energy axis to lines of known energy.

    - ``"inverse_square"``: ``E = e0 + c / (t - t0)**2``, least squares in the energy: one drift behind a retardation.
    - ``"two_segment"``: ``t = t0 + a / sqrt(E) + b / sqrt(E - k U)``, least squares in the time: a drift with all the
      energy and one with the energy less the retarding potential U that is set.

    Lines that were assigned wrongly are found by least trimmed squares [1]_, left out, and named in `used`.

    Parameters
    ----------
    tof : (line,) array or (..., line) xarray.DataArray
        Time of flight of each line [ns, or another unit, which the parameters then have]; NaN where there is none.
    energy : (line,) array
        Its energy [eV].
    model : {"inverse_square", "two_segment"}
    retardation : (line,) array, optional
        The potential U that was set at each line [V], for ``"two_segment"``.
    robust : bool
        Whether to look for wrong lines, which takes more lines than parameters by two.

    Returns
    -------
    xarray.Dataset
        `value` and `error` (..., parameter), `covariance` (..., parameter, parameter_) of the scatter of the lines
        about the curve, `rms` (...) of the residuals in the unit of what is fitted, `used` (..., line). NaN where all
        lines lie exactly on one curve's parameters' number, so that nothing tells the errors. `unnoticed` (..., line)
        is what a line could be off by, in that unit, with no other line to contradict it: infinite where there are
        fewer lines than parameters and two, much larger than `rms` for one that stands alone at an end.

    Raises
    ------
    ArgumentError
        There are less lines than parameters, or they do not determine them.

    References
    ----------
    .. [1] P. J. Rousseeuw and K. Van Driessen, Data Min. Knowl. Discov. 12 (2006) 29.

    Examples
    --------
    >>> t = np.array([60.0, 70.0, 80.0, 90.0, 100.0, 110.0])
    >>> energy = 10 + 1e6 / (t - 20) ** 2
    >>> energy[2] = 500  # a wrong line
    >>> fit = fit_energy_calibration(t, energy)
    >>> fit["value"].values.round(3), fit["used"].values
    (array([1.e+01, 1.e+06, 2.e+01]), array([ True,  True, False,  True,  True,  True]))
    """
    if model not in ("inverse_square", "two_segment"):
        raise ArgumentError(f"there is no model {model!r}; choose inverse_square or two_segment")
    if (model == "two_segment") != (retardation is not None):
        raise ArgumentError("retardation= of each line is wanted for two_segment, and for it alone")
    if model == "inverse_square":
        return _fit(MODELS[model], [tof], energy, robust)
    return _fit(MODELS[model], [energy, retardation], tof, robust)


def fit_mq_calibration(tof: Any, mq: Any, *, robust: bool = True) -> xr.Dataset:
    """Fit the mass axis, ``t = t0 + k sqrt(m/q)``, to ions that are known.

    Parameters
    ----------
    tof : (line,) array or (..., line) xarray.DataArray
        Time of flight of each line [ns].
    mq : (line,) array
        Its mass over charge [Da/e].
    robust : bool
        Whether to look for wrong lines; see `fit_energy_calibration`.

    Returns
    -------
    xarray.Dataset
        As of `fit_energy_calibration`, with the parameters `t0` and `k` of `tof_to_mq`.

    Raises
    ------
    ArgumentError
        There are less than two lines, or they do not determine the parameters.

    Examples
    --------
    >>> mq = np.array([1.0, 4.0, 18.0, 28.0])
    >>> fit_mq_calibration(100 + 250 * np.sqrt(mq), mq)["value"].values.round(3)
    array([100., 250.])
    """
    return _fit(MODELS["mq"], [mq], tof, robust)


def _fit(model: Model, known: list[Any], told: Any, robust: bool) -> xr.Dataset:
    """Fit every set of lines; one of `known` or `told` may have more dimensions than that of the lines."""
    arrays = [
        one if isinstance(one, xr.DataArray) else xr.DataArray(np.asarray(one, np.float64)) for one in (*known, told)
    ]
    line = next((one.dims[-1] for one in arrays if isinstance(one, xr.DataArray) and one.ndim > 1), None)
    arrays = [one.rename({one.dims[-1]: "line"}) if one.ndim == 1 or one.dims[-1] == line else one for one in arrays]
    if any(one.ndim == 0 or one.dims[-1] != "line" for one in arrays):
        raise ArgumentError("lines are along the last dimension, which all arguments have")
    sizes = {one.sizes["line"] for one in arrays}
    if len(sizes) != 1:
        raise ArgumentError(f"there are {' and '.join(map(str, sorted(sizes)))} lines; each needs a time and an energy")
    count = len(model.parameters)
    made = xr.apply_ufunc(
        lambda *values: _fit_one(
            model, np.stack(values[:-1]).astype(np.float64), values[-1].astype(np.float64), robust
        ),
        *[one.drop_vars("line", errors="ignore").load() for one in arrays],
        input_core_dims=[["line"]] * len(arrays),
        output_core_dims=[["parameter"], ["parameter", "parameter_"], [], ["line"], ["line"]],
        vectorize=True,
        output_dtypes=[np.float64, np.float64, np.float64, np.bool_, np.float64],
    )
    value, covariance, rms, used, unnoticed = made
    names = list(model.parameters)
    dataset = xr.Dataset(
        {"value": value, "covariance": covariance, "rms": rms, "used": used, "unnoticed": unnoticed},
        {"parameter": names, "parameter_": names},
        {"model": model.name, "robust": int(robust)},
    )
    variances = [covariance.isel(parameter=i, parameter_=i) for i in range(count)]
    dataset["error"] = np.sqrt(xr.concat(variances, "parameter")).transpose(*value.dims)
    return dataset


def _fit_one(model: Model, x: Array, y: Array, robust: bool) -> tuple[Array, Array, float, Array, Array]:
    there = np.isfinite(x).all(axis=0) & np.isfinite(y)
    count, lines = len(model.parameters), int(there.sum())
    if lines < count:
        raise ArgumentError(f"{lines} lines do not tell the {count} parameters of {model.name}; give {count} or more")
    x, y = x[:, there], y[there]
    keep = np.ones(lines, np.bool_)
    if robust and lines >= count + 2:
        keep = _trimmed(model, x, y)
    parameters = _least_squares(model, x[:, keep], y[keep])
    if parameters is None:
        raise ArgumentError(
            f"the lines do not determine the parameters of {model.name}: some are the same, or no curve passes them"
        )
    jacobian = _jacobian(model, x[:, keep], parameters)
    residual = y[keep] - model.design(x[:, keep], parameters[-1] if _free(model) else 0.0) @ _linear(model, parameters)
    scale = np.linalg.norm(jacobian, axis=0)
    # columns of unit length: parameters differ by orders of magnitude
    _, singular, right = np.linalg.svd(jacobian / scale, full_matrices=False)
    if singular[-1] < 1e-12 * singular[0]:
        raise ArgumentError(
            f"the lines do not determine the parameters of {model.name}: give lines that are further apart"
        )
    degrees = int(keep.sum()) - count
    variance = residual @ residual / degrees if degrees else np.nan
    covariance = variance * (right.T / singular**2) @ right / np.outer(scale, scale)
    used = np.zeros(there.shape, np.bool_)
    used[np.flatnonzero(there)[keep]] = True
    unnoticed = np.full(there.shape, np.nan)
    unnoticed[used] = _left_out(model, x, y, keep)[1][keep]
    return parameters, covariance, float(np.sqrt(np.mean(residual**2))), used, unnoticed


def _free(model: Model) -> bool:
    """Whether there is a parameter that the model is not linear in."""
    return model.name != "mq"


def _linear(model: Model, parameters: Array) -> Array:
    return parameters[:-1] if _free(model) else parameters


def _jacobian(model: Model, x: Array, parameters: Array) -> Array:
    if not _free(model):
        return model.design(x, 0.0)
    other = float(parameters[-1])
    bend = model.gradient(x, other) @ parameters[:-1]
    return np.column_stack([model.design(x, other), bend])


def _solve(design: Array, y: Array) -> tuple[Array, float]:
    """Linear parameters and the sum of squares of what is left."""
    scale = np.linalg.norm(design, axis=0)
    if not np.isfinite(design).all() or not scale.all():
        return np.full(design.shape[1], np.nan), np.inf
    linear = np.linalg.lstsq(design / scale, y, rcond=None)[0] / scale
    residual = y - design @ linear
    return linear, float(residual @ residual)


def _least_squares(model: Model, x: Array, y: Array) -> Array | None:
    """Parameters of least squares; None where there are none.

    For each value of the one parameter that the model is not linear in, the others follow: so it is scanned, its
    minimum is bracketed, and all are polished together by Gauss and Newton.
    """
    from scipy.optimize import minimize_scalar

    if not _free(model):
        return _solve(model.design(x, 0.0), y)[0]
    scan = np.sort(model.scan(x))
    squares = [_solve(model.design(x, other), y)[1] for other in scan]
    at = int(np.argmin(squares))
    if not np.isfinite(squares[at]):
        return None
    bounds = (scan[max(at - 1, 0)], scan[min(at + 1, len(scan) - 1)])
    found = minimize_scalar(lambda other: _solve(model.design(x, other), y)[1], bounds=bounds, method="bounded")
    other = float(found.x)
    linear, least = _solve(model.design(x, other), y)
    for _ in range(20):
        jacobian = _jacobian(model, x, np.append(linear, other))
        scale = np.linalg.norm(jacobian, axis=0)
        if not scale.all() or not np.isfinite(scale).all():
            return None
        step = float(
            (np.linalg.lstsq(jacobian / scale, y - model.design(x, other) @ linear, rcond=None)[0] / scale)[-1]
        )
        tried = _solve(model.design(x, other + step), y)
        if not tried[1] < least:
            break
        (linear, least), other = tried, other + step
    return np.append(linear, other)


def _trimmed(model: Model, x: Array, y: Array) -> Array:
    """Lines that are not wrong: those that agree with the half that agrees best (least trimmed squares).

    A wrong line at the end of a set may be in that half, as the curve can bend to it, and throws out what is right. So
    where lines are left out it is tried without each line in turn, and the most lines that agree with one another, no
    worse than by chance, are taken. Then each of them must lie where all others say.
    """
    from scipy.stats import f as fisher

    lines, count = len(y), len(model.parameters)
    half = (lines + count + 1) // 2
    everyone = np.ones(lines, np.bool_)
    kept = _grown(model, x, y, _best_half(model, x, y, half, everyone), everyone)
    if not kept.all():
        for i in range(lines):
            others = everyone.copy()
            others[i] = False
            tried = _grown(model, x, y, _best_half(model, x, y, min(half, lines - 1), others), everyone)
            degrees = [int(one.sum()) - count for one in (tried, kept)]
            if degrees[0] > degrees[1] > 0:
                worst = max(fisher.isf(CHANCE, *degrees) * _variance(model, x, y, kept), (1e-9 * np.abs(y).max()) ** 2)
                kept = tried if _variance(model, x, y, tried) <= worst else kept
    among = everyone.copy()
    while kept.sum() > count + 1:
        ratio = _left_out(model, x, y, kept)[0]
        if not ratio.max() > 1:
            break
        kept[int(np.argmax(ratio))] = among[int(np.argmax(ratio))] = False  # for good, so that this ends
        kept = _grown(model, x, y, kept, among)
    return kept


def _variance(model: Model, x: Array, y: Array, kept: Array) -> float:
    """Of the lines about their curve; infinite where there is none."""
    parameters = _least_squares(model, x[:, kept], y[kept])
    if parameters is None:
        return np.inf
    return float(np.square(_away(model, x, y, parameters)[kept]).sum() / (kept.sum() - len(model.parameters)))


def _grown(model: Model, x: Array, y: Array, kept: Array, among: Array) -> Array:
    """The lines with those of others that agree with them, one after the other."""
    from scipy.stats import t as student

    lines, count = len(y), len(model.parameters)
    kept, half = kept.copy(), int(kept.sum())
    while kept.sum() < lines:
        told = _told(model, x, y, kept)
        if told is None:
            return among.copy()
        away, deviation = told
        # how far a line that is right may lie from where the others say, and the best half agrees too well
        most = student.isf(CHANCE / (2 * lines), int(kept.sum()) - count) * deviation
        most = np.maximum(most * (INFLATE if kept.sum() == half else 1.0), 1e-9 * np.abs(y).max())
        near = np.where(among & ~kept & np.isfinite(away), away / most, np.inf)
        if near.min() > 1:
            break
        kept[int(np.argmin(near))] = True
    return kept


def _told(model: Model, x: Array, y: Array, kept: Array) -> tuple[Array, Array] | None:
    """Of each line how far it is from where some lines say, and the standard deviation of that for the others."""
    parameters = _least_squares(model, x[:, kept], y[kept])
    if parameters is None:
        return None
    away = _away(model, x, y, parameters)
    with np.errstate(invalid="ignore", divide="ignore"):
        jacobian = _jacobian(model, x, parameters)
    scale = np.linalg.norm(jacobian[kept], axis=0)
    inverse = np.linalg.pinv(jacobian[kept] / scale)
    leverage = np.square((jacobian / scale) @ inverse).sum(axis=1)
    sigma = np.sqrt(np.square(away[kept]).sum() / (int(kept.sum()) - len(model.parameters)))
    return away, sigma * np.sqrt(1 + leverage)


def _left_out(model: Model, x: Array, y: Array, kept: Array) -> tuple[Array, Array]:
    """Of each line that is kept how far it is from where the others say, by how far it may be; and how far it may be.

    Externally studentised residuals, of the curve taken to be linear in its parameters: 0 and infinity where the others
    are too few to say, or the line is not kept.
    """
    from scipy.stats import t as student

    ratio, most = np.zeros(len(y)), np.full(len(y), np.inf)
    degrees = int(kept.sum()) - 1 - len(model.parameters)
    parameters = _least_squares(model, x[:, kept], y[kept]) if degrees > 0 else None
    if parameters is None:
        return ratio, most
    jacobian, away = _jacobian(model, x[:, kept], parameters), _away(model, x[:, kept], y[kept], parameters)
    jacobian = jacobian / np.linalg.norm(jacobian, axis=0)
    alone = 1 - np.einsum("ij,ji->i", jacobian, np.linalg.pinv(jacobian))  # 0 of a line that no other has a say in
    with np.errstate(invalid="ignore", divide="ignore"):
        others = np.sqrt(np.maximum(np.square(away).sum() - away**2 / alone, 0) / degrees)
        room = student.isf(CHANCE / (2 * len(y)), degrees) * others / np.sqrt(alone)
        room = np.where(alone > 1e-9, np.maximum(room, 1e-9 * np.abs(y).max()), np.inf)
        most[kept], ratio[kept] = room, np.where(np.isinf(room), 0.0, away / alone / room)
    return ratio, most


def _best_half(model: Model, x: Array, y: Array, half: int, among: Array) -> Array:
    """Those of some lines that agree best, of the curves through any few of them."""
    linear = len(model.parameters) - _free(model)
    subsets = np.array(list(islice(combinations(np.flatnonzero(among).tolist(), linear), 20 * TRIALS)))
    if len(subsets) > TRIALS:
        subsets = np.random.default_rng(0).permutation(subsets)[:TRIALS]  # the same lines give the same fit
    best, kept = np.inf, among.copy()
    for other in model.scan(x) if _free(model) else [0.0]:
        design = model.design(x, float(other))
        if not np.isfinite(design).all():
            continue
        design = design / np.linalg.norm(design, axis=0)
        curves = np.einsum("sij,sj->si", np.linalg.pinv(design[subsets]), y[subsets])
        squares = np.where(among, np.square(y - curves @ design.T), np.inf)
        order = np.argsort(squares, axis=1, kind="stable")[:, :half]
        total = np.take_along_axis(squares, order, axis=1).sum(axis=1)
        if total.min() < best:
            best = float(total.min())
            kept = np.isin(np.arange(len(y)), order[int(np.argmin(total))])
    for _ in range(5):
        parameters = _least_squares(model, x[:, kept], y[kept])
        if parameters is None:
            break
        away = np.where(among, _away(model, x, y, parameters), np.inf)
        again = np.isin(np.arange(len(y)), np.argsort(away, kind="stable")[:half])
        if (again == kept).all():
            break
        kept = again
    return kept


def _away(model: Model, x: Array, y: Array, parameters: Array) -> Array:
    with np.errstate(invalid="ignore"):
        fitted = model.design(x, parameters[-1] if _free(model) else 0.0) @ _linear(model, parameters)
    return np.where(np.isfinite(fitted), np.abs(y - fitted), np.inf)
