"""Indexing: orientations against the truth, frames without a crystal, real spots, several lattices, bad input."""

import shutil
import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import sfx_run as run
import sfx_spots as spots
import xarray as xr

from lcls_dask import sfx
from lcls_dask.errors import ArgumentError, FormatError, UnsupportedError
from lcls_dask.reduce.ragged import Ragged, empty_like
from lcls_dask.sfx.lattice import axis_symmetry, directions

Array = np.ndarray[Any, Any]

BLANKS = ("uniform", "low", "rings", "clusters", "rows")


def as_frames(frames: list[Array], name: str = "q") -> xr.Dataset:
    """Frames of scattering vectors as peaks."""
    edges = np.concatenate([[0], np.cumsum([len(one) for one in frames])])
    return xr.Dataset({"offset": ("row_edge", edges), name: (("peak", "axis"), np.concatenate(frames))})


def errors_of(crystals: xr.Dataset, stars: list[Array], cell: sfx.Cell) -> Array:
    """Angle [degree] from the truth of the first lattice of each frame, 180 where there is none."""
    offset, reduced = crystals["offset"].values, np.linalg.inv(cell.to_primitive).T
    matrix = crystals["matrix"].values
    return np.array(
        [
            spots.angle(reduced @ matrix[offset[i]], star, cell) if offset[i + 1] > offset[i] else 180.0
            for i, star in enumerate(stars)
        ]
    )


def index_stills(name: str, count: int, frames: int) -> Array:
    random = np.random.default_rng([len(name), count])
    made = [spots.still(random, spots.CELLS[name], count) for _ in range(frames)]
    crystals = sfx.index(as_frames([q for q, _ in made]), spots.CELLS[name])
    assert crystals.sizes["event"] == frames
    return errors_of(crystals, [star for _, star in made], spots.CELLS[name])


@pytest.mark.parametrize("name", ["lysozyme", "triclinic", "centred"])
@pytest.mark.parametrize(("count", "share"), [(15, 0.96), (25, 0.98), (100, 0.99)])
def test_orientations_with_a_third_of_wrong_spots(name: str, count: int, share: float) -> None:
    away = index_stills(name, count, 100 if count == 15 else 50)
    assert (away < 0.5).mean() >= share
    assert (away < 1.0).mean() >= 0.99


@pytest.mark.long
@pytest.mark.parametrize("name", list(spots.CELLS))
@pytest.mark.parametrize(("count", "share"), [(15, 0.97), (25, 0.99), (50, 0.99), (150, 0.99)])
def test_orientations_of_many_frames(name: str, count: int, share: float) -> None:
    away = index_stills(name, count, 2000)
    # 15 spots of the large cell are of low angles, which tell an orientation less well: 97.2 % of 1000 frames
    assert (away < 0.5).mean() >= (0.96 if (name, count) == ("large", 15) else share)
    assert (away < 1.0).mean() >= 0.99
    assert ((away > 2) & (away < 180)).mean() <= 1e-3


@pytest.mark.parametrize("kind", BLANKS)
def test_blanks_have_no_lattice(kind: str) -> None:
    random = np.random.default_rng(5)
    frames = as_frames([spots.blank(random, kind) for _ in range(150)])
    for name in ("lysozyme", "triclinic"):
        assert sfx.index(frames, spots.CELLS[name]).sizes["crystal"] == 0


@pytest.mark.long
@pytest.mark.parametrize("kind", BLANKS)
@pytest.mark.parametrize("name", ["lysozyme", "triclinic", "large"])
def test_of_many_blanks_one_in_a_thousand_has_a_lattice(kind: str, name: str) -> None:
    random = np.random.default_rng([6, len(name)])
    frames = as_frames([spots.blank(random, kind) for _ in range(3000)])
    assert sfx.index(frames, spots.CELLS[name]).sizes["crystal"] <= 3


def peaks_of(stills: list[run.Still], count: int | None, spurious: float, seed: int = 0) -> xr.Dataset:
    """What a peak finder would tell of stills of the simulated facility."""
    random = np.random.default_rng(seed)
    found = [run.found_peaks(random, still, count, spurious) for still in stills]
    found = [one[np.argsort(one[:, 0], kind="stable")] for one in found]
    rows = np.concatenate([np.bincount(one[:, 0].astype(int), minlength=8) for one in found])
    place = np.concatenate(found)
    return xr.Dataset(
        {
            "offset": ("row_edge", np.concatenate([[0], np.cumsum(rows)])),
            "fs": ("peak", place[:, 2].astype(np.float32)),
            "ss": ("peak", place[:, 1].astype(np.float32)),
            "intensity": ("peak", np.full(len(place), 100, np.float32)),
        },
        {"segment": np.arange(8), "timestamp": ("event", np.arange(len(stills), dtype=np.uint64))},
    )


