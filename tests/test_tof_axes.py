"""Axes and their calibrations: inverse of each other, errors that are right, real lines with known answers."""

import csv
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lcls_dask import tof
from lcls_dask.errors import ArgumentError


@pytest.mark.parametrize("retardation", [0.0, -20.0, 5.0])
@pytest.mark.parametrize("free", [0.0, 50.0, 600.0])
def test_energy_and_time_are_inverse(retardation: float, free: float) -> None:
    energy = max(retardation, 0) + np.logspace(-2, 4, 200)
    time = tof.energy_to_tof(energy, 590, 20, retardation, free)
    assert (np.diff(time) < 0).all()
    np.testing.assert_allclose(tof.tof_to_energy(time, 590, 20, retardation, free), energy, rtol=1e-11)


def test_known_times() -> None:
    # m_e / 2 e = 2.8428151 eV ns^2 / mm^2
    assert tof.tof_to_energy(995.0, 590) == pytest.approx(2.8428151 * (590 / 995) ** 2, rel=1e-7)
    assert np.isnan(tof.tof_to_energy(20.0, 590, 20))
    assert np.isnan(tof.tof_to_energy(5.0, 590, 20))
    assert np.isnan(tof.energy_to_tof(3.0, 590, retardation=5))
    lazy = xr.DataArray(np.linspace(30, 90, 7), dims="hit").chunk({"hit": 3})
    per_channel = xr.DataArray([590.0, 595.0], dims="channel")
    energy = tof.tof_to_energy(lazy, per_channel, 20)
    assert energy.dims == ("hit", "channel")
    assert energy.attrs["units"] == "eV"
    np.testing.assert_allclose(energy[:, 1], tof.tof_to_energy(np.linspace(30, 90, 7), 595, 20))
    with pytest.raises(ArgumentError, match="length"):
        tof.tof_to_energy(50.0)
    with pytest.raises(ArgumentError, match="negative"):
        tof.tof_to_energy(50.0, -1)
    with pytest.raises(ArgumentError, match="in us"):
        tof.tof_to_energy(xr.DataArray([1.0], dims="hit", attrs={"units": "us"}), 590)


def test_errors_of_a_calibration_are_those_of_its_scatter() -> None:
    random = np.random.default_rng(0)
    time = np.linspace(60, 140, 12)
    exact = 10 + 1e6 / (time - 20) ** 2
    tries = exact + 0.3 * random.standard_normal((200, 12))
    fit = tof.fit_energy_calibration(time, xr.DataArray(tries, dims=("trial", "line")), robust=False)
    away = fit["value"] - [10, 1e6, 20]
    pull = away / fit["error"]
    # t-distributed with 9 degrees of freedom: a standard deviation of 1.13
    assert pull.std("trial").values == pytest.approx([1.13] * 3, rel=0.15)
    together = np.cov(away.T)
    np.testing.assert_allclose(fit["covariance"].mean("trial"), together, rtol=0.35)


def test_a_wrong_line_does_not_spoil_a_calibration() -> None:
    random = np.random.default_rng(1)
    energy = np.array([200.0, 220, 250, 300, 350, 400, 450, 500, 550, 600])
    voltage = np.array([150.0, 150, 150, 150, 150, 0, 0, 0, 300, 300])
    time = 20 + 500 / np.sqrt(energy) + 840 / np.sqrt(energy - 0.98 * voltage) + 0.01 * random.standard_normal(10)
    right = tof.fit_energy_calibration(time, energy, "two_segment", retardation=voltage)
    assert right["used"].all()
    np.testing.assert_array_less(np.abs(right["value"] - [20, 500, 840, 0.98]), 4 * right["error"])
    wrong = time.copy()
    wrong[[3, 7]] = time[[3, 7]] + [3, -2]
    fit = tof.fit_energy_calibration(wrong, energy, "two_segment", retardation=voltage)
    assert np.flatnonzero(~fit["used"]).tolist() == [3, 7]
    np.testing.assert_array_less(np.abs(fit["value"] - right["value"]), 4 * fit["error"])
    back = tof.tof_to_energy(time, calibration=fit, retardation=voltage)
    np.testing.assert_allclose(back, energy, atol=1.0)


@pytest.mark.parametrize("end", [0, -1])
def test_a_wrong_line_at_an_end_is_told_or_it_is_said_that_it_cannot_be(end: int) -> None:
    """Others that are near contradict it; one that stands alone the curve can bend to, and `unnoticed` says so."""
    random = np.random.default_rng(3)
    times = np.array([60.0, 61, 64, 68, 72, 76, 80, 90, 105, 110])
    right = 10 + 1e6 / (times - 20) ** 2
    energy = right + 0.3 * random.standard_normal(10)
    energy[end] += 40
    fit = tof.fit_energy_calibration(times, energy)
    assert np.flatnonzero(~fit["used"]).tolist() == [end % 10]
    np.testing.assert_array_less(np.abs(fit["value"] - [10, 1e6, 20]), 4 * fit["error"])
    assert np.isnan(fit["unnoticed"][end])
    assert (np.delete(fit["unnoticed"].values, end) < 40).all()
    few = np.array([0, 3, 5, 7, 9])  # with one wrong line among them as many as parameters are left to say so, and one
    alone = tof.fit_energy_calibration(times[few], energy[few])
    assert alone["used"][end] == (float(alone["unnoticed"][end]) > 40)
    none = tof.fit_energy_calibration(times[few[:4]], right[few[:4]])
    assert np.isinf(none["unnoticed"]).all()


