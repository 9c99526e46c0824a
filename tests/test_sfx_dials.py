"""Files of DIALS, which DIALS itself reads and goes on from."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sfx_run as run
import xarray as xr
from test_sfx_merging import stills_and_frames, true_crystals

from lcls_dask import sfx
from lcls_dask.errors import ArgumentError, FormatError, RunNotFoundError, TargetExistsError, UnsupportedError
from lcls_dask.sfx.dials_files import _square
from lcls_dask.sfx.programs import dials_python

#: Run by the Python that has DIALS: where do its own models say that reflections are, and how far from their nodes?
_REFEREE = """
import json, sys
import numpy as np
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList

experiments = ExperimentList.from_file(sys.argv[1] + ".expt", check_format=False)
table = flex.reflection_table.from_file(sys.argv[1] + ".refl")
table.assert_experiment_identifiers_are_consistent(experiments)
away, apart, spread = 0.0, 0.0, 0.0
for row in table.rows():
    one = experiments[row["id"]]
    panel = one.detector[row["panel"]]
    x, y, _ = row["xyzcal.px"]
    beam = np.array(panel.get_pixel_lab_coord((x, y)))
    s1 = beam / np.linalg.norm(beam) / one.beam.get_wavelength()
    away = max(away, np.abs(s1 - row["s1"]).max(), np.abs(np.array(panel.get_ray_intersection(row["s1"]))
               - row["xyzcal.mm"][:2]).max())
    node = np.array(one.crystal.get_A()).reshape(3, 3) @ row["miller_index"]
    apart = max(apart, np.linalg.norm(s1 - np.array(one.beam.get_s0()) - node))
    spread = max(spread, abs(1 / np.linalg.norm(node) - row["d"]))
print(json.dumps([away, apart, spread, experiments[0].crystal.get_space_group().type().lookup_symbol()]))
"""


def needs_dials() -> None:
    if shutil.which("dials.index") is None:
        pytest.skip("DIALS is not installed (apt-get install dials): its files are NOT written and read")


def integrated(count: int) -> tuple[xr.Dataset, xr.Dataset]:
    stills, frames = stills_and_frames(count, seed=3)
    crystals = true_crystals(stills)
    crystals["shift"].values[0] = 2e-4, -1e-4
    reflections = sfx.integrate(frames, crystals, run.geometry(), d_min=2.2, profile_radius=0.0012)
    assert isinstance(reflections, xr.Dataset)
    return crystals, reflections


@pytest.mark.long
def test_dials_goes_on_from_our_files(tmp_path: Path) -> None:
    needs_dials()
    crystals, reflections = integrated(12)
    sfx.write_dials(tmp_path / "run5", crystals, reflections, run.geometry())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run5.expt", "run5.refl"]
    told = subprocess.run(
        [dials_python(), "-I", "-c", _REFEREE, str(tmp_path / "run5")], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    away, apart, spread, group = json.loads(told.stdout)
    assert away < 1e-5  # mm and 1/Angstrom; places are float32
    assert apart < 0.0013  # the radius of a node
    assert spread < 1e-9
    assert group == "P 43 21 2"
    done = subprocess.run(
        ["dials.scale", "run5.expt", "run5.refl", "model=KB"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "scaled.refl" in {one.name for one in tmp_path.iterdir()}


@pytest.mark.long
def test_files_of_dials_come_back(tmp_path: Path) -> None:
    needs_dials()
    crystals, reflections = integrated(3)
    geometry = run.geometry()
    sfx.write_dials(tmp_path / "a", crystals, reflections, geometry)
    tables = sfx.read_dials(tmp_path / "a", geometry)
    np.testing.assert_allclose(tables.crystals["matrix"], crystals["matrix"], rtol=1e-9, atol=1e-12)
    assert geometry.photon_energy is not None
    np.testing.assert_allclose(tables.crystals["photon_energy"], geometry.photon_energy, rtol=1e-9)
    assert (tables.crystals.attrs["space_group"], tables.reflections.attrs["left_out"]) == ("P 43 21 2", 0)
    for name in ("offset", "h", "k", "l", "segment"):
        np.testing.assert_array_equal(tables.reflections[name], reflections[name])
    np.testing.assert_allclose(tables.crystals["shift"], crystals["shift"], atol=1e-9)
    for name in ("fs", "ss", "intensity", "sigma", "background"):
        np.testing.assert_allclose(tables.reflections[name], reflections[name], rtol=1e-6, atol=1e-4)
    ours, theirs = sfx.merge(reflections), sfx.merge(tables.reflections)
    np.testing.assert_allclose(theirs["intensity"], ours["intensity"], rtol=1e-4, atol=1e-3)
    panels = sfx.read_dials(tmp_path / "a").reflections
    assert int(panels["segment"].max()) < len(geometry.panels)
    with pytest.raises(TargetExistsError, match=r"a\.expt"):
        sfx.write_dials(tmp_path / "a", crystals, reflections, geometry)
    with pytest.raises(FormatError, match="panels, and the geometry"):
        sfx.read_dials(tmp_path / "a", sfx.Geometry(geometry.panels[:1], geometry.shape, 0.1))
    # cut off, and another program's
    whole = (tmp_path / "a.refl").read_bytes()
    (tmp_path / "a.refl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="failed with exit status"):
        sfx.read_dials(tmp_path / "a")


#: Run by the Python that has DIALS: the same table with other numbers for its experiments.
_RENUMBER = """
import sys
from dials.array_family import flex

