"""Reductions: against NumPy and long double, in any chunks and order, with the limits that they must notice."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from lcls_dask import tof
from lcls_dask.errors import ArgumentError
from lcls_dask.reduce.ragged import Ragged, concatenate
from lcls_dask.reduce.reduction import Reduction, Running
from lcls_dask.tof import chain
from lcls_dask.tof.covariance import covariance_reduction

Array = np.ndarray[Any, Any]


def hits_of(counts: Array, times: Array, channels: int = 2, **events: Array) -> xr.Dataset:
    """A CSR Dataset of hits: counts of each (event, channel)."""
    offset = np.concatenate([[0], np.cumsum(counts)])
    coords = {name: ("event", values) for name, values in events.items()}
    return xr.Dataset(
        {"offset": ("row_edge", offset), "time": ("hit", times)}, {"channel": np.arange(channels), **coords}
    )


def in_blocks(hits: xr.Dataset, lengths: list[int]) -> Ragged:
    """The same in blocks of events."""
    from dask.delayed import delayed

    channels, first, blocks = hits.sizes["channel"], 0, []
    for length in lengths:
        edge = hits["offset"].values[first * channels : (first + length) * channels + 1]
        blocks.append(delayed(hits_of)(np.diff(edge), hits["time"].values[edge[0] : edge[-1]], channels))
        first += length
    return Ragged.from_blocks(blocks, lengths, hits_of(np.zeros(0, int), np.zeros(0), channels))


@pytest.fixture(scope="module")
def hits() -> xr.Dataset:
    random = np.random.default_rng(0)
    counts = random.poisson(3, 60)
    return hits_of(counts, random.uniform(-5, 105, counts.sum()))


LENGTHS = [30], [1] * 30, [0, 7, 0, 13, 10, 0]


@pytest.mark.parametrize("edges", [np.linspace(0, 100, 51), np.array([0, 1, 1.5, 40, 99.5])])
def test_tof_spectrum_is_numpys_histogram(hits: xr.Dataset, edges: Array) -> None:
    whole = tof.tof_spectrum(hits, edges)
    channel = np.repeat(np.arange(60) % 2, np.diff(hits["offset"]))
    for c in range(2):
        mine = hits["time"].values[channel == c]
        np.testing.assert_array_equal(whole[c], np.histogram(mine, edges)[0])
        assert whole["outside"][c] == ((mine < edges[0]) | (mine > edges[-1])).sum()
    assert whole.dtype == np.int64
    for lengths in LENGTHS:
        lazy = tof.tof_spectrum(in_blocks(hits, lengths), edges)
        assert lazy.chunks is not None
        xr.testing.assert_identical(lazy.compute(), whole)


def test_hits_on_edges_are_where_numpy_puts_them() -> None:
    edges = np.arange(0, 10.1, 0.1)
    times = np.concatenate([edges, np.nextafter(edges, -1), np.nextafter(edges, 99), [np.nan, np.inf, -np.inf]])
    counts = tof.tof_spectrum(hits_of(np.array([len(times), 0]), times), edges)
    np.testing.assert_array_equal(counts[0], np.histogram(times[np.isfinite(times)], edges)[0])
    assert int(counts.sum() + counts["outside"].sum()) == len(times)


def test_contingent_and_normalised(hits: xr.Dataset) -> None:
    random = np.random.default_rng(1)
    energy = xr.DataArray(random.gamma(4, 0.2, 30), dims="event", attrs={"units": "mJ"}, name="energy")
    energy[4] = np.nan
    step = xr.DataArray(np.arange(30) // 10, dims="event", name="step")
    edges = np.linspace(0, 100, 11)
    per_step = tof.tof_spectrum(hits, edges, by=step)
    assert per_step.dims == ("step", "channel", "tof")
    assert per_step["shots"].values.tolist() == [10, 10, 10]
    np.testing.assert_array_equal(per_step.sum("step"), tof.tof_spectrum(hits, edges))
    bins = np.array([0.0, 0.6, 0.9, 1.2])
    binned = tof.tof_spectrum(in_blocks(hits, [12, 18]), edges, by=energy, bins=bins, pulse_energy=energy)
    assert binned.attrs["units"] == "1/mJ"
    rows = hits["offset"].values
    for g, (low, high) in enumerate(itertools.pairwise(bins)):
        mine = np.flatnonzero((energy >= low) & (energy < high))
        times = np.concatenate([hits["time"].values[rows[2 * e] : rows[2 * e + 1]] for e in mine])
        np.testing.assert_allclose(binned[g, 0], np.histogram(times, edges)[0] / energy.values[mine].sum())
        assert binned["shots"][g] == len(mine)


def test_energy_spectrum_keeps_counts() -> None:
    random = np.random.default_rng(2)
    counts = random.poisson(1000, (3, 400))
    bounds = np.linspace(25.0, 425.0, 401)
    names = {"tof_low": ("tof", bounds[:-1]), "tof_high": ("tof", bounds[1:]), "tof": (bounds[:-1] + bounds[1:]) / 2}
    times = xr.DataArray(counts, names, ("channel", "tof"))
    per_channel = xr.DataArray([590.0, 600.0, 610.0], dims="channel")
    for edges in (np.geomspace(1, 1e6, 300), np.linspace(2, 1e5, 7)):
        energy = tof.energy_spectrum(times, edges, length=per_channel, t0=20.0)
        bound = [tof.energy_to_tof(edges[[0, -1]], L, 20.0) for L in (590, 600, 610)]
        assert all(low > 425 and high < 25 for low, high in bound) or edges[0] > 1
        if edges[0] == 1:
            np.testing.assert_allclose(energy.sum("energy"), counts.sum(axis=1), rtol=1e-12)
        density = tof.energy_spectrum(times, edges, length=per_channel, t0=20.0, density=True)
        np.testing.assert_allclose((density * np.diff(edges)).sum("energy"), energy.sum("energy"), rtol=1e-12)
        assert density.attrs["units"] == "1/eV"
    lazy = tof.energy_spectrum(times.chunk({"tof": 100}), edges, length=per_channel, t0=20.0)
    np.testing.assert_allclose(lazy.compute(), energy)


def test_energy_spectrum_of_hits_and_of_their_times_agree() -> None:
    random = np.random.default_rng(3)
    energies = random.uniform(50, 300, 200_000)
    times = tof.energy_to_tof(energies, 590, 20)
    hits = hits_of(np.array([100_000, 100_000]), times)
    edges = np.linspace(50, 300, 26)
    exact = tof.energy_spectrum(hits, edges, length=590, t0=20)
    np.testing.assert_array_equal(exact[0], np.histogram(energies[:100_000], edges)[0])
    fine = tof.tof_spectrum(hits, np.linspace(times.min(), times.max(), 20_001))
    shared = tof.energy_spectrum(fine, edges, length=590, t0=20)
    np.testing.assert_allclose(shared, exact, atol=15)
    assert float(shared.sum()) == pytest.approx(200_000, rel=1e-12)


def reference(x: Array, y: Array, ddof: int = 1) -> Array:
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    return ((x - x.mean(0)).T @ (y - y.mean(0)) / (len(x) - ddof)).astype(np.float64)  # type: ignore[no-any-return]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), min_size=1, max_size=8), st.sampled_from([0.0, 1e6, -3e4])
)
def test_covariance_is_stable_for_any_chunks_and_order(seed: int, lengths: list[int], mean: float) -> None:
    random = np.random.default_rng(seed)
    events = sum(lengths) + 5
    x = mean + random.standard_normal((events, 4))
    y = random.standard_normal((events, 3)) + 0.5 * x[:, :3]
    control = mean + random.standard_normal(events) + x[:, 0]
    reduction = covariance_reduction(1, (4, 3), 0, 1, False)
    edges = np.cumsum([0, *lengths, 5])
    spans = [slice(a, b) for a, b in itertools.pairwise(edges)]
    random.shuffle(spans)
    blocks = [(x[s], y[s], None, np.zeros(s.stop - s.start, int)) for s in spans]
    expected = reference(x, y)
    scale = np.sqrt(np.outer(x.var(0), y.var(0))).max() + 1e-300
    for result in (reduction(blocks), reduction.lazily(blocks).compute(scheduler="synchronous")):
        np.testing.assert_allclose(result[0], expected, atol=1e-10 * scale)
    running = Running(reduction)
    for block in blocks:
        running.merge(Running(reduction).update(*block))
    np.testing.assert_allclose(running.result()[0], expected, atol=1e-10 * scale)
    arrays = [xr.DataArray(one, dims=("event", dim)) for one, dim in ((x, "a"), (y, "b"))]
    found = tof.partial_covariance_map(*[one.chunk({"event": 3}) for one in arrays], control=control).compute()
    c = control[:, None]
    part = expected - reference(x, c) @ reference(c, y) / reference(c, c)
    np.testing.assert_allclose(found, part * (events - 1) / (events - 2), atol=1e-9 * scale)


def test_counts_are_exact_in_float32() -> None:
    counts = np.random.default_rng(0).poisson(0.3, (3000, 40)).astype(np.float32)
    x = xr.DataArray(counts, dims=("event", "tof"))
    np.testing.assert_allclose(tof.covariance_map(x), np.cov(counts.T.astype(float)), atol=1e-12)
    np.testing.assert_allclose(tof.covariance_map(x.chunk({"event": 700})), np.cov(counts.T.astype(float)), atol=1e-12)
    large = xr.DataArray(counts.astype(np.int64) * 10_000_000, dims=("event", "tof"))
    np.testing.assert_allclose(tof.covariance_map(large), np.cov(large.T.values.astype(float)), rtol=1e-9, atol=1)


def test_partial_covariance_takes_out_the_pulse_energy() -> None:
    random = np.random.default_rng(4)
    energy = random.gamma(4, 0.25, 20_000)
    pairs = random.poisson(0.2 * energy)
    x = np.stack([random.poisson(2 * energy) + pairs, random.poisson(3 * energy) + pairs], axis=1)
    spectra = xr.DataArray(x, dims=("event", "tof"))
    plain, partly = tof.covariance_map(spectra), tof.partial_covariance_map(spectra, control=energy)
    assert plain[0, 1] > 1.5
    assert partly[0, 1] == pytest.approx(0.2, abs=0.08)
    gaps = energy.copy()
    gaps[::7] = np.nan
    kept = spectra[~np.isnan(gaps)]
    np.testing.assert_allclose(
        tof.partial_covariance_map(spectra, control=gaps),
        tof.partial_covariance_map(kept, control=energy[~np.isnan(gaps)]),
    )
    two = tof.partial_covariance_map(spectra, control=np.stack([energy, random.standard_normal(20_000)], 1))
    assert two[0, 1] == pytest.approx(0.2, abs=0.08)
    groups = tof.covariance_map(spectra, by=energy, bins=np.quantile(energy, np.linspace(0, 1, 41)))
    assert groups.dims == ("group", "tof", "tof_2")
    assert groups.mean("group")[0, 1] < 0.3


def test_covariance_that_cannot_be() -> None:
    x = xr.DataArray(np.random.default_rng(0).standard_normal((5, 2)), dims=("event", "tof"))
    for flat in (np.full(5, 0.7), np.full(5, 1e9), np.stack([np.arange(5.0)] * 2, 1)):
        assert np.isnan(tof.partial_covariance_map(x, control=flat)).all()
    assert np.isnan(tof.covariance_map(x[:1])).all()
    assert np.isnan(tof.covariance_map(x[:0])).all()
    assert np.isnan(tof.partial_covariance_map(x[:2], control=np.arange(2.0))).all()
    gap = x.copy()
    gap[2, 0] = np.nan
    assert np.isnan(tof.covariance_map(gap)).values.tolist() == [[True, True], [True, False]]
    with pytest.raises(ArgumentError, match="5 events and y 4"):
        tof.covariance_map(x, x[:4])
    with pytest.raises(ArgumentError, match="control"):
        tof.partial_covariance_map(x)
    with pytest.raises(ArgumentError, match="control: has 4"):
        tof.partial_covariance_map(x, control=np.zeros(4))
    with pytest.raises(ArgumentError, match="ndarray"):
        tof.covariance_map(x.values)  # type: ignore[arg-type]


ANGLES = np.arange(16) * 22.5


def test_errors_of_an_angular_fit_are_right() -> None:
    random = np.random.default_rng(5)
    mean = 60 * (1 + 2 / 4 * (1 + 3 * 0.7 * np.cos(np.deg2rad(2 * (ANGLES - 33)))))
    counts = xr.DataArray(random.poisson(mean, (600, 16)), dims=("trial", "channel"))
    fit = tof.angular_fit(counts, ANGLES, beta=2)
    true = {"degree": 3 * 2 * 0.7 / 6, "tilt": 33.0, "intensity": 90.0}
    true["degree"] = 0.7
    for name, value in true.items():
        pull = (fit[name] - value) / fit[f"{name}_error"]
        assert float(pull.std()) == pytest.approx(1, abs=0.12), name
        assert abs(float(pull.mean())) < 0.2, name
    assert float(fit["chi2"].mean()) == pytest.approx(1, abs=0.1)
    line = tof.angular_fit(counts, ANGLES, polarisation=0.7)
    assert float(line["beta"].mean()) == pytest.approx(2, abs=0.05)
    lazy = tof.angular_fit(counts.chunk({"trial": 100, "channel": 8}), ANGLES, beta=2)
    xr.testing.assert_allclose(lazy.compute(), fit)


def test_angular_fit_with_masked_and_unequal_channels() -> None:
    exact = 100 * (1 + 0.4 * np.cos(np.deg2rad(2 * (ANGLES + 50))))
    gain = np.linspace(0.5, 1.5, 16)
    counts = exact * gain
    counts[3] = np.nan
    counts[9] = 1e6
    fit = tof.angular_fit(counts, ANGLES, beta=1.0, efficiency=gain, mask=np.arange(16) != 9)
    assert float(fit["anisotropy"]) == pytest.approx(0.4)
    assert float(fit["degree"]) == pytest.approx(0.4 * 5 / 3)
    assert float(fit["tilt"]) == pytest.approx(-50)
    weighted = tof.angular_fit(exact, ANGLES, error=np.sqrt(exact))
    assert float(weighted["tilt"]) == pytest.approx(-50)
    assert float(tof.angular_fit(exact, ANGLES, beta=-1.0)["tilt"]) == pytest.approx(40)
    nothing = (exact[:2], ANGLES[:2]), (exact, np.zeros(16)), (np.zeros(16), ANGLES), (np.full(16, np.nan), ANGLES)
    for counts, angles in nothing:
        assert all(np.isnan(one) for one in tof.angular_fit(counts, angles).data_vars.values())
    bad: list[dict[str, Any]] = [{"beta": 3}, {"beta": 0}, {"polarisation": 0}, {"beta": 1, "polarisation": 1}]
    bad += [{"mask": np.ones(3, bool)}, {"mask": np.ones(16)}, {"efficiency": np.ones(3)}]
    for options in bad:
        with pytest.raises(ArgumentError):
            tof.angular_fit(exact, ANGLES, **options)


def test_dead_time_is_corrected() -> None:
    random = np.random.default_rng(6)
    shots, bins, width, dead = 40_000, 200, 0.5, 3.2
    rate = (
        0.004
        + 0.06 * np.exp(-0.5 * ((np.arange(bins) - 80) / 4) ** 2)
        + 0.03 * np.exp(-0.5 * ((np.arange(bins) - 95) / 3) ** 2)
    )
    counts = np.zeros(bins)
    number = random.poisson(rate.sum(), shots)
    for several in number:
        times = np.sort((random.choice(bins, several, p=rate / rate.sum()) + random.random(several)) * width)
        last = -np.inf
        for t in times:
            if t - last >= dead:
                counts[int(t / width)] += 1
                last = t
    true = shots * rate
    lost = 1 - counts[88:100].sum() / true[88:100].sum()
    assert lost > 0.1
    fixed = tof.deadtime_correct(counts, shots, dead, bin_width=width)
    error = np.sqrt(np.maximum(counts, 1)) * fixed / np.maximum(counts, 1)
    pull = (fixed - true) / error
    assert float((pull**2).mean()) == pytest.approx(1, abs=0.35)
    assert float(fixed.sum()) == pytest.approx(true.sum(), rel=0.01)
    # narrow bins of an even rate: n = m / (1 - m tau)
    measured = np.full(4000, 10.0)
    even = tof.deadtime_correct(measured, 10_000, 40.0, bin_width=0.1)[1000:]
    np.testing.assert_allclose(even / 1000, 0.01 / (1 - 0.01 * 40), rtol=1e-3)


def test_dead_time_that_cannot_be() -> None:
    counts = np.array([5.0, 10.0, 3.0])
    assert np.isnan(tof.deadtime_correct(counts, 10, 5.0, bin_width=5.0)[1])
    np.testing.assert_array_equal(tof.deadtime_correct(counts, 100, 0.0, bin_width=1.0), counts)
    for dead, width in ((-1.0, 1.0), (0.5, 1.0), (np.nan, 1.0)):
        with pytest.raises(ArgumentError):
            tof.deadtime_correct(counts, 100, dead, bin_width=width)
    with pytest.raises(ArgumentError, match="bin_width"):
        tof.deadtime_correct(counts, 100, 1.0)


def test_dead_time_of_shots_that_are_not_alike() -> None:
    """Of all together too few come back; by grades of their intensity, as the whole chain does it, nearly all do."""
    random = np.random.default_rng(8)
    energy = random.gamma(4, 0.25, 200_000)
    hits = random.poisson(0.5 * energy)  # all within one dead time
    grades = chain._grades(energy)
    assert np.unique(grades).size == chain.GRADES
    shots = np.bincount(grades)
    counts = np.zeros((len(shots), 3), np.int64)
    counts[:, 1] = np.bincount(grades, hits > 0)
    graded = tof.deadtime_correct(counts, shots, 2.0, bin_width=2.0).sum()
    together = tof.deadtime_correct(counts.sum(axis=0), shots.sum(), 2.0, bin_width=2.0).sum()
    assert float(graded) == pytest.approx(hits.sum(), rel=0.01)
    assert float(together) < 0.98 * hits.sum()


@pytest.mark.parametrize(("lacking", "own"), [(1, False), (chain.GRADE_EVENTS, True)])
def test_a_few_shots_without_an_energy_are_no_grade(lacking: int, own: bool) -> None:
    """Of one shot no rate can be told: it would make the whole run's correction NaN."""
    energy = np.linspace(1, 2, 4 * chain.GRADE_EVENTS)
    energy[:lacking] = np.nan
    assert (chain._grades(energy)[0] == -1) == own


