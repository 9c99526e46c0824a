"""`Run`, and the xarray engine below it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xtc2_runs import GMD, begin, ended, full_run, gmd, read_all, simple_run, ts, writer

import lcls_dask
from lcls_dask.access.run import Run
from lcls_dask.errors import LclsError, SelectionError
from lcls_dask.formats.xtc2.events import Events
from lcls_dask.formats.xtc2.writer import declare, shapes_data
from lcls_dask.model import time_of

EVENTS = 30


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_run(tmp_path_factory.mktemp("run") / "run", EVENTS)


@pytest.fixture
def run(path: Path) -> Run:
    return lcls_dask.open_run(path)


@pytest.fixture
def payload_reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Loops over event data, as they are run."""
    loops: list[Any] = []
    original = Events.run

    def counting(self: Events, stream: int, rows: Any, *more: Any) -> None:
        loops.append(rows)
        original(self, stream, rows, *more)

    monkeypatch.setattr(Events, "run", counting)
    return loops


def test_what_a_run_is(run: Run) -> None:
    assert (run.experiment, run.number, run.state, run.events, run.steps) == ("tmosim01", 3, "ended", EVENTS, 5)
    assert list(run.detectors) == ["cam", "gmd", "hsd", "mode", "note", "peaks"]
    assert run.detectors["cam"].segments == (0, 1)
    assert run.span() == (ts(0), ts(EVENTS - 1))
    assert re.fullmatch("[0-9a-f]{32}", run.snapshot)


# choosing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (("gmd.*",), {"gmd.raw.energy", "gmd.raw.present", "gmd.raw.damage"}),
        (("gmd.raw.energy",), {"gmd.raw.energy"}),
        (("*.energy", "note.raw.count"), {"gmd.raw.energy", "note.raw.count"}),
        (("cam.raw.[gi]*",), {"cam.raw.gain", "cam.raw.image"}),
    ],
)
def test_globs(run: Run, select: tuple[str, ...], expected: set[str]) -> None:
    dataset = run.dataset(*select)
    assert set(dataset.data_vars) == expected
    assert {"timestamp", "time", "step"} <= set(dataset.coords)


CHOICES: dict[str, tuple[Any, list[int]]] = {
    "slice": (slice(3, 20, 4), [3, 7, 11, 15, 19]),
    "from the end": (slice(-2, None), [28, 29]),
    "positions": ([5, 2, 2, -1], [5, 2, 2, 29]),
    "none": ([], []),
    "array": (np.array([7, 8], np.int32), [7, 8]),
    "mask": (np.arange(EVENTS) % 7 == 1, [1, 8, 15, 22, 29]),
    "list of bool": ([i == 4 for i in range(EVENTS)], [4]),
    "empty mask": (np.zeros(EVENTS, bool), []),
    "timestamps": (np.array([ts(9), ts(3)], np.uint64), [9, 3]),
    "times": (time_of(np.array([ts(11)], np.uint64)), [11]),
}


@pytest.mark.parametrize("chunks", [{}, None, {"event": 8}])
@pytest.mark.parametrize("choice", CHOICES)
def test_events(run: Run, choice: str, chunks: Any) -> None:
    events, expected = CHOICES[choice]
    dataset = run.dataset("gmd.*", "cam.raw.image", events=events, chunks=chunks)
    assert (dataset["gmd.raw.energy"].chunks is None) == (chunks is None)  # as xarray has it
    assert not dataset["gmd.raw.energy"].variable._in_memory
    assert dataset["gmd.raw.energy"].values.tolist() == list(map(float, expected))
    assert dataset["timestamp"].values.tolist() == [ts(i) for i in expected]
    whole = run.dataset("cam.raw.image")["cam.raw.image"].values
    np.testing.assert_array_equal(dataset["cam.raw.image"].values, whole[expected])


def test_events_of_a_detector(run: Run) -> None:
    own = run.dataset("hsd.raw.present", group="/hsd", events=slice(0, 3))
    assert own.sizes["hsd.event"] == 3
    assert "hsd.raw.windows.start" in run.dataset("hsd.raw.windows.*", group="hsd")


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (np.zeros(EVENTS + 1, bool), f"mask.*{EVENTS}"),
        ([0, EVENTS], f"event {EVENTS} .*{EVENTS}"),
        ([0, -EVENTS - 1], f"event -{EVENTS + 1} "),
        (np.array([ts(0), ts(0) + 1, ts(EVENTS)], np.uint64), f"2 of the events.*{ts(0) + 1}"),
        (time_of(np.array([ts(0) + 1], np.uint64)), "1 of the events"),
        ([1.5, 2.5], "positions.*float64"),
        (["a"], "positions.*<U1"),
        ([[1, 2]], r"positions.*\(1, 2\)"),
    ],
)
def test_wrong_events(run: Run, wrong: Any, word: str) -> None:
    with pytest.raises(SelectionError, match=word):
        run.dataset("gmd.*", events=wrong)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: run.dataset("nope.*"), ["nope", "gmd", "run.info()"]),
        (lambda run: run.dataset("gmd.raw.energi"), ["gmd.raw.energi", "/gmd"]),
        (lambda run: run["gmd.raw.nope"], ["gmd.raw.nope", "gmd.raw.energy"]),
        (lambda run: run["gmd"], ["gmd: is a detector", "run.dataset('gmd.*')", "gmd.raw.energy"]),
        (lambda run: run.dataset("peaks"), ["run.dataset('peaks.*')", "peaks.fex.n"]),
        (lambda run: run.dataset(group="/nope"), ["/nope", "/gmd", "/steps"]),
        (lambda run: run.dataset("peaks.fex.x"), ["peaks.fex.x", "group='/peaks'"]),
        (lambda run: run.dataset(group="/steps", events=[0]), ["/steps"]),
        (lambda run: run.source.read("/", "nope", slice(0, 1)), ["nope"]),
    ],
)
def test_errors_help(run: Run, call: Any, words: list[str]) -> None:
    with pytest.raises(SelectionError) as told:
        call(run)
    for word in words:
        assert word in str(told.value)
    assert "\n" not in str(told.value)