@pytest.mark.parametrize(("count", "share"), [(15, 0.97), (25, 0.99), (None, 0.99)])
def test_simulated_facility(count: int | None, share: float) -> None:
    stills = [run.still(7, number) for number in range(120)]
    crystals = sfx.index(peaks_of(stills, count, 0.3), run.CELL, geometry=run.geometry())
    away = errors_of(crystals, [run.CELL.to_primitive @ still.star for still in stills], run.CELL)
    assert (away < 0.5).mean() >= share
    np.testing.assert_array_equal(crystals["timestamp"], np.arange(120))
    assert np.median(np.abs(crystals["shift"])) < 20e-6
    assert not crystals["marked"].any()


def test_a_detector_that_is_off_is_told() -> None:
    stills = [run.still(8, number) for number in range(20)]
    shift = np.array([100e-6, -60e-6])
    crystals = sfx.index(peaks_of(stills, None, 0.1), run.CELL, geometry=run.geometry().moved(*-shift))
    np.testing.assert_allclose(np.median(crystals["shift"], axis=0), shift, atol=10e-6)


@pytest.mark.parametrize("finder", ["local", "peakfinder8", "radial"])
def test_real_lysozyme(real_data: Path, finder: str) -> None:
    cell = sfx.Cell((78.95, 78.95, 36.9, 90, 90, 90), "P 43 21 2")
    reference = [
        [39.431335, 25.273994, 63.585350],
        [28.513729, 60.642746, -41.786659],
        [-29.096014, 20.499205, 9.895323],
    ]
    folder = real_data / "lysozyme-spots"
    frames = [np.loadtxt(folder / f"image{i}_{finder}.txt", skiprows=1) for i in range(10)]
    crystals = sfx.index(as_frames(frames), cell)
    star = cell.to_primitive @ np.linalg.inv(np.array(reference)).T
    away = errors_of(crystals, [star] * 10, cell)
    assert away.max() < 1.5
    assert (np.diff(away) > -0.1).all()  # a rotation series, and one reference
    assert (crystals["explained"] > 0.55 * crystals["spots"]).all()


def test_several_lattices_of_a_frame() -> None:
    random, cell = np.random.default_rng(3), spots.CELLS["lysozyme"]
    both = 0
    for _ in range(20):
        (first, one), (second, two) = (spots.still(random, cell, 60, 0.1) for _ in range(2))
        crystals = sfx.index(np.concatenate([first, second]), cell, lattices=3)
        matrix = [cell.to_primitive @ each for each in crystals["matrix"].values]
        assert crystals.sizes["crystal"] <= 2
        both += all(min(spots.angle(each, star, cell) for each in matrix) < 0.5 for star in (one, two))
    assert both >= 19


def test_any_blocks_give_the_same() -> None:
    stills = [run.still(9, number) for number in range(12)]
    peaks, geometry = peaks_of(stills, 30, 0.3), run.geometry()
    whole = sfx.index(peaks, run.CELL, geometry=geometry)
    blocks = []
    for first, last in ((0, 5), (5, 5), (5, 12)):
        edges = peaks["offset"].values[8 * first : 8 * last + 1]
        part = peaks.isel(event=slice(first, last), peak=slice(edges[0], edges[-1])).drop_vars("offset")
        blocks.append(part.assign(offset=("row_edge", edges - edges[0])))
    ragged = Ragged.from_blocks([dask.delayed(block) for block in blocks], [5, 0, 7], empty_like(peaks))
    lazy = sfx.index(ragged, run.CELL, geometry=geometry)
    assert isinstance(lazy, Ragged)
    xr.testing.assert_identical(lazy.compute(), whole)


def test_a_frame_of_nothing_and_of_nan() -> None:
    random, cell = np.random.default_rng(0), spots.CELLS["lysozyme"]
    q, _ = spots.still(random, cell, 40)
    broken = np.concatenate([q, [[np.nan, 0, 0], [np.inf, 0, 0]]])
    crystals = sfx.index(as_frames([np.empty((0, 3)), broken, np.full((30, 3), np.nan), q, np.zeros((9, 3))]), cell)
    assert np.diff(crystals["offset"]).tolist() == [0, 1, 0, 1, 0]
    assert crystals["marked"].values.tolist() == [False, True, True, False, False]
    assert crystals["spots"].values.tolist() == [0, len(q), 0, len(q), 9]
    np.testing.assert_array_equal(crystals["matrix"][0], crystals["matrix"][1])
    none = sfx.index(as_frames([np.empty((0, 3))]).isel(row_edge=slice(0, 1)), cell)
    assert none.sizes["crystal"] == none.sizes["event"] == 0


