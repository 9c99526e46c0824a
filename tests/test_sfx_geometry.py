"""Geometries: CrystFEL's and psana's files against what they say, against the simulated detector, against psana."""

import importlib.util
import pickle
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from sfx_frames import jungfrau, small

from lcls_dask import sfx
from lcls_dask.errors import ArgumentError, FormatError, RunNotFoundError, TargetExistsError
from lcls_dask.facility.geometry import PIXEL, crystfel_geometry, jungfrau_4m, pixel_positions

Array = np.ndarray[Any, Any]


def written(folder: Path, text: str, name: str = "a.geom") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def panels(layout: list[tuple[str, int, int, int, int]], **told: str) -> str:
    """Entries of panels: name, first and last ss, first and last fs; side by side in x."""
    lines = []
    for number, (name, ss0, ss1, fs0, fs1) in enumerate(layout):
        entries = {"min_ss": ss0, "max_ss": ss1, "min_fs": fs0, "max_fs": fs1, "corner_x": 1000 * number,
                   "corner_y": -20.0, "fs": "+1.0x +0.0y", "ss": "+0.0x +1.0y", **told}  # fmt: skip
        lines += [f"{name}/{key} = {value}" for key, value in entries.items()]
    return "\n".join(lines) + "\n"


HEAD = "clen = 0.1\nres = 10000\nphoton_energy = 9500 eV\n"


def test_the_simulated_jungfrau_is_where_it_was_simulated(tmp_path: Path) -> None:
    layout = jungfrau_4m()
    geometry = sfx.read_geometry(written(tmp_path, crystfel_geometry(layout, 0.12, 9500.0, 389.5)))
    assert geometry.shape == (8, 512, 1024)
    assert (geometry.distance, geometry.photon_energy) == (0.12, 9500.0)
    x, y, z = geometry.positions()
    np.testing.assert_allclose(np.stack([x, y], axis=-1), pixel_positions(layout) * PIXEL, atol=1e-9)
    assert (z == 0.12).all()
    assert geometry.panels[9].groups == ("p1", "modules")
    d = geometry.resolution()
    assert 1.5 < d.min() < 1.8
    q = geometry.scattering_vectors(3, 100, 200)
    assert 1 / np.linalg.norm(q) == pytest.approx(d[3, 100, 200], rel=1e-12)
    # q = (s - s0) / wavelength
    s = geometry.place(3, 100, 200) / np.linalg.norm(geometry.place(3, 100, 200))
    np.testing.assert_allclose(q, (s - [0, 0, 1]) * 9500 / 12398.419843320026, rtol=1e-9)


def test_places_are_those_of_pixels_and_go_between_them() -> None:
    geometry = jungfrau()
    random = np.random.default_rng(0)
    segment, row, column = random.integers(8, size=500), random.integers(512, size=500), random.integers(1024, size=500)
    whole = geometry.positions()[:, segment, row, column].T
    np.testing.assert_allclose(geometry.place(segment, row, column), whole, atol=1e-15)
    panel = geometry.panels[5]
    between = geometry.place(panel.segment, panel.row0 + 0.5, panel.column0 + 0.25)
    expected = np.array(panel.corner) + 0.5 * np.array(panel.ss) + 0.25 * np.array(panel.fs) + [0, 0, 0.12]
    np.testing.assert_allclose(between, expected, atol=1e-15)
    ss, fs = geometry.to_slab(segment, row, column)
    for back, there in zip(geometry.from_slab(ss, fs), (segment, row, column), strict=True):
        np.testing.assert_array_equal(back, there)
    moved = geometry.moved(1e-3, -2e-3, 0.01)
    np.testing.assert_allclose(moved.positions() - geometry.positions(), np.broadcast_to(
        np.array([1e-3, -2e-3, 0.01])[:, None, None, None], (3, *geometry.shape)), atol=1e-12)  # fmt: skip
    assert pickle.loads(pickle.dumps(geometry)) == geometry


