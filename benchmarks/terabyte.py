"""A run of 1 TB of which only the description is there: its graph is real, what its tasks would read is not."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

import lcls_dask
from lcls_dask.formats.source import Rows
from lcls_dask.formats.zarr import EXPORT, ZarrSource
from lcls_dask.model import Node, RunIndex, Variable
from lcls_dask.stores.metadata import array_json, group_json

#: One Jungfrau of 16 million pixels, 32 MiB.
FRAME = (32, 512, 1024)
BLOCK = 64 << 20
NAME = "jungfrau.raw.raw"


def describe(path: Path, size: int) -> int:
    """Write the metadata of a run of so many bytes, as export does, and none of its chunks; gives its blocks."""
    item = int(np.prod(FRAME)) * 2
    chunk = BLOCK // item
    blocks = size // BLOCK
    dims = ("event", *(f"jungfrau.{name}" for name in ("segment", "row", "column")))
    attrs = {"units": "ADU", "long_name": "raw"}
    frames = Variable(NAME, dims, (blocks * chunk, *FRAME), np.dtype("<u2"), chunk, attrs)
    about = {"nodes": {"/": [NAME]}, "detectors": {}}
    index = RunIndex("cxil1015", 20, "ended", "0" * 32, {"/": Node("/", {NAME: frames}, {EXPORT: about})})
    (path / NAME).mkdir(parents=True)
    (path / NAME / "zarr.json").write_bytes(array_json(frames))
    (path / "zarr.json").write_bytes(group_json(index, "/"))
    return blocks


def ours(path: Path) -> xr.DataArray:
    """Sum of all frames, lazy, of the run as lcls_dask opens it."""
    return _powder(lcls_dask.open_run(path).dataset(NAME))


def zarrs(path: Path) -> xr.DataArray:
    """The same of the same directory, as xarray opens any zarr."""
    return _powder(xr.open_zarr(path, chunks={}, consolidated=False, mask_and_scale=False))


def _powder(run: xr.Dataset) -> xr.DataArray:
    return run[NAME].sum("event", dtype=np.uint64)


def tasks(lazy: xr.DataArray) -> int:
    """How many tasks a scheduler is sent."""
    from dask.base import collections_to_expr

    return len(collections_to_expr([lazy.data]).optimize().__dask_graph__())


def events(path: Path) -> int:
    """How many events the run has."""
    return lcls_dask.open_run(path).events


def shots(path: Path) -> da.Array:
    """How many events there are, counted in the blocks themselves: the tasks of any reduction, with no arithmetic."""
    frames = lcls_dask.open_run(path).dataset(NAME)[NAME].data
    return da.reduction(frames, chunk=_count, aggregate=_total, dtype=np.int64)


def _count(block: Any, axis: Any, keepdims: bool) -> Any:
    return np.full((1,) * block.ndim, len(block))


def _total(counts: Any, axis: Any, keepdims: bool) -> Any:
    return np.sum(counts, axis=axis, keepdims=keepdims)


def stub_reads() -> None:
    """Have a worker read zeros, which take no memory and no time, from any run of zarr files; run it as a task."""
    ZarrSource.read = _zeros  # type: ignore[method-assign]


def _zeros(source: ZarrSource, path: str, name: str, rows: Rows) -> Any:
    shape = source.index.nodes[path].variables[name].shape
    assert isinstance(rows, slice)
    return np.broadcast_to(np.uint16(0), (rows.stop - rows.start, *shape[1:]))
