"""psana, the referee, reads simulated runs and finds in them what was written."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from xtc2_walk import decode_hsd, walk

from lcls_dask.facility import Simulation, simulate

if importlib.util.find_spec("psana") is None:
    pytest.skip("psana is not installed: simulated runs were NOT read by the referee", allow_module_level=True)

EVENTS = {"tof": 230, "sfx": 8, "scan": 60}
FIRST = {"tof": "hsd", "sfx": "jungfrau", "scan": "fim"}

#: Runs in a process of its own: psana aborts the interpreter where it fails.
SCRIPT = """
import sys
import numpy as np
path, kind, experiment, out = sys.argv[1:]
from psana.psexp.ds_base import DataSourceBase
# the logbook is on SLAC's network: without it psana looks for the run's files in the directory
DataSourceBase._get_file_info_from_db = lambda self, run: {}
from psana import DataSource
if experiment == "-":
    source = DataSource(files=path, skip_calib_load="all")
else:
    source = DataSource(exp=experiment, run=1, dir=path, skip_calib_load="all")
run = next(source.runs())
result = {"expt": run.expt, "runnum": run.runnum, "detnames": sorted(run.detnames)}
det = {name: run.Detector(name) for name in run.detnames if name != "epicsinfo"}
slow = {name: run.Detector(name) for name in ("chamber_pressure", "SIM:TEMP:01", "comment")}
rows, steps = {}, []
def put(name, value):
    rows.setdefault(name, []).append(value)
for step in run.steps():
    steps.append((run.Detector("step_value")(step), run.Detector("step_docstring")(step)))
    if kind == "scan":
        put("mono_energy", run.Detector("mono_energy")(step))
    for event in step.events():
        put("timestamp", event.timestamp)
        put("step", len(steps) - 1)
        if "timing" in det:
            put("pulse", det["timing"].raw.pulseId(event))
            put("codes", det["timing"].raw.eventcodes(event))
            put("energy", det["gmd"].raw.milliJoulesPerPulse(event))
            put("pressure", slow["chamber_pressure"](event))
            put("comment", slow["comment"](event))
        if kind == "tof":
            peaks, waves = det["hsd"].raw.peaks(event) or {}, det["hsd"].raw.waveforms(event) or {}
            padded = det["hsd"].raw.padded(event) or {}
            put("segments", 0 if det["hsd"].raw._segments(event) is None else 16)
            for segment, channels in peaks.items():
                for start, samples in zip(*channels[0]):
                    put("peak", (event.timestamp, segment, start, len(samples)))
                    put("samples", samples.copy())
                put("padded", len(padded[segment][0]))
            for segment, channels in waves.items():
                put("wave_of", (event.timestamp, segment))
                put("wave", channels[0].copy())
        elif kind == "sfx":
            frame = det["jungfrau"].raw.raw(event)
            put("frame", np.zeros((8, 512, 1024), "u2") if frame is None else frame.copy())
        else:
            fast, shutter = det["fim"].raw, det["shutter"].raw
            put("raw_0", np.zeros(64, "u2") if fast.raw_0(event) is None else fast.raw_0(event).copy())
            put("value", shutter.value(event))
            put("message", shutter.message(event))
            put("state", shutter._segments(event)[0].state.value)
            put("state_names", str(shutter._segments(event)[0].state.names))
            image = det["archon"].raw.raw(event) if "archon" in det else None
            put("image", np.zeros((16, 4800), "u2") if image is None else image.copy())
if "samples" in rows:
    rows["samples"] = [np.concatenate(rows["samples"])]