def test_written_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    for number, geometry in enumerate((jungfrau(), small(3, 40, 60, 3).moved(dz=0.02))):
        path = sfx.write_geometry(geometry, tmp_path / f"{number}.geom")
        again = sfx.read_geometry(path, shape=geometry.shape)
        np.testing.assert_allclose(again.positions(), geometry.positions(), atol=2e-10)
        assert [p.name for p in again.panels] == [p.name for p in geometry.panels]
        assert [set(geometry.panels[0].groups) <= set(p.groups) for p in again.panels[:1]] == [True]
        with pytest.raises(TargetExistsError, match="is there already"):
            sfx.write_geometry(geometry, path)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".geom", ".geom"]


@pytest.mark.parametrize(
    ("layout", "shape", "places"),
    [
        # Jungfrau 4M, ePix10k2M and CSPAD as psana stacks them; Cheetah's slab of the CSPAD; any other
        ([("p7a7", 3840, 4095, 768, 1023), ("p0a0", 0, 255, 0, 255)], (8, 512, 1024), [(7, 256, 768), (0, 0, 0)]),
        ([("p15a3", 5456, 5631, 192, 383), ("p0a1", 0, 175, 192, 383)], (16, 352, 384), [(15, 176, 192), (0, 0, 192)]),
        ([("p31a1", 5735, 5919, 194, 387), ("p1a0", 185, 369, 0, 193)], (32, 185, 388), [(31, 0, 194), (1, 0, 0)]),
        ([("q3a15", 1295, 1479, 1358, 1551), ("q1a2", 185, 369, 388, 581)], (32, 185, 388), [(31, 0, 194), (9, 0, 0)]),
        ([("a", 0, 99, 0, 49), ("b", 0, 99, 50, 149)], (1, 100, 150), [(0, 0, 0), (0, 0, 50)]),
    ],
)
def test_slabs_of_lcls_detectors_become_segments(
    tmp_path: Path, layout: list[Any], shape: tuple[int, int, int], places: list[tuple[int, int, int]]
) -> None:
    geometry = sfx.read_geometry(written(tmp_path, HEAD + panels(layout)))
    assert geometry.shape == shape
    assert [(p.segment, p.row0, p.column0) for p in geometry.panels] == places
    for panel, (_, ss, _, fs, _) in zip(geometry.panels, layout, strict=True):
        assert [float(one) for one in geometry.to_slab(panel.segment, panel.row0, panel.column0)] == [ss, fs]


def test_panels_by_index_are_segments(tmp_path: Path) -> None:
    text = HEAD + "dim0 = %\ndim2 = ss\ndim3 = fs\n"
    for number in range(3):
        text += panels([(f"p{number}", 0, 9, 0, 19)], dim1=str(number), corner_x=str(30 * number))
    geometry = sfx.read_geometry(written(tmp_path, text))
    assert geometry.shape == (3, 10, 20)
    assert [p.segment for p in geometry.panels] == [0, 1, 2]


def test_what_stands_before_panels_counts_for_them_and_comments_do_not(tmp_path: Path) -> None:
    text = "; clen = 9\nclen = 0.1 ; m\nres = 10000\ncoffset = 0.002\n" + panels([("a", 0, 9, 0, 9)])
    text += "res = 20000\na/coffset = 0.001\n" + panels([("b", 0, 9, 10, 19)], fs="-1.0y+.5x", ss="x")
    geometry = sfx.read_geometry(written(tmp_path, text))
    a, b = geometry.panels
    assert (a.corner[2], b.corner[2]) == (0.001, 0.002)
    assert a.fs == pytest.approx((1e-4, 0, 0))
    assert b.fs == pytest.approx((2.5e-5, -5e-5, 0))
    assert b.ss == pytest.approx((5e-5, 0, 0))
    assert geometry.photon_energy is None
    with pytest.raises(ArgumentError, match="photon_energy: the geometry has none"):
        geometry.resolution()


