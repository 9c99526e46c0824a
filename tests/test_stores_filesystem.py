"""fsspec's own suites for reading, and what makes this filesystem safe to read numbers from."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import fsspec
import memory_source
import numpy as np
import pytest
import xarray as xr
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.tests.abstract import AbstractFixtures
from fsspec.tests.abstract.get import AbstractGetTests
from memory_source import GZIP, DictKeys, MemorySource, array
from zarr.storage import FsspecStore

from lcls_dask.errors import LiveRunError, RunNotFoundError, SnapshotError, UnsupportedError, UriError
from lcls_dask.formats import discover
from lcls_dask.formats.source import SourceRef
from lcls_dask.stores.filesystem import LclsFileSystem


class SuiteFileSystem(LclsFileSystem):
    """The filesystem with files that the suite puts beneath it, everything else as it is."""

    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(run="/suite", **options)
        self.keys = DictKeys()

    def _keys(self, path: str) -> tuple[Any, str]:
        return self.keys, self._strip_protocol(path)

    def pipe(self, path: str, value: bytes) -> None:
        self.keys.data[path] = value

    def touch(self, path: str) -> None:
        self.keys.data[path] = b""

    def makedirs(self, path: str) -> None:
        pass

    def rm(self, path: str, recursive: bool = False) -> None:
        self.keys.data.clear()


class SuiteFixtures(AbstractFixtures):
    @pytest.fixture
    def fs(self) -> LclsFileSystem:
        return SuiteFileSystem()

    @pytest.fixture
    def fs_path(self) -> str:
        return "suite"

    @pytest.fixture
    def local_fs(self) -> LocalFileSystem:
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def local_path(self, tmp_path: Path) -> str:
        return make_path_posix(str(tmp_path))


class TestGet(SuiteFixtures, AbstractGetTests):
    """fsspec's suites for put, pipe, copy and open (exclusive creation) are all about writing."""


@pytest.fixture
def run(tmp_path: Path) -> MemorySource:
    image = np.arange(10 * 2 * 3, dtype="u2").reshape(10, 2, 3)
    return MemorySource(
        {
            "/": {
                "timestamp": array(np.arange(10, dtype="u8"), ("event",), coordinate=True),
                "cam.raw.image": array(image, ("event", "cam.row", "cam.column")),
                "cam.raw.zip": array(image, ("event", "cam.row", "cam.column"), codecs=GZIP),
                "bias": array(np.float64(2.5), ()),
            },
            "/cam": {"x": array(np.arange(3.0), ("cam.event",))},
        }
    )


@pytest.fixture
def facility(run: MemorySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Path, MemorySource]]:
    """A directory of two experiments; the first has runs 13 (its files hold `run`) and 14."""
    runs = {tmp_path / "tmox42619" / f"r{number:04d}": run for number in (13, 14)}
    for directory in (*runs, tmp_path / "xpp" / "xpptut15", tmp_path / "Not-An-Experiment"):
        directory.mkdir(parents=True)

    def find_runs(directory: Path) -> dict[int, Path]:
        return {int(path.name[1:]): path for path in runs if path.parent == directory}

    def open_source(path: str, run: int | None, snapshot: str | None) -> MemorySource:
        source = runs[Path(path)]
        if snapshot not in (None, source.index.snapshot):
            raise SnapshotError(f"{path} has no snapshot {snapshot}")
        return source

    monkeypatch.setattr(discover, "find_runs", find_runs)
    monkeypatch.setattr(discover, "open_source", open_source)
    fsspec.register_implementation("lcls", LclsFileSystem, clobber=True)
    with dask.config.set({"lcls.root": str(tmp_path)}):
        yield runs
    LclsFileSystem.clear_instance_cache()


@pytest.fixture
def fs(facility: dict[Path, MemorySource]) -> LclsFileSystem:
    return fsspec.filesystem("lcls")


def test_listings(fs: LclsFileSystem, run: MemorySource) -> None:
    assert fs.ls("lcls://", detail=False) == ["tmox42619", "xpptut15"]
    assert fs.ls("lcls://tmox42619", detail=False) == ["tmox42619/r0013", "tmox42619/r0014"]
    assert fs.ls("lcls://xpptut15") == []
    names = ["zarr.json", "cam", "timestamp", "cam.raw.image", "cam.raw.zip", "bias"]
    assert fs.ls("lcls://tmox42619/r0014", detail=False) == [f"tmox42619/r0014/{name}" for name in names]
    pinned = f"tmox42619/r0014@{run.index.snapshot}"
    assert fs.ls(f"lcls://{pinned}/cam/x", detail=False) == [f"{pinned}/cam/x/zarr.json", f"{pinned}/cam/x/c"]
    assert fs.ls("tmox42619/r0014/timestamp/c/1", detail=False) == ["tmox42619/r0014/timestamp/c/1"]


