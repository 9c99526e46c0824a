"""Hits against the truth: accuracy against the Cramér-Rao bound, efficiency, false hits, edges, the same for any
blocks."""

import math
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from tof_pulses import BASE, DT, NOISE, SIGMA, bound, digitised

import lcls_dask
from lcls_dask import tof
from lcls_dask.errors import ArgumentError, LclsError
from lcls_dask.reduce.ragged import Ragged

METHODS = ("cfd", "leading_edge", "dynamic_leading_edge", "matched")


def residuals(height: float, rows: int = 12_000, **options: Any) -> np.ndarray[Any, Any]:
    """Found less true times [ns] of one pulse in each waveform."""
    random = np.random.default_rng(int(height))
    times = random.uniform(120, 121, (rows, 1))
    waveforms = digitised(times, np.full((rows, 1), height), 200, seed=int(height))
    hits = tof.find_hits(waveforms[:, None], threshold=10 * NOISE, baseline=BASE[None], **options).compute()
    assert (np.diff(hits["offset"]) == 1).all()
    return np.asarray(hits["time"] - times[:, 0] * DT)


@pytest.mark.parametrize("height", [80, 200, 600])
def test_matched_reaches_the_cramer_rao_bound(height: int) -> None:
    away = residuals(height, method="matched", pulse_width=SIGMA * DT * math.sqrt(8 * math.log(2)))
    assert away.std() <= 1.05 * bound(height)
    assert abs(away.mean()) < 5 * bound(height) / math.sqrt(len(away))


@pytest.mark.parametrize(("fraction", "delay"), [(0.6, 6), (0.5, 6), (1.0, 5)])
def test_constant_fraction_is_near_the_bound_and_does_not_walk(fraction: float, delay: int) -> None:
    found = {h: residuals(h, method="cfd", fraction=fraction, delay=delay * DT) for h in (60, 80, 200, 600)}
    for height, away in found.items():
        assert away.std() <= 2.2 * bound(height), height
    means = [away.mean() for away in found.values()]
    assert np.ptp(means) <= 0.005
    # of a Gaussian pulse: x(t) = f x(t + d) at t = s**2 ln(f) / d - d / 2
    assert np.mean(means) == pytest.approx(DT * (SIGMA**2 * math.log(fraction) / delay - delay / 2), abs=0.03)


def test_a_leading_edge_walks_and_a_dynamic_one_does_not() -> None:
    fixed = [residuals(h, 2000, method="leading_edge").mean() for h in (80, 600)]
    # x(t) = 40 at t = -s sqrt(2 ln(h / 40))
    expected = [-SIGMA * DT * math.sqrt(2 * math.log(h / 40)) for h in (80, 600)]
    np.testing.assert_allclose(fixed, expected, atol=0.02)
    moving = [residuals(h, method="dynamic_leading_edge").mean() for h in (80, 600)]
    assert np.ptp(moving) < 0.025


def test_all_that_moves_a_dynamic_leading_edge_is_the_highest_of_noisy_samples() -> None:
    at = -SIGMA * math.sqrt(2 * math.log(1 / 0.6))  # x(t) = 0.6 h there, and rises by -t / s**2 of it
    for height in (80, 200, 600):
        times = np.random.default_rng(height).uniform(120, 121, (12_000, 1))
        waveforms = digitised(times, np.full((12_000, 1), height), 200, seed=height)
        hits = tof.find_hits(
            waveforms[:, None], "dynamic_leading_edge", threshold=40, baseline=BASE[None], fraction=0.6
        ).compute()
        too_high = float(hits["amplitude"].mean()) - height
        assert 0 < too_high < NOISE
        moved = too_high / (height * -at / SIGMA**2)
        away = hits["time"].values - (times[:, 0] + at) * DT
        # a straight line between samples of a curve adds a constant of a few ps
        assert abs(away.mean() - moved * DT) < 0.006