def test_groups_bad_regions_and_unused_panels(tmp_path: Path) -> None:
    text = HEAD + panels([("a", 0, 9, 0, 9), ("b", 0, 9, 10, 19), ("c", 0, 9, 20, 29)]) + "c/no_index = 1\n"
    text += "rigid_group_left = a, b\nrigid_group_right = c\nrigid_group_collection_all = left,right\n"
    text += "badrow/min_fs = 5\nbadrow/max_fs = 12\nbadrow/min_ss = 3\nbadrow/max_ss = 4\n"
    text += "badone/panel = b\nbadone/min_fs = 0\nbadone/max_fs = 19\nbadone/min_ss = 9\nbadone/max_ss = 9\n"
    text += "badbeam/min_x = 0\nbadbeam/max_x = 3\nbadbeam/min_y = -20\nbadbeam/max_y = -18\n"
    geometry = sfx.read_geometry(written(tmp_path, text))
    assert [p.groups for p in geometry.panels] == [("left", "all"), ("left", "all"), ("right", "all")]
    expected = np.zeros((10, 30), bool)
    expected[3:5, 5:13] = expected[9, 10:20] = expected[:, 20:] = expected[:2, :3] = True
    assert geometry.bad is not None
    np.testing.assert_array_equal(geometry.bad[0], expected)


def test_distance_energy_and_mask_in_the_data(tmp_path: Path) -> None:
    text = "clen = /LCLS/detector_1/EncoderValue\nphoton_energy = /LCLS/photon_energy_eV\nres = 10000\n"
    text += "coffset = 0.58\nmask = /entry_1/data_1/mask\nmask_good = 0x0000\nmask_bad = 0xffff\n"
    path = written(tmp_path, text + panels([("a", 0, 9, 0, 19)]))
    bits = np.zeros((10, 20), np.uint16)
    bits[2, 3] = 4
    with h5py.File(tmp_path / "a.cxi", "w") as file:
        file["LCLS/detector_1/EncoderValue"] = [-500.0, -480.0]
        file["LCLS/photon_energy_eV"] = [9000.0, 9500.0]
        file["entry_1/data_1/mask"] = bits
    geometry = sfx.read_geometry(path, data=tmp_path / "a.cxi", event=1)
    assert geometry.photon_energy == 9500
    assert geometry.place(0, 0, 0)[2] == pytest.approx(0.1)
    assert geometry.bad is not None
    np.testing.assert_array_equal(geometry.bad[0], bits > 0)
    assert sfx.read_geometry(path, distance=0.2, photon_energy=8000.0).photon_energy == 8000
    with pytest.raises(ArgumentError, match="distance is at /LCLS/detector_1/EncoderValue in the data"):
        sfx.read_geometry(path)
    with pytest.raises(FormatError, match="event 2"):
        sfx.read_geometry(path, data=tmp_path / "a.cxi", event=2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (("clen = 0.1", "clen = far"), FormatError, "clen is 'far'"),
        (("clen = 0.1", ""), ArgumentError, "tells no distance"),
        (("clen = 0.1", "clen = -1"), FormatError, "not above zero"),
        (("res = 10000", ""), FormatError, "a/res is missing"),
        (("a/min_fs = 0", "a/min_fs = x"), FormatError, "a/min_fs is 'x'"),
        (("a/min_fs = 0", "a/min_fs = 0.5"), FormatError, "not a whole number"),
        (("a/fs = +1.0x +0.0y", "a/fs = 1 2 3"), FormatError, "a/fs is '1 2 3'"),
        (("a/fs = +1.0x +0.0y", "a/fs = +1.0y"), ArgumentError, "do not span a plane"),
        (("b/min_fs = 10", "b/min_fs = 5"), ArgumentError, "share pixels"),
        (("a/corner_x = 0", "a/corner_x = nan"), FormatError, "not a finite number"),
        (("clen = 0.1", "clen = 0.1\nthis is no entry"), FormatError, "line 2 is 'this is no entry'"),
    ],
)
def test_damaged_files_are_told(tmp_path: Path, change: tuple[str, str], error: type[Exception], words: str) -> None:
    text = HEAD + panels([("a", 0, 9, 0, 9), ("b", 0, 9, 10, 19)])
    assert change[0] in text
    with pytest.raises(error, match=words):
        sfx.read_geometry(written(tmp_path, text.replace(*change, 1)))


