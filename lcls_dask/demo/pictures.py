"""The pictures of the demo's two simulated runs."""

from pathlib import Path
from typing import Any

import numpy as np

from .. import plot
from ..facility.geometry import PIXEL, jungfrau_4m, pixel_positions
from ..facility.sfx import DISTANCE, WAVELENGTH
from . import sfx, tof
from .page import Picture

Array = np.ndarray[Any, Any]

#: Nanoseconds of the spectrum that the picture shows.
SHOWN_NS = (55.0, 95.0)


def tof_pictures(out: Path, spectrum: tof.Spectrum) -> list[Picture]:
    """Draw the spectrum, and the channels around the beam."""
    counts = spectrum.counts
    edges = np.arange(counts.shape[1] + 1) * tof.BIN_NS
    first, last = (int(np.searchsorted(edges, at)) for at in SHOWN_NS)
    total = plot.lines(
        edges[first : last + 1],
        {"pulses": counts.sum(axis=0)[first:last]},
        "arrival time (ns)",
        f"pulses per {tof.BIN_NS:g} ns",
        "All channels: argon photo lines, then Auger lines",
    )
    total.axes[0].set_yscale("log")
    groups = {
        name: counts[:, (edges[:-1] >= begin) & (edges[:-1] < end)].sum(axis=1)
        for name, (begin, end) in tof.GROUPS.items()
    }
    angles = plot.lines(
        np.arange(len(counts)),
        groups,
        "channel",
        "pulses",
        "Around the beam: photo lines follow the polarisation, Auger lines do not",
    )
    return [
        _save(total, out / "tof-spectrum.png", "Arrival times in all channels."),
        _save(angles, out / "tof-channels.png", "Pulses of each group of lines by channel."),
    ]


def sfx_pictures(out: Path, powder: sfx.Powder, constants: sfx.Constants) -> list[Picture]:
    """Draw the powder pattern, its radial profile, and hits and blanks."""
    photons = powder.photons(constants)
    title = f"Powder pattern: mean of {len(powder.hits())} hits less the mean of the blanks"
    pattern = plot.image(assemble(photons), "photons above background", title, width=8, low=0.0)
    edges, profile = radial_profile(photons)
    radial = plot.lines(
        edges, {"mean": profile}, "1/d (1/Å)", "photons a pixel", "The same by resolution: rings of lysozyme"
    )
    strong = np.array([powder.strong[event] for event in sorted(powder.strong)])
    hits = plot.lines(
        np.arange(len(strong)),
        {"frames": strong, f"threshold, {sfx.HIT_PIXELS}": np.full(len(strong), sfx.HIT_PIXELS)},
        "event",
        f"pixels above {sfx.STRONG_PHOTONS:g} photons",
        "Hits and blanks",
    )
    hits.axes[0].set_yscale("symlog")
    hits.axes[0].lines[0].set(linestyle="none", marker=".")
    hits.axes[0].legend()
    return [
        _save(
            pattern,
            out / "sfx-powder.png",
            "Powder pattern in the detector's layout; the beam passes through the hole.",
        ),
        _save(radial, out / "sfx-radial.png", "Mean of the powder pattern over rings about the beam."),
        _save(hits, out / "sfx-hits.png", "Strong pixels of each frame: hits stand far above blanks."),
    ]


def radial_profile(values: Array, bins: int = 300) -> tuple[Array, Array]:
    """Mean over rings of equal resolution.

    Parameters
    ----------
    values : (8, 512, 1024)
        NaN where a pixel does not count.
    bins : int

    Returns
    -------
    edges : (bins + 1,) float64
        Of 1/d [1/Å].
    mean : (bins,) float64

    Examples
    --------
    >>> edges, mean = radial_profile(np.ones((8, 512, 1024)))
    >>> float(mean[-1])
    1.0
    """
    xy = pixel_positions(jungfrau_4m()) * PIXEL
    resolution = 2 * np.sin(np.arctan(np.hypot(xy[..., 0], xy[..., 1]) / DISTANCE) / 2) / WAVELENGTH
    good = np.isfinite(values)
    count, edges = np.histogram(resolution[good], bins)
    total, _ = np.histogram(resolution[good], edges, weights=values[good])
    return edges, total / np.maximum(count, 1)


def assemble(values: Array) -> Array:
    """Pixels of the Jungfrau 4M where they are, seen against the beam.

    Parameters
    ----------
    values : (8, 512, 1024)

    Returns
    -------
    (row, column) float64
        NaN between the modules.

    Examples
    --------
    >>> assemble(np.zeros((8, 512, 1024))).ndim
    2
    """
    place = np.floor(pixel_positions(jungfrau_4m())).astype(int)
    place -= place.reshape(-1, 2).min(axis=0)
    canvas = np.full((place[..., 1].max() + 1, place[..., 0].max() + 1), np.nan)
    canvas[place[..., 1].max() - place[..., 1], place[..., 0]] = values
    return canvas


def _save(figure: Any, path: Path, caption: str) -> Picture:
    figure.savefig(path)
    return Picture(path, caption)
