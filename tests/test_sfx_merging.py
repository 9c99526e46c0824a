"""From crystals to merged intensities: integration, merging against the truth and gemmi, figures of merit, files."""

import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import gemmi
import numpy as np
import pytest
import sfx_run as run
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcls_dask import sfx
from lcls_dask.errors import ArgumentError, FormatError, RunNotFoundError, TargetExistsError
from lcls_dask.reduce.ragged import Ragged, empty_like
from lcls_dask.sfx.merging import pack, possible, to_asu, unpack

Array = np.ndarray[Any, Any]


def reflections_of(hkl: Array, intensity: Array, sigma: Array, edges: Array, cell: sfx.Cell = run.CELL) -> xr.Dataset:
    return xr.Dataset(
        {
            "offset": ("row_edge", np.asarray(edges, np.int64)),
            **{name: ("reflection", np.asarray(hkl[:, i], np.int32)) for i, name in enumerate("hkl")},
            "intensity": ("reflection", np.asarray(intensity, np.float64)),
            "sigma": ("reflection", np.asarray(sigma, np.float64)),
        },
        attrs={"cell": list(cell.parameters), "space_group": cell.space_group},
    )


def crystals_of(
    count: int, each: int, seed: int = 0, d_min: float = 4.0
) -> tuple[xr.Dataset, dict[tuple[int, ...], float]]:
    """Measurements of partial reflections, anywhere in reciprocal space, on scales of their own; the truth."""
    random = np.random.default_rng(seed)
    unique = to_asu(possible(run.CELL, d_min), run.CELL)
    truth = random.exponential(100, len(unique))
    rotations = np.array(
        [np.array(op.rot) // 24 for op in run.CELL.gemmi_group.operations().derive_symmorphic().sym_ops]
    )
    hkl, intensity = [], []
    for _ in range(count):
        chosen = random.choice(len(unique), each, replace=False)
        turned = np.einsum("ni,nij->nj", unique[chosen], rotations[random.integers(len(rotations), size=each)])
        hkl.append(turned * random.choice([-1, 1], (each, 1)))
        intensity.append(random.uniform(0.5, 2) * random.uniform(0, 2, each) * truth[chosen])
    made = reflections_of(
        np.concatenate(hkl), np.concatenate(intensity), np.ones(count * each), np.arange(count + 1) * each
    )
    return made, dict(zip(map(tuple, unique.tolist()), truth, strict=True))


def indices(merged: xr.Dataset) -> Array:
    return np.stack([merged[name].values for name in "hkl"], axis=1)


def correlation(merged: xr.Dataset, truth: dict[tuple[int, ...], float]) -> float:
    true = [truth[tuple(one)] for one in indices(merged).tolist()]
    return float(np.corrcoef(merged["intensity"], true)[0, 1])


def gemmi_merged(reflections: xr.Dataset, kind: Any) -> tuple[gemmi.Intensities, Any]:
    cell = sfx.as_cell(reflections.attrs["cell"], reflections.attrs["space_group"])
    hkl = np.stack([reflections[name].values for name in "hkl"], axis=1).astype(np.int32)
    data = gemmi.Intensities()
    data.set_data(cell.gemmi_cell, cell.gemmi_group, hkl, reflections["intensity"].values, reflections["sigma"].values)
    data.remove_systematic_absences()
    data.prepare_for_merging(kind)
    statistics = data.calculate_merging_stats(None)
    data.merge_in_place(kind)
    return data, statistics


@pytest.fixture(scope="module")
def laue(real_data: Path) -> xr.Dataset:
    """Real unmerged measurements of photoactive yellow protein."""
    mtz = gemmi.read_mtz_file(str(real_data / "merging/careless/pyp_2ms.mtz"))
    table = {column.label: np.array(column) for column in mtz.columns}
    order = np.argsort(table["BATCH"], kind="stable")
    _, count = np.unique(table["BATCH"], return_counts=True)
    hkl = np.stack([table[name][order] for name in "HKL"], axis=1)
    cell = sfx.Cell(tuple(mtz.cell.parameters), mtz.spacegroup.xhm())
    edges = np.concatenate([[0], np.cumsum(count)])
    return reflections_of(hkl, table["I"][order], table["SigI"][order], edges, cell)


@pytest.mark.parametrize("anomalous", [False, True])
def test_as_gemmi_merges(laue: xr.Dataset, anomalous: bool) -> None:
    kind = gemmi.DataType.Anomalous if anomalous else gemmi.DataType.Mean
    theirs, _ = gemmi_merged(laue, kind)
    ours = sfx.merge(laue, scale=0, weights="sigma", anomalous=anomalous)
    sign = theirs.isign_array[:, None] if anomalous else 1
    order = np.argsort(pack(theirs.miller_array * np.where(sign == -1, -1, 1)))
    np.testing.assert_array_equal(indices(ours), (theirs.miller_array * np.where(sign == -1, -1, 1))[order])
    np.testing.assert_allclose(ours["intensity"], theirs.value_array[order], rtol=1e-6)
    np.testing.assert_allclose(ours["sigma"], theirs.sigma_array[order], rtol=1e-6)
    np.testing.assert_array_equal(ours["measurements"], theirs.nobs_array[order])


def test_as_reciprocalspaceship_merges(laue: xr.Dataset, tmp_path: Path) -> None:
    python = Path(sys.prefix, "referee", "bin", "python")  # an environment of its own: it takes an older pandas
    if not python.exists():
        pytest.skip("reciprocalspaceship is not installed (make test does so): merging is NOT compared with it")
    known = sfx.as_cell(laue.attrs["cell"], laue.attrs["space_group"])
    np.savez(
        tmp_path / "measured.npz",
        cell=known.gemmi_cell.parameters,
        space_group=known.gemmi_group.xhm(),
        **{name: laue[name].values for name in ("h", "k", "l", "intensity", "sigma")},
    )
    script = Path(__file__).with_name("merged_by_reciprocalspaceship.py")
    files = tmp_path / "measured.npz", tmp_path / "merged.npz"
    subprocess.run([python, script, *files], check=True, timeout=120)
    theirs = np.load(tmp_path / "merged.npz")
    place = {key: row for row, key in enumerate(zip(*(theirs[name].tolist() for name in "HKL"), strict=True))}
    ours = sfx.merge(laue, scale=0, weights="sigma")
    assert len(place) == ours.sizes["reflection"]
    rows = [place[tuple(one)] for one in indices(ours).tolist()]
    np.testing.assert_allclose(ours["intensity"], theirs["I"][rows], rtol=1e-5)
    np.testing.assert_allclose(ours["sigma"], theirs["SIGI"][rows], rtol=1e-5)
    np.testing.assert_array_equal(ours["measurements"], theirs["N"][rows])


def test_correlation_rises_as_theory_says() -> None:
    measured, truth = crystals_of(800, 60, d_min=5.0)
    many = [50, 100, 200, 400, 800]
    found = []
    for count in many:
        part = measured.isel(row_edge=slice(0, count + 1), reflection=slice(0, 60 * count))
        merged = sfx.merge(part, scale=0)
        figures = sfx.figures_of_merit(merged, 5)
        found.append(float(figures["cc_half_overall"]))
        assert float(figures["cc_star_overall"]) == pytest.approx(correlation(merged, truth), abs=0.05)
    assert (np.diff(found) > 0).all()
    # cc = s / (s + e / n): odds of the signal grow with the number of crystals
    odds = np.array(found) / (1 - np.array(found))
    assert np.polyfit(np.log(many[1:]), np.log(odds[1:]), 1)[0] == pytest.approx(1.0, abs=0.2)


def test_scaling_and_outliers() -> None:
    measured, truth = crystals_of(300, 200, seed=1)
    plain, scaled = (correlation(sfx.merge(measured, scale=rounds), truth) for rounds in (0, 2))
    assert scaled > plain
    spoilt = measured.copy(deep=True)
    key = pack(to_asu(np.stack([measured[name].values for name in "hkl"], axis=1), run.CELL))
    wrong = np.unique(key, return_index=True)[1][::5]
    spoilt["intensity"].values[wrong] += 1e5
    assert correlation(sfx.merge(spoilt, scale=0), truth) < 0.5
    kept = sfx.merge(spoilt, scale=0, reject=6)
    assert correlation(kept, truth) > plain - 0.02
    assert kept.attrs["measurements_rejected"] == pytest.approx(len(wrong), rel=0.1)
    opposed = measured.copy(deep=True)
    opposed["intensity"].values[:200] *= -1
    assert sfx.merge(opposed).attrs["crystals_left_out"] == 1


@cache
def measured() -> xr.Dataset:
    return crystals_of(40, 50, seed=2)[0]


@cache
def merged_whole(rounds: int) -> xr.Dataset:
    return sfx.merge(measured(), scale=rounds, reject=5)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 40), max_size=6), st.permutations(range(7)), st.sampled_from([0, 2]))