def test_delay_lines() -> None:
    random = np.random.default_rng(7)
    events, rows, truth = 400, [], []
    for _ in range(events):
        n = random.integers(0, 4)
        mcp = np.sort(random.uniform(500, 3000, n))
        place = random.uniform(-20, 20, (n, 2))
        truth.append(np.column_stack([mcp, place]))
        ends = [
            mcp + (150 + sign * place[:, axis] / 0.4) / 2 + random.normal(0, 0.2, n)
            for axis in (0, 1)
            for sign in (1, -1)
        ]
        if n and random.random() < 0.3:
            lost = random.integers(4)
            ends[lost] = np.delete(ends[lost], random.integers(n))
        rows += [np.sort(one) for one in (*ends, mcp)]
    counts = np.array([len(row) for row in rows])
    hits = hits_of(counts, np.concatenate(rows), 5).assign_coords(channel=["u1", "u2", "v1", "v2", "mcp"])
    named = {name: name for name in ("u1", "u2", "v1", "v2", "mcp")}
    found = tof.dld_reconstruct(hits, named, 150, 150, 1.5, 0.4, 0.4, radius=40).compute()
    edges = found["offset"].values
    total = sum(map(len, truth))
    assert found.sizes["hit"] > 0.97 * total
    away = []
    for event, true in enumerate(truth):
        for i in range(*edges[event : event + 2]):
            at = np.argmin(np.abs(true[:, 0] - found["time"].values[i]))
            away.append([found["x"].values[i] - true[at, 1], found["y"].values[i] - true[at, 2]])
    off = np.hypot(*np.array(away).T)
    assert (off < 1).mean() > 0.99
    assert not found["complete"].all()
    whole = tof.dld_reconstruct(hits, named, 150, 150, 1.5, 0.4, 0.4, recover=False).compute()
    assert whole["complete"].all()
    assert whole.sizes["hit"] == found["complete"].sum()
    with pytest.raises(ArgumentError, match="mcp"):
        tof.dld_reconstruct(hits, {"u1": "u1"}, 150, 150, 1)
    with pytest.raises(ArgumentError, match="positive"):
        tof.dld_reconstruct(hits, named, -1, 150, 1)