def test_mass_axis() -> None:
    mq = np.array([1.0, 2, 4, 14, 16, 18, 28, 32, 40])
    time = 120 + 800 * np.sqrt(mq)
    time[4] += 90
    fit = tof.fit_mq_calibration(time, mq)
    np.testing.assert_allclose(fit["value"], [120, 800], rtol=1e-9)
    assert np.flatnonzero(~fit["used"]).tolist() == [4]
    t0, k = fit["value"].values
    np.testing.assert_allclose(tof.tof_to_mq(120 + 800 * np.sqrt(mq), t0, k), mq, rtol=1e-9)


def test_calibrations_that_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="2 lines"):
        tof.fit_energy_calibration([1.0, 2.0], [3.0, 4.0])
    with pytest.raises(ArgumentError, match="2 lines"):
        tof.fit_energy_calibration([1.0, 2.0, np.nan], [3.0, 4.0, 5.0])
    with pytest.raises(ArgumentError, match="do not determine"):
        tof.fit_energy_calibration([5.0, 5.0, 5.0, 5.0], [3.0, 4.0, 5.0, 6.0])
    with pytest.raises(ArgumentError, match="do not determine"):
        tof.fit_mq_calibration([5.0, 6.0, 7.0], [4.0, 4.0, 4.0])
    with pytest.raises(ArgumentError, match="retardation"):
        tof.fit_energy_calibration([5.0] * 5, [3.0] * 5, "two_segment")
    with pytest.raises(ArgumentError, match="no model"):
        tof.fit_energy_calibration([5.0] * 5, [3.0] * 5, "cubic")
    with pytest.raises(ArgumentError, match="lines"):
        tof.fit_energy_calibration([5.0] * 5, [3.0] * 4)


def test_the_real_cookie_box(real_data: Path) -> None:
    path = real_data / "cookiebox" / "etof_calib_p900485_r348.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there: NO real spectrum was fitted; set LCLS_DASK_DATA")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    position = np.array([float(row["mu_sample"]) for row in rows]).reshape(16, 10)
    energy = np.array([float(row["photon_energy_eV"]) for row in rows]).reshape(16, 10)[0]
    lines = xr.DataArray(position, dims=("channel", "line"))
    fit = tof.fit_energy_calibration(lines, energy)
    assert (fit["rms"] <= 0.60).all()
    assert fit["used"].all()
    e0, c = fit["value"].sel(parameter="e0"), fit["value"].sel(parameter="c")
    assert ((e0 > 944) & (e0 < 948)).all()
    assert ((c > 5.5e5) & (c < 6.8e5)).all()
    np.testing.assert_allclose(tof.tof_to_energy(lines, calibration=fit), np.tile(energy, (16, 1)), atol=1.6)
    position[:, 4] += 20  # the line of another photon energy
    spoilt = tof.fit_energy_calibration(xr.DataArray(position, dims=("channel", "line")), energy)
    assert not spoilt["used"][:, 4].any()
    assert (spoilt["rms"] <= 0.60).all()


def test_the_real_momentum_microscope(real_data: Path) -> None:
    if not (real_data / "momentum-tof").is_dir():
        pytest.skip(f"{real_data / 'momentum-tof'} is not there: NO real bias series was fitted")
    # positions of the bias series in ticks of 16.5 ps, and sed's answers: see PROVENANCE.md
    ticks = np.array(
        [65134.1, 65409.4, 65706.7, 66015.0, 66334.3, 66664.7, 67028.0, 67413.4, 67798.8, 68228.2, 68668.7]
    )
    bias = np.loadtxt(real_data / "momentum-tof" / "biases.csv", delimiter=",", skiprows=0).ravel()
    fit = tof.fit_energy_calibration(ticks * 0.0165, -bias)
    value = dict(zip(fit["parameter"].values, fit["value"].values, strict=True))
    error = dict(zip(fit["parameter"].values, fit["error"].values, strict=True))
    assert value["t0"] == pytest.approx(768.4, abs=5.9)
    assert value["e0"] == pytest.approx(-45.94, abs=0.51)
    assert np.sqrt(value["c"] / 2.8428151) == pytest.approx(1058.2, abs=28.2)
    assert error["t0"] == pytest.approx(5.9, rel=0.5)
    assert fit["rms"] < 0.02