@pytest.mark.parametrize("method", METHODS)
def test_efficiency_at_ten_sigma(method: str) -> None:
    rows = 20_000
    times = np.random.default_rng(1).uniform(100, 180, (rows, 1))
    waveforms = digitised(times, np.full((rows, 1), 10 * NOISE), 240, seed=2)
    hits = tof.find_hits(waveforms[:, None], method, threshold=5 * NOISE, baseline=BASE[None]).compute()
    row = np.repeat(np.arange(rows), np.diff(hits["offset"]))
    near = np.abs(hits["time"].values / DT - times[row, 0]) < 3 * SIGMA
    assert len(np.unique(row[near])) > 0.999 * rows


def noise_blocks(samples: int, rows: int, blocks: int, sigma: float, seed: int, often: int) -> Any:
    """White Gaussian noise, of which the part within 4.5 sigma comes again and the tails, which decide, are all new.

    There are `often` times as many samples in the tails, which are so far apart that each counts by itself."""
    random = np.random.default_rng(seed)
    stock = random.standard_normal((rows, samples), np.float32)
    while (far := np.abs(stock) > 4.5).any():
        stock[far] = random.standard_normal(int(far.sum()), np.float32)
    stock = np.rint(sigma * stock).astype(np.int16)
    tail = math.erfc(4.5 / math.sqrt(2)) / 2
    for _ in range(blocks):
        block = np.roll(stock, random.integers(stock.size))
        count = random.binomial(block.size, often * tail)
        # conditional tail: P(z > t) / P(z > 4.5) is uniform
        from scipy.stats import norm

        block.flat[random.choice(block.size, count, replace=False)] = np.rint(
            -sigma * norm.isf(tail * random.uniform(size=count))
        )
        yield block


@pytest.mark.parametrize("method", ["cfd", "matched"])
def test_false_hits_at_five_sigma_are_as_many_as_gauss_says(method: str) -> None:
    # a noise of many ADU, so that rounding does not matter, and a baseline that is known
    found = samples = 0
    for block in noise_blocks(3000, 4000, 30, 200.0, 11, often=10):
        hits = tof.find_hits(
            block, method, threshold=1000, baseline=0.0, dead_time=0, saturation=(-32768, 32767)
        ).compute()
        found, samples = found + hits.sizes["hit"], samples + block.size
    expected = 10 * samples * math.erfc(5 / math.sqrt(2)) / 2
    assert 0.1 * expected > 3 * math.sqrt(expected)
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_two_pulses_down_to_the_dead_time(method: str) -> None:
    dead = 3.0
    apart = np.concatenate([np.linspace(2.0, 2.9, 200), np.linspace(3.1, 6.0, 200)]) / DT
    times = np.stack([np.full(400, 100.3), 100.3 + apart], axis=1)
    waveforms = digitised(times, np.full((400, 2), 400.0), 240)
    hits = tof.find_hits(
        waveforms[:, None], method, threshold=40, baseline=BASE[None], dead_time=dead, fraction=0.6
    ).compute()
    count = np.diff(hits["offset"])
    clear = np.abs(apart * DT - dead) > 0.12
    np.testing.assert_array_equal(count[clear], np.where(apart * DT > dead, 2, 1)[clear])


def everything(hits: xr.Dataset) -> dict[str, Any]:
    return {str(name): hits[name].values for name in hits.data_vars}


@pytest.fixture(scope="module")
def waveforms() -> xr.DataArray:
    random = np.random.default_rng(5)
    rows = 24 * 4
    times, heights = random.uniform(80, 395, (rows, 3)), random.uniform(50, 900, (rows, 3))
    values = digitised(times, heights, 400, seed=6).reshape(24, 4, 400)
    return xr.DataArray(values, dims=("event", "channel", "sample"), coords={"channel": [3, 5, 7, 9]})


