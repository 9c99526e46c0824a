"""The HDF5 side of export: one dataset for each variable, which netCDF-4 readers know as variables too.

Every node is a group. Dimensions are dimension scales, times are CF's, coordinates are named by the group's
``coordinates``. What netCDF has no words for stands as JSON in `exported.RUN` and `exported.NODE`, from which
`open_hdf5` gives back the run as it was.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from ..formats.codecs import Codec, bytes_codec
from ..formats.hdf5.exported import NODE, RUN
from ..model import Node, RunIndex, Variable
from ..stores.metadata import dataset_attrs, jsonable, variable_attrs
from .layout import chunk_file, detectors_json

SUFFIXES = frozenset({".h5", ".hdf5", ".nc"})

Array = np.ndarray[Any, Any]

#: Level of gzip: higher ones take several times longer and save a few per cent.
LEVEL = 1


def chain(compression: str | None) -> Callable[[np.dtype[Any]], tuple[Codec, ...]]:
    """The codecs that give chunks as HDF5's own filters would.

    Parameters
    ----------
    compression : {"auto", "gzip", None}

    Returns
    -------
    callable
        From a variable's dtype to its codecs.

    Raises
    ------
    UnsupportedError
        Not every HDF5 library could read it.
    """
    if compression not in ("auto", "gzip", None):
        raise UnsupportedError(f"compression {compression!r} is not for HDF5; choose auto, gzip or None")

    def codecs(dtype: np.dtype[Any]) -> tuple[Codec, ...]:
        """What HDF5 does to chunks of this type."""
        disk = stored_dtype(dtype)
        first = bytes_codec(disk)
        if compression is None:
            return (first,)
        return (
            first,
            {"name": "numcodecs.shuffle", "configuration": {"elementsize": disk.itemsize}},
            {"name": "numcodecs.zlib", "configuration": {"level": LEVEL}},
        )

    return codecs


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in the file.

    Parameters
    ----------
    dtype : numpy.dtype

    Returns
    -------
    numpy.dtype
        int64 for times; int8 for bool, as netCDF has none; bytes of UTF-8 for strings.

    Examples
    --------
    >>> stored_dtype(np.dtype("<U3"))
    dtype('S12')
    """
    if dtype.kind == "M":
        return np.dtype(np.int64)
    if dtype.kind == "b":
        return np.dtype(np.int8)
    if dtype.kind == "U":
        return np.dtype(f"S{dtype.itemsize}")
    return dtype


def stored(values: Array) -> Array:
    """Values as they are in the file.

    Parameters
    ----------
    values : ndarray

    Returns
    -------
    ndarray
        Of `stored_dtype`.
    """
    dtype = stored_dtype(values.dtype)
    if values.dtype.kind == "U":
        return np.char.encode(values, "utf-8").astype(dtype)
    return values if dtype == values.dtype else values.view(dtype)


def assemble(target: Path, index: RunIndex, links: frozenset[tuple[str, str]], data: Path) -> Path:
    """Put an HDF5 file together from encoded chunks.

    Parameters
    ----------
    target : Path
        Written anew.
    index : RunIndex
        With the chunks and codecs that were written.
    links : frozenset of (str, str)
        Variables of detectors that are those of ``/``.
    data : Path
        Root of the chunks.

    Returns
    -------
    Path
        The target, flushed to disk.
    """
    import h5py

    # from 1.10 on attributes may be larger than 64 KiB, which descriptions of large runs are
    with h5py.File(target, "w", libver="v110") as file:
        file.attrs[RUN] = json.dumps(
            {
                "version": 1,
                "experiment": index.experiment,
                "run": index.run,
                "state": index.state,
                "snapshot": index.snapshot,
                "attrs": jsonable(index.attrs),
                "nodes": list(index.nodes),
                "detectors": detectors_json(index),
            }
        )
        for path, node in index.nodes.items():
            group = file.require_group(path)
            for name, value in dataset_attrs(index, path).items():
                _attribute(group, name, value)
            group.attrs[NODE] = json.dumps(_describe(node))
            named = [name for name, variable in node.variables.items() if variable.coordinate]
            if named:
                group.attrs["coordinates"] = " ".join(named)
            own = []
            for name, variable in node.variables.items():
                if (path, name) in links:
                    group[name] = file[name]
                else:
                    own.append((variable, _dataset(group, path, variable, data)))
            _scales(group, own)
    with target.open("rb+") as descriptor:
        descriptor.flush()
        os.fsync(descriptor.fileno())
    return target


def _describe(node: Node) -> dict[str, Any]:
    return {
        "attrs": jsonable(node.attrs),
        "variables": {
            name: {
                "dims": variable.dims,
                "shape": variable.shape,
                "dtype": variable.dtype.str,
                "chunk": variable.chunk,
                "attrs": jsonable(variable.attrs),
                "coordinate": variable.coordinate,
            }
            for name, variable in node.variables.items()
        },
    }


def _dataset(group: Any, path: str, variable: Variable, data: Path) -> Any:
    import h5py

    dtype: Any = stored_dtype(variable.dtype)
    if variable.dtype.kind == "U":
        dtype = h5py.string_dtype("utf-8", dtype.itemsize)
    chunks = (variable.chunk, *variable.shape[1:]) if variable.chunk_count else None
    filters = {"shuffle": True, "compression": "gzip", "compression_opts": LEVEL} if len(variable.codecs) > 1 else {}
    dataset = group.create_dataset(variable.name, variable.shape, dtype, chunks=chunks, **(filters if chunks else {}))
    for number in range(variable.chunk_count):
        corner = (number * variable.chunk, *(0 for _ in variable.shape[1:]))
        dataset.id.write_direct_chunk(corner, chunk_file(data, path, variable, number).read_bytes())
    for name, value in variable_attrs(variable).items():
        _attribute(dataset, name, value)
    if variable.dtype.kind == "M":
        dataset.attrs["units"] = "nanoseconds since 1970-01-01"
        dataset.attrs["calendar"] = "proleptic_gregorian"
    if variable.dtype.kind == "b":
        dataset.attrs["dtype"] = "bool"  # xarray's word for it
    return dataset


def _attribute(thing: Any, name: str, value: Any) -> None:
    """An attribute as HDF5 can hold it; as JSON where it cannot."""
    flat = value if isinstance(value, list) else [value]
    if value is None or any(not isinstance(item, str | int | float) for item in flat) or value == []:
        value = json.dumps(value)
    elif isinstance(value, list) and len({isinstance(item, str) for item in value}) > 1:
        value = json.dumps(value)
    try:
        thing.attrs[name] = value
    except (TypeError, OverflowError):
        thing.attrs[name] = json.dumps(value)


def _scales(group: Any, members: Iterable[tuple[Variable, Any]]) -> None:
    """Give dimensions their names, as netCDF-4 does."""
    scales: dict[str, Any] = {}
    members = list(members)
    for variable, dataset in members:
        if variable.dims == (variable.name,):
            dataset.make_scale(variable.name)
            scales[variable.name] = dataset
    for variable, dataset in members:
        for axis, (dim, size) in enumerate(zip(variable.dims, variable.shape, strict=True)):
            if dim not in scales:
                if dim in group:
                    continue  # the name is taken by a variable of other dimensions
                # netCDF-4's way to have a dimension without coordinates
                scales[dim] = group.create_dataset(dim, (size,), ">f4")
                scales[dim].make_scale(f"This is a netCDF dimension but not a netCDF variable. {size:>9}")
            if dataset is not scales[dim]:
                dataset.dims[axis].attach_scale(scales[dim])