def test_files_that_are_no_geometry(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="no such geometry file"):
        sfx.read_geometry(tmp_path / "none.geom")
    with pytest.raises(FormatError, match="directory"):
        sfx.read_geometry(tmp_path)
    with pytest.raises(FormatError, match="no panels"):
        sfx.read_geometry(written(tmp_path, "clen = 1\n"))
    (tmp_path / "b.geom").write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
    with pytest.raises(FormatError, match="no text"):
        sfx.read_geometry(tmp_path / "b.geom")
    with pytest.raises(FormatError, match="no objects"):
        sfx.read_geometry(written(tmp_path, "# only words\n", "a.data"))
    with pytest.raises(FormatError, match="line 1 is 'IP 0"):
        sfx.read_geometry(written(tmp_path, "IP 0 JUNGFRAU:V2 0 1 2\n", "a.data"))
    with pytest.raises(FormatError, match="SOMETHING:V9 are not known"):
        sfx.read_geometry(written(tmp_path, "IP 0 SOMETHING:V9 0 " + "0 " * 9 + "\n", "a.data"))
    loop = "A:V1 0 A:V1 1 " + "0 " * 9 + "\nA:V1 1 A:V1 0 " + "0 " * 9 + "\nIP 0 A:V1 0 " + "0 " * 9 + "\n"
    with pytest.raises(FormatError):
        sfx.read_geometry(written(tmp_path, loop, "a.data"))


def test_the_picture_is_seen_along_the_beam() -> None:
    geometry = jungfrau()
    x, y, _ = geometry.positions()
    picture = geometry.assemble(np.where((x > 0) & (y > 0), 1.0, 0.0), fill=-1)
    height, width = picture.shape
    assert picture[: height // 2, : width // 2].max() == 1  # up and to the left
    assert picture[height // 2 + 2 :].max() == 0
    assert picture[:, width // 2 + 2 :].max() == 0
    assert (picture >= 0).sum() == pytest.approx(8 * 512 * 1024, rel=0.01)
    with pytest.raises(ArgumentError, match="has shape"):
        geometry.assemble(np.zeros((8, 512, 1000)))


PSANA = ("cspad", "jungfrau4M", "jungfrau1M", "jungfrau05M", "epix10kaquad", "epix100a", "epixhr2x2")


def psana_data() -> Path:
    spec = importlib.util.find_spec("psana")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("psana is not installed: its geometry files are NOT compared with it")
    return Path(next(iter(spec.submodule_search_locations))) / "pscalib" / "geometry" / "data"


@pytest.mark.parametrize("detector", PSANA)
def test_psana_files_are_as_psana_reads_them(detector: str) -> None:
    path = psana_data() / f"geometry-def-{detector}.data"
    if not path.exists():
        pytest.skip(f"this psana has no {path.name}: it was NOT read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from psana.pscalib.geometry.GeometryAccess import GeometryAccess

        theirs = np.stack([np.asarray(one) for one in GeometryAccess(str(path)).get_pixel_coords()])
    geometry = sfx.read_geometry(path, distance=0.1)
    theirs = theirs.reshape(3, *geometry.shape) * 1e-6
    x, y, z = geometry.positions()
    lab = np.stack([-theirs[1], -theirs[0], -theirs[2]])
    # pixels between ASICs are wider there, and so half a pixel elsewhere
    apart = np.abs(lab[:2] - np.stack([x, y])).max(axis=0)
    assert np.quantile(apart, 0.98) < 2e-6
    assert apart.max() < 0.8 * np.linalg.norm(geometry.panels[0].fs)
    tilted = (lab[2] - lab[2].mean()) - (z - z.mean())
    assert np.abs(tilted).max() < 5e-6
    assert z.mean() == pytest.approx(0.1, abs=1e-3)


def test_a_psana_geometry_is_written_for_crystfel(tmp_path: Path) -> None:
    geometry = sfx.read_geometry(psana_data() / "geometry-def-jungfrau4M.data", distance=0.1, photon_energy=9500.0)
    assert geometry.shape == (8, 512, 1024)
    again = sfx.read_geometry(sfx.write_geometry(geometry, tmp_path / "a.geom"))
    np.testing.assert_allclose(again.positions(), geometry.positions(), atol=1e-9)
    # a pinwheel about the beam: no pixel in its middle
    x, y, _ = geometry.positions()
    assert 0.001 < np.hypot(x, y).min() < 0.02