@pytest.mark.parametrize("method", METHODS)
def test_the_same_for_any_chunks_and_order(waveforms: xr.DataArray, method: str) -> None:
    whole = tof.find_hits(waveforms, method, threshold=40).compute()
    assert whole.sizes["hit"] > 150
    for chunks in ({"event": 1}, {"event": 7, "channel": 1, "sample": 150}, {"event": (5, 0, 19)}):
        lazy = tof.find_hits(waveforms.chunk(chunks), method, threshold=40)
        assert isinstance(lazy, Ragged)
        xr.testing.assert_identical(lazy.compute(), whole)
    order = np.random.default_rng(0).permutation(24)
    mixed = tof.find_hits(waveforms[order], method, threshold=40).compute()
    row = (order[:, None] * 4 + np.arange(4)).ravel()
    offset = whole["offset"].values
    expected = np.concatenate([whole["time"].values[offset[r] : offset[r + 1]] for r in row])
    np.testing.assert_array_equal(mixed["time"], expected)
    # one by one, as bare arrays
    alone = [tof.find_hits(waveforms.values[e, c], method, threshold=40).compute() for e in range(3) for c in range(4)]
    np.testing.assert_array_equal(np.concatenate([a["time"] for a in alone]), whole["time"][: offset[12]])


@pytest.mark.parametrize("method", METHODS)
def test_dtypes_give_the_same(waveforms: xr.DataArray, method: str) -> None:
    told = {"threshold": 40, "saturation": (-np.inf, np.inf)}
    whole = everything(tof.find_hits(waveforms, method, **told).compute())
    values = waveforms.values
    others = {
        "int16": values.astype(np.int16),
        "int16 below zero": values.astype(np.int16) - 5000,
        "uint16 beyond 2**15": values + np.uint16(60000),
        "float32": values.astype(np.float32),
        "int64": values.astype(np.int64),
        "big-endian": values.astype(">u2"),
    }
    for name, other in others.items():
        found = everything(tof.find_hits(other, method, **told).compute())
        for column in whole:
            # means of samples of other size round elsewhere
            np.testing.assert_allclose(found[column], whole[column], rtol=1e-6, atol=1e-6, err_msg=f"{name} {column}")
    up = tof.find_hits(8000 - values.astype(np.int16), method, polarity=1, **told).compute()
    np.testing.assert_allclose(up["time"], whole["time"], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("samples", [61, 64, 65, 127, 130, 203])
def test_odd_lengths_and_hits_on_the_first_and_last_sample(method: str, samples: int) -> None:
    level = np.full(samples, 2048, np.int16)
    for at in (0, samples - 1, samples // 2):
        one = level.copy()
        one[at] -= 500
        hits = tof.find_hits(one, method, threshold=100, baseline=2048.0).compute()
        assert hits.sizes["hit"] == 1, at
        assert hits["amplitude"].item() == pytest.approx(500, rel=1.0)
        assert abs(hits["time"].item() / DT - at) < 8
        # what is beyond the record is baseline, so that it may as well be there
        more = np.concatenate([level[:40], one, level[:40]])
        moved = tof.find_hits(more, method, threshold=100, baseline=2048.0).compute()
        np.testing.assert_allclose(moved["time"] - 40 * DT, hits["time"], atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_flat_tops_are_one_hit_and_flagged(method: str) -> None:
    times = np.full((1, 1), 100.0)
    clipped = np.clip(digitised(times, np.full((1, 1), 5000.0), 300, noise=0, dtype=np.int64), 0, 4095)
    hits = tof.find_hits(clipped.astype(np.uint16)[0], method, threshold=100).compute()
    assert hits["saturated"].values.tolist() == [True]
    free = tof.find_hits(digitised(times, np.full((1, 1), 900.0), 300)[0], method, threshold=100).compute()
    assert free["saturated"].values.tolist() == [False]
    assert free["amplitude"].item() == pytest.approx(900, abs=15)
    assert free["width"].item() == pytest.approx(SIGMA * DT * 2.3548, rel=0.03)


def test_a_pulse_in_the_window_does_not_move_the_baseline() -> None:
    times = np.array([[30.0, 150.0]])
    waveform = digitised(times, np.array([[800.0, 100.0]]), 240, noise=1.0)[0]
    hits = tof.find_hits(waveform, "matched", threshold=40).compute()
    assert hits.sizes["hit"] == 2
    np.testing.assert_allclose(hits["amplitude"], [800, 100], atol=3)
    signal = tof.subtract_baseline(waveform).squeeze()
    assert abs(float(signal[200:].mean())) < 0.5


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 7, 8, 16, 20, 64])
@pytest.mark.parametrize("method", ["cfd", "matched"])
def test_any_number_of_cores(method: str, cores: int) -> None:
    random = np.random.default_rng(cores)
    flat = digitised(random.uniform(80, 390, (60, 2)), random.uniform(80, 600, (60, 2)), 400, seed=cores).astype(
        np.int16
    )
    flat -= np.resize(BASE, 400).astype(np.int16)
    shift = random.integers(-300, 300, cores)
    told: dict[str, Any] = {"method": method, "threshold": 40, "saturation": (-np.inf, np.inf)}
    whole = everything(tof.find_hits(flat[:, None], baseline=0.0, **told).compute())
    moved = (flat + np.resize(shift, 400)).astype(np.int16)[:, None]
    given = everything(tof.find_hits(moved, baseline=shift[None] * 1.0, **told).compute())
    for name in whole:
        np.testing.assert_allclose(given[name], whole[name], rtol=1e-6, err_msg=name)
    own = tof.find_hits(moved, cores=cores, pretrigger=80, **told).compute()
    assert abs(own.sizes["hit"] - len(whole["time"])) <= 2


@pytest.mark.parametrize("method", ["cfd", "matched"])
def test_long_records_are_the_same_alone(method: str) -> None:
    """Longer than what is looked at in one go: records begin and end anywhere in it."""
    random = np.random.default_rng(3)
    length = 3 * 4096 - 5  # three words of bits, of which a tile has 32
    edges = np.tile([0.0, 63.5, 64, 127, 4096, 8192, length - 1], (40, 1))
    times = np.concatenate([random.uniform(0, length, (40, 60)), edges], axis=1)
    values = digitised(times, np.exp(random.uniform(3, 7, times.shape)), length, seed=4)[:, None]
    for told in ({}, {"baseline": 2046.2}, {"cores": 8}):
        whole = tof.find_hits(values, method, threshold=25, **told).compute()
        alone = [tof.find_hits(one[None], method, threshold=25, **told).compute() for one in values]
        assert whole.sizes["hit"] > 1500
        for name in ("time", "amplitude", "width", "saturated"):
            np.testing.assert_array_equal(np.concatenate([one[name] for one in alone]), whole[name])


def test_the_highest_samples_that_there_may_be() -> None:
    signal = np.zeros(300)
    signal[[100, 101, 200]] = 1e20, 1e20, 1e29  # a threshold is nothing beside them
    hits = tof.find_hits(signal, "leading_edge", threshold=10, baseline=0.0, polarity=1, dead_time=0).compute()
    assert hits.sizes["hit"] >= 2
    assert np.isfinite(hits["time"]).all()
    for dtype in (np.int32, np.int64, np.float32, np.float64):  # at the threshold, and one below it
        small = np.zeros(300, dtype)
        small[[100, 200, 250]] = 10, 9, 11
        for polarity in (-1, 1):
            found = tof.find_hits(polarity * small, threshold=10, baseline=0.0, polarity=polarity).compute()
            assert found.sizes["hit"] == 2


def test_empty() -> None:
    for shape in ((0, 4, 100), (3, 0, 100)):
        hits = tof.find_hits(np.zeros(shape, np.uint16), threshold=10).compute()
        assert hits.sizes["hit"] == 0
        assert hits.sizes["row_edge"] == 1
    quiet = tof.find_hits(np.full((5, 2, 100), 2048, np.uint16), threshold=10).compute()
    assert quiet["offset"].values.tolist() == [0] * 11


def test_absent_channels_have_no_hits(waveforms: xr.DataArray) -> None:
    there = np.ones((24, 4), np.bool_)
    there[3, 2] = there[10] = False
    gaps = waveforms.where(xr.DataArray(there, dims=("event", "channel")), 0).astype(np.uint16)
    gaps = gaps.assign_coords(present=(("event", "channel"), there))
    whole = tof.find_hits(waveforms, threshold=40, baseline=BASE[None]).compute()
    found = tof.find_hits(gaps, threshold=40, baseline=BASE[None]).compute()
    np.testing.assert_array_equal(np.diff(found["offset"]), np.where(there.ravel(), np.diff(whole["offset"]), 0))
    assert "present" in found.coords


def test_units_of_the_samples(waveforms: xr.DataArray) -> None:
    plain = tof.find_hits(waveforms, threshold=40, sample_interval=0.5, delay=3.0).compute()
    times = 100e-9 + 0.5e-9 * np.arange(400)
    timed = waveforms.assign_coords(sample=("sample", times, {"units": "s"}))
    np.testing.assert_allclose(tof.find_hits(timed, threshold=40, delay=3.0).compute()["time"], plain["time"] + 100)
    with pytest.raises(ArgumentError, match="units are 'm'"):
        tof.find_hits(waveforms.assign_coords(sample=("sample", times, {"units": "m"})), threshold=40)
    with pytest.raises(ArgumentError, match="evenly"):
        tof.find_hits(waveforms.assign_coords(sample=("sample", times**2, {"units": "s"})), threshold=40)


GOOD = np.full((2, 2, 100), 2048, np.uint16)


@pytest.mark.parametrize(
    ("waveforms", "options", "message"),
    [
        (GOOD, {"threshold": -1}, "threshold=-1"),
        (GOOD, {"threshold": np.nan}, "threshold=nan"),
        (GOOD, {"threshold": 1e-50}, "threshold=1e-50"),
        (GOOD, {"threshold": 1e39}, "threshold=1e\\+39"),
        (GOOD, {"dead_time": -1}, "dead_time=-1"),
        (GOOD, {"delay": 1000}, "shorter than the trace"),
        (GOOD, {"delay": 0}, "delay=0"),
        (GOOD, {"fraction": 0}, "fraction=0"),
        (GOOD, {"method": "cdf"}, "cfd"),
        (GOOD, {"polarity": 0}, "polarity=0"),
        (GOOD, {"pretrigger": 200}, "pretrigger=200"),
        (GOOD, {"pretrigger": 2}, "pretrigger=2"),
        (GOOD, {"baseline": np.nan}, "baseline"),
        (GOOD, {"baseline": np.zeros((3, 4))}, "baseline"),
        (GOOD, {"baseline": np.zeros((1, 0))}, "baseline"),
        (GOOD, {"baseline": -1e39}, "baseline"),
        (GOOD, {"method": "matched", "template": [1, 2]}, "template"),
        (GOOD, {"sample_interval": 0}, "sample_interval=0"),
        (GOOD.astype(complex), {}, "complex"),
        (GOOD.astype(bool), {}, "bool"),
        (GOOD[None], {}, "1 to 3 dimensions"),
        ("text", {}, "str"),
        (xr.DataArray(GOOD, dims=("event", "row", "sample")), {}, "row"),
        (np.zeros((2, 2, 0)), {}, "trace of 0"),
    ],
)
def test_bad_calls(waveforms: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        tof.find_hits(waveforms, **{"threshold": 10, **options})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e31])
def test_what_is_no_number_is_an_error_and_says_where(bad: float) -> None:
    values = GOOD.astype(np.float32)
    values[1, 0, 7] = bad
    with pytest.raises(ArgumentError, match="sample 7 of event 1, channel 0"):
        tof.find_hits(values, threshold=10).compute()