def test_listing_reads_no_events(fs: LclsFileSystem, run: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "read_encoded", None)
    found = fs.find("lcls://tmox42619/r0014", detail=True)
    sizes = {name.removeprefix("tmox42619/r0014/"): entry["size"] for name, entry in found.items()}
    assert sizes["cam.raw.image/c/2/0/0"] == 4 * 12
    assert sizes["cam.raw.zip/c/2/0/0"] is None
    assert run.reads == []


def test_sizes_are_exact(fs: LclsFileSystem) -> None:
    for path in fs.find("lcls://tmox42619/r0014"):
        assert fs.info(path) == {"name": path, "size": len(fs.cat_file(path)), "type": "file"}


def test_single_run_has_keys_for_paths(facility: dict[Path, MemorySource]) -> None:
    fs = LclsFileSystem(run=next(iter(facility)))
    assert fs.ls("cam", detail=False) == ["cam/zarr.json", "cam/x"]
    assert fs.isdir("")
    assert fs.find("cam") == ["cam/x/c/0", "cam/x/zarr.json", "cam/zarr.json"]


def test_chunks_are_views_and_metadata_is_bytes(fs: LclsFileSystem, run: MemorySource) -> None:
    data = fs.cat_file("lcls://tmox42619/r0014/cam.raw.image/c/1/0/0")
    assert np.shares_memory(np.asarray(data), run.values["/"]["cam.raw.image"])
    assert json.loads(fs.cat_file("lcls://tmox42619/r0014/zarr.json"))["node_type"] == "group"


def test_ranges(fs: LclsFileSystem, run: MemorySource) -> None:
    path = "tmox42619/r0014/cam.raw.image/c/1/0/0"
    data = bytes(fs.cat_file(path))
    assert data == run.values["/"]["cam.raw.image"][4:8].tobytes()
    spans = [(0, 5), (3, None), (-7, None), (-7, -2), (None, 9), (40, 99), (50, 60)]
    pieces = fs.cat_ranges([path] * len(spans), *map(list, zip(*spans, strict=True)))
    assert [bytes(piece) for piece in pieces] == [data[start:stop] for start, stop in spans]


def test_open_reads_and_seeks(fs: LclsFileSystem, run: MemorySource) -> None:
    path = "lcls://tmox42619/r0014/cam.raw.image/c/2/0/0"
    data = bytes(fs.cat_file(path))
    for cache in ("readahead", "none", "bytes", "all"):
        with fs.open(path, "rb", cache_type=cache, block_size=7) as file:
            assert file.read(5) == data[:5]
            assert file.read() == data[5:]
            file.seek(-9, 2)
            assert file.read(4) == data[-9:-5]
    with fs.open("lcls://tmox42619/r0014/zarr.json", "r") as file:
        assert json.load(file)["zarr_format"] == 3


def test_writing_is_refused(fs: LclsFileSystem) -> None:
    with pytest.raises(UnsupportedError, match="read-only"):
        fs.open("lcls://tmox42619/r0014/new", "wb")
    with pytest.raises(NotImplementedError):
        fs.pipe("lcls://tmox42619/r0014/new", b"")
    with pytest.raises(NotImplementedError):
        fs.rm("lcls://tmox42619/r0014/zarr.json")


def test_only_what_cannot_exist_is_not_found(fs: LclsFileSystem) -> None:
    for path in ("tmox42619/r0014/nothing", "tmox42619/r0014/timestamp/c/3", "tmox42619/r0014/bias/c/0"):
        assert not fs.exists(path)
        assert not fs.isdir(path)
        with pytest.raises(FileNotFoundError):
            fs.cat_file(path)
        with pytest.raises(FileNotFoundError):
            fs.ls(path)
    for path in ("tmox42619/r0099", "nosuchexp", "nosuchexp/r0001/zarr.json"):
        assert not fs.exists(path)
        with pytest.raises(RunNotFoundError):
            fs.info(path)
    assert fs.find("nosuchexp") == []
    assert fs.glob("tmox42619/r00*") == ["tmox42619/r0013", "tmox42619/r0014"]


def test_other_errors_stay_errors(
    fs: LclsFileSystem, run: MemorySource, monkeypatch: pytest.MonkeyPatch, facility: dict[Path, MemorySource]
) -> None:
    """FsspecStore takes "file not found" for zeros: a run that this machine does not see must not be that."""
    with pytest.raises(SnapshotError, match="cannot be read on this machine"):
        fs.cat_file("lcls://nosuchexp/r0001/timestamp/c/0")
    store = FsspecStore(LclsFileSystem(asynchronous=True), path="tmox42619/r0014", read_only=True)
    dataset = xr.open_zarr(store, consolidated=False)

    def denied(*args: Any) -> Any:
        raise PermissionError("not yours")

    with monkeypatch.context() as patch:
        patch.setattr(run, "read", denied)
        with pytest.raises(PermissionError, match="not yours"):
            dataset["timestamp"].load()
    monkeypatch.setattr(discover, "open_source", denied)
    fs._sources.clear()
    for question in (fs.isdir, fs.isfile, fs.exists, fs.ls, fs.find):
        with pytest.raises(PermissionError, match="not yours"):
            question("tmox42619/r0014")


