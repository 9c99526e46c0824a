"""Crystallography from frames to merged intensities, by the command and by function, against the simulation's truth."""

import dataclasses
import importlib.metadata
import json
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import lcls_dask
from lcls_dask import cli, sfx
from lcls_dask.errors import ArgumentError, SelectionError, StorageError, TargetExistsError
from lcls_dask.facility import sfx as facility
from lcls_dask.formats import discover
from lcls_dask.formats.xtc2.source import Xtc2Source
from lcls_dask.sfx import blocks, results
from lcls_dask.sfx.chain import analyse, blocks_of, photons_of
from lcls_dask.sfx.cxi import new_file
from lcls_dask.sfx.detectors import epix10ka_ranges
from lcls_dask.sfx.kept import load, save
from lcls_dask.sfx.merging import merge, pack, to_asu
from lcls_dask.sfx.recipe import Settings, Tools
from lcls_dask.sfx.results import open_result

pytest.importorskip("gemmi", reason="gemmi is not installed: the chain of crystallography was NOT tested")

EVENTS = 10
CELL = sfx.Cell((*facility.CELL, 90.0, 90.0, 90.0), "P 43 21 2")


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sfx") / "run"
    lcls_dask.simulate(path, "sfx", events=EVENTS, seed=3)
    return path


@pytest.fixture(scope="module")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames, all of them hits."""
    path = tmp_path_factory.mktemp("sfx") / "small"
    lcls_dask.simulate(path, "sfx", events=4, seed=3)
    return path


def options(run: Path, out: Path, *more: str) -> list[str]:
    given = ["--cell", str(run / "lysozyme.cell"), "--space-group", "P43212", "--constants", str(run / "constants.npz")]
    return ["sfx", str(run), "--out", str(out), "--geometry", str(run / "jungfrau4M.geom"), *given, *more]


def settings(run: Path, **more: Any) -> Settings:
    files = str(run / "jungfrau4M.geom"), str(run / "lysozyme.cell"), "P43212", str(run / "constants.npz")
    return Settings(*files, **{"cxi": False, "block": 5} | more)


def command(arguments: list[str], **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lcls_dask", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


#: The command, killed in the middle of writing the result of its second block.
KILLED = """
import os, signal, sys
import dask
from lcls_dask import cli
from lcls_dask.sfx import blocks, files

save = blocks.save

def half(path, datasets):
    if list(path.parent.glob("*.h5")):
        files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    save(path, datasets)

