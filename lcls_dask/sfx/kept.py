"""Datasets of finished blocks in HDF5 files: each file is there whole, or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from ..errors import FormatError
from .cxi import new_file

#: Dataset of each group that tells dimensions, coordinates and attributes, as JSON: HDF5's attributes hold 64 kB.
_TOLD = "told as JSON"


def save(path: Path, datasets: Mapping[str, xr.Dataset]) -> None:
    """Write datasets of numbers.

    Parameters
    ----------
    path : Path
        What is there already is replaced: by the same, where two processes have made one block.
    datasets : mapping of str to xarray.Dataset
        By group.

    Examples
    --------
    >>> save(Path("a.h5"), {"x": xr.Dataset({"n": ("event", [1, 2])}, attrs={"of": "two"})})
    >>> load(Path("a.h5"), "x")["n"].values, load(Path("a.h5"), "x").attrs
    (array([1, 2]), {'of': 'two'})
    """
    with new_file(path, again=True) as file:
        for group, dataset in datasets.items():
            told = {
                "attrs": dataset.attrs,
                "coords": [str(name) for name in dataset.coords],
                "variables": {str(n): [list(v.dims), dict(v.attrs)] for n, v in dataset.variables.items()},
            }
            for name, variable in dataset.variables.items():
                file[f"{group}/{name}"] = variable.values
            text = json.dumps(told, default=_plain).encode()
            file[f"{group}/{_TOLD}"] = np.frombuffer(text, np.uint8)


def load(path: Path, group: str) -> xr.Dataset:
    """Read a dataset that `save` wrote.

    Parameters
    ----------
    path : Path
    group : str

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    FormatError
        The file is damaged.
    """
    try:
        with h5py.File(path) as file:
            told: dict[str, Any] = json.loads(file[f"{group}/{_TOLD}"][()].tobytes())
            variables = {
                name: xr.Variable(dims, file[f"{group}/{name}"][()], attrs)
                for name, (dims, attrs) in told["variables"].items()
            }
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise FormatError(
            f"{path}: is no block of results that can be read ({error}); remove it and run again"
        ) from None
    return xr.Dataset(variables, attrs=told["attrs"]).set_coords(told["coords"])


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    return value.tolist()
