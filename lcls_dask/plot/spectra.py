"""Pictures of time of flight: what `lcls_dask.tof.chain.analyse` found."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..tof.angular import ANGLES
from . import heatmap, lines, polar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]

#: Points of a picture's axis.
POINTS = 600


def draw(result: xr.Dataset, out: Path) -> dict[Path, str]:
    """Write a PNG of each part of a result.

    Parameters
    ----------
    result : xarray.Dataset
        What `chain.analyse` gave.
    out : Path
        The directory; files of the same names are replaced.

    Returns
    -------
    dict of Path to str
        The title of each: hits by time and by energy, both by channel and together; the angular distributions, where
        there are channels enough; the covariance.

    Raises
    ------
    UnsupportedError
        matplotlib is not installed.

    Examples
    --------
    >>> draw(analyse(run, Settings(threshold=60)), Path("tof1"))  # doctest: +SKIP
    """
    titles = {}
    for name, title, figure in _figures(result):
        figure.savefig(out / f"{name}.png")
        titles[out / f"{name}.png"] = title
    return titles


def _figures(result: xr.Dataset) -> Iterator[tuple[str, str, "Figure"]]:
    """Name, title and figure of each."""
    for name, axis, unit in (("counts", "tof", "ns"), ("energy_counts", "energy", "eV")):
        if name in result:
            words = "time of flight" if axis == "tof" else "kinetic energy"
            spectrum, label = result[name], f"{words} ({unit})"
            edges = np.append(spectrum[f"{axis}_low"].values, spectrum[f"{axis}_high"].values[-1])
            columns, last = _columns(spectrum.values)
            span, rows, title = (edges[0], edges[last]), (-0.5, len(spectrum) - 0.5), f"Hits by {words} and channel"
            yield f"{axis}-channels", title, heatmap(columns, span, rows, label, "channel", "hits", title)
            title = f"All channels by {words}"
            yield (
                f"{axis}-spectrum",
                title,
                lines(edges, {"hits": spectrum.sum("channel").values}, label, "hits", title),
            )
    if result.sizes["channel"] >= ANGLES:
        title = "Hits by angle, and the dipole distribution fitted to them"
        units = result["line_low"].attrs["units"]
        regions = [
            (f"{float(low):g} to {float(high):g} {units}", one)
            for low, high, one in zip(
                *(result[f"line_{name}"].values for name in ("low", "high", "counts")), strict=True
            )
        ]
        fits = [
            tuple(float(result[name][i]) for name in ("line_intensity", "anisotropy", "tilt"))
            for i in range(result.sizes["line"])
        ]
        yield "polar", title, polar(result["angle"].values, dict(regions), fits, title)
    title, covariance, times = "Hits that come together", result["covariance"], result["tof_1"].values
    reach, label = (float(times[0]), float(times[-1])), "time of flight (ns)"
    yield (
        "covariance",
        title,
        heatmap(covariance.values, reach, reach, label, label, covariance.attrs["long_name"], title, both_signs=True),
    )


def _columns(counts: Array) -> tuple[Array, int]:
    """Counts of so many bins together that a picture has a point for each; and the last edge that is shown."""
    together = -(-counts.shape[1] // POINTS)
    last = counts.shape[1] // together * together
    return counts[:, :last].reshape(len(counts), -1, together).sum(axis=-1), last
