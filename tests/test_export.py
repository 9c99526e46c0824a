"""Export: the same values, names, dimensions and attributes again; in parallel, after a kill, and never by halves."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_source import MemorySource, array
from xtc2_runs import full_run

import lcls_dask
from lcls_dask.access.export import export
from lcls_dask.access.subset import SubsetSource, event_rows
from lcls_dask.errors import SelectionError, TargetExistsError, UnsupportedError, UriError
from lcls_dask.formats import open_source
from lcls_dask.formats.hdf5 import open_hdf5
from lcls_dask.formats.source import RunSource, SourceRef
from lcls_dask.formats.zarr import open_zarr
from lcls_dask.model import time_of
from lcls_dask.stores.metadata import dataset_attrs, variable_attrs

FORMATS = ("run.zarr", "run.h5", "run.nc")


def stamps(count: int) -> np.ndarray[Any, Any]:
    return (np.uint64(1_150_000_000) << np.uint64(32)) + np.arange(count, dtype=np.uint64) * np.uint64(1077)


def a_run(events: int = 11, side: int = 6, state: str = "ended") -> MemorySource:
    """A run with every kind of node: a fast detector, a slow one, an hsd, steps, EPICS."""
    rng = np.random.default_rng(events)
    own = np.arange(1, events, 3)  # the slow detector's events
    lengths = rng.integers(0, 4, (events, 2))
    windows = int(lengths.sum())
    samples = rng.integers(0, 5, windows)
    edge = lambda values: np.concatenate([[0], np.cumsum(values)]).astype("i8")  # noqa: E731
    images = rng.integers(0, 9, (events, 1, side, 4)).astype("u2")
    slow = np.zeros((events, 3), "f4")
    slow[own] = rng.normal(size=(len(own), 3))

    def clock(rows: Any, dim: str) -> dict[str, Any]:
        return {
            "timestamp": array(stamps(events)[rows], (dim,), coordinate=True),
            "time": array(time_of(stamps(events))[rows], (dim,), coordinate=True, attrs={"long_name": "time"}),
        }

    number = {"jungfrau.segment": array(np.array([7], "i4"), ("jungfrau.segment",), coordinate=True)}
    epix = {"epix.raw.sum": slow}
    return MemorySource(
        {
            "/": {
                **clock(slice(None), "event"),
                "step": array((np.arange(events) // 5).astype("i4"), ("event",), coordinate=True),
                **number,
                "jungfrau.raw.raw": array(
                    images, ("event", "jungfrau.segment", "jungfrau.row", "jungfrau.column"),
                    attrs={"units": "ADU", "long_name": "raw", "gain": [1.0, float("nan")], "modes": ["a", "b"]},
                ),
                "epix.raw.sum": array(slow, ("event", "epix.raw.sum.dim_0")),
                "epix.raw.present": array(np.isin(np.arange(events), own), ("event",)),
                "label": array(np.array([f"ä{k}" for k in range(events)], dtype="<U5"), ("event",), chunk=3),
                "phase": array(np.exp(1j * np.arange(events)), ("event",)),
                "big": array(np.arange(events, dtype=">f8"), ("event",)),
                "none": array(np.zeros((events, 0), "f4"), ("event", "none.dim_0")),
            },
            "/jungfrau": {
                **clock(slice(None), "jungfrau.event"),
                **number,
                "jungfrau.raw.raw": array(
                    images, ("jungfrau.event", "jungfrau.segment", "jungfrau.row", "jungfrau.column")
                ),
                "mask": array(np.ones((side, 4), bool), ("jungfrau.row", "jungfrau.column")),
            },
            "/epix": {
                **clock(own, "epix.event"),
                **{name: array(values[own], ("epix.event", f"{name}.dim_0")) for name, values in epix.items()},
            },
            "/hsd": {
                **clock(slice(None), "hsd.event"),
                "hsd.raw.windows.offset": array(edge(lengths.reshape(-1)), ("hsd.raw.windows.row_edge",), chunk=7),
                "hsd.raw.windows.start": array(rng.integers(0, 99, windows).astype("i4"), ("hsd.raw.windows.window",)),
                "hsd.raw.windows.sample_offset": array(edge(samples), ("hsd.raw.windows.window_edge",)),
                "hsd.raw.windows.samples": array(
                    rng.integers(0, 99, int(samples.sum())).astype("u2"), ("hsd.raw.windows.sample",)
                ),
                "hsd.raw.stream_flags": array(np.arange(2 * events, dtype="u1"), ("hsd.raw.row",)),
            },
            "/steps": {"motor": array(np.array([1.5, 2.5, 3.5]), ("step",))},
            "/epics": {"HX2:DVD:GCC:01": array(np.array(["on", "off"]), ("update",))},
        },
        state=state,
        attrs={"instrument": "tmo", "settings": {"a": [1, 2], "b": None}},
        node_attrs={"/jungfrau": {"serial": "JF-1", "bias": 200.5}},
    )  # fmt: skip


def values(source: RunSource, path: str, name: str) -> np.ndarray[Any, Any]:
    return source.read(path, name, slice(0, source.index.nodes[path].variables[name].shape[0]))


def assert_same(found: RunSource, expected: RunSource) -> None:
    assert list(found.index.nodes) == list(expected.index.nodes)
    assert (found.index.experiment, found.index.run) == (expected.index.experiment, expected.index.run)
    for path, node in expected.index.nodes.items():
        again = found.index.nodes[path]
        assert list(again.variables) == list(node.variables)
        kept = {k: v for k, v in dataset_attrs(expected.index, path).items() if k != "snapshot"}
        assert kept.items() <= dataset_attrs(found.index, path).items()
        for name, variable in node.variables.items():
            other = again.variables[name]
            assert (other.dims, other.shape, other.dtype.newbyteorder("=")) == (
                variable.dims, variable.shape, variable.dtype.newbyteorder("="),
            )  # fmt: skip
            assert other.coordinate == variable.coordinate, name
            assert variable_attrs(other) == variable_attrs(variable)
            np.testing.assert_array_equal(values(found, path, name), values(expected, path, name), err_msg=name)
            if variable.shape[0] > 2:
                rows = np.array([variable.shape[0] - 1, 0, 2], np.int64)
                np.testing.assert_array_equal(found.read(path, name, rows), expected.read(path, name, rows))


def files_of(target: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_ino) for file in target.rglob("*") if file.is_file()}


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_run_comes_back_as_it_was(tmp_path: Path, name: str, scheduler: str) -> None:
    run, told = a_run(), []
    written = export(run, tmp_path / name, progress=lambda *of: told.append(of), scheduler=scheduler)
    assert written == tmp_path / name
    assert [path.name for path in tmp_path.iterdir()] == [name]
    again = open_source(written)
    assert_same(again, run)
    assert not [finding for finding in again.validate() if finding.fatal]
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 0
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    if name.endswith(".zarr"):
        assert again.index.snapshot == run.index.snapshot
    else:
        assert again.index.attrs["source_snapshot"] == run.index.snapshot


@pytest.mark.parametrize("compression", ["blosc", "zstd", "gzip", None])
def test_compressions(tmp_path: Path, compression: str | None) -> None:
    run = a_run()
    assert_same(open_zarr(SourceRef(str(export(run, tmp_path / "a.zarr", compression=compression)))), run)
    if compression in ("gzip", None):
        assert_same(open_hdf5(SourceRef(str(export(run, tmp_path / "a.h5", compression=compression)))), run)
    else:
        with pytest.raises(UnsupportedError, match="not for HDF5"):
            export(run, tmp_path / "a.h5", compression=compression)


def test_an_export_can_be_exported(tmp_path: Path) -> None:
    first = export(a_run(), tmp_path / "a.zarr")
    second = export(first, tmp_path / "b.h5")
    third = export(str(second), tmp_path / "c.zarr")
    assert_same(open_source(third), open_source(second))
    np.testing.assert_array_equal(values(open_source(third), "/", "label"), values(open_source(first), "/", "label"))


def test_zarr_and_xarray_read_the_store_without_a_warning(tmp_path: Path) -> None:
    run = a_run()
    target = export(run, tmp_path / "a.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(target, engine="zarr", consolidated=False)
        assert sorted(tree.children) == ["epics", "epix", "hsd", "jungfrau", "steps"]
        data = tree.to_dataset()
        assert data["time"].dtype == "datetime64[ns]"
        np.testing.assert_array_equal(data["time"], values(run, "/", "time"))
        np.testing.assert_array_equal(data["label"], values(run, "/", "label"))
        np.testing.assert_array_equal(data["jungfrau.raw.raw"], values(run, "/", "jungfrau.raw.raw"))
        assert {"timestamp", "time", "step", "jungfrau.segment"} <= set(data.coords)
        assert data["jungfrau.raw.raw"].attrs["units"] == "ADU"
        assert zarr.open_group(target, mode="r")["hsd/hsd.raw.windows.offset"].shape == (23,)


def test_a_store_needs_no_word_about_consolidated_metadata(tmp_path: Path) -> None:
    run = a_run()
    target = export(run, tmp_path / "a.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xr.open_zarr(target)
        np.testing.assert_array_equal(data["jungfrau.raw.raw"], values(run, "/", "jungfrau.raw.raw"))
        tree = xr.open_datatree(target, engine="zarr")
        own = xr.open_zarr(target, group="hsd")
    assert sorted(tree.children) == ["epics", "epix", "hsd", "jungfrau", "steps"]
    for path, node in run.index.nodes.items():
        for name in node.variables:
            np.testing.assert_array_equal(tree[path].dataset[name], values(run, path, name), err_msg=name)
    samples = values(run, "/hsd", "hsd.raw.windows.samples")
    np.testing.assert_array_equal(own["hsd.raw.windows.samples"], samples)


@pytest.mark.parametrize("name", ["part.zarr", "part.h5"])
def test_a_copy_says_what_it_was_made_of(tmp_path: Path, name: str) -> None:
    path = full_run(tmp_path / "run")
    whole = open_source(path)
    for chosen, told in ((slice(2, 9, 2), "2:9:2"), ([1, 3], "2 of 12"), (None, "all")):
        copy = open_source(export(whole, tmp_path / told / name, events=chosen, variables=["gmd.*", "note.*"]))
        attrs = dataset_attrs(copy.index, "/")
        assert attrs["source_snapshot"] == whole.index.snapshot
        assert f"lcls_dask {lcls_dask.__version__}, numpy {np.__version__}" in attrs["export_versions"]
        assert (attrs["export_events"], attrs["export_variables"]) == (told, "gmd.* note.*")
        assert attrs["export_compression"] == "auto"
        # each node has the snapshot of the copy, which is not that of the run
        for node in copy.index.nodes:
            assert dataset_attrs(copy.index, node)["snapshot"] == copy.index.snapshot != whole.index.snapshot


def test_other_hdf5_readers(tmp_path: Path) -> None:
    run = a_run()
    with h5py.File(export(run, tmp_path / "a.nc")) as file:
        image = file["jungfrau.raw.raw"]
        assert [dim.label or next(iter(dim.keys())) for dim in image.dims][1] == "jungfrau.segment"
        assert image.dims[0][0].name == "/event"
        assert image.attrs["units"] == "ADU"
        assert file["time"].attrs["units"] == "nanoseconds since 1970-01-01"
        np.testing.assert_array_equal(image[...], values(run, "/", "jungfrau.raw.raw"))
        assert file["label"].asstr()[1] == "ä1"
        # one dataset under two names: it takes room once
        assert file["jungfrau/jungfrau.raw.raw"] == image
        assert file["jungfrau"].attrs["serial"] == "JF-1"


def test_xarray_reads_the_netcdf(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf", reason="no h5netcdf: HDF5 exports are NOT read by xarray")
    run = a_run()
    target = export(SubsetSource(run, variables=["time*", "step", "jungfrau*", "epix*", "label"]), tmp_path / "a.nc")
    with xr.open_dataset(target, engine="h5netcdf") as data:
        assert data["jungfrau.raw.raw"].dims == ("event", "jungfrau.segment", "jungfrau.row", "jungfrau.column")
        np.testing.assert_array_equal(data["jungfrau.raw.raw"], values(run, "/", "jungfrau.raw.raw"))
        np.testing.assert_array_equal(data["time"], values(run, "/", "time"))
        assert data["epix.raw.present"].dtype == bool
        assert "timestamp" in data.coords


def test_a_detector_with_every_event_takes_room_once(tmp_path: Path) -> None:
    target = export(a_run(), tmp_path / "a.zarr")
    chunk = "jungfrau.raw.raw/c/0/0/0/0"
    assert (target / chunk).samefile(target / "jungfrau" / chunk)
    assert not (target / "epix.raw.sum/c/0/0").samefile(target / "epix" / "epix.raw.sum/c/0/0")


def test_nothing_overwrites(tmp_path: Path) -> None:
    export(a_run(), tmp_path / "a.zarr")
    before = files_of(tmp_path)
    with pytest.raises(TargetExistsError, match=r"a\.zarr"):
        export(a_run(), tmp_path / "a.zarr")
    with pytest.raises(UriError, match="choose one of these names"):
        export(a_run(), tmp_path / "a.parquet")
    with pytest.raises(UnsupportedError, match="lzma"):
        export(a_run(), tmp_path / "b.zarr", compression="lzma")
    with pytest.raises(UnsupportedError, match="scheduler"):
        export(a_run(), tmp_path / "b.zarr", scheduler="processes")
    assert files_of(tmp_path).keys() - before.keys() <= {
        str(tmp_path / "b.zarr.partial" / name) for name in ("lock", "journal.json")
    }


def test_a_live_run_is_a_cut_one_in_the_copy(tmp_path: Path) -> None:
    assert open_source(export(a_run(state="live"), tmp_path / "a.zarr")).index.state == "cut"


class Failing:
    """A source that reads so many times and then fails."""

    def __init__(self, base: MemorySource, reads: int) -> None:
        self.base, self.left = base, reads
        self.index, self.ref = base.index, base.ref

    def read(self, path: str, name: str, rows: Any) -> np.ndarray[Any, Any]:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return self.base.read(path, name, rows)


@pytest.mark.parametrize("name", ["run.zarr", "run.h5"])
def test_a_failed_export_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    run = a_run()
    target = tmp_path / name
    with pytest.raises(OSError, match="disk is gone"):
        export(Failing(run, 12), target, scheduler="synchronous")
    assert not target.exists()
    there = tmp_path / f"{name}.partial" / "data"
    before = files_of(there)
    assert before
    told: list[tuple[int, int]] = []
    with pytest.raises(OSError, match="disk is gone"):
        export(Failing(run, 12), target, scheduler="synchronous", progress=lambda *of: told.append(of))
    after = files_of(there)
    assert before.items() < after.items()  # done chunks were not touched
    assert told[0][0] > 0
    export(run, target)
    assert_same(open_source(target), run)


def test_what_is_left_of_another_run_is_not_used(tmp_path: Path) -> None:
    target = tmp_path / "a.zarr"
    with pytest.raises(OSError, match="disk is gone"):
        export(Failing(a_run(11), 12), target, scheduler="synchronous")
    other = a_run(12)
    export(other, target)
    assert_same(open_source(target), other)
    with pytest.raises(OSError, match="disk is gone"):
        export(Failing(other, 12), tmp_path / "b.zarr", compression="zstd", scheduler="synchronous")
    export(other, tmp_path / "b.zarr", compression="gzip")
    assert_same(open_source(tmp_path / "b.zarr"), other)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "a.zarr"

    class Nested(Failing):
        def read(self, path: str, name: str, rows: Any) -> np.ndarray[Any, Any]:
            if self.left and target.with_name("a.zarr.partial").exists():
                self.left = 0
                with pytest.raises(TargetExistsError, match="another process"):
                    export(self.base, target)
            return self.base.read(path, name, rows)

    run = a_run()
    export(Nested(run, 1), target, scheduler="synchronous")
    assert_same(open_source(target), run)


# --- a kill in the middle

KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import lcls_dask.access.export as module
from test_export import smalldata
from lcls_dask.formats import open_source
slow = module.write_block
def write_block(*args):
    slow(*args)
    print("block", flush=True)
    time.sleep(0.05)
module.write_block = write_block
module.TASK_CHUNKS = 2
module.export(sys.argv[2], sys.argv[3], scheduler="threads")
print("finished", flush=True)
"""