def test_any_partition_gives_the_same(cuts: list[int], order: list[int], rounds: int) -> None:
    whole = measured()
    edges = whole["offset"].values
    parts = []
    for first, last in pairwise([0, *sorted(cuts), 40]):
        part = whole.isel(reflection=slice(edges[first], edges[last])).drop_vars("offset")
        parts.append(part.assign(offset=("row_edge", edges[first : last + 1] - edges[first])))
    parts = [parts[i] for i in order if i < len(parts)]
    crystals = [part.sizes["row_edge"] - 1 for part in parts]
    lazy = Ragged.from_blocks([dask.delayed(part) for part in parts], crystals, empty_like(whole))
    merged = sfx.merge(lazy, scale=rounds, reject=5)
    xr.testing.assert_allclose(merged, merged_whole(rounds), rtol=1e-9)
    assert merged.attrs == merged_whole(rounds).attrs


def test_figures_by_hand() -> None:
    hkl = np.array([[1, 2, 3], [1, 2, 4], [2, 3, 5], [2, 3, 6]])
    merged = sfx.merge(reflections_of(hkl, [10, 20, 30, 40], np.ones(4), [0, 4]), scale=0)
    merged["half_intensity"].values[:] = [[10, 22, 28, 41], [12, 18, np.nan, 39]]
    figures = sfx.figures_of_merit(merged, 1)
    first, second = np.array([10, 22, 41]), np.array([12, 18, 39])
    assert float(figures["cc_half_overall"]) == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert float(figures["r_split_overall"]) == pytest.approx(np.sqrt(2) * 8 / (first + second).sum())
    assert int(figures["pairs_overall"]) == 3
    assert float(figures["multiplicity_overall"]) == 1
    assert float(figures["completeness_overall"]) == 4 / len(possible(run.CELL, float(figures["d_min"][-1])))


