"""Figures of merit of merged intensities, by shells of resolution."""

from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError
from .cell import Cell, as_cell, gemmi
from .merging import possible, to_asu

Array = np.ndarray[Any, np.dtype[Any]]

_WORDS = {
    "d_max": ("Angstrom", "low limit of resolution"),
    "d_min": ("Angstrom", "high limit of resolution"),
    "possible": ("1", "unique reflections there can be"),
    "unique": ("1", "unique reflections that were measured"),
    "measurements": ("1", "measurements"),
    "completeness": ("1", "share of the possible reflections that were measured"),
    "multiplicity": ("1", "measurements of a reflection"),
    "intensity": ("1", "mean intensity"),
    "i_over_sigma": ("1", "mean of intensity over its standard error"),
    "pairs": ("1", "reflections that both halves measured"),
    "cc_half": ("1", "correlation of the two halves"),
    "cc_star": ("1", "correlation with the truth, estimated"),
    "r_split": ("1", "disagreement of the two halves over the square root of 2"),
}


def figures_of_merit(merged: xr.Dataset, shells: int = 10, *, d_min: float | None = None) -> xr.Dataset:
    """Tell how good merged intensities are.

    - ``cc_half``: Pearson's correlation of the intensities of two halves of the crystals [1]_;
    - ``cc_star = sqrt(2 cc_half / (1 + cc_half))``, what it says of the correlation with the truth [1]_;
    - ``r_split = sqrt(2) sum |I1 - I2| / sum (I1 + I2)`` [2]_.

    Parameters
    ----------
    merged : xarray.Dataset
        What `merge` gave.
    shells : int
        Of equally many possible reflections.
    d_min : float, optional
        High limit of resolution [Angstrom]; that of the data by default.

    Returns
    -------
    xarray.Dataset
        Over `shell`, by rising resolution, and with ``_overall`` behind their names of all together. NaN where there
        are too few reflections, or, of ``cc_star``, where ``cc_half`` is below 0.

    Raises
    ------
    ArgumentError
        `merged` is something else, or there are no reflections up to `d_min`.

    References
    ----------
    .. [1] P. A. Karplus and K. Diederichs, Science 336 (2012) 1030.
    .. [2] T. A. White et al., J. Appl. Cryst. 45 (2012) 335.

    Examples
    --------
    >>> figures = figures_of_merit(merged, 10)  # doctest: +SKIP
    >>> float(figures["cc_half_overall"])  # doctest: +SKIP
    0.98
    """
    lacking = [name for name in ("h", "intensity", "half_intensity", "measurements") if name not in merged]
    if lacking or not {"cell", "space_group"} <= set(merged.attrs):
        raise ArgumentError("merged: is not what merge gave")
    if shells < 1:
        raise ArgumentError(f"shells={shells}: one or more are wanted")
    cell = as_cell(merged.attrs["cell"], merged.attrs["space_group"])
    hkl = np.stack([merged[name].values for name in "hkl"], axis=1).astype(np.int32)
    square = cell.gemmi_cell.calculate_1_d2_array(hkl)
    best = 1 / np.sqrt(square.max()) if len(square) else np.inf
    limit = best * (1 - 1e-9) if d_min is None else d_min
    inside = square <= 1 / limit**2
    if not inside.any():
        raise ArgumentError(f"there are no reflections up to {limit} Angstrom")
    every = possible(cell, limit)
    if merged.attrs.get("anomalous"):
        every = _with_mates(every, cell)
    edges, every_shell = _shells(every, cell, shells)
    shell = np.clip(np.searchsorted(edges[1:-1], square, side="right"), 0, shells - 1)
    made: dict[str, Array] = {}
    rows = [_figures(merged, (shell == i) & inside, int((every_shell == i).sum())) for i in range(shells)]
    overall = _figures(merged, inside, len(every))
    with np.errstate(divide="ignore"):
        limits = 1 / np.sqrt(edges)
    made["d_max"], made["d_min"] = limits[:-1], limits[1:]
    for name in overall:
        made[name] = np.array([row[name] for row in rows])
    variables: dict[str, Any] = {name: ("shell", values, _attrs(name)) for name, values in made.items()}
    variables |= {f"{name}_overall": ((), value, _attrs(name)) for name, value in overall.items()}
    return xr.Dataset(variables, attrs={"cell": list(cell.parameters), "space_group": cell.space_group})


def _attrs(name: str) -> dict[str, str]:
    return dict(zip(("units", "long_name"), _WORDS[name], strict=True))


def _with_mates(hkl: Array, cell: Cell) -> Array:
    """Reflections and, of those that are not centric, their mates."""
    centric = cell.gemmi_group.operations().centric_flag_array(np.ascontiguousarray(hkl, np.int32))
    both = np.concatenate([hkl, -hkl[~centric]])
    return np.unique(to_asu(both, cell, anomalous=True), axis=0)


def _shells(hkl: Array, cell: Cell, shells: int) -> tuple[Array, Array]:
    """Edges of the shells in 1/d^2, and which one each reflection is in."""
    binner = gemmi().Binner()
    hkl = np.ascontiguousarray(hkl, np.int32)
    if shells > len(hkl):
        raise ArgumentError(f"shells={shells}: there are only {len(hkl)} reflections to share among them")
    binner.setup(shells, gemmi().Binner.Method.EqualCount, hkl, cell.gemmi_cell)
    edges = np.concatenate([[binner.min_1_d2], np.asarray(binner.limits)[: shells - 1], [binner.max_1_d2]])
    square = cell.gemmi_cell.calculate_1_d2_array(hkl)
    return edges, np.clip(np.searchsorted(edges[1:-1], square, side="right"), 0, shells - 1)


def _figures(merged: xr.Dataset, chosen: Array, total: int) -> dict[str, float]:
    intensity, sigma = merged["intensity"].values[chosen], merged["sigma"].values[chosen]
    count = merged["measurements"].values[chosen]
    first, second = merged["half_intensity"].values[:, chosen]
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    unique, measured = len(intensity), int(count.sum())
    certain = sigma > 0
    cc = _correlation(first, second)
    sum_of_both = (first + second).sum()
    return {
        "possible": total,
        "unique": unique,
        "measurements": measured,
        "completeness": unique / total if total else np.nan,
        "multiplicity": measured / unique if unique else np.nan,
        "intensity": float(intensity.mean()) if unique else np.nan,
        "i_over_sigma": float((intensity[certain] / sigma[certain]).mean()) if certain.any() else np.nan,
        "pairs": len(first),
        "cc_half": cc,
        "cc_star": float(np.sqrt(2 * cc / (1 + cc))) if cc >= 0 else np.nan,
        "r_split": float(np.sqrt(2) * np.abs(first - second).sum() / sum_of_both) if sum_of_both > 0 else np.nan,
    }


def _correlation(x: Array, y: Array) -> float:
    if len(x) < 2:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")