blocks.save = half
with dask.config.set(scheduler="synchronous"):
    cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def whole(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes that was killed in the middle, and called again."""
    out = tmp_path_factory.mktemp("whole") / "out"
    arguments = options(run_path, out, "--block", "5")
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=180, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in out.iterdir()) == ["blocks", "hits", "settings.json"]
    assert len(list(out.glob("blocks/.*"))) == 1
    (kept,) = out.glob("blocks/[!.]*.h5")
    hits = out / "hits" / f"{kept.stem.split('-')[2]}.cxi"
    before = hits.stat()
    process = command([*arguments, "--json"])
    told, errors = process.communicate(timeout=180)
    assert (process.returncode, errors) == (0, "")
    after = hits.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)  # it was not done again
    (out / "told.json").write_text(told)
    return out


def truth(run: Path) -> dict[str, Any]:
    group = zarr.open_group(run / "truth.zarr", mode="r")
    return {name: np.asarray(array[...]) for name, array in group.arrays()}


def away(matrix: np.ndarray, rotation: np.ndarray) -> float:
    """Degrees between an orientation and the true one, up to the lattice's rotations."""
    left, _, right = np.linalg.svd(np.diag(facility.CELL) @ matrix)
    turns = [np.trace(turn @ left @ right @ rotation) for turn in CELL.rotations]
    return float(np.degrees(np.arccos(np.clip((max(turns) - 1) / 2, -1, 1))))


def test_the_command_against_the_truth(run_path: Path, whole: Path) -> None:
    known, result = truth(run_path), open_result(whole)
    told = json.loads((whole / "told.json").read_text())
    frames, crystals, merged = (result[name] for name in ("frames", "crystals", "merged"))
    np.testing.assert_array_equal(frames["hit"], known["hit"])
    np.testing.assert_array_equal(frames["timestamp"], known["timestamp"])
    np.testing.assert_array_equal(frames["segments"], known["written"].sum(axis=1))
    assert all({"units", "long_name"} <= set(frames[name].attrs) for name in frames.data_vars)
    incomplete = int((~known["written"].all(axis=1)).sum())
    assert incomplete
    hits = int(known["hit"].sum())
    assert told["incomplete"] == incomplete
    assert [told[name] for name in ("frames", "hits", "indexed", "crystals", "bad")] == [EVENTS, hits, hits, hits, {}]
    for frame, matrix in zip(crystals["frame"].values, crystals["matrix"].values, strict=True):
        assert away(matrix, known["rotation"][frame]) < 0.1
    hkl = np.stack([merged[name].values for name in "hkl"], axis=1)
    unique = pack(to_asu(known["unique.hkl"], CELL))
    order = np.argsort(unique)
    place = np.searchsorted(unique[order], pack(hkl))
    np.testing.assert_array_equal(unique[order][place], pack(hkl))
    square = ((hkl / facility.CELL) ** 2).sum(axis=1)
    true = known["unique.intensity"][order][place] * np.exp(-0.5 * facility.B_FACTOR * square)
    # of few crystals: what is measured in one of them has its partiality
    assert np.corrcoef(true, merged["intensity"])[0, 1] > 0.7
    assert told["cc_half"] == pytest.approx(float(result["figures"]["cc_half_overall"]))
    assert int(result["powder/hits"]["frames"]) == hits
    powder = result["powder/misses"]["mean"].values
    hot = tuple(known["hot_pixels"].T)
    assert np.isnan(powder[hot]).all()
    assert np.isnan(powder).sum() == len(known["hot_pixels"])
    assert 0.05 < np.nanmean(powder) < 0.5  # of photons: what air and water scatter


def test_an_interrupted_run_ends_as_one_that_was_not(run_path: Path, whole: Path, tmp_path: Path) -> None:
    assert not list(whole.rglob(".*"))
    assert not (whole / "blocks").exists()
    (tmp_path / "blocks").mkdir()
    with pytest.raises(TargetExistsError, match="blocks: is there already"):
        analyse(lcls_dask.open_run(run_path), tmp_path, settings(run_path))
    (tmp_path / "blocks").rmdir()
    analyse(lcls_dask.open_run(run_path), tmp_path, settings(run_path))
    for name in ("merged.mtz", "merged.hkl", "geometry.geom"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    for name in ("frames", "peaks", "crystals", "reflections", "powder/hits", "powder/misses", "merged", "figures"):
        xr.testing.assert_identical(open_result(tmp_path)[name].to_dataset(), open_result(whole)[name].to_dataset())
    # finished, it is told again and not done again
    before = (tmp_path / "sfx.zarr").stat().st_mtime_ns
    analyse(lcls_dask.open_run(run_path), tmp_path, settings(run_path))
    assert (tmp_path / "sfx.zarr").stat().st_mtime_ns == before


def test_files_for_other_programs(run_path: Path, whole: Path) -> None:
    import gemmi
    import h5py

    result = open_result(whole)
    mtz = gemmi.read_mtz_file(str(whole / "merged.mtz"))
    assert (mtz.spacegroup.hm, mtz.nreflections) == ("P 43 21 2", result["merged"].sizes["reflection"])
    geometry = sfx.read_geometry(whole / "geometry.geom")
    stream = sfx.read_stream(whole / "crystals.stream", geometry)
    np.testing.assert_allclose(stream.crystals["matrix"], result["crystals"]["matrix"], atol=1e-7)
    assert stream.reflections.sizes["reflection"] == result["reflections"].sizes["reflection"]
    listed = [whole / line for line in (whole / "hits.lst").read_text().split()]
    found = []
    for path in listed:
        with h5py.File(path) as file:
            assert len(file["entry_1/data_1/data"]) == len(file["entry_1/event"]) > 0
            counts = file["entry_1/result_1/nPeaks"][()]
            name, events = str(path.relative_to(whole)), file["entry_1/event"][()]
            found += [
                (name, f"//{i}", event, peaks) for i, (event, peaks) in enumerate(zip(events, counts, strict=True))
            ]
    assert [one[2] for one in found] == result["crystals"]["frame"].values.tolist()
    frames = zip(stream.crystals["filename"].values, stream.crystals["event_name"].values, strict=True)
    assert list(frames) == [one[:2] for one in found]
    assert [one[3] for one in found] == np.diff(stream.peaks["offset"]).tolist()
    pictures = json.loads((whole / "told.json").read_text())["pictures"]
    assert sorted(Path(one).name for one in pictures) == ["frame.png", "hits.png", "powder.png", "shells.png"]


def test_frames_that_fail_are_marked_and_the_run_goes_on(
    small_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = np.flatnonzero(truth(small_path)["hit"])
    broken, indexed_wrongly = int(hits[0]), int(hits[1])
    read, index = Xtc2Source.read, blocks.index

    def damaged(self: Xtc2Source, node: str, name: str, rows: slice) -> Any:
        if name == "jungfrau.raw.raw" and rows.start <= broken < rows.stop:
            raise lcls_dask.errors.FormatError("event is damaged")
        return read(self, node, name, rows)

    def wrong(peaks: xr.Dataset, *rest: Any, **more: Any) -> Any:
        if indexed_wrongly in peaks["frame"].values:
            raise np.linalg.LinAlgError("Singular matrix")
        return index(peaks, *rest, **more)

    def none_is_good(*arguments: Any, **more: Any) -> xr.Dataset:
        return merge(*arguments, **more, d_max=1e-3)

    monkeypatch.setattr(Xtc2Source, "read", damaged)
    monkeypatch.setattr(blocks, "index", wrong)
    monkeypatch.setattr(results, "merge", none_is_good)
    assert cli.main(options(small_path, tmp_path / "out", "--block", "3", "--no-cxi", "--no-pictures")) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"bad frames 2: event {broken}, FormatError: event is damaged; event {indexed_wrongly}, LinAlgError" in told
    assert "bad frames stay bad in OUT" in told
    # what cannot be merged is there all the same
    assert "not merged: there is nothing to merge" in told
    assert (tmp_path / "out" / "crystals.stream").exists()
    result = open_result(tmp_path / "out")
    assert "merged" not in result.children
    np.testing.assert_array_equal(np.flatnonzero(result["frames"]["bad"]), sorted([broken, indexed_wrongly]))
    np.testing.assert_array_equal(result["crystals"]["frame"], hits[2:])
    assert int(result["powder/hits"]["frames"]) == len(hits) - 2

    # a disk or gateway that is away is not the frame's fault
    def gone(self: Xtc2Source, node: str, name: str, rows: slice) -> Any:
        raise StorageError("the disk is away")

    monkeypatch.setattr(Xtc2Source, "read", gone)
    with pytest.raises(StorageError, match="disk is away"):
        analyse(lcls_dask.open_run(small_path), tmp_path / "away", settings(small_path))

    # nor is a mistake in the program
    def mistaken(self: Xtc2Source, node: str, name: str, rows: slice) -> Any:
        raise AttributeError("no such attribute")

    monkeypatch.setattr(Xtc2Source, "read", mistaken)
    with pytest.raises(AttributeError):
        analyse(lcls_dask.open_run(small_path), tmp_path / "away", settings(small_path))


def test_bad_input_is_one_line(run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    geometry = tmp_path / "small.geom"
    panel = sfx.Panel("p0", 0, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
    sfx.write_geometry(sfx.Geometry((panel,), (1, 4, 6), 0.1, 9500.0), geometry)
    np.savez(tmp_path / "small.npz", pedestal=np.ones((8, 4, 6)))
    np.save(tmp_path / "small.npy", np.ones((4, 6), np.float32))
    for more, words in (
        (["--geometry", str(geometry), "--constants", str(run_path / "constants.npz")], "8 x 512 x 1024 pixels"),
        (["--geometry", str(tmp_path / "no.geom")], "no such geometry file"),
        (["--constants", str(tmp_path / "no.h5")], "no such file or directory of constants"),
        (["--constants", str(tmp_path / "small.npz")], "is of 8 x 4 x 6 pixels"),
        (["--cell", "79 79 38 90 90 200"], "no lattice has these angles"),
        (["--cell", "79 80 38 90 90 90"], "does not allow it"),
        (["--cell", str(tmp_path / "no.cell")], "there is no such file"),
        (["--space-group", "P9"], "no space group"),
        (["--detector", "epix"], "no area detector"),
        (["--min-peaks", "20", "--max-peaks", "10"], "20 to 10 peaks"),
        (["--mask", str(tmp_path / "small.npz")], "small.npz: cannot be read as a mask"),
        (["--mask", str(tmp_path / "small.npy")], "mask: is bool of shape (4, 6)"),
        (["--kind", "epix10ka"], "configuration: an ePix10ka's pixels are set one by one"),
        (["--configuration", str(tmp_path / "small.npy")], "configuration: is of an ePix10ka"),
        (
            ["--kind", "epix10ka", "--configuration", str(tmp_path / "small.npy")],
            "control bits of 8 x 512 x 1024 pixels are wanted",
        ),
        (["--evidence", "nan"], "evidence=nan"),
        (["--distance", "nan"], "distance"),
        (["--photon-energy", "nan"], "photon_energy"),
    ):
        assert cli.main(options(run_path, tmp_path / "out", *more)) == 1, more
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1
    assert not (tmp_path / "out" / "settings.json").exists()
    assert cli.main(options(run_path, tmp_path / "out", "--cell", "79 79 38")) == 2
    lcls_dask.simulate(tmp_path / "scan", "scan", events=20)
    arguments = options(run_path, tmp_path / "out")
    assert cli.main(["sfx", str(tmp_path / "scan"), *arguments[2:]]) == 1
    assert "0 area detectors" in capsys.readouterr().err


def test_the_group_still_has_its_other_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sfx", "darks", "--help"]) == 0
    assert "dark RUNs" in capsys.readouterr().out
    assert cli.main(["sfx", "--help"]) == 0
    told = capsys.readouterr().out
    assert "RUN" in told
    assert "darks" in told
    assert cli.main(["sfx", "--out", "x"]) == 2


def test_other_settings_are_told(run_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(options(run_path, whole, "--block", "5", "--threshold", "5")) == 1
    assert "other settings (threshold was 4.0, and is 5.0)" in capsys.readouterr().err
    copy = whole.parent / "constants.npz"
    with np.load(run_path / "constants.npz") as file:
        np.savez(copy, **{**file, "pedestal": file["pedestal"] + 1})
    assert cli.main(options(run_path, whole, "--block", "5", "--constants", str(copy))) == 1
    assert "other settings (constants was" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_no_file(
    small_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 40 << 20  # less than the powder pattern of a block

    def full() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = command(options(small_path, tmp_path / "out", "--no-cxi"), preexec_fn=full)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1
    assert re.fullmatch(r"lcls-dask: \S+\.h5: cannot be written: File too large; .* goes on from there\n", errors)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["settings.json"]

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blocks.Writer, "append", no_space)
    with pytest.raises(StorageError, match=r"cxi: cannot be written: No space left on device; .*"):
        analyse(lcls_dask.open_run(small_path), tmp_path / "hits", settings(small_path, cxi=True, block=4))
    assert [path.name for path in (tmp_path / "hits").rglob("*") if path.is_file()] == ["settings.json"]


def test_frames_without_crystals_are_a_result(
    small_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(options(small_path, tmp_path / "out", "--no-cxi", "--no-pictures", "--min-peaks", "2000")) == 0
    told = capsys.readouterr().out
    assert "no hits: give a lower --threshold" in told
    assert not list((tmp_path / "out").glob("*.png"))
    assert not (tmp_path / "out" / "merged.mtz").exists()


def test_settings_out_of_range(run_path: Path, tmp_path: Path) -> None:
    run = lcls_dask.open_run(run_path)
    for more in (
        {"statistics": "some"}, {"block": 0}, {"min_peaks": 0}, {"lattices": 0}, {"lattices": 200},
        {"evidence": np.nan}, {"mosaicity": -1.0}, {"mosaicity": np.nan}, {"profile_radius": 0.1}, {"reject": np.nan},
        {"cell": [79.1, 79.1]},
    ):  # fmt: skip
        with pytest.raises(ArgumentError):
            analyse(run, tmp_path, dataclasses.replace(settings(run_path), **more))
    assert not list(tmp_path.iterdir())
    for event in (-1, EVENTS):
        with pytest.raises(SelectionError, match=f"event {event} was asked for"):
            photons_of(run, settings(run_path), event)


def test_a_task_is_of_names_and_numbers(run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = tmp_path / "mask.npy"
    np.save(mask, np.ones((8, 512, 1024), np.float32))
    cell: Any = [79.1, 79.1, 37.9, 90, 90, 90]
    told = dataclasses.replace(settings(run_path), mask=str(mask), cell=cell)
    tools = Tools.of(told, 1)
    assert tools.good is not None
    assert tools.good.all()
    block = blocks_of(lcls_dask.open_run(run_path), tmp_path, tools)[1]
    # where it is unpickled, as in the scheduler, the run is not opened
    monkeypatch.setattr(discover, "_OPEN", type(discover._OPEN)())
    again = pickle.loads(pickle.dumps(block))
    assert not discover._OPEN
    assert (again.path, again.settings, again.source) == (block.path, told, block.source)
    # another version's results are never taken for these
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "999")
    assert Tools.of(told, 1).digest != tools.digest


def test_pixels_of_an_epix10ka_are_set_one_by_one(run_path: Path, tmp_path: Path) -> None:
    random, shape = np.random.default_rng(0), (8, 512, 1024)
    bits = random.choice([28, 12, 8, 16, 0], shape)
    pedestal, gain = (random.uniform(low, 2 * low, (7, *shape)).astype(np.float32) for low in (100, 10))
    np.savez(tmp_path / "constants.npz", pedestals=pedestal, pixel_gain=gain)
    np.save(tmp_path / "bits.npy", bits.astype(np.float64))
    told = dataclasses.replace(
        settings(run_path, kind="epix10ka", configuration=str(tmp_path / "bits.npy")),
        constants=str(tmp_path / "constants.npz"),
    )
    tools = Tools.of(told, 1)
    assert tools.stages is not None
    chosen = epix10ka_ranges(bits).astype(np.int64)
    np.testing.assert_array_equal(
        tools.stages.pedestal.reshape(2, *shape), np.take_along_axis(pedestal, chosen, axis=0)
    )
    np.testing.assert_allclose(
        tools.stages.factor.reshape(2, *shape), 1 / (np.take_along_axis(gain, chosen, axis=0) * 9.5), rtol=1e-6
    )
    bits[0, 0, 0] = 0 if bits[0, 0, 0] else 28
    np.save(tmp_path / "bits.npy", bits)
    assert Tools.of(told, 1).digest != tools.digest
    np.savez(tmp_path / "constants.npz", pedestals=pedestal[:3])
    with pytest.raises(ArgumentError, match="are of 7 ranges of gain, not 3"):
        Tools.of(told, 1)


def test_a_block_that_two_processes_make(tmp_path: Path) -> None:
    path, made = tmp_path / "a.h5", {"x": xr.Dataset({"n": ("event", [1, 2])})}
    with new_file(path, again=True) as file:
        save(path, made)  # the other one begins later, and is the first to end
        file["y"] = 1
        assert load(path, "x").identical(made["x"])
    save(path, made)
    assert load(path, "x").identical(made["x"])
    assert list(tmp_path.iterdir()) == [path]


def test_the_real_jungfrau_module(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One segment, of which there is no label, and nothing known of the sample: frames and peaks, no crystal."""
    geometry = tmp_path / "one.geom"
    panel = "min_fs = 0|max_fs = 1023|min_ss = 0|max_ss = 511|corner_x = -512|corner_y = -256|fs = +1.0x|ss = +1.0y"
    head = ["photon_energy = 9480", "clen = 0.1", "adu_per_photon = 1", "res = 13333.3", "data = /data"]
    axes = ["dim0 = %", "dim1 = 0", "dim2 = ss", "dim3 = fs", "p0/dim1 = 0"]
    geometry.write_text("\n".join([*head, *axes, *(f"p0/{one}" for one in panel.split("|"))]) + "\n")
    given = ["--cell", "79.1 79.1 37.9 90 90 90", "--geometry", str(geometry), "--threshold", "100", "--json"]
    run = real_data / "lcls2" / "test_jungfrau05M_calib.xtc2"
    assert cli.main(["sfx", str(run), "--out", str(tmp_path / "out"), *given]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["frames"], told["bad"], told["incomplete"], told["crystals"]) == (2, {}, 0, 0)
    assert open_result(tmp_path / "out")["frames"].to_dataset()["segments"].values.tolist() == [1, 1]
