"""The simulated facility, against a reader of the tests' own and against the physics that it claims."""

import hashlib
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from xtc2_walk import decode_hsd, walk

from lcls_dask.errors import LclsError, TargetExistsError
from lcls_dask.facility import Simulation, scan, sfx, simulate, tof
from lcls_dask.facility.geometry import jungfrau_4m, pixel_positions
from lcls_dask.facility.kernels import sparsify
from lcls_dask.facility.plan import Clock

KINDS = {"tof": 410, "sfx": 9, "scan": 125}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Simulation]:
    folder = tmp_path_factory.mktemp("facility")
    return {kind: simulate(folder / kind, kind, events=events, seed=11) for kind, events in KINDS.items()}


def truth(run: Simulation) -> dict[str, np.ndarray]:
    group = zarr.open_group(run.path / "truth.zarr", mode="r")
    return {name: np.asarray(array[...]) for name, array in group.arrays()}


def facts(run: Simulation) -> dict[str, Any]:
    return dict(json.loads(run.truth.read_text()))


def events_of(run: Simulation) -> list[list[dict[str, Any]]]:
    return [[d for d in walk(path.read_bytes()) if d["service"] == 12] for path in run.streams]


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("kind", KINDS)
def test_streams_have_the_transitions_of_a_run(runs: dict[str, Simulation], kind: str) -> None:
    run = runs[kind]
    walked = [walk(path.read_bytes()) for path in run.streams]
    transitions = [[(d["service"], d["timestamp"]) for d in dgrams if d["service"] != 12] for dgrams in walked]
    assert all(other == transitions[0] for other in transitions)
    services = [service for service, _ in transitions[0]]
    steps = {"tof": 3, "sfx": 1, "scan": 6}[kind]
    assert services[:2] == [2, 4]
    assert services[-1] == 5
    assert [services.count(service) for service in (6, 8, 9, 7)] == [steps] * 4
    for dgrams in walked:
        times = [d["timestamp"] for d in dgrams]
        assert sorted(set(times)) == times
        assert dgrams[1]["values"]["runinfo", 0, "runinfo"] == {"expt": run.experiment, "runnum": 1}
    known = set(truth(run)["timestamp"].tolist())
    assert known == {d["timestamp"] for d in walked[0] if d["service"] == 12}
    assert all({d["timestamp"] for d in dgrams if d["service"] == 12} <= known for dgrams in walked)
    # each step begins with the event that truth.json says
    first = [i - sum(s != 12 for s in (d["service"] for d in walked[0][:i])) for i in _begins(walked[0])]
    assert facts(run)["steps"] == first


def _begins(dgrams: list[dict[str, Any]]) -> list[int]:
    return [i for i, d in enumerate(dgrams) if d["service"] == 6]


@pytest.mark.parametrize("kind", KINDS)
def test_smalldata_points_at_the_events(runs: dict[str, Simulation], kind: str) -> None:
    for path in runs[kind].streams:
        smd = walk((path.parent / "smalldata" / path.name.replace(".xtc2", ".smd.xtc2")).read_bytes())
        places = [tuple(d["values"]["smdinfo", 0, "offsetAlg"].values()) for d in smd if d["service"] == 12]
        assert places == [(d["offset"], d["size"]) for d in walk(path.read_bytes()) if d["service"] == 12]