def test_selecting_reads_only_what_is_asked_for(run: Run, payload_reads: list[Any]) -> None:
    dataset = run.dataset("gmd.raw.energy", events=[3, 25])
    payload_reads.clear()
    assert dataset["gmd.raw.energy"].values.tolist() == [3.0, 25.0]
    assert sum(len(np.arange(EVENTS)[rows]) for rows in payload_reads) == 2


# showing -------------------------------------------------------------------------------------------------------------


def test_showing_reads_no_event_data(tmp_path: Path, payload_reads: list[Any]) -> None:
    """When a run is opened for the first time, a handful of events tells its shapes; printing reads nothing."""
    path = full_run(tmp_path / "run", 6)
    assert lcls_dask.open_run(path).dataset().sizes["event"] == 6
    run = lcls_dask.open_run(path)
    payload_reads.clear()
    assert "tmosim01" in repr(run)
    assert "\n" not in repr(run)
    assert "cam" in run.info()
    assert "<" in run._repr_html_()
    assert "gmd.raw.energy" in run._ipython_key_completions_()
    assert {"info", "dataset", "validate"} <= set(dir(run))
    dataset = run.dataset()
    assert "cam.raw.image" in repr(dataset)
    assert "cam.raw.image" in dataset._repr_html_()
    assert payload_reads == []


def test_opening_a_root_scans_no_payload(tmp_path: Path, payload_reads: list[Any]) -> None:
    simple_run(tmp_path, range(5000))
    xr.open_dataset(tmp_path, engine="lcls", chunks={})
    assert sum(len(np.arange(5000)[rows]) for rows in payload_reads) <= 2 * 128


def test_tree(run: Run) -> None:
    tree = run.tree()
    assert set(tree.children) == {"cam", "gmd", "hsd", "mode", "note", "peaks", "steps", "epics"}
    values = read_all(run.source)
    for path, node in values.items():
        for name, array in node.items():
            np.testing.assert_array_equal(tree[path].dataset[name].values, array, err_msg=f"{path} {name}")


def test_report(run: Run, tmp_path: Path) -> None:
    report = run.validate()
    assert report.ok
    assert report.events == EVENTS
    assert "DroppedContribution" in str(report)
    simple_run(tmp_path)
    clean = lcls_dask.open_run(tmp_path).validate()
    assert clean.findings == ()
    assert "nothing to report" in str(clean)


# indexing ------------------------------------------------------------------------------------------------------------


@st.composite
def indexers(draw: st.DrawFn, size: int) -> Any:
    kind = draw(st.sampled_from(["int", "slice", "array", "mask"]))
    if kind == "int" and size:
        return draw(st.integers(-size, size - 1))
    if kind == "array" and size:
        return np.array(draw(st.lists(st.integers(-size, size - 1), max_size=8)), np.int64)
    if kind == "mask":
        return np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
    step = draw(st.sampled_from([None, 1, 2, 3, -1, -4]))
    # backwards from before the first: empty in numpy; xarray (normalize_slice) and Dask (dask/dask#10555) take it
    # for the last, whatever array lies below
    start = draw(st.none() | st.integers(-size if step is not None and step < 0 else -size - 2, size + 2))
    return slice(start, draw(st.none() | st.integers(-size - 2, size + 2)), step)


