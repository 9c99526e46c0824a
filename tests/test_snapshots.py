"""Runs that grow: a snapshot keeps meaning what it meant, and nobody gets old results for new data."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from xtc2_runs import CHUNK, Array, energies, full_run, gmd, read, read_all, same, simple_run, ts

import lcls_dask
from lcls_dask.access.export import export
from lcls_dask.errors import LclsError, LiveRunError, RunNotFoundError, SnapshotError
from lcls_dask.formats import SourceRef, discover, open_source, reopen
from lcls_dask.formats.xtc2.layout import END_RUN
from lcls_dask.formats.xtc2.scan import StreamScanner
from lcls_dask.formats.xtc2.writer import StreamWriter

NAME = "gmd.raw.energy"


@pytest.fixture
def growing(tmp_path: Path) -> Any:
    """A run of eight events, 0 to 7, and the writer that goes on."""
    w = simple_run(tmp_path / "run", range(8), end=False, inprogress=True, smalldata=True)
    yield w
    w.close(rename=False)


def grow(w: StreamWriter, first: int = 8, last: int = 12) -> None:
    for i in range(first, last):
        w.event(ts(i), gmd(float(i)))
    w.flush()


def finish(w: StreamWriter) -> None:
    w.transition(END_RUN, ts(10**6))
    w.close()


def opened(path: Path | str, **more: Any) -> xr.DataArray:
    return xr.open_dataset(path, engine="lcls", chunks={}, **more)[NAME]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_live_run_is_refused_unless_pinned(growing: StreamWriter, kind: str) -> None:
    path = growing.path if kind == "file" else growing.path.parent
    with pytest.raises(LiveRunError, match="snapshot=") as told:
        opened(path)
    call = str(told.value).partition("now: ")[2].partition(", or use")[0]
    pinned = eval(call.replace("engine=", "chunks={}, engine="), {"xr": xr})  # the message's own words
    assert float(pinned[NAME].mean()) == 3.5


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_grown_run_by_open_run(growing: StreamWriter, kind: str) -> None:
    """3.5 before, 5.5 after: with a persisted result held, which has the old keys."""
    path = growing.path if kind == "file" else growing.path.parent
    before = lcls_dask.open_run(path)
    held = before.dataset()[NAME].persist()
    assert float(held.mean()) == 3.5
    lazy = before.dataset()[NAME].mean()
    grow(growing)
    after = lcls_dask.open_run(path)
    assert after.snapshot != before.snapshot
    assert float(after.dataset()[NAME].mean()) == 5.5
    assert float(lazy) == 3.5
    assert float(before.dataset()[NAME].mean()) == 3.5  # the old snapshot is still the old one
    assert (before.events, after.events) == (8, 12)
    assert set(before.dataset().chunks) == set(after.dataset().chunks)
    keys = {str(key) for key in dict(before.dataset()[NAME].__dask_graph__())}
    assert not keys & {str(key) for key in dict(after.dataset()[NAME].__dask_graph__())}


def test_grown_run_in_one_scheduler(growing: StreamWriter) -> None:
    """A distributed scheduler keeps results by key: futures of the old run must not answer for the new one."""
    import distributed

    path = growing.path.parent
    with (
        dask.config.set({"distributed.worker.daemon": False}),
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            host="127.0.0.1",
            protocol="tcp",
        ) as cluster,
        distributed.Client(cluster),
    ):
        held = lcls_dask.open_run(path).dataset()[NAME].persist()
        assert float(held.mean()) == 3.5
        grow(growing)
        assert float(lcls_dask.open_run(path).dataset()[NAME].mean()) == 5.5
        assert float(held.mean()) == 3.5


def test_grown_file_without_end(tmp_path: Path) -> None:
    """A single cut file may be opened without a pin: xarray itself sees that it was written to."""
    w = simple_run(tmp_path, end=False)
    held = opened(w.path).persist()
    assert float(held.mean()) == 3.5
    os.utime(w.path, (1, 1))  # so that the clock's resolution plays no part
    grow(w)
    assert float(opened(w.path).mean()) == 5.5
    w.close()


def test_directory_without_an_end(tmp_path: Path) -> None:
    """Of a directory xarray does not see that files have grown, however long they were quiet: it must be pinned."""
    w = simple_run(tmp_path, end=False)
    assert lcls_dask.open_run(tmp_path).state == "live"
    with dask.config.set({"lcls.quiet-after": 0.0}):
        assert lcls_dask.open_run(tmp_path).state == "cut"
    os.utime(w.path, (1, 1))
    before = lcls_dask.open_run(tmp_path)
    assert before.state == "cut"
    with pytest.raises(LiveRunError, match=before.snapshot):
        opened(tmp_path)
    held = opened(tmp_path, snapshot=before.snapshot).persist()
    assert float(held.mean()) == 3.5
    grow(w)  # after a pause, the beam is back
    os.utime(w.path, (1, 1))
    w.close()
    after = lcls_dask.open_run(tmp_path)
    assert float(opened(tmp_path, snapshot=after.snapshot).mean()) == 5.5
    assert float(held.mean()) == 3.5


def test_pinned_snapshot_after_growth(growing: StreamWriter) -> None:
    """Its index tells how much of each file belongs to it."""
    path = growing.path.parent
    snapshot = lcls_dask.open_run(path).snapshot
    before = read_all(open_source(path))
    grow(growing)
    pinned = lcls_dask.open_run(path, snapshot=snapshot)
    assert (pinned.events, pinned.snapshot) == (8, snapshot)
    assert opened(path, snapshot=snapshot).sizes["event"] == 8
    finish(growing)
    assert lcls_dask.open_run(path).state == "ended"
    after = lcls_dask.open_run(path, snapshot=snapshot)
    assert after.events == 8
    same(read_all(after.source), before)


def test_reference_needs_no_cache(growing: StreamWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose index cache is empty builds the index of the snapshot, not of what is there now."""
    ref = open_source(growing.path.parent).ref
    grow(growing)
    growing.next_chunk(ts(20), CHUNK)
    grow(growing, 21, 23)
    monkeypatch.setenv("LCLS_INDEX_CACHE", str(tmp_path / "empty"))
    code = """if True:
        import pickle, sys
        from lcls_dask.formats import reopen
        source = reopen(pickle.loads(bytes.fromhex(sys.argv[1])))
        print(source.index.snapshot, source.read("/", "gmd.raw.energy", slice(0, source.index.events)).tolist())
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, pickle.dumps(ref).hex()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == [ref.snapshot, f"{[float(i) for i in range(8)]}\n"]
    monkeypatch.setenv("LCLS_INDEX_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(discover, "_OPEN", OrderedDict())  # what this process has open it need not look for
    with pytest.raises(SnapshotError, match="open it again"):  # the name alone does not tell how much it was
        open_source(ref.path, snapshot=ref.snapshot)


def test_pickled_arrays(growing: StreamWriter, tmp_path: Path) -> None:
    """What travels to workers is small, and means the same in another process, after the run has grown."""
    variable = opened(growing.path.parent, snapshot=open_source(growing.path.parent).index.snapshot).variable
    lazy = xr.open_dataset(
        growing.path.parent, engine="lcls", snapshot=open_source(growing.path.parent).index.snapshot
    )[NAME].variable
    data = pickle.dumps(lazy._data)
    inner: Any = lazy._data
    while not hasattr(inner, "ref"):
        inner = inner.array
    assert len(pickle.dumps(inner)) < 1000
    assert len(pickle.dumps(inner.ref)) < 1000
    grow(growing)
    code = """if True:
        import pickle, sys
        import numpy as np
        print(np.asarray(pickle.load(open(sys.argv[1], "rb"))).mean())
    """
    (tmp_path / "array.pickle").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "array.pickle")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 3.5
    assert float(variable.mean()) == 3.5


def test_graph_holds_no_data(tmp_path: Path) -> None:
    simple_run(tmp_path, range(3000))
    run = lcls_dask.open_run(tmp_path)
    for events in (None, slice(5, 2900), np.arange(3000) % 2 == 0):
        lazy = run.dataset(NAME, events=events)[NAME]
        assert len(pickle.dumps(dict(lazy.__dask_graph__()))) < (5_000 if events is None else 20_000)


# the cache of indexes ------------------------------------------------------------------------------------------------


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Streams that are walked through, as they are."""
    walked: list[str] = []
    scan = StreamScanner.scan

    def counting(self: StreamScanner) -> Any:
        walked.append(self._stream.name)
        return scan(self)

    monkeypatch.setattr(StreamScanner, "scan", counting)
    return walked