def test_shells_hold_what_they_say() -> None:
    measured, _ = crystals_of(100, 100)
    merged = sfx.merge(measured)
    figures = sfx.figures_of_merit(merged, 8)
    assert int(figures["possible"].sum()) == len(possible(run.CELL, 4.0))
    assert int(figures["unique"].sum()) == merged.sizes["reflection"]
    assert int(figures["measurements"].sum()) == 100 * 100
    assert np.ptp(figures["possible"].values) <= 3  # some have the same resolution
    np.testing.assert_array_equal(figures["d_min"][:-1], figures["d_max"][1:])
    assert (np.diff(figures["d_min"]) < 0).all()


def test_files(tmp_path: Path) -> None:
    measured, _ = crystals_of(30, 100)
    merged, both = sfx.merge(measured), sfx.merge(measured, anomalous=True)
    sfx.write_mtz(merged, tmp_path / "a.mtz")
    mtz = gemmi.read_mtz_file(str(tmp_path / "a.mtz"))
    np.testing.assert_array_equal(mtz.make_miller_array(), indices(merged))
    np.testing.assert_allclose(mtz.column_with_label("IMEAN"), merged["intensity"], rtol=1e-6)
    assert mtz.spacegroup.hm == "P 43 21 2"
    assert mtz.cell.parameters == pytest.approx(run.CELL.parameters)
    sfx.write_mtz(both, tmp_path / "b.mtz")
    table = gemmi.read_mtz_file(str(tmp_path / "b.mtz"))
    plus, minus = (np.array(table.column_with_label(f"I({sign})")) for sign in "+-")
    assert np.isfinite(plus).sum() + np.isfinite(minus).sum() == both.sizes["reflection"]
    sfx.write_hkl(merged, tmp_path / "a.hkl")
    lines = (tmp_path / "a.hkl").read_text().splitlines()
    assert lines[:2] == ["CrystFEL reflection list version 2.0", "Symmetry: 4/mmm"]
    assert [int(word) for word in lines[3].split()[:3]] == indices(merged)[0].tolist()
    assert len(lines) == merged.sizes["reflection"] + 4
    with pytest.raises(TargetExistsError, match="is there already"):
        sfx.write_hkl(merged, tmp_path / "a.hkl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hkl", "a.mtz", "b.mtz"]


