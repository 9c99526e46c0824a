"""The whole chain for a run, by function and by command, against the truth of the simulation."""

import json
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import lcls_dask
from lcls_dask import cli, tof
from lcls_dask.errors import ArgumentError, SelectionError
from lcls_dask.tof.chain import Settings, analyse


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tof") / "run"
    lcls_dask.simulate(path, "tof", events=6000, seed=9)
    return path


OPTIONS = ["--threshold", "60", "--method", "matched", "--length", "590", "--t0", "20", "--times", "50:150"]
OPTIONS += ["--energies", "150:600", "--line", "345:355", "--line", "200:210", "--beta", "1"]
OPTIONS += ["--pulse-energy", "gmd.raw.milliJoulesPerPulse"]


def test_the_command_against_the_truth(run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["tof", str(run_path), "--out", str(out), "--json", *OPTIONS]) == 0
    told = json.loads(capsys.readouterr().out)
    pictures = [Path(one).name for one in told["pictures"]]
    assert sorted(pictures) == sorted(one.name for one in out.glob("*.png"))
    assert len(pictures) == 6
    result = xr.open_zarr(out / "tof.zarr", consolidated=False)
    truth = json.loads((run_path / "truth.json").read_text())
    assert result.attrs["snapshot"] == lcls_dask.open_run(run_path).snapshot
    photo, auger = result.isel(line=0), result.isel(line=1)
    assert abs(float(photo["degree"]) - truth["beam"]["polarisation"]) < 4 * float(photo["degree_error"])
    assert abs(float(photo["tilt"]) - truth["beam"]["tilt_deg"]) < 4 * float(photo["tilt_error"])
    assert float(photo["degree_error"]) < 0.03
    assert float(auger["anisotropy"]) < 4 * float(auger["anisotropy_error"])
    energy = result["energy_counts"].sum("channel")
    lines = {line["name"]: line for line in truth["lines"]}
    for low, high, names in ((345, 357, ["Ar 2p3/2", "Ar 2p1/2"]), (565, 575, ["Ar 3s"]), (580, 590, ["Ar 3p"])):
        inside = energy.sel(energy=slice(low, high))
        found = float((inside * inside["energy"]).sum() / inside.sum())
        rates = [lines[name]["rate"] for name in names]
        assert found == pytest.approx(np.average([lines[name]["energy"] for name in names], weights=rates), abs=0.4)
    # photo and Auger electrons fluctuate together, but for the pulse energy's part they do not
    diagonal = float(result["covariance"].sel(tof_1=73, tof_2=73, method="nearest"))
    assert abs(float(result["covariance"].sel(tof_1=73, tof_2=89, method="nearest"))) < 0.3 * diagonal
    assert cli.main(["tof", str(run_path), "--out", str(out), *OPTIONS]) == 1
    assert "is there already" in capsys.readouterr().err


def test_netcdf_and_defaults(run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5netcdf", reason="h5netcdf is not installed: a netCDF result was NOT read back")
    assert cli.main(["tof", str(run_path), "--out", str(tmp_path), "--format", "nc"]) == 0
    printed = capsys.readouterr().out
    assert "6.0 times the noise" in printed
    assert "give --length" in printed
    with xr.open_dataset(tmp_path / "tof.nc", engine="h5netcdf") as result:
        assert int(result["shots"]) == 6000
        assert "energy_counts" not in result
        noise = json.loads((run_path / "truth.json").read_text())["digitizer"]["noise_ADU"]
        assert result.attrs["settings.threshold"] == pytest.approx(6 * noise, rel=0.05)


def test_two_channels_tell_no_polarisation(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(real_data / "lcls2" / "test_hsd.xtc2")
    assert cli.main(["tof", path, "--out", str(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "needs 3 channels or more" in told
    assert "nan" not in told
    assert "no hits: give --positive" in told  # as these pulses do
    assert cli.main(["tof", path, "--out", str(tmp_path / "up"), "--positive", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"] == 336
    assert not (tmp_path / "up" / "polar.png").exists()


def test_what_cannot_be_analysed(run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lcls_dask.simulate(tmp_path / "scan", "scan", events=20)
    assert cli.main(["tof", str(tmp_path / "scan"), "--out", str(tmp_path), "--threshold", "60"]) == 1
    assert "has 0 digitizers" in capsys.readouterr().err
    for wrong in (
        ["--threshold", "-5"],
        ["--threshold", "5", "--line", "7"],
        ["--threshold", "5", "--method", "x"],
    ):
        assert cli.main(["tof", str(run_path), "--out", str(tmp_path), *wrong]) == 2
    run = lcls_dask.open_run(run_path)
    with pytest.raises(SelectionError, match="no digitizer"):
        analyse(run, Settings(threshold=60, detector="gmd"))
    with pytest.raises(SelectionError):
        analyse(run, Settings(threshold=60, pulse_energy="hsd.raw.present"))
    with pytest.raises(ArgumentError, match="bins"):
        analyse(run, Settings(threshold=60, range_ns=(5.0, 5.0)))
    with pytest.raises(ArgumentError, match="angles"):
        analyse(run, Settings(threshold=60, angles=(1.0, 2.0)))


def test_the_same_on_a_cluster_of_processes(run_path: Path) -> None:
    run = lcls_dask.open_run(run_path)
    node = run.dataset(group="/hsd", chunks=None)
    baseline = tof.baseline_of(tof.windows(node, waveforms=True))
    edges = np.arange(50.0, 150.0)
    energy = np.random.default_rng(0).gamma(4, 0.25, len(node["timestamp"]))

    def reductions(hits: Any) -> tuple[xr.DataArray, ...]:
        spectra = tof.event_spectra(hits, edges, together=True)
        return (
            tof.tof_spectrum(hits, edges, by=xr.DataArray(energy, dims="event"), bins=[0, 0.8, 1.2, 9]),
            tof.energy_spectrum(hits, np.arange(150.0, 600.0), length=590, t0=20),
            tof.partial_covariance_map(spectra, control=energy),
        )

    def hits_of(events: int | None) -> Any:
        return tof.find_hits(tof.windows(node, events=events), threshold=60, baseline=baseline)

    expected = dask.compute(*reductions(hits_of(len(node["timestamp"]))), scheduler="synchronous")
    found = hits_of(None).compute(scheduler="synchronous")
    # and of NumPy alone, of the hits as they are
    row = np.repeat(np.arange(found.sizes["row_edge"] - 1), np.diff(found["offset"]))
    plain, _, _ = np.histogram2d(row // 16, found["time"], [np.arange(len(energy) + 1), edges])
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        lazy = hits_of(512)
        assert lazy.npartitions == 12
        told = dask.compute(*reductions(lazy))
    np.testing.assert_array_equal(told[0].sum(("group", "channel")), plain.sum(axis=0))
    for one, other in zip(told, expected, strict=True):
        xr.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