def test_event_spectra(hits: xr.Dataset) -> None:
    edges = np.linspace(0, 100, 6)
    spectra = tof.event_spectra(in_blocks(hits, [10, 20]), edges)
    assert spectra.chunks[0] == (10, 20)
    np.testing.assert_array_equal(spectra.sum("event"), tof.tof_spectrum(hits, edges))
    xr.testing.assert_identical(spectra.compute(), tof.event_spectra(hits, edges))


def test_spectra_that_cannot_be(hits: xr.Dataset) -> None:
    for edges in ([1.0], [2.0, 1.0], [0.0, np.nan], np.zeros((2, 2))):
        with pytest.raises(ArgumentError, match="edges"):
            tof.tof_spectrum(hits, edges)
    with pytest.raises(ArgumentError, match="by"):
        tof.tof_spectrum(hits, [0, 1], by=xr.DataArray(np.zeros(3), dims="event"))
    with pytest.raises(ArgumentError, match="pulse_energy"):
        tof.tof_spectrum(hits, [0, 1], pulse_energy=np.zeros(3))
    with pytest.raises(ArgumentError, match="Ragged"):
        tof.tof_spectrum(np.zeros(3), [0, 1])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no variable offset"):
        tof.tof_spectrum(xr.Dataset(), [0, 1])
    with pytest.raises(ArgumentError, match="tof_low"):
        tof.energy_spectrum(xr.DataArray(np.zeros(3), dims="tof"), [1, 2], length=590)


def test_nothing_to_reduce() -> None:
    nothing: Reduction[int, int] = Reduction(sum, sum, abs)
    with pytest.raises(ArgumentError, match="nothing"):
        nothing([])
    with pytest.raises(ArgumentError, match="at least one block"):
        nothing.lazily([])


def test_blocks_one_behind_the_other(hits: xr.Dataset) -> None:
    parts = in_blocks(hits, [4, 0, 26])
    xr.testing.assert_equal(
        concatenate(block.compute() for block in parts.blocks)[["offset", "time"]], hits[["offset", "time"]]
    )
    late = parts.map_blocks(partial(_shifted, by=10.0))
    np.testing.assert_array_equal(late.compute()["time"], hits["time"] + 10)


def _shifted(block: xr.Dataset, by: float) -> xr.Dataset:
    return block.assign(time=block["time"] + by)
