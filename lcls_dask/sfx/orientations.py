"""Orientation files, by which CrystFEL takes over crystals that it has not indexed: ``indexamajig --indexing=file``."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError, FormatError, RunNotFoundError
from .cell import as_cell, lattice_words
from .crystals import crystals_dataset
from .files import whole_file

Array = np.ndarray[Any, np.dtype[Any]]

_LETTERS = {
    "triclinic": "a",
    "monoclinic": "m",
    "orthorhombic": "o",
    "tetragonal": "t",
    "hexagonal": "h",
    "rhombohedral": "r",
    "cubic": "c",
}
_NUMBERS = 11


def write_orientations(path: str | Path, crystals: xr.Dataset, *, filename: str = "") -> None:
    """Write orientations for ``indexamajig --indexing=file --fromfile-input-file=PATH``.

    One line a crystal: file, event, a*, b*, c* [1/nm], shift of the detector [mm], lattice type.

    Parameters
    ----------
    path : str or Path
    crystals : xarray.Dataset
        What `index` or `read_stream` gave.
    filename : str
        Of the frames, where events have no coordinate `filename`.

    Raises
    ------
    ArgumentError
        A file's name has a blank, which such a file cannot say, or there is none.
    TargetExistsError
        The file is there already.

    Examples
    --------
    >>> write_orientations("run5.sol", crystals, filename="run5.cxi")  # doctest: +SKIP
    """
    if "cell" not in crystals.attrs:
        raise ArgumentError("crystals: do not say what cell was looked for; give what index or read_stream gave")
    kind, centring, axis = lattice_words(as_cell(crystals.attrs["cell"], crystals.attrs.get("space_group")))
    offset = crystals["offset"].values
    shift = np.nan_to_num(1e3 * crystals["shift"].values)
    matrix = 10 * crystals["matrix"].values.reshape(-1, 9)
    lines = []
    for event in range(len(offset) - 1):
        name = str(crystals["filename"].values[event]) if "filename" in crystals.coords else filename
        place = str(crystals["event_name"].values[event]) if "event_name" in crystals.coords else f"//{event}"
        if offset[event + 1] > offset[event] and (not name or set(name + place) & set(" \t\n")):
            raise ArgumentError(f"event {event}: is of file {name!r}; give filename=, a name without blanks")
        for i in range(offset[event], offset[event + 1]):
            numbers = " ".join(f"{value:+.9f}" for value in (*matrix[i], *shift[i]))
            lines.append(f"{name} {place or '//'} {numbers} {_LETTERS[kind]}{centring}{axis}\n")
    with whole_file(path) as target:
        target.write_text("".join(lines))


def read_orientations(path: str | Path, cell: Any = None) -> xr.Dataset:
    """Read what `write_orientations` or another program wrote.

    Parameters
    ----------
    path : str or Path
    cell : Cell, sequence of 6 float, str or Path, optional
        What was looked for.

    Returns
    -------
    xarray.Dataset
        Like that of `index`, of the events that have a crystal, in the order of their first.

    Raises
    ------
    FormatError
        A line has not 2 names, 11 numbers and a lattice type.

    Examples
    --------
    >>> read_orientations("run5.sol")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        raise RunNotFoundError(f"{path}: there is no such file")
    crystals: dict[tuple[str, str], list[list[float]]] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words[2 : 2 + _NUMBERS]]
        except ValueError:
            values = []
        if len(words) != 3 + _NUMBERS or len(values) != _NUMBERS:
            raise FormatError(f"{path}: line {number}: a file, an event, {_NUMBERS} numbers and a lattice are wanted")
        crystals.setdefault((words[0], words[1]), []).append(values)
    table = np.array([values for several in crystals.values() for values in several]).reshape(-1, _NUMBERS)
    columns = {"matrix": table[:, :9].reshape(-1, 3, 3) / 10, "shift": table[:, 9:] * 1e-3}
    count = np.array([len(several) for several in crystals.values()], np.int64)
    known = None if cell is None else as_cell(cell)
    return crystals_dataset(count, columns, known, {"method": "file"}).assign_coords(
        filename=("event", np.array([name for name, _ in crystals], np.str_)),
        event_name=("event", np.array([event for _, event in crystals], np.str_)),
    )
