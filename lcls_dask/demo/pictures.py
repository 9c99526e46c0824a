"""The pictures of the demo's simulated crystallography run."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..access.run import Run
from ..plot import crystals
from ..sfx.chain import photons_of
from ..sfx.recipe import Settings, Tools
from .page import Picture

Array = np.ndarray[Any, Any]


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