def test_index_is_reused(tmp_path: Path, scans: list[str]) -> None:
    path = full_run(tmp_path)
    first = read_all(open_source(path))
    assert scans == ["s000", "s001"]
    again = read_all(open_source(path))
    assert len(scans) == 2
    same(first, again)
    open_source(path / "tmosim01-r0003-s001-c000.xtc2")  # one stream alone is another snapshot
    assert len(scans) == 3
    assert open_source(path).index.snapshot == open_source(path).index.snapshot


def test_copy_of_a_run_has_the_same_snapshot(tmp_path: Path) -> None:
    path = full_run(tmp_path / "a")
    for file in path.glob("*.xtc2"):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    a, b = open_source(path), open_source(tmp_path / "b")
    assert a.index.snapshot == b.index.snapshot
    same(read_all(a), read_all(b))


def test_index_survives_a_second_reader_and_a_cut_file(tmp_path: Path, scans: list[str]) -> None:
    w = simple_run(tmp_path)
    assert energies(w.path) == list(map(float, range(8)))
    w.path.write_bytes(w.path.read_bytes()[:-200])
    assert energies(w.path) == list(map(float, range(5)))
    assert len(scans) == 2


@pytest.mark.parametrize("where", ["in the middle", "at an event"])
def test_file_modified_in_place(tmp_path: Path, scans: list[str], where: str) -> None:
    """The same number of bytes, other contents: the index is built again."""
    w = simple_run(tmp_path, range(400))
    assert energies(w.path)[200] == 200.0
    data = bytearray(w.path.read_bytes())
    old = np.float64(200.0).tobytes()
    at = data.find(old, 6000)
    if where == "in the middle":
        data[at : at + 8] = np.float64(-1.0).tobytes()
    else:  # another time: events are in another order now
        stamp = ts(200).to_bytes(8, "little")
        at = data.find(stamp, 6000)
        data[at : at + 8] = ts(500).to_bytes(8, "little")
    with w.path.open("r+b") as file:
        file.write(data)
    os.utime(w.path, (10**9, 10**9))
    now = energies(w.path)
    assert now[200] == (-1.0 if where == "in the middle" else 201.0)
    assert len(scans) == 2


