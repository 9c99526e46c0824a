"""From time of flight to energy and to mass over charge, and back."""

from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]

#: Time of an electron of 1 eV over 1 mm, sqrt(m_e / 2 e) [ns sqrt(eV) / mm], of CODATA 2022: 1.6860650.
FLIGHT = 1e6 * np.sqrt(9.1093837139e-31 / (2 * 1.602176634e-19))


def tof_to_energy(
    tof: Any,
    length: Any = None,
    t0: Any = 0.0,
    retardation: Any = 0.0,
    field_free_length: Any = 0.0,
    *,
    calibration: xr.Dataset | None = None,
) -> Any:
    """Kinetic energy of electrons at the source.

    They drift `field_free_length` with all their energy E, then `length` with E less the retardation U:
    ``t = t0 + sqrt(m / 2) (field_free_length / sqrt(E) + length / sqrt(E - U))``. Without the first segment that is
    ``E = U + (m / 2) (length / (t - t0))**2``.

    Parameters
    ----------
    tof : array, xarray.DataArray or float
        Time of flight [ns].
    length : float
        Of the drift behind the retardation [mm].
    t0 : float
        When the electrons leave the source [ns].
    retardation : float
        Energy lost before the drift [eV]; negative where they are accelerated.
    field_free_length : float
        Of the drift before the retardation [mm].
    calibration : xarray.Dataset, optional
        What `fit_energy_calibration` gave, instead of the others but `retardation`, which is that of the potential set
        for a two-segment one.

    Returns
    -------
    array, xarray.DataArray or float
        In eV; NaN up to `t0`, before which nothing can arrive.

    Raises
    ------
    ArgumentError
        A length is negative, or both or neither of `length` and `calibration` are given.

    Examples
    --------
    >>> round(tof_to_energy(995.0, 590.0), 4)
    0.9996
    >>> energy_to_tof(tof_to_energy(np.array([60.0, 80.0]), 590, 20, 10, 50), 590, 20, 10, 50)
    array([60., 80.])
    """
    return _apply(
        energy_at, tof, axis_constants(length, t0, retardation, field_free_length, calibration), "eV", "energy"
    )


def energy_to_tof(
    energy: Any,
    length: Any = None,
    t0: Any = 0.0,
    retardation: Any = 0.0,
    field_free_length: Any = 0.0,
    *,
    calibration: xr.Dataset | None = None,
) -> Any:
    """Time of flight of electrons, the inverse of `tof_to_energy`.

    Parameters
    ----------
    energy : array, xarray.DataArray or float
        Kinetic energy at the source [eV].
    length, t0, retardation, field_free_length, calibration
        See `tof_to_energy`.

    Returns
    -------
    array, xarray.DataArray or float
        In ns; NaN for electrons that do not come through: of energies not above 0 and the retardation.

    Examples
    --------
    >>> round(energy_to_tof(1.0, 590), 3)
    994.778
    """
    return _apply(time_of, energy, axis_constants(length, t0, retardation, field_free_length, calibration), "ns", "tof")


def tof_to_mq(tof: Any, t0: Any, k: Any) -> Any:
    """Mass over charge of ions, ``((t - t0) / k)**2``.

    Parameters
    ----------
    tof : array, xarray.DataArray or float
        Time of flight [ns].
    t0 : float
        When they leave the source [ns].
    k : float
        Time of flight at a mass over charge of one [ns]; see `fit_mq_calibration`.

    Returns
    -------
    array, xarray.DataArray or float
        In Da/e; NaN before `t0`.

    References
    ----------
    W. C. Wiley and I. H. McLaren, Rev. Sci. Instrum. 26 (1955) 1150.

    Examples
    --------
    >>> tof_to_mq(np.array([1100.0, 5.0]), 100.0, 250.0)
    array([16., nan])
    """
    if np.any(np.asarray(k) <= 0):
        raise ArgumentError(f"k={k} ns must be positive")
    return _apply(_mq, tof, (t0, k), "Da/e", "mass over charge")


def _mq(tof: Array, t0: Array, k: Array) -> Array:
    return np.where(tof >= t0, ((tof - t0) / k) ** 2, np.nan)