def test_hits_are_a_dask_collection(waveforms: xr.DataArray) -> None:
    lazy = tof.find_hits(waveforms.chunk({"event": 5}), threshold=40)
    whole = lazy.compute()
    assert dask.is_dask_collection(lazy)
    assert (len(lazy), lazy.channels, lazy.npartitions, lazy.events) == (24, 4, 5, (5, 5, 5, 5, 4))
    kept = lazy.persist()
    xr.testing.assert_identical(kept.compute(), whole)
    (together,) = dask.compute(lazy)
    xr.testing.assert_identical(together, whole)
    times = lazy["time"]
    assert isinstance(times, da.Array)
    np.testing.assert_array_equal(times.compute(), whole["time"])
    assert tof.find_hits(waveforms.chunk({"event": 5}), threshold=40)._name == lazy._name
    assert tof.find_hits(waveforms.chunk({"event": 5}), threshold=41)._name != lazy._name
    with pytest.raises(LclsError, match="amplitude"):
        lazy["height"]


def test_windows_of_a_run_against_its_truth(tmp_path: Path) -> None:
    import zarr

    lcls_dask.simulate(tmp_path / "run", "tof", events=1500, seed=4)
    run = lcls_dask.open_run(tmp_path / "run")
    node = run.dataset(group="/hsd", chunks=None)
    truth = zarr.open_group(tmp_path / "run" / "truth.zarr", mode="r")
    baseline = tof.baseline_of(tof.windows(node, waveforms=True))
    np.testing.assert_allclose(baseline, np.asarray(truth["baseline"]), atol=0.1)
    with pytest.raises(ArgumentError, match="baseline"):
        tof.find_hits(node, threshold=60)
    hits = tof.find_hits(tof.windows(node, events=400), "matched", threshold=60, baseline=baseline)
    found = hits.compute()
    lazily = tof.find_hits(run.dataset(group="/hsd"), "matched", threshold=60, baseline=baseline)
    xr.testing.assert_identical(found, lazily.compute())
    offset, times = np.asarray(truth["hits.offset"]), np.asarray(truth["hits.time"]) * 1e9
    written = np.asarray(truth["written"]).ravel()
    own = np.isin(np.asarray(truth["timestamp"]), node["timestamp"].values)
    row = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
    gap = np.diff(times, prepend=-1e9, append=1e9)
    gap[:-1][np.diff(row, prepend=-1) > 0] = 1e9
    alone = (np.minimum(gap[:-1], gap[1:]) > 6) & written[row] & np.repeat(own, 16)[row] & (times > 25)
    renumber = np.cumsum(own) - 1
    mine = renumber[row // 16] * 16 + row % 16
    edges = found["offset"].values
    away = []
    for r, t in zip(mine[alone], times[alone], strict=True):
        near = found["time"].values[edges[r] : edges[r + 1]] - t
        assert near.size
        away.append(near[np.argmin(np.abs(near))])
    assert len(away) > 5000
    assert np.abs(away).max() < 0.1
    assert np.std(away) < 0.012


def test_windows_give_what_whole_waveforms_give(waveforms: xr.DataArray) -> None:
    stream = tof.fex_sparsify(waveforms, 2020, 2072, 24, 24)
    windows = tof.decode_fex(stream)
    for method in METHODS:
        told = {"method": method, "threshold": 60, "baseline": BASE[None]}
        sparse, whole = tof.find_hits(windows, **told).compute(), tof.find_hits(waveforms, **told).compute()
        np.testing.assert_array_equal(sparse["offset"], whole["offset"])
        np.testing.assert_allclose(sparse["time"], whole["time"], atol=0.02)


def test_psana_tells_the_same_times() -> None:
    pytest.importorskip("psana", reason="psana is not installed: hits were NOT compared with PyCFD")
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    spec = find_spec("psana")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(next(iter(spec.submodule_search_locations))) / "hexanode" / "PyCFD.py"
    if not path.exists():
        pytest.skip("this psana has no PyCFD: hits were NOT compared with it")
    told = spec_from_file_location("pycfd", path)
    assert told is not None
    assert told.loader is not None
    module = module_from_spec(told)
    told.loader.exec_module(module)
    times = np.random.default_rng(0).uniform(100, 101, (300, 1))
    waveforms = digitised(times, np.full((300, 1), 500.0), 200, noise=1.0)
    told_by = {"sample_interval": DT, "delay": 6.01 * DT, "fraction": 0.6, "threshold": 40, "walk": 0,
               "polarity": "Negative", "timerange_low": -1, "timerange_high": 1e9, "offset": 0}  # fmt: skip
    theirs = module.PyCFD(told_by)
    signal = -tof.subtract_baseline(waveforms[:, None])[:, 0].values
    axis = np.arange(200) * DT
    peer = np.array([theirs.CFD(one.astype(float), axis)[0] for one in signal])
    ours = tof.find_hits(waveforms[:, None], threshold=40, fraction=0.6, delay=6 * DT).compute()["time"].values
    # its cubic against our line through the same four samples: a constant, and noise
    assert abs((ours - peer).mean()) < 0.03
    assert (ours - peer).std() < 0.01