table = flex.reflection_table.from_file(sys.argv[1])
names = dict(table.experiment_identifiers())
table["id"] = 7 - table["id"]
for number in names:
    del table.experiment_identifiers()[number]
for number, name in names.items():
    table.experiment_identifiers()[7 - number] = name
table.as_file(sys.argv[1])
"""


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.mark.long
def test_files_that_others_wrote(tmp_path: Path) -> None:
    needs_dials()
    crystals, reflections = integrated(3)
    # two crystals in one frame, none in the next
    crystals = crystals.assign(offset=("row_edge", np.array([0, 2, 2, 3])))
    geometry, path = run.geometry(), tmp_path / "a"
    sfx.write_dials(path, crystals, reflections, geometry)
    ours = sfx.read_dials(path, geometry)
    assert ours.crystals["offset"].values.tolist() == [0, 1, 2, 3]

    told = json.loads(path.with_suffix(".expt").read_text())
    # DIALS has the beam along -z elsewhere
    for beam in told["beam"]:
        beam["direction"] = [-x for x in beam["direction"]]
    turned = [(panel, name) for one in told["detector"] for panel in one["panels"]
              for name in ("fast_axis", "slow_axis", "origin")]  # fmt: skip
    turned += [(one, f"real_space_{axis}") for one in told["crystal"] for axis in "abc"]
    for one, name in turned:
        one[name] = [-one[name][0], one[name][1], -one[name][2]]
    # images may name files that DIALS would unpickle
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps(_Touch(tmp_path / "owned")))
    files = {"template": str(tmp_path / "x_##.cbf"), "dx": str(tmp_path / "evil.pickle")}
    told["imageset"] = [{"__id__": "ImageSequence", **files, "mask": str(tmp_path / "evil.pickle")}]
    for one in told["experiment"]:
        one["imageset"] = 0
    path.with_suffix(".expt").write_text(json.dumps(told))
    subprocess.run([dials_python(), "-I", "-c", _RENUMBER, str(path.with_suffix(".refl"))], check=True)

    theirs = sfx.read_dials(path, geometry)
    assert not (tmp_path / "owned").exists()
    np.testing.assert_allclose(theirs.crystals["matrix"], ours.crystals["matrix"], atol=1e-12)
    np.testing.assert_allclose(theirs.crystals["shift"], ours.crystals["shift"], atol=1e-9)
    xr.testing.assert_identical(theirs.reflections, ours.reflections)
    with pytest.raises(FormatError, match="elsewhere than the geometry's"):
        sfx.read_dials(path, geometry.moved(dz=0.01))
    other = dataclasses.replace(geometry, panels=(*geometry.panels[1:], geometry.panels[0]))
    with pytest.raises(FormatError, match="elsewhere than the geometry's"):
        sfx.read_dials(path, other)
    for beam in told["beam"]:
        beam["direction"] = [0.0, 0.6, 0.8]
    path.with_suffix(".expt").write_text(json.dumps(told))
    with pytest.raises(FormatError, match="not along z"):
        sfx.read_dials(path)
    # a centred cell of which no group is known
    crystals.attrs["space_group"] = "I 1"
    sfx.write_dials(tmp_path / "b", crystals, reflections, geometry)
    assert sfx.read_dials(tmp_path / "b").crystals.attrs["space_group"] == "I 1"


def test_panels_that_are_rounded_and_skew() -> None:
    panel = sfx.Panel(
        "p0", 0, 0, 4, 0, 6, (0.0, 0.0, 0.0), (0.999998e-4, -0.002e-4, 0.0), (0.002001e-4, 0.999998e-4, 0.0)
    )
    made = _square(sfx.Geometry((panel,), (1, 4, 6), 0.1))
    assert abs((made[:, 0] * made[:, 1]).sum()) < 1e-22
    np.testing.assert_allclose(made[0, 1], panel.ss, atol=1e-9)
    skew = sfx.Panel("p1", 0, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.01e-4, 1e-4, 0.0))
    with pytest.raises(ArgumentError, match="panel p1: its fs and ss are not at right angles"):
        _square(sfx.Geometry((skew,), (1, 4, 6), 0.1))


def test_energies_that_are_not_known() -> None:
    crystals = true_crystals([run.still(4, 0)]).assign(offset=("row_edge", np.array([0, 1, 1])))
    geometry = run.geometry()
    plain = sfx.predict(crystals, geometry, d_min=3.0)
    assert isinstance(plain, xr.Dataset)
    # of a stream that tells none, and of a frame without a crystal
    for known in ([np.nan, np.nan], [geometry.photon_energy, np.nan]):
        xr.testing.assert_identical(
            plain, sfx.predict(crystals.assign_coords(photon_energy=("event", known)), geometry, d_min=3.0)
        )
    unknown = dataclasses.replace(geometry, photon_energy=None)
    given = crystals.assign_coords(photon_energy=("event", [9500.0, np.nan]))
    assert isinstance(sfx.predict(given, unknown, d_min=3.0), xr.Dataset)
    with pytest.raises(ArgumentError, match="photon_energy"):
        sfx.predict(given.assign_coords(photon_energy=("event", [np.nan, 9500.0])), unknown, d_min=3.0)


def test_what_is_no_file_of_dials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crystals, geometry = true_crystals([run.still(4, 0)]), run.geometry()
    reflections = sfx.predict(crystals, geometry, d_min=3.0)
    assert isinstance(reflections, xr.Dataset)
    nothing = {name: ("reflection", np.zeros(reflections.sizes["reflection"])) for name in ("intensity", "sigma")}
    reflections = reflections.assign(nothing | {"background": nothing["sigma"]})
    with pytest.raises(RunNotFoundError, match=r"a\.expt: there is no such file"):
        sfx.read_dials(tmp_path / "a")
    for text in (
        "{}",
        "no JSON",
        '{"__id__": "DataBlock", "imageset": []}',
        '{"__id__": "ExperimentList", "experiment": 3}',
    ):
        (tmp_path / "a.expt").write_text(text)
        with pytest.raises(FormatError if (tmp_path / "a.refl").exists() else RunNotFoundError):
            sfx.read_dials(tmp_path / "a")
        (tmp_path / "a.refl").write_bytes(b"")
    (tmp_path / "a.expt").write_text('{"__id__": "ExperimentList", "experiment": []}')
    # DIALS would unpickle it
    (tmp_path / "a.refl").write_bytes(b"cos\nsystem\n(S'touch it'\ntR.")
    with pytest.raises(FormatError, match="no reflection table"):
        sfx.read_dials(tmp_path / "a")
    with pytest.raises(ArgumentError, match="reflections: have no intensity"):
        sfx.write_dials(tmp_path / "b", crystals, reflections.drop_vars("intensity"), geometry)
    with pytest.raises(ArgumentError, match="are of 1 crystals, and there are 2"):
        sfx.write_dials(tmp_path / "b", true_crystals([run.still(4, n) for n in range(2)]), reflections, geometry)
    with pytest.raises(ArgumentError, match="read the stream with its geometry"):
        sfx.write_dials(tmp_path / "b", crystals, reflections.drop_vars("segment"), geometry)
    with pytest.raises(ArgumentError, match="what cell was looked for"):
        sfx.write_dials(tmp_path / "b", crystals.drop_attrs(), reflections, geometry)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnsupportedError, match="apt-get install dials"):
        sfx.write_dials(tmp_path / "b", crystals, reflections, geometry)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.expt", "a.refl"]
    assert "dials" not in sys.modules
