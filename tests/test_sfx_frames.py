"""Calibration, powder patterns, hits, CXI files and radial profiles against plain NumPy."""

import importlib.util
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from sfx_frames import frame, jungfrau, small

import lcls_dask
from lcls_dask import sfx
from lcls_dask.errors import ArgumentError, FormatError, RunNotFoundError, TargetExistsError, UnsupportedError
from lcls_dask.reduce.reduction import Running
from lcls_dask.sfx.detectors import epix10ka_ranges
from lcls_dask.sfx.patterns import powder_reduction

Array = np.ndarray[Any, Any]
SHAPE = (2, 128, 160)


def constants(seed: int = 0, ranges: int = 3, shape: tuple[int, ...] = SHAPE) -> sfx.PixelConstants:
    random = np.random.default_rng(seed)
    pedestal = random.normal(2700, 80, (ranges, *shape))
    gain = np.array([41.0, -1.4, -0.1, 16.0, 5.5, 0.16, 0.16])[:ranges, None, None, None] * random.normal(
        1, 0.02, (ranges, *shape)
    )
    return sfx.PixelConstants(pedestal, gain, random.random(shape) < 0.01)


def raw_frames(events: int = 5, seed: int = 1) -> Array:
    """Mostly in the first stage of gain, some pixels switched, some with bits that mean nothing."""
    random = np.random.default_rng(seed)
    values = np.clip(random.normal(2800, 200, (events, *SHAPE)), 0, 16383).astype(np.uint16)
    stage = random.choice([0, 1, 3, 2], values.shape, p=[0.97, 0.015, 0.012, 0.003]).astype(np.uint16)
    stage[:, 0] *= random.random(stage[:, 0].shape) < 0.01
    made: Array = values | (stage << 14)
    return made


def plainly(raw: Array, told: sfx.PixelConstants, photon_energy: float) -> Array:
    """(raw - pedestal) / gain / energy, of the stage that the bits tell."""
    stage = np.array([0, 1, 0, 2])[raw >> 14]
    assert told.gain is not None
    pedestal = np.take_along_axis(told.pedestal[:, None], stage[None], axis=0)[0]
    gain = np.take_along_axis(told.gain[:, None], stage[None], axis=0)[0]
    made: Array = ((raw & 0x3FFF) - pedestal) / (gain * photon_energy / 1000)
    made[(raw >> 14) == 2] = np.nan
    made[np.broadcast_to(told.bad, raw.shape)] = np.nan
    return made


def test_each_stage_of_gain_has_its_own_constants() -> None:
    raw, told = raw_frames(), constants()
    photons = sfx.calibrate(raw, told, photon_energy=9500.0)
    assert (photons.dtype, photons.attrs["units"]) == (np.float32, "photon")
    assert len(photons.attrs["constants.pedestal"]) == 16
    np.testing.assert_allclose(photons.values, plainly(raw, told, 9500.0), rtol=2e-4, atol=2e-3)
    kev = sfx.calibrate(raw, told)
    assert kev.attrs["units"] == "keV"
    np.testing.assert_allclose(kev.values, photons.values * 9.5, rtol=1e-5)
    adu = sfx.calibrate(raw[:, :, :4, :4], sfx.PixelConstants(told.pedestal[:, :, :4, :4]))
    assert adu.attrs["units"] == "ADU"
    other = sfx.calibrate(raw, constants(5), photon_energy=9500.0)
    assert other.attrs["constants.pedestal"] != photons.attrs["constants.pedestal"]


def test_calibration_is_lazy_and_the_same_for_any_chunks() -> None:
    there = np.ones((5, 2), bool)
    there[2, 0] = False
    coords = {"segment": [1, 4], "present": (("event", "segment"), there)}
    array = xr.DataArray(raw_frames(), coords, ("event", "segment", "row", "column"))
    whole = sfx.calibrate(array, constants(), common_mode="row")
    assert whole.chunks is not None
    assert np.isnan(whole.values[2, 0]).all()
    assert np.isfinite(whole.values[2, 1]).mean() > 0.98
    for chunks in ({"event": 1}, {"event": 2, "row": 30, "segment": 1}):
        xr.testing.assert_identical(
            sfx.calibrate(array.chunk(chunks), constants(), common_mode="row").load(), whole.load()
        )