def test_without_a_root_the_setting_is_named() -> None:
    with dask.config.set({"lcls.root": None}), pytest.raises(UriError, match=r"lcls\.root.*LCLS_ROOT"):
        LclsFileSystem().ls("lcls://tmox42619")


def test_credentials_are_not_taken() -> None:
    with pytest.raises(UriError, match="no option token") as caught:
        LclsFileSystem(token="s3cr3t")
    assert "s3cr3t" not in str(caught.value)


def live(events: int, state: str = "live") -> MemorySource:
    return MemorySource({"/": {"x": array(np.arange(events), ("event",))}}, state=state)


def test_live_runs_must_be_pinned(fs: LclsFileSystem, facility: dict[Path, MemorySource]) -> None:
    path = next(iter(facility))
    facility[path] = source = live(8)
    pinned = f"lcls://tmox42619/r0013@{source.index.snapshot}"
    for question in (fs.cat_file, fs.info, fs.exists, fs.isdir):
        with pytest.raises(LiveRunError, match=pinned):
            question("lcls://tmox42619/r0013/zarr.json")
    assert xr.open_zarr(pinned, consolidated=False).sizes == {"event": 8}
    with pytest.raises(LiveRunError, match=f"snapshot='{source.index.snapshot}'"):
        LclsFileSystem(run=path).ls("")
    assert LclsFileSystem(run=path, snapshot=source.index.snapshot).isfile("x/c/1")


def test_two_moments_of_a_run_are_never_mixed(fs: LclsFileSystem, facility: dict[Path, MemorySource]) -> None:
    """A run that seemed to have stopped has grown: chunks of now do not belong to the metadata of then."""
    path = next(iter(facility))
    facility[path] = live(8, "cut")
    with pytest.raises(LiveRunError, match="r0013@"):  # by URI such a run must be pinned
        fs.cat_file("lcls://tmox42619/r0013/zarr.json")
    here = LclsFileSystem(run=str(path), skip_instance_cache=True)
    assert here.cat_file("zarr.json")
    facility[path] = grown = live(12, "cut")
    (path / "stream.xtc2").write_bytes(b"more")
    with pytest.raises(SnapshotError, match=grown.index.snapshot):
        here.cat_file("x/c/0")


def test_many_runs_do_not_stay_open(fs: LclsFileSystem, facility: dict[Path, MemorySource], run: Any) -> None:
    for number in range(100, 200):
        directory = next(iter(facility)).with_name(f"r{number:04d}")
        directory.mkdir()
        facility[directory] = run
        assert fs.exists(f"tmox42619/r{number:04d}/zarr.json")
    assert len(fs._sources) <= 32


def test_pickles_small(fs: LclsFileSystem, facility: dict[Path, MemorySource]) -> None:
    fs.ls("tmox42619/r0014")
    for one in (fs, LclsFileSystem(run="/x", snapshot="0123456789")):
        pickled = pickle.dumps(one)
        assert len(pickled) < 400
        assert pickle.loads(pickled) == one
        assert fsspec.AbstractFileSystem.from_json(one.to_json()) == one


def test_opens_by_uri(facility: dict[Path, MemorySource], run: MemorySource) -> None:
    dataset = xr.open_zarr("lcls://tmox42619/r0014", consolidated=False, chunks={})
    np.testing.assert_array_equal(dataset["cam.raw.zip"], run.values["/"]["cam.raw.image"])
    mapper = fsspec.get_mapper("lcls://tmox42619/r0014")
    assert "cam/x/c/0" in mapper
    assert isinstance(memory_source.reopen(run.ref).ref, SourceRef)


def test_listings_leave_out_nothing_silently(
    fs: LclsFileSystem, run: MemorySource, monkeypatch: pytest.MonkeyPatch, facility: dict[Path, MemorySource]
) -> None:
    """fsspec drops a directory that it may not read from what `find` gives."""
    _, second = facility
    real = discover.open_source

    def one_denied(path: str, number: int | None, snapshot: str | None) -> Any:
        if Path(path) == second:
            raise PermissionError("not yours")
        return real(path, number, snapshot)

    monkeypatch.setattr(discover, "open_source", one_denied)
    assert fs.find("tmox42619/r0013")
    with pytest.raises(PermissionError, match="not yours"):
        fs.find("tmox42619")
