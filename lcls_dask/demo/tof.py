"""The demo's time-of-flight run: what `lcls-dask tof` makes of it, beside what was simulated."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..tof.axes import energy_to_tof
from ..tof.chain import Settings
from .page import Check

Array = np.ndarray[Any, Any]

#: Regions of the spectrum [eV]: Ar 2p, the LMM Auger lines, Ar 3s and 3p.
REGIONS = {"Ar 2p": (343.0, 358.0), "Ar LMM": (199.0, 212.0), "Ar 3s, 3p": (562.0, 595.0)}
#: Of the lines by which the polarisation is told, the Ar 2p lines.
BETA = 1.0
#: Standard deviations by which a fitted number may be off.
SLACK = 4.0


def settings(truth: Path) -> Settings:
    """What `lcls-dask tof` is told, with the flight path that was simulated.

    Parameters
    ----------
    truth : Path
        Directory of ``truth.json``.

    Returns
    -------
    Settings

    Examples
    --------
    >>> settings(Path("demo-out/runs/tmosim01/r0001")).length  # doctest: +SKIP
    590.0
    """
    spectrometer = json.loads((truth / "truth.json").read_text())["spectrometer"]
    return Settings(
        threshold=60.0,
        method="matched",
        range_ns=(55.0, 95.0),
        bin_ns=0.05,
        covariance_bin_ns=0.5,
        length=spectrometer["flight_path_mm"],
        t0=spectrometer["t0_ns"],
        range_ev=(190.0, 610.0),
        lines=tuple(REGIONS.values()),
        beta=BETA,
        pulse_energy="gmd.raw.milliJoulesPerPulse",
    )


@dataclass(frozen=True)
class Hits:
    """Simulated pulses that are in the files.

    Attributes
    ----------
    row : (n,) int64
        ``event * channels + channel``, over the events of the whole run.
    time : (n,) float64
        In ns.
    """

    row: Array
    time: Array

    def apart(self, dead_time: float) -> int:
        """How many are no closer than a dead time to one that counts."""
        counted, row, last = 0, -1, 0.0
        for mine, time in zip(self.row.tolist(), self.time.tolist(), strict=True):
            if mine != row or time - last >= dead_time:
                counted, row, last = counted + 1, mine, time
        return counted


def simulated(truth: Path) -> Hits:
    """Read the truth.

    Parameters
    ----------
    truth : Path
        Directory of ``truth.zarr``.

    Returns
    -------
    Hits

    Examples
    --------
    >>> simulated(Path("demo-out/runs/tmosim01/r0001"))  # doctest: +SKIP
    """
    import zarr

    store = zarr.open_group(truth / "truth.zarr", mode="r")
    offset, time = np.asarray(store["hits.offset"]), np.asarray(store["hits.time"]) * 1e9
    row = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
    kept = np.asarray(store["written"]).ravel()[row]
    order = np.lexsort((time, row))
    return Hits(row[order][kept[order]], time[order][kept[order]])


def check(truth: Path, result: xr.Dataset) -> list[Check]:
    """Compare a result with what was simulated.

    Parameters
    ----------
    truth : Path
        Directory of ``truth.json`` and ``truth.zarr``.
    result : xarray.Dataset
        What `lcls_dask.tof.chain.analyse` gave.

    Returns
    -------
    list of Check

    Examples
    --------
    >>> check(Path("demo-out/runs/tmosim01/r0001"), result)  # doctest: +SKIP
    """
    facts, hits = json.loads((truth / "truth.json").read_text()), simulated(truth)
    return [
        _number(hits, result),
        *_lines(facts, result),
        *_angles(facts, result),
        _correlation(truth, hits, result),
    ]


def _number(hits: Hits, result: xr.Dataset) -> Check:
    found = int(result["counts"].sum() + result["outside"].sum())
    dead_time = float(result.attrs["settings.dead_time"])
    apart = hits.apart(dead_time)
    return Check(
        "pulses found",
        f"{found:,}",
        f"{apart:,} ± 0.5 % ({len(hits.time):,} simulated, the others within {dead_time:g} ns of one)",
        abs(found - apart) <= max(2, 0.005 * apart),
    )


def _lines(facts: dict[str, Any], result: xr.Dataset) -> list[Check]:
    """Mean energies of the regions."""
    checks = []
    spectrum = result["energy_counts"].sum("channel")
    for name, (low, high) in REGIONS.items():
        inside = spectrum.where((spectrum["energy"] >= low) & (spectrum["energy"] < high), drop=True)
        count = float(inside.sum())
        lines = _within(facts, low, high)
        if not count:
            continue
        found = float((inside * inside["energy"]).sum()) / count
        spread = np.sqrt(float((inside * (inside["energy"] - found) ** 2).sum()) / count)
        expected = np.average([line["energy"] for line in lines], weights=[line["rate"] for line in lines])
        # the photon energy of a shot is that of all its electrons
        slack = SLACK * spread / np.sqrt(min(count, float(result["shots"]))) + 0.05
        checks.append(
            Check(
                f"{name}: mean energy",
                f"{found:.2f} eV",
                f"{expected:.2f} ± {slack:.2f} eV",
                abs(found - expected) <= slack,
            )
        )
    return checks


def _within(facts: dict[str, Any], low: float, high: float) -> list[dict[str, Any]]:
    return [line for line in facts["lines"] if low <= line["energy"] < high]


def _angles(facts: dict[str, Any], result: xr.Dataset) -> list[Check]:
    """Degree and tilt of the polarisation by the first region, anisotropy of the others."""
    beam, first = facts["beam"], next(iter(REGIONS))
    checks = [
        _fitted(f"{first}: degree of polarisation", result, "degree", 0, beam["polarisation"]),
        _fitted(f"{first}: tilt of it", result, "tilt", 0, beam["tilt_deg"], "°"),
    ]
    for i, (name, region) in list(enumerate(REGIONS.items()))[1:]:
        lines = _within(facts, *region)
        swings = [3 * line["beta"] * beam["polarisation"] / (4 + line["beta"]) for line in lines]
        right = float(np.average(swings, weights=[line["rate"] for line in lines]))
        checks.append(_fitted(f"{name}: anisotropy", result, "anisotropy", i, right))
    return checks


def _fitted(name: str, result: xr.Dataset, variable: str, line: int, right: float, unit: str = "") -> Check:
    found, error = (float(result[one][line]) for one in (variable, f"{variable}_error"))
    slack = SLACK * error
    return Check(name, f"{found:.4f}{unit}", f"{right:.4f} ± {slack:.4f}{unit}", abs(found - right) <= slack)


def _correlation(truth: Path, hits: Hits, result: xr.Dataset) -> Check:
    """Of the electrons of two regions in a shot, when the pulse energy's part is taken off."""
    import zarr

    store = zarr.open_group(truth / "truth.zarr", mode="r")
    written = np.asarray(store["written"])
    own = np.flatnonzero(written.any(axis=1))
    energy = np.asarray(store["pulse_energy"])[own]
    edges = result["tof_1"].values[:-1] + np.diff(result["tof_1"].values) / 2
    chosen, counts = [], []
    for low, high in (REGIONS["Ar 2p"], REGIONS["Ar LMM"]):
        axis = (result.attrs["settings.length"], result.attrs["settings.t0"])
        # whole bins of the map, whose elements add up to the covariance of the counts in all of them
        first, last = np.searchsorted(edges, [energy_to_tof(high, *axis), energy_to_tof(low, *axis)])
        inside = hits.row[(hits.time >= edges[first - 1]) & (hits.time < edges[last])]
        chosen.append(np.arange(first, last + 1))
        counts.append(np.bincount(inside // written.shape[1], minlength=len(written))[own])
    free = [count - np.polyval(np.polyfit(energy, count, 1), energy) for count in counts]
    size = float(np.prod([one.std() for one in free]))
    found = float(result["covariance"].values[np.ix_(*chosen)].sum()) / size
    expected, plain = (float(np.corrcoef(one, other)[0, 1]) for one, other in (free, counts))
    # pulses that the dead time has lost are in the one and not in the other
    slack = 0.02 + 2 / np.sqrt(len(own))
    return Check(
        "Ar 2p with Ar LMM: correlation in a shot",
        f"{found:.3f}",
        f"{expected:.3f} ± {slack:.3f} ({plain:.3f} with what the pulse energy makes of it)",
        abs(found - expected) <= slack,
    )