def test_an_epix10ka_has_two_of_seven_ranges() -> None:
    random, shape = np.random.default_rng(3), (1, 352, 384)
    bits = random.choice([28, 12, 8, 16, 0], shape)
    raw = random.integers(0, 1 << 15, (2, *shape)).astype(np.uint16)
    told = constants(4, 7, shape)
    made = sfx.calibrate(raw, told, detector="epix10ka", configuration=bits).values
    chosen = epix10ka_ranges(bits)[(raw >> 14).astype(int), 0, np.arange(352)[:, None], np.arange(384)]
    # fixed ranges stay what they are; automatic ones switch to their own low range
    switched = {28: (0, 0), 12: (1, 1), 8: (2, 2), 16: (3, 5), 0: (4, 6)}
    for setting, pair in switched.items():
        for bit in (0, 1):
            where = (np.broadcast_to(bits, raw.shape) == setting) & (raw >> 14 == bit)
            assert (chosen[where] == pair[bit]).all()
    assert told.gain is not None
    event, segment, row, column = np.nonzero(np.isfinite(made))
    stage = chosen[event, segment, row, column]
    place = stage, segment, row, column
    expected = ((raw[event, segment, row, column] & 0x3FFF) - told.pedestal[place]) / told.gain[place]
    np.testing.assert_allclose(made[event, segment, row, column], expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ArgumentError, match="configuration"):
        sfx.calibrate(raw, told, detector="epix10ka")
    with pytest.raises(ArgumentError, match="7 ranges of gain, not 3"):
        sfx.calibrate(raw, constants(4, 3, shape), detector="epix10ka", configuration=bits).compute()


@pytest.mark.parametrize(("kind", "stretch"), [("row", (1, 64)), ("column", (256, 1)), ("bank", (256, 64))])
def test_common_mode_is_taken_off(kind: str, stretch: tuple[int, int]) -> None:
    random, shape = np.random.default_rng(2), (1, 512, 256)
    told = sfx.PixelConstants(np.full((3, *shape), 3000.0))
    rows, columns = (-(-size // step) for size, step in zip(shape[1:], stretch, strict=True))
    shift = np.repeat(np.repeat(random.normal(0, 20, (rows, columns)), stretch[0], 0), stretch[1], 1)
    raw = np.rint(3000 + shift + random.normal(0, 4, shape))
    raw[0, ::9, ::7] += 2000  # photons are not common
    made = sfx.calibrate(raw[None].astype(np.uint16), told, common_mode=kind).values[0, 0]
    photons = np.zeros(shape[1:], bool)
    photons[::9, ::7] = True
    left = made[~photons]
    assert abs(left.mean()) < 0.3  # a median of whole numbers
    assert left.std() < 4.2
    assert made[photons].mean() == pytest.approx(2000, abs=1)


def test_peaks_of_raw_frames_in_one_pass_are_those_of_calibrated_ones() -> None:
    geometry, told = small(), constants()
    random = np.random.default_rng(0)
    photons = np.stack([frame(geometry, seed, peaks=20, level=2)[0] for seed in range(11)])  # 4 are taken in together
    assert told.gain is not None
    raw = np.rint(told.pedestal[0] + photons * told.gain[0] * 9.5 / 4 + random.normal(0, 5, photons.shape))
    raw = np.clip(raw, 0, 16383).astype(np.uint16)
    switched = random.random(raw.shape) < 0.01  # to the second stage of gain, and pixels without a number among them
    raw[switched] = random.integers(1 << 14, 3 << 14, switched.sum())
    there = np.ones((11, 2), bool)
    there[5, 1] = False
    array = xr.DataArray(raw, {"present": (("event", "segment"), there)}, ("event", "segment", "row", "column"))
    for mode in (None, "row"):
        calibration = sfx.Calibration(told, photon_energy=9500.0, common_mode=mode)
        for statistics in ("full", "sampled"):
            options: Any = {"threshold": 5.0, "min_snr": 6.0, "statistics": statistics}
            fused = sfx.find_peaks(array, geometry, calibration=calibration, **options).compute()
            apart = sfx.find_peaks(sfx.calibrate(array, calibration), geometry, **options).compute()
            assert fused.sizes["peak"] > 50
            assert fused["intensity"].attrs["units"] == "photon"
            xr.testing.assert_identical(fused, apart)


def test_constants_that_do_not_fit_are_told() -> None:
    raw, told = raw_frames(1), constants()
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (raw.astype(np.float32), {}, "uint16"),
        (raw[:, :1], {}, "1 x 128 x 160 pixels .* the constants is of 2 x 128 x 160"),
        (raw, {"detector": "pilatus"}, "choose from jungfrau"),
        (raw, {"photon_energy": -1.0}, "above zero"),
        (raw, {"common_mode": "all"}, "choose from"),
        (raw, {"mask": np.ones((3, 3))}, "mask: is float64"),
    ]
    for values, options, words in cases:
        with pytest.raises(ArgumentError, match=words):
            sfx.calibrate(values, told, **options)
    with pytest.raises(ArgumentError, match="constants: are what read_constants gives"):
        sfx.calibrate(raw, told.pedestal)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="gain is of"):
        sfx.PixelConstants(told.pedestal, np.ones((3, 2, 4, 4)))
    with pytest.raises(ArgumentError, match="of 3 ranges of gain, not 2"):
        sfx.calibrate(raw, sfx.PixelConstants(told.pedestal[:2])).compute()