def outer(values: Any, keys: list[Any]) -> Any:
    """numpy, one axis after the other."""
    for axis in range(len(keys) - 1, -1, -1):
        values = values[(slice(None),) * axis + (keys[axis],)]
    return values


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_indexing_is_numpy(path: Path, data: st.DataObject) -> None:
    """Any outer indexer of any variable, lazily, twice over, and in Dask chunks."""
    node = data.draw(st.sampled_from(["/", "/cam", "/hsd", "/peaks", "/steps"]))
    with xr.open_dataset(path, engine="lcls", group=node) as lazy:
        name = data.draw(st.sampled_from(sorted(map(str, lazy.variables))))
        variable = lazy[name].variable
        values = lcls_dask.open_run(path).source.read(node, name, slice(0, variable.shape[0]))
        keys = [data.draw(indexers(size)) for size in variable.shape]
        expected = outer(values, keys)
        chosen = variable[tuple(keys)]
        np.testing.assert_array_equal(chosen.values, expected)
        assert chosen.dtype == values.dtype or (values.dtype.kind == "U" and not chosen.ndim)
        if chosen.ndim:
            again = [data.draw(indexers(size)) for size in chosen.shape]
            np.testing.assert_array_equal(variable[tuple(keys)][tuple(again)].values, outer(expected, again))
        if name not in lazy.indexes:
            length = data.draw(st.integers(1, 9))
            chunked = variable.chunk({variable.dims[0]: length})
            np.testing.assert_array_equal(chunked[tuple(keys)].values, expected)


def test_index_out_of_range(run: Run) -> None:
    """Never an invented number."""
    with xr.open_dataset(run.path, engine="lcls") as lazy:
        for at in (EVENTS, EVENTS + 5, 10**9):
            with pytest.raises(IndexError):
                lazy["gmd.raw.energy"][at].load()
            with pytest.raises(IndexError):
                lazy["gmd.raw.energy"][[0, at]].load()


def test_chunks_nest(run: Run) -> None:
    dataset = run.dataset()
    assert dataset.unify_chunks().chunks["event"] == (EVENTS,)


def test_blocks_of_one_length(tmp_path: Path) -> None:
    """Large variables have shorter blocks, in which those of small ones nest: xarray wants one length for all."""
    big = declare("big", "jungfrau", "raw", (0, 2, 0), {"raw": ("uint16", 3)}, id=3)
    with writer(tmp_path) as w:
        begin(w, big, GMD)
        for i in range(20):
            w.event(ts(i), shapes_data(big, {"raw": np.full((1, 2048, 2048), i, np.uint16)}), gmd(float(i)))
        ended(w, 99)
    dataset = lcls_dask.open_run(tmp_path).dataset("big.raw.raw", "gmd.raw.energy")
    assert dataset["gmd.raw.energy"].chunks == ((20,),)
    assert dataset["big.raw.raw"].chunks[0] == (8, 8, 4)  # type: ignore[index]
    with pytest.raises(ValueError, match="unify_chunks"):
        _ = dataset.chunks
    one = dataset.unify_chunks()
    assert one.chunks["event"] == (8, 8, 4)
    assert float(one["gmd.raw.energy"].sum()) == 190.0
    with xr.open_dataset(tmp_path, engine="lcls") as lazy:
        assert lazy.chunk({"event": 8}).chunks["event"] == (8, 8, 4)


@pytest.mark.parametrize("length", [3, 16, 64])
def test_chunked_is_unchunked(path: Path, length: int) -> None:
    with xr.open_datatree(path, engine="lcls") as whole:
        for node in whole.subtree:
            dims = {
                dim: length for dim in node.dataset.dims if str(dim).endswith(("event", "index", "sample", "window"))
            }
            for name, variable in node.dataset.variables.items():
                mine = {dim: size for dim, size in dims.items() if dim in variable.dims[:1]}
                if mine and name not in node.dataset.indexes:
                    np.testing.assert_array_equal(variable.chunk(mine).values, variable.values, err_msg=str(name))


def test_open_without_naming_the_engine(path: Path) -> None:
    with xr.open_dataset(path, chunks={}) as dataset:
        assert dataset.sizes["event"] == EVENTS


def test_drop_variables(path: Path) -> None:
    with xr.open_dataset(path, engine="lcls", drop_variables=["gmd.raw.energy"]) as dataset:
        assert "gmd.raw.energy" not in dataset
        assert "gmd.raw.present" in dataset


def test_uri(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    run = simple_run(root / "tmo" / "tmosim01" / "xtc", run=4)
    run2 = full_run(root / "rix" / "rixx" / "x" / "r0007")
    assert run2.is_dir()
    monkeypatch.setenv("LCLS_ROOT", str(root))
    opened = lcls_dask.open_run("lcls://tmosim01/r0004")
    assert (opened.number, opened.events) == (4, 8)
    assert float(opened.dataset()["gmd.raw.energy"].mean()) == 3.5
    pinned = lcls_dask.open_run(f"lcls://tmosim01/r0004@{opened.snapshot}")
    assert pinned.snapshot == opened.snapshot
    with xr.open_dataset("lcls://tmosim01/r0004", chunks={}) as dataset:
        assert dataset.sizes["event"] == 8
    for wrong in ("lcls://tmosim01/r0005", "lcls://tmosim02/r0004", f"lcls://tmosim01/r0004@{'0' * 32}"):
        with pytest.raises(LclsError) as told:
            lcls_dask.open_run(wrong)
        assert "\n" not in str(told.value)
    assert run.path.exists()
    assert len(gmd(1.0)) == 44
