"""Angular distributions of photoelectrons: anisotropy, and degree and tilt of linear polarisation."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]

#: Channels at different angles that a polarisation takes: it is three numbers.
ANGLES = 3

_NAMES = ("intensity", "anisotropy", "degree", "beta", "tilt")


def angular_fit(
    intensity: Any,
    angle: Any,
    beta: float | None = None,
    *,
    polarisation: float | None = None,
    error: Any = None,
    efficiency: Any = None,
    mask: Any = None,
) -> xr.Dataset:
    """Fit a dipole distribution to the intensities at angles in the plane normal to the beam.

    ``I(theta) = A (1 + R cos 2 (theta - tilt))`` with ``R = 3 beta P / (4 + beta)``: the anisotropy beta of the line
    and the degree P of linear polarisation come together [1]_, so one must be known to tell the other. The fit is
    linear in the Fourier components; without `error` it is that of greatest likelihood for counts (Poisson's).

    Parameters
    ----------
    intensity : (channel,) array or (..., channel) xarray.DataArray
        Counts; NaN where there are none. NumPy or Dask.
    angle : (channel,) array
        Of each channel [degree].
    beta : float, optional
        Of the line: `degree` is told. By default that of an s orbital, 2, unless `polarisation` is given.
    polarisation : float, optional
        Degree of linear polarisation, -1 to 1: `beta` is told.
    error : array like `intensity`, optional
        Standard deviations, where these are no plain counts.
    efficiency : (channel,) array, optional
        Relative efficiency of each channel, such as an isotropic line shows it.
    mask : (channel,) bool array, optional
        Channels to use.

    Returns
    -------
    xarray.Dataset
        `intensity` (mean over all angles), `anisotropy` R, `degree`, `beta`, `tilt` [degree, -90 to 90], each with
        ``<name>_error``, and `chi2` by degree of freedom. NaN where less than three channels at different angles are
        left, or there are no counts; the tilt's where there is no anisotropy to tell it.

    Raises
    ------
    ArgumentError
        Both or impossible values of `beta` and `polarisation`, or arrays of other channels.

    References
    ----------
    .. [1] J. W. Cooper and R. N. Zare, J. Chem. Phys. 48 (1968) 942; M. O. Krause et al., in
       U. Becker and D. A. Shirley (ed.), VUV and Soft X-Ray Photoionization (1996), chapter 4.

    Examples
    --------
    >>> angle = np.arange(16) * 22.5
    >>> counts = 1000 * (1 + 0.6 * np.cos(np.deg2rad(2 * (angle - 20))))
    >>> fit = angular_fit(counts, angle, beta=2)
    >>> float(fit["degree"].round(3)), float(fit["tilt"].round(3)), float(fit["tilt_error"].round(2))
    (0.6, 20.0, 0.53)
    """
    if beta is not None and polarisation is not None:
        raise ArgumentError("give beta or polarisation, not both: the fit tells the other")
    beta = 2.0 if beta is None and polarisation is None else beta
    if beta is not None and (not -1 <= beta <= 2 or beta == 0):
        raise ArgumentError(
            f"beta={beta} must lie within -1 and 2, and a line of beta 0 tells nothing of the polarisation"
        )
    if polarisation is not None and (not -1 <= polarisation <= 1 or polarisation == 0):
        raise ArgumentError(f"polarisation={polarisation} must lie within -1 and 1; 0 tells nothing of beta")
    data = intensity if isinstance(intensity, xr.DataArray) else xr.DataArray(np.asarray(intensity, np.float64))
    if not data.ndim:
        raise ArgumentError("intensity: one number for each channel is wanted")
    channel = "channel" if "channel" in data.dims else data.dims[-1]
    if data.chunks is not None:
        data = data.chunk({channel: -1})
    count = data.sizes[channel]
    weights = np.ones(count) if efficiency is None else np.asarray(efficiency, np.float64)
    use = np.ones(count, np.bool_) if mask is None else np.asarray(mask)
    angles = np.asarray(angle, np.float64)
    for name, one in (("angle", angles), ("efficiency", weights), ("mask", use)):
        if one.shape != (count,):
            raise ArgumentError(f"{name}: has shape {one.shape}, and there are {count} channels")
    if use.dtype != np.bool_:
        raise ArgumentError(f"mask: is {use.dtype}, and bool is wanted")
    errors = (
        [] if error is None else [error if isinstance(error, xr.DataArray) else xr.DataArray(error, dims=data.dims)]
    )
    double = np.deg2rad(2 * angles)
    design = np.stack([np.ones(count), np.cos(double), np.sin(double)], axis=1) * weights[:, None]
    use = use & np.isfinite(design).all(axis=1) & (weights > 0)
    made = xr.apply_ufunc(
        partial(_fit, design=np.where(use[:, None], design, 0.0), use=use, beta=beta, polarisation=polarisation),
        data.astype(np.float64),
        *errors,
        input_core_dims=[[channel]] * (1 + len(errors)),
        output_core_dims=[[]] * (2 * len(_NAMES) + 1),
        dask="parallelized",
        vectorize=True,
        output_dtypes=[np.float64] * (2 * len(_NAMES) + 1),
    )
    names = [*_NAMES, *(f"{name}_error" for name in _NAMES), "chi2"]
    result = xr.Dataset(dict(zip(names, made, strict=True)))
    words = {
        "intensity": (data.attrs.get("units", "1"), "mean over all angles"),
        "anisotropy": ("1", "modulation with twice the angle"),
        "degree": ("1", "degree of linear polarisation"),
        "beta": ("1", "anisotropy parameter"),
        "tilt": ("degree", "direction of linear polarisation"),
    }
    for name, (units, text) in words.items():
        result[name].attrs = {"units": units, "long_name": text}
        result[f"{name}_error"].attrs = {"units": units, "long_name": f"standard deviation, {text}"}
    result["chi2"].attrs = {"units": "1", "long_name": "chi squared by degree of freedom"}
    return result


def _fit(
    counts: Array,
    error: Array | None = None,
    *,
    design: Array,
    use: Array,
    beta: float | None,
    polarisation: float | None,
) -> tuple[Any, ...]:
    nothing = (np.nan,) * (2 * len(_NAMES) + 1)
    use = use & np.isfinite(counts)
    if error is not None:
        use = use & np.isfinite(error) & (error > 0)
    x, y = design[use], counts[use]
    if (
        len(y) < ANGLES
        or np.linalg.matrix_rank(x, tol=1e-9 * np.linalg.norm(x)) < 3
        or (error is None and y.sum() <= 0)
    ):
        return nothing
    variance = np.full(len(y), max(y.mean(), 1e-300)) if error is None else error[use] ** 2
    fitted = y
    for _ in range(50 if error is None else 1):
        inverse = np.linalg.inv(x.T @ (x / variance[:, None]))
        terms = inverse @ (x.T @ (y / variance))
        before, fitted = fitted, x @ terms
        if error is None:
            # of greatest likelihood: the variance of a count is what the curve says, and never nothing
            variance = np.maximum(fitted, 1e-3 * max(y.mean(), 1e-300))
            if np.allclose(before, fitted, rtol=1e-12, atol=0):
                break
    mean, cosine, sine = terms
    if mean <= 0:
        return nothing
    swing = np.hypot(cosine, sine)
    ratio = swing / mean
    if swing > 0:
        by_ratio = np.array([-ratio, cosine / swing, sine / swing]) / mean
        by_tilt = np.array([0.0, -sine, cosine]) / (2 * swing**2)
        ratio_error = np.sqrt(by_ratio @ inverse @ by_ratio)
        tilt = np.rad2deg(0.5 * np.arctan2(sine, cosine))
        tilt_error = np.rad2deg(np.sqrt(by_tilt @ inverse @ by_tilt))
    else:
        ratio_error, tilt, tilt_error = np.sqrt(inverse[1, 1]) / mean, np.nan, np.nan
    if beta is not None:
        factor = (4 + beta) / (3 * abs(beta))
        # electrons of a negative beta avoid the polarisation
        if beta < 0:
            tilt = tilt - 90 if tilt > 0 else tilt + 90
        degree, degree_error, told, told_error = factor * ratio, factor * ratio_error, beta, 0.0
    else:
        assert polarisation is not None
        degree, degree_error = polarisation, 0.0
        bottom = 3 * polarisation - ratio
        told = 4 * ratio / bottom if bottom else np.nan
        told_error = abs(12 * polarisation / bottom**2) * ratio_error if bottom else np.nan
    degrees = len(y) - 3
    chi2 = float(np.sum((y - fitted) ** 2 / variance) / degrees) if degrees else np.nan
    return (
        mean, ratio, degree, told, tilt,
        np.sqrt(inverse[0, 0]), ratio_error, degree_error, told_error, tilt_error, chi2,
    )  # fmt: skip
