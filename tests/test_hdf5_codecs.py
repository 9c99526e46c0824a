"""Compressed HDF5 chunks pass through zarr undecoded, for every filter that zarr has a codec for."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from lcls_dask.errors import UnsupportedError
from lcls_dask.formats.codecs import bytes_codec, decode, encode
from lcls_dask.formats.hdf5 import open_hdf5
from lcls_dask.formats.hdf5.datafile import DataFile
from lcls_dask.formats.hdf5.entries import entries
from lcls_dask.formats.source import SourceRef
from lcls_dask.stores.metadata import array_json

hdf5plugin = pytest.importorskip("hdf5plugin", reason="no hdf5plugin: compressed chunks are NOT tested")

GZIP = {"compression": "gzip", "compression_opts": 3}
PASSED = {
    "gzip": GZIP,
    "gzip_shuffle": {**GZIP, "shuffle": True},
    "shuffle": {"shuffle": True},
    "fletcher32": {"fletcher32": True},
    "gzip_shuffle_fletcher32": {**GZIP, "shuffle": True, "fletcher32": True},
    "blosc_zstd_bitshuffle": hdf5plugin.Blosc(cname="zstd", clevel=5, shuffle=hdf5plugin.Blosc.BITSHUFFLE),
    "blosc_lz4": hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE),
    "blosc_zlib": hdf5plugin.Blosc(cname="zlib", clevel=1, shuffle=hdf5plugin.Blosc.NOSHUFFLE),
    "blosc_blosclz": hdf5plugin.Blosc(cname="blosclz", clevel=9),
    "blosc_lz4hc": hdf5plugin.Blosc(cname="lz4hc", clevel=9),
    "zstd": hdf5plugin.Zstd(clevel=3),
    "zstd_shuffle": {"shuffle": True, **hdf5plugin.Zstd(clevel=3)},
}
DECODED = {
    "none": {},
    "lzf": {"compression": "lzf"},
    "lz4": hdf5plugin.LZ4(),
    "bitshuffle_lz4": hdf5plugin.Bitshuffle(cname="lz4"),
    "bitshuffle_zstd": hdf5plugin.Bitshuffle(cname="zstd"),
    "blosc2": hdf5plugin.Blosc2(cname="zstd"),
    "zfp": hdf5plugin.Zfp(reversible=True),
    "scaleoffset": {"scaleoffset": 0},
}
TYPES = ("u1", "<u2", ">u2", "<i4", "<f4", ">f8")


def values_of(dtype: str, events: int = 10) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(3)
    values = np.sort(rng.integers(0, 50, (events, 16, 24)), axis=None)  # sorted, so that LZ4 shrinks it too
    return values.reshape(events, 16, 24).astype(dtype)


def write(path: Path, values: np.ndarray[Any, Any], chunks: tuple[int, ...] | None, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        file["timestamp"] = np.arange(len(values), dtype="u8") << np.uint64(32)
        file.create_dataset("jungfrau/raw", data=values, chunks=chunks, **options)
    return path


def through_zarr(source: Any, name: str) -> tuple[np.ndarray[Any, Any], list[warnings.WarningMessage]]:
    """What zarr itself makes of our metadata and of the file's own bytes."""
    variable = source.index.nodes["/"].variables[name]
    prototype = zarr.core.buffer.default_buffer_prototype().buffer
    entries = {"zarr.json": prototype.from_bytes(array_json(variable))}
    for number in range(-(-variable.shape[0] // variable.chunk)):
        key = "/".join(["c", str(number), *("0" for _ in variable.shape[1:])])
        entries[key] = prototype.from_bytes(source.read_encoded("/", name, number))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        array = zarr.open_array(zarr.storage.MemoryStore(entries), mode="r", zarr_format=3)
        return np.asarray(array[...]), caught


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", PASSED)
def test_chunks_pass_through_zarr(tmp_path: Path, name: str, dtype: str) -> None:
    values = values_of(dtype)
    # 10 events in chunks of 4: HDF5 stores the last chunk in full, which is what zarr wants
    path = write(tmp_path / "run.h5", values, (4, 16, 24), **PASSED[name])
    source = open_hdf5(SourceRef(str(path)))
    variable = source.index.nodes["/"].variables["jungfrau.raw"]
    assert variable.codecs
    assert variable.chunk == 4

    with h5py.File(path) as file:
        raw = [file["jungfrau/raw"].id.read_direct_chunk((4 * k, 0, 0))[1] for k in range(3)]
    assert [source.read_encoded("/", "jungfrau.raw", k) for k in range(3)] == raw

    found, caught = through_zarr(source, "jungfrau.raw")
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(source.read("/", "jungfrau.raw", slice(0, 10)), values)

    # what a reader is told: nothing for zarr's own codecs, by older zarr one kind of warning for the others
    if all(not codec["name"].startswith("numcodecs.") for codec in variable.codecs):
        assert caught == []
    assert {warning.category.__name__ for warning in caught} <= {"ZarrUserWarning"}
    assert all("not in the Zarr version 3 specification" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("name", DECODED)
def test_other_filters_are_decoded(tmp_path: Path, name: str) -> None:
    values = values_of("<f4" if name == "zfp" else "<u2")
    path = write(tmp_path / "run.h5", values, (4, 16, 24), **DECODED[name])
    source = open_hdf5(SourceRef(str(path)))
    assert source.index.nodes["/"].variables["jungfrau.raw"].codecs == ()
    np.testing.assert_array_equal(source.read("/", "jungfrau.raw", slice(0, 10)), values)
    rows = np.array([9, 0, 5, 5, 4])
    np.testing.assert_array_equal(source.read("/", "jungfrau.raw", rows), values[rows])


def test_a_chunk_that_splits_an_event_is_decoded(tmp_path: Path) -> None:
    values = values_of("<u2")
    source = open_hdf5(SourceRef(str(write(tmp_path / "run.h5", values, (4, 8, 24), **GZIP))))
    assert source.index.nodes["/"].variables["jungfrau.raw"].codecs == ()
    np.testing.assert_array_equal(source.read("/", "jungfrau.raw", slice(3, 9)), values[3:9])


def test_chunks_never_written_and_chunks_a_filter_gave_up_on(tmp_path: Path) -> None:
    values = values_of("<u2")
    path = write(tmp_path / "run.h5", values, (4, 16, 24), **GZIP)
    with h5py.File(path, "a") as file:
        sparse = file.create_dataset("jungfrau/sparse", (10, 16, 24), "<u2", chunks=(4, 16, 24), fillvalue=7, **GZIP)
        sparse[4:8] = values[4:8]
        sparse.id.write_direct_chunk((8, 0, 0), values[:4].tobytes(), filter_mask=1)
        expected = sparse[...]
    source = open_hdf5(SourceRef(str(path)))
    found, _ = through_zarr(source, "jungfrau.sparse")
    np.testing.assert_array_equal(found, expected)
    assert (expected[:4] == 7).all()
    np.testing.assert_array_equal(expected[8:], values[:2])


def test_uncompressed_bytes_are_read_past_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_of("<u2", 40)
    for number, chunks in enumerate((None, (4, 16, 24))):
        path = write(tmp_path / f"run{number}.h5", values, chunks)
        source = open_hdf5(SourceRef(str(path)))
        with monkeypatch.context() as patched:
            patched.setattr(h5py.Dataset, "read_direct", lambda *_: pytest.fail("went through h5py"))
            np.testing.assert_array_equal(source.read("/", "jungfrau.raw", slice(3, 39)), values[3:39])
            rows = np.array([39, 3, 4, 3])
            np.testing.assert_array_equal(source.read("/", "jungfrau.raw", rows), values[rows])


def test_a_user_block_does_not_shift_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w", userblock_size=1024) as file:
        file["timestamp"] = np.arange(10, dtype="u8")
        file.create_dataset("a/b", data=np.arange(10, dtype="u8"))
        file.create_dataset("a/c", data=np.arange(800, dtype="u8").reshape(10, 80), chunks=(4, 80), **GZIP)
    source = open_hdf5(SourceRef(str(path)))
    np.testing.assert_array_equal(source.read("/", "a.b", slice(2, 10)), np.arange(2, 10))
    found, _ = through_zarr(source, "a.c")
    np.testing.assert_array_equal(found, np.arange(800).reshape(10, 80))


def test_a_missing_plugin_is_named_and_only_when_it_is_needed(tmp_path: Path) -> None:
    import subprocess

    values = values_of("<u2")
    path = write(tmp_path / "run.h5", values, (4, 16, 24), **hdf5plugin.Blosc(cname="zstd"))
    write(tmp_path / "plain.h5", values, (4, 16, 24), **GZIP)
    code = """
import sys, numpy
from lcls_dask.errors import UnsupportedError
from lcls_dask.formats.hdf5 import open_hdf5
from lcls_dask.formats.source import SourceRef
plain = open_hdf5(SourceRef(sys.argv[2]))
plain.read("/", "jungfrau.raw", slice(0, 10))
assert "hdf5plugin" not in sys.modules
sys.modules["hdf5plugin"] = None
source = open_hdf5(SourceRef(sys.argv[1]))
assert source.read_encoded("/", "jungfrau.raw", 0)
try:
    source.read("/", "jungfrau.raw", slice(0, 10))
except UnsupportedError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "plain.h5")], capture_output=True, text=True, check=True
    )
    assert "pip install hdf5plugin" in done.stdout
    assert done.stdout.count("\n") == 1


def test_an_unknown_filter_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "run.h5", values_of("<u2"), (4, 16, 24), **hdf5plugin.LZ4())
    data = path.read_bytes()
    # the id of LZ4, 32004, in the dataset's filter message becomes one that nobody has
    at = data.index(b"HDF5 lz4 filter") - 8
    assert int.from_bytes(data[at : at + 2], "little") == 32004
    path.write_bytes(data[:at] + (399).to_bytes(2, "little") + data[at + 2 :])
    source = open_hdf5(SourceRef(str(path)))
    with pytest.raises(UnsupportedError, match="filter 399"):
        source.read("/", "jungfrau.raw", slice(0, 1))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 9)),
    chunk=st.integers(1, 45),
    options=st.sampled_from([{}, GZIP, {**GZIP, "shuffle": True}, {"fletcher32": True}]),
    wanted=st.data(),
)
def test_any_rows_at_any_chunk_edge(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], chunk: int, options: Any, wanted: Any
) -> None:
    values = np.arange(shape[0] * shape[1] * 8, dtype="<i4").reshape(shape[0], shape[1] * 8)
    path = tmp_path_factory.mktemp("edges") / "run.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(min(chunk, shape[0]), shape[1] * 8), **options)
    column = entries(DataFile(path), ["/x"])[0]["/x"].column
    start = wanted.draw(st.integers(0, shape[0]))
    stop = wanted.draw(st.integers(start, shape[0]))
    np.testing.assert_array_equal(column.read(slice(start, stop)), values[start:stop])
    rows = np.array(wanted.draw(st.lists(st.integers(0, shape[0] - 1), max_size=20)), dtype=np.int64)
    np.testing.assert_array_equal(column.read(rows), values[rows])
    if column.codecs:
        chunks = [decode(column.codecs, column.encoded(k), column.dtype) for k in range(-(-shape[0] // column.chunk))]
        found = np.concatenate(chunks).reshape(-1, values.shape[1])[: shape[0]]
        np.testing.assert_array_equal(found, values)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["u1", "<u2", ">u2", "<f8", "<c8", "bool", "<U5", "<M8[ns]"]),
    compressor=st.sampled_from(["blosc", "zstd", "gzip", "numcodecs.zlib", None]),
    count=st.integers(1, 50),
)
def test_encode_is_undone_by_decode_and_by_zarr(dtype: str, compressor: str | None, count: int) -> None:
    values = np.arange(count).astype("<U5" if "U" in dtype else "i8").astype(dtype)
    configurations: dict[str, Any] = {
        "blosc": {"typesize": 2, "cname": "zstd", "clevel": 1, "shuffle": "bitshuffle", "blocksize": 0},
        "zstd": {"level": 1, "checksum": True},
        "gzip": {"level": 1},
        "numcodecs.zlib": {"level": 1},
    }
    chain = (bytes_codec(values.dtype),)
    if compressor is not None:
        chain = (*chain, {"name": compressor, "configuration": configurations[compressor]})
    stored = values.view("i8") if values.dtype.kind == "M" else values
    payload = encode(chain, values)
    np.testing.assert_array_equal(decode(chain, payload, stored.dtype.newbyteorder("=")), stored)
    if values.dtype.kind in "UM" or compressor == "numcodecs.zlib":
        return
    array = {
        "zarr_format": 3, "node_type": "array", "shape": [count], "data_type": values.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [count]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": [0.0, 0.0] if values.dtype.kind == "c" else 0 if values.dtype.kind != "b" else False,
        "codecs": list(chain), "attributes": {},
    }  # fmt: skip
    buffer = zarr.core.buffer.default_buffer_prototype().buffer
    held = {"zarr.json": buffer.from_bytes(json.dumps(array).encode()), "c/0": buffer.from_bytes(payload)}
    read = zarr.open_array(zarr.storage.MemoryStore(held), mode="r", zarr_format=3)
    np.testing.assert_array_equal(np.asarray(read[...]), values)