def psana_text(values: Array) -> str:
    head = [f"# DTYPE float64\n# NDIM {values.ndim}"]
    head += [f"# DIM:{number}  {size}" for number, size in enumerate(values.shape, 1)]
    return "\n".join([*head, *(" ".join(f"{x:.3f}" for x in row) for row in values.reshape(-1, values.shape[-1]))])


def test_constants_of_files_of_all_kinds(tmp_path: Path) -> None:
    pedestal = np.random.default_rng(0).normal(100, 5, (3, 1, 4, 6)).round(3)
    status = np.zeros((3, 1, 4, 6), int)
    status[1, 0, 2, 3] = 4
    np.save(tmp_path / "a.npy", pedestal)
    np.savez(tmp_path / "a.npz", pedestals=pedestal, pixel_status=status, pixel_offset=np.ones(pedestal.shape))
    (tmp_path / "a.data").write_text(psana_text(pedestal))
    (tmp_path / "a.json").write_text(json.dumps({"data": pedestal.ravel().tolist(), "shape": list(pedestal.shape)}))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["jungfrau/pedestals"], file["jungfrau/pixel_gain"] = pedestal, 2 * pedestal
        file["jungfrau/mask"] = status[1] == 0
    for name in ("a.npy", "a.data", "a.json", "a.h5"):
        read = sfx.read_constants(tmp_path / name).of_run(3)
        np.testing.assert_allclose(read.pedestal, pedestal, rtol=1e-6)
    with_status = sfx.read_constants(tmp_path / "a.npz").of_run(None)
    np.testing.assert_allclose(with_status.pedestal, pedestal + 1, rtol=1e-6)
    for bad in (with_status.bad, sfx.read_constants(tmp_path / "a.h5").of_run(None).bad):
        assert bad is not None
        np.testing.assert_array_equal(np.argwhere(bad), [[0, 2, 3]])