def test_vanished_file(tmp_path: Path) -> None:
    path = full_run(tmp_path / "run")
    array = xr.open_dataset(path, engine="lcls", chunks={})["cam.raw.image"]
    ref = open_source(path).ref
    for file in path.iterdir():
        file.unlink()
    with pytest.raises(RunNotFoundError):
        open_source(path)
    with pytest.raises(LclsError):
        lcls_dask.open_run(path)
    code = "import pickle, sys; from lcls_dask.formats import reopen; reopen(pickle.loads(bytes.fromhex(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(ref).hex()], capture_output=True, text=True, timeout=120
    )
    assert "RunNotFoundError" in done.stderr
    # whoever has the files open goes on, or is told
    with suppress(LclsError):
        assert array.compute().shape == array.shape


def test_file_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    """Truncated under an open source: an error, not a SIGBUS, not zeros."""
    w = simple_run(tmp_path, range(4000))
    source = open_source(w.path)
    assert source.index.events == 4000
    os.truncate(w.path, 100_000)
    with pytest.raises(LclsError, match=w.path.name):
        read(source, NAME)
    assert source.read("/", NAME, slice(0, 100)).tolist() == list(map(float, range(100)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: a cache without rights is NOT tested")
def test_cache_that_cannot_be_written(tmp_path: Path, own_index_cache: Path) -> None:
    own_index_cache.chmod(0o500)
    simple_run(tmp_path)
    with pytest.warns(UserWarning, match="lcls.index-cache"):
        assert energies(tmp_path) == list(map(float, range(8)))


def test_cache_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be one: a warning, an index for this process, and the same values."""
    (tmp_path / "cache").write_text("in the way")
    simple_run(tmp_path / "run")
    code = """if True:
        import sys, warnings
        from lcls_dask.formats import open_source
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            source = open_source(sys.argv[1])
            open_source(sys.argv[1])
        print(len(caught), "lcls.index-cache" in str(caught[0].message))
        print(source.read("/", "gmd.raw.energy", slice(0, 8)).tolist())
    """
    monkeypatch.setenv("LCLS_INDEX_CACHE", str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1 True\n{[float(i) for i in range(8)]}\n"


def test_damaged_cache(tmp_path: Path, own_index_cache: Path) -> None:
    """An index file that is no JSON is not believed."""
    simple_run(tmp_path)
    assert len(energies(tmp_path)) == 8
    for file in own_index_cache.glob("*/index.json"):
        file.write_text("{")
    assert energies(tmp_path) == list(map(float, range(8)))


def test_processes_that_race(tmp_path: Path, own_index_cache: Path) -> None:
    """Four at once, none with an index: all read the same, and one index is left, without rubbish beside it."""
    path = full_run(tmp_path / "run", 400)
    expected = read_all(open_source(path))["/hsd"]["hsd.raw.windows.samples"]
    for entry in own_index_cache.iterdir():
        assert subprocess.run(["rm", "-r", str(entry)]).returncode == 0
    start = tmp_path / "start"
    code = """if True:
        import hashlib, pathlib, sys, time
        from lcls_dask.formats import open_source
        import lcls_dask.formats.xtc2.source
        start = pathlib.Path(sys.argv[2])
        print("ready", flush=True)
        while not start.exists():
            time.sleep(0.001)
        source = open_source(sys.argv[1])
        variable = source.index.nodes["/hsd"].variables["hsd.raw.windows.samples"]
        values = source.read("/hsd", "hsd.raw.windows.samples", slice(0, variable.shape[0]))
        print(hashlib.sha256(values.tobytes()).hexdigest(), source.index.snapshot)
    """
    racing = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(start)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in racing:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start.touch()
    told = {process.communicate(timeout=120)[0] for process in racing}
    assert [process.returncode for process in racing] == [0] * 4
    assert len(told) == 1
    assert told.pop().split()[0] == hashlib.sha256(expected.tobytes()).hexdigest()
    left = [entry.name for entry in own_index_cache.iterdir()]
    assert len(left) == 1, left
    assert not list(own_index_cache.glob("*/.making-*"))


def test_relative_paths_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = simple_run(tmp_path / "data" / "run").path.parent
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path / "data")
    relative = open_source("run")
    ref = relative.ref
    assert Path(ref.path).is_absolute()
    for path in ("run", Path("run"), "../data/run", "../link", tmp_path / "link", "run/" + next(run.iterdir()).name):
        assert energies(path) == list(map(float, range(8))), path
    monkeypatch.chdir("/")
    assert reopen(ref).index.snapshot == relative.index.snapshot
    monkeypatch.setenv("HOME", str(tmp_path))
    assert energies("~/link") == list(map(float, range(8)))


@pytest.mark.parametrize("wrong", ["00" * 16, "*", "../x", "", "zz"])
def test_wrong_snapshot(tmp_path: Path, wrong: str) -> None:
    simple_run(tmp_path)
    if wrong:
        with pytest.raises(SnapshotError, match="snapshot"):
            open_source(tmp_path, snapshot=wrong)
    assert open_source(tmp_path).index.events == 8


def test_reference_of_a_replaced_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = simple_run(tmp_path, range(8))
    ref = open_source(w.path).ref
    w.path.unlink()
    simple_run(tmp_path, range(20, 28))
    monkeypatch.setattr(discover, "_OPEN", OrderedDict())
    with pytest.raises(LclsError, match=r"snapshot|replaced"):
        open_source(ref.path, ref.run, ref.snapshot, ref.used)
    cut = SourceRef(ref.path, ref.run, ref.snapshot, tuple((name, size + 10**6) for name, size in ref.used))
    with pytest.raises(LclsError, match="cut or replaced"):
        open_source(cut.path, cut.run, cut.snapshot, cut.used)


def test_closed_files_are_opened_again(tmp_path: Path) -> None:
    simple_run(tmp_path)
    source = open_source(tmp_path)
    before: Array = read(source, NAME)
    source.close()
    np.testing.assert_array_equal(read(source, NAME), before)


# what lies behind a name --------------------------------------------------------------------------------------------


def processed(path: Path, energy: Array) -> None:
    """A smalldata file, written over whatever is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path.with_suffix(".new"), "w") as file:
        file["timestamp"] = np.array([ts(i) for i in range(energy.size)], np.uint64)
        file["gmd/raw/energy"] = energy
    path.with_suffix(".new").rename(path)


def test_hdf5_run_that_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """xarray knows nothing but the URI, and a persisted result with its keys is held: never the old numbers."""
    file = tmp_path / "tmosim01" / "tmosim01-r0004.h5"
    processed(file, np.arange(8.0))
    monkeypatch.setenv("LCLS_ROOT", str(tmp_path))
    uri = "lcls://tmosim01/r0004"
    first = xr.open_dataset(uri, engine="lcls", chunks={})
    (name,) = (str(name) for name in first.data_vars)
    held = first[name].persist()
    assert float(held.mean()) == 3.5
    xr.open_dataset(uri, engine="lcls", chunks={})  # as often as one likes while it is the same
    processed(file, np.arange(12.0))
    with pytest.raises(SnapshotError, match="another run than when") as told:
        xr.open_dataset(uri, engine="lcls", chunks={})
    call = str(told.value).partition("now: ")[2].partition(", or use")[0]
    pinned = eval(call.replace("engine=", "chunks={}, engine="), {"xr": xr})  # the message's own words
    assert float(pinned[name].mean()) == 5.5
    assert float(lcls_dask.open_run(uri).dataset()[name].mean()) == 5.5
    with pytest.raises(SnapshotError, match="another run than when"):
        xr.open_datatree(uri, engine="lcls")
    assert float(held.mean()) == 3.5


def test_file_that_was_replaced(tmp_path: Path) -> None:
    """Of a path xarray sees the time of writing: it may be opened again, and gives the new numbers."""
    file = tmp_path / "tmosim01-r0004.h5"
    processed(file, np.arange(8.0))
    os.utime(file, (1, 1))
    first = xr.open_dataset(file, engine="lcls", chunks={})
    (name,) = first.data_vars
    held = first[name].persist()
    assert float(held.mean()) == 3.5
    processed(file, np.arange(12.0))
    assert float(xr.open_dataset(file, engine="lcls", chunks={})[name].mean()) == 5.5


def test_directory_that_was_replaced(tmp_path: Path) -> None:
    """Files written over in place leave their directory's time alone."""
    w = simple_run(tmp_path / "run", range(8))
    path = w.path.parent
    held = opened(path).persist()
    assert float(held.mean()) == 3.5
    before = path.stat().st_mtime_ns
    w.path.write_bytes(simple_run(tmp_path / "other", range(4, 12)).path.read_bytes())
    assert path.stat().st_mtime_ns == before
    with pytest.raises(SnapshotError, match="another run than when"):
        opened(path)
    assert float(lcls_dask.open_run(path).dataset()[NAME].mean()) == 7.5


# short snapshots -----------------------------------------------------------------------------------------------------


def test_short_snapshot(growing: StreamWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first digits are enough: of what is there now, and of what is kept in the cache of indexes."""
    path = growing.path.parent
    before = lcls_dask.open_run(path).snapshot
    grow(growing)
    after = lcls_dask.open_run(path).snapshot
    simple_run(tmp_path / "another", range(3))
    lcls_dask.open_run(tmp_path / "another")  # another run's index is no answer
    monkeypatch.setattr(discover, "_OPEN", OrderedDict())
    for snapshot, mean in ((before, 3.5), (after, 5.5)):
        for digits in (8, 12, 31, 32):
            run = lcls_dask.open_run(path, snapshot=snapshot[:digits])
            assert (run.snapshot, float(run.dataset()[NAME].mean())) == (snapshot, mean)
            assert float(opened(path, snapshot=snapshot[:digits]).mean()) == mean
            assert pickle.loads(pickle.dumps(run)).snapshot == snapshot


def test_short_snapshot_in_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simple_run(tmp_path / "tmosim01", run=4)
    monkeypatch.setenv("LCLS_ROOT", str(tmp_path))
    snapshot = lcls_dask.open_run("lcls://tmosim01/r0004").snapshot
    uri = f"lcls://tmosim01/r0004@{snapshot[:8]}"
    assert lcls_dask.open_run(uri).snapshot == snapshot
    assert float(opened(uri).mean()) == 3.5
    assert float(xr.open_zarr(uri, consolidated=False)[NAME].mean()) == 3.5


def test_short_snapshot_of_other_formats(tmp_path: Path) -> None:
    processed(tmp_path / "tmosim01-r0004.h5", np.arange(8.0))
    simple_run(tmp_path / "run")
    for path in (tmp_path / "tmosim01-r0004.h5", export(tmp_path / "run", tmp_path / "r0001.zarr")):
        snapshot = open_source(path).index.snapshot
        assert lcls_dask.open_run(path, snapshot=snapshot[:10]).snapshot == snapshot


def test_short_snapshot_that_is_unknown(tmp_path: Path) -> None:
    simple_run(tmp_path)
    now = open_source(tmp_path).index.snapshot
    wrong = "0" * 8 if not now.startswith("0") else "1" * 8
    with pytest.raises(SnapshotError, match=f"begins with {wrong} is known; what is there now is {now}"):
        lcls_dask.open_run(tmp_path, snapshot=wrong)


def test_short_snapshot_that_is_ambiguous(tmp_path: Path, own_index_cache: Path) -> None:
    """Two kept indexes of one run whose names begin alike."""
    simple_run(tmp_path)
    now = open_source(tmp_path).index.snapshot
    (kept,) = own_index_cache.iterdir()
    other = now[:9] + "".join("0" if digit != "0" else "1" for digit in now[9:])
    twin = shutil.copytree(kept, own_index_cache / kept.name.replace(now, other))
    index = twin / "index.json"
    index.write_text(index.read_text().replace(now, other))
    with pytest.raises(SnapshotError, match=f"several snapshots begin with {now[:8]}: .*; write more digits"):
        lcls_dask.open_run(tmp_path, snapshot=now[:8])
    assert lcls_dask.open_run(tmp_path, snapshot=now[:10]).snapshot == now
