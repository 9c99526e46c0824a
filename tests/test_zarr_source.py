"""Stores that export wrote, read back; damaged and hostile ones; and real runs there and back."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from test_export import a_run, assert_same, values

from lcls_dask import open_run
from lcls_dask.access.export import export
from lcls_dask.errors import (
    ConfinementError,
    FormatError,
    RunNotFoundError,
    SelectionError,
    SnapshotError,
    UnsupportedError,
)
from lcls_dask.formats import open_source
from lcls_dask.formats.source import SourceRef
from lcls_dask.formats.zarr import open_zarr
from lcls_dask.stores.metadata import array_json

IMAGE = "jungfrau.raw.raw"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return export(a_run(), tmp_path / "run.zarr")


def test_the_reference_is_all_that_travels(store: Path) -> None:
    source = open_zarr(SourceRef(str(store)))
    assert len(pickle.dumps(source.ref)) < 1000
    again = pickle.loads(pickle.dumps(source))
    assert_same(again, source)
    with pytest.raises(SnapshotError, match="without a snapshot"):
        open_zarr(SourceRef(str(store), snapshot="0" * 32))
    with pytest.raises(SelectionError, match="no variable"):
        source.read("/", "other", slice(0, 1))


def test_chunks_and_metadata_pass_through(store: Path) -> None:
    """What the store face would give of the copy is, byte for byte, what lies in it."""
    source = open_zarr(SourceRef(str(store)))
    for path, node in source.index.nodes.items():
        for name, variable in node.variables.items():
            folder = store / path.strip("/") / name
            assert json.loads(array_json(variable)) == json.loads((folder / "zarr.json").read_bytes())
            if 0 not in variable.shape:
                chunk = folder.joinpath("c", "0", *("0" for _ in variable.shape[1:]))
                assert source.read_encoded(path, name, 0) == chunk.read_bytes()
                assert source.read_encoded(path, name, 10_000) is None


def test_open_run_and_the_engine(store: Path) -> None:
    run = a_run()
    opened = open_run(store)
    assert (opened.experiment, opened.number, opened.state) == ("tmox42619", 14, "ended")
    with xr.open_dataset(store, engine="lcls", chunks={}) as data:
        np.testing.assert_array_equal(data[IMAGE], values(run, "/", IMAGE))
        assert data[IMAGE].dims == run.index.nodes["/"].variables[IMAGE].dims


def test_a_missing_chunk_is_never_zeros(store: Path) -> None:
    (store / IMAGE / "c/1/0/0/0").unlink()
    source = open_zarr(SourceRef(str(store)))
    source.read("/", IMAGE, slice(0, 4))
    with pytest.raises(FormatError, match=r"chunk 1 .* is missing"):
        source.read("/", IMAGE, slice(0, 5))
    found = [finding for finding in source.validate() if finding.where == f"/ {IMAGE}"]
    assert [(finding.kind, finding.count, finding.fatal) for finding in found] == [("corrupt", 4, True)]


@pytest.mark.parametrize("compression", ["blosc", "zstd", "gzip", None])
def test_damaged_chunks(tmp_path: Path, compression: str | None) -> None:
    store = export(a_run(), tmp_path / "run.zarr", compression=compression)
    chunk = store / IMAGE / "c/0/0/0/0"
    data = chunk.read_bytes()
    source = open_zarr(SourceRef(str(store)))
    for damaged in (b"", data[: len(data) // 2], data + data[:1] if compression is None else b"\0" * len(data)):
        chunk.write_bytes(damaged)
        with pytest.raises(FormatError, match="chunk 0 of jungfrau"):
            source.read("/", IMAGE, slice(0, 2))


def test_damaged_metadata(store: Path) -> None:
    root = json.loads((store / "zarr.json").read_text())
    for change in ("nodes", "detectors"):
        broken = json.loads(json.dumps(root))
        del broken["attributes"]["lcls_dask_export"][change]
        (store / "zarr.json").write_text(json.dumps(broken))
        with pytest.raises(FormatError, match="damaged"):
            open_zarr(SourceRef(str(store)))
    (store / "zarr.json").write_text(json.dumps(root))
    array = store / "step" / "zarr.json"
    good = json.loads(array.read_text())
    for key, value in {"data_type": "object", "shape": [-1], "dimension_names": None, "chunk_grid": {}}.items():
        array.write_text(json.dumps({**good, key: value}))
        with pytest.raises(FormatError, match="damaged"):
            open_zarr(SourceRef(str(store)))
    for text in ("", "{", "[]", "[" * 100_000):
        array.write_text(text)
        with pytest.raises(FormatError, match=r"zarr\.json"):
            open_zarr(SourceRef(str(store)))
    array.write_text(json.dumps({**good, "codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}]}))
    with pytest.raises(UnsupportedError, match="pickle"):
        open_zarr(SourceRef(str(store))).read("/", "step", slice(0, 1))


def test_another_programs_store(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError):
        open_zarr(SourceRef(str(tmp_path)))
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(FormatError, match="open_zarr"):
        open_zarr(SourceRef(str(tmp_path)))


def test_nothing_leads_out(store: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    shutil.copytree(store / IMAGE, secret)
    chunk = store / IMAGE / "c/0/0/0/0"
    chunk.unlink()
    chunk.symlink_to(secret / "c/0/0/0/0")
    with pytest.raises(ConfinementError, match="leads out"):
        open_zarr(SourceRef(str(store))).read("/", IMAGE, slice(0, 1))
    shutil.rmtree(store / "step")
    (store / "step").symlink_to(secret)
    with pytest.raises(ConfinementError, match="leads out"):
        open_zarr(SourceRef(str(store)))
    (store / "step").unlink()
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"]["lcls_dask_export"]["nodes"] = {"/../secret/..": []}
    (store / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(ConfinementError, match="leads out"):
        open_zarr(SourceRef(str(store)))


REAL = ("lcls2/test_hsd.xtc2", "lcls2/test_jungfrau05M_calib.xtc2", "lcls2/mixed_rate")


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("target", ["run.zarr", "run.h5"])
def test_real_runs_there_and_back(real_data: Path, tmp_path: Path, name: str, target: str) -> None:
    source = open_source(real_data / name)
    copy = open_source(export(source, tmp_path / target))
    assert_same(copy, source)


@pytest.mark.parametrize("name", REAL)
def test_half_of_a_real_run(real_data: Path, tmp_path: Path, name: str) -> None:
    source = open_source(real_data / name)
    chosen = np.arange(source.index.events) % 2 == 1
    copy = open_source(export(source, tmp_path / "run.zarr", events=chosen))
    for variable in source.index.nodes["/"].variables:
        if source.index.nodes["/"].variables[variable].dims[0] == "event":
            np.testing.assert_array_equal(values(copy, "/", variable), values(source, "/", variable)[chosen])
    for path in copy.index.nodes:
        copy.index.nodes[path].sizes  # noqa: B018
        for variable in copy.index.nodes[path].variables:
            values(copy, path, variable)
