"""Every face of a run shows the same data: zarr store, filesystem, and the source itself."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import memory_source
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_source import MemorySource, array, sources
from zarr.storage import FsspecStore

from lcls_dask.access import engine
from lcls_dask.access.engine import node_dataset
from lcls_dask.errors import FormatError
from lcls_dask.formats import discover
from lcls_dask.formats.source import RunSource
from lcls_dask.model import Node
from lcls_dask.stores.filesystem import LclsFileSystem
from lcls_dask.stores.store import LclsStore

#: A face: a source's node as xarray shows it.
Face = Callable[[MemorySource, str], xr.Dataset]


def store_face(source: MemorySource, path: str, **options: Any) -> xr.Dataset:
    return xr.open_zarr(LclsStore(source, memory_source.reopen), group=path, **options)


def filesystem_store(source: MemorySource) -> FsspecStore:
    ref = source.ref
    fs = LclsFileSystem(ref.path, snapshot=ref.snapshot, asynchronous=True, skip_instance_cache=True)
    return FsspecStore(fs, path="", read_only=True)


def filesystem_face(source: MemorySource, path: str, **options: Any) -> xr.Dataset:
    return xr.open_zarr(filesystem_store(source), group=path, consolidated=False, **options)


ZARR_FACES: dict[str, Face] = {"store": store_face, "filesystem": filesystem_face}
FACES: dict[str, Face] = {**ZARR_FACES, "engine": node_dataset}


def directly(source: RunSource, path: str) -> xr.Dataset:
    """The node as the data model says it, without any of the code that is tested."""
    index, variables, coordinates = source.index, {}, []
    for name, variable in index.nodes[path].variables.items():
        rows = slice(0, variable.shape[0] if variable.shape else 1)
        data = source.read(path, name, rows).reshape(variable.shape)
        attrs = dict(variable.attrs)
        if data.dtype.kind == "M":
            attrs.pop("units", None)
        variables[name] = xr.Variable(variable.dims, data, attrs)
        if variable.coordinate:
            coordinates.append(name)
    run = {
        "experiment": index.experiment,
        "run": index.run,
        "state": index.state,
        "snapshot": index.snapshot,
    }
    attrs = run | (dict(index.attrs) if path == "/" else {}) | dict(index.nodes[path].attrs)
    return xr.Dataset(variables, attrs=attrs).set_coords(coordinates)


@pytest.fixture(autouse=True)
def _memory_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_source(path: str, run: int | None, snapshot: str | None) -> MemorySource:
        return memory_source.at(path)

    monkeypatch.setattr(discover, "open_source", open_source)
    monkeypatch.setattr(engine, "reopen", memory_source.reopen)


def assert_same(seen: xr.Dataset, expected: xr.Dataset) -> None:
    with np.errstate(invalid="ignore"):  # comparing signalling NaN
        xr.testing.assert_identical(seen.load(), expected)
    for name, variable in expected.variables.items():
        shown = seen[name].values
        assert shown.dtype.newbyteorder("=") == variable.dtype.newbyteorder("="), name
        native = variable.values.astype(variable.dtype.newbyteorder("="))
        # the very bits: -0.0 and the payloads of NaN too
        assert shown.astype(shown.dtype.newbyteorder("=")).tobytes() == native.tobytes(), name


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=sources(), data=st.data())
@pytest.mark.parametrize("face", FACES)
def test_faces_show_what_the_source_holds(face: str, source: MemorySource, data: st.DataObject) -> None:
    for path in source.index.nodes:
        expected = directly(source, path)
        assert_same(FACES[face](source, path), expected)
        dim = expected["timestamp"].dims[0]
        length = expected.sizes[dim]
        part = slice(data.draw(st.integers(0, length)), data.draw(st.integers(0, length)))
        assert_same(FACES[face](source, path).isel({dim: part}), expected.isel({dim: part}))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=sources())
@pytest.mark.parametrize("store", [LclsStore, filesystem_store])
def test_datatree_has_every_node(store: Callable[[MemorySource], Any], source: MemorySource) -> None:
    tree = xr.open_datatree(store(source), engine="zarr", consolidated=False)
    assert set(tree.groups) == set(source.index.nodes)
    for path in source.index.nodes:
        assert_same(tree[path].to_dataset(), directly(source, path))


def test_nodes_of_a_tree_have_dask_keys_of_their_own() -> None:
    same = {"x": array(np.arange(8.0), ("event",))}
    tree = xr.open_datatree(LclsStore(MemorySource({"/": {}, "/a": same, "/b": same})), engine="zarr", chunks={})
    assert tree["/a"]["x"].data.name != tree["/b"]["x"].data.name


def test_a_grown_run_is_not_read_as_it_was() -> None:
    """The same path, 8 then 12 events: xarray must not reuse the keys, and so the numbers, of the first."""
    first, second = (MemorySource({"/": {"x": array(np.arange(n), ("event",))}}) for n in (8, 12))
    second.ref = type(first.ref)(first.ref.path, first.ref.run, second.ref.snapshot)
    before, after = (xr.open_zarr(LclsStore(source), chunks={})["x"] for source in (first, second))
    assert before.data.name != after.data.name
    assert dask.compute(before.mean().data, after.mean().data) == (3.5, 5.5)


def test_units_of_time_stay_numbers() -> None:
    attrs = {"units": "seconds", "long_name": "delay"}
    source = MemorySource({"/": {"delay": array(np.arange(4), ("event",), attrs=attrs)}})
    for face in FACES.values():
        seen = face(source, "/")["delay"]
        assert seen.dtype == np.int64
        assert seen.attrs == attrs


@pytest.mark.parametrize(
    "attrs",
    [{"scale_factor": 2.0}, {"_FillValue": 0}, {"coordinates": "x"}, {"units": "days since 2000-01-01"}],
)
def test_attributes_that_would_change_values_are_refused(attrs: dict[str, Any]) -> None:
    source = MemorySource({"/": {"x": array(np.arange(4), ("event",), attrs=attrs)}})
    for face in ZARR_FACES.values():
        with pytest.raises(FormatError, match="apply or rename"):
            face(source, "/")


def test_opening_reads_no_events() -> None:
    source = MemorySource({"/": {"x": array(np.zeros((8, 2)), ("event", "row"))}})
    for face in FACES.values():
        face(source, "/")
    assert source.reads == []


def test_opening_the_root_looks_into_no_detector() -> None:
    """Their variables may take a scan of the payloads, and zarr reads the metadata of every child group."""

    class Unscanned(Mapping[str, Any]):
        def __getitem__(self, name: str) -> Any:
            raise AssertionError("scanned")

        __len__ = __iter__ = __getitem__  # type: ignore[assignment]

    source = MemorySource({"/": {"x": array(np.zeros(8), ("event",))}, "/hsd": {}})
    nodes = {**source.index.nodes, "/hsd": Node("/hsd", Unscanned())}
    source.index = replace(source.index, nodes=nodes)
    for face in FACES.values():
        assert list(face(source, "/")) == ["x"]


def test_times_that_are_not_there_stay_so() -> None:
    times = np.array(["2024-05-01T00:00:00.123456789", "NaT"], "datetime64[ns]")
    source = MemorySource({"/": {"t": array(times, ("event",))}})
    for face in FACES.values():
        np.testing.assert_array_equal(face(source, "/")["t"], times)


@pytest.mark.parametrize("name", ["test_hsd.xtc2", "test_jungfrau05M_calib.xtc2", "mixed_rate"])
def test_faces_show_real_runs(name: str, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    source = discover.open_source(real_data / "lcls2" / name)
    fs = LclsFileSystem(source.ref.path, snapshot=source.index.snapshot, asynchronous=True)
    for path in source.index.nodes:
        expected = directly(source, path)
        for store in (LclsStore(source), FsspecStore(fs, path="", read_only=True)):
            assert_same(xr.open_zarr(store, group=path, consolidated=False), expected)


def test_what_was_read_can_be_written_again(tmp_path: Any) -> None:
    source = MemorySource(
        {
            "/": {
                "time": array(np.arange(6).astype("datetime64[ns]"), ("event",), coordinate=True),
                "name": array(np.array(["a", "bc", "", "d", "e", "f"]), ("event",)),
                "x": array(np.arange(12.0).reshape(6, 2), ("event", "row")),
            }
        }
    )
    seen = store_face(source, "/", chunks={})
    with warnings.catch_warnings():
        # zarr writes `<U` but says that others may not read it
        warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
        seen.to_zarr(tmp_path / "copy.zarr", consolidated=False)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "copy.zarr", consolidated=False).load(), seen.load())
