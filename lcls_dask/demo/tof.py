"""The demo's time-of-flight run: arrival times from digitizer windows, a histogram for each channel."""

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

#: Width of a bin, and the latest time of the histogram, in nanoseconds.
BIN_NS, GATE_NS = 0.1, 480.0
#: A pulse must stand out by this many ADU.
THRESHOLD = 60.0
#: Two pulses that are closer than this, in nanoseconds, are one maximum.
RESOLUTION_NS = 1.0
#: Interleaved cores of the digitizer, and events from whose waveforms their baselines are taken.
CORES, BASELINE_EVENTS = 4, 2000
#: Lines that the spectrum is compared at: first and last nanosecond of each group.
GROUPS = {"Ar 3s, 3p": (60.0, 62.5), "Ar 2p": (72.0, 74.5), "Ar LMM": (88.0, 91.0)}


@dataclass(frozen=True)
class Spectrum:
    """Pulses by arrival time.

    Attributes
    ----------
    counts : (segments, bins) int64
    pulses, windows, samples : int
    """

    counts: Array
    pulses: int
    windows: int
    samples: int

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Spectrum)
            and np.array_equal(self.counts, other.counts)
            and (self.pulses, self.windows, self.samples) == (other.pulses, other.windows, other.samples)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Reduction:
    """What a worker needs to reduce a block of events: the run by name and snapshot, and the constants.

    Attributes
    ----------
    path, snapshot : str
    polarity : int
    sample_ns : float
    baseline : (segments, cores) float64
    """

    path: str
    snapshot: str
    polarity: int
    sample_ns: float
    baseline: Array

    def __call__(self, block: Block) -> Spectrum:
        """Reduce the detector's own events from the first to behind the last."""
        node = digitizer(self.path, self.snapshot)
        segments = node.sizes["hsd.segment"]
        counts = np.zeros((segments, round(GATE_NS / BIN_NS)), np.int64)
        edge = _part(node, "windows.offset", block[0] * segments, block[1] * segments + 1)
        first, last = int(edge[0]), int(edge[-1])
        start = _part(node, "windows.start", first, last)
        sample_edge = _part(node, "windows.sample_offset", first, last + 1)
        begin, end = int(sample_edge[0]), int(sample_edge[-1])
        samples = _part(node, "windows.samples", begin, end)
        pulses = kernels.find_arrivals(
            edge - first, start, sample_edge - begin, samples, self.baseline, self.polarity, THRESHOLD,
            BIN_NS / self.sample_ns, counts,
        )  # fmt: skip
        return Spectrum(counts, int(pulses), last - first, end - begin)


def merge(parts: Sequence[Spectrum]) -> Spectrum:
    """Add spectra up: whole numbers, so the order does not matter."""
    return Spectrum(
        np.sum([part.counts for part in parts], axis=0),
        sum(part.pulses for part in parts),
        sum(part.windows for part in parts),
        sum(part.samples for part in parts),
    )


@lru_cache(maxsize=2)
def digitizer(path: str, snapshot: str) -> "xr.Dataset":
    """The digitizer's own node, opened once in each process."""
    import xarray as xr

    return xr.open_dataset(path, engine="lcls", group="/hsd", snapshot=snapshot)


def baselines(path: str, snapshot: str) -> Array:
    """Baseline of each core of each channel: the median of the first whole waveforms.

    Parameters
    ----------
    path, snapshot : str

    Returns
    -------
    (segments, cores) float64

    Examples
    --------
    >>> baselines("demo-out/tof", "0a1b2c3d")  # doctest: +SKIP
    """
    node = digitizer(path, snapshot)
    segments = node.sizes["hsd.segment"]
    rows = min(BASELINE_EVENTS, node.sizes["hsd.event"]) * segments
    edge = _part(node, "waveforms.offset", 0, rows + 1)
    samples = _part(node, "waveforms", 0, int(edge[-1]))
    found: list[list[Array]] = [[] for _ in range(segments)]
    for row in np.flatnonzero(np.diff(edge)):
        found[row % segments].append(samples[edge[row] : edge[row + 1]])
    everything = [waveform for waveforms in found for waveform in waveforms]
    # a channel without a whole waveform takes what the others have
    used = [np.stack(waveforms or everything) for waveforms in found]
    return np.array([[np.median(waves[:, core::CORES]) for core in range(CORES)] for waves in used])


def _part(node: "xr.Dataset", field: str, first: int, last: int) -> Array:
    values: Array = node[f"hsd.raw.{field}"][first:last].values
    return values


def check(truth: Path, spectrum: Spectrum) -> list[Check]:
    """Compare a spectrum with the hits that were simulated.

    Parameters
    ----------
    truth : Path
        Directory of ``truth.json`` and ``truth.zarr``.
    spectrum : Spectrum

    Returns
    -------
    list of Check

    Examples
    --------
    >>> check(Path("demo-out/tof"), spectrum)  # doctest: +SKIP
    """
    import zarr

    store = zarr.open_group(truth / "truth.zarr", mode="r")
    offset, time = np.asarray(store["hits.offset"]), np.asarray(store["hits.time"]) * 1e9
    row = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
    kept = np.asarray(store["written"]).ravel()[row]
    row, time = row[kept], time[kept]
    close = int(np.count_nonzero((np.diff(row) == 0) & (np.diff(time) < RESOLUTION_NS)))
    apart = len(time) - close
    checks = [
        Check(
            "pulses found",
            f"{spectrum.pulses:,}",
            f"{apart:,} ± 0.5 % ({len(time):,} simulated, {close:,} of them within {RESOLUTION_NS:g} ns of another)",
            abs(spectrum.pulses - apart) <= max(2, 0.005 * apart),
        )
    ]
    centre = (np.arange(spectrum.counts.shape[1]) + 0.5) * BIN_NS
    total = spectrum.counts.sum(axis=0)
    for name, (first, last) in GROUPS.items():
        inside = (centre >= first) & (centre < last)
        hits = time[(time >= first) & (time < last)]
        if total[inside].sum() and len(hits):
            found = float(np.average(centre[inside], weights=total[inside]))
            # the mean of few hits moves when two of them are one maximum
            slack = 0.01 + 0.5 / np.sqrt(len(hits))
            checks.append(
                Check(
                    f"{name}: mean arrival",
                    f"{found:.3f} ns",
                    f"{hits.mean():.3f} ± {slack:.3f} ns",
                    abs(found - hits.mean()) <= slack,
                )
            )
    return checks


def constants(truth: Path) -> tuple[int, float]:
    """Polarity and sample period [ns] of the simulated digitizer."""
    facts = json.loads((truth / "truth.json").read_text())["digitizer"]
    return int(facts["polarity"]), float(facts["sample_ns"])
