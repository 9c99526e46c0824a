"""The demo's crystallography run: frames with many strong pixels are hits, and hits are summed to a powder pattern."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import kernels
from .page import Check
from .workers import Block

if TYPE_CHECKING:
    import xarray as xr

Array = np.ndarray[Any, Any]

#: A pixel is strong above this many photons; a frame is a hit with this many strong pixels.
STRONG_PHOTONS, HIT_PIXELS = 7.0, 30
#: Spots of this many photons must be seen in the powder pattern.
BRIGHT_PHOTONS = 400.0


@dataclass(frozen=True)
class Constants:
    """Calibration constants of the detector.

    Attributes
    ----------
    pedestal : (segment, row, column) float32
        Of the highest gain, ADU.
    good : (segment, row, column) bool
        False for hot pixels.
    adu_per_photon : float
    """

    pedestal: Array
    good: Array
    adu_per_photon: float


@dataclass(frozen=True)
class Powder:
    """Sums of raw frames, hits and blanks apart.

    Attributes
    ----------
    total : (2, segment, row, column) uint32
        Of blanks and of hits; raw values without the gain bits, so that any order gives the same sum. Exact for
        262,144 frames, and half of what 64 bits would send between workers.
    frames : (2, segment) int64
        How many frames of each segment are in the sums: absent ones are not.
    strong : dict of int to int
        Strong pixels by event.
    """

    total: Array
    frames: Array
    strong: dict[int, int]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Powder)
            and np.array_equal(self.total, other.total)
            and np.array_equal(self.frames, other.frames)
            and self.strong == other.strong
        )

    __hash__ = None  # type: ignore[assignment]

    def hits(self) -> list[int]:
        """Events that are hits, ascending."""
        return sorted(event for event, count in self.strong.items() if count >= HIT_PIXELS)

    def photons(self, constants: Constants) -> Array:
        """Mean photons of a hit above those of a blank: (segment, row, column) float64, NaN where a pixel is hot."""
        mean = self.total / np.maximum(self.frames, 1)[:, :, None, None]
        return np.where(constants.good, (mean[1] - mean[0]) / constants.adu_per_photon, np.nan)


@dataclass(frozen=True)
class Reduction:
    """What a worker needs to reduce a block of events: the run by name and snapshot, and where the constants are.

    Attributes
    ----------
    path, snapshot : str
    truth : Path
        Directory of ``truth.json`` and ``truth.zarr``.
    """

    path: str
    snapshot: str
    truth: Path

    def __call__(self, block: Block) -> Powder:
        """Reduce the events from the first to behind the last."""
        run, constants = _root(self.path, self.snapshot), read_constants(self.truth)
        frames, present = run["jungfrau.raw.raw"], run["jungfrau.raw.present"][block[0] : block[1]].values
        total = np.zeros((2, *frames.shape[1:]), np.uint32)
        count = np.zeros((2, frames.shape[1]), np.int64)
        strong = {}
        threshold = STRONG_PHOTONS * constants.adu_per_photon
        for event in range(*block):
            frame, there = frames[event].values, present[event - block[0]]
            strong[event] = sum(
                int(kernels.count_strong(frame[s], constants.pedestal[s], constants.good[s], threshold))
                for s in np.flatnonzero(there)
            )
            hit = int(strong[event] >= HIT_PIXELS)
            kernels.add_frame(frame, total[hit])
            count[hit] += there
        return Powder(total, count, strong)


def merge(parts: Sequence[Powder]) -> Powder:
    """Add sums up: whole numbers, so the order does not matter."""
    total, frames, strong = parts[0].total.copy(), parts[0].frames.copy(), dict(parts[0].strong)
    for part in parts[1:]:
        total += part.total
        frames += part.frames
        strong |= part.strong
    return Powder(total, frames, strong)


@lru_cache(maxsize=2)
def _root(path: str, snapshot: str) -> "xr.Dataset":
    import xarray as xr

    return xr.open_dataset(path, engine="lcls", snapshot=snapshot)


@lru_cache(maxsize=1)
def read_constants(truth: Path) -> Constants:
    """Pedestals, hot pixels and gain, as they were simulated; read once in each process."""
    import zarr

    store = zarr.open_group(truth / "truth.zarr", mode="r")
    pedestal = np.asarray(store["pedestal"], np.float32)
    good = np.ones(pedestal.shape, bool)
    good[tuple(np.asarray(store["hot_pixels"]).T)] = False
    facts = json.loads((truth / "truth.json").read_text())["detector"]
    return Constants(pedestal, good, float(facts["adu_per_photon"]))


def check(truth: Path, powder: Powder) -> list[Check]:
    """Compare hits and powder pattern with the crystals that were simulated.

    Parameters
    ----------
    truth : Path
        Directory of ``truth.json`` and ``truth.zarr``.
    powder : Powder

    Returns
    -------
    list of Check

    Examples
    --------
    >>> check(Path("demo-out/sfx"), powder)  # doctest: +SKIP
    """
    import zarr

    store = zarr.open_group(truth / "truth.zarr", mode="r")
    written = np.asarray(store["written"])
    hits = set(np.flatnonzero(np.asarray(store["hit"])).tolist())
    found = set(powder.hits())
    checks = [
        Check("hits", f"{len(found)}", f"{len(hits)} of {len(written)} frames", found == hits),
        Check(
            "segments summed",
            f"{int(powder.frames.sum()):,}",
            f"{int(written.sum()):,} in the files",
            np.array_equal(powder.frames.sum(axis=0), written.sum(axis=0)),
        ),
    ]
    constants = read_constants(truth)
    offset = np.asarray(store["spots.offset"])
    event = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
    segment = np.asarray(store["spots.segment"]).astype(int)
    rows, columns = constants.good.shape[1:]
    row = np.rint(np.asarray(store["spots.row"])).astype(int).clip(0, rows - 1)
    column = np.rint(np.asarray(store["spots.column"])).astype(int).clip(0, columns - 1)
    bright = (np.asarray(store["spots.intensity"]) >= BRIGHT_PHOTONS) & written[event, segment]
    bright &= constants.good[segment, row, column]
    # such a spot alone lifts the sum of all hits at its pixel by more than this
    lifted = powder.photons(constants) * np.maximum(powder.frames[1], 1)[:, None, None] > STRONG_PHOTONS
    seen = int(np.count_nonzero(lifted[segment, row, column] & bright))
    total = int(np.count_nonzero(bright))
    checks.append(
        Check(
            f"spots above {BRIGHT_PHOTONS:g} photons in the powder",
            f"{seen:,}",
            f"{total:,} ± 1 %",
            abs(seen - total) <= max(1, 0.01 * total),
        )
    )
    return checks
