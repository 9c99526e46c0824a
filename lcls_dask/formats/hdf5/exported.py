"""HDF5 files that our own export wrote: one group for each node, described by JSON in attributes.

The same file is netCDF-4 to other readers: dimension scales, CF times, ``coordinates``. What netCDF cannot
say, such as the order of dimensions of a linked dataset or the width of a string, stands in the attributes
``lcls_dask_run`` (of the root group) and ``lcls_dask_node`` (of each group).
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import FormatError
from ...model import Detector, Node, Variable
from .columns import Column, Mapped
from .datafile import DataFile, Stored, Text
from .entries import Entry
from .nodes import Tree

RUN = "lcls_dask_run"
NODE = "lcls_dask_node"


def described(file: DataFile) -> dict[str, Any] | None:
    """What our export says of the run in a file; None where another program wrote it."""
    text = file.attrs.get(RUN)
    return None if text is None else _mapping(file, text)


def tree(file: DataFile, run: Mapping[str, Any], entries: Mapping[str, Entry]) -> Tree:
    """Nodes of an exported file.

    Parameters
    ----------
    file : DataFile
    run : mapping
        From `described`.
    entries : mapping of str to Entry

    Returns
    -------
    Tree

    Raises
    ------
    FormatError
        The file does not hold what its description says.
    """
    made = Tree()
    try:
        for path in run["nodes"]:
            node = _mapping(file, file.dataset(path).attrs[NODE])
            members = []
            for name, about in node["variables"].items():
                variable = _variable(name, about)
                members.append((variable, _column(file, entries[f"{path.rstrip('/')}/{name}"].column, variable)))
            made.nodes[path] = Node(path, {}, node["attrs"])
            made.add(path, members, {})
        for name, about in run["detectors"].items():
            made.detectors[name] = Detector(
                name, about["kind"], about["serial"], tuple(about["segments"]), about["algorithms"]
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{file.path}: it lacks {error}, which export writes; export the run again") from error
    return made


def _mapping(file: DataFile, text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise FormatError(f"{file.path}: its description of the run is damaged; export the run again")
    return value


def _variable(name: str, about: Mapping[str, Any]) -> Variable:
    return Variable(
        name,
        tuple(about["dims"]),
        tuple(about["shape"]),
        np.dtype(about["dtype"]).newbyteorder("="),
        int(about["chunk"]),
        about["attrs"],
        bool(about["coordinate"]),
    )


def _column(file: DataFile, column: Column, variable: Variable) -> Column:
    if column.shape != variable.shape:
        raise FormatError(
            f"{file.path}: {variable.name} has shape {column.shape}, not {variable.shape}; export it again"
        )
    if isinstance(column, Text):
        return Text(file, column.name, variable.dtype, column.shape, column.filters)
    if variable.dtype.kind == "M" and column.dtype == np.int64:
        return Mapped(column, _times, variable.dtype)
    if variable.dtype.kind == "b" and column.dtype == np.int8:
        return Mapped(column, _bools, variable.dtype)
    if isinstance(column, Stored) and column.dtype != variable.dtype:
        raise FormatError(f"{file.path}: {variable.name} is {column.dtype}, not {variable.dtype}; export the run again")
    return column


def _times(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values.view("datetime64[ns]")


def _bools(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values.view(np.bool_)
