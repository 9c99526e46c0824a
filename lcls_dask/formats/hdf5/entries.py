"""The datasets of a file as the layouts see them: path, column, attributes, or why it cannot be read."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .columns import Column, Held
from .datafile import LONGEST_TEXT, DataFile, Stored, Text
from .heaps import longest
from .reading import reading

#: The largest single event that is read: beyond it, a file is more likely damaged than useful.
LARGEST_EVENT = 4 << 30

#: No filter in use shrinks values by more than this (deflate's limit is 1032)…
MOST_SHRUNK = 1100
#: … but values that were never written take no room at all: so many bytes of them are let pass.
UNFILLED = 64 << 20

#: An attribute of an HDF5 object that holds more values than this is not copied.
LONGEST_ATTRIBUTE = 1024


class Unread(Exception):
    """Why a dataset is left out; the reason is kept in the run's attributes."""


@dataclass(frozen=True)
class Entry:
    """A dataset.

    Attributes
    ----------
    path : str
        In the file, with a leading slash.
    column : Column
    attrs : mapping
        JSON-able.
    """

    path: str
    column: Column
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> str:
        """Last component of the path."""
        return self.path.rpartition("/")[2]

    @property
    def group(self) -> str:
        """First component of the path, empty for a dataset in the root group."""
        return self.path[1:].rpartition("/")[0].partition("/")[0]


def entries(file: DataFile, paths: list[str]) -> tuple[dict[str, Entry], dict[str, str]]:
    """Datasets by path, and the reason for each one that cannot be read.

    Parameters
    ----------
    file : DataFile
    paths : list of str

    Returns
    -------
    found : dict of str to Entry
    unread : dict of str to str
    """
    found: dict[str, Entry] = {}
    unread: dict[str, str] = {}
    for path in paths:
        try:
            with reading(file.path, path):
                found[path] = _entry(file, path)
        except Unread as reason:
            unread[path] = str(reason)
    return found, unread


def _entry(file: DataFile, path: str) -> Entry:
    import h5py

    if any(part in ("", ".", "..") for part in path[1:].split("/")) or "\0" in path:
        raise Unread("its name cannot be the name of a variable")
    dataset = file.dataset(path)
    if dataset.shape is None:
        raise Unread("it holds nothing")
    created = dataset.id.get_create_plist()
    filters = tuple(created.get_filter(k) for k in range(created.get_nfilters()))
    local = _file_number(dataset) == _file_number(file.dataset("/"))
    attrs = _attributes(dataset)
    claimed, held = int(np.prod(dataset.shape, dtype=np.float64)) * dataset.dtype.itemsize, _held(file, dataset)
    shrunk = MOST_SHRUNK if filters or dataset.is_virtual else 1
    if claimed > UNFILLED + shrunk * held:
        raise Unread(f"it claims {claimed} bytes, of which the file holds {held}")
    text = h5py.check_string_dtype(dataset.dtype)
    if text is not None:
        width = text.length
        if width is None and local and not dataset.is_virtual:
            width = longest(file, dataset, filters)
        if width is None:
            raise Unread("its strings of variable length cannot be checked before they are read")
        if width > LONGEST_TEXT:
            raise Unread(f"its strings are {width} characters long, more than {LONGEST_TEXT}")
        strings = Text(file, path, np.dtype(f"<U{max(1, width)}"), dataset.shape, filters)
        return Entry(path, strings if dataset.shape else Held(np.array(dataset.asstr()[()])), attrs)
    if dataset.dtype.kind not in "biufc":
        raise Unread(f"values of type {dataset.dtype} have no place in the model")
    names = h5py.check_enum_dtype(dataset.dtype)
    if names and dataset.dtype.kind != "b":
        ordered = sorted(names.items(), key=lambda item: item[1])
        attrs["flag_meanings"] = [name for name, _ in ordered]
        attrs["flag_values"] = [int(value) for _, value in ordered]
    disk = np.dtype(dataset.dtype.str)
    if disk.kind == "f" and disk.itemsize > 8:
        raise Unread("floating-point numbers of more than 64 bits differ between machines")
    if int(np.prod(dataset.shape[1:], dtype=np.float64)) * disk.itemsize > LARGEST_EVENT:
        raise Unread(f"one event of shape {dataset.shape[1:]} is larger than {LARGEST_EVENT >> 30} GiB")
    if not dataset.shape:
        return Entry(path, Held(np.asarray(dataset[()], disk.newbyteorder("="))), attrs)
    stored = Stored(file, path, disk.newbyteorder("="), disk, dataset.shape, dataset.chunks, filters, local)
    return Entry(path, stored, attrs)


def _file_number(thing: Any) -> int:
    import h5py

    return int(h5py.h5o.get_info(thing.id).fileno)


def _attributes(thing: Any) -> dict[str, Any]:
    """Attributes of an HDF5 object that JSON can hold."""
    given = {name: attribute(thing.attrs, name) for name in thing.attrs if name not in _MACHINERY}
    # xarray would decode some, and give other values than the file holds: those get another name
    return {
        f"hdf5_{name}" if name in _DECODED or (name == "units" and "since" in str(value)) else name: value
        for name, value in given.items()
        if value is not None
    }


#: Attributes by which HDF5 and netCDF link datasets and dimensions: they say nothing of the data.
_MACHINERY = frozenset(
    "CLASS NAME DIMENSION_LIST REFERENCE_LIST _Netcdf4Dimid _Netcdf4Coordinates _NCProperties".split()
)
_DECODED = frozenset(
    "_FillValue missing_value scale_factor add_offset _Unsigned _Encoding dtype coordinates calendar".split()
)


def attribute(attrs: Any, name: str) -> Any:
    """An attribute as JSON has it; None where JSON, or the reader, has no use for it."""
    identity = attrs.get_id(name)
    if identity.shape is None or int(np.prod(identity.shape, dtype=np.float64)) > LONGEST_ATTRIBUTE:
        return None
    if identity.dtype.kind not in "biufSO":
        return None
    try:
        value = attrs[name]
    except (OSError, TypeError):
        return None  # a type that h5py cannot read, such as a reference to nothing
    return plain(value)


def plain(value: Any) -> Any:
    """A value as JSON has it, None if it cannot have it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    try:
        json.dumps(value, allow_nan=True)
    except TypeError:
        return None
    return value


def _held(file: DataFile, dataset: Any) -> int:
    """Bytes that a dataset can draw on: its own, or all of the files that it is made of."""
    if not dataset.is_virtual:
        # a damaged header may claim that, too, is more than there is
        return min(int(dataset.id.get_storage_size()), os.stat(dataset.file.filename).st_size)
    created = dataset.id.get_create_plist()
    names = {created.get_virtual_filename(k) for k in range(created.get_virtual_count())} | {file.path.name}
    return sum((file.path.parent / name).stat().st_size for name in names if name != ".")


def load(entry: Entry) -> np.ndarray[Any, Any]:
    """All values of a dataset that the index itself needs.

    Parameters
    ----------
    entry : Entry

    Returns
    -------
    (n,) ndarray
    """
    return entry.column.read(slice(0, entry.column.shape[0]))