def test_threshold_of_the_users_own_frames() -> None:
    random, cell = np.random.default_rng(2), spots.CELLS["lysozyme"]
    frames = [spots.still(random, cell, 40)[0] for _ in range(20)]
    threshold = sfx.fit_threshold(as_frames(frames), cell, frames=100)
    assert 20 < threshold < sfx.index(as_frames(frames), cell)["score"].min()
    blank = as_frames([spots.blank(random, "uniform") for _ in range(100)])
    assert sfx.index(blank, cell, threshold=threshold).sizes["crystal"] <= 2
    assert sfx.fit_threshold(as_frames(frames), cell, frames=100, chance=1e-6) > threshold


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ((79, 79, 38, 90, 90, 200), "no lattice"),
        ((79, 79, 38, 10, 90, 170), "no lattice"),
        ((79, np.nan, 38, 90, 90, 90), "wanted"),
        ((79, 79, 90, 90, 90), "six numbers"),
        ((7.9e-9, 7.9e-9, 3.8e-9, 90, 90, 90), "Angstrom"),
        (("X", 1, 2, 3, 4, 5), "cell"),
    ],
)
def test_what_is_no_cell(cell: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        sfx.index(np.zeros((0, 3)), cell)


def test_contradictory_cells(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="does not allow"):
        sfx.Cell((79, 80.5, 38, 90, 90, 90), "P 43 21 2")
    path = tmp_path / "wrong.cell"
    angles = "al = 90 deg\nbe = 90 deg\nga = 90 deg\n"
    path.write_text(f"lattice_type = tetragonal\ncentering = F\na = 79 A\nb = 79 A\nc = 38 A\n{angles}")
    with pytest.raises(ArgumentError, match=r"tetragonal lattice is not F-centred"):
        sfx.read_cell(path)
    path.write_text(f"lattice_type = tetragonal\ncentering = I\na = 79 A\nb = 79 A\nc = 38 A\n{angles}")
    with pytest.raises(ArgumentError, match="only one can be right"):
        sfx.as_cell(path, "P 43 21 2")
    assert sfx.as_cell(path, "I 4").centring == "I"
    path.write_text("a = 79 A\n")
    with pytest.raises(FormatError, match="b = NUMBER A"):
        sfx.read_cell(path)


def test_bad_arguments() -> None:
    cell, q = spots.CELLS["lysozyme"], np.zeros((3, 3))
    for arguments, words in (
        ({"method": "magic"}, "there is no method"),
        ({"lattices": 0}, "at least one"),
        ({"lattices": 1000}, "at most a hundred"),
        ({"threshold": np.nan}, "a number"),
        ({"photon_energy": -1.0}, "above zero"),
        ({"surely": True}, "no option"),
    ):
        with pytest.raises(ArgumentError, match=words):
            sfx.index(q, cell, **arguments)
    with pytest.raises(ArgumentError, match="wanted in 1/Angstrom"):
        sfx.index(np.full((20, 3), 1e9), cell)
    with pytest.raises(ArgumentError, match="scattering vectors"):
        sfx.index(np.zeros(5), cell)
    with pytest.raises(ArgumentError, match="give geometry="):
        sfx.index(peaks_of([run.still(1, 0)], 10, 0.0), run.CELL)
    with pytest.raises(ArgumentError, match="nothing to scramble"):
        sfx.fit_threshold(q, cell)


@pytest.mark.parametrize(("name", "rotations", "symmetry"), [
    ("lysozyme", 8, (4, False)), ("triclinic", 1, (1, True)), ("large", 12, (2, False)), ("centred", 2, (1, True)),
])  # fmt: skip
def test_symmetry_of_the_lattice(name: str, rotations: int, symmetry: tuple[int, bool]) -> None:
    cell = spots.CELLS[name]
    assert len(cell.rotations) == rotations
    np.testing.assert_allclose(cell.rotations[0], np.eye(3), atol=1e-12)
    metric = cell.primitive @ cell.primitive.T
    for rotation in cell.rotations:
        turned = np.linalg.solve(cell.primitive.T, (cell.primitive @ rotation.T).T).T
        np.testing.assert_allclose(turned, np.rint(turned), atol=1e-3)
        np.testing.assert_allclose(np.rint(turned) @ metric @ np.rint(turned).T, metric, rtol=1e-3, atol=1)
    assert axis_symmetry(cell) == symmetry
    length = np.linalg.norm(cell.primitive, axis=1)
    assert length[0] < length.min() + 1e-9


def test_directions_are_even() -> None:
    tables, edges = directions()
    first, many = 3 * edges[3], edges[4] - edges[3]
    table = tables[first : first + 3 * many].reshape(3, many).T
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-6)
    cos = np.abs(table @ table.T)
    np.fill_diagonal(cos, 0)
    nearest = np.arccos(cos.max(axis=1).clip(max=1)) / np.sqrt(2 * np.pi / many)
    assert nearest.min() > 0.6
    assert nearest.max() < 1.2