def test_a_directory_has_constants_for_runs(tmp_path: Path) -> None:
    for first, last in ((1, 10), (5, "end"), (8, 8)):
        folder = tmp_path / "pedestals"
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{first}-{last}.npy", np.full((2, 4, 6), float(first)))
    (tmp_path / "notes.txt").write_text("for people")
    source = sfx.read_constants(tmp_path)
    found = {run: float(source.of_run(run).pedestal[0, 0, 0, 0]) for run in (1, 4, 5, 8, 9, 400)}
    assert found == {1: 1, 4: 1, 5: 5, 8: 8, 9: 5, 400: 5}
    with pytest.raises(RunNotFoundError, match="for run 0: has no pedestals"):
        source.of_run(0)
    with pytest.raises(ArgumentError, match="say which by run="):
        source.of_run(None)
    raw = np.full((1, 2, 4, 6), 105, np.uint16)
    assert float(sfx.calibrate(raw, source, run=5, detector="cspad").values[0, 0, 0, 0]) == 100


def test_constants_of_a_file_go_to_workers_by_its_name(tmp_path: Path) -> None:
    path, told = tmp_path / "a.npz", constants()
    np.savez(path, pedestal=told.pedestal, gain=told.gain, status=told.bad)
    read = sfx.read_constants(path).of_run(None)
    with pytest.raises(ValueError, match="read-only"):
        read.pedestal[...] += 1
    calibration = sfx.Calibration(read)
    assert calibration.sent().pixels is read
    sent = pickle.dumps(calibration.sent())
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert again.pixels.digests == read.digests == told.digests
    np.testing.assert_array_equal(again.pixels.pedestal, told.pedestal)
    # values that are no longer those of a file travel themselves
    for own in (told, replace(read, bad=None)):
        arrived = pickle.loads(pickle.dumps(sfx.Calibration(own).sent())).pixels
        np.testing.assert_array_equal(arrived.gain, told.gain)
        assert arrived.digests == own.digests
    np.savez(path, pedestal=told.pedestal + 1, gain=told.gain)
    with pytest.raises(ArgumentError, match="holds other constants"):
        _ = again.pixels
    path.unlink()
    with pytest.raises(RunNotFoundError, match="all workers must see it"):
        _ = again.pixels