def smalldata(path: Path) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["timestamp"] = stamps(200)
        file.create_dataset("epix/raw", data=rng.integers(0, 99, (200, 40, 30)).astype("u2"), chunks=(4, 40, 30),
                            compression="gzip")  # fmt: skip
        file["hsd/var_x/t"] = rng.uniform(size=300)
        file["hsd/var_x_len"] = np.array([1, 2] * 100)
    return path


def killed_after(blocks: int, run: Path, target: Path) -> bool:
    """Start an export in a process of its own and kill -9 it; whether it was still running."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(run), str(target)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        if line == "finished\n":
            process.wait()
            process.stdout.close()
            return False
        seen += 1
        if seen == blocks:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return True


@pytest.mark.parametrize("name", ["run.zarr", "run.h5"])
def test_kill_9(tmp_path: Path, name: str) -> None:
    run = smalldata(tmp_path / "xpptut15_Run0001.h5")
    target = tmp_path / name
    there = tmp_path / f"{name}.partial" / "data"
    done: dict[str, tuple[int, int]] = {}
    for blocks in (3, 5):
        assert killed_after(blocks, run, target)
        assert not target.exists()
        now = {file: at for file, at in files_of(there).items() if not Path(file).name.startswith(".")}
        assert done.items() < now.items()
        done = now
    assert not killed_after(10_000, run, target)
    if name.endswith(".zarr"):
        final = {file.replace(str(there), str(target)): at for file, at in done.items()}
        assert final.items() <= files_of(target).items()
    assert not list(target.parent.glob("*.partial"))
    assert not list(target.rglob(".*"))
    found, expected = open_source(target), open_hdf5(SourceRef(str(run)))
    for path, node in expected.index.nodes.items():
        for variable in node.variables:
            np.testing.assert_array_equal(values(found, path, variable), values(expected, path, variable))


def test_on_the_workers_of_a_client(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    run = smalldata(tmp_path / "xpptut15_Run0001.h5")
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", processes=True
        ) as cluster,
        Client(cluster) as client,
    ):
        told: list[tuple[int, int]] = []
        export(run, tmp_path / "a.zarr", progress=lambda *of: told.append(of))  # finds the client by itself
        export(run, tmp_path / "b.h5", events=slice(10, 90), scheduler=client)
    assert told[-1][0] == told[-1][1]
    source = open_hdf5(SourceRef(str(run)))
    assert_same(open_source(tmp_path / "a.zarr"), source)
    assert_same(open_source(tmp_path / "b.h5"), SubsetSource(source, np.arange(10, 90)))


# --- parts of a run


def expected_rows(run: MemorySource, rows: np.ndarray[Any, Any]) -> None:
    """A subset against a plain loop over events."""
    part = SubsetSource(run, rows)
    for name in ("timestamp", "jungfrau.raw.raw", "label", "epix.raw.present"):
        np.testing.assert_array_equal(values(part, "/", name), values(run, "/", name)[rows])
    mask = np.isin(values(run, "/epix", "timestamp"), stamps(run.index.events)[rows])
    np.testing.assert_array_equal(values(part, "/epix", "epix.raw.sum"), values(run, "/epix", "epix.raw.sum")[mask])
    offset, start = values(run, "/hsd", "hsd.raw.windows.offset"), values(run, "/hsd", "hsd.raw.windows.start")
    inner, samples = (
        values(run, "/hsd", "hsd.raw.windows.sample_offset"),
        values(run, "/hsd", "hsd.raw.windows.samples"),
    )
    segments = [row for event in rows for row in (2 * event, 2 * event + 1)]
    windows = [w for row in segments for w in range(offset[row], offset[row + 1])]
    got = values(part, "/hsd", "hsd.raw.windows.offset")
    assert got.tolist() == np.concatenate([[0], np.cumsum([offset[r + 1] - offset[r] for r in segments])]).tolist()
    np.testing.assert_array_equal(values(part, "/hsd", "hsd.raw.windows.start"), start[windows])
    flat = [s for w in windows for s in range(inner[w], inner[w + 1])]
    np.testing.assert_array_equal(values(part, "/hsd", "hsd.raw.windows.samples"), samples[flat])
    np.testing.assert_array_equal(
        values(part, "/hsd", "hsd.raw.stream_flags"), np.arange(2 * run.index.events)[segments]
    )
    assert values(part, "/steps", "motor").tolist() == [1.5, 2.5, 3.5]
    node = part.index.nodes["/hsd"].sizes
    assert node["hsd.raw.windows.row_edge"] == 2 * len(rows) + 1
    assert node["hsd.raw.windows.window_edge"] == node["hsd.raw.windows.window"] + 1


@settings(max_examples=60, deadline=None)
@given(chosen=st.lists(st.booleans(), min_size=11, max_size=11))
def test_any_events_of_ragged_fields(chosen: list[bool]) -> None:
    expected_rows(a_run(), np.flatnonzero(chosen))


def test_ways_to_choose_events() -> None:
    run = a_run()
    assert event_rows(run, slice(2, 9, 3)).tolist() == [2, 5, 8]
    assert event_rows(run, slice(None, None, -4)).tolist() == [2, 6, 10]
    assert event_rows(run, np.arange(11) % 5 == 0).tolist() == [0, 5, 10]
    assert event_rows(run, [3, -1, 3]).tolist() == [3, 10]
    assert event_rows(run, stamps(11)[[4, 2]]).tolist() == [2, 4]
    assert event_rows(run, []).tolist() == []
    for wrong in (np.ones(3, bool), [11], stamps(12)[11:], [0.5]):
        with pytest.raises(SelectionError):
            event_rows(run, wrong)


@pytest.mark.parametrize("name", ["part.zarr", "part.h5"])
def test_a_part_of_a_run(tmp_path: Path, name: str) -> None:
    run = a_run()
    target = export(run, tmp_path / name, events=slice(2, 7), variables=["hsd.*.samples", "label"])
    found = open_source(target)
    assert_same(found, SubsetSource(run, np.arange(2, 7), ["hsd.*.samples", "label"]))
    assert set(found.index.nodes) == {"/", "/hsd"}
    assert set(found.index.nodes["/hsd"].variables) == {
        "timestamp", "time", "hsd.raw.windows.offset", "hsd.raw.windows.sample_offset", "hsd.raw.windows.samples",
    }  # fmt: skip
    assert "jungfrau.raw.raw" not in found.index.nodes["/"].variables
    assert found.index.snapshot != run.index.snapshot
    with pytest.raises(SelectionError, match="nothing"):
        export(run, tmp_path / "other.zarr", variables="nothing")


@settings(max_examples=25, deadline=None)
@given(events=st.integers(0, 40), chunk=st.integers(1, 50), first=st.integers(0, 40), count=st.integers(0, 40))
def test_any_chunk_edges(
    tmp_path_factory: pytest.TempPathFactory, events: int, chunk: int, first: int, count: int
) -> None:
    run = MemorySource(
        {
            "/": {
                "timestamp": array(stamps(events), ("event",), chunk=chunk, coordinate=True),
                "a.b": array(
                    np.arange(events * 3.0).reshape(events, 3), ("event", "a.b.dim_0"), chunk=max(1, chunk // 2)
                ),
            }
        }
    )
    where = tmp_path_factory.mktemp("edges")
    for target in ("a.zarr", "a.h5"):
        chosen = slice(first, first + count)
        found = open_source(export(run, where / target, events=chosen, scheduler="synchronous"))
        np.testing.assert_array_equal(values(found, "/", "a.b"), values(run, "/", "a.b")[chosen])


@pytest.fixture(autouse=True)
def no_processes_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()
    time.sleep(0)
