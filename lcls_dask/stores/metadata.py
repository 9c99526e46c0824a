"""Variables and nodes as zarr v3 metadata: pure functions from the data model to JSON bytes."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import FormatError
from ..model import RunIndex, Variable

#: CF's way to say datetime64[ns], exact as int64: zarr v3 has no stable type for it.
_TIME_ATTRS = {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}

#: Attributes that make xarray change values or coordinates when it decodes a zarr array.
_DECODED = frozenset(
    (
        "_FillValue",
        "missing_value",
        "scale_factor",
        "add_offset",
        "_Unsigned",
        "_Encoding",
        "dtype",
        "coordinates",
    )
)


def jsonable(value: Any) -> Any:
    """An attribute's value as JSON can say it.

    NumPy scalars and arrays become numbers and lists; what JSON has no number for becomes
    ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``, as in zarr's own metadata.

    Parameters
    ----------
    value : str, bytes, number, bool, None, datetime64, ndarray, list, tuple or mapping

    Returns
    -------
    str, int, float, bool, None, list or dict

    Raises
    ------
    FormatError
        It is of another type.

    Examples
    --------
    >>> jsonable({"bias": np.float32(2.5), "gain": np.array([1.0, np.nan])})
    {'bias': 2.5, 'gain': [1.0, 'NaN']}
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.datetime64 | np.timedelta64) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "mM"
    ):
        return np.asarray(value).astype(str).tolist()
    if isinstance(value, np.generic | np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise FormatError(f"an attribute of type {type(value).__name__} cannot be written as JSON: {value!r:.80}")


def variable_attrs(variable: Variable) -> dict[str, Any]:
    """Attributes of a variable as every face shows them.

    Times have no ``units`` of their own: their dtype says them, and xarray refuses the attribute.

    Parameters
    ----------
    variable : Variable

    Returns
    -------
    dict

    Examples
    --------
    >>> attrs = {"units": "eV", "long_name": "photon energy"}
    >>> variable_attrs(Variable("energy", ("event",), (3,), np.dtype("f8"), attrs=attrs))
    {'units': 'eV', 'long_name': 'photon energy'}
    """
    attrs: dict[str, Any] = jsonable(variable.attrs)
    if variable.dtype.kind == "M":
        return {key: value for key, value in attrs.items() if key not in _TIME_ATTRS}
    return attrs


def dataset_attrs(index: RunIndex, path: str) -> dict[str, Any]:
    """Attributes of a node as every face shows them.

    Parameters
    ----------
    index : RunIndex
    path : str
        Of the node.

    Returns
    -------
    dict
        ``experiment``, ``run``, ``state``, ``snapshot``, the run's attributes (at ``/``) and the node's.

    Examples
    --------
    >>> from lcls_dask.model import Node
    >>> dataset_attrs(RunIndex("tmox42619", 14, "ended", "0a1b2c3d", {"/": Node("/", {})}), "/")
    {'experiment': 'tmox42619', 'run': 14, 'state': 'ended', 'snapshot': '0a1b2c3d'}
    """
    own = {"experiment": index.experiment, "run": index.run, "state": index.state, "snapshot": index.snapshot}
    # the index has the last word: nodes of a part of a run still have the snapshot of the whole
    attrs = {**own, **(index.attrs if path == "/" else {}), **index.nodes[path].attrs, **own}
    shown: dict[str, Any] = jsonable(attrs)
    return shown


def group_json(index: RunIndex, path: str) -> bytes:
    """``zarr.json`` of a node.

    Parameters
    ----------
    index : RunIndex
    path : str
        Of the node. Its variables are not looked at: opening ``/`` reads the metadata of every child.

    Returns
    -------
    bytes

    Examples
    --------
    >>> from lcls_dask.model import Node
    >>> group_json(RunIndex("tmox42619", 14, "ended", "0a1b2c3d", {"/": Node("/", {})}), "/")[:38]
    b'{"zarr_format":3,"node_type":"group","'
    """
    attributes = dataset_attrs(index, path)
    return _dump({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def array_json(variable: Variable) -> bytes:
    """``zarr.json`` of a variable.

    Parameters
    ----------
    variable : Variable

    Returns
    -------
    bytes

    Raises
    ------
    FormatError
        zarr has no type for its dtype, or xarray would take one of its attributes for an encoding and
        change its values.

    Examples
    --------
    >>> array_json(Variable("pulse_id", ("event",), (10,), np.dtype("u8")))[:50]
    b'{"zarr_format":3,"node_type":"array","shape":[10],'
    """
    attributes = variable_attrs(variable)
    _refuse_encodings(variable, attributes)
    data_type, fill = _data_type(variable)
    if variable.dtype.kind == "M":
        attributes |= _TIME_ATTRS
    if variable.coordinate and variable.dims != (variable.name,):
        # names itself, so that xarray knows it again even in a node that has nothing else
        attributes["coordinates"] = variable.name
    endian = "big" if variable.dtype.newbyteorder("<") != variable.dtype else "little"
    return _dump(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": variable.shape,
            "data_type": data_type,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": _chunk_shape(variable)},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": [dict(codec) for codec in variable.codecs]
            or [{"name": "bytes", "configuration": {"endian": endian}}],
            "dimension_names": variable.dims,
            "attributes": attributes,
        }
    )


def _chunk_shape(variable: Variable) -> list[int]:
    lengths = (variable.storage_chunk, *variable.shape[1:]) if variable.shape else ()
    return [max(1, length) for length in lengths]


def _data_type(variable: Variable) -> tuple[str | dict[str, Any], Any]:
    dtype = variable.dtype
    if dtype.kind == "U" and dtype.itemsize:
        # Of zarr's ways to write str this is the one that xarray gives back as `<U`, whose chunks are the
        # array's own bytes (no copy, byte ranges), and that zarr 3.1 and 3.4 read without a warning.
        # `string` comes back as StringDType and must be encoded; arrays of characters as object.
        return {"name": "fixed_length_utf32", "configuration": {"length_bytes": dtype.itemsize}}, ""
    if dtype.kind == "M" and np.datetime_data(dtype) == ("ns", 1):
        return "int64", 0
    if dtype.kind == "b":
        return "bool", False
    if dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize <= 8):
        return dtype.name, 0
    if dtype.kind == "c" and dtype.itemsize <= 16:
        return dtype.name, [0.0, 0.0]
    raise FormatError(
        f"variable {variable.name!r} has dtype {dtype}, which zarr cannot say; "
        "the format's reader must give numbers, bool, datetime64[ns] or fixed-width str"
    )


def _refuse_encodings(variable: Variable, attributes: Mapping[str, Any]) -> None:
    taken = sorted(_DECODED.intersection(attributes))
    if variable.dtype.kind != "M" and "since" in str(attributes.get("units", "")):
        taken.append("units")
    if taken:
        raise FormatError(
            f"variable {variable.name!r} has attributes ({', '.join(taken)}) that xarray would decode, "
            "changing its values; the format's reader must apply or rename them"
        )


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