def axis_constants(
    length: Any, t0: Any, retardation: Any, field_free_length: Any, calibration: xr.Dataset | None
) -> tuple[Any, Any, Any, Any]:
    """`t0`, `a`, `b` and `u` of `time_of`, of what a user gave; see `tof_to_energy`."""
    if (length is None) == (calibration is None):
        raise ArgumentError("give either length= in mm, or calibration=, which fit_energy_calibration makes")
    if calibration is not None:
        return calibration_constants(calibration, retardation)
    if np.any(np.asarray(length) < 0) or np.any(np.asarray(field_free_length) < 0):
        raise ArgumentError("lengths must not be negative")
    if not np.all(np.asarray(length) + np.asarray(field_free_length) > 0):
        raise ArgumentError("the electrons must fly some way: give length= in mm")
    return t0, FLIGHT * field_free_length, FLIGHT * length, retardation


def calibration_constants(calibration: xr.Dataset, retardation: Any = 0.0) -> tuple[Any, Any, Any, Any]:
    """`t0`, `a`, `b` and `u` of a calibration; see `time_of`.

    Parameters
    ----------
    calibration : xarray.Dataset
        What `fit_energy_calibration` gave.
    retardation : float
        Potential that is set, of a two-segment calibration.

    Returns
    -------
    tuple of xarray.DataArray
    """
    model = calibration.attrs.get("model")
    if model not in ("inverse_square", "two_segment"):
        raise ArgumentError("calibration= is what fit_energy_calibration gave, and this Dataset has no model")
    told = {str(name): calibration["value"].sel(parameter=name, drop=True) for name in calibration["parameter"].values}
    value: dict[str, Any] = {name: one if one.ndim else float(one) for name, one in told.items()}
    if model == "inverse_square":
        return value["t0"], 0.0, np.sqrt(value["c"]), value["e0"]
    return value["t0"], value["a"], value["b"], value["k"] * retardation


def _apply(work: Any, values: Any, constants: tuple[Any, ...], units: str, name: str) -> Any:
    """By NumPy, or over labelled and lazy arrays."""
    if not any(isinstance(one, xr.DataArray) for one in (values, *constants)):
        made = work(np.asarray(values, np.float64), *(np.asarray(one, np.float64) for one in constants))
        return made if made.ndim else float(made)
    if isinstance(values, xr.DataArray) and values.attrs.get("units", "ns" if units != "ns" else "eV") in (
        "s",
        "us",
        "ps",
    ):
        raise ArgumentError(f"times are in ns, and these are in {values.attrs['units']}")
    made = xr.apply_ufunc(work, values, *constants, dask="parallelized", output_dtypes=[np.float64])
    made.attrs = {"units": units, "long_name": name}
    return made


def time_of(energy: Array, t0: Array, a: Array, b: Array, u: Array) -> Array:
    """``t0 + a / sqrt(E) + b / sqrt(E - u)``.

    Parameters
    ----------
    energy, t0, a, b, u : array of float64

    Returns
    -------
    array of float64
        NaN where an electron does not come through.
    """
    # a segment of no length stops nobody: of an inverse square law, e0 may be anything
    with np.errstate(invalid="ignore", divide="ignore"):
        first = np.where(a > 0, a / np.sqrt(np.where((energy > 0) | (a == 0), energy, np.nan)), 0.0)
        rest = energy - u
        second = np.where(b > 0, b / np.sqrt(np.where((rest > 0) | (b == 0), rest, np.nan)), 0.0)
    return t0 + first + second


def energy_at(tof: Array, t0: Array, a: Array, b: Array, u: Array) -> Array:
    """The inverse of `time_of`, to the last digits.

    Parameters
    ----------
    tof, t0, a, b, u : array of float64

    Returns
    -------
    array of float64
        NaN up to `t0`.
    """
    tof, t0, a, b, u = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in (tof, t0, a, b, u)))
    flight = np.where(tof > t0, tof - t0, np.nan)
    if not a.any():
        return np.asarray(u + (b / flight) ** 2)
    # The time falls with the energy and is convex, so that Newton's method, from below the energy, never goes past it.
    # In x = sqrt(E - least): each segment alone takes less time than both, so its energy is a bound from below.
    least = np.where(b > 0, np.where(a > 0, np.maximum(u, 0.0), u), 0.0)
    x = np.sqrt(np.maximum(np.maximum((a / flight) ** 2, u + (b / flight) ** 2) - least, 1e-30))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for _ in range(60):
            energy = least + x * x
            first, second = a / np.sqrt(energy), b / np.sqrt(energy - u)
            first, second = np.where(a > 0, first, 0.0), np.where(b > 0, second, 0.0)
            excess = first + second - flight
            slope = -x * (first / energy + np.where(b > 0, second / (energy - u), 0.0))
            step = np.where(slope < 0, excess / slope, 0.0)
            x = np.maximum(x - step, 0.5 * x)
            if not np.any(np.abs(step) > 4e-16 * x):
                break
    return np.asarray(least + x * x)
