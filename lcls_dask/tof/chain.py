"""The whole chain for a run: baselines, hits, spectra, angles, covariance."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from dask.base import compute

from ..access.run import Run
from ..errors import ArgumentError, SelectionError
from ..reduce.ragged import Ragged
from .angular import angular_fit
from .covariance import covariance_map, partial_covariance_map
from .deadtime import deadtime_correct
from .hits import find_hits
from .node import windows
from .samples import levels_of
from .spectra import energy_spectrum, event_spectra, tof_spectrum

Array = np.ndarray[Any, np.dtype[Any]]

#: The threshold in standard deviations of the noise: white noise passes it once in 10**9 samples.
NOISES = 6.0


#: Grades of the pulse energy that the dead time is corrected in, at most, and events in each, at least.
GRADES, GRADE_EVENTS = 10, 500


@dataclass(frozen=True)
class Settings:
    """What the chain is told.

    Attributes
    ----------
    threshold : float or None
        Least height of a hit [ADU]; by default `NOISES` times the noise of the noisiest channel's whole waveforms.
    detector : str or None
        The digitizer; the only one by default.
    method : str
    fraction, delay, dead_time : float
        See `find_hits`.
    polarity : int
    range_ns : (float, float)
        Of the spectrum of times.
    bin_ns, covariance_bin_ns : float
    length, t0, retardation : float
        Axis of energy, see `tof_to_energy`; none without a length.
    range_ev : (float, float)
    bin_ev : float
    lines : sequence of (float, float)
        Regions of the angular distributions, in eV where there is an axis of energy, else in ns.
    beta : float
        Of the lines.
    angles : sequence of float or None
        Of the channels [degree]; even over the circle by default.
    pulse_energy : str or None
        Variable that the covariance is partial to, and by whose grades the dead time is corrected.
    """

    threshold: float | None = None
    detector: str | None = None
    method: str = "cfd"
    fraction: float = 0.6
    delay: float = 1.0
    dead_time: float = 1.5
    polarity: int = -1
    range_ns: tuple[float, float] = (0.0, 500.0)
    bin_ns: float = 0.1
    covariance_bin_ns: float = 1.0
    length: float | None = None
    t0: float = 0.0
    retardation: float = 0.0
    range_ev: tuple[float, float] = (0.0, 1000.0)
    bin_ev: float = 0.5
    lines: Sequence[tuple[float, float]] = ()
    beta: float = 2.0
    angles: Sequence[float] | None = None
    pulse_energy: str | None = None


@dataclass(frozen=True)
class Plan:
    """The chain for one run, of which nothing but the levels has been computed.

    Attributes
    ----------
    run : Run
    settings : Settings
        With the threshold that was found, where none was told.
    levels : xarray.Dataset
        `baseline` and `noise` (channel, core) of the run's whole waveforms.
    hits : Ragged
    reductions : dict of str to xarray.DataArray
        What is made of the hits. Lazy; all of them in one pass.
    """

    run: Run
    settings: Settings
    levels: xr.Dataset
    hits: Ragged
    reductions: dict[str, xr.DataArray]

    def compute(self) -> xr.Dataset:
        """Carry it out on Dask: what `analyse` gives."""
        found = compute(*self.reductions.values())  # type: ignore[no-untyped-call]
        return _together(self.run, self.settings, self.levels, dict(zip(self.reductions, found, strict=True)))


def analyse(run: Run, settings: Settings) -> xr.Dataset:
    """Reduce a run's digitizer on Dask, in one pass over its windows.

    Parameters
    ----------
    run : Run
    settings : Settings

    Returns
    -------
    xarray.Dataset
        `counts` (channel, tof), `energy_counts` (channel, energy) where there is an axis, the angular fit of each
        region (line) to its hits, which are corrected for the dead time, `covariance` (tof_1, tof_2) of all channels
        together, `baseline` and `noise` (channel, core); attributes say what it was made of and how.

    Raises
    ------
    SelectionError
        The run has no digitizer, or several.
    ArgumentError
        A setting is out of range, or the run has no whole waveforms to take baselines from.

    Examples
    --------
    >>> result = analyse(run, Settings(threshold=60))  # doctest: +SKIP
    """
    return plan(run, settings).compute()


def plan(run: Run, settings: Settings) -> Plan:
    """Prepare what `analyse` does: baselines and noise are read, the rest is lazy.

    Parameters
    ----------
    run : Run
    settings : Settings

    Returns
    -------
    Plan

    Raises
    ------
    SelectionError, ArgumentError
        As of `analyse`.

    Examples
    --------
    >>> plan(run, Settings(threshold=60)).hits  # doctest: +SKIP
    <Ragged of 6,000 events x 16 channels in 3 blocks: time [ns], amplitude [ADU], width [ns], saturated>
    """
    detector = digitizer(run, settings.detector)
    node = run.dataset(group=f"/{detector}", chunks=None)
    levels = levels_of(windows(node, waveforms=True))
    levels = levels.assign(baseline=_baselines(levels["baseline"]))
    if settings.threshold is None:
        settings = replace(settings, threshold=_threshold(levels["noise"]))
    assert settings.threshold is not None
    hits = find_hits(
        windows(node, events=2048), settings.method, settings.fraction, settings.delay, threshold=settings.threshold,
        dead_time=settings.dead_time, polarity=settings.polarity, baseline=levels["baseline"],
    )  # fmt: skip
    control = None if settings.pulse_energy is None else _pulse_energy(run, settings.pulse_energy, node)
    grades = _grades(np.zeros(len(hits)) if control is None else control)
    asked = {"counts": tof_spectrum(hits, _edges(*settings.range_ns, settings.bin_ns), by=grades)}
    if settings.length is not None:
        asked["energy_counts"] = energy_spectrum(
            hits, _edges(*settings.range_ev, settings.bin_ev), length=settings.length, t0=settings.t0,
            retardation=settings.retardation,
        )  # fmt: skip
    spectra = event_spectra(hits, _edges(*settings.range_ns, settings.covariance_bin_ns), together=True)
    if control is None:
        asked["covariance"] = covariance_map(spectra)
    else:
        asked["covariance"] = partial_covariance_map(spectra, control=control)
    return Plan(run, settings, levels, hits, asked)


def digitizer(run: Run, asked: str | None = None) -> str:
    """Name of the run's digitizer.

    Parameters
    ----------
    run : Run
    asked : str, optional

    Returns
    -------
    str

    Raises
    ------
    SelectionError
        There is none, or there are several and none was asked for.
    """
    names = [
        path[1:] for path, node in run.index.nodes.items() if any(v.endswith(".windows.offset") for v in node.variables)
    ]
    if asked is not None:
        if asked not in names:
            raise SelectionError(f"{asked}: is no digitizer of this run; those are: {', '.join(names) or 'none'}")
        return asked
    if len(names) != 1:
        raise SelectionError(
            f"{run.path}: has {len(names)} digitizers ({', '.join(names) or 'none'}); choose one by --detector"
        )
    return names[0]


def _threshold(noise: xr.DataArray) -> float:
    """For all channels, in tenths of an ADU; of one step of the digitizer where there is less noise than that."""
    return round(NOISES * max(float(noise.max()), 1.0), 1)


def _baselines(found: xr.DataArray) -> xr.DataArray:
    """Of each channel; one without whole waveforms has the middle of the others."""
    if np.isnan(found).all():
        raise ArgumentError("the run has no whole waveforms to take baselines from: use find_hits(..., baseline=)")
    return found.fillna(found.median("channel"))


def _edges(low: float, high: float, width: float) -> Array:
    if not (np.isfinite([low, high, width]).all() and low < high and 0 < width <= high - low):
        raise ArgumentError(
            f"bins of {width} from {low} to {high} cannot be made; a rising range and a width are wanted"
        )
    return low + width * np.arange(round((high - low) / width) + 1)


def _pulse_energy(run: Run, name: str, node: xr.Dataset) -> Array:
    """Of the digitizer's own events; NaN where the detector did not answer."""
    base = name.rpartition(".")[0]
    whole = run.dataset(name, f"{base}.present")
    if name not in whole or whole[name].dims != ("event",):
        raise SelectionError(f"{name}: is not one number for each event; run.info() lists the variables")
    values = whole[name].values.astype(np.float64)
    values[~whole[f"{base}.present"].values.reshape(len(values), -1).all(axis=1)] = np.nan
    stamps = whole["timestamp"].values
    own: Array = values[np.searchsorted(stamps, node["timestamp"].values)]
    return own