@pytest.mark.parametrize("kind", KINDS)
def test_faults_are_where_the_truth_says(runs: dict[str, Simulation], kind: str) -> None:
    run = runs[kind]
    detector, faults = {"tof": "hsd", "sfx": "jungfrau", "scan": "fim"}[kind], facts(run)["faults"]
    number = {int(t): i for i, t in enumerate(truth(run)["timestamp"])}
    segments = {"tof": 16, "sfx": 8, "scan": 1}[kind]
    written = np.zeros((run.events, segments), bool)
    damaged, dropped_bits = {}, set()
    for stream in events_of(run):
        for d in stream:
            for (name, segment, _), bits in d["bits"].items():
                if name == detector:
                    written[number[d["timestamp"]], segment] = True
                    if bits:
                        assert d["damage"] & bits == bits
                        damaged[number[d["timestamp"]], segment] = bits
            if d["damage"] & 1 << 4:
                dropped_bits.add(number[d["timestamp"]])
    np.testing.assert_array_equal(written, truth(run)["written"][:, :segments])
    assert damaged == {(f["event"], f["segment"]): f["damage"] for f in faults["damaged"]}
    assert dropped_bits == {f["event"] for f in faults["dropped"]}
    assert not any(written[f["event"], f["segment"]] for f in faults["dropped"])
    assert len(faults["damaged"]) == len(faults["dropped"]) == 1
    assert len(faults["missing"]) == (kind != "scan")
    lost = {f["event"] for f in faults["missing"] + faults["dropped"]}
    assert set(np.flatnonzero(~written.all(axis=1))) == lost


# ---- time of flight


@pytest.fixture(scope="module")
def channels(runs: dict[str, Simulation]) -> dict[tuple[int, int], tuple[Any, list[tuple[int, np.ndarray]]]]:
    """(event, segment) to the whole waveform and the windows."""
    run = runs["tof"]
    number = {int(t): i for i, t in enumerate(truth(run)["timestamp"])}
    return {
        (number[d["timestamp"]], segment): decode_hsd(values["chan00"])
        for stream in events_of(run)
        for d in stream
        for (name, segment, _), values in d["values"].items()
        if name == "hsd"
    }


def test_every_hit_is_in_a_window(
    runs: dict[str, Simulation], channels: dict[tuple[int, int], tuple[Any, list[tuple[int, np.ndarray]]]]
) -> None:
    known = truth(runs["tof"])
    offset, place = known["hits.offset"], known["hits.time"] * 1e9 / tof.SAMPLE_NS
    assert offset[0] == 0
    assert offset[-1] == len(place) == len(known["hits.line"])
    for (event, segment), (_, windows) in channels.items():
        row = event * 16 + segment
        hits = range(offset[row], offset[row + 1])
        assert list(place[hits]) == sorted(place[hits])
        for hit in hits:
            assert any(start <= place[hit] < start + len(samples) for start, samples in windows)
        for start, samples in windows:
            here = [hit for hit in hits if start <= place[hit] < start + len(samples)]
            assert here, "a window without a hit"
            if len(here) == 1 and known["hits.amplitude"][here[0]] < 1500:
                assert abs(start + samples.argmin() - place[here[0]]) < 2.5
                assert abs(2048 - int(samples.min()) - known["hits.amplitude"][here[0]]) < 40


def test_windows_are_the_sparsified_waveform(
    channels: dict[tuple[int, int], tuple[Any, list[tuple[int, np.ndarray]]]],
) -> None:
    whole = {key: value for key, value in channels.items() if value[0] is not None}
    assert sorted({event for event, _ in whole}) == [0, 100, 200, 300, 400]
    seen = 0
    for waveform, windows in whole.values():
        assert len(waveform) == tof.GATE
        words = np.zeros(4 * tof.GATE, np.uint16)
        end, _ = sparsify(waveform.astype(np.int64), 0, 0, *tof.BAND, words, 0)
        header = np.array([end, 0, 0, 0x0100, 0, 0, 0, 0], np.uint16)
        _, expected = decode_hsd(np.concatenate([header, words[:end]]).view(np.uint8))
        assert [start for start, _ in windows] == [start for start, _ in expected]
        for (start, samples), (_, same) in zip(windows, expected, strict=True):
            np.testing.assert_array_equal(samples, same)
            np.testing.assert_array_equal(samples, waveform[start : start + len(samples)])
            seen += 1
        # outside the windows nothing leaves the band, and each kept sample has a reason nearby
        out = np.flatnonzero((waveform < tof.BAND[0]) | (waveform > tof.BAND[1]))
        kept = np.concatenate([np.arange(s, s + len(w)) for s, w in windows]) if windows else np.zeros(0, int)
        assert set(out) <= set(kept)
        for sample in kept:
            assert np.abs(out - sample).min() <= 8 + 3
    assert seen > 10


