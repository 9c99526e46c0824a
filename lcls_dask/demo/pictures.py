"""The pictures of the demo's two simulated runs."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .. import plot
from ..access.run import Run
from ..plot import crystals
from ..sfx.chain import photons_of
from ..sfx.recipe import Settings, Tools
from . import tof
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


def sfx_pictures(out: Path, run: Run, settings: Settings, tree: xr.DataTree) -> list[Picture]:
    """Draw the powder pattern with the peaks, hits over time, an indexed frame, and shells of resolution."""
    geometry = Tools.of(settings, run.number).geometry
    made = [
        _save(
            crystals.powder_with_peaks(tree, geometry), out / "sfx-powder.png",
            "Powder pattern and peaks, as the detector lies; the beam passes through the hole.",
        ),
        _save(crystals.hit_rate(tree), out / "sfx-hits.png", "Hits, and frames that were indexed."),
    ]  # fmt: skip
    if "figures" in tree.children:
        event = int(tree["crystals"].to_dataset()["frame"][0])
        frame = crystals.indexed_frame(tree, geometry, event, photons_of(run, settings, event))
        made += [
            _save(frame, out / "sfx-frame.png", "A frame with its peaks and the reflections that were integrated."),
            _save(crystals.resolution_shells(tree), out / "sfx-shells.png", "Figures of merit by resolution."),
        ]
    return made


def _save(figure: Any, path: Path, caption: str) -> Picture:
    figure.savefig(path)
    return Picture(path, caption)