def _grades(energy: Array) -> xr.DataArray:
    """Events in grades of as many each, by pulse energy; those without one are a grade of their own.

    The dead time loses more of the shots that have more: its correction takes those of a grade to be alike. A few shots
    without an energy are no grade, of which a correction could be told: they go with those in the middle.
    """
    there = np.isfinite(energy)
    if there.any() and np.count_nonzero(~there) < GRADE_EVENTS:
        energy = np.where(there, energy, np.median(energy[there]))
        there = np.isfinite(energy)
    count = max(1, min(GRADES, int(there.sum()) // GRADE_EVENTS))
    inner = np.quantile(energy[there], np.arange(1, count) / count) if there.any() else np.zeros(0)
    return xr.DataArray(np.where(there, np.searchsorted(inner, energy), -1), dims="event", name="grade")


def _together(run: Run, settings: Settings, levels: xr.Dataset, found: dict[str, xr.DataArray]) -> xr.Dataset:
    def bare(array: xr.DataArray, prefix: str) -> xr.DataArray:
        return array.rename({name: f"{prefix}{name}" for name in ("outside", "shots") if name in array.coords})

    graded = found["counts"]
    found["counts"] = graded.sum("grade", keep_attrs=True).assign_coords(
        {name: graded[name].sum("grade", keep_attrs=True) for name in ("outside", "shots")}
    )
    covariance = found.pop("covariance")
    covariance = covariance.drop_vars(
        [name for name in covariance.coords if str(name).startswith("tof_")], errors="ignore"
    )
    times = covariance["tof"].values
    coarse = {"units": "ns", "long_name": "time of flight, middle of the bin"}
    made = xr.Dataset({name: bare(array, "" if name == "counts" else "energy_") for name, array in found.items()})
    made["covariance"] = xr.DataArray(
        covariance.values,
        {"tof_1": ("tof_1", times, coarse), "tof_2": ("tof_2", times, coarse)},
        ("tof_1", "tof_2"),
        attrs=covariance.attrs,
    )
    made = made.assign(levels.data_vars)
    channels = made.sizes["channel"]
    angles = (
        np.arange(channels) * 360 / channels if settings.angles is None else np.asarray(settings.angles, np.float64)
    )
    if angles.shape != (channels,):
        raise ArgumentError(f"angles: {angles.size} were given, and there are {channels} channels")
    made = made.assign_coords(angle=("channel", angles, {"units": "degree", "long_name": "angle of the channel"}))
    # channels that see more lose more to the dead time, which would flatten the angular distribution
    spectrum = deadtime_correct(graded, graded["shots"], max(settings.dead_time, settings.bin_ns)).sum(
        "grade", skipna=False
    )
    axis = "tof"
    if settings.length is not None:
        edges = np.append(made["energy_low"].values, made["energy_high"].values[-1])
        spectrum = energy_spectrum(
            spectrum, edges, length=settings.length, t0=settings.t0, retardation=settings.retardation
        )
        axis = "energy"
    regions = list(settings.lines) or [(float(spectrum[f"{axis}_low"][0]), float(spectrum[f"{axis}_high"][-1]))]
    inside = [((spectrum[axis] >= low) & (spectrum[axis] < high)) for low, high in regions]
    rates = xr.concat([spectrum.where(one, 0).sum(axis, skipna=False) for one in inside], "line")
    rates = rates.transpose("line", "channel")
    fit = angular_fit(rates, angles, settings.beta).rename(
        {"intensity": "line_intensity", "intensity_error": "line_intensity_error"}
    )
    made = made.merge(fit, compat="override", join="override")
    made["line_counts"] = rates.variable
    made["line_low"] = ("line", [low for low, _ in regions], {"units": spectrum[axis].attrs["units"]})
    made["line_high"] = ("line", [high for _, high in regions], {"units": spectrum[axis].attrs["units"]})
    told = {key: value for key, value in asdict(settings).items() if value is not None}
    made.attrs = {
        "experiment": run.experiment,
        "run": run.number,
        "snapshot": run.snapshot,
        "state": run.state,
        "versions": ", ".join(
            f"{p} {importlib.metadata.version(p)}" for p in ("lcls_dask", "numpy", "numba", "dask", "xarray")
        ),
        **{
            f"settings.{key}": value if isinstance(value, str | int | float) else repr(value)
            for key, value in told.items()
        },
    }
    return made.drop_vars("core", errors="ignore")