def test_a_full_disk_leaves_nothing() -> None:
    merged = sfx.merge(crystals_of(30, 100)[0])
    with pytest.raises(OSError):  # noqa: PT011
        sfx.write_hkl(merged, "/proc/none/a.hkl")


def stills_and_frames(count: int, seed: int) -> tuple[list[run.Still], xr.DataArray]:
    random = np.random.default_rng(seed)
    stills = [run.still(seed, number) for number in range(count)]
    frames = np.stack([run.frame(random, still) for still in stills])
    return stills, xr.DataArray(frames, dims=("event", "segment", "row", "column"))


def true_crystals(stills: list[run.Still]) -> xr.Dataset:
    return xr.Dataset(
        {
            "offset": ("row_edge", np.arange(len(stills) + 1)),
            "matrix": (("crystal", "star", "axis"), np.stack([still.star for still in stills])),
            "shift": (("crystal", "lateral"), np.zeros((len(stills), 2))),
        },
        attrs={"cell": list(run.CELL.parameters), "space_group": run.CELL.space_group},
    )


def test_predictions_are_where_spots_are() -> None:
    stills = [run.still(4, number) for number in range(3)]
    predicted = sfx.predict(true_crystals(stills), run.geometry(), d_min=1.75, profile_radius=0.0012)
    edges = predicted["offset"].values
    for still, first, last in zip(stills, edges[:-1], edges[1:], strict=True):
        hkl = np.stack([predicted[name].values[first:last] for name in "hkl"], axis=1)
        place = {tuple(one): i for i, one in enumerate(hkl.tolist())}
        at = np.array([place[tuple(one)] for one in still.hkl.tolist()]) + first
        np.testing.assert_allclose(predicted["ss"].values[at], still.place[:, 1], atol=1e-3)
        np.testing.assert_allclose(predicted["fs"].values[at], still.place[:, 2], atol=1e-3)
        np.testing.assert_array_equal(predicted["segment"].values[at], still.place[:, 0])
        partial = 1 - (predicted["excitation"].values[at] / 0.0012) ** 2
        np.testing.assert_allclose(partial, still.place[:, 4], atol=1e-3)


def test_intensities_of_rings() -> None:
    stills, frames = stills_and_frames(2, seed=5)
    geometry, crystals = run.geometry(), true_crystals(stills)
    whole = sfx.integrate(frames, crystals, geometry, d_min=1.75, profile_radius=0.0012)
    edges = whole["offset"].values
    away = []
    for still, first, last in zip(stills, edges[:-1], edges[1:], strict=True):
        true = dict(zip(map(tuple, still.hkl.tolist()), still.place[:, 3], strict=True))
        hkl = np.stack([whole[name].values[first:last] for name in "hkl"], axis=1)
        photons = np.array([true.get(tuple(one), 0.0) for one in hkl.tolist()])
        away.append((whole["intensity"].values[first:last] - photons) / whole["sigma"].values[first:last])
    away_ = np.concatenate(away)
    assert len(away_) > 500
    assert abs(np.median(away_)) < 0.1
    assert 0.8 < np.percentile(np.abs(away_), 68) < 1.2
    lazy = sfx.integrate(frames.chunk(event=1), crystals, geometry, d_min=1.75, profile_radius=0.0012)
    xr.testing.assert_identical(lazy.compute(), whole)
    frames[0] = np.nan
    assert np.diff(sfx.integrate(frames, crystals, geometry, d_min=1.75)["offset"])[0] == 0


