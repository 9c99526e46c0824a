"""Files of DIALS, which DIALS itself reads and goes on from."""

import json
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


def test_what_is_no_file_of_dials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crystals, geometry = true_crystals([run.still(4, 0)]), run.geometry()
    reflections = sfx.predict(crystals, geometry, d_min=3.0)
    assert isinstance(reflections, xr.Dataset)
    nothing = {name: ("reflection", np.zeros(reflections.sizes["reflection"])) for name in ("intensity", "sigma")}
    reflections = reflections.assign(nothing | {"background": nothing["sigma"]})
    with pytest.raises(RunNotFoundError, match=r"a\.expt: there is no such file"):
        sfx.read_dials(tmp_path / "a")
    (tmp_path / "a.expt").write_text("{}")
    # DIALS would unpickle it
    (tmp_path / "a.refl").write_bytes(b"cos\nsystem\n(S'touch it'\ntR.")
    with pytest.raises(FormatError, match="no reflection table"):
        sfx.read_dials(tmp_path / "a")
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
