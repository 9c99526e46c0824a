"""Frames of a run."""

import xarray as xr

from ..access.run import Run
from ..errors import SelectionError


def frames_of(run: Run, detector: str | None = None) -> xr.DataArray:
    """Raw frames of a run's area detector, lazily.

    Parameters
    ----------
    run : Run
    detector : str, optional
        The only one by default.

    Returns
    -------
    (event, segment, row, column) xarray.DataArray
        With coordinates `timestamp` and `present`.

    Raises
    ------
    SelectionError
        The run has no such detector, or several and none was asked for.

    Examples
    --------
    >>> frames_of(lcls_dask.open_run("exp/r0042"), "jungfrau")  # doctest: +SKIP
    """
    variables = run.index.nodes["/"].variables
    found = [name for name, v in variables.items() if name.endswith(".raw.raw") and len(v.shape) == 4]
    names = [name.partition(".")[0] for name in found]
    if detector is not None and detector not in names:
        raise SelectionError(f"{detector}: is no area detector of this run; those are: {', '.join(names) or 'none'}")
    if detector is None and len(names) != 1:
        raise SelectionError(
            f"{run.path}: has {len(names)} area detectors ({', '.join(names) or 'none'}); choose one by --detector"
        )
    name = found[0] if detector is None else f"{detector}.raw.raw"
    base = name.removesuffix(".raw")
    whole = run.dataset(name, f"{base}.present", chunks={})
    there = whole[f"{base}.present"].load()
    array = whole[name]
    dims = {dim: str(dim).rpartition(".")[2] for dim in array.dims}
    present = there.rename({dim: dims[dim] for dim in there.dims}).variable
    made = array.rename({dim: axis for dim, axis in dims.items() if dim != axis})
    return made.assign_coords(present=present)
