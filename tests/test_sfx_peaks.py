"""Peaks against what was planted, against five plain passes, and against psana's compiled peakfinder8."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from sfx_frames import add, frame, jungfrau, small

import lcls_dask
from lcls_dask import sfx
from lcls_dask.errors import ArgumentError
from lcls_dask.reduce.ragged import Ragged, rows_of
from lcls_dask.sfx.geometry.model import Geometry
from lcls_dask.sfx.kernels.rings import room, strong
from lcls_dask.sfx.rings import radii, rings_of

Array = np.ndarray[Any, Any]
TOLD = {"threshold": 60.0, "min_snr": 5.0, "max_pixels": 40}


@pytest.fixture(scope="module")
def detector() -> Geometry:
    return jungfrau()


def table(found: xr.Dataset) -> Array:
    """(peaks, 6): row, fs, ss, intensity, snr, pixels."""
    columns = [found[name].values for name in ("fs", "ss", "intensity", "snr", "pixels")]
    return np.column_stack([rows_of(found), *columns])


def paired(found: Array, truth: Array) -> tuple[Array, Array]:
    """For each of (n, 3) segment, fs, ss the nearest of the truth within 2 pixels: its distance and number, -1."""
    apart = np.hypot(found[:, None, 1] - truth[:, 1], found[:, None, 2] - truth[:, 2])
    apart[found[:, None, 0] != truth[:, 0]] = np.inf
    nearest = apart.argmin(axis=1)
    least = apart[np.arange(len(found)), nearest]
    return least, np.where(least < 2, nearest, -1)


@pytest.mark.parametrize("statistics", ["full", "sampled"])
def test_recall_precision_and_error_of_planted_peaks(detector: Geometry, statistics: str) -> None:
    planted = found = right = 0
    weak, errors = {"threshold": 0.0, "min_snr": 6.0, "max_pixels": 40}, []
    for seed in range(2):
        values, truth = frame(detector, seed)
        peaks = table(sfx.find_peaks(values, detector, statistics=statistics, **weak).compute())
        apart, number = paired(peaks, truth[:, [0, 2, 1]])
        planted, found, right = planted + len(truth), found + len(peaks), right + len(set(number[number >= 0]))
        errors.append(apart[number >= 0])
    assert right >= 0.99 * planted
    assert right >= 0.99 * found
    assert np.median(np.concatenate(errors)) <= 0.06


def five_passes(values: Array, ring: Array, rings: int, min_snr: float, threshold: float) -> tuple[Array, ...]:
    """Mean, sigma and upper threshold of each ring, as the paper has them."""
    value, number = values[ring < rings].astype(np.float64), ring[ring < rings].astype(np.int64)
    value, number = value[np.isfinite(value)], number[np.isfinite(value)]
    mean, sigma = np.zeros(rings), np.zeros(rings)
    low, high = np.full(rings, -np.inf), np.full(rings, np.inf)
    for _ in range(5):
        inside = (value > low[number]) & (value < high[number])
        count = np.bincount(number[inside], minlength=rings)
        there = (count > 0) & ~((sigma == 0) & np.isfinite(high))
        sums = [np.bincount(number[inside], value[inside] ** power, rings) for power in (1, 2)]
        mean[there] = sums[0][there] / count[there]
        sigma[there] = np.sqrt(np.maximum(sums[1][there] / count[there] - mean[there] ** 2, 0))
        low[there] = mean[there] - min_snr * sigma[there]
        high[there] = np.maximum(mean[there] + min_snr * sigma[there], threshold)
    return mean, sigma, high


@pytest.mark.parametrize(
    "kind", ["usual", "low snr", "sparse photons", "hot pixels", "not numbers", "all alike", "steps", "offset"]
)
def test_one_pass_is_five_passes(kind: str) -> None:
    geometry = small(2, 192, 256)
    values, _ = frame(geometry, 3, peaks=20)
    random, min_snr, threshold = np.random.default_rng(4), 5.0, 0.0
    if kind == "low snr":
        min_snr = 1.5
    elif kind == "sparse photons":
        values = random.poisson(0.02, geometry.shape).astype(np.float32)
    elif kind == "hot pixels":
        values.flat[random.choice(values.size, 30)] = 1e12
    elif kind == "not numbers":
        values.flat[random.choice(values.size, 3000)] = np.nan
        values.flat[random.choice(values.size, 30)] = np.inf
        values.flat[random.choice(values.size, 30)] = -np.inf
    elif kind == "all alike":
        values[:] = 7.0
        values[0, 30, 30:33] = 100.0
    elif kind == "steps":  # a shadow: half of each ring has another level than its sample may say
        values[:, :, 128:] *= 0.2
    elif kind == "offset":
        values -= 5000
        threshold = -4900.0
    rings = rings_of(geometry, random.random(geometry.shape) > 0.05, 10, np.inf)
    found, scratch = room(rings)
    above = strong("full", values.reshape(-1), rings, min_snr, threshold, found, scratch)
    mean, sigma, high = five_passes(values.reshape(-1), rings.ring, rings.number.size, min_snr, threshold)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-6, atol=1e-6)
    expected = values.reshape(-1) > np.append(high, np.inf)[rings.ring]
    np.testing.assert_array_equal(
        scratch.taken.pixels[:above], np.flatnonzero(expected & np.isfinite(values.reshape(-1)))
    )


@pytest.fixture(scope="module")
def peakfinder8() -> Any:
    if importlib.util.find_spec("psana") is None:
        pytest.skip("psana is not installed: peaks are NOT compared with psana.peakfinder8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what psana imports
        from psana.peakfinder8 import peakfinder_8

    return peakfinder_8


def by_psana(finder: Any, values: Array, geometry: Geometry, good: Array | None, told: dict[str, Any]) -> Array:
    """(peaks, 6) as `table`, of 256 x 256 pixels to a panel."""
    slab = (-1, values.shape[-1])
    mask = (np.ones(values.shape, bool) if good is None else good).reshape(slab).astype(np.int8)
    x, y, intensity, _, pixels, _, _, snr = (
        np.array(column, np.float64)
        for column in finder(
            100_000, np.ascontiguousarray(values.reshape(slab), np.float32), mask,
            np.rint(radii(geometry)).reshape(slab).astype(np.float32), 256, 256, values.shape[2] // 256,
            values.shape[0] * values.shape[1] // 256, told["threshold"], told["min_snr"], 2, told["max_pixels"], 3,
        )
    )  # fmt: skip
    segment = np.floor((y + 0.5) / values.shape[1])
    return np.column_stack([segment, x, y - values.shape[1] * segment, intensity, snr, pixels])


def same(ours: Array, theirs: Array) -> None:
    """The same peaks: centroids within 0.02 pixels, intensities to 1e-3, pixels."""
    assert len(ours) == len(theirs)
    apart, number = paired(ours, theirs)
    assert sorted(number) == list(range(len(theirs)))
    assert apart.max() <= 0.02
    np.testing.assert_allclose(ours[:, 3], theirs[number, 3], rtol=1e-3)
    np.testing.assert_allclose(ours[:, 4], theirs[number, 4], rtol=1e-2)
    np.testing.assert_array_equal(ours[:, 5], theirs[number, 5])


@pytest.mark.parametrize(
    ("seed", "told", "masked"),
    # psana adds up in single precision: a pixel within 1e-4 of the threshold of its ring may be on the other side
    [
        (10, TOLD, 0.0),
        (11, {**TOLD, "min_snr": 8.0, "max_pixels": 12, "threshold": 70.0}, 0.02),
        (12, {**TOLD, "threshold": 25.0}, 0.3),
    ],
)
def test_the_same_peaks_as_psana(
    detector: Geometry, peakfinder8: Any, seed: int, told: dict[str, Any], masked: float
) -> None:
    values, _ = frame(detector, seed, margin=0, peaks=200)  # over panel edges too
    good = np.random.default_rng(seed).random(values.shape) >= masked
    good[3, 100:200] = masked == 0
    values[2, 10:20, 300:340] = np.nan
    ours = table(sfx.find_peaks(values, detector, mask=good, **told).compute())
    assert len(ours) > 60
    same(ours, by_psana(peakfinder8, values, detector, good, told))


def test_the_same_peaks_as_psana_on_a_simulated_run(tmp_path: Path, detector: Geometry, peakfinder8: Any) -> None:
    lcls_dask.simulate(tmp_path / "run", "sfx", events=4, seed=5)
    run = lcls_dask.open_run(tmp_path / "run")
    raw = run.dataset("jungfrau.raw.raw")["jungfrau.raw.raw"].values.astype(np.float32)
    import zarr

    values = (raw - np.asarray(zarr.open_group(tmp_path / "run" / "truth.zarr", mode="r")["pedestal"])) / 389.5
    told = {"threshold": 4.0, "min_snr": 6.0, "max_pixels": 30}
    found = table(sfx.find_peaks(values, detector, **told).compute())
    assert len(found) > 100
    for event in range(4):
        ours = found[found[:, 0] // 8 == event] - [8 * event, 0, 0, 0, 0, 0]
        same(ours, by_psana(peakfinder8, values[event], detector, None, told))


@pytest.fixture(scope="module")
def frames() -> xr.DataArray:
    values = np.stack([frame(small(), seed, peaks=6 * seed)[0] for seed in range(9)])
    there = np.ones((9, 2), bool)
    there[4, 1] = False
    values[~there] = 0
    coords = {"segment": [3, 7], "present": (("event", "segment"), there), "timestamp": ("event", np.arange(9))}
    return xr.DataArray(values, coords, ("event", "segment", "row", "column"), attrs={"units": "photon"})


@pytest.mark.parametrize("statistics", ["full", "sampled"])
def test_the_same_for_any_chunks_and_order(frames: xr.DataArray, statistics: str) -> None:
    told = {**TOLD, "statistics": statistics}
    whole = sfx.find_peaks(frames, small(), **told).compute()
    assert whole.sizes["peak"] > 100
    assert whole["intensity"].attrs["units"] == "photon"
    for chunks in ({"event": 1}, {"event": 4, "segment": 1, "row": 50}, {"event": (5, 0, 4)}):
        lazy = sfx.find_peaks(frames.chunk(chunks), small(), **told)
        assert isinstance(lazy, Ragged)
        xr.testing.assert_identical(lazy.compute(), whole)
    order = np.random.default_rng(0).permutation(9)
    mixed = table(sfx.find_peaks(frames[order], small(), **told).compute())
    alone = table(whole)
    expected = [alone[alone[:, 0] // 2 == event] for event in order]
    np.testing.assert_array_equal(mixed[:, 1:], np.concatenate(expected)[:, 1:])
    bare = sfx.find_peaks(frames.values[2], small(), **told).compute()
    np.testing.assert_array_equal(table(bare)[:, 1:], alone[alone[:, 0] // 2 == 2][:, 1:])


def test_an_absent_segment_is_not_one_of_zeros(frames: xr.DataArray) -> None:
    found = table(sfx.find_peaks(frames, small(), **TOLD).compute())
    assert not (found[:, 0] == 9).any()
    values = frames.values[4].copy()
    values[1] = np.nan
    np.testing.assert_array_equal(
        found[found[:, 0] == 8][:, 1:], table(sfx.find_peaks(values, small(), **TOLD).compute())[:, 1:]
    )


def test_panel_edges_part_peaks_and_a_peak_at_an_edge_alone_is_none() -> None:
    geometry = small(1)  # panels of columns 0:80 and 80:160
    random = np.random.default_rng(0)
    values = random.normal(10, 1, geometry.shape)
    add(values, 0, 40, 79.5, 4000, random)
    values[0, 90, 79:81] += 500  # one column to each side: both at edges
    values[0, 0, 30:34] += 500
    values[0, 1, 50:52] += 500  # the row at the edge belongs to it
    values[0, 0, 50] += 500
    found = table(sfx.find_peaks(values, geometry, threshold=60, max_pixels=40).compute())
    assert len(found) == 3
    assert (found[:2, 5] if found[0, 2] > 30 else found[1:, 5]).min() > 3
    corner = found[found[:, 2] < 5][0]
    np.testing.assert_allclose(corner[[1, 2, 5]], [50.33, 0.67, 3], atol=0.05)


def test_fs_is_the_column_and_ss_the_row() -> None:
    geometry, random = small(1), np.random.default_rng(0)
    values = random.normal(10, 1, geometry.shape)
    values[0, 100, 30] += 500
    found = sfx.find_peaks(values, geometry, threshold=60, min_pixels=1).compute()
    assert (found["fs"].item(), found["ss"].item()) == (30, 100)


def test_masks_of_all_kinds_say_the_same() -> None:
    geometry = small()
    values, _ = frame(geometry, 1, peaks=25)
    good = np.random.default_rng(1).random(geometry.shape) > 0.1
    whole = table(sfx.find_peaks(values, geometry, mask=good, **TOLD).compute())
    assert len(whole) > 15
    bad = Geometry(geometry.panels, geometry.shape, 0.1, bad=~good)
    np.testing.assert_array_equal(table(sfx.find_peaks(values, bad, **TOLD).compute()), whole)
    holes = np.where(good, values, np.nan)
    for statistics in ("full", "sampled"):
        masked = table(sfx.find_peaks(holes, geometry, mask=good, statistics=statistics, **TOLD).compute())
        plain = table(sfx.find_peaks(values, geometry, mask=good, statistics=statistics, **TOLD).compute())
        np.testing.assert_array_equal(masked, plain)
    np.testing.assert_allclose(table(sfx.find_peaks(holes, geometry, **TOLD).compute()), whole, rtol=1e-5)
    near = table(sfx.find_peaks(values, geometry, min_radius=30, max_radius=60, **TOLD).compute())
    radius = radii(geometry)[near[:, 0].astype(int), near[:, 2].round().astype(int), near[:, 1].round().astype(int)]
    assert len(near)
    assert ((radius > 28) & (radius < 62)).all()


@pytest.mark.parametrize("fill", [np.nan, 0.0, 5.0, np.inf])
def test_frames_without_anything_have_no_peaks(fill: float) -> None:
    geometry = small()
    for statistics in ("full", "sampled"):
        found = sfx.find_peaks(np.full((2, *geometry.shape), fill), geometry, statistics=statistics, threshold=0)
        assert found.compute().sizes["peak"] == 0
    values, _ = frame(geometry, 1)
    none = np.zeros(geometry.shape, bool)
    assert sfx.find_peaks(values, geometry, mask=none, threshold=0).compute().sizes["peak"] == 0


def test_more_than_2048_peaks() -> None:
    geometry, random = small(1, 512, 512, 1), np.random.default_rng(0)
    values = random.normal(10, 1, (3, *geometry.shape))
    places = np.arange(4, 508, 10)
    values[1:, 0, places[:, None], places] += 200
    values[1:, 0, places[:, None], places + 1] += 100
    found = sfx.find_peaks(values, geometry, threshold=60).compute()
    count = np.diff(found["offset"])
    assert count[0] == 0
    assert (count[1:] >= 0.99 * len(places) ** 2).all()
    assert count[1:].min() > 2048
    assert (np.rint(found["ss"]) % 10 == 4).all()


def test_integers_and_doubles_give_the_same_and_are_not_touched() -> None:
    geometry = small()
    counts = np.rint(frame(geometry, 2)[0]).astype(np.uint16)
    whole = table(sfx.find_peaks(counts, geometry, **TOLD).compute())
    for dtype in (np.int16, np.int32, np.float32, np.float64, ">u2"):
        other = counts.astype(dtype)
        before = other.copy()
        np.testing.assert_array_equal(table(sfx.find_peaks(other, geometry, **TOLD).compute()), whole)
        np.testing.assert_array_equal(other, before)


def test_what_is_wrong_is_told() -> None:
    geometry, values = small(), np.zeros((2, 128, 160))
    with pytest.raises(ArgumentError, match=r"2 x 100 x 160 pixels .* geometry is of 2 x 128 x 160"):
        sfx.find_peaks(values[:, :100], geometry, threshold=1)
    with pytest.raises(ArgumentError, match="mask: is bool of shape"):
        sfx.find_peaks(values, geometry, threshold=1, mask=np.ones((128, 160), bool))
    for told, words in (
        ({"threshold": np.nan}, "threshold"),
        ({"min_snr": 0}, "min_snr"),
        ({"min_pixels": 5, "max_pixels": 4}, "pixels to a peak"),
        ({"background_radius": 0}, "background_radius"),
        ({"min_radius": 5, "max_radius": 5}, "radii"),
        ({"statistics": "none"}, "choose from full, sampled"),
    ):
        with pytest.raises(ArgumentError, match=words):
            sfx.find_peaks(values, geometry, **{"threshold": 1.0, **told})
    with pytest.raises(ArgumentError, match="2 to 4 dimensions"):
        sfx.find_peaks(values[0, 0], geometry, threshold=1)
    with pytest.raises(ArgumentError, match="complex128"):
        sfx.find_peaks(values * 1j, geometry, threshold=1)
