"""Merged intensities as the files that structure programs read: MTZ, and CrystFEL's reflection lists."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr

from ..errors import ArgumentError, TargetExistsError
from .cell import Cell, as_cell, gemmi


@contextmanager
def whole_file(target: str | Path, *, again: bool = False) -> Iterator[Path]:
    """Where to write a file that is there whole or not at all.

    Parameters
    ----------
    target : str or Path
    again : bool
        Whether it takes the place of one that is there already, instead of an error.

    Yields
    ------
    Path
        Of a temporary file beside it, which becomes the target when the body ends without an error. No other process
        has the same.

    Raises
    ------
    TargetExistsError
        The target is there already, or when the body ends.

    Examples
    --------
    >>> with whole_file("out.txt") as path:  # doctest: +SKIP
    ...     path.write_text("all of it")
    """
    target = Path(target)
    _refuse(target, again)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", suffix=target.suffix, dir=target.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        _refuse(target, again)
        os.chmod(name, 0o644)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _refuse(target: Path, again: bool) -> None:
    if not again and os.path.lexists(target):
        raise TargetExistsError(f"{target}: is there already; remove it or choose another name")


def _crystal(merged: xr.Dataset) -> Cell:
    if "half_intensity" not in merged or not {"cell", "space_group"} <= set(merged.attrs):
        raise ArgumentError("merged: is not what merge gave")
    return as_cell(merged.attrs["cell"], merged.attrs["space_group"])


def write_mtz(merged: xr.Dataset, path: str | Path) -> None:
    """Write merged intensities as an MTZ file.

    Parameters
    ----------
    merged : xarray.Dataset
        What `merge` gave.
    path : str or Path
        Columns are IMEAN, SIGIMEAN and N; of anomalous ones I(+), SIGI(+), N(+), I(-), SIGI(-), N(-).

    Raises
    ------
    TargetExistsError
        The file is there already.

    Examples
    --------
    >>> write_mtz(merged, "lysozyme.mtz")  # doctest: +SKIP
    """
    cell = _crystal(merged)
    mtz = gemmi().Mtz(with_base=True)
    mtz.spacegroup, mtz.cell = cell.gemmi_group, cell.gemmi_cell
    mtz.title = "serial crystallography, merged by lcls_dask"
    mtz.add_dataset("merged")
    hkl = np.stack([merged[name].values for name in "hkl"], axis=1).astype(np.float64)
    values = np.stack([merged[name].values for name in ("intensity", "sigma", "measurements")], axis=1)
    if merged.attrs.get("anomalous"):
        from .merging import pack, to_asu

        own = to_asu(hkl.astype(np.int32), cell)
        minus = (own != hkl).any(axis=1)
        key, place = np.unique(pack(own), return_inverse=True)
        table = np.full((len(key), 9), np.nan, np.float32)
        table[place, :3] = own
        table[place[~minus], 3:6] = values[~minus]
        table[place[minus], 6:9] = values[minus]
        for sign in "+-":
            for label, kind in ((f"I({sign})", "K"), (f"SIGI({sign})", "M"), (f"N({sign})", "I")):
                mtz.add_column(label, kind)
    else:
        table = np.concatenate([hkl, values], axis=1).astype(np.float32)
        for label, kind in (("IMEAN", "J"), ("SIGIMEAN", "Q"), ("N", "I")):
            mtz.add_column(label, kind)
    mtz.set_data(np.ascontiguousarray(table))
    with whole_file(path) as place_of_file:
        mtz.write_to_file(str(place_of_file))


def write_hkl(merged: xr.Dataset, path: str | Path) -> None:
    """Write merged intensities as a reflection list that CrystFEL's programs read.

    Parameters
    ----------
    merged : xarray.Dataset
        What `merge` gave.
    path : str or Path

    Raises
    ------
    TargetExistsError
        The file is there already.

    Examples
    --------
    >>> write_hkl(merged, "lysozyme.hkl")  # doctest: +SKIP
    """
    cell = _crystal(merged)
    group = cell.gemmi_group
    symmetry = group.point_group_hm() if merged.attrs.get("anomalous") else group.laue_str()
    columns = [merged[name].values for name in ("h", "k", "l", "intensity", "sigma", "measurements")]
    with whole_file(path) as place, place.open("w") as file:
        file.write(f"CrystFEL reflection list version 2.0\nSymmetry: {symmetry}\n")
        file.write("   h    k    l          I    phase   sigma(I)   nmeas\n")
        for h, k, l, intensity, sigma, count in zip(*columns, strict=True):  # noqa: E741
            file.write(f"{h:4d} {k:4d} {l:4d} {intensity:10.2f}        - {sigma:10.2f} {count:7d}\n")
        file.write("End of reflections\n")