np.savez(out, **result, steps=np.array([str(s) for s in steps]), **{k: np.array(v) for k, v in rows.items()})
"""


def read(path: Path, kind: str, out: Path, experiment: str = "-") -> dict[str, np.ndarray]:
    """What psana reads of a whole run (with its experiment's name) or of one file."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), kind, experiment, str(out)],
        env={**os.environ, "PS_PARALLEL": "none"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    if "cannot load MPI library" in done.stderr:
        pytest.skip("psana finds no MPI library: simulated runs were NOT read by the referee")
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as data:
        return dict(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Simulation]:
    folder = tmp_path_factory.mktemp("psana")
    return {kind: simulate(folder / kind, kind, events=events, seed=21) for kind, events in EVENTS.items()}


def known(run: Simulation, name: str) -> np.ndarray:
    return np.asarray(zarr.open_group(run.path / "truth.zarr", mode="r")[name][...])


def check_beamline(run: Simulation, found: dict[str, np.ndarray]) -> None:
    """What every kind has beside its detectors."""
    assert (found["expt"], found["runnum"]) == (run.experiment, 1)
    np.testing.assert_array_equal(found["timestamp"], known(run, "timestamp"))
    np.testing.assert_array_equal(found["energy"], known(run, "pulse_energy"))
    stride = np.diff(found["pulse"])
    assert (stride == stride[0]).all()
    numbers = np.arange(run.events)
    np.testing.assert_array_equal(found["codes"][:, 273], 1)
    np.testing.assert_array_equal(found["codes"][:, 275], numbers % 10 == 0)
    assert found["codes"].sum() == run.events + len(numbers[::2]) + len(numbers[::10])
    update = numbers // max(10, min(4000, run.events // 8))
    np.testing.assert_allclose(found["pressure"], 1e-6 + 1e-9 * update, rtol=1e-12)
    assert found["comment"].tolist() == [f"update {number}" for number in update]


def test_time_of_flight(runs: dict[str, Simulation], tmp_path: Path) -> None:
    run = runs["tof"]
    found = read(run.path, "tof", tmp_path / "out.npz", run.experiment)
    check_beamline(run, found)
    assert found["detnames"].tolist() == ["epicsinfo", "gmd", "hsd", "timing"]
    assert found["steps"].tolist() == [str((i, f"step {i}")) for i in range(3)]
    # psana gives an event's digitizer only with all of its segments
    whole = known(run, "written").all(axis=1)
    assert 0 < (~whole).sum() <= 2
    np.testing.assert_array_equal(found["segments"] > 0, whole)
    assert (found["padded"] == 2400).all()

    expected_peaks, expected_samples, expected_waves = {}, {}, {}
    complete = set(known(run, "timestamp")[whole].tolist())
    for path in run.streams:
        for d in walk(path.read_bytes()):
            for (name, segment, alg), values in d["values"].items():
                if (name, alg) == ("hsd", "raw") and d["timestamp"] in complete:
                    waveform, windows = decode_hsd(values["chan00"])
                    for start, samples in windows:
                        expected_peaks[d["timestamp"], segment, start] = len(samples)
                        expected_samples[d["timestamp"], segment, start] = samples
                    if waveform is not None:
                        expected_waves[d["timestamp"], segment] = waveform
    peaks = [tuple(map(int, peak)) for peak in found["peak"]]
    assert len(peaks) > 1000
    assert {peak[:3]: peak[3] for peak in peaks} == expected_peaks
    np.testing.assert_array_equal(found["samples"][0], np.concatenate([expected_samples[p[:3]] for p in peaks]))
    waves = [tuple(map(int, key)) for key in found["wave_of"]]
    assert sorted(waves) == sorted(expected_waves)
    np.testing.assert_array_equal(found["wave"], [expected_waves[key] for key in waves])

    # and the windows hold the electrons of the truth
    offset, place = known(run, "hits.offset"), known(run, "hits.time") * (6.4e9 * 13 / 14)
    number = {int(t): i for i, t in enumerate(known(run, "timestamp"))}
    row = np.array([number[time] * 16 + segment for time, segment, _, _ in peaks])
    covered = sum(
        ((place[offset[r] : offset[r + 1]] >= peak[2]) & (place[offset[r] : offset[r + 1]] < peak[2] + peak[3])).sum()
        for r, peak in zip(row, peaks, strict=True)
    )
    assert covered == np.diff(offset).reshape(-1, 16)[whole].sum()


def test_diffraction(runs: dict[str, Simulation], tmp_path: Path) -> None:
    run = runs["sfx"]
    found = read(run.path, "sfx", tmp_path / "out.npz", run.experiment)
    check_beamline(run, found)
    assert found["detnames"].tolist() == ["epicsinfo", "gmd", "jungfrau", "timing"]
    frames = np.zeros_like(found["frame"])
    whole = known(run, "written").all(axis=1)
    number = {int(t): i for i, t in enumerate(known(run, "timestamp"))}
    for path in run.streams:
        for d in walk(path.read_bytes()):
            for (name, segment, alg), values in d["values"].items():
                if (name, alg) == ("jungfrau", "raw") and whole[number[d["timestamp"]]]:
                    frames[number[d["timestamp"]], segment] = values["raw"][0]
    np.testing.assert_array_equal(found["frame"], frames)
    assert frames[whole].min() > 2000


def test_scan(runs: dict[str, Simulation], tmp_path: Path) -> None:
    run = runs["scan"]
    found = read(run.path, "scan", tmp_path / "out.npz", run.experiment)
    check_beamline(run, found)
    assert found["detnames"].tolist() == ["archon", "epicsinfo", "fim", "gmd", "shutter", "timing"]
    np.testing.assert_array_equal(found["step"], known(run, "step"))
    np.testing.assert_array_equal(found["mono_energy"], known(run, "motor"))
    np.testing.assert_array_equal(found["value"], known(run, "signal"))
    assert found["message"].tolist() == [f"event {i}" for i in range(run.events)]
    np.testing.assert_array_equal(found["state"], np.arange(run.events) // 7 % 3)
    assert set(found["state_names"]) == {"{0: 'closed', 1: 'open', 2: 'fault'}"}
    slow = found["image"].any(axis=(1, 2))
    np.testing.assert_array_equal(slow, known(run, "written")[:, 1])
    np.testing.assert_array_equal(found["raw_0"].any(axis=1), known(run, "written")[:, 0])
    fast = iter(d for d in walk(run.streams[0].read_bytes()) if ("fim", 0, "raw") in d["values"])
    for waveform in found["raw_0"][known(run, "written")[:, 0]]:
        np.testing.assert_array_equal(waveform, next(fast)["values"]["fim", 0, "raw"]["raw_0"])


@pytest.mark.parametrize("kind", EVENTS)
def test_one_file_alone(runs: dict[str, Simulation], tmp_path: Path, kind: str) -> None:
    run = runs[kind]
    found = read(run.streams[0], kind, tmp_path / "out.npz")
    check_beamline(run, found)
    assert FIRST[kind] in found["detnames"]
    if kind == "tof":
        # the first stream has four of the sixteen channels
        assert set(found["peak"][:, 1]) == {0, 1, 2, 3}