def merge_by(stills: list[run.Still], frames: xr.DataArray, crystals: xr.Dataset) -> tuple[xr.Dataset, float]:
    measured = sfx.integrate(frames, crystals, run.geometry(), d_min=2.2, profile_radius=0.0012)
    merged = sfx.merge(measured)
    hkl = indices(merged)
    true = run.structure_factors(6, hkl) * np.exp(-9 * run.CELL.gemmi_cell.calculate_1_d2_array(hkl))
    return merged, float(np.corrcoef(merged["intensity"], true)[0, 1])


@pytest.mark.long
def test_found_orientations_merge_as_well_as_true_ones() -> None:
    stills, frames = stills_and_frames(120, seed=6)
    random = np.random.default_rng(0)
    spots = [run.found_peaks(random, still, None, 0.3) for still in stills]
    q = [run.geometry().scattering_vectors(one[:, 0].astype(int), one[:, 1], one[:, 2]) for one in spots]
    peaks = xr.Dataset(
        {
            "offset": ("row_edge", np.concatenate([[0], np.cumsum([len(one) for one in q])])),
            "q": (("peak", "axis"), np.concatenate(q)),
        }
    )
    found = sfx.index(peaks, run.CELL)
    assert (np.diff(found["offset"]) == 1).all()
    merged, by_found = merge_by(stills, frames, found)
    _, by_true = merge_by(stills, frames, true_crystals(stills))
    assert by_found > by_true - 0.01
    assert by_true > 0.9
    half = sfx.merge(sfx.integrate(frames[:30], true_crystals(stills[:30]), run.geometry(), d_min=2.2))
    few, many = (float(sfx.figures_of_merit(one)["cc_half_overall"]) for one in (half, merged))
    assert many > few


def test_real_stream(real_data: Path, tmp_path: Path) -> None:
    stream = sfx.read_stream(real_data / "merging/careless/crystfel.stream")
    assert np.diff(stream.reflections["offset"]).tolist() == [263, 102, 253]
    np.testing.assert_allclose(
        stream.crystals["cell"][0], [79.385, 80.4039, 38.5562, 90.687, 90.135, 89.7467], atol=2e-3
    )
    assert stream.crystals["photon_energy"].values.tolist() == [9700.0] * 3
    assert stream.peaks["fs"][0] == 623.5
    assert stream.reflections["intensity"][0] == np.float32(-15.11)
    copy = tmp_path / "copy.stream"
    sfx.write_stream(copy, stream.crystals, stream.reflections, stream.peaks, geometry_text=stream.geometry_text)
    again = sfx.read_stream(copy)
    for name in ("peaks", "crystals", "reflections"):
        xr.testing.assert_identical(getattr(again, name), getattr(stream, name))
    assert again.geometry_text == stream.geometry_text
    merged = sfx.merge(stream.reflections, space_group="P 43 21 2", scale=0)
    hkl = np.stack([stream.reflections[name].values for name in "hkl"], axis=1)
    present = ~sfx.Cell((79.2, 79.2, 38.0, 90, 90, 90), "P 43 21 2").gemmi_group.operations().systematic_absences(hkl)
    assert int(merged["measurements"].sum()) == present.sum()


def test_stream_with_a_geometry(tmp_path: Path) -> None:
    stills = [run.still(4, number) for number in range(2)]
    geometry, crystals = run.geometry(), true_crystals(stills)
    predicted = sfx.predict(crystals, geometry, d_min=3.0).drop_vars("excitation")
    spots = predicted.assign(intensity=predicted["fs"] * 0 + 10, sigma=predicted["fs"] * 0 + 1)
    path = tmp_path / "a.stream"
    sfx.write_stream(path, crystals, spots, geometry=geometry, filename="a.cxi")
    again = sfx.read_stream(path, geometry)
    np.testing.assert_array_equal(again.reflections["segment"], predicted["segment"])
    np.testing.assert_allclose(again.reflections["ss"], predicted["ss"], atol=0.051)  # one decimal in the file
    np.testing.assert_allclose(again.crystals["matrix"], crystals["matrix"], atol=1e-8)
    assert again.crystals["event_name"].values.tolist() == ["//0", "//1"]
    assert again.cell is not None
    assert again.cell.parameters == pytest.approx(run.CELL.parameters)
    names = {panel.name for panel in geometry.panels}
    assert set(again.reflections["panel"].values.tolist()) <= names


