"""zarr's own suite for stores, and what it does not ask: laziness, padding, errors that stay errors."""

import asyncio
import inspect
import json
import pickle
from collections.abc import AsyncIterator, Iterable
from functools import cached_property
from typing import Any

import memory_source
import numpy as np
import pytest
import xarray as xr
import zarr
from dask.base import tokenize
from memory_source import GZIP, DictKeys, MemorySource, array, reopen
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.core.sync import sync
from zarr.testing.store import StoreTests

from lcls_dask.errors import FormatError, RunNotFoundError, SnapshotError
from lcls_dask.formats.source import Rows, SourceRef
from lcls_dask.model import Variable
from lcls_dask.stores.metadata import array_json, jsonable
from lcls_dask.stores.store import LclsStore

PROTOTYPE = default_buffer_prototype()

# the suite is written for pytest-asyncio's automatic mode, this project uses the strict one
for _name, _test in vars(StoreTests).items():
    if _name.startswith("test_") and inspect.iscoroutinefunction(_test):
        pytest.mark.asyncio(_test)


class SuiteStore(LclsStore):
    """The store with keys that the suite chooses, everything else as it is."""

    @cached_property
    def keys(self) -> DictKeys:  # type: ignore[override]
        return DictKeys()


class TestLclsStore(StoreTests[SuiteStore, cpu.Buffer]):
    store_cls = SuiteStore
    buffer_cls = cpu.Buffer

    async def set(self, store: SuiteStore, key: str, value: Buffer) -> None:
        store.keys.data[key] = value.to_bytes()

    async def get(self, store: SuiteStore, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(store.keys.data[key])

    @pytest.fixture
    def store_kwargs(self) -> dict[str, Any]:
        return {"source": SourceRef("/memory/suite", 1, "0123456789abcdef"), "reopen": reopen}

    @pytest.fixture
    def store(self, open_kwargs: dict[str, Any]) -> SuiteStore:
        return sync(SuiteStore.open(**open_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs: dict[str, Any]) -> SuiteStore:
        return SuiteStore(**store_kwargs)

    def test_store_repr(self, store: SuiteStore) -> None:
        assert repr(store) == "LclsStore('/memory/suite run 1@0123456789abcdef')"

    def test_store_supports_writes(self, store: SuiteStore) -> None:
        assert not store.supports_writes

    def test_store_supports_listing(self, store: SuiteStore) -> None:
        assert store.supports_listing

    def test_store_read_only(self, store: SuiteStore) -> None:
        assert store.read_only
        with pytest.raises(AttributeError):
            store.read_only = False  # type: ignore[misc]

    @pytest.mark.asyncio
    async def test_store_open_read_only(self, open_kwargs: dict[str, Any]) -> None:
        store = await SuiteStore.open(**open_kwargs, read_only=True)
        assert store._is_open
        assert store.read_only
        with pytest.raises(ValueError, match="read-only"):
            await SuiteStore.open(**open_kwargs, read_only=False)

    @pytest.mark.asyncio
    async def test_serializable_store(self, store: SuiteStore) -> None:
        again = pickle.loads(pickle.dumps(store))
        assert again == store
        assert again.read_only

    # These write with the store before they look: here the keys are put beneath it.
    @pytest.mark.asyncio
    async def test_exists(self, store: SuiteStore) -> None:
        assert not await store.exists("foo")
        await self.set(store, "foo/zarr.json", self.buffer_cls.from_bytes(b"bar"))
        assert await store.exists("foo/zarr.json")
        assert not await store.exists("foo")

    @pytest.mark.asyncio
    @pytest.mark.parametrize(
        "test",
        ["test_getsize_prefix", "test_list", "test_list_prefix", "test_list_empty_path", "test_list_dir"],
    )
    async def test_listing(self, store: SuiteStore, test: str, monkeypatch: pytest.MonkeyPatch) -> None:
        async def set_many(values: Iterable[tuple[str, Buffer]]) -> None:
            for key, value in values:
                await self.set(store, key, value)

        monkeypatch.setattr(store, "_set_many", set_many)
        await getattr(super(), test)(store)

    test_getsize_prefix = test_list = test_list_prefix = test_list_empty_path = test_list_dir = None  # type: ignore[assignment]
    # Only about writing: test_read_only_store_raises says that it is refused.
    test_set = test_set_not_open = test_set_many = test_set_if_not_exists = None  # type: ignore[assignment]
    test_clear = test_set_sync = test_delete_sync = test_delete_sync_missing = None  # type: ignore[assignment]
    test_sync_async_set_get_parity = test_delete_sync_visible_to_async_get = None
    # writes first; `read` below compares the two ways for every byte range of a run
    test_get_sync_byte_range_parity = None
    test_delete = test_delete_dir = test_delete_nonexistent_key_does_not_raise = None  # type: ignore[assignment]


@pytest.fixture
def run() -> MemorySource:
    image = np.arange(10 * 2 * 3, dtype="u2").reshape(10, 2, 3)
    return MemorySource(
        {
            "/": {
                "timestamp": array(np.arange(10, dtype="u8"), ("event",), coordinate=True),
                "cam.raw.image": array(image, ("event", "cam.row", "cam.column")),
                "cam.raw.zip": array(image, ("event", "cam.row", "cam.column"), codecs=GZIP),
                "bias": array(np.float64(2.5), ()),
                "none": array(np.zeros((0, 4)), ("nothing", "cam.four")),
            },
            "/cam": {"x": array(np.arange(3.0), ("cam.event",))},
        },
        attrs={"title": "beam time", "limit": np.float32("nan"), "mask": np.array([True, False])},
    )


@pytest.fixture
def store(run: MemorySource) -> LclsStore:
    return LclsStore(run, reopen)


async def collect(keys: AsyncIterator[str]) -> list[str]:
    return sorted([key async for key in keys])


def read(store: LclsStore, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
    buffer = sync(store.get(key, PROTOTYPE, byte_range))
    synchronously = store.get_sync(key, byte_range=byte_range)
    if buffer is None or synchronously is None:
        assert buffer is synchronously
        return None
    assert buffer.to_bytes() == synchronously.to_bytes()
    return buffer.to_bytes()


def test_all_keys(store: LclsStore) -> None:
    chunks = [f"{name}/c/{i}/0/0" for name in ("cam.raw.image", "cam.raw.zip") for i in range(3)]
    arrays = ["timestamp", "cam.raw.image", "cam.raw.zip", "bias", "none", "cam/x"]
    metadata = ["zarr.json", "cam/zarr.json", *(f"{name}/zarr.json" for name in arrays)]
    scalars = ["bias/c", "cam/x/c/0", *(f"timestamp/c/{i}" for i in range(3))]
    keys = sync(collect(store.list()))
    assert keys == sorted(metadata + chunks + scalars)
    for key in keys:
        assert sync(store.exists(key))
        data = read(store, key)
        assert data is not None
        assert sync(store.getsize(key)) == len(data)
    assert sync(collect(store.list_prefix("cam.raw.i"))) == [k for k in keys if k.startswith("cam.raw.i")]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "nothing/zarr.json",
        "cam.raw.image",
        "cam.raw.image/c",
        "cam.raw.image/c/0",
        "cam.raw.image/c/0/0/0/0",
        "cam.raw.image/c/3/0/0",
        "cam.raw.image/c/-1/0/0",
        "cam.raw.image/c/00/0/0",
        "cam.raw.image/c/²/0/0",
        "cam.raw.image/c/0/1/0",
        "none/c/0/0",
        "bias/c/0",
        "cam/nothing/zarr.json",
        "cam/x/c/1",
        ".zgroup",
    ],
)
def test_absent_keys(store: LclsStore, key: str) -> None:
    assert read(store, key) is None
    assert not sync(store.exists(key))
    with pytest.raises(FileNotFoundError):
        sync(store.getsize(key))


@pytest.mark.parametrize("directory", ["nothing", "cam.raw.image/d", "cam.raw.image/c/3", "none/c", "bias/c"])
def test_absent_directories(store: LclsStore, directory: str) -> None:
    assert sync(collect(store.list_dir(directory))) == []


def test_last_chunk_is_padded_with_zeros(store: LclsStore, run: MemorySource) -> None:
    data = read(store, "cam.raw.image/c/2/0/0")
    image = np.frombuffer(data or b"", "u2").reshape(4, 2, 3)
    np.testing.assert_array_equal(image[:2], run.values["/"]["cam.raw.image"][8:])
    assert not image[2:].any()


def test_chunks_are_not_copied(store: LclsStore, run: MemorySource) -> None:
    buffer = store.get_sync("cam.raw.image/c/1/0/0")
    assert buffer is not None
    assert np.shares_memory(buffer.as_numpy_array(), run.values["/"]["cam.raw.image"])


@pytest.mark.parametrize("key", ["cam.raw.image/c/1/0/0", "cam.raw.image/c/2/0/0", "cam.raw.zip/c/2/0/0", "zarr.json"])
@pytest.mark.parametrize("start", [0, 1, 12, 23, 24, 25, 47, 48, 50])
def test_byte_ranges_are_slices(store: LclsStore, key: str, start: int) -> None:
    data = read(store, key)
    assert data is not None
    for stop in (start, start + 1, start + 12, 48, 60):
        assert read(store, key, RangeByteRequest(start, stop)) == data[start:stop]
    assert read(store, key, OffsetByteRequest(start)) == data[start:]
    assert read(store, key, SuffixByteRequest(start)) == data[max(0, len(data) - start) :]


def test_byte_ranges_read_only_their_events(store: LclsStore, run: MemorySource) -> None:
    event = 12  # bytes
    read(store, "cam.raw.image/c/1/0/0", RangeByteRequest(event, 3 * event))
    assert run.reads[-1] == ("/", "cam.raw.image", slice(5, 7))
    read(store, "cam.raw.image/c/1/0/0", RangeByteRequest(event + 1, event + 2))
    assert run.reads[-1] == ("/", "cam.raw.image", slice(5, 6))
    count = len(run.reads)
    read(store, "cam.raw.image/c/2/0/0", RangeByteRequest(3 * event, 4 * event))
    assert len(run.reads) == count  # all of it is padding


def test_what_exists_but_cannot_be_read_raises(run: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    """zarr fills with zeros what it takes for missing; the errors of a vanished file look like that."""
    for error in (
        FileNotFoundError("gone"),
        RunNotFoundError("gone"),
        NotADirectoryError("gone"),
        KeyError("gone"),
    ):

        def read(path: str, name: str, rows: Rows, error: Exception = error) -> np.ndarray[Any, Any]:
            raise error

        monkeypatch.setattr(run, "read", read)
        with pytest.raises(SnapshotError, match=r"timestamp/c/\d.*gone.*open the run again"):
            xr.open_zarr(LclsStore(run))["timestamp"].load()
    monkeypatch.setattr(run, "read_encoded", lambda path, name, chunk: None)
    with pytest.raises(FormatError, match=r"chunk \d of 'cam\.raw\.zip'"):
        xr.open_zarr(LclsStore(run))["cam.raw.zip"].variable.load()


def test_a_source_that_gives_other_values_than_it_said_is_caught(
    run: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "read", lambda path, name, rows: np.zeros(1, "f4"))
    with pytest.raises(FormatError, match=r"'timestamp'.*not as 4 items of uint64"):
        LclsStore(run).get_sync("timestamp/c/0")


def test_reading_does_not_block_zarrs_loop(run: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks that each wait for the other one to be asked for."""
    both = asyncio.Barrier(2)
    real = run.read

    def read(path: str, name: str, rows: Rows) -> np.ndarray[Any, Any]:
        asyncio.run_coroutine_threadsafe(both.wait(), loop).result(timeout=20)
        return real(path, name, rows)

    async def two() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(LclsStore(run).get(f"timestamp/c/{i}", PROTOTYPE) for i in range(2)))

    loop: asyncio.AbstractEventLoop
    monkeypatch.setattr(run, "read", read)
    asyncio.run(two())


def test_pickles_as_a_reference(store: LclsStore, run: MemorySource) -> None:
    store.get_sync("timestamp/c/0")
    pickled = pickle.dumps(store)
    assert len(pickled) < 400
    again = pickle.loads(pickled)
    assert again == store
    assert hash(again) == hash(store)
    assert tokenize(again) == tokenize(store)
    assert read(again, "timestamp/c/1") == read(store, "timestamp/c/1")


def test_unpickling_opens_nothing() -> None:
    store = LclsStore(SourceRef("/memory/of-another-machine", 1, "00"), reopen)
    again = pickle.loads(pickle.dumps(store))  # as the scheduler does, which has no files
    with pytest.raises(KeyError):
        again.get_sync("zarr.json")


def test_snapshots_are_different_stores(run: MemorySource) -> None:
    ref = run.ref
    one, two = (LclsStore(SourceRef(ref.path, ref.run, snapshot)) for snapshot in ("aa", "bb"))
    assert one != two
    assert tokenize(one) != tokenize(two)
    run.ref = SourceRef(ref.path, ref.run)
    assert LclsStore(run).ref.snapshot == run.index.snapshot  # pinned


@pytest.mark.parametrize("bad", ["a/b", "cam"])
def test_names_that_are_no_keys_are_refused(bad: str) -> None:
    source = MemorySource({"/": {bad: array(np.zeros(1), ("event",))}, "/cam": {}})
    with pytest.raises(FormatError, match="rename"):
        sync(collect(LclsStore(source).list()))


def test_attributes_are_strict_json(store: LclsStore) -> None:
    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    document = json.loads(read(store, "zarr.json") or b"", parse_constant=no_constants)
    assert document["attributes"]["limit"] == "NaN"
    assert document["attributes"]["mask"] == [True, False]
    assert zarr.open_group(store, mode="r").attrs["experiment"] == "tmox42619"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.datetime64("2024-01-02T03:04:05", "ns"), "2024-01-02T03:04:05.000000000"),
        (np.array(["2024-01-02"], "datetime64[D]"), ["2024-01-02"]),
        (b"caf\xe9", "caf\\xe9"),
        ((np.float64("inf"), float("-inf")), ["Infinity", "-Infinity"]),
        ({1: {"a": np.array([[1, 2]])}}, {"1": {"a": [[1, 2]]}}),
    ],
)
def test_attribute_values(value: Any, expected: Any) -> None:
    assert jsonable(value) == expected


def test_attributes_that_json_cannot_say_are_named() -> None:
    with pytest.raises(FormatError, match="type complex"):
        jsonable(1j)


@pytest.mark.parametrize("dtype", ["O", "S4", "datetime64[s]", "timedelta64[ns]", "V8", np.longdouble])
def test_dtypes_outside_the_data_model_are_refused(dtype: Any) -> None:
    with pytest.raises(FormatError, match="'x' has dtype"):
        array_json(Variable("x", ("event",), (1,), np.dtype(dtype)))


def test_short_arrays_are_one_chunk_of_their_length() -> None:
    short = Variable("x", ("event",), (10,), np.dtype("u8"), chunk=65536)
    assert (short.storage_chunk, short.chunk_count) == (10, 1)
    encoded = Variable("x", ("event",), (10,), np.dtype("u8"), chunk=65536, codecs=GZIP)
    assert (encoded.storage_chunk, encoded.chunk_count) == (65536, 1)


def test_zarr_reads_what_the_source_holds(store: LclsStore, run: MemorySource) -> None:
    group = zarr.open_group(store, mode="r")
    for path, node in run.values.items():
        for name, values in node.items():
            np.testing.assert_array_equal(group[f"{path}/{name}".strip("/")][...], values)
    assert memory_source.reopen(run.ref) is run