def test_files_that_are_no_constants(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="no such file"):
        sfx.read_constants(tmp_path / "none.npy")
    for name, content in (
        ("a.npy", b"\x93NUMPY no"), ("b.data", b"1 2 three"), ("c.json", b"{}"), ("d.h5", b"no"), ("e.npz", b"PK"),
        ("f.csv", b"1,2"), ("g.data", b"# DIM:1 5\n1 2 3"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=name):
            sfx.read_constants(tmp_path / name)
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(FormatError, match="cannot be read as constants"):
        sfx.read_constants(tmp_path / "object.npy")


# --- powder patterns and hits


def photons(events: int = 9) -> xr.DataArray:
    values = np.stack([frame(small(), seed, peaks=6 * (seed % 3))[0] for seed in range(events)])
    values[2, 0, 5, 5] = np.nan
    there = np.ones((events, 2), bool)
    there[4:5, 1] = False
    coords = {"present": (("event", "segment"), there), "timestamp": ("event", (np.arange(events) << 32) + 7)}
    return xr.DataArray(values, coords, ("event", "segment", "row", "column"), attrs={"units": "photon"})


def test_a_powder_is_that_of_numpy() -> None:
    array = photons()
    values = np.where(array["present"].values[:, :, None, None], array.values, np.nan).astype(np.float64)
    hits = np.arange(9) % 3 == 1
    made = sfx.powder(array, hits)
    for group, which in (("all", np.ones(9, bool)), ("hits", hits), ("misses", ~hits)):
        one, chosen = made.sel(group=group), values[which]
        np.testing.assert_array_equal(one["count"], np.isfinite(chosen).sum(axis=0))
        np.testing.assert_allclose(one["sum"], np.nansum(chosen, axis=0), atol=9 / 8192)
        np.testing.assert_allclose(one["mean"], np.nanmean(chosen, axis=0), atol=1 / 8192)
        np.testing.assert_allclose(one["std"], np.nanstd(chosen, axis=0), rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(one["max"], np.nanmax(chosen, axis=0))
        assert int(one["frames"]) == which.sum()


def test_a_powder_is_the_same_for_any_blocks_order_and_grouping() -> None:
    array = photons()
    hits = xr.DataArray(np.arange(9) % 2 == 0, dims="event")
    whole = sfx.powder(array, hits)
    for chunks in ({"event": 1}, {"event": (5, 0, 4)}, {"event": 4, "row": 50}):
        lazy = sfx.powder(array.chunk(chunks), hits.chunk(event=2))
        assert lazy["sum"].chunks is not None
        xr.testing.assert_identical(lazy.compute(), whole)
    order = np.random.default_rng(0).permutation(9)
    xr.testing.assert_identical(sfx.powder(array[order], hits[order]), whole)
    reduction = powder_reduction("photon", array["segment"] if "segment" in array.coords else whole["segment"], True)
    coords = array.coords.to_dataset()
    parts = [Running(reduction), Running(reduction)]
    for event in (7, 1, 0, 8, 3, 5, 2, 6, 4):
        one = slice(event, event + 1)
        parts[event % 2].update(array.values[one], coords.isel(event=one), np.where(hits.values[one], 0, 1))
    xr.testing.assert_identical(parts[1].merge(parts[0]).result(), whole)


def test_a_powder_of_integers_is_exact() -> None:
    raw = np.random.default_rng(0).integers(0, 1 << 16, (50, *SHAPE)).astype(np.uint16)
    made = sfx.powder(raw)
    np.testing.assert_array_equal(made["sum"][0], raw.sum(axis=0, dtype=np.int64))
    np.testing.assert_allclose(made["std"][0], raw.std(axis=0), rtol=1e-9)
    with pytest.raises(ArgumentError, match="no frames"):
        sfx.powder(raw[:0])
    with pytest.raises(ArgumentError, match="a boolean for each of 50 events"):
        sfx.powder(raw, np.ones(50))


def test_hits_are_frames_with_enough_peaks() -> None:
    array = photons()
    peaks = sfx.find_peaks(array.chunk(event=2), small(), threshold=60.0, max_pixels=40)
    found = peaks.compute()
    number = np.diff(found["offset"].values[::2])
    hits = sfx.find_hits(peaks, min_peaks=3, max_peaks=9)
    assert hits.chunks is not None
    np.testing.assert_array_equal(hits.values, (number >= 3) & (number <= 9))
    again = sfx.find_hits(found, min_peaks=3, max_peaks=9)
    np.testing.assert_array_equal(again["peaks"], number)
    np.testing.assert_array_equal(again["timestamp"], array["timestamp"])
    strong = sfx.find_hits(found, min_peaks=1, min_snr=60.0)["peaks"].values
    segment_snr = np.split(found["snr"].values, found["offset"].values[2:-1:2])
    np.testing.assert_array_equal(strong, [(one >= 60).sum() for one in segment_snr])
    with pytest.raises(ArgumentError, match="5 to 4 peaks"):
        sfx.find_hits(found, min_peaks=5, max_peaks=4)


# --- CXI


def test_a_cxi_file_has_hits_peaks_and_mask(tmp_path: Path) -> None:
    geometry, array = small(), photons()
    good = np.random.default_rng(0).random(geometry.shape) > 0.1
    peaks = sfx.find_peaks(array.chunk(event=4), geometry, threshold=60.0, max_pixels=40, mask=good)
    hits = sfx.find_hits(peaks, min_peaks=3)
    pattern = sfx.powder(array, hits.values)
    path = sfx.write_cxi(
        tmp_path / "a.cxi", array.chunk(event=4), peaks, geometry, hits=hits, mask=good, powder=pattern
    )
    found = peaks.compute()
    chosen = np.flatnonzero(hits.values)
    assert 0 < len(chosen) < 9
    with h5py.File(path) as file:
        data = file["entry_1/data_1/data"]
        assert data.shape == (len(chosen), 256, 160)
        np.testing.assert_array_equal(data[:], array.values[chosen].reshape(-1, 256, 160))
        np.testing.assert_array_equal(file["entry_1/data_1/mask"][:] == 0, good.reshape(256, 160))
        np.testing.assert_array_equal(file["entry_1/event"][:], chosen)
        np.testing.assert_array_equal(file["LCLS/machineTime"][:], chosen)
        assert set(file["LCLS/machineTimeNanoSeconds"][:]) == {7}
        assert set(file["LCLS/photon_energy_eV"][:]) == {9500.0}
        assert set(file["LCLS/detector_1/EncoderValue"][:]) == {100.0}
        np.testing.assert_array_equal(
            file["entry_1/data_1/powderHits"][:], pattern["max"].sel(group="hits").values.reshape(256, 160).astype("f4")
        )
        result = file["entry_1/result_1"]
        for place, event in enumerate(chosen):
            first, middle, last = found["offset"].values[2 * event : 2 * event + 3]
            assert result["nPeaks"][place] == last - first
            np.testing.assert_array_equal(result["peakXPosRaw"][place, : last - first], found["fs"][first:last])
            ss = found["ss"].values[first:last] + 128 * (np.arange(first, last) >= middle)
            np.testing.assert_array_equal(result["peakYPosRaw"][place, : last - first], ss.astype(np.float32))
            assert not result["peakXPosRaw"][place, last - first :].any()
    with pytest.raises(TargetExistsError, match="is there already"):
        sfx.write_cxi(path, array, peaks, geometry)
    assert [one.name for one in tmp_path.iterdir()] == ["a.cxi"]


def test_what_does_not_fit_a_cxi_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, array = small(), photons(3)
    peaks = sfx.find_peaks(array, geometry, threshold=60.0)
    for options, words in (
        ({"hits": np.ones(2, bool)}, "a boolean for each of 3 events"),
        ({"photon_energy": [1.0, 2.0]}, "photon_energy: has shape"),
        ({"compression": "lzf"}, "choose None or 'gzip'"),
        ({"mask": np.ones((1, 1), bool)}, "mask"),
    ):
        with pytest.raises(ArgumentError, match=words):
            sfx.write_cxi(tmp_path / "a.cxi", array, peaks, geometry, **options)
    with pytest.raises(ArgumentError, match="peaks are of 3 events"):
        sfx.write_cxi(tmp_path / "a.cxi", array[:2], peaks, geometry)

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Dataset, "__setitem__", full_disk)
    with pytest.raises(OSError, match="No space left"):
        sfx.write_cxi(tmp_path / "a.cxi", array, peaks, geometry)
    assert list(tmp_path.iterdir()) == []


def test_a_frame_that_cannot_be_computed_leaves_nothing(tmp_path: Path) -> None:
    geometry, array = small(), photons(4).chunk(event=1)

    def fail(block: Array) -> Array:
        raise RuntimeError("this block is damaged")

    broken = array.copy(data=array.data.map_blocks(fail, dtype=np.float32))
    peaks = sfx.find_peaks(array, geometry, threshold=60.0)
    with dask.config.set(scheduler="synchronous"), pytest.raises(RuntimeError, match="damaged"):
        sfx.write_cxi(tmp_path / "a.cxi", broken, peaks, geometry)
    assert list(tmp_path.iterdir()) == []


# --- radial profiles


def test_radial_profiles_are_means_of_rings() -> None:
    geometry = jungfrau()
    if importlib.util.find_spec("pyFAI") is None:
        with pytest.raises(UnsupportedError, match="pyFAI"):
            sfx.azimuthal_integrate(np.zeros(geometry.shape), geometry)
        pytest.skip("pyFAI is not installed: radial profiles are NOT tested")
    d = geometry.resolution()
    q = 2 * np.pi / d
    values = np.stack([q, np.where(q > 2, np.nan, 5.0)]).astype(np.float32)
    made = sfx.azimuthal_integrate(xr.DataArray(values, dims=("event", "segment", "row", "column")), geometry, bins=200,
                                   solid_angle=False).load()  # fmt: skip
    assert made.dims == ("event", "q")
    np.testing.assert_allclose(made[0], made["q"], rtol=1e-2)
    low = made["q"].values < 1.95
    np.testing.assert_allclose(made[1][low], 5, rtol=1e-5)
    assert np.isnan(made[1][made["q"].values > 2.05]).all()


def test_the_face_is_light_and_complete() -> None:
    assert set(sfx.__all__) <= set(dir(sfx))
    for name in sfx.__all__:
        assert getattr(sfx, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sfx.nothing
    assert lcls_dask.sfx is sfx


# --- constants of dark runs


def test_dark_frames_give_pedestals_noise_and_bad_pixels() -> None:
    random, shape = np.random.default_rng(0), (2, 64, 48)
    truth, noise = random.normal(2700, 80, (3, *shape)), np.array([4.0, 9.0, 12.0])
    runs, there = [], np.ones((40, 2), bool)
    there[5, 1] = False
    for stage, bits in enumerate((0, 1, 3)):
        frames = np.rint(truth[stage] + noise[stage] * random.standard_normal((40, *shape))).astype(np.uint16)
        if stage == 0:
            frames[:, 0, 3, 4] = 2600  # dead
            frames[:, 1, 7, 8] = random.integers(0, 16000, 40)  # noisy
            frames[:, 1, 9, 9] = (8000 + random.normal(0, 4, 40)).astype(np.uint16)
        frames |= np.uint16(bits << 14)
        frames[~there] = 0
        array = xr.DataArray(frames, {"present": (("event", "segment"), there)}, ("event", "segment", "row", "column"))
        runs.append(array.chunk(event=7) if stage == 1 else array)
    derived = sfx.derive_constants(runs)
    good = derived["pixel_status"].values[0] == 0
    np.testing.assert_array_equal(np.argwhere(~good), [[0, 3, 4], [1, 7, 8], [1, 9, 9]])
    for stage in range(3):
        error = (derived["pedestals"].values[stage] - truth[stage])[good]
        assert error.std() == pytest.approx(np.hypot(noise[stage], 0.29) / np.sqrt(40), rel=0.1)
        assert np.median(derived["rms"].values[stage]) == pytest.approx(noise[stage], rel=0.05)
    assert derived["frames"].values[0, 1, 0, 0] == 39
    only = sfx.derive_constants(runs[:1])
    assert np.isnan(only["pedestals"].values[1:]).all()
    assert not only["pixel_status"].values[1:].any()
    with pytest.raises(ArgumentError, match="no dark frames"):
        sfx.derive_constants([])
    with pytest.raises(ArgumentError, match="one detector is wanted"):
        sfx.derive_constants([runs[0], runs[0][:, :1]])


def test_constants_by_the_command_line_of_a_simulated_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lcls_dask.cli import main

    lcls_dask.simulate(tmp_path / "run", "sfx", events=12, seed=3)
    call = ["sfx", "darks", str(tmp_path / "run"), "--out", str(tmp_path / "darks.h5")]
    assert main([*call, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ranges"][0]["frames"] >= 11
    read = sfx.read_constants(tmp_path / "darks.h5").of_run(1)
    import zarr

    store = zarr.open_group(tmp_path / "run" / "truth.zarr", mode="r")
    # water and air scatter into these, so that they are no more than near; hot pixels are bad
    assert np.median(abs(read.pedestal[0] - np.asarray(store["pedestal"]))) < 60
    assert read.bad is not None
    assert read.bad[tuple(np.asarray(store["hot_pixels"]).T)].mean() > 0.95
    assert main(call) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["sfx", "darks", str(tmp_path / "none"), "--out", str(tmp_path / "b.h5")]) == 1
    assert not (tmp_path / "b.h5").exists()