def test_electrons_have_the_physics_that_the_truth_claims(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", "tof", events=20_000, seed=3)
    known, claimed = truth(run), facts(run)
    counts = np.diff(known["hits.offset"]).reshape(-1, 16)
    pulse, mean = known["pulse_energy"], claimed["beam"]["mean_pulse_energy_mJ"]
    assert pulse.mean() == pytest.approx(mean, rel=0.02)
    assert pulse.std() / pulse.mean() == pytest.approx(1 / math.sqrt(claimed["beam"]["sase_modes"]), rel=0.03)
    # electrons are Poisson-distributed about a mean that follows the pulse energy
    expected = pulse / mean * counts.sum() / (pulse / mean).sum()
    total = counts.sum(axis=1)
    assert np.corrcoef(pulse, total)[0, 1] > 0.7
    assert ((total - expected) ** 2).mean() / expected.mean() == pytest.approx(1.0, rel=0.05)

    line = known["hits.line"]
    channel = np.repeat(np.arange(counts.size) % 16, counts.reshape(-1))
    flight = known["hits.time"] * 1e9 - claimed["spectrometer"]["t0_ns"]
    energy = (claimed["spectrometer"]["flight_path_mm"] / flight / 0.5930970) ** 2
    angle = np.deg2rad(claimed["spectrometer"]["angles_deg"])
    for number, spec in enumerate(claimed["lines"]):
        here = line == number
        assert here.sum() == pytest.approx(spec["rate"] * 16 * run.events, rel=0.06)
        if not spec["energy"]:
            continue
        assert np.median(energy[here]) == pytest.approx(spec["energy"], abs=0.3)
        pattern = np.bincount(channel[here], minlength=16) / here.sum() * 16
        tilt = np.deg2rad(claimed["beam"]["tilt_deg"])
        amplitude = 2 * (pattern * np.cos(2 * (angle - tilt))).mean()
        degree = 3 * spec["beta"] * claimed["beam"]["polarisation"] / (4 + spec["beta"])
        assert amplitude == pytest.approx(degree, abs=5 * math.sqrt(2 / here.sum()))
    # photo lines follow the photon energy, Auger lines do not
    shift = np.repeat(known["photon_energy"], total) - claimed["beam"]["photon_energy_eV"]
    slope = {
        number: np.polyfit(shift[line == number], energy[line == number], 1)[0]
        for number, spec in enumerate(claimed["lines"])
        if spec["energy"]
    }
    for number, spec in enumerate(claimed["lines"][1:], start=1):
        assert slope[number] == pytest.approx(float(spec["photo"]), abs=0.2), spec["name"]


# ---- diffraction


def frames_of(run: Simulation) -> np.ndarray:
    known = truth(run)
    number = {int(t): i for i, t in enumerate(known["timestamp"])}
    frames = np.zeros((run.events, 8, 512, 1024), np.uint16)
    for stream in events_of(run):
        for d in stream:
            for (name, segment, _), values in d["values"].items():
                if name == "jungfrau":
                    assert values["raw"].shape == (1, 512, 1024)
                    frames[number[d["timestamp"]], segment] = values["raw"][0]
    return frames


def test_spots_are_where_the_crystal_puts_them(runs: dict[str, Simulation]) -> None:
    run, known = runs["sfx"], truth(runs["sfx"])
    frames, xy = frames_of(run), pixel_positions(jungfrau_4m())
    assert 1 < known["hit"].sum() < run.events
    cell = np.array(sfx.CELL)
    k0 = 1 / sfx.WAVELENGTH
    for event in np.flatnonzero(known["hit"]):
        rotation = known["rotation"][event]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        spots = slice(known["spots.offset"][event], known["spots.offset"][event + 1])
        q = (known["spots.hkl"][spots] / cell) @ rotation.T + np.array([0, 0, k0])
        miss = np.linalg.norm(q, axis=1) - k0
        np.testing.assert_allclose(known["spots.partiality"][spots], 1 - (miss / sfx.NODE_RADIUS) ** 2, atol=1e-6)
        aim = q[:, :2] / q[:, 2:] * sfx.DISTANCE / 75e-6
        segment, row, column = (known[f"spots.{name}"][spots] for name in ("segment", "row", "column"))
        near = xy[segment, np.rint(row).astype(int), np.rint(column).astype(int)]
        assert np.abs(near - aim).max() < 0.75  # half a pixel, turned
        strong = known["spots.intensity"][spots] > 30
        assert 60 < strong.sum() < 300
        # what the pixels counted is what was aimed at them
        inside = strong & (row > 4) & (row < 507) & (column > 4) & (column < 1019)
        inside &= (known["spots.intensity"][spots] < 120) & known["written"][event, segment]
        counted = []
        for s, r, c in zip(segment[inside], row[inside], column[inside], strict=True):
            top, left = round(float(r)) - 4, round(float(c)) - 4
            window = (s, slice(top, top + 9), slice(left, left + 9))
            counted.append((frames[event][window] - known["pedestal"][window].astype(float)).sum() / sfx.GAIN)
        background = np.median(counted - known["spots.intensity"][spots][inside])
        total = np.sum(counted) - background * inside.sum()
        assert total == pytest.approx(known["spots.intensity"][spots][inside].sum(), rel=0.06)


def test_blanks_hot_pixels_and_background(runs: dict[str, Simulation]) -> None:
    run, known = runs["sfx"], truth(runs["sfx"])
    frames = frames_of(run)
    counts = np.diff(known["spots.offset"])
    np.testing.assert_array_equal(counts > 0, known["hit"])
    hot = tuple(known["hot_pixels"].T)
    whole = np.flatnonzero(known["written"].all(axis=1))
    assert (np.ptp(frames[whole][(slice(None), *hot)], axis=0) == 0).all()
    assert frames[whole][(slice(None), *hot)].min() >= 9000
    assert frames.max() < 1 << 14  # gain bits are 0
    # the mean is the profile, within the levels' steps and the shot's brightness; the variance is Poisson's
    radius = np.hypot(*np.moveaxis(pixel_positions(jungfrau_4m()), -1, 0)) * 75e-6
    angle = np.arctan(radius / sfx.DISTANCE)
    mean = sfx.background(2 * np.sin(angle / 2) / sfx.WAVELENGTH) * np.cos(angle) ** 3
    for event in whole[~known["hit"][whole]]:
        photons = (frames[event] - known["pedestal"].astype(float)) / sfx.GAIN
        photons[hot] = np.nan
        bright = known["pulse_energy"][event] / 2
        for low, high in ((0.05, 0.1), (0.2, 0.3)):
            ring = (mean > low) & (mean < high)
            assert np.nanmean(photons[ring]) == pytest.approx(bright * mean[ring].mean(), rel=0.1)
            excess = np.nanvar(photons[ring]) - (sfx.NOISE_ADU / sfx.GAIN) ** 2
            assert excess == pytest.approx(np.nanmean(photons[ring]), rel=0.15)


def test_intensities_have_the_symmetry_of_the_space_group() -> None:
    from lcls_dask.facility.diffraction import intensity

    assert intensity(1, 3, 5, 7) == intensity(1, -5, 3, 7) == intensity(1, 5, 3, -7)
    assert intensity(1, 3, 5, 7) != intensity(2, 3, 5, 7)
    assert intensity(1, 5, 0, 0) == intensity(1, 0, 5, 0) == 0  # 2(1) axes
    assert [intensity(1, 0, 0, k) > 0 for k in range(1, 9)] == [False, False, False, True] * 2  # 4(3) axis
    general = [intensity(1, h, k, m) for h in range(2, 30) for k in range(1, h) for m in range(1, 12)]
    assert np.mean(general) == pytest.approx(1, rel=0.05)
    assert np.mean(np.square(general)) == pytest.approx(2, rel=0.1)  # Wilson, acentric


def test_the_geometry_file_places_pixels_where_the_simulation_does(runs: dict[str, Simulation]) -> None:
    text = (runs["sfx"].path / "jungfrau4M.geom").read_text()
    settings = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    assert float(settings["res"]) == pytest.approx(1 / 75e-6, rel=1e-6)
    xy = pixel_positions(jungfrau_4m()).reshape(8 * 512, 1024, 2)
    covered = np.zeros(xy.shape[:2], int)

    def vector(value: str) -> np.ndarray:
        x, y = value.split()
        return np.array([float(x.rstrip("x")), float(y.rstrip("y"))])

    for name in {key.split("/")[0] for key in settings if "/" in key}:
        low, high, top, bottom = (int(settings[f"{name}/{k}"]) for k in ("min_fs", "max_fs", "min_ss", "max_ss"))
        covered[top : bottom + 1, low : high + 1] += 1
        corner = np.array([float(settings[f"{name}/corner_x"]), float(settings[f"{name}/corner_y"])])
        fast, slow = vector(settings[f"{name}/fs"]), vector(settings[f"{name}/ss"])
        np.testing.assert_allclose(corner + 255.5 * fast + 100.5 * slow, xy[top + 100, high], atol=1e-3)
    assert (covered == 1).all()
    # modules and ASICs do not overlap: no two pixels are closer than one
    x, y = np.rint(xy.reshape(-1, 2)).astype(int).T
    assert len(np.unique(x * 10_000 + y)) > 0.98 * len(x)


# ---- scan


def test_the_slow_detector_integrates_the_fast_one(runs: dict[str, Simulation]) -> None:
    run, known = runs["scan"], truth(runs["scan"])
    fast, slow = events_of(run)
    number = {int(t): i for i, t in enumerate(known["timestamp"])}
    motor = known["motor"][known["step"]]
    response = known["pulse_energy"] * (0.2 + np.exp(-0.5 * ((motor - scan.CENTRE) / scan.WIDTH) ** 2))
    np.testing.assert_allclose(known["signal"], response, rtol=1e-12)
    assert [number[d["timestamp"]] for d in slow] == list(range(9, run.events, 10))
    for d in slow:
        event = number[d["timestamp"]]
        image = d["values"]["archon", 0, "raw"]["value"].astype(float) - 100
        expected = 1000 * known["signal"][event - 9 : event + 1].sum()
        assert image.sum() == pytest.approx(expected, abs=6 * math.sqrt(image.size / 12))
    for d in fast:
        event, values = number[d["timestamp"]], d["values"]
        shutter = values["shutter", 0, "raw"]
        assert (shutter["value"], shutter["message"]) == (known["signal"][event], f"event {event}")
        assert shutter["state:stateEnum"] == event // 7 % 3
        if ("fim", 0, "raw") in values:
            height = values["fim", 0, "raw"]["raw_0"].max() - 200
            assert height == pytest.approx(1000 * known["signal"][event], abs=6)


# ---- the writer of runs


@pytest.mark.parametrize(("kind", "events", "plan"), [("tof", 410, tof.TofPlan), ("scan", 125, scan.ScanPlan)])
def test_blocks_leave_no_trace(
    runs: dict[str, Simulation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, events: int, plan: type
) -> None:
    monkeypatch.setattr(plan, "block", 7)
    simulate(tmp_path / "run", kind, events=events, seed=11)
    assert digest(tmp_path / "run") == digest(runs[kind].path)


def test_frames_do_not_depend_on_the_block() -> None:
    plan = sfx.SfxPlan(11, 9, 2, Clock(7738))
    together, alone = plan.events(3, 3), plan.events(4, 1)
    for one, many in zip(alone.streams, together.streams, strict=True):
        np.testing.assert_array_equal(one.contributions[-1].values["raw"], many.contributions[-1].values["raw"][1:2])
    np.testing.assert_array_equal(alone.truth["rotation"], together.truth["rotation"][1:2])


def test_another_seed_gives_another_run(runs: dict[str, Simulation], tmp_path: Path) -> None:
    other = simulate(tmp_path / "run", "scan", events=125, seed=12)
    assert not np.array_equal(truth(other)["signal"], truth(runs["scan"])["signal"])


def test_streams_experiment_and_run_can_be_chosen(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", "tof", events=30, streams=1, experiment="tmox00123", run=42)
    assert [path.name for path in run.streams] == ["tmox00123-r0042-s000-c000.xtc2"]
    (stream,) = events_of(run)
    assert max(sum(key[0] == "hsd" for key in d["values"]) for d in stream) == 16
    assert walk(run.streams[0].read_bytes())[1]["values"]["runinfo", 0, "runinfo"]["runnum"] == 42


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_one_event(tmp_path: Path, kind: str) -> None:
    run = simulate(tmp_path / "run", kind, events=1)
    assert len(events_of(run)[0]) == 1
    assert facts(run)["steps"] == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "saxs"}, "'saxs'.*tof, sfx, scan"),
        ({"events": 0}, "0 events"),
        ({"seed": -1}, "seed -1"),
        ({"rate_hz": 1e6}, "1000000.0 Hz"),
        ({"rate_hz": 0.0}, "0.0 Hz"),
        ({"streams": 17}, "17 streams"),
        ({"experiment": "../etc"}, "no experiment's name"),
        ({"run": 0}, "run 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        simulate(tmp_path / "run", **arguments)
    assert isinstance(caught.value, LclsError)
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(TargetExistsError, match="not an empty directory"):
        simulate(tmp_path, "scan")
    with pytest.raises(TargetExistsError, match="not an empty directory"):
        simulate(tmp_path / "note.txt", "scan")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_live_run_grows_and_ends(tmp_path: Path) -> None:
    simulate(tmp_path / "warm", "tof", events=1)  # compiling takes longer than this run
    thread = threading.Thread(target=simulate, args=(tmp_path / "run", "tof"), kwargs={"events": 300, "rate_hz": 200.0})
    began = time.monotonic()
    thread.start()
    stream = tmp_path / "run" / "tmosim01-r0001-s003-c000.xtc2.inprogress"
    sizes = []
    while thread.is_alive():
        if stream.exists():
            sizes.append(stream.stat().st_size)
        time.sleep(0.05)
    thread.join()
    assert 1.4 < time.monotonic() - began < 6
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 4
    assert not list((tmp_path / "run").rglob("*.inprogress"))
    dgrams = walk((tmp_path / "run" / "tmosim01-r0001-s003-c000.xtc2").read_bytes())
    assert dgrams[-1]["service"] == 5
    # timestamps say the rate
    times = np.array([d["timestamp"] for d in walk((tmp_path / "run" / "tmosim01-r0001-s000-c000.xtc2").read_bytes())
                      if d["service"] == 12])  # fmt: skip
    spacing = np.diff((times >> 32) * 1_000_000_000 + (times & 0xFFFFFFFF))
    assert spacing.mean() == pytest.approx(5e6, rel=1e-3)


def test_memory_is_bounded_by_the_block(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from lcls_dask.facility import simulate\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "simulate(sys.argv[1] + '/small', 'tof', events=8_000); small = peak()\n"
        "run = simulate(sys.argv[1] + '/large', 'tof', events=60_000)\n"
        "print(small, peak(), sum(p.stat().st_size for p in run.streams) / 1e6)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    small, large, written = map(float, done.stdout.split())
    assert written > 190
    assert large - small < 60