def test_damaged_streams(real_data: Path, tmp_path: Path) -> None:
    text = (real_data / "merging/careless/crystfel.stream").read_text()
    path = tmp_path / "bad.stream"
    lines = text.splitlines(keepends=True)
    for bad, words in (
        ("", "is no stream"),
        ("".join(lines[:200]), "was cut off"),
        ("".join(lines[:30]), "within the geometry"),
        (text.replace("astar =", "astir =", 1), "three numbers of astar"),
        (text.replace(" -37   11   -7", " -37   11", 1), "line 124: 10 columns"),
        (text.replace("     -15.11", "     -1x.11", 1), "no number"),
    ):
        path.write_text(bad)
        with pytest.raises(FormatError, match=words):
            sfx.read_stream(path)
    with pytest.raises(RunNotFoundError):
        sfx.read_stream(tmp_path / "none.stream")


def test_orientation_files(tmp_path: Path) -> None:
    crystals = true_crystals([run.still(4, number) for number in range(3)])
    crystals["shift"].values[1] = 1e-4, -2e-4
    path = tmp_path / "a.sol"
    sfx.write_orientations(path, crystals, filename="a.cxi")
    first = path.read_text().splitlines()[0].split()
    assert (first[0], first[1], first[-1], len(first)) == ("a.cxi", "//0", "tPc", 14)
    again = sfx.read_orientations(path, run.CELL)
    np.testing.assert_allclose(again["matrix"], crystals["matrix"], atol=1e-9)
    np.testing.assert_allclose(again["shift"], crystals["shift"], atol=1e-12)
    path.write_text("a.cxi //0 1 2 3\n")
    with pytest.raises(FormatError, match="line 1"):
        sfx.read_orientations(path)
    with pytest.raises(ArgumentError, match="without blanks"):
        sfx.write_orientations(tmp_path / "b.sol", crystals, filename="my file.cxi")


def test_bad_arguments() -> None:
    measured, _ = crystals_of(3, 20)
    for arguments, words in (
        ({"weights": "none"}, "there are no weights"),
        ({"scale": -1}, "scale=-1"),
        ({"d_min": 500.0, "d_max": 600.0}, "nothing to merge"),
        ({"space_group": "P 6"}, "does not allow"),
    ):
        with pytest.raises(ArgumentError, match=words):
            sfx.merge(measured, **arguments)
    with pytest.raises(ArgumentError, match="have no sigma"):
        sfx.merge(measured.drop_vars("sigma"))
    with pytest.raises(ArgumentError, match="nothing to merge"):
        sfx.merge(measured.isel(row_edge=slice(0, 1), reflection=slice(0, 0)))
    with pytest.raises(ArgumentError, match="not what merge gave"):
        sfx.figures_of_merit(measured)
    with pytest.raises(ArgumentError, match="share among them"):
        sfx.figures_of_merit(sfx.merge(measured), 10**6)
    frames = xr.DataArray(np.zeros((2, 8, 512, 1023), np.float32), dims=("event", "segment", "row", "column"))
    crystals = true_crystals([run.still(4, 0)])
    with pytest.raises(ArgumentError, match="frames: have shape"):
        sfx.integrate(frames, crystals, run.geometry(), d_min=2.0)
    with pytest.raises(ArgumentError, match="of 1 events"):
        sfx.integrate(frames.pad(column=(0, 1)), crystals, run.geometry(), d_min=2.0)
    with pytest.raises(ArgumentError, match="d_min"):
        sfx.predict(crystals, run.geometry(), d_min=0.0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.integers(-3000, 3000)] * 3), min_size=1, max_size=20))
def test_packed_indices_sort_and_come_back(hkl: list[tuple[int, int, int]]) -> None:
    table = np.array(hkl, np.int32)
    np.testing.assert_array_equal(unpack(pack(table)), table)
    assert unpack(np.sort(pack(table))).tolist() == sorted(map(list, hkl))