def test_programs_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    q, _ = spots.still(np.random.default_rng(0), spots.CELLS["lysozyme"], 20)
    monkeypatch.setenv("PATH", "")
    for method, words in (("dials", "apt-get install dials"), ("indexamajig", "needs CrystFEL")):
        with pytest.raises(UnsupportedError, match=words):
            sfx.index(q, spots.CELLS["lysozyme"], method)


#: Stands in for CrystFEL, which has no package here: looks at what it is given, and answers as a stream.
INDEXAMAJIG = """#!{python}
import sys, h5py, numpy as np
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert sys.argv[-1] == "--extra" and "--peaks=cxi" in sys.argv and open("files.lst").read() == "spots.cxi\\n"
geometry, cell = open(given["-g"]).read(), open(given["-p"]).read()
assert "clen = 0.1" in geometry and "res = 20000.0" in geometry and "lattice_type = tetragonal" in cell
with h5py.File("spots.cxi") as file:
    count = file["entry_1/result_1/nPeaks"][:]
    x, y = (file["entry_1/result_1/peak" + axis + "PosRaw"][1, : count[1]] for axis in "XY")
    energy = file["LCLS/photon_energy_eV"][1]
    assert file["entry_1/data_1/data"].shape == (2, 8000, 8000)
xy = (np.stack([x, y], axis=1) + 0.5 - 4000) * 0.05
np.save("{seen}", np.concatenate([xy, np.full((len(xy), 1), 100)], axis=1))
star = "".join(name + "star = 0.1 0.2 " + str(i) + " nm^-1\\n" for i, name in enumerate("abc"))
crystal = "--- Begin crystal\\n" + star.replace("bstar = 0.1", "bstar = 0.7") + "--- End crystal\\n"
chunk = "----- Begin chunk -----\\nEvent: //{{}}\\n{{}}----- End chunk -----\\n"
open(given["-o"], "w").write("CrystFEL stream format 2.3\\n" + chunk.format(1, crystal) + chunk.format(0, ""))
"""


def test_what_indexamajig_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, seen = tmp_path / "indexamajig", tmp_path / "seen.npy"
    program.write_text(INDEXAMAJIG.format(python=sys.executable, seen=seen))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    random, cell = np.random.default_rng(0), spots.CELLS["lysozyme"]
    frames = [spots.still(random, cell, count)[0] for count in (10, 20)]
    crystals = sfx.index(as_frames(frames), cell, "indexamajig", arguments="--extra")
    assert np.diff(crystals["offset"]).tolist() == [0, 1]
    np.testing.assert_allclose(crystals["matrix"][0, :, 0], [0.01, 0.07, 0.01])
    place = np.load(seen)
    q = (place / np.linalg.norm(place, axis=1)[:, None] - [0, 0, 1]) / spots.WAVELENGTH
    np.testing.assert_allclose(q, frames[1], atol=1e-6)
    program.write_text("#!/bin/sh\necho it does not work >&2\nexit 3\n")
    with pytest.raises(FormatError, match="exit status 3: it does not work"):
        sfx.index(as_frames(frames), cell, "indexamajig")


@pytest.mark.long
def test_dials_agrees() -> None:
    if shutil.which("dials.index") is None:
        pytest.skip("DIALS is not installed (apt-get install dials): indexing is NOT compared with it")
    random, cell = np.random.default_rng(1), spots.CELLS["lysozyme"]
    made = [spots.still(random, cell, 60, 0.2) for _ in range(3)]
    frames = as_frames([q for q, _ in made] + [np.empty((0, 3))])
    theirs, ours = sfx.index(frames, cell, "dials"), sfx.index(frames, cell)
    assert np.diff(theirs["offset"]).tolist() == [1, 1, 1, 0]
    for crystals, most in ((theirs, 0.5), (ours, 0.2)):
        assert errors_of(crystals.isel(row_edge=slice(0, 4)), [star for _, star in made], cell).max() < most
    with pytest.raises(FormatError, match="failed with exit status"):
        sfx.index(frames, cell, "dials", arguments="no.such.parameter=1")
